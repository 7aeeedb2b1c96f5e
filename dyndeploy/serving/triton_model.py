"""The model of Triton's Python backend that runs a bundle in libdyndeploy.so: NumPy is all that it needs.

``dyndeploy serve-config`` copies this file to ``MODEL/VERSION/model.py``, beside the bundle and the libraries. It imports
nothing of dyndeploy. Images of all requests share batches: ``execute`` only hands them on, and a thread answers each
request through its response sender once its own images are done.
"""

import json
import os
import platform
import sys
import threading
import time
from collections import deque

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import dyndeploy_runtime  # noqa: E402  # It lies beside this file.

IMAGE, JPEG = "IMAGE", "JPEG"
LATENCY_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Upper bounds of the histogram's buckets in milliseconds, those of ``dyndeploy_statistics``; above them ``+Inf``."""
SWEEP_SECONDS = 0.1
"""How often requests are asked whether they were cancelled or timed out, and counters are written."""

_CODES = {1: "INVALID_ARG", 3: "INVALID_ARG", 5: "UNAVAILABLE", 7: "UNAVAILABLE", 9: "UNAVAILABLE"}
"""Triton's code of what went wrong by that of ``dyndeploy.h``; of all others it is INTERNAL."""
_USAGE, _INPUT = 1, 3


class TritonPythonModel:
    """What the Python backend makes of this file."""

    def initialize(self, args):
        """Open the bundle; raises ``TritonModelException`` where it cannot run here."""
        config = json.loads(args["model_config"])
        settings = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        machine = settings["machine"]
        if machine != platform.machine():
            raise pb_utils.TritonModelException(
                "The bundle of '%s' is for %s (%s), and this server runs on %s. Export one for this machine."
                % (args["model_name"], settings["target"], machine, platform.machine())
            )
        try:
            self._session = dyndeploy_runtime.open_bundle(
                _beside(settings["bundle"]),
                threads=int(settings["threads"]),
                native=_beside(settings["native"]),
                onnxruntime=_beside(settings["onnxruntime"]) or None,
                library=_beside(settings["library"]),
                runtime=settings["runtime"],
                plugins=_beside(settings["plugins"]) or None,
                progress=pb_utils.Logger.log_info,
            )
        except dyndeploy_runtime.DyndeployError as error:
            raise pb_utils.TritonModelException(str(error))
        self._task = _Detector() if "detection" in self._session.info else _Classifier()
        self._counters = _Counters(args["model_name"], args["model_version"], self._session.info)
        self._batches = _Batches(self._session, self._task, int(settings["images_at_once"]))
        self._room = _Room(int(settings["in_flight"]))
        self._jobs = {}
        self._lock = threading.Lock()
        # All responses are sent by one thread: the backend's queue to the server is not made for several.
        self._ended = threading.Event()
        self._answering = threading.Thread(target=self._answer_all, daemon=True)
        self._answering.start()

    def execute(self, requests):
        """Take requests; those that cannot be run are answered at once."""
        return [self._take(request) for request in requests]

    def finalize(self):
        """Free what the model holds; Triton calls this once every request was answered."""
        self._ended.set()
        self._answering.join()
        self._counters.write()
        self._session.close()

    def _take(self, request):
        if request.is_cancelled():
            return _error("CANCELLED", "The request was cancelled.")
        try:
            images = _images(request)
        except dyndeploy_runtime.DyndeployError as error:
            return _error(_CODES[error.code], str(error))
        self._room.take(len(images))
        job = _Job(request, len(images))
        with self._lock:
            self._jobs[id(job)] = job
        self._batches.submit([((job, index), image) for index, image in enumerate(images)])
        return None

    def _answer_all(self):
        swept = time.monotonic()
        while not self._ended.is_set():
            for (job, index), result in self._batches.poll(SWEEP_SECONDS):
                job.results[index] = result
                job.missing -= 1
                if not job.missing:
                    self._answer(job)
            if time.monotonic() - swept > SWEEP_SECONDS:
                self._sweep()
                swept = time.monotonic()

    def _answer(self, job):
        with self._lock:
            if self._jobs.pop(id(job), None) is None:
                return
        failed = next((result for result in job.results if isinstance(result, Exception)), None)
        if failed is not None:
            code = _CODES.get(getattr(failed, "code", None), "INTERNAL")
            self._respond(job, _error(code, str(failed)))
            return
        try:
            tensors = self._task.tensors(job.results, self._session.info, job.wanted)
            response = pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in tensors.items()])
        except Exception as error:  # The client waits for an answer, whatever happened.
            response = _error("INTERNAL", "The answer cannot be made: %s" % error)
        else:
            self._counters.count(job.results, 1000 * (time.monotonic() - job.since))
        self._respond(job, response)

    def _respond(self, job, response):
        self._room.leave(len(job.results))
        job.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _sweep(self):
        """Answer requests whose client is gone or whose time is over, and write the counters."""
        with self._lock:
            waiting = list(self._jobs.values())
        now = time.monotonic()
        for job in waiting:
            if job.sender.is_cancelled():
                self._drop(job, _error("CANCELLED", "The request was cancelled."))
            elif now > job.until:
                self._drop(job, _error("UNAVAILABLE", "Request timeout expired"))
        self._counters.write()

    def _drop(self, job, response):
        with self._lock:
            self._jobs.pop(id(job), None)
        self._batches.cancel(job)
        self._respond(job, response)


