"""Read and write weights, whatever tool wrote them, without executing anything that a file contains.

Known layouts: the LAUDNet and LASNet reference codes' ``checkpoint.pth.tar``, the Dynamic Perceiver reference
code's ``checkpoint-*.pth``, plain torchvision ResNet state dicts, ``{"state_dict": ...}``, ``{"model": ...}``,
``{"model_state_dict": ...}``, each with or without the "module." prefix of a data-parallel wrapper, and our own.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dyndeploy.errors import CheckpointError, OutputError, UsageError
from dyndeploy.files import atomic_file
from dyndeploy.nets.dyn_perceiver import DynPerceiver, options_of
from dyndeploy.nets.laud_resnet import LaudBottleneck, LaudResNet
from dyndeploy.nets.resnet import EXPANSION

FORMAT = "dyndeploy.checkpoint"
VERSION = 1

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_AVERAGED = ("model_ema", "state_dict_ema")
_DATA_PARALLEL = "module."
_MASKER = re.compile(r"(?:^|\.)masker_(spatial|channel)\.")
_LASNET_MASKER = re.compile(r"(^|\.)masker\.conv2\.")
_BACKBONE = re.compile(r"(?:conv1|bn1|layer\d+|fc)\.")
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
# torchvision's first published ResNet weights are older than this counter, which inference does not use.
_OPTIONAL_SUFFIX = ".num_batches_tracked"
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: The file.
        source_format: "dyndeploy", "laudnet", "lasnet", "dyn_perceiver", "torchvision", or how else the weights
            were wrapped: "state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema", "plain".
        missing: Keys of the network that the file lacks; they keep their values. Only masker weights (from a
            static checkpoint) and batch counters can be missing.
        unexpected: Keys of the file that the network lacks; they are ignored. Only masker weights (into a
            static network) and keys outside the backbone can be unexpected.
        renamed: (key in the file, key in the network) wherever the two differ.
        option_differences: (option, value in the file, value in the network). Only our own files
            record options.
        epoch: Epoch that the file records, or None.
        architecture: Name of the network that the file records, or None.
        extra: What was given to :func:`save_checkpoint` beside the model.
    """

    path: Path
    source_format: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    option_differences: tuple[tuple[str, Any, Any], ...] = ()
    epoch: int | None = None
    architecture: str | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def summary(self) -> str:
        """Return the report as a few lines for a log."""
        lines = [f"Loaded {self.path} ({self.source_format} format)."]
        if self.epoch is not None:
            lines.append(f"Epoch {self.epoch}.")
        for title, keys in (
            ("Missing, left as they were", self.missing),
            ("Unexpected, ignored", self.unexpected),
        ):
            if keys:
                lines.append(f"{title}: {_listing(keys)}.")
        if self.renamed:
            lines.append(f"Renamed: {_listing([f'{old} -> {new}' for old, new in self.renamed])}.")
        lines += [
            f"The file was saved with {name} {_joined(theirs)}; this network has {_joined(ours)}."
            for name, theirs, ours in self.option_differences
        ]
        return "\n".join(lines)


def _listing(items: Any, limit: int = 4) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], **extra: Any) -> None:
    """Write a network's weights, name and options to one file, atomically.

    Args:
        model: A network made by :func:`dyndeploy.nets.create_model`.
        path: Output file; an existing file is replaced only by a complete new one.
        **extra: Anything to keep beside the weights (``epoch``, an optimizer's state, metrics): tensors,
            numbers, strings, None, and lists, tuples and string-keyed dicts of them.

    Raises:
        UsageError: An extra value of another type, which could not be loaded safely.
        OutputError: The file cannot be written.
    """
    for key, value in extra.items():
        _check_plain(key, value)
    config = getattr(model, "config", None)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": getattr(model, "name", None),
        "options": None if config is None else config.as_dict(),
        "state_dict": {key: value.detach().cpu() for key, value in model.state_dict().items()},
        "extra": extra,
    }
    with atomic_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            # The zip writer reports a full disk as RuntimeError.
            raise OutputError(
                f"Cannot write {Path(path)}: {_first_line(error)}. Nothing was changed; choose another path."
            ) from error


