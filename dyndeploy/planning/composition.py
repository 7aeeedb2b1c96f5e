"""Networks of mixed blocks, composed of walks of networks whose blocks are alike.

What a block computes depends on its own option only, and what stands between two blocks on whether each of them is
dynamic. So a walk for every option, and two in which dense and dynamic blocks take turns, are all that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dyndeploy.errors import UsageError
from dyndeploy.ops.gates import CHANNEL, PATCH
from dyndeploy.prediction.kernels import GraphWalker, Kernel
from dyndeploy.prediction.rates import Rates
from dyndeploy.prediction.zoo import require_registered, zoo_nodes

STATIC = "static"
MODES = (STATIC, "spatial", "channel", "layer", "both")
"""Values of the option ``mode`` of a network that can be planned."""

DENSE, DYNAMIC = 0, 1
"""How a block runs; also positions in pairs of numbers for both."""

_WHOLE = "layer"
_LAYOUT = "transpose"
"""Kind of kernels that stand between blocks of different layouts, whichever block they are named after."""

_LEAST_PATCHES = 2


@dataclass(frozen=True)
class Option:
    """What a stage can be: its mode and granularities."""

    mode: str
    granularity: int
    channel_granularity: int

    @property
    def label(self) -> str:
        """For sentences: ``"spatial 4"``."""
        parts = [self.mode]
        if self.mode in ("spatial", "both"):
            parts.append(str(self.granularity))
        if self.mode in ("channel", "both"):
            parts.append(f"groups of {self.channel_granularity}")
        return " ".join(parts)

    @property
    def state(self) -> int:
        """:data:`DENSE` or :data:`DYNAMIC`."""
        return DENSE if self.mode == STATIC else DYNAMIC


@dataclass(frozen=True)
class _Walk:
    """A walked network: kernels of every block, and of what stands before each of them and behind the last."""

    blocks: Mapping[str, tuple[Kernel, ...]]
    gaps: tuple[tuple[Kernel, ...], ...]


class Composition:
    """Kernels of a network of the zoo with an option for each block, at batch 1.

    Args:
        network: Registered name; its options include ``mode``, ``granularity`` and ``channel_granularity``.
        rate: Activation rate of every mask.
        input_size: (height, width); None takes the network's own.
        runtime: Whose fusions apply.
        precision: Of activations and weights.

    Attributes:
        name: Of the network.
        input_size: (height, width).
        blocks: Names of the blocks, in order.
        stages: Names of the blocks of each stage: those whose names differ in the last part only.

    Raises:
        UsageError: Unknown name, or a network without modes.
    """

    def __init__(
        self,
        network: str,
        rate: float,
        input_size: tuple[int, int] | None = None,
        *,
        runtime: str = "onnxruntime",
        precision: str = "fp32",
    ) -> None:
        from dyndeploy.nets import model_info

        require_registered(network)
        self._runtime, self._precision = runtime, precision
        if "mode" not in model_info(network).defaults:
            raise UsageError(
                f"'{network}' has no modes to choose from: there is nothing to plan. Plan a network whose options "
                "include 'mode'; see 'dyndeploy models'."
            )
        self.name, self._rates, self._size = network, Rates(default=rate), input_size
        self._found: dict[Option, frozenset[int]] = {}
        self._walks: dict[Option | int, _Walk] = {}
        nodes = zoo_nodes(network, {"mode": STATIC}, input_size=input_size)
        assert nodes.input_size is not None
        self.input_size = nodes.input_size
        self.blocks = nodes.blocks
        stages: dict[str, list[str]] = {}
        for name in self.blocks:
            stages.setdefault(name.rpartition(".")[0], []).append(name)
        self.stages = tuple(tuple(names) for names in stages.values())

    def kernels(self, options: Sequence[Option]) -> tuple[Kernel, ...]:
        """Kernels of the network with an option for each block; all of them must be valid."""
        kernels: list[Kernel] = []
        before = DENSE
        for index, (name, option) in enumerate(zip(self.blocks, options, strict=True)):
            kernels += self.between(index, before, option.state)
            kernels += self._walk(option).blocks[name]
            before = option.state
        kernels += self._alike(before).gaps[-1]
        return tuple(kernels)

    def between(self, index: int, before: int, after: int) -> tuple[Kernel, ...]:
        """What stands before a block, by how the block before it runs (before the first: the stem) and itself does."""
        if before == after or index == 0:
            return self._alike(after).gaps[index]
        # Where even blocks are dense, the block before an even one is dynamic.
        return self._taking_turns(index % 2 if after == DENSE else 1 - index % 2).gaps[index]

    def valid_stages(self, option: Option) -> frozenset[int]:
        """Stages that can have the option: its groups fit their channels, and a mask has more than one patch.

        A mask of one position skips the whole block: that is what the mode ``layer`` is for.
        """
        if option not in self._found:
            self._found[option] = frozenset(
                stage for stage, names in enumerate(self.stages) if self._fits(option, stage, names[0])
            )
        return self._found[option]

    def _fits(self, option: Option, stage: int, first: str) -> bool:
        walk = self._walk(option)
        if first not in walk.blocks:
            return False
        for kernel in walk.blocks[first]:
            if kernel.call is None:
                continue
            for port, kind in kernel.call.spec.gates.items():
                shape = kernel.call.shapes[kernel.call.spec.input_index(port)]
                if kind == PATCH and option.granularity > 1 and min(shape[2:]) < _LEAST_PATCHES:
                    return False
                if kind == CHANNEL and shape[1] * option.channel_granularity != kernel.features["cmid"]:
                    return False
        return True

    def _alike(self, state: int) -> _Walk:
        return self._walk(Option(STATIC if state == DENSE else _WHOLE, 1, 1))

    def _taking_turns(self, dense: int) -> _Walk:
        """A walk in which even (0) or odd (1) blocks are dense and the others are not."""
        if dense not in self._walks:
            self._walks[dense] = self._walked({"mode": _WHOLE}, self.blocks[dense::2])
        return self._walks[dense]

    def _walk(self, option: Option) -> _Walk:
        if option not in self._walks:
            self._walks[option] = self._walk_of(option)
        return self._walks[option]

    def _walk_of(self, option: Option) -> _Walk:
        """A walk in which all blocks have an option; where it does not fit a stage, that stage is left out."""
        given = {"mode": option.mode, "granularity": option.granularity}
        given["channel_granularity"] = option.channel_granularity
        try:
            return self._walked(given)
        except UsageError:
            blocks: dict[str, tuple[Kernel, ...]] = {}
            for stage, names in enumerate(self.stages):
                modes = [option.mode if other == stage else STATIC for other in range(len(self.stages))]
                try:
                    walk = self._walked({**given, "mode": modes})
                except UsageError:
                    continue
                blocks |= {name: walk.blocks[name] for name in names}
            return _Walk(blocks, ())

    def _walked(self, options: Mapping[str, object], dense: Sequence[str] = ()) -> _Walk:
        nodes = zoo_nodes(self.name, options, input_size=self._size, dense=dense)
        blocks: dict[str, list[Kernel]] = {}
        gaps: list[list[Kernel]] = [[]]
        ends: list[Kernel] = []  # Changes of layout, which are part of a block only if more of it follows.
        current: str | None = None
        for kernel in GraphWalker(nodes, runtime=self._runtime, precision=self._precision).graph(self._rates).kernels:
            if kernel.block not in (None, current):
                gaps[-1] += ends
                ends, current = [], kernel.block
            if kernel.block is None or (kernel.kind == _LAYOUT and kernel.block not in blocks):
                gaps[-1] += [*ends, kernel]
                ends = []
            elif kernel.kind == _LAYOUT:
                ends.append(kernel)
            else:
                if kernel.block not in blocks:
                    gaps.append([])
                blocks.setdefault(kernel.block, []).extend([*ends, kernel])
                ends = []
        gaps[-1] += ends
        return _Walk(
            {name: tuple(kernels) for name, kernels in blocks.items()}, tuple(tuple(kernels) for kernels in gaps)
        )