class _Job:
    """A request under way."""

    def __init__(self, request, count):
        self.sender = request.get_response_sender()
        self.wanted = set(request.requested_output_names())
        self.since = time.monotonic()
        self.until = self.since + request.timeout() / 1e6 if request.timeout() else float("inf")
        self.results = [None] * count
        self.missing = count


class _Room:
    """How many images may be under way: the rest waits in Triton's queue, which knows priorities and limits."""

    def __init__(self, images):
        self._free = self._size = images
        self._changed = threading.Condition()

    def take(self, count):
        """Wait until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= min(count, self._size))
            self._free -= count

    def leave(self, count):
        """Give room back."""
        with self._changed:
            self._free += count
            self._changed.notify_all()


class _Batches:
    """Runs what waits, a batch at a time; a bad image fails alone."""

    def __init__(self, session, task, size):
        self._session, self._task, self._size = session, task, size
        self._waiting = deque()
        self._changed = threading.Condition()

    def submit(self, tagged):
        """Add images, each with what it is known by."""
        with self._changed:
            self._waiting.extend(tagged)
            self._changed.notify_all()

    def cancel(self, job):
        """Forget the images of a job that were not run yet."""
        with self._changed:
            self._waiting = deque(entry for entry in self._waiting if entry[0][0] is not job)

    def poll(self, seconds):
        """Run a batch and return its tags and results, or what was raised; nothing where none waits for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, seconds)
            batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
        # The library takes arrays or files in one call.
        done = []
        for kind in (np.ndarray, bytes):
            part = [entry for entry in batch if isinstance(entry[1], kind)]
            done += zip([tag for tag, _ in part], self._run([image for _, image in part]))
        return done

    def _run(self, images):
        try:
            return self._task.run(self._session, images) if images else []
        except dyndeploy_runtime.DyndeployError as error:
            if len(images) == 1:
                return [error]
        return [result for image in images for result in self._run([image])]


class _Classifier:
    """What a classifier answers."""

    @staticmethod
    def run(session, images):
        """Run images, all arrays or all files."""
        with _Readable(images) as readable:
            return session.classify_all(readable)

    @staticmethod
    def tensors(results, info, wanted):
        """Tensors of those outputs that are wanted, a row per image."""
        return _stacked(
            {
                "label": lambda result: np.array([result.label], np.int32),
                "score": lambda result: np.array([result.confidence], np.float32),
                "class_name": lambda result: np.array([_text(result.class_name)], np.object_),
                "logits": lambda result: result.logits,
                "exit": lambda result: np.array([result.exit or 0], np.int32),
                "rates": lambda result: np.array([result.rates[mask] for mask in info["masks"]], np.float32),
                "ms": lambda result: np.array([result.ms], np.float32),
            },
            results,
            wanted,
        )


class _Detector:
    """What a detector answers; images of a request with fewer detections than another are filled up with zeros."""

    @staticmethod
    def run(session, images):
        """Run images, all arrays or all files."""
        with _Readable(images) as readable:
            return session.detect_all(readable)

    @staticmethod
    def tensors(results, info, wanted):
        """Tensors of those outputs that are wanted, a row per image."""
        most = max(len(result) for result in results)

        def filled(values, kind, *shape):
            padded = np.full((most, *shape), b"" if kind is np.object_ else 0, kind)
            padded[: len(values)] = values
            return padded

        return _stacked(
            {
                "count": lambda result: np.array([len(result)], np.int32),
                "boxes": lambda result: filled(result.boxes, np.float32, 4),
                "scores": lambda result: filled(result.scores, np.float32),
                "labels": lambda result: filled(result.labels, np.int64),
                "category_ids": lambda result: filled(result.category_ids, np.int64),
                "class_names": lambda result: filled([_text(name) for name in result.class_names], np.object_),
                "masks": lambda result: filled([_text(text) for text in result.counts], np.object_),
                "image_size": lambda result: np.array([result.height, result.width], np.int32),
                "rates": lambda result: np.array([result.rates[mask] for mask in info["masks"]], np.float32),
                "ms": lambda result: np.array([result.ms], np.float32),
            },
            results,
            wanted,
        )


