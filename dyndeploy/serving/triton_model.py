"""The model of Triton's Python backend that runs a bundle in libdyndeploy.so: NumPy is all that it needs.

``dyndeploy serve-config`` copies this file to ``MODEL/VERSION/model.py``, beside the bundle and the libraries. It
imports nothing of dyndeploy. Images of all requests share batches, and join them between the stages of early exits:
``execute`` only hands them on, and a thread answers each request once its own images are done.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import dyndeploy_runtime  # noqa: E402  # It lies beside this file.

IMAGE, JPEG = "IMAGE", "JPEG"
LATENCY_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Upper bounds of the histogram's buckets in milliseconds, those of ``dyndeploy_statistics``; above them ``+Inf``."""
SWEEP_SECONDS = 0.25
"""How often requests are asked whether they were cancelled or timed out, and counters are written."""

RESULTS_AT_ONCE = 16
"""Most images whose results are taken from the runtime in one call."""
_CODES = {1: "INVALID_ARG", 3: "INVALID_ARG", 5: "UNAVAILABLE", 7: "UNAVAILABLE", 9: "UNAVAILABLE"}
"""Triton's code of what went wrong by that of ``dyndeploy.h``; of all others it is INTERNAL."""
_USAGE, _INPUT = 1, 3

_Outputs = Mapping[str, Callable[[Any], Any]]
"""Of a result, an array for each output."""


