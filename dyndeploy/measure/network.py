"""A user's own static ONNX file, measured on this machine. It has no twin: what is measured are its own times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from dyndeploy import files
from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.fields import Document, Field
from dyndeploy.finite import first_not_finite
from dyndeploy.graphs.inputs import with_sizes
from dyndeploy.graphs.inspect import all_nodes, skips
from dyndeploy.graphs.labels import UNMAPPED, LabelledGraph
from dyndeploy.graphs.reading import read_graph
from dyndeploy.inference import read_array
from dyndeploy.measure.inputs import Schedule
from dyndeploy.measure.loop import Clock, Paired, time_rounds
from dyndeploy.measure.profile import read_machine
from dyndeploy.measure.result import samples_of
from dyndeploy.measure.samples import Samples
from dyndeploy.measure.turn import machine_turn
from dyndeploy.prediction import GraphWalker, NodeGraph, read_nodes, recorded_nodes
from dyndeploy.prediction.nodes import made_up_inputs
from dyndeploy.runtimes import NodeTime, OnnxRuntimeSession
from dyndeploy.runtimes.machine import machine_facts

if TYPE_CHECKING:
    import onnx

SCHEMA_VERSION = 1
KIND = "measured_network"
NO_TWIN = "A static network has no twin and nothing to skip: its own latency is measured, no speed-up."

_NODE_RUNS = 5
_DRAWS = 4
"""Random inputs that take turns."""

Array = npt.NDArray[Any]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class PartTime:
    """A part of a network, in ms per run of one batch: every node's fastest run of a few.

    Attributes:
        name: A block, ``"stem"``, ``"head"``, ``"network"`` or ``"other"``; or the type of an operator.
        ms: Measured, with the runtime's node profile.
    """

    name: str
    ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return vars(self)

    @classmethod
    def read(cls, item: Field) -> PartTime:
        """Read what :meth:`to_json` wrote."""
        return cls(item["name"].label(), item["ms"].amount())


@dataclass(frozen=True)
class NetworkProfile:
    """A static network measured on this machine. Times are milliseconds per run of one batch.

    Attributes:
        network: ``name``, ``file``, ``sha256`` of the file, and ``inputs``: shape by name, as they were run.
        machine: Facts from :func:`dyndeploy.runtimes.machine.machine_facts`.
        device: ``"cpu"``: this machine's processor.
        runtime: ``name``, ``version`` and ``provider``.
        threads: How many threads the session computes with.
        batch: Images per run.
        settings: Rounds, warm-up, seed, and what the inputs hold.
        macs: Multiply-accumulates per image.
        samples: Times of the network.
        parts: Times by block.
        operators: Times by type of operator as the runtime ran them, fused ones by the runtime's name for them.
        graph: What was run, as a prediction needs it.
    """

    network: Mapping[str, Any]
    machine: Mapping[str, Any]
    device: str
    runtime: Mapping[str, Any]
    threads: int
    batch: int
    settings: Mapping[str, Any]
    macs: float
    samples: Samples
    parts: tuple[PartTime, ...]
    operators: tuple[PartTime, ...]
    graph: Mapping[str, Any]

    @property
    def nodes(self) -> NodeGraph:
        """The graph that was run; raises ``InputError`` where it is malformed."""
        nodes = recorded_nodes({"static": self.graph}, "static")
        if not isinstance(nodes, NodeGraph):
            raise InputError(
                "The profile holds the stages of a network that exits early: it is damaged. Profile again."
            )
        return nodes

    def warnings(self) -> list[str]:
        """What a reader should know before trusting the figures."""
        notes = [NO_TWIN]
        if self.samples.unstable:
            notes.append(
                f"Unstable: runs of the same input vary by {self.samples.cov_same_input:.1%}. Close other programs or "
                "give more --repeats."
            )
        return [*notes, *self.machine.get("warnings", ())]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (see ``docs/profiling.md``)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "network": dict(self.network),
            "machine": dict(self.machine),
            "device": self.device,
            "runtime": dict(self.runtime),
            "threads": self.threads,
            "batch": self.batch,
            "settings": dict(self.settings),
            "macs": self.macs,
            "latency": self.samples.to_json(self.batch),
            "parts": [part.to_json() for part in self.parts],
            "operators": [part.to_json() for part in self.operators],
            "graph": dict(self.graph),
            "warnings": self.warnings(),
        }


def load_network_profile(path: str | os.PathLike[str]) -> NetworkProfile:
    """Read the profile of a static network; statistics are derived again from the samples.

    Raises:
        InputError: The file is missing, is no such profile, has another schema version, or a field is missing or
            malformed; the message names the file.
    """
    value = files.read_json(path)
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InputError(
            f"{path} is no profile of an ONNX file. Write one with 'dyndeploy profile FILE.onnx --json FILE'."
        )
    if value.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {value.get('schema_version')!r}; this release reads version {SCHEMA_VERSION}. "
            "Profile the file again with this release."
        )
    bad = first_not_finite(value, "profile")
    if bad:
        raise InputError(f"{path}: {bad} is NaN or infinite: the profile is damaged. Profile the file again.")
    root = Document(str(path), "Profile the file again.", InputError).root(value)
    for section, keys in (("network", ("name", "file")), ("runtime", ("name", "version"))):
        for key in keys:
            root[section][key].label()
    return NetworkProfile(
        network=root["network"].facts(),
        machine=read_machine(root["machine"]),
        device=root["device"].label(),
        runtime=root["runtime"].facts(),
        threads=root["threads"].tally(1),
        batch=root["batch"].tally(1),
        settings=root["settings"].facts(),
        macs=root["macs"].amount(),
        samples=Samples.read(root["latency"]),
        parts=root["parts"].sequence(PartTime.read),
        operators=root["operators"].sequence(PartTime.read),
        graph=root["graph"].facts(),
    )


def profile_network(
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int] | None = None,
    dims: Mapping[str, int] | None = None,
    batch: int | None = None,
    inputs: Mapping[str, str | os.PathLike[str]] | None = None,
    threads: int = 1,
    repeats: int | None = None,
    min_seconds: float = 10.0,
    warmup: int = 3,
    seed: int = 0,
    progress: Progress = lambda message, fraction: None,
) -> NetworkProfile:
    """Measure an ONNX file on this machine's CPU, with ONNX Runtime: of standard operators, or a static twin.

    The sizes that the file leaves open are closed first, so that the runtime computes what follows from them once, when
    it loads the file. Inputs are random numbers in [0, 1), whole numbers 1: neither decides on the time of a static
    network, unless a branch (``If``) of it depends on them.

    Args:
        path: The file.
        input_size: As for :func:`~dyndeploy.graphs.inputs.with_sizes`, like ``dims`` and ``batch``.
        dims: Sizes that the file leaves open, by name.
        batch: Images per run; None takes the file's (1 if it leaves it open).
        inputs: Files of arrays (``.npy``) by name of the input, in place of made-up ones.
        threads: Threads of the session.
        repeats: Rounds of three visits; None takes as many as fill ``min_seconds``, between 12 and 200.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs of every input before the rounds.
        seed: Seed of the random numbers.
        progress: Called with what is being done and the fraction done.

    Raises:
        InputError: The file or an array cannot be read, or an array does not fit.
        UsageError: The file has dynamic operators, or a value is out of range.
        BundleError: A size stays open (the message says which), or ONNX Runtime cannot load the file.
    """
    Schedule(repeats=repeats, min_seconds=min_seconds, warmup=warmup, seed=seed)  # refuses what cannot be measured
    model = with_sizes(_static_model(Path(path)), batch=batch, input_size=input_size, dims=dims)
    nodes = read_nodes(model)
    labelled = _labelled(model, nodes)
    machine = machine_facts()
    progress("loading", 0.0)
    with machine_turn() as notes:
        with OnnxRuntimeSession(_serialisable(model, path), threads=threads) as session:
            draws = _feeds(session, inputs or {}, seed)
            for feeds in draws:
                session.run(feeds, finite=False)
            runs = [session.bind(feeds) for feeds in draws]
            # The loop knows pairs only; here both are the same, and every visit counts.
            pair = Paired(nodes.name, runs, runs)
            rounds = time_rounds([pair], Clock(single_thread=threads == 1), repeats, min_seconds, warmup, progress)
            info = session.info
        progress("timing the nodes", 0.9)
        times = _node_times(labelled, threads, draws[0])
    walker = GraphWalker(nodes)
    return NetworkProfile(
        network={
            "name": nodes.name,
            "file": files.shown(path),
            "sha256": files.sha256(path),
            "inputs": {name: list(value.shape) for name, value in draws[0].items()},
        },
        machine=machine | {"warnings": notes},
        device="cpu",
        runtime={"name": info.runtime, "version": info.version, "provider": info.provider},
        threads=threads,
        batch=nodes.batch,
        settings={"rounds": rounds, "warmup": warmup, "seed": seed, "inputs": _what(draws[0], inputs or {})},
        macs=sum(kernel.macs for kernel in walker.graph().kernels) / nodes.batch,
        samples=samples_of([*pair.twin_visits, *pair.visits]),
        parts=_sorted_times(labelled.group_times(times).items(), by_time=False),
        operators=_sorted_times(((node.op_type, node.fastest / 1000) for node in times), by_time=True),
        graph=nodes.to_json(),
    )


def _static_model(path: Path) -> onnx.ModelProto:
    """The graph of a file with its weights."""
    model = read_graph(path, weights=True)
    dynamic = sorted({node.op_type for node in all_nodes(model.graph) if skips(node)})
    if dynamic:
        raise UsageError(
            f"{path} holds dynamic operators ({', '.join(dynamic)}): profile the folder of its bundle, which says how "
            "to run it next to its static twin."
        )
    return model


def _serialisable(model: onnx.ModelProto, path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model, unless it is larger than a single message may be; raises ``InputError``."""
    if model.ByteSize() >= 1 << 31:
        raise InputError(f"{os.fspath(path)} holds 2 GiB or more of weights, which no copy of fixed sizes can hold.")
    return model


