"""Reading checkpoint files of any tool without executing anything in them, and saying what a file is instead."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import pickletools
import re
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dyndeploy.errors import CheckpointError
from dyndeploy.files import encoded

_TOOLS = (
    "accelerate", "addict", "apex", "deepspeed", "detectron2", "easydict", "fvcore", "hydra", "lightning",
    "lightning_fabric", "ml_collections", "mmcls", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "omegaconf",
    "pytorch_lightning", "timm", "torchmetrics", "yacs",
)  # fmt: skip
"""Packages that leave notes of their own beside the weights: settings, histories. They are passed over."""

_MOST_NOTES = 50
_SAVE_AGAIN = "save the weights alone: torch.save(model.state_dict(), path)"

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself: run 'git lfs pull' where it came from"),
    (b"<", "is a web page, not a checkpoint: the download gave a form or an error; open its address in a browser"),
    (b"\x89HDF", "is an HDF5 file (Keras): convert it to PyTorch first"),
    (b"\x93NUMPY", "is a NumPy array, not a checkpoint: save a state_dict with torch.save"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first (gunzip)"),
    (b"BZh", "is compressed by bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "is compressed by xz: unpack it first (unxz)"),
    (b"(\xb5/\xfd", "is compressed by zstd: unpack it first (unzstd)"),
)
"""How files begin that are whole, but no checkpoints, and what they are: a sentence that goes on after the name."""


def read_checkpoint(source: Path) -> Any:
    """Return what a file holds; raises ``CheckpointError`` where that is no checkpoint, or could run code."""
    if (source / ".metadata").exists():
        raise CheckpointError(
            f"{source} is a distributed checkpoint: make one file of it with 'python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE'."
        )
    if source.is_dir():
        raise CheckpointError(f"{source} is a folder: give the checkpoint file inside it.")
    if not source.exists():
        raise CheckpointError(f"{source} does not exist: check the path of the checkpoint.")
    try:
        if _is_safetensors(source):
            return _read_safetensors(source)
        return _load(source)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"Cannot read {source}: {error.strerror or error}.") from error
    except Exception as error:
        # torch.load raises whatever its parsers happen to stumble over in a damaged file.
        raise _unreadable(source, error) from error


def meta_of(content: Any) -> Mapping[str, Any]:
    """Return what OpenMMLab's tools note beside the weights; nothing of files of others."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def noted_classes(content: Any) -> tuple[str, ...]:
    """Return the names of the classes that OpenMMLab's tools note: releases 1 and 2 here, release 3 of the data set."""
    meta = meta_of(content)
    data = meta.get("dataset_meta")
    data = data if isinstance(data, Mapping) else {}
    for names in (meta.get("CLASSES"), data.get("classes"), data.get("CLASSES")):
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) and name for name in names):
            return tuple(encoded(name).decode() for name in names)
    return ()


def _load(source: Path) -> Any:
    notes: list[tuple[Any, str]] = []
    while True:
        try:
            # PyTorch warns of newer pickles, and says again in an error what it cannot read of them.
            with _harmless_globals(notes), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:
            asked = _asked_for(error)
            if asked is None or asked.partition(".")[0] not in _TOOLS or len(notes) == _MOST_NOTES:
                raise
            notes.append((_Note, asked))


class _Note:
    """Stands for an object of a training tool: takes all that is stored of it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return collections.OrderedDict()


def _plain_dict(*args: Any) -> dict[Any, Any]:
    return {}


def _plain_list(*args: Any) -> list[Any]:
    return []


@contextmanager
def _harmless_globals(notes: list[tuple[Any, str]]) -> Iterator[None]:
    """Let the unpickler build what training scripts like to store beside the weights.

    All of it holds data only: none can name a function to call.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    # Neither objects nor structures, whose contents NumPy would have to trust.
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes["All"] if kind not in "OV"}
    allowed: list[Any] = [
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        np.ndarray,
        np.dtype,
        *dtypes,
        argparse.Namespace,
        types.SimpleNamespace,
        *(
            (pure, f"pathlib{part}.{name}")
            for part in ("", "._local")
            for pure, name in (
                (pathlib.PurePosixPath, "PosixPath"),
                (pathlib.PureWindowsPath, "WindowsPath"),
                (pathlib.PurePosixPath, "PurePosixPath"),
                (pathlib.PureWindowsPath, "PureWindowsPath"),
            )
        ),
        (_plain_dict, "collections.defaultdict"),
        (_plain_list, "collections.deque"),
        *(dict, list, tuple, int, float, bool, str, frozenset, range, slice),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
        torch.torch_version.TorchVersion,
        *notes,
    ]
    with torch.serialization.safe_globals(allowed):
        yield


def _asked_for(error: Exception) -> str | None:
    """The Python object that the unpickler refused to build, by its path."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found.group(1) if found else None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without a full stop."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")


def _unreadable(source: Path, error: Exception) -> CheckpointError:
    asked = _asked_for(error)
    if asked is not None:
        return CheckpointError(
            f"{source} asks for the Python object {asked}, which could run code: it was not loaded, "
            f"nothing was executed. If you trust its origin, open it there and {_SAVE_AGAIN}."
        )
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{source} is a TorchScript program, not a checkpoint: save the state_dict() of the model instead."
        )
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return CheckpointError(f"{source} does not fit into the memory of this machine ({first_line(error)}).")
    what = _healthy(source)
    if what:
        return CheckpointError(f"{source} {what}.")
    # PyTorch's own text would advise to load the file unsafely.
    # Of several sentences the first says what; those after it guess why, at length.
    reason = "" if "weights_only" in str(error) else f" ({first_line(error).split('. ')[0]})"
    return CheckpointError(
        f"{source} is not a readable PyTorch checkpoint{reason}. It may be truncated or of another kind: "
        "download or copy it again."
    )


def _healthy(source: Path) -> str:
    """Say what a file is that is whole and yet cannot be loaded; empty where it may be damaged."""
    with source.open("rb") as stream:
        start = stream.read(512)
    if not start:
        return "is not a readable PyTorch checkpoint: it is empty. Download or copy it again"
    for begin, what in _STARTS:
        if start.lstrip().startswith(begin):
            return what
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it, and give the checkpoint in it"
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            records = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not records:
                return f"is a zip archive without a checkpoint (it holds {', '.join(archive.namelist()[:3])})"
            return "" if archive.testzip() else _pickled(archive.read(records[0]))
    return _pickled(source.read_bytes()) if start[:1] == b"\x80" else ""


def _pickled(data: bytes) -> str:
    """Say why a whole pickle is not read; empty where it is not whole."""
    stream = io.BytesIO(data)
    protocol = data[1] if len(data) > 1 else 0
    try:
        # A file of the old layout is a row of pickles; the weights come after three short ones.
        for _ in range(4):
            for _operation in pickletools.genops(stream):
                pass
            if stream.read(1) != b"\x80":
                break
            stream.seek(-1, io.SEEK_CUR)
    except Exception:
        return ""
    return (
        f"is whole, but pickled (protocol {protocol}) in a way that cannot be read without running what it holds. Load "
        f"it where it was made, and {_SAVE_AGAIN}, without another pickle_protocol"
    )


def _is_safetensors(source: Path) -> bool:
    with source.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < source.stat().st_size


def _read_safetensors(source: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f"{source} is a safetensors file, which needs a package of its own: pip install safetensors."
        ) from error
    return load_file(source)
