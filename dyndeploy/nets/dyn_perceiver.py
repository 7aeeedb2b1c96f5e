"""Dynamic Perceiver: a convolutional network and a branch of latent tokens with four exits.

Reference: "Dynamic Perceiver for Efficient Visual Recognition" (Han et al., ICCV 2023) and its reference code,
whose parameter and buffer names the networks have. The computation is written once, as a chain of named steps
(:class:`Step`); the network runs all of them, a :class:`Segment` those that one exit adds to the earlier ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks.exits import Segment, checked_exits
from dyndeploy.errors import UsageError
from dyndeploy.nets.backbone import Backbone
from dyndeploy.nets.checkpoint_rules import CheckpointRules, joined
from dyndeploy.nets.mobilenet_v3 import mobilenet_v3_large
from dyndeploy.nets.perceiver import (
    CrossAttentionLayer,
    SelfAttentionLayer,
    as_map,
    as_tokens,
    average_pool,
    token_expander,
    token_mixer,
)
from dyndeploy.nets.registry import IMAGENET, SMALL_32, register_model
from dyndeploy.nets.regnet import regnet, trunk
from dyndeploy.nets.resnet import Architecture, BasicBlock, Bottleneck, resnet
from dyndeploy.nets.results import ExitOutput, NetworkFacts

EXITS = 4
IMAGES = "images"
SELF_ATTENTIONS = (3, 3, 9, 3)
"""Self-attention layers per stage and unit of depth_factor."""
Z2X_REDUCTION = 8
"""Channels of a map per channel of its attention to the latents."""
PARTS = {
    "with_x2z": "cross_att2_x2z",
    "with_z2x": "cross_att2_z2x",
    "with_dwc": "dwc1_x2z",
    "with_last_ca": "last_cross_att_z2x",
    "with_isc": "isc3",
}
"""Options that can be switched off, and a module that only exists where they are on."""

_FAMILY = "dyn_perceiver"
_STAGES = 4


@dataclass(frozen=True)
class DynPerceiverConfig:
    """Every option of a Dynamic Perceiver. The defaults of a registered network are those of its published weights.

    Attributes:
        num_classes: Classes, of all four exits.
        num_sa_heads: Heads of the self-attention in stages 1 to 4; each divides its stage's channels.
        sa_widening_factor: Hidden width of the self-attention layers' MLPs over their channels.
        depth_factor: Multiplies the number of self-attention layers (3, 3, 9, 3) of the stages.
        dropout: Rate of dropout on all attention matrices and both branches of every attention layer.
        drop_rate: Rate of dropout before the last layer of exit 3, and of exit 4 where that has a hidden layer
            or reads the features of exit 3.
        drop_path_rate: Stochastic depth of the last residual block, rising linearly from 0; ResNets only.
        with_x2z: Latents attend to the maps in stages 2 to 4; stage 1 always does.
        with_z2x: Maps attend to the latents in stages 2 to 4.
        with_dwc: A 7x7 depthwise convolution is added to a map before it is pooled for the latents.
        with_last_ca: The last map attends to the latents before exit 4.
        with_isc: Exits 2 and 4 read the logits of exits 1 and 2 ("inter-stage connection").
    """

    num_classes: int = 1000
    num_sa_heads: Sequence[int] = (1, 2, 4, 8)
    sa_widening_factor: int = 4
    depth_factor: Sequence[int] = (1, 1, 1, 1)
    dropout: float = 0.0
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    with_x2z: bool = True
    with_z2x: bool = True
    with_dwc: bool = True
    with_last_ca: bool = True
    with_isc: bool = True

    def __post_init__(self) -> None:
        """Check every value that can be checked without the architecture.

        Raises:
            UsageError: Naming the option, its value and what is valid.
        """
        for name in ("num_classes", "sa_widening_factor"):
            _check_whole(name, getattr(self, name), 1)
        for name, least in (("num_sa_heads", 1), ("depth_factor", 0)):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) != _STAGES:
                raise UsageError(f"{name}={values!r} is not valid: give four whole numbers, one per stage.")
            for value in values:
                _check_whole(name, value, least)
            object.__setattr__(self, name, tuple(values))
        for name in ("dropout", "drop_rate", "drop_path_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise UsageError(f"{name}={value!r} is not valid: give a number from 0 to below 1.")
        for name in PARTS:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r} is not valid: give True or False.")

    def as_dict(self) -> dict[str, Any]:
        """Return all options as plain JSON types; ``create_model(name, **config.as_dict())`` rebuilds."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r} is not valid: give whole numbers of at least {least}.")