def _check_plain(where: str, value: Any) -> None:
    if isinstance(value, Mapping) and type(value) is dict:
        for key, entry in value.items():
            if not isinstance(key, (str, int)):
                raise UsageError(f"{where} has the key {key!r}: a checkpoint holds string and integer keys only.")
            _check_plain(f"{where}[{key!r}]", entry)
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _check_plain(f"{where}[{index}]", entry)
    elif not isinstance(value, Tensor) and type(value) not in _PLAIN:
        raise UsageError(
            f"{where} is a {type(value).__name__}, which a checkpoint cannot hold safely: "
            "give tensors, numbers, strings, lists or dicts."
        )


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, averaged: bool = False) -> LoadReport:
    """Load weights into a network, checking everything first.

    Nothing in the file is executed. On any error the network is exactly as before.

    Args:
        model: A network made by :func:`dyndeploy.nets.create_model`.
        path: Checkpoint file in any of the known layouts.
        averaged: Take the moving average of the weights that the training scripts of the Dynamic Perceiver
            and timm keep beside them ("model_ema", "state_dict_ema").

    Returns:
        A report of what was missing, unexpected and renamed. Only our own files tell whether spatial maskers
        were trained in mode "spatial" or "layer", and with which granularity, and how many heads the
        self-attention of a Dynamic Perceiver has.

    Raises:
        CheckpointError: The file is missing, damaged or hostile, holds no weights, belongs to another network
            or another mode, or holds NaN or infinite values.
    """
    source = Path(path)
    content = _read(source)
    weights, container = _find_weights(content, source, _AVERAGED if averaged else _CONTAINERS)
    weights, renamed = _rename(weights, source)
    source_format = _source_format(source, content, container, weights, renamed)
    differences = _option_differences(content, model) if source_format == "dyndeploy" else ()

    own = model.state_dict()
    missing = tuple(key for key in own if key not in weights)
    unexpected = tuple(key for key in weights if key not in own)
    _check_architecture(source, model, own, weights, missing, unexpected)
    _check_mode(source, model, own, weights, content, source_format)
    _check_shapes(source, model, own, weights)
    accepted = _converted(source, own, weights)

    model.load_state_dict(own | accepted)
    fields = content if isinstance(content, dict) else {}
    extra = fields.get("extra", {}) if source_format == "dyndeploy" else {}
    epoch = extra.get("epoch") if source_format == "dyndeploy" else fields.get("epoch")
    return LoadReport(
        path=source,
        source_format=source_format,
        missing=missing,
        unexpected=unexpected,
        renamed=tuple(renamed.items()),
        option_differences=differences,
        epoch=int(epoch) if isinstance(epoch, (int, float)) else None,
        architecture=_first_string(fields, "model", "arch"),
        extra=MappingProxyType(dict(extra)),
    )


def _first_string(fields: Mapping[str, Any], *keys: str) -> str | None:
    return next((fields[key] for key in keys if isinstance(fields.get(key), str)), None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


@contextmanager
def _harmless_globals() -> Iterator[None]:
    """Let the unpickler build numpy scalars and option namespaces, which training scripts like to store.

    They hold data only: none of them can name a function to call.
    """
    scalar = np.array(0.0)[()].__reduce__()[0]
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        argparse.Namespace,
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "bool")),
    ]
    with torch.serialization.safe_globals(allowed):
        yield


def _read(source: Path) -> Any:
    if source.is_dir():
        raise CheckpointError(f"{source} is a folder: give the checkpoint file inside it.")
    if not source.exists():
        raise CheckpointError(f"{source} does not exist: check the path of the checkpoint.")
    try:
        with _harmless_globals():
            return torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"Cannot read {source}: {error.strerror or error}.") from error
    except Exception as error:
        # torch.load raises whatever its parsers happen to stumble over in a damaged file.
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: Exception) -> CheckpointError:
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return CheckpointError(
            f"{source} asks for the Python object {forbidden.group(1)}, which could run code: it was not loaded, "
            "nothing was executed. If you trust its origin, open it there and save the weights alone: "
            "torch.save(model.state_dict(), path)."
        )
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{source} is a TorchScript program, not a checkpoint: save the state_dict() of the model instead."
        )
    # PyTorch's own text would advise to load the file unsafely.
    reason = "" if "weights_only" in str(error) else f" ({_first_line(error)})"
    return CheckpointError(
        f"{source} is not a readable PyTorch checkpoint{reason}. It may be truncated or of another kind: "
        "download or copy it again."
    )