class TritonPythonModel:
    """What the Python backend makes of this file."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle; raises ``TritonModelException`` where it cannot run here."""
        config = json.loads(args["model_config"])
        settings = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        target, machine, here = settings["target"], settings["machine"], platform.machine()
        if machine != here:
            raise pb_utils.TritonModelException(
                f"The bundle of '{args['model_name']}' is for {machine} ({target}), and this server runs on {here}. "
                "Serve one that was exported for this machine."
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
            in_flight = int(settings["in_flight"])
            self._session.serve(
                # Room for one whole request beyond, and for those that were cancelled while they ran.
                queue_limit=2 * in_flight + int(config["max_batch_size"]),
                largest_batch=int(settings["images_at_once"]),
                latency_ms=float(settings["latency_ms"]),
            )
        except dyndeploy_runtime.DyndeployError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._tensors = _detections if "detection" in self._session.info else _classes
        self._counters = _Counters(args["model_name"], args["model_version"], self._session.info)
        self._room = _Room(in_flight)
        self._jobs: dict[int, _Job] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        # All responses are sent by one thread: several at once have ended the server (2.51, a lock in shared memory).
        self._answering = threading.Thread(target=self._answer_all, daemon=True)
        self._answering.start()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Take requests; those that cannot be run are answered at once, all others by :meth:`_answer_all`."""
        return [self._take(request) for request in requests]

    def finalize(self) -> None:
        """Free what the model holds; Triton calls this once every request was answered."""
        self._ended.set()
        self._answering.join()
        self._counters.write()
        self._session.close()

    def _take(self, request: Any) -> Any:
        if request.is_cancelled():
            return _error("CANCELLED", "The request was cancelled.")
        job, since = None, time.monotonic()
        try:
            images = _images(request)
            self._room.take(len(images))
            job = _Job(request, len(images), since)
            with self._lock:
                self._jobs[id(job)] = job
            for index, image in enumerate(images):
                job.tickets.append(self._session.submit(image, token=(job, index)))
        except dyndeploy_runtime.DyndeployError as error:
            if job is not None:
                self._forget(job)
            return _error(_CODES.get(error.code, "INTERNAL"), str(error))
        job.sender = request.get_response_sender()
        job.taken.set()
        return None

    def _answer_all(self) -> None:
        swept = time.monotonic()
        while not self._ended.is_set():
            for done in self._finished():
                job, index = done.token
                job.results[index] = done
                job.missing -= 1
                # One that failed as a whole, or was given up, is known no more.
                if not job.missing and id(job) in self._jobs:
                    self._answer(job)
            if time.monotonic() - swept > SWEEP_SECONDS:
                self._sweep()
                swept = time.monotonic()

    def _finished(self) -> list[Any]:
        try:
            finished: list[Any] = self._session.poll(SWEEP_SECONDS, most=RESULTS_AT_ONCE)
        except dyndeploy_runtime.DyndeployError as error:
            # Nothing of what is under way will be known: clients are told, and what comes next is tried.
            for job in self._known():
                self._respond(job, _error("INTERNAL", str(error)))
            self._ended.wait(SWEEP_SECONDS)
            return []
        return finished

    def _known(self) -> list[_Job]:
        """Requests under way whose images are all submitted."""
        with self._lock:
            return [job for job in self._jobs.values() if job.taken.is_set()]

    def _answer(self, job: _Job) -> None:
        job.taken.wait()
        failed = next((done.error for done in job.results if done.error is not None), None)
        if failed is not None:
            self._respond(job, _error(_CODES.get(failed.code, "INTERNAL"), str(failed)))
            return
        results = [done.result for done in job.results]
        try:
            outputs = _stacked(self._tensors(results, self._session.info), results, job.wanted)
            response = pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in outputs.items()])
        except Exception as error:  # The client waits for an answer, whatever happened.
            response = _error("INTERNAL", f"The answer cannot be made: {error}")
        else:
            self._counters.count(results, 1000 * (time.monotonic() - job.since))
        self._respond(job, response)

    def _respond(self, job: _Job, response: Any) -> None:
        self._forget(job)
        job.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _forget(self, job: _Job) -> None:
        """Take back what still waits of a job, and give its room back."""
        for ticket in job.tickets if job.missing else ():
            # Those that are done have no ticket any more.
            with contextlib.suppress(dyndeploy_runtime.DyndeployError):
                self._session.cancel(ticket)
        with self._lock:
            del self._jobs[id(job)]
        self._room.leave(len(job.results))

    def _sweep(self) -> None:
        """Answer requests whose client is gone or whose time is over, and write the counters."""
        now = time.monotonic()
        for job in self._known():
            if job.sender.is_cancelled():
                self._respond(job, _error("CANCELLED", "The request was cancelled."))
            elif now > job.until:
                self._respond(job, _error("UNAVAILABLE", "Request timeout expired"))
        self._counters.write()


class _Job:
    """A request under way; once ``taken`` is set all of its images were submitted, and it has a ``sender``."""

    def __init__(self, request: Any, count: int, since: float) -> None:
        self.sender: Any = None
        self.taken = threading.Event()
        self.wanted = set(request.requested_output_names())
        self.since = since
        self.until = self.since + request.timeout() / 1e6 if request.timeout() else float("inf")
        self.tickets: list[int] = []
        self.results: list[Any] = [None] * count
        self.missing = count


class _Room:
    """How many images may be under way: the rest waits in Triton's queue, which knows priorities and limits."""

    def __init__(self, images: int) -> None:
        self._free = self._size = images
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Wait until there is room; a request that is larger than all of it waits until nothing is under way."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= min(count, self._size))
            self._free -= count

    def leave(self, count: int) -> None:
        """Give room back."""
        with self._changed:
            self._free += count
            self._changed.notify_all()


def _classes(results: list[Any], info: Mapping[str, Any]) -> _Outputs:
    """What a classifier answers, by output: a function of a result each."""
    return {
        "label": lambda result: np.array([result.label], np.int32),
        "score": lambda result: np.array([result.confidence], np.float32),
        "class_name": lambda result: np.array([_text(result.class_name)], np.object_),
        "logits": lambda result: result.logits,
        "exit": lambda result: np.array([result.exit or 0], np.int32),
        **_of_both(info),
    }


def _detections(results: list[Any], info: Mapping[str, Any]) -> _Outputs:
    """What a detector answers; images with fewer detections than another of the request are filled up with zeros."""
    most = max(len(result) for result in results)

    def filled(values: Any, kind: Any, *shape: int) -> Any:
        padded = np.full((most, *shape), b"" if kind is np.object_ else 0, kind)
        padded[: len(values)] = values
        return padded

    return {
        "count": lambda result: np.array([len(result)], np.int32),
        "boxes": lambda result: filled(result.boxes, np.float32, 4),
        "scores": lambda result: filled(result.scores, np.float32),
        "labels": lambda result: filled(result.labels, np.int64),
        "category_ids": lambda result: filled(result.category_ids, np.int64),
        "class_names": lambda result: filled([_text(name) for name in result.class_names], np.object_),
        "masks": lambda result: filled([_text(text) for text in result.counts], np.object_),
        "image_size": lambda result: np.array([result.height, result.width], np.int32),
        **_of_both(info),
    }


def _of_both(info: Mapping[str, Any]) -> _Outputs:
    return {
        "rates": lambda result: np.array([result.rates[mask] for mask in info["masks"]], np.float32),
        "ms": lambda result: np.array([result.ms], np.float32),
    }


class _Counters:
    """Triton's metrics of this model; they are gathered here, since writing one is a message to the server."""

    def __init__(self, model: str, version: str, info: Mapping[str, Any]) -> None:
        labels = {"model": model, "version": version}
        self._masks = info["masks"]
        families: list[Any] = []

        def metrics(name: str, description: str, label: str = "", values: Iterable[str] = ("",)) -> dict[str, Any]:
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

    def count(self, results: list[Any], latency_ms: float) -> None:
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

    def write(self) -> None:
        """Add what was gathered to Triton's counters."""
        for kind, values in self._gathered.items():
            for name, value in values.items():
                if value:
                    self._metrics[kind][name].increment(value)
                    values[name] = 0.0


def _images(request: Any) -> list[Any]:
    """The images of a request: arrays (H, W, 3), or bytes of files."""
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in (IMAGE, JPEG)}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if len(given) != 1:
        which = "neither" if not given else "both"
        raise dyndeploy_runtime.DyndeployError(
            _USAGE,
            f"Give {IMAGE} (RGB bytes) or {JPEG} (bytes of a JPEG or PNG file): this request has {which}.",
        )
    ((name, tensor),) = given.items()
    values = tensor.as_numpy()
    if not values.size:
        raise dyndeploy_runtime.DyndeployError(_INPUT, f"{name} is empty: its shape is {list(values.shape)}.")
    return [bytes(content) for content in values.reshape(-1)] if name == JPEG else list(values)


def _stacked(outputs: _Outputs, results: list[Any], wanted: set[str]) -> dict[str, Any]:
    return {name: np.stack([of(result) for result in results]) for name, of in outputs.items() if name in wanted}


def _text(value: str | None) -> bytes:
    return b"" if value is None else value.encode("utf-8")


def _beside(path: str) -> str:
    """A path of the configuration: relative ones start at this file; words and empty ones stay."""
    return os.path.join(HERE, path) if os.path.exists(os.path.join(HERE, path)) and path else path


def _error(code: str, message: str) -> Any:
    # Looked up late: the backend also imports this file before it has its codes.
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
