"""The reference predictor (LAUDNet's, as published or repaired): networks, blocks and lists of operators."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from dyndeploy.bundle import Bundle
from dyndeploy.errors import BundleError, UsageError, unknown_name
from dyndeploy.ops.gates import BLOCK, CHANNEL, PATCH
from dyndeploy.prediction.densities import BusiestTile, ExpectedBusiestTile, SampledBusiestTile, union
from dyndeploy.prediction.laudnet.blocks import MODES, BlockPlan, block_operators, network_ends
from dyndeploy.prediction.laudnet.cost import CostModel
from dyndeploy.prediction.laudnet.fixes import Fix, fixes_for
from dyndeploy.prediction.laudnet.network_spec import BlockSpec, MaskerSpec, NetworkSpec, network_spec
from dyndeploy.prediction.laudnet.operators import KINDS, Operator, check_attributes
from dyndeploy.prediction.laudnet.transformers import (
    TransformerSpec,
    head_operators,
    is_transformer_name,
    module_operators,
    transformer_block_operators,
    transformer_rates,
    transformer_spec,
)
from dyndeploy.prediction.rates import RateLike, Rates, block_rates, checked_rates
from dyndeploy.prediction.results import BlockPrediction, Coverage, OperatorPrediction, Prediction
from dyndeploy.targets.devices import Device, load_device

_T = TypeVar("_T")

FOUR_STAGES = (4, 4, 2, 1)
CHANNELS_PER_GROUP = 2
USUAL_RATE = 0.5
_RESIDUAL_RATES = (PATCH.name, CHANNEL.name, BLOCK.name, "conv1", "conv2", f"{CHANNEL.name}_slowest")


class Predictor:
    """Predicts latencies on one device at one batch size; remembers every operator it has priced.

    Args:
        device: A device model or its name.
        batch: Images per batch; the device's usual batch (1 or 128) when ``None``.
        compat: ``"laudnet"`` reproduces the reference code with all its quirks; ``None`` repairs them.
        mem_concurrent: Floats per memory sector, 8 or 1 (1 switches the sector model off); the device's own
            when ``None``.
        seed: Replay the reference's random channel densities from this seed (slow; only with
            ``compat="laudnet"``). ``None`` takes their expectation.

    Raises:
        UsageError: Unknown device or ``compat``, or a value out of range.

    Reference:
        Han et al., "Latency-aware Unified Dynamic Networks for Efficient Image Recognition", section on
        latency prediction, and its code.
    """

    def __init__(
        self,
        device: str | Device,
        *,
        batch: int | None = None,
        compat: str | None = None,
        mem_concurrent: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.device = load_device(device) if isinstance(device, str) else device
        parameters = self.device.reference()
        self.batch = parameters.batch_size if batch is None else batch
        self.compat = compat
        self.seed = seed
        self.fixes = fixes_for(compat)
        if not is_size(self.batch):
            raise UsageError(f"The batch size must be a positive whole number, not {self.batch}.")
        self.batch = int(self.batch)
        if mem_concurrent is not None and mem_concurrent < 1:
            raise UsageError(f"mem_concurrent must be at least 1 float per sector, not {mem_concurrent}.")
        if seed is not None and compat != "laudnet":
            raise UsageError("A seed replays the reference's random numbers: give it with compat='laudnet' only.")
        if seed is not None and not 0 <= seed < 2**32:
            raise UsageError(f"The seed must lie in [0, 2^32), not {seed}.")
        self.mem_concurrent = mem_concurrent or parameters.mem_concurrent_fp32
        busiest: BusiestTile = ExpectedBusiestTile() if seed is None else SampledBusiestTile(seed)
        self._model = CostModel(parameters, self.fixes, busiest, self.mem_concurrent)
        self._operators: dict[tuple[object, ...], OperatorPrediction] = {}
        self._plans: dict[BlockPlan, tuple[OperatorPrediction, ...]] = {}

    def predict_network(
        self,
        network: str | NetworkSpec,
        *,
        mode: str | Sequence[str] = "static",
        granularity: int | Sequence[int] | None = None,
        channel_granularity: int | Sequence[int] = CHANNELS_PER_GROUP,
        rate: RateLike = USUAL_RATE,
        input_size: tuple[int, int] | None = None,
        extra_operators: Iterable[Operator] = (),
    ) -> Prediction:
        """Predict a whole network.

        Args:
            network: A registered or published name, or a :class:`NetworkSpec`.
            mode: ``static``, ``spatial``, ``channel``, ``layer`` or ``both``, for all stages or one per stage.
            granularity: Side of a spatial patch, for all stages or one per stage. ``None``: 4, 4, 2, 1 for a
                network of four stages, as the networks are built by default, and 1 for any other.
            channel_granularity: Channels per dynamic group, for all stages or one per stage.
            rate: Activation rate of every mask of every block, or one entry per block; a
                :class:`~dyndeploy.prediction.laudnet.blocks.Rates` states measured densities mask by mask.
            input_size: (height, width) for a name, ``None`` takes the network's usual one; a :class:`NetworkSpec`
                has its own.
            extra_operators: Operators outside the description, priced in a part called "extra". Kinds that the
                predictor does not know are named in the coverage and have no latency.

        Returns:
            The prediction. With ``compat="laudnet"`` it covers the residual blocks only, as the reference does.

        Raises:
            UsageError: Unknown name or mode, a rate outside [0, 1], or a list of the wrong length.
        """
        if isinstance(network, NetworkSpec):
            if input_size is not None and tuple(input_size) != network.input_size:
                raise UsageError("A network description has its own input size: do not give another one.")
            spec = network
        else:
            spec = network_spec(network, None if input_size is None else (input_size[0], input_size[1]))
        stages = len(spec.stages)
        modes = per_stage_modes(mode, stages)
        for name in modes:
            self._check_mode(name)
        if granularity is None:
            granularity = FOUR_STAGES if stages == len(FOUR_STAGES) else 1
        granularities = per_stage_sizes("granularity", granularity, stages)
        channel_granularities = per_stage_sizes("channel_granularity", channel_granularity, stages)
        rates = block_rates(rate, len(spec.blocks))

        parts = [
            self.predict_block(
                block,
                mode=modes[stage],
                granularity=granularities[stage],
                channel_granularity=channel_granularities[stage],
                rate=own,
                masker=spec.maskers[stage],
            )
            for block, stage, own in zip(spec.blocks, spec.stage_of_block, rates, strict=True)
        ]
        if Fix.STEM_AND_HEAD in self.fixes:
            before, after = network_ends(spec)
            parts = [
                *([self.predict_operators(before, name="stem")] if before else []),
                *parts,
                *([self.predict_operators(after, name="head")] if after else []),
            ]
        return self._prediction(
            spec.name, spec.input_size, modes, granularities, channel_granularities, parts, tuple(extra_operators)
        )

    def _prediction(
        self,
        name: str,
        input_size: tuple[int, int],
        modes: tuple[str, ...],
        granularities: tuple[int, ...],
        channel_granularities: tuple[int, ...],
        parts: list[BlockPrediction],
        extra_operators: tuple[Operator, ...],
    ) -> Prediction:
        if extra_operators:
            parts = [*parts, self.predict_operators(extra_operators, name="extra")]
        latency = math.fsum(part.latency_ms for part in parts)
        return Prediction(
            network=name,
            device=self.device.name,
            mode=modes,
            granularity=granularities,
            channel_granularity=channel_granularities,
            batch=self.batch,
            input_size=input_size,
            compat=self.compat,
            fixes=tuple(fix.value for fix in Fix if fix in self.fixes),
            mem_concurrent=self.mem_concurrent,
            seed=self.seed,
            latency_ms=latency,
            latency_batch_ms=latency * self.batch,
            blocks=tuple(parts),
            coverage=_coverage(parts),
        )

    def predict_transformer(
        self,
        network: str | TransformerSpec,
        *,
        mode: str = "static",
        rate: RateLike | None = None,
        extra_operators: Iterable[Operator] = (),
    ) -> Prediction:
        """Predict a T2T vision transformer as the published simulator does, its T2T module and classifier included.

        Args:
            network: ``ada_t2t_vit_14`` or ``ada_t2t_vit_19``, or a description.
            mode: ``static``, ``token``, ``head``, ``layer`` (attention and MLP apart) or ``all``.
            rate: One number for all that the mode skips, or
                ``Rates(token=..., head=..., attention=..., mlp=...)``; what is left out is 1. One per block does as
                well, though the simulator itself knows one for all.
            extra_operators: As in :meth:`predict_network`.

        Raises:
            UsageError: Without ``compat="laudnet"``; an unknown name or mode; a rate outside [0, 1], of something
                that the mode does not skip, or that leaves no token or head.
        """
        if self.compat != "laudnet":
            raise UsageError(
                "The reference predictor knows transformers as published only, with compat='laudnet'. The kernel "
                "predictor prices them from their graphs."
            )
        spec = transformer_spec(network) if isinstance(network, str) else network
        if isinstance(rate, Sequence):
            own = [transformer_rates(mode, entry) for entry in block_rates(rate, spec.depth)]
        else:
            own = [transformer_rates(mode, None if rate is None else checked_rates(rate))] * spec.depth
        parts = [self.predict_operators(module_operators(spec), name="tokens_to_token")]
        for index, rates in enumerate(own):
            priced = tuple(self._price(operator) for operator in transformer_block_operators(spec, mode, rates))
            parts.append(BlockPrediction(f"blocks.{index}", mode, rates, _sum(priced), priced))
        parts.append(self.predict_operators(head_operators(spec), name="head"))
        return self._prediction(spec.name, spec.input_size, (mode,), (), (), parts, tuple(extra_operators))

    def predict_block(
        self,
        block: BlockSpec,
        *,
        mode: str = "static",
        granularity: int = 1,
        channel_granularity: int = 1,
        rate: float | Rates = 0.5,
        masker: MaskerSpec | None = None,
    ) -> BlockPrediction:
        """Predict one residual block.

        Args:
            block: Its shapes.
            mode: One of static, spatial, channel, layer, both.
            granularity: Side of a spatial patch on the block's output map.
            channel_granularity: Channels per dynamic group.
            rate: Activation rate of its masks.
            masker: How its masks are made.

        Raises:
            UsageError: Unknown mode, or a value out of range.
        """
        self._check_mode(mode)
        if granularity < 1 or channel_granularity < 1:
            raise UsageError(f"Block '{block.name}': granularities must be positive.")
        rates = checked_rates(rate)
        plan = BlockPlan(
            dataclasses.replace(block, name=""),
            mode,
            granularity,
            channel_granularity,
            rates,
            masker or MaskerSpec(),
        )
        operators = self._plans.get(plan)
        if operators is None:
            operators = tuple(self._price(operator) for operator in block_operators(plan, self.fixes))
            self._plans[plan] = operators
        return BlockPrediction(block.name, mode, stated_rates(mode, rates), _sum(operators), operators)

    def predict_operators(self, operators: Iterable[Operator], *, name: str = "operators") -> BlockPrediction:
        """Predict a list of operators, e.g. of a network that is no residual network.

        Args:
            operators: Descriptions; an operator of unknown kind gets no latency, and is named in coverage.
            name: Name of the part.

        Raises:
            UsageError: An operator of a known kind has wrong attributes.
        """
        priced = []
        for operator in operators:
            if operator.kind in KINDS:
                check_attributes(operator)
            priced.append(self._price(operator))
        return BlockPrediction(name, "static", {}, _sum(priced), tuple(priced))

    def _check_mode(self, mode: str) -> None:
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if mode == "both" and self.compat == "laudnet":
            raise UsageError(
                "The LAUDNet reference predictor composes no mode 'both'. Predict it without compat='laudnet'."
            )

    def _price(self, operator: Operator) -> OperatorPrediction:
        kind = KINDS.get(operator.kind)
        if kind is None:
            return OperatorPrediction(operator.name, operator.kind, None, None, None, None, operator.macs)
        key = (operator.kind, operator.active, operator.macs, tuple(sorted(operator.attributes.items())))
        known = self._operators.get(key)
        if known is None:
            batch: float = self.batch
            share = operator.active
            if share < 1.0 and Fix.LAYER_BATCH in self.fixes:
                # The batch that runs: nothing with probability 1 - share, else the mean number of active images.
                share = union(operator.active, batch)
                batch = batch * operator.active / share if share > 0.0 else 1.0
            cost = kind.price(self._model, batch, **operator.attributes).scaled(share)
            per_image = 1e3 / self.batch
            macs = kind.macs(operator.attributes) * operator.active if operator.macs is None else operator.macs
            known = OperatorPrediction(
                operator.name,
                operator.kind,
                cost.total * per_image,
                cost.compute * per_image,
                cost.memory * per_image,
                cost.launch * per_image,
                macs,
            )
            self._operators[key] = known
        return known if known.name == operator.name else dataclasses.replace(known, name=operator.name)


def predict_network(
    network: str | NetworkSpec | TransformerSpec,
    *,
    mode: str | Sequence[str] = "static",
    granularity: int | Sequence[int] | None = None,
    channel_granularity: int | Sequence[int] | None = None,
    rate: RateLike | None = None,
    device: str | Device,
    batch: int | None = None,
    compat: str | None = None,
    mem_concurrent: int | None = None,
    seed: int | None = None,
    input_size: tuple[int, int] | None = None,
    extra_operators: Iterable[Operator] = (),
) -> Prediction:
    """Predict the latency of a network on a device model.

    See :class:`Predictor`, :meth:`Predictor.predict_network` and, for a transformer,
    :meth:`Predictor.predict_transformer` for the arguments. ``rate=None`` is 0.5, of a transformer 1. To predict
    many configurations on one device, keep a :class:`Predictor`: it remembers the operators it has priced.

    Example:
        >>> prediction = predict_network("laud_resnet50", mode="spatial", rate=0.5, device="v100")
        >>> prediction.kind
        'predicted'
    """
    predictor = Predictor(device, batch=batch, compat=compat, mem_concurrent=mem_concurrent, seed=seed)
    if isinstance(network, TransformerSpec) or (isinstance(network, str) and is_transformer_name(network)):
        one = (mode,) if isinstance(mode, str) else tuple(mode)
        if len(one) != 1 or granularity is not None or channel_granularity is not None:
            raise UsageError("A transformer has one mode for all blocks, and no granularities.")
        if input_size is not None and tuple(input_size) != TransformerSpec.input_size:
            raise UsageError("The published simulator prices transformers at 224x224 only: leave the input size out.")
        return predictor.predict_transformer(network, mode=one[0], rate=rate, extra_operators=extra_operators)
    for entry in rate if isinstance(rate, Sequence) else (rate,):
        for name, _ in entry.named if isinstance(entry, Rates) else ():
            if name not in _RESIDUAL_RATES:
                raise unknown_name("rate of a residual network", name, _RESIDUAL_RATES)
    return predictor.predict_network(
        network,
        mode=mode,
        granularity=granularity,
        channel_granularity=CHANNELS_PER_GROUP if channel_granularity is None else channel_granularity,
        rate=USUAL_RATE if rate is None else rate,
        input_size=input_size,
        extra_operators=extra_operators,
    )


def bundle_spec(bundle: Bundle, input_size: tuple[int, int] | None) -> NetworkSpec:
    """The network that a bundle describes.

    Raises:
        BundleError: It describes none.
        UsageError: Another input size than the bundle's.
    """
    try:
        spec = NetworkSpec.from_json(bundle.manifest.network_spec)
    except UsageError as error:
        raise BundleError(
            f"The bundle {bundle.path} does not describe its network: {error} Export it again."
        ) from error
    if input_size is not None and tuple(input_size) != spec.input_size:
        raise UsageError(
            f"The bundle {bundle.path} was exported for {spec.input_size[0]}x{spec.input_size[1]} images. Leave the "
            "input size out, or predict the network by its name."
        )
    return spec


def predict_bundle(
    bundle: Bundle,
    *,
    device: str | Device,
    rate: RateLike = USUAL_RATE,
    mode: str | Sequence[str] | None = None,
    granularity: int | Sequence[int] | None = None,
    channel_granularity: int | Sequence[int] | None = None,
    batch: int | None = None,
    compat: str | None = None,
    mem_concurrent: int | None = None,
    seed: int | None = None,
    input_size: tuple[int, int] | None = None,
    extra_operators: Iterable[Operator] = (),
) -> Prediction:
    """Predict the network of a bundle, configured as it was exported.

    Args:
        bundle: Its manifest describes the network; no other file of it is read.
        device: A device model or its name.
        rate: As in :meth:`Predictor.predict_network`.
        mode: Instead of the bundle's.
        granularity: Instead of the bundle's.
        channel_granularity: Instead of the bundle's.
        batch: Instead of the bundle's.
        compat: As in :class:`Predictor`.
        mem_concurrent: As in :class:`Predictor`.
        seed: As in :class:`Predictor`.
        input_size: Only the bundle's own is possible; any other is refused.
        extra_operators: As in :meth:`Predictor.predict_network`.

    Raises:
        BundleError: The bundle does not describe its network.
        UsageError: As :func:`predict_network`, or another input size than the bundle's.
    """
    manifest = bundle.manifest
    if manifest.exits is not None:
        raise UsageError(
            f"{manifest.network.name} in {bundle.path} exits early, and its stages are not described to the predictor. "
            "'dyndeploy profile' measures them on this machine."
        )
    spec = bundle_spec(bundle, input_size)
    network = manifest.network
    return predict_network(
        spec,
        mode=tuple(network.mode.split("-")) if mode is None else mode,
        granularity=network.granularity if granularity is None else granularity,
        channel_granularity=network.channel_granularity if channel_granularity is None else channel_granularity,
        rate=rate,
        device=device,
        batch=manifest.batch if batch is None else batch,
        compat=compat,
        mem_concurrent=mem_concurrent,
        seed=seed,
        extra_operators=extra_operators,
    )


def per_stage_modes(value: str | Sequence[str], stages: int) -> tuple[str, ...]:
    """Mode of each stage; raises ``UsageError`` for a list of the wrong length."""
    return _one_per_stage("mode", (value,) if isinstance(value, str) else tuple(value), stages)


def per_stage_sizes(what: str, value: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """Size of each stage; raises ``UsageError`` for a list of the wrong length or a size below 1."""
    sizes = _one_per_stage(what, tuple(value) if isinstance(value, Sequence) else (value,), stages)
    for size in sizes:
        if not is_size(size):
            raise UsageError(f"{what} must be positive whole numbers, not {size!r}.")
    return tuple(int(size) for size in sizes)


def _one_per_stage(what: str, values: tuple[_T, ...], stages: int) -> tuple[_T, ...]:
    if len(values) == 1:
        return values * stages
    if len(values) != stages:
        raise UsageError(f"{what} has {len(values)} entries, the network has {stages} stages: give 1 or {stages}.")
    return values


def is_size(value: object) -> bool:
    """Whether ``value`` is a whole number of at least 1."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def stated_rates(mode: str, rates: Rates) -> dict[str, float]:
    """The rates that matter in a mode, by mask."""
    stated: dict[str, float] = {}
    if mode in ("spatial", "both", "layer"):
        stated["spatial"] = float(rates.spatial)
    if mode in ("spatial", "both"):
        measured = {name: rates.get(name) for name in ("conv1", "conv2")}
        stated |= {name: float(rate) for name, rate in measured.items() if rate is not None}
    if mode in ("channel", "both"):
        stated["channel"] = float(rates.channel)
    return stated


def _sum(operators: Iterable[OperatorPrediction]) -> float:
    return math.fsum(o.latency_ms for o in operators if o.latency_ms is not None)


def _coverage(parts: Sequence[BlockPrediction]) -> Coverage:
    operators = [(part, operator) for part in parts for operator in part.operators]
    unknown = [(part, operator) for part, operator in operators if operator.latency_ms is None]
    by_flops: float | None = 1.0
    if unknown:
        missing = [operator.macs for _, operator in unknown if operator.macs is not None]
        total = math.fsum(operator.macs or 0.0 for _, operator in operators)
        complete = len(missing) == len(unknown) and total > 0
        by_flops = 1.0 - math.fsum(missing) / total if complete else None
    return Coverage(
        by_count=1.0 - len(unknown) / len(operators),
        by_flops=by_flops,
        operators=len(operators),
        unknown=tuple(f"{part.name}.{operator.name} ({operator.kind})" for part, operator in unknown),
    )
