"""Which early exits pay: an exit pays where keeping it lowers the mean latency at a mix of images.

An image that would leave at an exit that is removed travels on to the next one that is kept. What the exit's own head
cost, and what it costs to run one graph more, is then saved by everyone who passes there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dyndeploy.errors import InputError, UsageError
from dyndeploy.fields import Document, Field
from dyndeploy.planning.sources import DevicePrices
from dyndeploy.prediction import Configuration, Estimator, exit_shares
from dyndeploy.prediction.staged import StagedNodes

SCHEMA = 1
FORMAT = "dyndeploy-exit-plan"

_ALL_TRIED = 8
"""Exits up to which every choice is tried; with more, exits are taken away or added one at a time while that helps."""

_DOCUMENT = Document("The plan", "Plan again.", InputError)


@dataclass(frozen=True)
class ExitChoice:
    """A network with some of its exits. Latencies are predicted milliseconds per image.

    Attributes:
        exits: Numbers of the exits that are kept.
        shares: Share of images that leaves at each of them.
        latency_ms: Mean at these shares.
        interval_ms: 90 % interval of it.
        worst_ms: Of images that run every stage.
    """

    exits: tuple[int, ...]
    shares: tuple[float, ...]
    latency_ms: float
    interval_ms: tuple[float, float]
    worst_ms: float


@dataclass(frozen=True)
class ExitVerdict:
    """Whether an exit pays.

    Attributes:
        exit: Its number.
        kept: Whether the plan keeps it.
        saved_ms: Mean milliseconds per image that keeping it saves, the other exits being those of the plan; negative
            where it costs some.
    """

    exit: int
    kept: bool
    saved_ms: float


@dataclass(frozen=True)
class ExitPlan:
    """Which exits to keep on a device at a mix.

    Attributes:
        network: Its name.
        input_size: (height, width).
        device: It was chosen for.
        threads: Of the session; None on a GPU.
        mix: Share of images that leaves at each exit of the network where all are kept.
        chosen: The fastest choice.
        choices: What was tried, fastest first.
        verdicts: One per exit but the last, which always stays.
        runtime: Whose fusions are assumed.
        precision: Of activations and weights.
        basis: What the prices rest on.
        kind: Always ``"predicted"``.
    """

    network: str
    input_size: tuple[int, int]
    device: str
    threads: int | None
    mix: tuple[float, ...]
    chosen: ExitChoice
    choices: tuple[ExitChoice, ...]
    verdicts: tuple[ExitVerdict, ...]
    runtime: str
    precision: str
    basis: str
    kind: str = "predicted"

    @property
    def export_option(self) -> str:
        """The option of ``dyndeploy export`` that follows the plan."""
        return f"--exits {','.join(map(str, self.chosen.exits))}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads them back."""
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self), "export": self.export_option}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ExitPlan:
        """Read what :meth:`to_json` wrote; raises ``InputError`` where it is damaged or of another schema version."""
        root = _DOCUMENT.root(value)
        if root["schema"].value != SCHEMA:
            raise _DOCUMENT.complaint(f"schema must be {SCHEMA}")
        height, width = root["input_size"].sequence(lambda item: item.tally(1), length=2)
        return cls(
            network=root["network"].label(),
            input_size=(height, width),
            device=root["device"].label(),
            threads=root["threads"].optional(lambda item: item.tally(1)),
            mix=root["mix"].sequence(Field.share, at_least=1),
            chosen=_choice(root["chosen"]),
            choices=root["choices"].sequence(_choice, at_least=1),
            verdicts=root["verdicts"].sequence(_verdict),
            runtime=root["runtime"].label(),
            precision=root["precision"].label(),
            basis=root["basis"].label(),
        )


def _choice(item: Field) -> ExitChoice:
    exits = item["exits"].sequence(lambda number: number.tally(1), at_least=1)
    low, high = item["interval_ms"].sequence(Field.amount, length=2)
    return ExitChoice(
        exits=exits,
        shares=item["shares"].sequence(Field.share, length=len(exits)),
        latency_ms=item["latency_ms"].positive(),
        interval_ms=(low, high),
        worst_ms=item["worst_ms"].positive(),
    )


