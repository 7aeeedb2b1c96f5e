"""Read and write weights, whatever tool wrote them, without executing anything that a file contains.

Known layouts: the LAUDNet and LASNet reference codes' ``checkpoint.pth.tar``, the Dynamic Perceiver reference
code's ``checkpoint-*.pth``, torchvision's, timm's, Lightning's and OpenMMLab's, safetensors, and our own: dicts of
tensors at the top or in any entry, with the prefixes of wrappers ("module.", "_orig_mod.") and frameworks ("model.",
"backbone."), and with counters beside the weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dyndeploy.errors import CheckpointError, OutputError, UsageError
from dyndeploy.files import atomic_file
from dyndeploy.nets.checkpoint_files import first_line, meta_of, noted_classes, read_checkpoint
from dyndeploy.nets.checkpoint_rules import OPTIONAL_SUFFIX, CheckpointRules, joined, listing
from dyndeploy.nets.dyn_perceiver import options_of
from dyndeploy.nets.laud_checkpoints import masker_kinds
from dyndeploy.nets.usable import unusable_state
from dyndeploy.nets.weight_sets import EMA, LASNET_MASKER, WeightSet, choose_weights

FORMAT = "dyndeploy.checkpoint"
VERSION = 1

_TORCHVISION = frozenset({"layer1.0.conv1.weight", "trunk_output.block1.block1-0.f.a.0.weight"})
"""Names of which torchvision's files have one."""

