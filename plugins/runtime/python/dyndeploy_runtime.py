"""A bundle in a Python application on a board: one file, Python 3.6 or newer, nothing but NumPy.

    from dyndeploy_runtime import open_bundle
    session = open_bundle("bundle")
    print(session.classify("photo.jpg").class_name)   # a classifier
    print(session.detect("photo.jpg").boxes)          # a detector

It calls ``libdyndeploy.so`` (plugins/runtime), which it looks for where the environment variable ``DYNDEPLOY_RUNTIME``
says, beside this file, in the folders ``built`` and ``prebuilt`` of a bundle's device/ folder, and on the system.
"""

import collections
import ctypes
import functools
import importlib.util
import itertools
import json
import os
import platform

import numpy as np

_ABI = 1
_LIBRARY = "libdyndeploy.so"

_FIELDS = "label confidence class_name exit ms preprocessing_ms rates logits"


class Classification(collections.namedtuple("Classification", _FIELDS)):
    """What a network says about an image.

    label: index of the class; confidence: its softmax probability; class_name: None where the bundle holds no names;
    exit: the exit that was taken, from 1, or None; ms: time of the network, of a batch an equal part;
    preprocessing_ms: of decoding and resizing; rates: share of active bits of every mask by name; logits: float32
    (classes,).
    """

    __slots__ = ()

    def __repr__(self):
        """Of the logits, which may be thousands, their number."""
        named = ["%s=%r" % pair for pair in zip(self._fields, self[:-1])]
        return "Classification(%s, logits=<%d values>)" % (", ".join(named), len(self.logits))