def _find_weights(content: Any, source: Path, containers: tuple[str, ...]) -> tuple[dict[str, Tensor], str]:
    """Return the state dict inside a loaded file, and the name of the entry that held it."""
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{source} holds a {type(content).__name__}, not a dict of weights: save model.state_dict()."
        )
    container = next((key for key in containers if isinstance(content.get(key), Mapping)), "plain")
    if container == "plain" and containers is _AVERAGED:
        raise CheckpointError(
            f"{source} holds no averaged weights. Its entries are: {_listing(content, 12) or '(none)'}; looked for "
            f"{', '.join(_AVERAGED)}. Load it with averaged=False."
        )
    weights = content if container == "plain" else content[container]
    tensors = [key for key, value in weights.items() if isinstance(value, Tensor)]
    if not tensors:
        raise CheckpointError(
            f"{source} holds no weights. Its entries are: {_listing(content, 12) or '(none)'}; looked for "
            f"{', '.join(containers)} or tensors at the top."
        )
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{source}: entry {key!r} of the weights is a {type(value).__name__}, not a tensor. "
                "Save model.state_dict() alone."
            )
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"{source}: {key} is sparse or quantized. Save dense floating-point weights.")
    return dict(weights), container


def _rename(weights: dict[str, Tensor], source: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return weights under this project's names, and the names that changed (old -> new)."""
    prefix = _DATA_PARALLEL if all(key.startswith(_DATA_PARALLEL) for key in weights) else ""
    result: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    for key, value in weights.items():
        name = _LASNET_MASKER.sub(r"\1masker_spatial.conv.", key[len(prefix) :])
        if name in result:
            raise CheckpointError(f"{source} holds {name} twice, once as {key}: it is damaged.")
        result[name] = value
        if name != key:
            renamed[key] = name
    return result, renamed


def _source_format(
    source: Path,
    content: dict[str, Any],
    container: str,
    weights: Mapping[str, Tensor],
    renamed: Mapping[str, str],
) -> str:
    if content.get("format") == FORMAT and container == "state_dict":
        version = content.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise CheckpointError(
                f"{source} has version {version!r}; this release reads up to {VERSION}. Update dyndeploy."
            )
        return "dyndeploy"
    if any(_LASNET_MASKER.search(key) for key in renamed):
        return "lasnet"
    if container == "state_dict" and "hyper_set" in content:
        return "laudnet"
    if container in ("model", "model_ema") and options_of(weights):
        return "dyn_perceiver"
    if container == "plain" and "layer1.0.conv1.weight" in weights and not _masker_kinds(weights):
        return "torchvision"
    return container


def _option_differences(content: Mapping[str, Any], model: nn.Module) -> tuple[tuple[str, Any, Any], ...]:
    config = getattr(model, "config", None)
    theirs, ours = content.get("options"), {} if config is None else config.as_dict()
    if not isinstance(theirs, Mapping):
        return ()
    return tuple((name, theirs[name], ours[name]) for name in ours if name in theirs and theirs[name] != ours[name])


def _masker_kinds(keys: Any) -> dict[str, set[str]]:
    """Return for each block with maskers which it has: {"layer1.0": {"spatial", "channel"}}."""
    kinds: dict[str, set[str]] = {}
    for key in keys:
        match = _MASKER.search(key)
        if match:
            kinds.setdefault(key[: match.start()], set()).add(match.group(1))
    return kinds


def _mode_name(kinds: set[str]) -> str:
    if kinds == {"spatial", "channel"}:
        return "both"
    return {"spatial": "spatial or layer", "channel": "channel"}[next(iter(kinds))] if kinds else "static"


def _blocks(keys: Any) -> tuple[int, ...]:
    counts: dict[int, int] = {}
    for key in keys:
        match = _BLOCK.match(key)
        if match:
            stage, index = int(match.group(1)), int(match.group(2))
            counts[stage] = max(counts.get(stage, 0), index + 1)
    return tuple(counts[stage] for stage in sorted(counts))


def _check_architecture(
    source: Path,
    model: nn.Module,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    missing: tuple[str, ...],
    unexpected: tuple[str, ...],
) -> None:
    if not any(key in weights for key in own):
        raise CheckpointError(
            f"{source} belongs to another architecture: it shares no weight with this network. It holds "
            f"{_listing(weights)}; this network needs {_listing(own)}."
        )
    absent = [key for key in missing if not _MASKER.search(key) and not key.endswith(_OPTIONAL_SUFFIX)]
    foreign = [key for key in unexpected if not _ignorable(model, key)]
    if not absent and not foreign:
        return
    if isinstance(model, DynPerceiver):
        hint = _perceiver_option(model, weights)
        if hint:
            raise CheckpointError(f"{source} does not fit this network. {hint}")
    theirs, ours = _blocks(weights), _blocks(own)
    if theirs and theirs != ours:
        detail = (
            f"it has {'-'.join(map(str, theirs))} blocks per stage, this network {'-'.join(map(str, ours))}. "
            "Create the network that it was saved from"
        )
    elif absent:
        detail = f"it lacks {_listing(absent)}. The file is incomplete or of another network"
    else:
        detail = f"this network has no {_listing(foreign)}. Create the network that it was saved from"
    raise CheckpointError(f"{source} belongs to another architecture: {detail}.")


def _ignorable(model: nn.Module, key: str) -> bool:
    """Whether a weight that a network lacks may be left out: maskers of a LAUD-ResNet and what is not its backbone."""
    return isinstance(model, LaudResNet) and (not _BACKBONE.match(key) or _MASKER.search(key) is not None)


def _check_mode(
    source: Path,
    model: nn.Module,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    content: Mapping[str, Any],
    source_format: str,
) -> None:
    theirs, ours = _masker_kinds(weights), _masker_kinds(own)
    if theirs and ours:
        for block in sorted(theirs.keys() | ours.keys()):
            their_kinds, our_kinds = theirs.get(block, set()), ours.get(block, set())
            if their_kinds != our_kinds:
                raise CheckpointError(
                    f"{source} has the maskers of mode {_mode_name(their_kinds)} in {block}; this "
                    f"network was created with mode {_mode_name(our_kinds)}. Create it with the file's mode."
                )
    options = content.get("options")
    config = getattr(model, "config", None)
    if source_format != "dyndeploy" or not isinstance(options, Mapping) or config is None:
        return
    # Equal keys, different meaning: "spatial" and "layer" differ in the pooling alone, and the heads of an
    # attention share one matrix.
    for option in ("mode",) if theirs and ours else ("num_sa_heads",):
        in_file, own_value = options.get(option), config.as_dict().get(option)
        if in_file != own_value:
            raise CheckpointError(
                f"{source} was trained with {option} {_joined(in_file)}; this network was created with {option} "
                f"{_joined(own_value)}. Create it with the file's {option}."
            )


def _joined(value: Any) -> str:
    """Return a per-stage option as users write it: one value where all stages agree."""
    if isinstance(value, list) and value:
        return str(value[0]) if all(v == value[0] for v in value) else "-".join(map(str, value))
    return str(value)


def _check_shapes(source: Path, model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    _check_masker_type(source, own, weights)
    for key, value in weights.items():
        if key in own and value.shape != own[key].shape:
            hint = _likely_option(model, key, weights)
            raise CheckpointError(
                f"{source}: {key} has the shape {tuple(value.shape)}, this network needs "
                f"{tuple(own[key].shape)}. {hint}"
            )


def _masker_options(keys: Any) -> str:
    """Return the options that lead to a channel masker with these keys."""
    suffixes = {key.split("masker_channel.", 1)[1] for key in keys if "masker_channel." in key}
    if "linear.weight" in suffixes:
        return 'channel_masker="conv_linear"'
    layers = 1 if "conv.weight" in suffixes else 2
    return f'channel_masker="mlp", channel_masker_layers={layers}'


def _check_masker_type(source: Path, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for block in _masker_kinds(own):
        prefix = f"{block}.masker_"
        ours = {key for key in own if key.startswith(prefix) and not key.endswith(_OPTIONAL_SUFFIX)}
        theirs = {key for key in weights if key.startswith(prefix) and not key.endswith(_OPTIONAL_SUFFIX)}
        if theirs and theirs != ours:
            theirs_options, ours_options = _masker_options(theirs), _masker_options(ours)
            if theirs_options != ours_options:
                raise CheckpointError(
                    f"{source} has channel maskers of {theirs_options} in {block}; this network was "
                    f"created with {ours_options}. Create it with the file's options."
                )
            raise CheckpointError(
                f"{source}: the maskers of {block} are incomplete: {_listing(sorted(ours ^ theirs))} on one side only."
            )


def _likely_option(model: nn.Module, key: str, weights: Mapping[str, Tensor]) -> str:
    """Say which argument of ``create_model`` would make a weight fit."""
    fallback = "Create the network that the file was saved from."
    if isinstance(model, DynPerceiver):
        return _perceiver_option(model, weights) or fallback
    if not isinstance(model, LaudResNet):
        return fallback
    backbone = _backbone_option(model, weights)
    if backbone:
        return backbone
    outputs = weights[key].shape[0] if weights[key].ndim else 0
    if key.startswith("fc."):
        return f"The checkpoint has {outputs} classes: num_classes={outputs}?"
    if "masker_spatial." in key:
        return f"The checkpoint has {outputs // 2} spatial masks per block: spatial_groups={outputs // 2}?"
    if "masker_channel." in key:
        name = key[: key.index(".masker_channel.")]
        return _channel_masker_option(dict(model.named_blocks())[name], weights) or fallback
    return fallback


def _perceiver_option(model: DynPerceiver, weights: Mapping[str, Tensor]) -> str | None:
    theirs, ours = options_of(weights), model.config.as_dict()
    different = {name: value for name, value in theirs.items() if ours[name] != value}
    if different:
        options = ", ".join(f"{name}={value!r}" for name, value in different.items())
        return f"The checkpoint was trained with {options}: create the network with that."
    latent = weights.get("latent")
    if latent is not None and latent.shape[:1] != model.latent.shape[:1]:
        return f"The checkpoint has {latent.shape[0]} latents: create a network whose name ends in _t{latent.shape[0]}."
    return None


def _backbone_option(model: LaudResNet, weights: Mapping[str, Tensor]) -> str | None:
    conv2, conv3 = weights.get("layer1.0.conv2.weight"), weights.get("layer1.0.conv3.weight")
    if conv2 is None or conv3 is None or conv2.ndim != 4 or conv3.ndim != 4 or not conv2.shape[1]:
        return None
    planes, out_channels = model.architecture.planes[0], conv3.shape[0]
    groups = conv2.shape[0] // conv2.shape[1]
    own = model.layer1[0]
    assert isinstance(own, LaudBottleneck)
    if out_channels != own.out_channels:
        width_mult = out_channels / (planes * EXPANSION)
        return f"The checkpoint's first stage has {out_channels} channels: width_mult={width_mult:g}?"
    if groups != own.groups and conv2.shape[0] == out_channels // EXPANSION * groups:
        return f"The checkpoint's 3x3 convolutions have {groups} groups: groups={groups}?"
    return None


def _channel_masker_option(block: LaudBottleneck, weights: Mapping[str, Tensor]) -> str | None:
    assert block.masker_channel is not None
    # The last layer of every channel masker has two outputs per group.
    names = [f"{block.name}.masker_channel.{layer}.bias" for layer in ("linear", "conv.2", "conv")]
    outputs = next((weights[name].shape[0] for name in names if name in weights), 0)
    groups = outputs // 2
    if groups and groups != block.masker_channel.groups:
        granularity = block.width // groups
        return f"The checkpoint has {groups} channel groups: channel_granularity={granularity}?"
    return "The checkpoint's channel masker has another hidden width: another reduction?"


def _converted(source: Path, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the common weights in the network's dtypes, all finite."""
    accepted: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key not in own:
            continue
        converted = value.to(own[key].dtype)
        if converted.is_floating_point() and not bool(torch.isfinite(converted).all()):
            kind = "NaN" if bool(torch.isnan(converted).any()) else "infinite values"
            reason = "training diverged or the file is damaged: use an earlier checkpoint"
            if bool(torch.isfinite(value).all()):
                kind, reason = "values too large", f"they do not fit {own[key].dtype}: load before .half()"
            raise CheckpointError(f"{source}: {key} holds {kind}; {reason}.")
        accepted[key] = converted
    return accepted
