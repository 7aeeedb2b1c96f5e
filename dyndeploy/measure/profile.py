"""The result of profiling: raw samples, and everything that follows from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dyndeploy import files
from dyndeploy.bundle import SAVES_NOTHING
from dyndeploy.errors import InputError
from dyndeploy.fields import Document, Field
from dyndeploy.finite import first_not_finite
from dyndeploy.measure.energy import Energy
from dyndeploy.measure.parts import PartTimes, StepTimes
from dyndeploy.measure.samples import Samples
from dyndeploy.precisions import PRECISIONS
from dyndeploy.runtimes.base import ENGINE_RUNTIMES
from dyndeploy.runtimes.native import bodies_note, operator_code

SCHEMA_VERSION = 1
KIND = "measured"

FORCED = "forced"
DATA = "data"

STATIC_NAME = "static twin"
OWN_NAME = "the data's own masks"

_NOTABLE_DIFFERENCE = 0.01
_DOCUMENT = Document("The profile", "Profile the bundle again.", InputError)


@dataclass(frozen=True)
class BlockTimes:
    """One block in both graphs, per run of one batch: the fastest of a few alternating runs, averaged over inputs.

    Attributes:
        name: Block, e.g. ``"layer1.0"``; among the rest ``"stem"``, ``"head"`` and ``"other"``.
        static_ms: In the static twin.
        dynamic_ms: In the dynamic graph, its maskers included.
        ideal_speedup: Static MACs over the MACs that the masks need; None where there are no MACs.
    """

    name: str
    static_ms: float
    dynamic_ms: float
    ideal_speedup: float | None

    @property
    def realised_speedup(self) -> float | None:
        """Static over dynamic time; None where one of them is 0 (fused into another part)."""
        return self.static_ms / self.dynamic_ms if self.static_ms > 0 and self.dynamic_ms > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "static_ms": self.static_ms,
            "dynamic_ms": self.dynamic_ms,
            "ideal_speedup": self.ideal_speedup,
            "realised_speedup": self.realised_speedup,
        }

    @classmethod
    def read(cls, item: Field) -> BlockTimes:
        """Read what :meth:`to_json` wrote."""
        return cls(
            name=item["name"].label(),
            static_ms=item["static_ms"].amount(),
            dynamic_ms=item["dynamic_ms"].amount(),
            ideal_speedup=item["ideal_speedup"].optional(Field.positive),
        )


@dataclass(frozen=True)
class RateResult:
    """The dynamic network at one rate, next to its static twin.

    Attributes:
        rate: Forced rate, or the mean of the measured rates of all masks.
        masks: ``"forced"`` or ``"data"``: who decided.
        mask_rates: Share of active bits by mask.
        samples: Times of the dynamic graph.
        needed_macs: MACs per image that the masks need, averaged over the images.
        ideal_speedup: Static MACs over needed MACs.
        ratios: Static over dynamic time of every round: the twin is timed just before and just after.
        ratio_inputs: Which input each ratio belongs to.
        cpu_ratios: The same from CPU times; None where those are not one thread's.
        blocks: Residual blocks, from a separate run with the runtime's node profile.
        rest: ``"stem"``, ``"head"`` and ``"other"`` (nodes that no name ties to a block).
        overflows: Share of the images by block that kept more than its static shapes have places for, and were computed
            on everything; blocks of a fixed capacity only.
        parts: Of a detector, what :attr:`blocks` and :attr:`rest` add up to.
        steps: Of a network that its target runs in parts, its engines and host programs in order, measured in the
            rounds.
    """

    rate: float
    masks: str
    mask_rates: Mapping[str, float]
    samples: Samples
    needed_macs: float
    ideal_speedup: float
    ratios: tuple[float, ...]
    ratio_inputs: tuple[int, ...]
    cpu_ratios: tuple[float, ...] | None
    blocks: tuple[BlockTimes, ...]
    rest: tuple[BlockTimes, ...]
    overflows: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[PartTimes, ...] = ()
    steps: tuple[StepTimes, ...] = ()

    def part(self, name: str) -> PartTimes | None:
        """A part of a detector, such as ``"backbone"`` (its ``realisation`` is that of the backbone alone); or None."""
        return next((part for part in self.parts if part.name == name), None)

    @property
    def achieved_rate(self) -> float:
        """Mean of the measured rates of all masks: a mask of few positions cannot meet every forced rate exactly."""
        return float(np.mean(list(self.mask_rates.values()))) if self.mask_rates else self.rate

    @property
    def missed(self) -> bool:
        """Whether :attr:`achieved_rate` differs from :attr:`rate` by more than 0.01."""
        return abs(self.achieved_rate - self.rate) > _NOTABLE_DIFFERENCE

    @property
    def name(self) -> str:
        """What two profiles share figures by: ``"rate 0.5 (forced)"``, or the data's own masks."""
        return OWN_NAME if self.masks == DATA else f"rate {self.rate:g} ({FORCED})"

    @property
    def label(self) -> str:
        """The rate for a reader, with the achieved one behind it where the two differ."""
        if self.masks == DATA:
            return f"{self.rate:.3f}"
        return f"{self.rate:g}, achieved {self.achieved_rate:.3g}" if self.missed else f"{self.rate:g}"

    @property
    def realised_speedup(self) -> float:
        """Median ratio of each input; inputs are averaged as times are (harmonic mean)."""
        return typical_ratio(self.ratios, self.ratio_inputs)

    @property
    def realised_speedup_cpu(self) -> float | None:
        """:attr:`realised_speedup` of the CPU times: what remains when other processes are taken out."""
        return None if self.cpu_ratios is None else typical_ratio(self.cpu_ratios, self.ratio_inputs)

    @property
    def realised_spread(self) -> tuple[float, float]:
        """25th and 75th percentile of the ratios of all rounds."""
        low, high = np.percentile(self.ratios, [25, 75])
        return float(low), float(high)

    @property
    def realisation(self) -> float:
        """Realised over ideal speed-up: the part of the skipped computation that became time saved."""
        return self.realised_speedup / self.ideal_speedup

    @property
    def unmapped_share(self) -> dict[str, float]:
        """Share of the node times that no name ties to a block, in the static and in the dynamic graph."""
        parts = (*self.blocks, *self.rest)
        other = [part for part in self.rest if part.name == "other"]
        totals = {"static": sum(p.static_ms for p in parts), "dynamic": sum(p.dynamic_ms for p in parts)}
        unmapped = {"static": sum(p.static_ms for p in other), "dynamic": sum(p.dynamic_ms for p in other)}
        return {key: unmapped[key] / total if total > 0 else 0.0 for key, total in totals.items()}

    def to_json(self, batch: int) -> dict[str, Any]:
        """Plain JSON types; derived figures are written beside the raw ones they follow from."""
        return {
            "rate": self.rate,
            "achieved_rate": self.achieved_rate,
            "masks": self.masks,
            **self.samples.to_json(batch),
            "needed_macs": self.needed_macs,
            "ideal_speedup": self.ideal_speedup,
            "realised_speedup": self.realised_speedup,
            "realised_spread": list(self.realised_spread),
            "realised_speedup_cpu": self.realised_speedup_cpu,
            "realisation": self.realisation,
            "mask_rates": dict(self.mask_rates),
            "unmapped_share": self.unmapped_share,
            "blocks": [block.to_json() for block in self.blocks],
            "rest": [block.to_json() for block in self.rest],
            "ratios": list(self.ratios),
            "ratio_inputs": list(self.ratio_inputs),
            "cpu_ratios": None if self.cpu_ratios is None else list(self.cpu_ratios),
            **({"overflows": dict(self.overflows)} if self.overflows else {}),
            **({"parts": [part.to_json() for part in self.parts]} if self.parts else {}),
            **({"steps": [step.to_json() for step in self.steps]} if self.steps else {}),
        }

    @classmethod
    def read(cls, item: Field) -> RateResult:
        """Read what :meth:`to_json` wrote."""
        result = cls(
            rate=item["rate"].share(),
            masks=item["masks"].one_of(FORCED, DATA),
            mask_rates=item["mask_rates"].mapping(Field.share),
            samples=Samples.read(item),
            needed_macs=item["needed_macs"].amount(),
            ideal_speedup=item["ideal_speedup"].positive(),
            ratios=item["ratios"].sequence(Field.positive, at_least=1),
            ratio_inputs=item["ratio_inputs"].sequence(Field.tally),
            cpu_ratios=item["cpu_ratios"].optional(lambda ratios: ratios.sequence(Field.positive)),
            blocks=item["blocks"].sequence(BlockTimes.read),
            rest=item["rest"].sequence(BlockTimes.read),
            overflows=item.get("overflows").optional(lambda shares: shares.mapping(Field.share)) or {},
            parts=item.get("parts").optional(lambda parts: parts.sequence(PartTimes.read)) or (),
            steps=item.get("steps").optional(lambda steps: steps.sequence(StepTimes.read)) or (),
        )
        for key in ("ratio_inputs", "cpu_ratios"):
            fits = item[key].value is None or len(item[key].value) == len(result.ratios)
            item[key].require(fits, f"a list of {len(result.ratios)}, as ratios is")
        return result


