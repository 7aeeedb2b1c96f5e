"""From a network to a legal graph: dry run, swap, capture, passes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
import torch
from torch import Tensor, nn

from dyndeploy.blocks import DynamicBlock, dynamic_blocks
from dyndeploy.blocks.block import ROOT, limit_tokens, run_dense
from dyndeploy.bundle import SAVES_NOTHING, MaskInfo
from dyndeploy.errors import UsageError
from dyndeploy.export.capture import capture
from dyndeploy.export.subject import HasFacts, make_subject
from dyndeploy.export.swap import Captured, DryRun, Swapped, dry_run, swap
from dyndeploy.graphs.branches import insert_branches
from dyndeploy.graphs.passes import COMMON, OF_TARGET, Context, run_pipeline
from dyndeploy.graphs.split import Segment, require_places, split
from dyndeploy.nets import NetworkFacts
from dyndeploy.precisions import tolerance_of
from dyndeploy.targets import PORTABLE, Target, load_target

_NET = "net"
"""Name of the network within what is captured."""
_BODY = f"{_NET}.body"
"""Name of a branch's body within what is captured."""


@dataclass(frozen=True)
class Built:
    """A captured graph, legal for its target.

    Attributes:
        model: The graph: the network's outputs, then its masks.
        masks: The masks, in order of execution.
        notes: What export had to change or leave out, in words.
        parts: Of a network that the target runs as several engines with the host in between: its engines, legal for the
            target, and its host segments, in order. The graph is then the same network for a CPU.
    """

    model: onnx.ModelProto
    masks: tuple[MaskInfo, ...]
    notes: tuple[str, ...] = ()
    parts: tuple[Segment, ...] = ()


def build(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    target: Target,
    *,
    static: bool = False,
    dense: Collection[str] = (),
    outputs: Sequence[str] | None = None,
    dynamic_batch: bool = False,
    confidence: str = "",
    measure: str = "max_softmax",
    token_capacity: int | float | None = None,
) -> Built:
    """Capture and legalise a network.

    Args:
        network: In evaluation and single precision; it is not changed.
        inputs: Example inputs by the names that the graph's inputs get, in the order of ``forward``.
        target: What the graph is for.
        static: Leave the gates out and compute everything: the static twin.
        dense: Dotted paths of blocks that compute everything.
        outputs: Names of the entries of the tuple that ``forward`` returns; None takes those that the result has.
        dynamic_batch: Leave the first size of every input open; the examples then have two samples.
        confidence: Name of one more output, computed from ``logits``; empty for none.
        measure: What it is; see :mod:`dyndeploy.confidences`.
        token_capacity: See :func:`dyndeploy.blocks.block.limit_tokens`; None leaves what the blocks have.

    Raises:
        UsageError: A network that cannot be captured as it is written; see :func:`dyndeploy.export.export_model`.
        ExportError: PyTorch could not capture it, or the target could not run the graph.
    """
    facts = network.facts() if isinstance(network, HasFacts) else NetworkFacts()
    network = copy.deepcopy(network)
    places = _Places.of(network)
    run_dense(network, dense)
    if token_capacity is not None and not static:
        limit_tokens(network, token_capacity)
    if static:
        run_dense(network, [path for path, _, _ in dynamic_blocks(network)])
    examples = list(inputs.values())
    run = dry_run(network, examples, outputs)
    _require_distinct([*inputs, *run.outputs, *run.decisions])
    lazy, why = target.takes_branches()
    if lazy:
        _require_images_apart(network, run)
    swapped = swap(network, run)
    context = Context(
        scopes=places.scopes(),
        outputs=[*run.outputs, *swapped.masks],
        opset=target.opset,
        ir_version=target.ir_version,
        allowed_operators=target.allowed_operators,
        target=target.name,
        inputs=list(inputs),
        runtime=target.runtime,
        confidence=confidence,
        measure=measure,
        parts={f"{_NET}.{name}": part for name, part in facts.parts.items()},
    )
    bodies = _bodies(context, swapped, run, places)
    captured = Captured(
        swapped.network, swapped.recorder, list(run.outputs), swapped.masks, in_order=outputs is not None
    )
    model = capture(captured, examples, dynamic_batch=dynamic_batch, wrapped=_NET)
    run_pipeline(model, context, COMMON)
    require_places(model, target.detection, target.name)
    parts: tuple[Segment, ...] = ()
    if target.detection and facts.parts:
        parts = _parts(model, context, target)
        whole = load_target(PORTABLE)
        context = replace(
            context,
            opset=whole.opset,
            ir_version=whole.ir_version,
            allowed_operators=whole.allowed_operators,
            target=whole.name,
            runtime=whole.runtime,
        )
    run_pipeline(model, context, OF_TARGET, COMMON)
    if bodies:
        insert_branches(model, bodies, lazy=lazy, open_batch=dynamic_batch)
    return Built(model, _masks(run, swapped), _notes(run, swapped, lazy, why), parts)


def _parts(model: onnx.ModelProto, context: Context, target: Target) -> tuple[Segment, ...]:
    """The engines and host segments of a captured graph, the former legal for the target."""
    segments = split(model, target.detection, target.name)
    for segment in segments:
        if not segment.host:
            own = replace(context, inputs=segment.inputs, outputs=segment.outputs)
            run_pipeline(segment.model, own, OF_TARGET, COMMON)
    return tuple(segments)


