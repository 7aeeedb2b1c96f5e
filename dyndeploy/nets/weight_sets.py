"""Which weights of a file a network means: entries, prefixes of wrappers and frameworks, moving averages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dyndeploy.errors import CheckpointError
from dyndeploy.nets.checkpoint_rules import listing

EMA = "ema"
"""Asks for the moving average, whatever its entry is called."""

LASNET_MASKER = re.compile(r"(^|\.)masker\.conv2\.")

_ENTRIES = ("state_dict", "model_state_dict", "model", "")
"""Where weights are kept, the usual place first; "" is the file itself."""
_PREFIXES = ("", "model", "module", "net", "network", "backbone")
"""What stands before their names, the usual one first."""
_AVERAGED = re.compile(r"(^|_)(ema|swa|avg|averaged?|polyak)(_|$)")
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_COUNTERS = frozenset({"total_ops", "total_params", "n_averaged", "_extra_state"})
"""Last parts of names that tools add to a network: operation counts of thop, averages of PyTorch, state of layers."""
_DEPTH = 4


@dataclass
class WeightSet:
    """Weights for a network in a file.

    Attributes:
        entry: Path of the entry that holds them, as in ``("extra", "training", "ema")``; () for the file itself.
        prefix: What stands before the network's names there, as in ``("model",)``.
        weights: Tensors by the network's names, and under their own names others with the same prefix.
        renamed: Name in the file -> name here, where the two differ.
        ignored: Names in the file of what is no weight of the network: counters, and what has another prefix.
        matched: How many weights of the network are there.
    """

    entry: tuple[str, ...]
    prefix: tuple[str, ...]
    weights: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    matched: int = 0

    @property
    def name(self) -> str:
        """What a user calls them by: the last part of their path."""
        return (*self.entry, *self.prefix)[-1] if self.entry or self.prefix else "plain"

    @property
    def container(self) -> str:
        """Name of the entry that holds them."""
        return self.entry[-1] if self.entry else "plain"

    @property
    def averaged(self) -> bool:
        """Whether their place says that they are a moving average."""
        return any(_AVERAGED.search(part) for part in (*self.entry, *self.prefix))

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Smaller where it is more usual to mean these weights."""
        entry, prefix = ".".join(self.entry), ".".join(self.prefix)
        return (
            self.averaged,
            _ENTRIES.index(entry) if entry in _ENTRIES else len(_ENTRIES),
            _PREFIXES.index(prefix) if prefix in _PREFIXES else len(_PREFIXES),
        )

    def called(self, name: str) -> bool:
        """Whether a user means them by a name: that of the entry or the prefix, or its last part."""
        parts = (*self.entry, *self.prefix)
        return name in parts[-1:] or name in (".".join(part) for part in (parts, self.entry, self.prefix) if part)


def choose_weights(
    content: Any,
    own: Mapping[str, Tensor],
    wanted: str | None,
    source: object,
    other_names: Mapping[str, str] = MappingProxyType({}),
) -> tuple[WeightSet, tuple[str, ...]]:
    """Find the weights for a network in what a file holds.

    Args:
        content: What the file holds.
        own: State of the network.
        wanted: Name of an entry or prefix, :data:`EMA`, or None for the usual one: the weights themselves where there
            are both, the moving average where there is nothing else.
        source: Name of the file, for messages.
        other_names: What the network's weights may be called in the file as well -> their names.

    Returns:
        The weights, and the names of other sets in the file that fit as well.

    Raises:
        CheckpointError: There are none, none of this name, or several that could be meant.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{source} holds a {type(content).__name__}, not a dict of weights: save model.state_dict()."
        )
    names = {**other_names, **{_bare(name, wrapped=_all_wrapped(own)): name for name in own}}
    sets = [found for entry, tensors in _entries(content, ()) for found in _sets(entry, tensors, names)]
    if not sets:
        raise CheckpointError(
            f"{source} holds no weights. Its entries are: {listing(content, 12) or '(none)'}; looked for dicts of "
            "tensors."
        )
    most = max(found.matched for found in sets)
    fitting = [found for found in sets if 2 * found.matched >= most and found.matched]
    others = fitting
    if wanted is not None:
        called = [found for found in sets if found.called(wanted)]
        if not called and wanted == EMA:
            called = [found for found in fitting if found.averaged]
        if not called:
            what = "averaged weights" if wanted == EMA else f"weights '{wanted}'"
            raise CheckpointError(
                f"{source} holds no {what}. What fits this network is called: "
                f"{listing(dict.fromkeys(found.name for found in fitting), 12) or '(nothing)'}. Name one of these, or "
                "leave the choice out (averaged=False, no --weights)."
            )
        fitting = called
    ranked = sorted(fitting or sets, key=lambda found: (*found.rank, -found.matched))
    alike = [found for found in ranked[1:] if (found.rank, found.matched) == (ranked[0].rank, ranked[0].matched)]
    chosen = ranked[0]
    if alike and fitting:
        called_alike = listing([found.name for found in (chosen, *alike)], 12)
        raise CheckpointError(
            f"{source} holds several sets of weights that fit: {called_alike}. Choose one with --weights NAME."
        )
    _fill(chosen, _entry(content, chosen.entry), names, str(source))
    return chosen, tuple(dict.fromkeys(found.name for found in others if found is not chosen))


def _entries(content: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every dict in a file that holds tensors by name, with its path."""
    texts = {key: value for key, value in content.items() if isinstance(key, str)}
    if any(isinstance(value, Tensor) for value in texts.values()):
        yield path, texts
    for key, value in texts.items():
        if isinstance(value, Mapping) and len(path) < _DEPTH:
            yield from _entries(value, (*path, key))