@dataclass(frozen=True)
class Profile:
    """A bundle measured on a machine. Times are milliseconds per run of one batch.

    Attributes:
        bundle: What was measured: network, mode, granularities, target, input size, masks and checksums.
        machine: Facts from :func:`dyndeploy.runtimes.machine.machine_facts`; of a board also ``board``, ``jetpack``,
            ``l4t``, ``power_mode``, ``clocks``, ``sensors``, ``warnings`` and, for a reader, ``device_facts``.
        device: ``"cpu"`` for this machine's processor, the name of the board's target, or of a GPU the name of its
            device model (its own name where there is none).
        runtime: ``name``, ``version`` and ``provider``; ``why`` where it was chosen among several.
        native: ``path`` and ``sha256`` of the operator library (None: function bodies ran), the ``instruction_set``
            that it computed with on a CPU, a ``description``, and the types of the dynamic ``operators`` that the node
            profile saw running natively.
        threads: How many threads a session computes with; 1 on a GPU.
        batch: Images per run.
        settings: Rounds, warm-up, seed, and where the images come from; of engines also ``build_plan``,
            ``graph_note`` (why runs were not launched as a CUDA graph, or empty), ``plugin_layers`` (by node, the
            type, the tactic and the kernels of each plugin) and ``plugin_layers_note`` (why they could not be read from
            the engine, or empty).
        static_macs: MACs per image of the static twin.
        static: Times of the static twin.
        rates: Forced rates.
        data: The masks that the images cause.
        graph: The graphs that were run (:func:`dyndeploy.prediction.bundle_record`); None in profiles of release 0.1.0.
        energy: Millijoules per image by :attr:`RateResult.name`, measured; None where no power sensor was read.
        dynamic_macs: MACs per image of those blocks of the static twin that masks decide on; None in profiles of
            earlier releases.
    """

    bundle: Mapping[str, Any]
    machine: Mapping[str, Any]
    device: str
    runtime: Mapping[str, Any]
    native: Mapping[str, Any]
    threads: int
    batch: int
    settings: Mapping[str, Any]
    static_macs: float
    static: Samples
    rates: tuple[RateResult, ...]
    data: RateResult
    graph: Mapping[str, Any] | None = None
    energy: Energy | None = None
    dynamic_macs: float | None = None

    @property
    def dynamic_share(self) -> float | None:
        """Share of the twin's MACs that stands in blocks that masks decide on; None where that is not known."""
        return None if self.dynamic_macs is None else self.dynamic_macs / self.static_macs

    @property
    def speedup_limit(self) -> float | None:
        """Speed-up if all of :attr:`dynamic_share` cost nothing (Amdahl's law, by MACs); None: unknown or no limit."""
        share = self.dynamic_share
        return None if share is None or share >= 1 else 1 / (1 - share)

    @property
    def dynamic_note(self) -> str:
        """What can be skipped at all, in a sentence; empty where it is not known."""
        share, limit = self.dynamic_share, self.speedup_limit
        if share is None:
            return ""
        bound = "" if limit is None else f"; if all of them cost nothing, the whole would be {limit:.2f}x as fast"
        return f"Dynamic share: {share:.1%} of the twin's MACs stand in blocks that can be skipped{bound}."

    @property
    def reduced_precision(self) -> str | None:
        """What the dynamic bottlenecks compute in, or None where the static twin computes in the same.

        An engine's plan holds for the twin as well; on a CPU the twin is in FP32 whatever the bottlenecks compute in.
        """
        precision = self.bundle.get("precision", "fp32")
        equal = self.runtime.get("name") in ENGINE_RUNTIMES
        # A graph in INT8 has a twin in INT8.
        equal |= precision in PRECISIONS and PRECISIONS[str(precision)].in_graph
        return None if precision == "fp32" or equal else str(precision)

    @property
    def operator_code(self) -> str | None:
        """Which code ran the dynamic operators (:func:`dyndeploy.runtimes.native.operator_code`)."""
        return operator_code(self.bundle.get("operators", ()), self.native)

    @property
    def bodies_note(self) -> str:
        """What the operator library would give, where function bodies ran; else empty."""
        return bodies_note(self.bundle.get("operators", ()), self.native, self.runtime.get("provider"))

    def warnings(self) -> list[str]:
        """What a reader should know before trusting the figures."""
        entries = [(STATIC_NAME, self.static)]
        entries += [(result.name, result.samples) for result in (*self.rates, self.data)]
        shaky = [f"{name} {samples.cov_same_input:.1%}" for name, samples in entries if samples.unstable]
        notes = [f"{note}." for note in self.bundle.get("notes", ()) if SAVES_NOTHING in str(note)]
        if shaky:
            notes.append(
                "Unstable: runs of the same input vary by more than 2.5 %: "
                + ", ".join(shaky)
                + ". Close other programs or give more --repeats; ratios are paired with the twin and suffer less."
            )
        if self.reduced_precision:
            notes.append(
                f"The dynamic bottlenecks compute in {self.reduced_precision}, the static twin in fp32: realised "
                "speed-ups contain what the precision gains, so realisation can exceed 100 %."
            )
        used = {str(name) for name in self.bundle.get("operators", ())}
        in_bodies = sorted(used - set(self.native.get("operators", ())))
        if self.native.get("path") is not None and in_bodies:
            notes.append(f"The operator library does not run {', '.join(in_bodies)}: their function bodies ran.")
        if self.bodies_note:
            notes.append(self.bodies_note)
        missed = [f"{result.rate:g} became {result.achieved_rate:.3g}" for result in self.rates if result.missed]
        if missed:
            notes.append(
                f"Masks of few positions cannot meet every forced rate: {', '.join(missed)} (mean over all masks). "
                "Ideal and realised speed-ups are those of the masks that ran."
            )
        worst = max((max(r.unmapped_share.values()) for r in (*self.rates, self.data)), default=0.0)
        if worst > 0.05:
            notes.append(f"Up to {worst:.0%} of the node times could not be tied to a block (part 'other').")
        if self.settings.get("graph_note"):
            why = str(self.settings["graph_note"]).rstrip(".")
            notes.append(f"Runs were not launched as a CUDA graph: {why}. The launch of every kernel is paid for.")
        if self.settings.get("plugin_layers_note"):
            why = str(self.settings["plugin_layers_note"]).rstrip(".")
            notes.append(f"The plugins may not have run in the precision of the plan: {why}.")
        return [*notes, *self.machine.get("warnings", ())]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (see ``docs/profiling.md``)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "bundle": dict(self.bundle),
            "machine": dict(self.machine),
            "device": self.device,
            "runtime": dict(self.runtime),
            "native": dict(self.native),
            "threads": self.threads,
            "batch": self.batch,
            "settings": dict(self.settings),
            "static_macs": self.static_macs,
            "dynamic_macs": self.dynamic_macs,
            "dynamic_share": self.dynamic_share,
            "static": self.static.to_json(self.batch),
            "rates": [result.to_json(self.batch) for result in self.rates],
            "data": self.data.to_json(self.batch),
            "graph": self.graph,
            "energy": None if self.energy is None else self.energy.to_json(),
            "warnings": self.warnings(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Profile:
        """Read what :meth:`to_json` wrote; statistics are derived again from the raw samples.

        Raises:
            InputError: Not a profile, another schema version, a field missing or malformed, or a NaN.
        """
        if not isinstance(value, dict) or value.get("kind") != KIND or "static" not in value:
            raise InputError("This is no profile. Write one with 'dyndeploy profile BUNDLE --json FILE'.")
        if value.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"The profile has schema version {value.get('schema_version')!r}; this release reads version "
                f"{SCHEMA_VERSION}. Profile the bundle again with this release."
            )
        bad = first_not_finite(value, "profile")
        if bad:
            raise InputError(f"{bad} is NaN or infinite: the profile is damaged. Profile the bundle again.")
        root = _DOCUMENT.root(value)
        return cls(
            bundle=_facts(root["bundle"], _BUNDLE_FACTS),
            machine=read_machine(root["machine"]),
            device=root["device"].label(),
            runtime=_facts(root["runtime"], _RUNTIME_FACTS),
            native=read_native(root["native"]),
            threads=root["threads"].tally(1),
            batch=root["batch"].tally(1),
            settings=_facts(root["settings"], _SETTINGS_FACTS),
            static_macs=root["static_macs"].positive(),
            static=Samples.read(root["static"]),
            rates=root["rates"].sequence(RateResult.read),
            data=RateResult.read(root["data"]),
            graph=root.get("graph").optional(Field.facts),
            energy=root.get("energy").optional(Energy.read),
            dynamic_macs=root.get("dynamic_macs").optional(Field.amount),
        )