@dataclass(frozen=True)
class PerceiverArchitecture:
    """The fixed part of a Dynamic Perceiver.

    Attributes:
        backbone: Builds the convolutional network, given the rate of stochastic depth.
        kind: "regnet", "mobilenet_v3" or "resnet".
        num_latents: Latent tokens of stage 1; every later stage has half of the one before.
        grid: Rows and columns to which a map is pooled for the latents.
    """

    backbone: Callable[[float], Backbone]
    kind: str
    num_latents: int
    grid: int = 7

    def tokens(self) -> tuple[int, ...]:
        """Return the latent tokens of each stage."""
        return tuple(self.num_latents >> stage for stage in range(_STAGES))


class Step(NamedTuple):
    """One named value of the computation.

    Attributes:
        output: Its name.
        inputs: Names of the values that it is computed from.
        modules: Dotted names of the submodules and parameters that it uses.
        run: Computes it from their owner and the inputs.
    """

    output: str
    inputs: tuple[str, ...]
    modules: tuple[str, ...]
    run: Callable[..., Tensor]


def _run_stem(net: nn.Module, images: Tensor) -> Tensor:
    return _call(net, "cnn_stem", images)


def _run_stage(path: str, net: nn.Module, x: Tensor) -> Tensor:
    return _call(net, path, x)


def _run_mix(index: int, net: nn.Module, z: Tensor) -> Tensor:
    mixed = _call(net, f"token_mixer.{index}", z.transpose(1, 2)).transpose(1, 2)
    return _call(net, f"token_expander.{index}", mixed)