@torch.no_grad()
def _require_images_apart(network: nn.Module, run: DryRun) -> None:
    """Refuse bodies that mix the images of a batch: a branch computes some of them only."""
    generator = torch.Generator().manual_seed(0)
    for path, block, _ in dynamic_blocks(network):
        call = None if path in run.unreached else block.lower(*run.calls[path].inputs)
        if call is None or call.body is None or run.calls[path].inputs[0][0] < 2:
            continue
        x = torch.randn(run.calls[path].inputs[0], generator=generator)
        together = call.body(x.clone())
        alone = torch.cat([call.body(x[index : index + 1].clone()) for index in range(len(x))])
        error = float((together - alone).abs().max() / together.abs().max().clamp_min(1e-6))
        if not error <= tolerance_of("fp32").output:
            raise UsageError(
                f"{path or ROOT}: what it gives for an image depends on the other images of the batch (by {error:.2g} "
                "of the largest value), and a branch computes only those that are not skipped. Export with batch 1, or "
                "keep images apart."
            )


def _require_distinct(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{', '.join(map(repr, twice))} is the name of two of the network's inputs, outputs and masks: return it "
            "under another name."
        )


@dataclass(frozen=True)
class _Places:
    """Where modules stand in a network before anything is swapped.

    Attributes:
        blocks: Dotted paths of the dynamic blocks.
        paths: Dotted paths of all modules by their identity.
    """

    blocks: tuple[str, ...]
    paths: Mapping[int, str]

    @classmethod
    def of(cls, network: nn.Module) -> _Places:
        """Look at a network."""
        found = list(network.named_modules())
        blocks = tuple(path for path, module in found if isinstance(module, DynamicBlock))
        return cls(blocks, {id(module): path for path, module in found})

    def scopes(self) -> dict[str, str]:
        """Dotted block name by captured scope, of the whole network."""
        return {".".join(filter(None, (_NET, path))): path or ROOT for path in self.blocks}

    def scopes_of_body(self, block: str, body: str) -> dict[str, str]:
        """Dotted block name by captured scope, of the body of a block; what is in no block within belongs to it."""
        inside = {f"{_BODY}{path[len(body) :]}": path for path in self.blocks if path.startswith(f"{body}.")}
        return {_NET: block or ROOT, **inside}


def _bodies(context: Context, swapped: Swapped, run: DryRun, places: _Places) -> dict[str, onnx.ModelProto]:
    """Capture what stands in branches, the innermost first, each through the passes that a graph goes through."""
    bodies: dict[str, onnx.ModelProto] = {}
    for path, body in swapped.branches.items():
        (shape,) = run.calls[path].inputs
        inner, own = run.inside(path), f"{path or ROOT}/output"
        place = places.paths.get(id(body), path)
        single = Captured(_Single(body), swapped.recorder, [own], inner, in_order=False)
        model = capture(single, [torch.zeros(shape)], wrapped=_BODY, inside=place)
        run_pipeline(
            model,
            replace(
                context,
                scopes=places.scopes_of_body(path, place),
                outputs=[own, *inner],
                parts={},
                inputs=[f"{path or ROOT}/input"],
                confidence="",
            ),
        )
        bodies[path or ROOT] = model
    return bodies


class _Single(nn.Module):
    """A body whose only output has no name of its own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def _masks(run: DryRun, swapped: Swapped) -> tuple[MaskInfo, ...]:
    return tuple(
        MaskInfo(name, decision.block or ROOT, decision.kind, tuple(decision.mask.shape))
        for name, decision in ((name, run.decisions[name]) for name in swapped.masks)
    )


def _notes(run: DryRun, swapped: Swapped, lazy: bool, why: str) -> tuple[str, ...]:
    notes = []
    if run.unreached:
        notes.append(f"{', '.join(run.unreached)}: not part of the graph, because forward does not use them")
    if swapped.branches and not lazy:
        branches = [path or ROOT for path in swapped.paths if path in swapped.branches]
        notes.append(
            f"{', '.join(branches)}: computed for every image and selected afterwards, "
            f"which {SAVES_NOTHING} here: {why}"
        )
    return tuple(notes)


def build_graph(
    network: nn.Module,
    target: Target,
    batch: int,
    input_size: tuple[int, int] | None = None,
    *,
    static: bool,
    dense: Collection[str] = (),
) -> tuple[onnx.ModelProto, tuple[MaskInfo, ...]]:
    """Capture a network of images for a target: what :func:`export_model` writes, without the bundle.

    Args:
        network: Any network of one graph; it is not changed.
        target: What it is for.
        batch: Images per run.
        input_size: (H, W); None for the network's own.
        static: The static twin.
        dense: Dotted paths of blocks that compute everything.

    Returns:
        The graph and its masks.

    Raises:
        UsageError: As :func:`export_model`.
        ExportError: As :func:`export_model`.
    """
    subject = make_subject(network, batch=batch, input_size=input_size)
    built = build(subject.network, subject.inputs, target, static=static, dense=dense)
    return built.model, built.masks