def _feeds(
    session: OnnxRuntimeSession, paths: Mapping[str, str | os.PathLike[str]], seed: int
) -> list[dict[str, Array]]:
    """A few inputs of the session."""
    known = [info.name for info in session.inputs]
    for name in paths:
        if name not in known:
            raise unknown_name("input", name, known)
    given = {name: read_array(path) for name, path in paths.items()}
    draws = []
    for draw in range(_DRAWS):
        made = made_up_inputs([info for info in session.inputs if info.name not in given], seed + draw)
        draws.append({name: given[name] if name in given else made[name] for name in known})
    return draws


def _what(feeds: Mapping[str, Array], given: Mapping[str, Any]) -> str:
    made = [name for name in feeds if name not in given]
    return "; ".join(
        text
        for text in (
            f"random numbers, whole numbers 1: {', '.join(made)}" if made else "",
            f"from files: {', '.join(given)}" if given else "",
        )
        if text
    )


def _labelled(model: onnx.ModelProto, nodes: NodeGraph) -> LabelledGraph:
    """A copy of the graph whose nodes are named by the parts that a prediction has, for the node profile."""
    import onnx

    parts = GraphWalker(nodes).part_of_nodes()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, node in enumerate(copy.graph.node):
        part = next((parts[name] for name in node.output if name in parts), UNMAPPED)
        node.name = f"{part}/{index}"
    return LabelledGraph(copy, bodies=False)


def _node_times(labelled: LabelledGraph, threads: int, feeds: Mapping[str, Array]) -> list[NodeTime]:
    with OnnxRuntimeSession(labelled.model, threads=threads, profile=True) as session:
        run = session.bind(feeds)
        for _ in range(1 + _NODE_RUNS):
            run()
        return session.node_times()


def _sorted_times(times: Iterable[tuple[str, float]], *, by_time: bool) -> tuple[PartTime, ...]:
    """Sums by name; those that take no time are left out."""
    sums: dict[str, float] = {}
    for name, ms in times:
        sums[name] = sums.get(name, 0.0) + ms
    found = [PartTime(name, ms) for name, ms in sums.items() if ms > 0]
    return tuple(sorted(found, key=lambda part: -part.ms) if by_time else found)