def _entry(content: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for part in path:
        content = content[part]
    return content


def _all_wrapped(names: Mapping[str, Any]) -> bool:
    return bool(names) and all(name.startswith("module.") for name in names)


def _bare(name: str, *, wrapped: bool = True) -> str:
    """A name without what compilers and data-parallel wrappers add to it.

    Args:
        name: Of a weight.
        wrapped: Whether a leading "module" is a wrapper's, and no child of the network.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while wrapped and len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _file_name(name: str, names: Mapping[str, str]) -> str:
    """A name of the file as this project has it, whatever prefix still stands before it."""
    bare = _bare(name, wrapped=not any(own.startswith("module.") for own in names))
    return bare if bare in names else LASNET_MASKER.sub(r"\1masker_spatial.conv.", bare)


def _sets(entry: tuple[str, ...], tensors: Mapping[str, Any], names: Mapping[str, str]) -> list[WeightSet]:
    """The weights that a dict may hold for the network: one set for each prefix that fits well enough."""
    counts: dict[tuple[str, ...], int] = {(): 0}
    for key, value in tensors.items():
        parts = _file_name(key, names).split(".") if isinstance(value, Tensor) else []
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                prefix = tuple(parts[:cut])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values())
    # Where the names are the network's own, longer prefixes that fit as well are parts of it.
    kept = [()] if counts[()] == most else [prefix for prefix, count in counts.items() if 2 * count > most]
    return [WeightSet(entry, prefix, matched=counts[prefix]) for prefix in kept]


def _fill(chosen: WeightSet, tensors: Mapping[str, Any], names: Mapping[str, str], source: str) -> None:
    """Sort what the chosen dict holds."""
    outside: dict[str, str] = {}
    depth = len(chosen.prefix)
    for key, value in tensors.items():
        bare = _file_name(key, names)
        parts = tuple(bare.split("."))
        inside = parts[:depth] == chosen.prefix and len(parts) > depth
        name = ".".join(parts[depth:]) if inside else bare
        known = inside and name in names
        if not known and (parts[-1] in _COUNTERS or _is_note(key, value)):
            chosen.ignored.append(key)
        elif not isinstance(value, Tensor):
            raise CheckpointError(
                f"{source}: entry {key!r} of the weights is a {type(value).__name__}, not a tensor. "
                "Save model.state_dict() alone."
            )
        elif inside:
            _add(chosen, key, names.get(name, name), value, source)
        else:
            outside[key] = bare
    chosen.ignored += _add_heads(chosen, tensors, outside, names, source)


def _add(chosen: WeightSet, key: str, name: str, value: Tensor, source: str) -> None:
    if value.layout != torch.strided or value.is_quantized:
        raise CheckpointError(f"{source}: {key} is sparse or quantized. Save dense floating-point weights.")
    if value.is_meta:
        raise CheckpointError(f"{source}: {key} has a shape and no values: it was saved from the meta device.")
    if name in chosen.weights:
        raise CheckpointError(f"{source} holds {name} twice, once as {key}: it is damaged.")
    chosen.weights[name] = value
    if name != key:
        chosen.renamed[key] = name


def _add_heads(
    chosen: WeightSet, tensors: Mapping[str, Any], outside: Mapping[str, str], names: Mapping[str, str], source: str
) -> list[str]:
    """Take what the network still lacks from parts of the file that hold nothing else, such as ``head.fc``.

    Returns:
        Names in the file of what is left.
    """
    missing = {bare for bare, name in names.items() if name not in chosen.weights}
    groups: dict[str, list[str]] = {}
    for key, bare in outside.items():
        groups.setdefault(bare.split(".")[0], []).append(key)
    left = []
    for keys in groups.values():
        found = {key: _known_end(outside[key], missing) for key in keys}
        if not all(found.values()) or len(set(found.values())) != len(found):
            left += keys
            continue
        for key, name in found.items():
            _add(chosen, key, names[str(name)], tensors[key], source)
        missing -= set(map(str, found.values()))
    return left


def _known_end(bare: str, missing: set[str]) -> str | None:
    parts = bare.split(".")
    return next((end for cut in range(1, len(parts)) if (end := ".".join(parts[cut:])) in missing), None)


def _is_note(key: str, value: Any) -> bool:
    """Whether an entry beside the weights is a number or a text of the training script, such as ``epoch``."""
    return "." not in key and (not isinstance(value, Tensor) or value.numel() == 1)