Reader = Callable[[Field], Any]


def read_machine(item: Field) -> dict[str, Any]:
    """Facts about a machine as a report shows them."""
    return _facts(item, _MACHINE_FACTS)


def read_native(item: Field) -> dict[str, Any]:
    """Facts about an operator library as a report shows them."""
    return _facts(item, _NATIVE_FACTS)


def _facts(item: Field, types: Mapping[str, Reader]) -> dict[str, Any]:
    """An object of facts for the reader; any of them may be missing."""
    facts = item.facts()
    for key, read in types.items():
        if key in facts:
            read(item[key])
    return facts


def _optional(read: Reader) -> Reader:
    """A reader that lets None pass: what a machine does not tell is None."""
    return lambda item: item.optional(read)


def _labels(item: Field) -> tuple[str, ...]:
    return item.sequence(Field.label)


def _versions(item: Field) -> dict[str, str | None]:
    return item.mapping(lambda version: version.optional(Field.label))


def _image_source(item: Field) -> None:
    item["source"].label()
    item["count"].tally(1)


# What a report shows, by its type; the rest of these objects is only carried along.
_BUNDLE_FACTS: Mapping[str, Reader] = {
    "name": Field.label,
    "mode": Field.label,
    "operators": _labels,
    "tools": _versions,
    "notes": _labels,
}
_MACHINE_FACTS: Mapping[str, Reader] = {
    **dict.fromkeys(("cpu", "gpu", "architecture", "os", "governor", "python", "date"), _optional(Field.label)),
    **dict.fromkeys(("memory_gb", "frequency_mhz"), _optional(Field.amount)),
    **dict.fromkeys(("physical_cores", "logical_cores"), _optional(Field.tally)),
    "isa": _labels,
    "warnings": _labels,
    "device_facts": lambda item: item.mapping(Field.label),
    "load_average": _optional(lambda item: item.sequence(Field.amount)),
    "versions": _versions,
}
_RUNTIME_FACTS: Mapping[str, Reader] = dict.fromkeys(("name", "version", "provider", "why"), Field.label)
_NATIVE_FACTS: Mapping[str, Reader] = {
    "path": _optional(Field.label),
    "sha256": _optional(Field.label),
    "instruction_set": _optional(Field.label),
    "description": Field.label,
    "operators": _labels,
}
_SETTINGS_FACTS: Mapping[str, Reader] = {
    "rounds": Field.tally,
    "warmup": Field.tally,
    "seed": Field.amount,
    "images": _image_source,
    "image_batches": Field.tally,
    "mask_draws": Field.tally,
    "graph_note": Field.label,
    "plugin_layers": lambda item: item.mapping(Field.facts),
    "plugin_layers_note": Field.label,
}


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile from a JSON file.

    Raises:
        InputError: The file is missing, is not JSON, or is no profile; the message names it.
    """
    value = files.read_json(path)
    try:
        return Profile.from_json(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def typical_ratio(ratios: Sequence[float], inputs: Sequence[int]) -> float:
    """Median ratio of each input; inputs are averaged as times are (harmonic mean)."""
    array, labels = np.asarray(ratios), np.asarray(inputs)
    medians = np.array([np.median(array[labels == label]) for label in sorted(set(inputs))])
    return float(len(medians) / (1.0 / medians).sum())
