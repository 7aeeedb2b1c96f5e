"""Searching the plan: every stage's options priced once, then the best way through the network.

A stage's option is a mode with its granularities. Within a stage every block runs dynamically or densely, whichever is
faster with the changes of layout that it brings. Stages are put together keeping, for each amount of computation, only
the fastest. Networks are composed of walked graphs (:mod:`dyndeploy.planning.composition`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.graphs.memory import require_memory
from dyndeploy.planning.composition import DENSE, DYNAMIC, MODES, STATIC, WHOLE, Composition, Option
from dyndeploy.planning.plan import Plan
from dyndeploy.prediction.kernels import Kernel
from dyndeploy.targets.devices import device_names, load_device

Array = npt.NDArray[np.float64]
Price = Callable[[Sequence[Kernel]], tuple[Array, Array, Array]]
"""As :meth:`dyndeploy.prediction.DeviceModel.price`."""

STATIC_OPTION = Option(STATIC, 1, 1)
_MOST = 400  # Partial plans kept at a stage; far more than a front ever has.


@dataclass(frozen=True)
class PlanSettings:
    """What the search may choose from.

    Attributes:
        rate: Activation rate of every mask.
        modes: Modes that a stage may have.
        granularities: Patch sides that a stage may have.
        channel_granularities: Channels per group that a stage may have.
        uniform_mode: Whether all stages must share their mode (a static stage is always allowed).
    """

    rate: float = 0.5
    modes: tuple[str, ...] = MODES
    granularities: tuple[int, ...] = (1, 2, 4, 7, 8)
    channel_granularities: tuple[int, ...] = (1, 2, 4)
    uniform_mode: bool = False

    def __post_init__(self) -> None:
        """Check the values; raises ``UsageError``."""
        for mode in self.modes:
            if mode not in MODES:
                raise unknown_name("mode", mode, MODES)
        if not self.modes:
            raise UsageError("Give at least one mode to choose from.")
        if not 0.0 <= self.rate <= 1.0:
            raise UsageError(f"A rate must lie in [0, 1], not {self.rate}.")
        for name in ("granularities", "channel_granularities"):
            values = getattr(self, name)
            if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
                raise UsageError(f"{name} must be whole numbers of at least 1, not {values!r}.")


@dataclass(frozen=True)
class _Partial:
    """The network up to some stage."""

    ms: float
    macs: float
    options: tuple[Option, ...] = ()
    dense: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Priced:
    """Blocks of a stage under an option."""

    dynamic: tuple[tuple[float, float], ...]  # (ms, MACs) per block
    static: tuple[tuple[float, float], ...]
    change_in: tuple[tuple[float, float], ...]  # ms before each block where the block before it is dynamic and it
    # is not, and where it is the other way round


def plan_network(
    network: str,
    prices: Mapping[int, Price] | Mapping[int | None, Price],
    settings: PlanSettings | None = None,
    *,
    input_size: tuple[int, int] | None = None,
    device: str = "cpu",
    budget_ms: float | None = None,
    accuracies: Callable[[Plan], float | None] = lambda plan: None,
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    basis: str = "",
) -> tuple[Plan, tuple[Plan, ...]]:
    """Choose modes, granularities, dense blocks and threads.

    Args:
        network: Registered name.
        prices: How kernels are priced, by number of threads (None: a device that has none), e.g. those of
            :func:`~dyndeploy.planning.device_prices`, which also gives the last three arguments.
        settings: What to choose from.
        input_size: (height, width); None takes the network's own.
        device: Its name, for the plan.
        budget_ms: None chooses the fastest plan; a budget the one that computes most within it.
        accuracies: Accuracy of a plan where it is known.
        runtime: Whose fusions apply.
        precision: Of activations and weights.
        basis: What the prices rest on, for the plan.

    Returns:
        The chosen plan, and the front: plans that no other beats in both latency (lower) and computation kept
        (higher), fastest first.

    Raises:
        UsageError: Unknown name, a network without modes or one that needs more memory than the device has, or a
            budget that no plan meets.
    """
    settings = settings or PlanSettings()
    if not prices:
        raise UsageError("There is no calibration to plan with: 'dyndeploy calibrate-device' makes one.")
    if budget_ms is not None and not budget_ms > 0:
        raise UsageError(f"The budget must be a positive number of milliseconds, not {budget_ms}.")
    composition = Composition(network, settings.rate, input_size, runtime=runtime, precision=precision)
    if device in device_names():
        require_memory(network, load_device(device), composition.footprint)
    plans = [
        replace(plan, accuracy=accuracies(plan), basis=basis, runtime=runtime, precision=precision)
        for threads, price in prices.items()
        for plan in _Search(composition, price, settings, device, threads).plans()
    ]
    front = _front(plans)
    if budget_ms is None:
        return front[0], front
    within = [plan for plan in front if plan.latency_ms <= budget_ms]
    if not within:
        raise UsageError(
            f"No plan meets {budget_ms:g} ms: the fastest takes {front[0].latency_ms:.2f} ms "
            f"({'-'.join(front[0].mode)}, rate {front[0].rate:g}). Allow a lower rate, a "
            "smaller input or a larger budget."
        )
    return within[-1], front


def uniform_plans(
    network: str,
    price: Price,
    settings: PlanSettings,
    *,
    input_size: tuple[int, int] | None = None,
    device: str = "cpu",
    threads: int | None = 1,
    most: int = 6,
) -> tuple[Plan, ...]:
    """Plans with one mode and granularity for the whole network and no dense block, and the static network.

    A stage whose maps are too small for a granularity has the largest one that fits.

    Args:
        network: Registered name.
        price: How kernels are priced.
        settings: What to choose from.
        input_size: (height, width); None takes the network's own.
        device: Its name, for the plans.
        threads: For the plans.
        most: Of the dynamic ones, the fastest that are predicted.

    Raises:
        UsageError: Unknown name, or a network without modes.
    """
    composition = Composition(network, settings.rate, input_size)
    plans = _Search(composition, price, settings, device, threads).uniform()
    static = [plan for plan in plans if set(plan.mode) == {STATIC}]
    dynamic = sorted((plan for plan in plans if plan not in static), key=lambda plan: plan.latency_ms)
    return (*dynamic[:most], *static)


def _front(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    result: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.latency_ms, -plan.macs)):
        if not result or plan.macs > result[-1].macs * (1 + 1e-9):
            result.append(plan)
    return tuple(result)


class _Search:
    def __init__(
        self, network: Composition, price: Price, settings: PlanSettings, device: str, threads: int | None
    ) -> None:
        self._network, self._price, self._settings = network, price, settings
        self._device, self._threads = device, threads
        self._stages = network.stages
        static = network.kernels([STATIC_OPTION] * len(network.blocks))
        self._static_ms = float(price(static)[0].sum())
        self._static_macs = float(sum(kernel.macs for kernel in static))

    def plans(self) -> list[Plan]:
        """Complete plans of the front, the static network among them, priced as whole networks."""
        groups: list[tuple[str, ...]]
        if self._settings.uniform_mode:
            groups = [(mode,) if mode == STATIC else (mode, STATIC) for mode in self._settings.modes]
        else:
            groups = [tuple(dict.fromkeys((*self._settings.modes, STATIC)))]
        found: dict[tuple[tuple[Option, ...], tuple[str, ...]], _Partial] = {}
        priced = self._priced({mode for group in groups for mode in group})
        for group in groups:
            for partial in self._combine([{o: p for o, p in stage.items() if o.mode in group} for stage in priced]):
                found[partial.options, partial.dense] = partial
        return [self._finish(partial, priced) for partial in found.values()]

    def uniform(self) -> list[Plan]:
        """Every option in all stages, with the largest smaller patches where its own do not fit, and the static one."""
        modes = dict.fromkeys((*self._settings.modes, STATIC))
        priced = self._priced(set(modes))
        found: dict[tuple[Option, ...], None] = {}
        for option in (option for mode in modes for option in self._options(mode)):
            smaller = sorted(g for g in self._settings.granularities if g < option.granularity)
            alike = [option, *(replace(option, granularity=g) for g in reversed(smaller))]
            fitting = [next((o for o in alike if o in stage), None) for stage in priced]
            if None not in fitting:
                found[tuple(o for o in fitting if o is not None)] = None
        return [self._finish(_Partial(0.0, 0.0, options), priced) for options in found]

    def _options(self, mode: str) -> list[Option]:
        patches = self._settings.granularities if mode in ("spatial", "both") else (1,)
        groups = self._settings.channel_granularities if mode in ("channel", "both") else (1,)
        return [Option(mode, g, c) for g, c in itertools.product(patches, groups)]

    def _priced(self, modes: set[str]) -> list[dict[Option, _Priced]]:
        """Every option of every stage: kernels of one option in all stages are priced together, as one network."""
        result: list[dict[Option, _Priced]] = [{} for _ in self._stages]
        static = self._blocks(STATIC_OPTION)
        changes = self._layout_changes()
        for mode in sorted(modes):
            for option in self._options(mode):
                valid = self._network.valid_stages(option)
                dynamic = static if mode == STATIC else self._blocks(option) if valid else {}
                for stage in valid:
                    blocks = self._stages[stage]
                    result[stage][option] = _Priced(
                        tuple(dynamic[name] for name in blocks),
                        tuple(static[name] for name in blocks),
                        tuple(changes[name] for name in blocks),
                    )
        return result

    def _blocks(self, option: Option) -> dict[str, tuple[float, float]]:
        """(ms, MACs) of every block where all have this option, priced in the surroundings of the whole network."""
        valid = {name for stage in self._network.valid_stages(option) for name in self._stages[stage]}
        kernels = self._network.kernels([option if name in valid else STATIC_OPTION for name in self._network.blocks])
        found: dict[str, tuple[float, float]] = {}
        for kernel, ms in zip(kernels, self._price(kernels)[0].tolist(), strict=True):
            if kernel.block is not None:
                before = found.get(kernel.block, (0.0, 0.0))
                found[kernel.block] = before[0] + ms, before[1] + kernel.macs
        return found

    def _layout_changes(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of a change to dense and to dynamic before every block.

        What a network that changes there takes beyond the same blocks in networks that do not.
        """
        whole = Option(WHOLE, 1, 1)
        alike = (STATIC_OPTION, whole)
        blocks = [self._blocks(option) for option in alike]
        names = self._network.blocks

        def ms(options: Sequence[Option]) -> float:
            return float(self._price(self._network.kernels(options))[0].sum())

        ends = [
            ms([option] * len(names)) - sum(own[n][0] for n in names) for option, own in zip(alike, blocks, strict=True)
        ]
        found: dict[str, tuple[float, float]] = {}
        for index, name in enumerate(names):
            changes = []
            for after in (DENSE, DYNAMIC):
                options = [alike[1 - after]] * index + [alike[after]] * (len(names) - index)
                apart = sum(blocks[1 - after][n][0] for n in names[:index]) + sum(
                    blocks[after][n][0] for n in names[index:]
                )
                changes.append(ms(options) - apart - ends[after])
            found[name] = changes[DENSE], changes[DYNAMIC]
        return found

    def _combine(self, priced: Sequence[Mapping[Option, _Priced]]) -> list[_Partial]:
        fronts: dict[int, list[_Partial]] = {DENSE: [_Partial(0.0, 0.0)], DYNAMIC: []}
        for blocks, options in zip(self._stages, priced, strict=True):
            following: dict[int, list[_Partial]] = {DENSE: [], DYNAMIC: []}
            for layout, partials in fronts.items():
                if not partials:
                    continue
                for option, stage in options.items():
                    for end, way in _through(blocks, stage, option.mode == STATIC, layout).items():
                        following[end] += [
                            _Partial(p.ms + way.ms, p.macs + way.macs, (*p.options, option), (*p.dense, *way.dense))
                            for p in partials
                        ]
            fronts = {layout: _pruned(partials) for layout, partials in following.items()}
        return [partial for partials in fronts.values() for partial in partials]

    def _finish(self, partial: _Partial, priced: Sequence[Mapping[Option, _Priced]]) -> Plan:
        kernels = self._network.kernels(
            [
                STATIC_OPTION if name in partial.dense else option
                for option, blocks in zip(partial.options, self._stages, strict=True)
                for name in blocks
            ]
        )
        ms, low, high = (float(part.sum()) for part in self._price(kernels))
        # A stage whose blocks all run densely is a static stage.
        options = [
            STATIC_OPTION if all(name in partial.dense for name in blocks) else option
            for option, blocks in zip(partial.options, self._stages, strict=True)
        ]
        kept = {
            name
            for option, blocks in zip(options, self._stages, strict=True)
            if option.mode != STATIC
            for name in blocks
        }
        return Plan(
            network=self._network.name,
            input_size=self._network.input_size,
            device=self._device,
            threads=self._threads,
            rate=self._settings.rate,
            mode=tuple(option.mode for option in options),
            granularity=tuple(option.granularity for option in options),
            channel_granularity=tuple(option.channel_granularity for option in options),
            dense=tuple(name for name in partial.dense if name in kept),
            latency_ms=ms,
            interval_ms=(low, high),
            static_ms=self._static_ms,
            macs=float(sum(kernel.macs for kernel in kernels)),
            static_macs=self._static_macs,
            reasons=tuple(self._reasons(options, partial.dense, priced)),
        )

    def _reasons(
        self, options: Sequence[Option], dense: Sequence[str], priced: Sequence[Mapping[Option, _Priced]]
    ) -> list[str]:
        sentences = []
        for number, (option, blocks, stage) in enumerate(zip(options, self._stages, priced, strict=True)):
            own = stage[option]
            static = sum(ms for ms, _ in own.static)
            others = {other: sum(ms for ms, _ in p.dynamic) for other, p in stage.items() if other != option}
            best = min(others, key=lambda other: others[other], default=None)
            mine = sum(ms for ms, _ in own.dynamic)
            text = f"stage {number + 1}: {option.label}, {mine:.2f} ms"
            if option.mode != STATIC:
                text += f" (static {static:.2f} ms)"
            if best is not None:
                text += f"; next {best.label}, {others[best]:.2f} ms" if others[best] >= mine else (
                    f"; {best.label} would take {others[best]:.2f} ms and compute less, or change the layout"
                )  # fmt: skip
            sentences.append(text + ".")
            for name, (ms, _), (plain, _) in zip(blocks, own.dynamic, own.static, strict=True):
                if name in dense and option.mode != STATIC:
                    sentences.append(f"{name} runs densely: {plain:.2f} ms, dynamically {ms:.2f} ms.")
        return sentences


def _through(blocks: Sequence[str], stage: _Priced, static: bool, layout: int) -> dict[int, _Partial]:
    """Fastest way through a stage from a state (dense or dynamic) to each state."""
    ways = {layout: _Partial(0.0, 0.0)}
    for index, name in enumerate(blocks):
        following: dict[int, _Partial] = {}
        for start, way in ways.items():
            for end in (DENSE,) if static else (DENSE, DYNAMIC):
                ms, macs = stage.static[index] if end == DENSE else stage.dynamic[index]
                total = way.ms + ms + (stage.change_in[index][end] if end != start else 0.0)
                if end not in following or total < following[end].ms:
                    marked = (*way.dense, name) if end == DENSE and not static else way.dense
                    following[end] = _Partial(total, way.macs + macs, (), marked)
        ways = following
    return ways


def _pruned(partials: Sequence[_Partial]) -> list[_Partial]:
    result: list[_Partial] = []
    for partial in sorted(partials, key=lambda p: (p.ms, -p.macs)):
        if not result or partial.macs > result[-1].macs * (1 + 1e-9):
            result.append(partial)
    if len(result) > _MOST:
        result = [result[round(index)] for index in np.linspace(0, len(result) - 1, _MOST)]
    return result
