"""The probe behind ``dyndeploy probe``: taken against not taken, on the runtime at hand."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession, Session
from dyndeploy.targets import BranchTimes, LazinessRecord, Target, load_target

if TYPE_CHECKING:
    import onnx

GATE = "gate"
"""Input of the probe's graph: 1 takes the branch with the work, 0 the other."""

CHANNELS, SIDE, LAYERS = 128, 28, 6
ROUNDS = 15

Clock = Callable[[], float]


def branch_model(target: Target, *, operators: bool) -> onnx.ModelProto:
    """A graph whose work is all in the then-branch of one ``If``; the else-branch copies its input.

    Args:
        target: Gives opset and IR version.
        operators: The work is a chain of dynamic operators instead of convolutions.

    Returns:
        A graph from ``x`` (1, C, H, W), or (1, H, W, C) for operators, and ``gate`` (1,) to ``y``, shaped as ``x``.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shape = (1, SIDE, SIDE, CHANNELS) if operators else (1, CHANNELS, SIDE, SIDE)
    hidden = CHANNELS // 2

    def weight(*dims: int) -> onnx.TensorProto:
        # Small enough that the chain neither grows nor dies out.
        values = generator.standard_normal(dims) / np.sqrt(np.prod(dims[1:]))
        return numpy_helper.from_array(values.astype(np.float32), f"w{len(constants)}")

    constants: list[onnx.TensorProto] = []
    work: list[onnx.NodeProto] = []
    last = "x"
    for index in range(LAYERS):
        after = "then" if index == LAYERS - 1 else f"t{index}"
        if operators:
            names = []
            for dims in ((hidden, CHANNELS), (hidden,), (hidden, hidden, 3, 3), (hidden,), (CHANNELS, hidden)):
                constants.append(weight(*dims))
                names.append(constants[-1].name)
            constants.append(weight(CHANNELS))
            names.append(constants[-1].name)
            node = helper.make_node(
                "LayerBottleneck",
                [last, "every", *names],
                [after],
                name=f"work/{index}",
                domain=DOMAIN,
                strides=[1, 1],
                dilations=[1, 1],
                pads=[1] * 4,
                group=1,
                plugin_version="1",
                plugin_namespace="",
            )
        else:
            constants.append(weight(CHANNELS, CHANNELS, 3, 3))
            inputs = [last, constants[-1].name]
            node = helper.make_node("Conv", inputs, [after], name=f"work/{index}", pads=[1] * 4)
        work.append(node)
        last = after
    if operators:
        constants.append(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "every"))
    constants.append(numpy_helper.from_array(np.array([0.5], np.float32), "half"))
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "axis"))

    def tensor(name: str, dims: tuple[int, ...] = shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    copy = [helper.make_node("Identity", ["x"], ["else"], name="copy")]
    nodes = [
        helper.make_node("Greater", [GATE, "half"], ["greater"], name="gate/greater"),
        helper.make_node("Squeeze", ["greater", "axis"], ["condition"], name="gate/squeeze"),
        helper.make_node(
            "If",
            ["condition"],
            ["y"],
            name="branch",
            then_branch=helper.make_graph(work, "then", [], [tensor("then")]),
            else_branch=helper.make_graph(copy, "else", [], [tensor("else")]),
        ),
    ]
    graph = helper.make_graph(nodes, "laziness", [tensor("x"), tensor(GATE, (1,))], [tensor("y")], constants)
    imports = [helper.make_opsetid("", target.opset), *([helper.make_opsetid(DOMAIN, 1)] if operators else [])]
    functions = [OPERATORS["LayerBottleneck"].function(target.opset)] if operators else []
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=target.ir_version)
    onnx.checker.check_model(model)
    return model


def branch_times(session: Session, *, rounds: int = ROUNDS, clock: Clock = time.perf_counter) -> BranchTimes:
    """Median times of a session of :func:`branch_model`, both branches in turn so that both see the same machine."""
    shape = next(info.shape for info in session.inputs if info.name == "x")
    x = np.random.default_rng(1).random(shape, np.float32)
    calls = [session.bind({"x": x, GATE: np.array([gate], np.float32)}) for gate in (1.0, 0.0)]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 2):
        for call, samples in zip(calls, times, strict=True):
            start = clock()
            call()
            if number >= 2:  # the first rounds allocate
                samples.append(1e3 * (clock() - start))
    taken, not_taken = map(statistics.median, times)
    return BranchTimes(taken, not_taken)


def probe_laziness(
    target: str = "cpu",
    *,
    native: str | os.PathLike[str] = "auto",
    plugins: str | os.PathLike[str] = "auto",
    rounds: int = ROUNDS,
) -> LazinessRecord:
    """Measure on this machine whether the target's runtime skips the branch that is not taken.

    Args:
        target: Name of the target; for a board, run this on the board.
        native: Operator library of ONNX Runtime, as for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        plugins: TensorRT plugin library, ``"auto"`` or a path.
        rounds: Measured rounds.

    Raises:
        UsageError: Unknown target, bad number of rounds, or another TensorRT than the target's.
        DyndeployError: The runtime is missing or failed.
    """
    if rounds < 1:
        raise UsageError(f"rounds={rounds} is not valid: give at least 1.")
    platform = load_target(target)
    if platform.runtime == "tensorrt":
        return _probe_tensorrt(platform, plugins, rounds)
    times, info = {}, None
    for operators in (False, True):
        with OnnxRuntimeSession(branch_model(platform, operators=operators), native=native) as session:
            times[operators] = branch_times(session, rounds=rounds)
            info = session.info
    assert info is not None
    return LazinessRecord(
        target=platform.name,
        runtime=info.runtime,
        version=info.version,
        device=info.provider,
        standard=times[False],
        operators=times[True],
        note=f"operators: {info.native.description}",
    )


def _probe_tensorrt(platform: Target, plugins: str | os.PathLike[str], rounds: int) -> LazinessRecord:
    from dyndeploy.runtimes.tensorrt import TensorRTSession
    from dyndeploy.runtimes.tensorrt_api import TensorRT
    from dyndeploy.runtimes.tensorrt_device import parse_version
    from dyndeploy.runtimes.tensorrt_engine import EngineSettings

    api = TensorRT.load()
    wanted = parse_version(platform.runtime_version or "")[:2]
    if wanted and api.version[:2] != wanted:
        raise UsageError(
            f"{platform.name} has TensorRT {platform.runtime_version}, this machine {api.text}: versions differ in "
            "what they skip. Run the probe on the board."
        )
    settings = EngineSettings(library=plugins)
    session, _ = TensorRTSession.from_graph(branch_model(platform, operators=False), settings)
    with session:
        standard, info = branch_times(session, rounds=rounds), session.info
    operators, note = None, ""
    try:
        session, _ = TensorRTSession.from_graph(branch_model(platform, operators=True), settings)
        with session:
            operators = branch_times(session, rounds=rounds)
            note = f"operators: {session.info.native.description}"
    except DyndeployError as error:
        # No library, or a TensorRT that takes no plugin inside a branch: what was measured without them stands.
        note = f"operators not measured: {error}"
    return LazinessRecord(platform.name, info.runtime, info.version, info.provider, standard, operators, note)
