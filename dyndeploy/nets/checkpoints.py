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
from dyndeploy.nets.checkpoint_rules import OPTIONAL_SUFFIX, CheckpointRules, joined, listing
from dyndeploy.nets.dyn_perceiver import options_of
from dyndeploy.nets.laud_checkpoints import masker_kinds

FORMAT = "dyndeploy.checkpoint"
VERSION = 1

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_AVERAGED = ("model_ema", "state_dict_ema")
_DATA_PARALLEL = "module."
_LASNET_MASKER = re.compile(r"(^|\.)masker\.conv2\.")
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: The file.
        source_format: "dyndeploy", "laudnet", "lasnet", "dyn_perceiver", "torchvision", or how else the weights
            were wrapped: "state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema", "plain".
        missing: Keys of the network that the file lacks; they keep their values. Only batch counters can be missing,
            and of a LAUD-ResNet masker weights (from a static checkpoint).
        unexpected: Keys of the file that the network lacks; they are ignored. Only for a LAUD-ResNet can there be any:
            masker weights (into a static network) and keys outside the backbone.
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
                lines.append(f"{title}: {listing(keys)}.")
        if self.renamed:
            lines.append(f"Renamed: {listing([f'{old} -> {new}' for old, new in self.renamed])}.")
        lines += [
            f"The file was saved with {name} {joined(theirs)}; this network has {joined(ours)}."
            for name, theirs, ours in self.option_differences
        ]
        return "\n".join(lines)


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], **extra: Any) -> None:
    """Write a network's weights, name and options to one file, atomically.

    Args:
        model: Any network; one that has ``facts()`` tells its options.
        path: Output file; an existing file is replaced only by a complete new one.
        **extra: Anything to keep beside the weights (``epoch``, an optimizer's state, metrics): tensors,
            numbers, strings, None, and lists, tuples and string-keyed dicts of them.

    Raises:
        UsageError: An extra value of another type, which could not be loaded safely.
        OutputError: The file cannot be written.
    """
    for key, value in extra.items():
        _check_plain(key, value)
    name = getattr(model, "name", None)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": name if isinstance(name, str) else None,
        "options": _options(model) or None,
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
        model: Any network; one that has ``checkpoint_rules()`` says what its files may lack.
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
    rules_of = getattr(model, "checkpoint_rules", CheckpointRules)
    rules: CheckpointRules = rules_of()
    _check_architecture(source, rules, own, weights, missing, unexpected)
    options = content.get("options") if source_format == "dyndeploy" else None
    conflict = rules.conflict(weights, options if isinstance(options, Mapping) else {})
    if conflict:
        raise CheckpointError(f"{source} {conflict}")
    _check_shapes(source, rules, own, weights)
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
            f"{source} holds no averaged weights. Its entries are: {listing(content, 12) or '(none)'}; looked for "
            f"{', '.join(_AVERAGED)}. Load it with averaged=False."
        )
    weights = content if container == "plain" else content[container]
    tensors = [key for key, value in weights.items() if isinstance(value, Tensor)]
    if not tensors:
        raise CheckpointError(
            f"{source} holds no weights. Its entries are: {listing(content, 12) or '(none)'}; looked for "
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
    if container == "plain" and "layer1.0.conv1.weight" in weights and not masker_kinds(weights):
        return "torchvision"
    return container


def _options(model: nn.Module) -> dict[str, Any]:
    facts = getattr(model, "facts", None)
    return dict(facts().options) if callable(facts) else {}


def _option_differences(content: Mapping[str, Any], model: nn.Module) -> tuple[tuple[str, Any, Any], ...]:
    theirs, ours = content.get("options"), _options(model)
    if not isinstance(theirs, Mapping):
        return ()
    return tuple((name, theirs[name], ours[name]) for name in ours if name in theirs and theirs[name] != ours[name])


def _check_architecture(
    source: Path,
    rules: CheckpointRules,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    missing: tuple[str, ...],
    unexpected: tuple[str, ...],
) -> None:
    if not any(key in weights for key in own):
        raise CheckpointError(
            f"{source} belongs to another architecture: it shares no weight with this network. It holds "
            f"{listing(weights)}; this network needs {listing(own)}."
        )
    absent = [key for key in missing if not rules.may_lack(key) and not key.endswith(OPTIONAL_SUFFIX)]
    foreign = [key for key in unexpected if not rules.may_ignore(key)]
    if not absent and not foreign:
        return
    reason = rules.another_architecture(weights)
    if reason:
        raise CheckpointError(f"{source} {reason}")
    if absent:
        detail = f"it lacks {listing(absent)}. The file is incomplete or of another network"
    else:
        detail = f"this network has no {listing(foreign)}. Create the network that it was saved from"
    raise CheckpointError(f"{source} belongs to another architecture: {detail}.")


def _check_shapes(
    source: Path, rules: CheckpointRules, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    for key, value in weights.items():
        if key in own and value.shape != own[key].shape:
            hint = rules.hint(weights, key) or "Create the network that the file was saved from."
            raise CheckpointError(
                f"{source}: {key} has the shape {tuple(value.shape)}, this network needs "
                f"{tuple(own[key].shape)}. {hint}"
            )


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