class _Readable:
    """Files in memory under names that the library can open; arrays as they are."""

    def __init__(self, images):
        self._images, self._handles = images, []

    def __enter__(self):
        if not isinstance(self._images[0], bytes):
            return self._images
        for content in self._images:
            handle = os.memfd_create("image")
            self._handles.append(handle)
            os.write(handle, content)
        return ["/proc/self/fd/%d" % handle for handle in self._handles]

    def __exit__(self, kind, error, traceback):
        for handle in self._handles:
            os.close(handle)


class _Counters:
    """Triton's metrics of this model; they are gathered here, since writing one is a message to the server."""

    def __init__(self, model, version, info):
        labels = {"model": model, "version": version}
        self._masks = info["masks"]
        families = []

        def metrics(name, description, label=None, values=("",)):
            family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
            families.append(family)
            of = {value: {**labels, label: value} if label else labels for value in values}
            return {value: family.Metric(labels=named) for value, named in of.items()}

        exits = [str(exit) for exit in info["exits"]]
        bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
        self._metrics = {
            "images": metrics("dyndeploy_images_total", "Images that were answered"),
            "ms": metrics("dyndeploy_ms_sum", "Milliseconds of the network, over all images"),
            "latency": metrics(
                "dyndeploy_latency_ms_bucket", "Images by milliseconds from arrival to answer", "le", bounds
            ),
            "rate": metrics("dyndeploy_rate_sum", "Rate of a mask, over all images", "mask", self._masks),
            "exit": metrics("dyndeploy_exits_total", "Images that left at an exit", "exit", exits),
        }
        # A family lives as long as its metrics do.
        self._families = families
        self._gathered = {kind: dict.fromkeys(values, 0.0) for kind, values in self._metrics.items()}

    def count(self, results, latency_ms):
        """Count the images of an answered request."""
        gathered = self._gathered
        gathered["images"][""] += len(results)
        for bound in LATENCY_BOUNDS:
            gathered["latency"][str(bound)] += len(results) * (latency_ms <= bound)
        gathered["latency"]["+Inf"] += len(results)
        for result in results:
            gathered["ms"][""] += result.ms
            for mask in self._masks:
                gathered["rate"][mask] += result.rates[mask]
            exit = getattr(result, "exit", None)
            if exit is not None:
                gathered["exit"][str(exit)] += 1

    def write(self):
        """Add what was gathered to Triton's counters."""
        for kind, values in self._gathered.items():
            for name, value in values.items():
                if value:
                    self._metrics[kind][name].increment(value)
                    values[name] = 0.0


def _images(request):
    """The images of a request: arrays (H, W, 3), or bytes of files."""
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in (IMAGE, JPEG)}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if len(given) != 1:
        which = "neither" if not given else "both"
        raise dyndeploy_runtime.DyndeployError(
            _USAGE,
            "Give %s (RGB bytes) or %s (bytes of a JPEG or PNG file): this request has %s." % (IMAGE, JPEG, which),
        )
    ((name, tensor),) = given.items()
    values = tensor.as_numpy()
    if not values.size:
        raise dyndeploy_runtime.DyndeployError(_INPUT, "%s is empty: its shape is %s." % (name, list(values.shape)))
    if name == JPEG:
        return [bytes(content) for content in values.reshape(-1)]
    # The request, and its memory with it, is gone when they run.
    return list(values.copy())


def _stacked(outputs, results, wanted):
    return {name: np.stack([of(result) for result in results]) for name, of in outputs.items() if name in wanted}


def _text(value):
    return b"" if value is None else value.encode("utf-8")


def _beside(path):
    """A path of the configuration: relative ones start at this file; words and empty ones stay."""
    return os.path.join(HERE, path) if os.path.exists(os.path.join(HERE, path)) and path else path


def _error(code, message):
    # The codes are there only once the backend runs: it also reads this file to see whether it completes configurations.
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
