"""The model of Triton's Python backend without a server: what is cancelled, late, or fails while it is under way."""

from __future__ import annotations

import importlib.util
import json
import platform
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dyndeploy.serving

SOURCE = Path(dyndeploy.serving.__file__).parent / "triton_model.py"
MASK = "mask/a/layer"
SETTINGS = {
    "bundle": "bundle", "target": "cpu", "machine": platform.machine(), "runtime": "onnxruntime", "threads": "1",
    "images_at_once": "2", "in_flight": "2", "latency_ms": "0", "library": "libdyndeploy.so", "native": "off",
    "onnxruntime": "", "plugins": "",
}  # fmt: skip


class FakeError(Exception):
    """As ``DyndeployError``."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class FakeSession:
    """Gives results when it is told to."""

    def __init__(self) -> None:
        self.info = {"masks": [MASK], "exits": [1, 2]}
        self.finished: queue.Queue[Any] = queue.Queue()
        self.waiting: dict[int, Any] = {}
        self.cancelled: list[int] = []
        self.tickets = 0
        self.policy: dict[str, Any] = {}

    def serve(self, **policy: Any) -> None:
        self.policy = policy

    def submit(self, image: Any, token: Any) -> int:
        if image == b"bad":
            raise FakeError(3, "bad is not an image")
        self.tickets += 1
        self.waiting[self.tickets] = token
        return self.tickets

    def poll(self, timeout: float, most: int) -> list[Any]:
        try:
            found = self.finished.get(timeout=0.01)
        except queue.Empty:
            return []
        if isinstance(found, Exception):
            raise found
        return [found]

    def cancel(self, ticket: int) -> None:
        if self.waiting.pop(ticket, None) is None:
            raise FakeError(1, "no such ticket")
        self.cancelled.append(ticket)

    def finish(self, ticket: int, error: Exception | None = None) -> None:
        rates = {MASK: 0.25}
        result = SimpleNamespace(
            label=ticket, confidence=0.5, class_name=None, logits=np.zeros(3, np.float32), exit=2, rates=rates, ms=4.0
        )
        token = self.waiting.pop(ticket)
        self.finished.put(SimpleNamespace(token=token, result=None if error else result, error=error))

    def close(self) -> None:
        pass


class FakeRequest:
    """A request for files, and the place where its response arrives."""

    def __init__(self, *files: bytes, timeout: int = 0) -> None:
        self.inputs = {"JPEG": np.array(files, np.object_).reshape(-1, 1)}
        self.time = timeout
        self.cancelled = False
        self.answered = threading.Event()
        self.response: Any = None

    def timeout(self) -> int:
        return self.time

    def is_cancelled(self) -> bool:
        return self.cancelled

    def requested_output_names(self) -> list[str]:
        return ["label", "rates"]

    def get_response_sender(self) -> FakeRequest:
        return self

    def send(self, response: Any, flags: int) -> None:
        assert not self.answered.is_set()
        self.response = response
        self.answered.set()

    def outcome(self) -> tuple[str, str] | list[int]:
        """The code and message of its error, else its labels."""
        assert self.answered.wait(60)
        error = self.response.error
        return (error.code, error.message) if error is not None else self.response.outputs[0].values[:, 0].tolist()


class FakeFamily:
    """Adds up what counters are told."""

    COUNTER = "counter"
    totals: dict[tuple[str, ...], float]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Any:
        key = (self.name, *(labels[name] for name in sorted(labels)))

        def increment(value: float) -> None:
            FakeFamily.totals[key] = FakeFamily.totals.get(key, 0.0) + value

        return SimpleNamespace(increment=increment)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def module(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> Any:
    FakeFamily.totals = {}
    codes = {name: name for name in ("INVALID_ARG", "UNAVAILABLE", "INTERNAL", "CANCELLED")}

    class TritonError:
        def __init__(self, message: str, code: str) -> None:
            self.message, self.code = message, code

    for name in codes:
        setattr(TritonError, name, name)
    backend, runtime = ModuleType("triton_python_backend_utils"), ModuleType("dyndeploy_runtime")
    vars(backend).update(
        TritonError=TritonError,
        TritonModelException=type("TritonModelException", (Exception,), {}),
        InferenceResponse=lambda outputs=(), error=None: SimpleNamespace(outputs=outputs, error=error),
        Tensor=lambda name, values: SimpleNamespace(name=name, values=values),
        MetricFamily=FakeFamily,
        Logger=SimpleNamespace(log_info=print),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        get_input_tensor_by_name=lambda request, name: (
            SimpleNamespace(as_numpy=lambda: request.inputs[name]) if name in request.inputs else None
        ),
    )
    vars(runtime).update(DyndeployError=FakeError, open_bundle=lambda *args, **kwargs: session)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.setitem(sys.modules, "dyndeploy_runtime", runtime)
    monkeypatch.syspath_prepend(str(SOURCE.parent))
    spec = importlib.util.spec_from_file_location("served_model", SOURCE)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def arguments(**changes: str) -> dict[str, str]:
    settings = {**SETTINGS, **changes}
    config = {"max_batch_size": 8, "parameters": {name: {"string_value": value} for name, value in settings.items()}}
    return {"model_config": json.dumps(config), "model_name": "m", "model_version": "3"}


@pytest.fixture
def model(module: Any) -> Iterator[Any]:
    made = module.TritonPythonModel()
    made.initialize(arguments())
    yield made
    made.finalize()


def test_images_of_a_request_are_answered_together_in_order(model: Any, session: FakeSession) -> None:
    one, two = FakeRequest(b"1", b"2"), FakeRequest(b"3")
    taken = threading.Thread(target=model.execute, args=([one, two],))
    taken.start()
    wait_for(lambda: session.tickets == 2)
    session.finish(2)
    session.finish(1)
    assert one.outcome() == [1, 2]
    # There is room for two: the third image was waiting for it.
    taken.join()
    session.finish(3)
    assert two.outcome() == [3]
    np.testing.assert_array_equal(two.response.outputs[1].values, np.float32([[0.25]]))
    assert session.policy == {"queue_limit": 12, "largest_batch": 2, "latency_ms": 0.0}


def test_counters(model: Any, session: FakeSession) -> None:
    requests = [FakeRequest(b"1", b"2"), FakeRequest(b"3")]
    for request in requests:
        model.execute([request])
        for ticket in list(session.waiting):
            session.finish(ticket)
        request.outcome()
    wait_for(lambda: FakeFamily.totals.get(("dyndeploy_images_total", "m", "3")) == 3)
    totals = FakeFamily.totals
    assert totals["dyndeploy_ms_sum", "m", "3"] == 12
    assert totals["dyndeploy_rate_sum", MASK, "m", "3"] == 0.75
    assert totals["dyndeploy_exits_total", "2", "m", "3"] == 3
    assert ("dyndeploy_exits_total", "1", "m", "3") not in totals
    assert totals["dyndeploy_latency_ms_bucket", "+Inf", "m", "3"] == 3


def test_a_cancelled_request_makes_room(model: Any, session: FakeSession) -> None:
    gone, next_one = FakeRequest(b"1", b"2"), FakeRequest(b"3", b"4")
    assert model.execute([gone]) == [None]
    session.finish(1)
    wait_for(lambda: session.finished.empty())
    gone.cancelled = True
    assert gone.outcome() == ("CANCELLED", "The request was cancelled.")
    assert session.cancelled == [2]
    assert model.execute([next_one]) == [None]
    session.finish(3)
    session.finish(4)
    assert next_one.outcome() == [3, 4]
    (early,) = model.execute([gone])
    assert early.error.code == "CANCELLED"


def test_a_request_whose_time_is_over_is_told_so(model: Any, session: FakeSession) -> None:
    late = FakeRequest(b"1", timeout=1000)
    assert model.execute([late]) == [None]
    assert late.outcome() == ("UNAVAILABLE", "Request timeout expired")
    assert session.cancelled == [1]


def test_a_bad_image_takes_back_those_before_it(model: Any, session: FakeSession) -> None:
    (response,) = model.execute([FakeRequest(b"1", b"bad")])
    assert (response.error.code, response.error.message) == ("INVALID_ARG", "bad is not an image")
    assert session.cancelled == [1]
    (response,) = model.execute([FakeRequest()])
    assert response.error.code == "INVALID_ARG"
    assert model.execute([FakeRequest(b"2", b"3")]) == [None]
    session.finish(2)
    session.finish(3)


def test_failures_have_tritons_codes(model: Any, session: FakeSession) -> None:
    for code, expected in ((4, "INTERNAL"), (7, "UNAVAILABLE"), (6, "INTERNAL")):
        request = FakeRequest(b"1")
        model.execute([request])
        session.finish(session.tickets, FakeError(code, "why"))
        assert request.outcome() == (expected, "why")


def test_clients_are_told_where_no_result_can_be_taken(model: Any, session: FakeSession) -> None:
    request, later = FakeRequest(b"1"), FakeRequest(b"2")
    model.execute([request])
    session.finished.put(FakeError(8, "a fault"))
    assert request.outcome() == ("INTERNAL", "a fault")
    model.execute([later])
    session.finish(2)
    assert later.outcome() == [2]


def test_another_machine_is_refused(module: Any) -> None:
    with pytest.raises(Exception, match=r"is for aarch64x \(nano\), and this server runs on"):
        module.TritonPythonModel().initialize(arguments(machine="aarch64x", target="nano"))


def wait_for(happened: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.005)