_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: The file.
        source_format: "dyndeploy", "laudnet", "lasnet", "dyn_perceiver", "torchvision", or the entry that held the
            weights: "state_dict", "model", "model_ema"; "plain" for the file itself.
        missing: Keys of the network that the file lacks; they keep their values. Only batch counters can be missing,
            and of a LAUD-ResNet masker weights (from a static checkpoint); where training starts from the file also
            what ``fresh`` names, and of a Dynamic Perceiver all but the convolutions (from a static backbone).
        unexpected: Keys of the file that the network lacks; they are ignored: counters that tools add, what has another
            prefix than the network's weights, and of a LAUD-ResNet masker weights (into a static network) and keys
            outside the backbone.
        renamed: (key in the file, key in the network) wherever the two differ.
        option_differences: (option, value in the file, value in the network). Only our own files
            record options.
        epoch: Epoch that the file records, or None.
        architecture: Name of the network that the file records, or None.
        extra: What was given to :func:`save_checkpoint` beside the model.
        weights: Name of the entry or prefix that was taken; "plain" for the file itself.
        averaged: Whether its name says that it is a moving average.
        others: Names of other sets of weights in the file that fit as well, such as "model_ema".
        assumed: Options that the file does not tell either, and that nearly all files have the network's value of.
        untold: Options of the network that decide what these weights compute and that the file does not tell, such as
            the mode of a LAUD-ResNet.
        fresh: Weights of the classifiers, where training starts from a file that has none or one of other classes.
        classes: (classes of the classifier in the file, or None where it has none; those of the network) where a fresh
            classifier was left in place.
        started: Missing weights that got values of a kind of their own: policies that compute everything.
        class_names: Names of the network's classes in a file of OpenMMLab's tools; those in our own files are told by
            :func:`~dyndeploy.nets.read_trained`.
        notes: What else has to be said: phrases without a full stop.
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
    weights: str = "plain"
    averaged: bool = False
    others: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    classes: tuple[int | None, int] | None = None
    started: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def untrained(self) -> tuple[str, ...]:
        """Weights of the network that the file lacks, counters excepted: what they decide is left to chance."""
        return tuple(key for key in self.missing if not key.endswith(OPTIONAL_SUFFIX) and key not in set(self.started))

    def summary(self) -> str:
        """Return the report as a few lines for a log."""
        lines = [f"Loaded {self.path} ({self.source_format} format)."]
        if self.epoch is not None:
            lines.append(f"Epoch {self.epoch}.")
        for title, keys in (
            ("Missing, left as they were", [key for key in self.missing if key not in {*self.fresh, *self.started}]),
            ("Unexpected, ignored", self.unexpected),
        ):
            if keys:
                lines.append(f"{title}: {listing(keys)}.")
        if self.classes is not None:
            theirs, ours = self.classes
            left = "It has no classifier" if theirs is None else f"Its classifier of {theirs} classes left out"
            lines.append(f"{left}; a fresh one for {ours}.")
        if self.renamed:
            lines.append(f"Renamed: {listing([f'{old} -> {new}' for old, new in self.renamed])}.")
        if self.averaged:
            lines.append(f"'{self.weights}' is a moving average of the weights.")
        if self.others:
            lines.append(f"'{self.weights}' was taken; the file also holds {listing(self.others)}: --weights NAME.")
        lines += [f"Note: {note}." for note in self.notes]
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
                f"Cannot write {Path(path)}: {first_line(error)}. Nothing was changed; choose another path."
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


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    averaged: bool = False,
    classes: int | None = None,
) -> LoadReport:
    """Load weights into a network, checking everything first.

    Nothing in the file is executed. On any error the network is exactly as before.

    Args:
        model: Any network; one that has ``checkpoint_rules()`` says what its files may lack.
        path: Checkpoint file in any of the known layouts.
        weights: Which of several sets in the file: ``"ema"`` for the moving average of the weights that many training
            scripts keep beside them, else the name of the entry or the prefix ("model_ema", "teacher"). None takes the
            weights themselves, and the average only where there is nothing else.
        averaged: As ``weights="ema"``.
        classes: Number of the network's classes where training starts from the file: then a classifier of other classes
            is left out, or may be missing, and a file of a static backbone is enough, also with torchvision's names;
            of a detector of another kind its backbone is taken. The report says what stays fresh.

    Returns:
        A report of what was missing, unexpected and renamed. Only our own files tell whether spatial maskers
        were trained in mode "spatial" or "layer", and with which granularity, and how many heads the
        self-attention of a Dynamic Perceiver has.

    Raises:
        CheckpointError: The file is missing, damaged or hostile, holds no weights, belongs to another network
            or another mode, or holds NaN or infinite values.
    """
    source = Path(path)
    content = read_checkpoint(source)
    own = model.state_dict()
    rules_of = getattr(model, "checkpoint_rules", CheckpointRules)
    rules: CheckpointRules = rules_of()
    names = {**rules.other_names(), **({} if classes is None else rules.start_names())}
    wanted = weights or (EMA if averaged else rules.preferred if _holds(content, rules.preferred) else None)
    chosen, others = choose_weights(content, own, wanted, source, names)
    found = rules.adapted(chosen.weights)
    if classes is not None:
        found = rules.start_weights(found)
    fresh, exchanged = ((), None) if classes is None else _fresh_classifier(model, rules, own, found, classes)
    found = {key: value for key, value in found.items() if key not in fresh}
    source_format = _source_format(source, content, chosen)
    differences = _option_differences(content, model) if source_format == "dyndeploy" else ()

    missing = tuple(key for key in own if key not in found)
    unexpected = tuple(key for key in found if key not in own)
    needed = [
        key for key in missing if key not in fresh and (classes is None or not rules.may_start_without(key, found))
    ]
    _check_architecture(source, rules, own, found, needed, unexpected)
    options = content.get("options") if source_format == "dyndeploy" else None
    conflict = rules.conflict(found, options if isinstance(options, Mapping) else {})
    if conflict:
        raise CheckpointError(f"{source} {conflict}")
    _check_shapes(source, rules, own, found)
    accepted = _converted(source, model, own, found)
    started = {key: value for key, value in rules.start_values(found).items() if key in missing}

    model.load_state_dict(own | {key: value.to(own[key]) for key, value in started.items()} | accepted)
    extra = content.get("extra", {}) if source_format == "dyndeploy" else {}
    epoch = extra.get("epoch") if source_format == "dyndeploy" else content.get("epoch", meta_of(content).get("epoch"))
    class_names, odd_names = _class_names(content, model, exchanged)
    return LoadReport(
        path=source,
        source_format=source_format,
        missing=missing,
        unexpected=(*unexpected, *chosen.ignored),
        renamed=tuple(chosen.renamed.items()),
        option_differences=differences,
        epoch=int(epoch) if isinstance(epoch, (int, float, np.number)) else None,
        architecture=_first_string(content, "model", "arch"),
        extra=MappingProxyType(dict(extra)),
        weights=chosen.name,
        averaged=chosen.averaged,
        others=others,
        assumed=() if options else rules.assumed(found),
        untold=() if options else rules.untold(found),
        fresh=fresh,
        classes=exchanged,
        started=tuple(started),
        class_names=class_names,
        notes=(*rules.notes(), *odd_names),
    )