class Detections:
    """What a detector found in an image, the surest first; the first four are those of ``dyndeploy.Detections``.

    boxes: (n, 4) float32, x1, y1, x2, y2 in the image's own pixels; scores: (n,) float32; labels: (n,) int64, indices
    of the classes; masks: (n, height, width) bool, None where the detector finds boxes only; category_ids: (n,) int64,
    COCO's, the labels where the bundle knows none; class_names: of each, None where the bundle holds no names; height,
    width: of the image, upright; input_size: (H, W) of the input that it ran in; resized: (h, w) of the image in it;
    ms: time of the network, of a batch an equal part; host_ms: of resizing, normalising and decoding; rates: share of
    active bits of every mask of the backbone by name; counts: of each mask COCO's text of its run lengths, or None.
    """

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def to_coco(self):
        """Return COCO results, which ``json.dump`` takes: category_id, bbox, score, and the segmentation of masks."""
        found = []
        for index, (x1, y1, x2, y2) in enumerate(self.boxes.astype(np.float64).tolist()):
            item = {"category_id": int(self.category_ids[index]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            item["score"] = float(self.scores[index])
            if self.counts is not None:
                item["segmentation"] = {"size": [self.height, self.width], "counts": self.counts[index]}
            found.append(item)
        return found

    def __len__(self):
        """Return the number of detections."""
        return len(self.scores)

    def __repr__(self):
        """Of the arrays, which may be large, their number."""
        kind = "boxes" if self.masks is None else "boxes and masks"
        where = (len(self), kind, self.height, self.width, self.input_size, self.ms)
        return "Detections(<%d %s in %d x %d pixels>, input_size=%r, ms=%r)" % where


_COMPLETED = "ticket token result error rows queue_ms latency_ms"


class Completion(collections.namedtuple("Completion", _COMPLETED)):
    """What came of an image that was submitted.

    ticket: what :meth:`Session.submit` returned; token: what it was given; result: a :class:`Classification` or
    :class:`Detections`, None where the image failed; error: a :class:`DyndeployError`, else None; rows: images that ran
    with it in its last batch, itself among them; queue_ms: from submission until it first ran; latency_ms: until its
    result was there.
    """

    __slots__ = ()


class DyndeployError(Exception):
    """What went wrong, in one line; ``code`` is that of ``dyndeploy.h``."""

    def __init__(self, code, message):
        Exception.__init__(self, message)
        self.code = code


_PROGRESS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)


class _Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("onnxruntime", ctypes.c_char_p),
        ("native", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("threshold_count", ctypes.c_int32),
        ("thresholds", ctypes.POINTER(ctypes.c_double)),
        ("runtime", ctypes.c_char_p),
        ("tensorrt", ctypes.c_char_p),
        ("plugins", ctypes.c_char_p),
        ("progress", _PROGRESS),
        ("user", ctypes.c_void_p),
    ]


class _Image(ctypes.Structure):
    _fields_ = [
        ("pixels", ctypes.c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("stride", ctypes.c_int64),
    ]


class _Classification(ctypes.Structure):
    _fields_ = [("label", ctypes.c_int32), ("confidence", ctypes.c_float), ("class_name", ctypes.c_char_p)]


class _Task(ctypes.Union):
    _fields_ = [("classification", _Classification), ("reserved", ctypes.c_uint8 * 64)]


class _Result(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("task", ctypes.c_int32),
        ("exit", ctypes.c_int32),
        ("ms", ctypes.c_double),
        ("preprocessing_ms", ctypes.c_double),
        ("rates", ctypes.c_void_p),
        ("rates_room", ctypes.c_size_t),
        ("rates_count", ctypes.c_size_t),
        ("values", ctypes.c_void_p),
        ("values_room", ctypes.c_size_t),
        ("values_count", ctypes.c_size_t),
        ("of_task", _Task),
    ]


class _Detection(ctypes.Structure):
    _fields_ = [
        ("box", ctypes.c_float * 4),
        ("score", ctypes.c_float),
        ("label", ctypes.c_int32),
        ("category_id", ctypes.c_int64),
        ("class_name", ctypes.c_char_p),
        ("runs", ctypes.POINTER(ctypes.c_uint32)),
        ("run_count", ctypes.c_size_t),
        ("reserved", ctypes.c_uint8 * 8),
    ]


class _Detections(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("memory", ctypes.c_void_p),
        ("found", ctypes.POINTER(_Detection)),
        ("count", ctypes.c_size_t),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("input_height", ctypes.c_int32),
        ("input_width", ctypes.c_int32),
        ("resized_height", ctypes.c_int32),
        ("resized_width", ctypes.c_int32),
        ("ms", ctypes.c_double),
        ("host_ms", ctypes.c_double),
        ("rates", ctypes.c_void_p),
        ("rates_room", ctypes.c_size_t),
        ("rates_count", ctypes.c_size_t),
    ]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
    ]


class _Policy(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("queue_limit", ctypes.c_int32),
        ("largest_batch", ctypes.c_int32),
        ("latency_ms", ctypes.c_double),
        ("patience", ctypes.c_double),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("image", ctypes.POINTER(_Image)),
        ("file", ctypes.c_char_p),
        ("file_bytes", ctypes.c_size_t),
        ("values", ctypes.c_void_p),
        ("sides", ctypes.POINTER(ctypes.c_int32)),
        ("user", ctypes.c_void_p),
    ]


class _Completion(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("result", ctypes.POINTER(_Result)),
        ("detections", ctypes.POINTER(_Detections)),
        ("ticket", ctypes.c_uint64),
        ("user", ctypes.c_void_p),
        ("code", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("queue_ms", ctypes.c_double),
        ("latency_ms", ctypes.c_double),
        ("message", ctypes.c_char * 256),
    ]


_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}
_USAGE, _INPUT, _BACKEND = 1, 3, 5
BUSY, CLOSED = 9, 10
"""Codes of a full queue, and of a session that was closed meanwhile."""
_CLASSIFICATION = 1


def open_bundle(
    bundle,
    threads=1,
    thresholds=None,
    native="auto",
    onnxruntime=None,
    library=None,
    runtime="auto",
    tensorrt=None,
    plugins=None,
    progress=None,
):
    """Open the folder of a bundle.

    Args:
        bundle: The folder that ``dyndeploy export`` wrote.
        threads: Threads that compute one call.
        thresholds: Least confidence of every exit but the last; None takes the bundle's.
        native: The operator library: "auto" if one is found, "off", or its path.
        onnxruntime: ``libonnxruntime.so`` or its folder; None looks for it, also in this Python's packages.
        library: ``libdyndeploy.so``; None looks for it.
        runtime: "onnxruntime", "tensorrt", or "auto": TensorRT where the bundle is for it and it is here.
        tensorrt: TensorRT's library; None looks for it.
        plugins: ``libdyndeploy_tensorrt.so``, the plugins of the dynamic operators; None looks for it.
        progress: Called with a line now and then while engines are built, which takes minutes on a board.

    Raises:
        DyndeployError: The bundle is damaged, or a library is missing or too old.
    """
    return Session(
        bundle, threads, thresholds, native, onnxruntime, library, (runtime, tensorrt, plugins), progress or _silent
    )


class Session:
    """An opened bundle; :func:`open_bundle` makes it. A context manager. Threads may share it.

    Attributes:
        info: What was opened: network, task, inputs, outputs, masks, exits, runtime, operator library.
    """

    def __init__(self, bundle, threads, thresholds, native, onnxruntime, library, engines, progress):
        self._handle = None
        self._library = _load(library)
        values = (ctypes.c_double * len(thresholds or ()))(*(thresholds or ()))
        options = _Options(
            ctypes.sizeof(_Options),
            _path(onnxruntime or _packaged_onnxruntime()),
            _path(native),
            threads,
            len(values),
            values if len(values) else None,
            *[_path(value) for value in engines],
        )
        # Held as long as the library may call it.
        self._progress = options.progress = _PROGRESS(lambda user, line: progress(line.decode("utf-8", "replace")))
        handle = ctypes.c_void_p()
        self._check(self._library.dyndeploy_open(_path(bundle), ctypes.byref(options), ctypes.byref(handle)))
        self._handle = handle
        self.info = json.loads(self._library.dyndeploy_info(handle).decode("utf-8"))
        classes = [info["shape"][1] for info in self.info["outputs"] if info["name"] == "logits"]
        self._classes = classes[0] if self.info["task"] == "classification" else 0
        self._numbers = itertools.count(1)
        self._submitted = {}  # by the number that the library gives back: token and ticket

    def __enter__(self):
        """Return the session."""
        return self

    def __exit__(self, kind, error, traceback):
        """Close the session."""
        self.close()

    def __del__(self):
        """Close what was left open."""
        self.close()

    def close(self):
        """Free what the session holds; closing twice is allowed, running afterwards is not."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.dyndeploy_close(handle)

    def classify(self, image):
        """Classify an image: a path of a JPEG or PNG file, or RGB bytes (H, W, 3) as OpenCV's ``frame[..., ::-1]``.

        Returns:
            A :class:`Classification`.

        Raises:
            DyndeployError: The image cannot be read, the network gives no classes or no finite result.
        """
        return self.classify_all([image])[0]

    def classify_all(self, images):
        """Classify several images, all paths or all arrays, in batches where the bundle runs them."""
        images = list(images)
        handle = self._open_handle()
        self._require_classes("detect()" if "detection" in self.info else "run()")
        masks, count = self.info["masks"], len(images)
        rates = np.zeros((count, len(masks)), np.float32)
        logits = np.zeros((count, self._classes), np.float32)
        results = (_Result * count)()
        for index, result in enumerate(results):
            result.size = ctypes.sizeof(_Result)
            result.rates, result.rates_room = rates[index].ctypes.data, len(masks)
            result.values, result.values_room = logits[index].ctypes.data, self._classes
        if all(isinstance(image, np.ndarray) for image in images):
            given, alive = _images(images)
            self._check(self._library.dyndeploy_run_images(handle, given, count, results))
            del alive
        else:
            paths = (ctypes.c_char_p * count)(*[_path(image) for image in images])
            self._check(self._library.dyndeploy_run_files(handle, paths, count, results))
        return [_classification(*row) for row in zip(results, [masks] * count, rates, logits)]

    def detect(self, image, size=None):
        """Find objects in an image, as :meth:`classify` takes it, of any size.

        Args:
            image: A path, or RGB bytes (H, W, 3).
            size: Longest and shortest side that it is resized to; None for the bundle's.

        Returns:
            A :class:`Detections`.

        Raises:
            DyndeployError: The image cannot be read, the network is no detector or gives no finite result.
        """
        return self.detect_all([image], size)[0]

    def detect_all(self, images, size=None):
        """Find objects in several images, all paths or all arrays, in batches where the bundle runs them."""
        images = list(images)
        handle = self._open_handle()
        if "detection" not in self.info:
            raise DyndeployError(_USAGE, "The network is no detector: it finds no objects in images.")
        count, masks = len(images), self.info["masks"]
        rates = np.zeros((count, len(masks)), np.float32)
        results = (_Detections * count)()
        for index, result in enumerate(results):
            result.size = ctypes.sizeof(_Detections)
            result.rates, result.rates_room = rates[index].ctypes.data, len(masks)
        sides = None if size is None else (ctypes.c_int32 * 2)(*size)
        try:
            if all(isinstance(image, np.ndarray) for image in images):
                given, alive = _images(images)
                self._check(self._library.dyndeploy_detect_images(handle, given, count, sides, results))
                del alive
            else:
                paths = (ctypes.c_char_p * count)(*[_path(image) for image in images])
                self._check(self._library.dyndeploy_detect_files(handle, paths, count, sides, results))
            return [self._detections(result, dict(zip(masks, row.tolist()))) for result, row in zip(results, rates)]
        finally:
            self._library.dyndeploy_free_detections(results, count)

    def serve(self, queue_limit=0, largest_batch=0, latency_ms=0.0, patience=0.0):
        """Say how :meth:`submit` and :meth:`poll` work, before the first image; 0 takes what ``dyndeploy.h`` says.

        Args:
            queue_limit: Images that were submitted and not polled yet, at most.
            largest_batch: Rows of a run.
            latency_ms: Bound from submission to result; 0: throughput alone counts.
            patience: How readily images between stages wait for others that join them; 1 as long as all together wait
                less for it, more for throughput.
        """
        policy = _Policy(ctypes.sizeof(_Policy), queue_limit, largest_batch, latency_ms, patience)
        self._check(self._library.dyndeploy_serve(self._open_handle(), ctypes.byref(policy)))

    def submit(self, image, size=None, token=None):
        """Submit an image to the batches that all callers share; any thread may, and none waits for a result here.

        Args:
            image: A path, the bytes of a JPEG or PNG file, RGB bytes (H, W, 3) as uint8, or of a network that is no
                detector float32 (3, h, w) as :meth:`preprocess` returns it.
            size: As for :meth:`detect`.
            token: Anything; it comes back with the result.

        Returns:
            The ticket, an int.

        Raises:
            DyndeployError: The image cannot be read; or the queue is full (``code`` is :data:`BUSY`): poll, and submit
                it again.
        """
        handle = self._open_handle()
        if "detection" not in self.info:
            self._require_classes("run()")
        request, alive = _Request(ctypes.sizeof(_Request)), None
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            wanted = [3] + self.info.get("input_size", [])
            if "detection" in self.info or list(image.shape) != wanted:
                raise DyndeployError(_INPUT, f"float32 {image.shape} is not the network's input {tuple(wanted)}.")
            alive = np.ascontiguousarray(image)
            request.values = alive.ctypes.data
        elif isinstance(image, np.ndarray):
            request.image, alive = _images([image])
        else:
            alive = image if isinstance(image, bytes) else _file(image)
            request.file, request.file_bytes = alive, len(alive)
        if size is not None:
            request.sides = (ctypes.c_int32 * 2)(*size)
        number, entry, ticket = next(self._numbers), [token, None], ctypes.c_uint64()
        request.user = number
        # Another thread may poll the result before this one returns.
        self._submitted[number] = entry
        try:
            self._check(self._library.dyndeploy_submit(handle, ctypes.byref(request), ctypes.byref(ticket)))
        except DyndeployError:
            del self._submitted[number]
            raise
        del alive
        entry[1] = ticket.value
        return ticket.value

    def poll(self, timeout=None, most=64):
        """Take results in the order in which they were finished; each is given once.

        Args:
            timeout: Seconds to wait for the first one; None: until there is one.
            most: Results that are taken at once.

        Returns:
            A list of :class:`Completion`, empty where none came in time.

        Raises:
            DyndeployError: The session was closed meanwhile (``code`` is :data:`CLOSED`).
        """
        handle = self._open_handle()
        masks, detects = self.info["masks"], "detection" in self.info
        rates, logits = np.zeros((most, len(masks)), np.float32), np.zeros((most, self._classes), np.float32)
        results, found, completions = (_Result * most)(), (_Detections * most)(), (_Completion * most)()
        for index, (result, detections, completion) in enumerate(zip(results, found, completions)):
            result.size, detections.size = ctypes.sizeof(_Result), ctypes.sizeof(_Detections)
            completion.size = ctypes.sizeof(_Completion)
            result.rates = detections.rates = rates[index].ctypes.data
            result.rates_room = detections.rates_room = len(masks)
            result.values, result.values_room = logits[index].ctypes.data, self._classes
            if detects:
                completion.detections = ctypes.pointer(detections)
            else:
                completion.result = ctypes.pointer(result)
        count = ctypes.c_size_t()
        wait = -1.0 if timeout is None else max(1e3 * timeout, 0.0)
        try:
            self._check(self._library.dyndeploy_poll(handle, completions, most, wait, ctypes.byref(count)))
            taken = []
            for index in range(count.value):
                completion, value, error = completions[index], None, None
                if completion.code:
                    error = DyndeployError(completion.code, completion.message.decode("utf-8", "replace"))
                elif detects:
                    value = self._detections(found[index], dict(zip(masks, rates[index].tolist())))
                else:
                    value = _classification(results[index], masks, rates[index], logits[index].copy())
                token = self._submitted.pop(completion.user)[0]
                numbers = completion.rows, completion.queue_ms, completion.latency_ms
                taken.append(Completion(completion.ticket, token, value, error, *numbers))
            return taken
        finally:
            self._library.dyndeploy_free_detections(found, most)

    def cancel(self, ticket):
        """Take an image back: it is never polled, and stages that have not run yet leave it out.

        Raises:
            DyndeployError: No image of that ticket is under way (any more).
        """
        self._check(self._library.dyndeploy_cancel(self._open_handle(), ticket))
        for number, entry in list(self._submitted.items()):
            if entry[1] == ticket:
                self._submitted.pop(number, None)

    def _require_classes(self, way):
        if not self._classes:
            raise DyndeployError(_USAGE, f"The network gives no logits: there is no class to tell. Use {way}.")

    def _detections(self, result, rates):
        """What the library found, in memory of NumPy's own."""
        found, masks, counts = [result.found[index] for index in range(result.count)], None, None
        if self.info["detection"]["masks"]:
            masks = np.zeros((len(found), result.height, result.width), np.bool_)
            for one, mask in zip(found, masks):
                pixels = mask.ctypes.data
                self._check(self._library.dyndeploy_mask_pixels(one, result.height, result.width, pixels))
            counts = [self._text(functools.partial(self._library.dyndeploy_mask_text, one)) for one in found]
        return Detections(
            boxes=np.array([list(one.box) for one in found], np.float32).reshape(-1, 4),
            scores=np.array([one.score for one in found], np.float32),
            labels=np.array([one.label for one in found], np.int64),
            masks=masks,
            category_ids=np.array([one.category_id for one in found], np.int64),
            class_names=[None if one.class_name is None else one.class_name.decode("utf-8") for one in found],
            height=result.height,
            width=result.width,
            input_size=(result.input_height, result.input_width),
            resized=(result.resized_height, result.resized_width),
            ms=result.ms,
            host_ms=result.host_ms,
            rates=rates,
            counts=counts,
        )

    def run(self, inputs, outputs=None):
        """Run once on arrays.

        Args:
            inputs: Arrays by name, as ``info["inputs"]`` says. A network with exits takes any number of images, or
                up to the batch where that is fixed.
            outputs: Names of the outputs and masks to return; None returns all.

        Returns:
            Arrays by name.

        Raises:
            DyndeployError: An input is missing or of the wrong shape, or a result is not finite.
        """
        handle = self._open_handle()
        alive = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        for name, value in alive.items():
            if value.dtype.name not in _TYPES or value.ndim > 8:
                raise DyndeployError(_INPUT, f"Input '{name}': {value.dtype} {value.shape} cannot be given.")
        given = [_tensor(name, value) for name, value in alive.items()]
        count = len(next(iter(alive.values()))) if self.info["exits"] and alive else 0
        results = {}
        for name, dtype, shape in self._described(outputs):
            results[name] = np.zeros([count] + list(shape[1:]) if self.info["exits"] else shape, dtype)
        taken = [_tensor(name, value) for name, value in results.items()]
        self._check(
            self._library.dyndeploy_run_tensors(
                handle, (_Tensor * len(given))(*given), len(given), (_Tensor * len(taken))(*taken), len(taken), None, 0
            )
        )
        return results

    def prepare(self, inputs):
        """Return a function that runs once on arrays, as :meth:`run` takes them; it returns the network's milliseconds.

        Its outputs are not brought back: it is for measuring.
        """
        handle = self._open_handle()
        alive = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        given = (_Tensor * len(alive))(*[_tensor(name, value) for name, value in alive.items()])
        rows = len(next(iter(alive.values()))) if self.info["exits"] else self.info["inputs"][0]["shape"][0]
        results = (_Result * rows)()
        for result in results:
            result.size = ctypes.sizeof(_Result)

        def call(alive=alive):
            self._check(self._library.dyndeploy_run_tensors(handle, given, len(given), None, 0, results, rows))
            return sum(result.ms for result in results)

        return call

    def preprocess(self, image):
        """Return an image, as :meth:`classify` takes it, as the network's input, float32 (3, h, w)."""
        handle = self._open_handle()
        own = self.info["detection"]["buckets"][0] if "detection" in self.info else self.info.get("input_size")
        if own is None:
            raise DyndeployError(_USAGE, "The network takes no images: give its inputs to run().")
        values = np.zeros([3] + own, np.float32)
        data = values.ctypes.data_as(ctypes.c_void_p)
        if isinstance(image, np.ndarray):
            given, alive = _images([image])
            self._check(self._library.dyndeploy_preprocess(handle, given, data, values.size))
            del alive
        else:
            self._check(self._library.dyndeploy_preprocess_file(handle, _path(image), data, values.size))
        return values

    def statistics(self):
        """Images, milliseconds, mean rate of every mask and exits since opening or the last reset."""
        handle = self._open_handle()
        return json.loads(self._text(functools.partial(self._library.dyndeploy_statistics, handle)))

    def reset_statistics(self):
        """Begin to count anew."""
        self._check(self._library.dyndeploy_reset_statistics(self._open_handle()))

    def verify(self):
        """Check every checksum, and results on the reference inputs; raises DyndeployError where something differs."""
        self._check(self._library.dyndeploy_verify(self._open_handle()))

    def _described(self, names):
        known = [(info["name"], info["dtype"], info["shape"]) for info in self.info["outputs"]]
        known += [(name, "float32", shape) for name, shape in zip(self.info["masks"], self.info["mask_shapes"])]
        if names is None:
            return known
        found = {entry[0]: entry for entry in known}
        for name in names:
            if name not in found:
                raise DyndeployError(_USAGE, f"The network gives no output '{name}': {', '.join(found)}.")
        return [found[name] for name in names]

    def _text(self, write):
        """What ``write(text, room, needed)`` writes, in as much room as that needs."""
        room, needed = 4096, ctypes.c_size_t()
        while True:
            text = ctypes.create_string_buffer(room)
            code = write(text, room, ctypes.byref(needed))
            if not code or needed.value <= room:
                self._check(code)
                return text.value.decode("utf-8")
            room = needed.value + 256

    def _open_handle(self):
        if self._handle is None:
            raise DyndeployError(_USAGE, "The session is closed. Open a new one.")
        return self._handle

    def _check(self, code):
        if code:
            raise DyndeployError(code, self._library.dyndeploy_last_error().decode("utf-8", "replace"))


def _silent(line):
    """What nobody asked for."""


def _file(path):
    try:
        with open(_path(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise DyndeployError(_INPUT, f"Cannot read the image {path}: {error.strerror}.") from error


def _path(value):
    return None if value is None else os.fsencode(os.fspath(value))


def _images(images):
    """The structures of arrays, and the arrays that must live as long."""
    alive = []
    for image in images:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            what = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
            raise DyndeployError(_INPUT, f"An image is RGB bytes, uint8 (H, W, 3), not {what}.")
        alive.append(np.ascontiguousarray(image))
    structures = [_Image(i.ctypes.data, i.shape[0], i.shape[1], 3 * i.shape[1]) for i in alive]
    return (_Image * len(structures))(*structures), alive


def _tensor(name, value):
    shape = (ctypes.c_int64 * 8)(*value.shape)
    kind = _TYPES[value.dtype.name]
    return _Tensor(
        ctypes.sizeof(_Tensor), name.encode("utf-8"), value.ctypes.data, value.nbytes, kind, value.ndim, shape
    )


def _classification(result, masks, rates, logits):
    found = result.of_task.classification
    name = None if found.class_name is None else found.class_name.decode("utf-8")
    return Classification(
        found.label,
        found.confidence,
        name,
        result.exit or None,
        result.ms,
        result.preprocessing_ms,
        dict(zip(masks, rates.tolist())),
        logits,
    )


def _packaged_onnxruntime():
    """The folder of this Python's package onnxruntime where it carries a shared library; it is not imported."""
    if os.environ.get("DYNDEPLOY_ONNXRUNTIME"):
        return None
    spec = importlib.util.find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        capi = os.path.join(folder, "capi")
        if os.path.isdir(capi) and any(name.startswith("libonnxruntime.so") for name in os.listdir(capi)):
            return capi
    return None


def _load(path):
    here = os.path.dirname(os.path.abspath(__file__))
    folders = [here, os.path.join(here, "built"), os.path.join(here, "prebuilt", platform.machine())]
    known = [os.path.join(folder, _LIBRARY) for folder in folders if os.path.isfile(os.path.join(folder, _LIBRARY))]
    named = path or os.environ.get("DYNDEPLOY_RUNTIME") or (known[0] if known else _LIBRARY)
    try:
        library = ctypes.CDLL(os.fspath(named))
        # A library from before there were common batches lacks the second.
        found, _ = library.dyndeploy_abi(), library.dyndeploy_submit
    except (OSError, AttributeError) as error:
        advice = "Build plugins/runtime ('python3 agent.py build' in a bundle), or set DYNDEPLOY_RUNTIME to its path."
        raise DyndeployError(_BACKEND, f"Cannot load {named}: {error}. {advice}") from error
    if found != _ABI:
        raise DyndeployError(_BACKEND, f"{named} has ABI {found}, and this file needs {_ABI}.")
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    library.dyndeploy_last_error.restype = text
    library.dyndeploy_info.restype = text
    library.dyndeploy_info.argtypes = [pointer]
    library.dyndeploy_open.argtypes = [text, ctypes.POINTER(_Options), ctypes.POINTER(pointer)]
    library.dyndeploy_run_images.argtypes = [pointer, ctypes.POINTER(_Image), size, ctypes.POINTER(_Result)]
    library.dyndeploy_run_files.argtypes = [pointer, ctypes.POINTER(text), size, ctypes.POINTER(_Result)]
    tensors = ctypes.POINTER(_Tensor)
    library.dyndeploy_run_tensors.argtypes = [pointer, tensors, size, tensors, size, ctypes.POINTER(_Result), size]
    many, sides = ctypes.POINTER(_Detections), ctypes.POINTER(ctypes.c_int32)
    library.dyndeploy_detect_images.argtypes = [pointer, ctypes.POINTER(_Image), size, sides, many]
    library.dyndeploy_detect_files.argtypes = [pointer, ctypes.POINTER(text), size, sides, many]
    library.dyndeploy_free_detections.argtypes = [many, size]
    library.dyndeploy_free_detections.restype = None
    library.dyndeploy_mask_pixels.argtypes = [ctypes.POINTER(_Detection), ctypes.c_int32, ctypes.c_int32, pointer]
    library.dyndeploy_mask_text.argtypes = [ctypes.POINTER(_Detection), text, size, ctypes.POINTER(size)]
    library.dyndeploy_preprocess.argtypes = [pointer, ctypes.POINTER(_Image), pointer, size]
    library.dyndeploy_preprocess_file.argtypes = [pointer, text, pointer, size]
    library.dyndeploy_statistics.argtypes = [pointer, text, size, ctypes.POINTER(size)]
    library.dyndeploy_reset_statistics.argtypes = [pointer]
    library.dyndeploy_serve.argtypes = [pointer, ctypes.POINTER(_Policy)]
    ticket = ctypes.c_uint64
    library.dyndeploy_submit.argtypes = [pointer, ctypes.POINTER(_Request), ctypes.POINTER(ticket)]
    completions = ctypes.POINTER(_Completion)
    library.dyndeploy_poll.argtypes = [pointer, completions, size, ctypes.c_double, ctypes.POINTER(size)]
    library.dyndeploy_cancel.argtypes = [pointer, ticket]
    library.dyndeploy_verify.argtypes = [pointer]
    library.dyndeploy_close.argtypes = [pointer]
    library.dyndeploy_close.restype = None
    return library