def _run_z2x(path: str, net: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    tokens: Tensor = net.get_submodule(path)(as_tokens(x), z)
    return as_map(tokens, x.shape[2], x.shape[3])


def _run_latents(stage: int, grid: int, dwc: bool, net: nn.Module, x: Tensor, z: Tensor | None = None) -> Tensor:
    y = x + _call(net, f"dwc{stage}_x2z", x) if dwc else x
    query = net.get_parameter("latent")[None] if z is None else z
    read: Tensor = net.get_submodule(f"cross_att{stage}_x2z")(query, as_tokens(average_pool(y, grid)))
    return _run_self_attention(stage, net, read)


def _run_self_attention(stage: int, net: nn.Module, z: Tensor) -> Tensor:
    return _call(net, f"self_att{stage}", z)


def _run_early_exit(net: nn.Module, z: Tensor) -> Tensor:
    return _call(net, "early_classifier3", z.mean(1))


def _run_attention_exit(net: nn.Module, z: Tensor, earlier: Tensor | None = None) -> Tensor:
    features = z.mean(1)
    if earlier is not None:
        features = torch.cat([features, F.relu(_call(net, "isc3", earlier))], 1)
    return _call(net, "classifier_att", features)


def _run_features(rate: float, net: nn.Module, x: Tensor) -> Tensor:
    features = x.mean((2, 3))
    return F.dropout(features, rate) if rate and net.training else features


def _run_merged_features(net: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    return _run_z2x("last_cross_att_z2x", net, x, z).mean((2, 3))


def _run_convolution_exit(net: nn.Module, features: Tensor) -> Tensor:
    return _call(net, "classifier_cnn", features)


def _run_merging_exit(net: nn.Module, features: Tensor, z: Tensor, earlier: Tensor | None = None) -> Tensor:
    parts = [features, z.mean(1)]
    if earlier is not None:
        parts.append(F.relu(_call(net, "isc4", earlier)))
    return _call(net, "classifier_merge", torch.cat(parts, 1))


def _call(net: nn.Module, path: str, x: Tensor) -> Tensor:
    y: Tensor = net.get_submodule(path)(x)
    return y


def _steps(
    config: DynPerceiverConfig, architecture: PerceiverArchitecture, stage_paths: Sequence[str]
) -> tuple[Step, ...]:
    """Return the whole computation in the reference code's order; logits1 to logits4 are the exits."""

    def latents(stage: int, x: str, z: str | None) -> Step:
        if z is not None and not config.with_x2z:
            return Step(f"z{stage}", (z,), (f"self_att{stage}",), partial(_run_self_attention, stage))
        modules = [f"cross_att{stage}_x2z", f"self_att{stage}"]
        modules += [f"dwc{stage}_x2z"] if config.with_dwc else []
        modules += ["latent"] if z is None else []
        run = partial(_run_latents, stage, architecture.grid, config.with_dwc)
        return Step(f"z{stage}", (x,) if z is None else (x, z), tuple(modules), run)

    steps = [Step("x0", (IMAGES,), ("cnn_stem",), _run_stem), latents(1, "x0", None)]
    source = "x0"
    for index in range(1, _STAGES):
        stage, path = index + 1, stage_paths[index - 1]
        x, z = f"x{index}", f"m{stage}"
        convolved = f"c{index}" if config.with_z2x else x
        mixing = (f"token_mixer.{index - 1}", f"token_expander.{index - 1}")
        steps.append(Step(convolved, (source,), (path,), partial(_run_stage, path)))
        steps.append(Step(z, (f"z{index}",), mixing, partial(_run_mix, index - 1)))
        if config.with_z2x:
            attention = f"cross_att{stage}_z2x"
            steps.append(Step(x, (convolved, z), (attention,), partial(_run_z2x, attention)))
        steps.append(latents(stage, x, z))
        if stage == 3:
            steps.append(Step("logits1", ("z3",), ("early_classifier3",), _run_early_exit))
        source = x

    isc = config.with_isc
    last, rate = stage_paths[3], config.drop_rate if architecture.kind != "mobilenet_v3" else 0.0
    steps += [
        Step(
            "logits2",
            ("z4", "logits1") if isc else ("z4",),
            ("isc3", "classifier_att") if isc else ("classifier_att",),
            _run_attention_exit,
        ),
        Step("x4", (source,), (last,), partial(_run_stage, last)),
        Step("f3", ("x4",), (), partial(_run_features, rate)),
        Step("logits3", ("f3",), ("classifier_cnn",), _run_convolution_exit),
    ]
    merged = "f3"
    if config.with_last_ca:
        merged = "f4"
        steps.append(Step(merged, ("x4", "z4"), ("last_cross_att_z2x",), _run_merged_features))
    steps.append(
        Step(
            "logits4",
            (merged, "z4", "logits2") if isc else (merged, "z4"),
            ("isc4", "classifier_merge") if isc else ("classifier_merge",),
            _run_merging_exit,
        )
    )
    return tuple(steps)


def _run(steps: Iterable[Step], net: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    for step in steps:
        values[step.output] = step.run(net, *(values[name] for name in step.inputs))
    return values


class PerceiverSegment(Segment):
    """What one exit of a network adds to the exits before it. Shares the network's parameters and their names.

    Attributes:
        exit: The exit, 1 to 4.
        inputs: Names of the arguments of ``forward``: "images" for the first segment of a chain, tensors among
            the outputs of earlier segments for the others.
        outputs: Names of what ``forward`` returns: "logits", then what later segments need.
    """

    def __init__(
        self, network: nn.Module, exit: int, steps: Sequence[Step], inputs: Sequence[str], carried: Sequence[str]
    ) -> None:
        super().__init__()
        self.exit = exit
        self.inputs = tuple(inputs)
        self.outputs = ("logits", *carried)
        self._steps = tuple(steps)
        for path in dict.fromkeys(path for step in steps for path in step.modules):
            _share(network, self, path)
        self.training = network.training

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors named by ``outputs`` for those named by ``inputs``."""
        values = _run(self._steps, self, dict(zip(self.inputs, inputs, strict=True)))
        return tuple(values[f"logits{self.exit}" if name == "logits" else name] for name in self.outputs)


def _share(network: nn.Module, owner: nn.Module, path: str) -> None:
    """Give owner the network's submodule or parameter under the same dotted name."""
    *parents, name = path.split(".")
    source = network
    for parent in parents:
        source = source.get_submodule(parent)
        if parent not in dict(owner.named_children()):
            owner.add_module(parent, nn.Module())
        owner = owner.get_submodule(parent)
    parameter = dict(source.named_parameters(recurse=False)).get(name)
    if parameter is not None:
        owner.register_parameter(name, parameter)
    else:
        owner.add_module(name, source.get_submodule(name))


class DynPerceiver(nn.Module):
    """A Dynamic Perceiver with all four exits.

    Args:
        name: Registered name.
        architecture: Fixed part.
        config: Options.

    Attributes:
        name: Registered name.
        config: The options it was built with.
        exits: Number of exits.
        channels: Channels entering stages 1 to 4, and those that stage 4 returns.
        stage_paths: Dotted names of the convolutional stages.

    Raises:
        UsageError: A number of heads does not divide its stage's channels, or stochastic depth is asked of a
            backbone that has none.
    """

    exits: int = EXITS

    def __init__(self, name: str, architecture: PerceiverArchitecture, config: DynPerceiverConfig) -> None:
        super().__init__()
        self.name = name
        self.architecture = architecture
        self.config = config
        if config.drop_path_rate and architecture.kind != "resnet":
            raise UsageError(
                f"drop_path_rate={config.drop_path_rate:g} is not valid for {name}: only ResNets have stochastic "
                "depth. Leave it at 0."
            )
        backbone = architecture.backbone(config.drop_path_rate)
        channels, last = backbone.channels[:_STAGES], backbone.channels[_STAGES]
        for stage, (width, heads) in enumerate(zip(channels, config.num_sa_heads, strict=True)):
            if width % heads:
                raise UsageError(
                    f"num_sa_heads={list(config.num_sa_heads)} is not valid for {name}: {heads} heads do not divide "
                    f"the {width} channels of stage {stage + 1}."
                )
        tokens = architecture.tokens()

        self.channels = backbone.channels
        self.latent = nn.Parameter(torch.empty(tokens[0], channels[0]))
        self.cnn_stem = backbone.stem
        if architecture.kind == "regnet":
            self.cnn_body = trunk(backbone)
            self.stage_paths = [f"cnn_body.block{stage}" for stage in range(1, _STAGES + 1)]
        else:
            self.stage_paths = [f"cnn_body_stage{stage}" for stage in range(1, _STAGES + 1)]
            for path, module in zip(self.stage_paths, backbone.stages, strict=True):
                self.add_module(path, module)
        for stage, width in enumerate(channels, start=1):
            self._add_attention(stage, width)
        if config.with_last_ca:
            self.last_cross_att_z2x = CrossAttentionLayer(last, channels[3], last // Z2X_REDUCTION, config.dropout)
        self._add_classifiers(channels[2], channels[3], last, backbone.head_channels)
        pairs = list(itertools.pairwise(channels))
        self.token_expander = nn.ModuleList(token_expander(narrow, wide) for narrow, wide in pairs)
        self.token_mixer = nn.ModuleList(token_mixer(n, n // 2) for n in tokens[:-1])
        nn.init.trunc_normal_(self.latent, std=0.02)
        self._steps = _steps(config, architecture, self.stage_paths)

    def _add_attention(self, stage: int, width: int) -> None:
        config, positions = self.config, self.architecture.grid**2
        if stage == 1 or config.with_x2z:
            if config.with_dwc:
                self.add_module(f"dwc{stage}_x2z", nn.Conv2d(width, width, 7, padding=3, groups=width))
            x2z = CrossAttentionLayer(width, width, width, config.dropout, positions)
            self.add_module(f"cross_att{stage}_x2z", x2z)
        if stage > 1 and config.with_z2x:
            z2x = CrossAttentionLayer(width, width, width // Z2X_REDUCTION, config.dropout)
            self.add_module(f"cross_att{stage}_z2x", z2x)
        heads, widening = config.num_sa_heads[stage - 1], config.sa_widening_factor
        count = SELF_ATTENTIONS[stage - 1] * config.depth_factor[stage - 1]
        layers = (SelfAttentionLayer(width, heads, widening, config.dropout) for _ in range(count))
        self.add_module(f"self_att{stage}", nn.Sequential(*layers))

    def _add_classifiers(self, c3: int, c4: int, last: int, hidden: int | None) -> None:
        config, classes = self.config, self.config.num_classes
        merged = last + c4 * (2 if config.with_isc else 1)

        def head(channels: int) -> list[nn.Module]:
            if hidden is None:
                return [nn.Linear(channels, classes)]
            dropout = nn.Dropout(config.drop_rate, inplace=True)
            return [nn.Linear(channels, hidden), nn.Hardswish(inplace=True), dropout, nn.Linear(hidden, classes)]

        def connection() -> nn.Sequential:
            return nn.Sequential(nn.Linear(classes, c4), nn.BatchNorm1d(c4))

        self.classifier_cnn = nn.Sequential(*head(last)) if hidden else nn.Linear(last, classes)
        if self.architecture.kind == "regnet":
            assert isinstance(self.classifier_cnn, nn.Linear)
            nn.init.normal_(self.classifier_cnn.weight, std=0.01)
            nn.init.zeros_(self.classifier_cnn.bias)
        self.early_classifier3 = nn.Linear(c3, classes)
        if config.with_isc:
            self.isc3 = connection()
        self.classifier_att = nn.Linear(c4 * (2 if config.with_isc else 1), classes)
        if config.with_isc:
            self.isc4 = connection()
        self.classifier_merge = nn.Sequential(nn.BatchNorm1d(merged), *head(merged))

    def forward(self, images: Tensor) -> ExitOutput:
        """Classify a batch of images at all exits.

        Args:
            images: (N, 3, H, W) of the network's dtype; H and W of any size. In training mode N is at least 2.

        Returns:
            Logits of the four exits.
        """
        values = _run(self._steps, self, {IMAGES: images})
        return ExitOutput.of([values[f"logits{number}"] for number in range(1, EXITS + 1)])

    def checkpoint_rules(self) -> PerceiverRules:
        """Return how a file of weights is made to fit."""
        return PerceiverRules(self)

    def facts(self) -> NetworkFacts:
        """Return what a bundle says of the network."""
        return NetworkFacts(options=self.config.as_dict())

    def segments(self, exits: Sequence[int] = (1, 2, 3, 4)) -> tuple[Segment, ...]:
        """Return one segment per enabled exit; run one after another they give the logits of ``forward``.

        A segment computes what its exit needs and no earlier segment has computed, nothing else: the head of
        a disabled exit only where another exit reads its logits.

        Args:
            exits: The enabled exits, ascending; the last is 4.

        Raises:
            UsageError: Exits that do not ascend, are not among 1 to 4, or do not end with 4.
        """
        return self._cut(checked_exits(exits, EXITS))

    def truncated(self, exit: int) -> Segment:
        """Return a network of one exit that computes nothing but what this exit needs.

        Args:
            exit: 1 to 4.

        Raises:
            UsageError: No such exit.
        """
        if exit not in range(1, EXITS + 1):
            raise UsageError(f"exit={exit!r} is not valid: {self.name} has the exits 1 to {EXITS}.")
        return self._cut((exit,))[0]

    def _cut(self, exits: tuple[int, ...]) -> tuple[Segment, ...]:
        done: set[str] = {IMAGES}
        parts: list[list[Step]] = []
        for number in exits:
            needed = {f"logits{number}"}
            part = []
            for step in reversed(self._steps):
                if step.output in needed and step.output not in done:
                    needed |= set(step.inputs)
                    part.append(step)
            parts.append(part[::-1])
            done |= {step.output for step in part}
        segments = []
        for index, (number, part) in enumerate(zip(exits, parts, strict=True)):
            made = {step.output for step in part}
            later = {name for following in parts[index + 1 :] for step in following for name in step.inputs}
            segments.append(
                PerceiverSegment(
                    self,
                    number,
                    part,
                    inputs=_ordered((name for step in part for name in step.inputs), exclude=made),
                    carried=[step.output for step in part if step.output in later],
                )
            )
        return tuple(segments)


def _ordered(names: Iterable[str], exclude: set[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name not in exclude]


def options_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options that the shapes in a Dynamic Perceiver's state dict tell, {} for other networks."""
    head = weights.get("early_classifier3.weight")
    if "latent" not in weights or head is None or head.ndim != 2:
        return {}
    hidden = {
        key: w.shape for key, w in weights.items() if key.startswith("self_att") and key.endswith("mlp.fc1.weight")
    }
    layers = [sum(key.startswith(f"self_att{stage}.") for key in hidden) for stage in range(1, _STAGES + 1)]
    options: dict[str, Any] = {
        "num_classes": head.shape[0],
        "depth_factor": [count // unit for count, unit in zip(layers, SELF_ATTENTIONS, strict=True)],
    }
    first = next(iter(hidden.values()), ())
    if len(first) == 2 and first[1]:
        options["sa_widening_factor"] = first[0] // first[1]
    for flag, part in PARTS.items():
        options[flag] = any(key.startswith(f"{part}.") for key in weights)
    return options


class PerceiverRules(CheckpointRules):
    """Every option that a shape tells is named; the heads of an attention, which share one matrix, are compared.

    Args:
        network: The network.
    """

    def __init__(self, network: DynPerceiver) -> None:
        self.network = network

    def another_architecture(self, weights: Mapping[str, Tensor]) -> str | None:
        """Name the options that differ."""
        hint = self._different(weights)
        return None if hint is None else f"does not fit this network. {hint}"

    def conflict(self, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> str | None:
        """Compare the numbers of heads."""
        theirs, ours = options.get("num_sa_heads"), self.network.config.as_dict()["num_sa_heads"]
        if not options or theirs == ours:
            return None
        return (
            f"was trained with num_sa_heads {joined(theirs)}; this network was created with num_sa_heads "
            f"{joined(ours)}. Create it with the file's num_sa_heads."
        )

    def hint(self, weights: Mapping[str, Tensor], key: str) -> str | None:
        """Name the options that differ."""
        return self._different(weights)

    def assumed(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The heads of the self-attention: the reference code cannot train with others than the default."""
        return ("num_sa_heads",) if "latent" in weights else ()

    def classifiers(self, network: nn.Module, classes: int) -> tuple[str, ...]:
        """The last layers of the four exits, and what reads an exit's logits for a later one."""
        heads = ("early_classifier3", "classifier_att", "classifier_cnn", "classifier_merge")
        return (*(_last_linear(network, head) for head in heads), *(("isc3", "isc4") if self._isc else ()))

    @property
    def _isc(self) -> bool:
        return self.network.config.with_isc

    def start_names(self) -> Mapping[str, str]:
        """Torchvision's names of the static backbone and its classifier, which is that of exit 3."""
        places = self._backbone_places()
        return {
            new + key.removeprefix(own): key
            for key in self.network.state_dict()
            for own, new in places.items()
            if key.startswith(own)
        }

    def may_start_without(self, key: str, weights: Mapping[str, Tensor]) -> bool:
        """Everything but the convolutions, if that is what the file holds."""
        return "latent" not in weights and not key.startswith(("cnn_stem.", "cnn_body"))

    def _backbone_places(self) -> dict[str, str]:
        """Beginnings of names here -> those of the same modules in torchvision's static network."""
        network = self.network
        if network.architecture.kind == "regnet":
            return {"cnn_stem.": "stem.", "cnn_body.": "trunk_output.", "classifier_cnn.": "fc."}
        if network.architecture.kind == "resnet":
            stages = {f"{path}.": f"layer{stage}." for stage, path in enumerate(network.stage_paths, start=1)}
            return {"cnn_stem.0.": "conv1.", "cnn_stem.1.": "bn1.", **stages, "classifier_cnn.": "fc."}
        places = {"classifier_cnn.": "classifier."}
        position = 0
        for path in ("cnn_stem", *network.stage_paths):
            for index in range(len(network.get_submodule(path))):  # type: ignore[arg-type]
                places[f"{path}.{index}."] = f"features.{position}."
                position += 1
        return places

    def _different(self, weights: Mapping[str, Tensor]) -> str | None:
        theirs, ours = options_of(weights), self.network.config.as_dict()
        different = {name: value for name, value in theirs.items() if ours[name] != value}
        if different:
            options = ", ".join(f"{name}={value!r}" for name, value in different.items())
            return f"The checkpoint was trained with {options}: create the network with that."
        latent = weights.get("latent")
        if latent is not None and latent.shape[:1] != self.network.latent.shape[:1]:
            count = latent.shape[0]
            return f"The checkpoint has {count} latents: create a network whose name ends in _t{count}."
        return None


def _last_linear(network: nn.Module, path: str) -> str:
    """Name of the last linear layer of a head."""
    names = [name for name, module in network.get_submodule(path).named_modules() if isinstance(module, nn.Linear)]
    return f"{path}.{names[-1]}" if names[-1] else path


def _register(name: str, description: str, architecture: PerceiverArchitecture, **defaults: Any) -> None:
    def entry_point(config: DynPerceiverConfig) -> DynPerceiver:
        return DynPerceiver(name, architecture, config)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = description
    register_model(
        family=_FAMILY,
        config_type=DynPerceiverConfig,
        input_size=(224, 224),
        preprocessing=_PREPROCESSING,
        defaults=defaults,
    )(entry_point)


_PREPROCESSING = replace(IMAGENET, interpolation="bicubic")
_RESNET50 = Architecture(blocks=(3, 4, 6, 3))
_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], Architecture, float, tuple[int, ...]]] = {
    "resnet18": (BasicBlock, Architecture(blocks=(2, 2, 2, 2)), 1.0, (128, 256, 512)),
    "resnet34": (BasicBlock, Architecture(blocks=(3, 4, 6, 3)), 1.0, (128, 256, 512)),
    "resnet50": (Bottleneck, _RESNET50, 1.0, (64, 128, 256, 512)),
    "resnet50_0375": (Bottleneck, _RESNET50, 0.375, (64, 128, 256)),
    "resnet50_050": (Bottleneck, _RESNET50, 0.5, (64, 128, 256)),
    "resnet50_0625": (Bottleneck, _RESNET50, 0.625, (128, 160, 192, 256)),
    "resnet50_075": (Bottleneck, _RESNET50, 0.75, (128, 256)),
}
_REGNETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "reg400m": ("regnet_y_400mf", (32, 64, 128, 256, 512)),
    "reg800m": ("regnet_y_800mf", (32, 64, 128, 256, 512)),
    "reg1x6g": ("regnet_y_1_6gf", (128, 256, 512)),
    "reg3x2g": ("regnet_y_3_2gf", (128, 256, 512)),
}
_MOBILENETS = {
    "mobilenetV3": 1.0,
    "mobilenetV3_0x5": 0.5,
    "mobilenetV3_0x75": 0.75,
    "mobilenetV3_1x25": 1.25,
    "mobilenetV3_1x5": 1.5,
    "mobilenetV3_2x0": 2.0,
}


def _resnet_backbone(
    block: type[BasicBlock] | type[Bottleneck], architecture: Architecture, width_mult: float, drop_path_rate: float
) -> Backbone:
    return resnet(architecture, block, width_mult, drop_path_rate)


def _regnet_backbone(name: str, _: float) -> Backbone:
    return regnet(name)


def _mobilenet_backbone(width_mult: float, _: float) -> Backbone:
    return mobilenet_v3_large(width_mult)


for _prefix, (_block, _shape, _width, _counts) in _RESNETS.items():
    for _count in _counts:
        _register(
            f"{_prefix}_perceiver_t{_count}",
            f"Dynamic Perceiver: {_prefix.split('_')[0]} of width {_width:g} and {_count} latents.",
            PerceiverArchitecture(partial(_resnet_backbone, _block, _shape, _width), "resnet", _count),
            depth_factor=(1, 1, 1, 1),
            drop_rate=0.2,
            drop_path_rate=0.2,
        )
for _prefix, (_name, _counts) in _REGNETS.items():
    for _count in _counts:
        _register(
            f"{_prefix}_perceiver_t{_count}",
            f"Dynamic Perceiver: {_name} and {_count} latents.",
            PerceiverArchitecture(partial(_regnet_backbone, _name), "regnet", _count),
            depth_factor=(1, 1, 1, 2),
        )
for _prefix, _width in _MOBILENETS.items():
    for _count in (128, 256, 512):
        _register(
            f"{_prefix}_perceiver_t{_count}",
            f"Dynamic Perceiver: MobileNetV3-Large of width {_width:g} and {_count} latents.",
            PerceiverArchitecture(partial(_mobilenet_backbone, _width), "mobilenet_v3", _count),
            depth_factor=(1, 1, 1, 3),
            drop_rate=0.2,
        )


@register_model(
    family=_FAMILY,
    config_type=DynPerceiverConfig,
    input_size=(32, 32),
    preprocessing=SMALL_32,
    defaults={"num_classes": 10},
)
def resnet10_small_perceiver_t32(config: DynPerceiverConfig) -> DynPerceiver:
    """Dynamic Perceiver for 32x32 images: four basic blocks and 32 latents."""
    small = Architecture(
        blocks=(1, 1, 1, 1),
        planes=(16, 24, 32, 64),
        stem_channels=16,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
    )
    # Maps of 32, 32, 16 and 8 pixels: all of them hold whole windows of a 4x4 grid.
    architecture = PerceiverArchitecture(partial(_resnet_backbone, BasicBlock, small, 1.0), "resnet", 32, grid=4)
    return DynPerceiver("resnet10_small_perceiver_t32", architecture, config)