def _class_names(
    content: Any, model: nn.Module, exchanged: tuple[int | None, int] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that a file of another tool has for the network's classes, and what is odd about them: phrases."""
    names, classes = noted_classes(content), _options(model).get("num_classes")
    if not names or classes is None or exchanged is not None:
        return (), ()
    if len(names) != classes:
        return (), (f"it names {len(names)} classes and its weights have {classes}: its names are left out",)
    return names, ()


def _holds(content: Any, entry: str | None) -> bool:
    """Whether a file has a set of weights in an entry of this name."""
    return entry is not None and isinstance(content, Mapping) and isinstance(content.get(entry), Mapping)


def _fresh_classifier(
    model: nn.Module, rules: CheckpointRules, own: Mapping[str, Tensor], found: Mapping[str, Tensor], classes: int
) -> tuple[tuple[str, ...], tuple[int | None, int] | None]:
    """Weights of classifiers that the file lacks or has for other classes, and (classes there, classes here)."""
    fresh: list[str] = []
    theirs: int | None = None
    for name in rules.classifiers(model, classes):
        keys = [key for key in own if key.startswith(f"{name}.")]
        there = [key for key in keys if key in found]
        if there and all(found[key].shape == own[key].shape for key in there):
            continue
        fresh += keys
        for key in there:
            # Some layers have several outputs for every class; one that reads logits has them as its second axis.
            if theirs is None and found[key].shape != own[key].shape and found[key].shape[1:] == own[key].shape[1:]:
                each, rest = divmod(own[key].shape[0], classes)
                if not rest and each and found[key].shape[0] % each == 0:
                    theirs = found[key].shape[0] // each
    return tuple(fresh), (theirs, classes) if fresh else None


def _first_string(fields: Mapping[str, Any], *keys: str) -> str | None:
    return next((fields[key] for key in keys if isinstance(fields.get(key), str)), None)


def _source_format(source: Path, content: Mapping[str, Any], chosen: WeightSet) -> str:
    container = chosen.container
    if content.get("format") == FORMAT:
        version = content.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise CheckpointError(
                f"{source} has version {version!r}; this release reads up to {VERSION}. Update dyndeploy."
            )
        return "dyndeploy"
    if any(LASNET_MASKER.search(key) for key in chosen.renamed):
        return "lasnet"
    if container == "state_dict" and "hyper_set" in content:
        return "laudnet"
    if container in ("model", "model_ema") and options_of(chosen.weights):
        return "dyn_perceiver"
    if (
        container == "plain"
        and any(map(_TORCHVISION.__contains__, chosen.weights))
        and not masker_kinds(chosen.weights)
    ):
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
    missing: Sequence[str],
    unexpected: Sequence[str],
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


def _converted(
    source: Path, model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the common weights in the network's dtypes, all of them usable."""
    accepted = {key: value.to(own[key].dtype) for key, value in weights.items() if key in own}
    problem = unusable_state(model, accepted)
    if problem:
        key = problem.split()[0]
        if bool(torch.isfinite(weights[key]).all()) and not bool(torch.isfinite(accepted[key]).all()):
            raise CheckpointError(
                f"{source}: {key} holds values too large; they do not fit {own[key].dtype}: load before .half()."
            )
        raise CheckpointError(
            f"{source}: {problem}; training diverged or the file is damaged: use an earlier checkpoint."
        )
    return accepted