def _verdict(item: Field) -> ExitVerdict:
    return ExitVerdict(item["exit"].tally(1), item["kept"].boolean(), item["saved_ms"].number())


def plan_exits(
    network: StagedNodes,
    device: str,
    prices: DevicePrices,
    mix: Sequence[float] | None = None,
    *,
    configuration: Configuration | None = None,
) -> ExitPlan:
    """Choose the exits that pay.

    Args:
        network: Stages of all exits, at batch 1 (:func:`~dyndeploy.planning.sources.staged_network`).
        device: Its name.
        prices: Of the device (:func:`~dyndeploy.planning.device_prices`). Of several numbers of threads the lowest
            counts: give one to plan for another.
        mix: Share of images that leaves at each exit; None takes those that the thresholds were calibrated with.
        configuration: Rates of dynamic blocks within the stages.

    Raises:
        UsageError: No mix is known, or it does not fit the exits.
    """
    given = network.shares if mix is None else mix
    if given is None:
        example = "/".join(["40", "30", "20", "10"][: len(network.exits)])
        raise UsageError(
            f"Which exits of {network.name} pay depends on how many images leave where: give --exit-mix, e.g. "
            f"--exit-mix {example}."
        )
    shares = exit_shares(given, len(network.exits))
    counts = sorted(count for count in prices.by_threads if count is not None)
    threads = counts[0] if counts else None
    estimator = Estimator(
        device,
        precision=prices.precision,
        batch=1,
        threads=threads or 1,
        calibration=next(iter(prices.calibrations), None),
    )
    search = _Search(replace(network, shares=shares), estimator, configuration or Configuration())
    chosen = search.best()
    first = network.stages[0][1]
    return ExitPlan(
        network=network.name,
        input_size=first.input_size or (0, 0),
        device=estimator.device.name,
        threads=threads,
        mix=shares,
        chosen=chosen,
        choices=tuple(sorted(search.tried.values(), key=lambda choice: choice.latency_ms)),
        verdicts=tuple(
            ExitVerdict(number, number in chosen.exits, search.saved_ms(chosen, number))
            for number in network.exits[:-1]
        ),
        runtime=estimator.runtime,
        precision=prices.precision,
        basis=prices.basis,
    )


class _Search:
    def __init__(self, network: StagedNodes, estimator: Estimator, configuration: Configuration) -> None:
        self._network, self._estimator, self._configuration = network, estimator, configuration
        self.tried: dict[tuple[int, ...], ExitChoice] = {}

    def price(self, exits: tuple[int, ...]) -> ExitChoice:
        if exits not in self.tried:
            found = self._estimator.predict(self._network, replace(self._configuration, exits=exits))
            self.tried[exits] = ExitChoice(
                exits=exits,
                shares=tuple(entry.share for entry in found.exits),
                latency_ms=found.latency_ms,
                interval_ms=found.interval_ms or (found.latency_ms, found.latency_ms),
                worst_ms=found.exits[-1].latency_ms,
            )
        return self.tried[exits]

    def best(self) -> ExitChoice:
        """The fastest choice; of equally fast ones that with the fewest exits."""
        *early, last = self._network.exits
        if len(early) < _ALL_TRIED:
            choices = [
                (*some, last) for count in range(len(early) + 1) for some in itertools.combinations(early, count)
            ]
            return min(map(self.price, choices), key=lambda choice: (choice.latency_ms, len(choice.exits)))
        best = self.price(self._network.exits)
        while True:
            near = min((self._toggled(best, number) for number in early), key=lambda choice: choice.latency_ms)
            if near.latency_ms >= best.latency_ms:
                return best
            best = near

    def _toggled(self, choice: ExitChoice, number: int) -> ExitChoice:
        """The choice without an exit that it has, or with one that it has not."""
        return self.price(tuple(sorted({*choice.exits} ^ {number})))

    def saved_ms(self, chosen: ExitChoice, number: int) -> float:
        other = self._toggled(chosen, number).latency_ms
        return other - chosen.latency_ms if number in chosen.exits else chosen.latency_ms - other


def is_exit_plan(value: Any) -> bool:
    """Whether JSON is a plan of exits."""
    return isinstance(value, Mapping) and value.get("format") == FORMAT
