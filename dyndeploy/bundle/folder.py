"""The bundle as a folder: open and check. (It is filled by ``dyndeploy.export``.)"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy import files
from dyndeploy.bundle.manifest import (
    INPUT,
    SEAL,
    ExitsInfo,
    Manifest,
    MaskInfo,
    PartInfo,
    StageInfo,
    ThresholdInfo,
    sealed,
)
from dyndeploy.errors import BundleError, InputError, UsageError

if TYPE_CHECKING:
    import onnx

MANIFEST = "bundle.json"
MODEL = "model.onnx"
STATIC = "static.onnx"
BRANCHED = "branched.onnx"
REFERENCE = "reference.npz"


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write ``bundle.json`` of a bundle, sealed with its own checksum.

    Args:
        folder: The bundle; every other file is complete, since the manifest holds their checksums.
        manifest: Its content.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_json(Path(folder) / MANIFEST, sealed(manifest.to_json()))


@dataclass(frozen=True)
class Bundle:
    """An exported network with all that a device needs.

    Attributes:
        path: The folder.
        manifest: Its ``bundle.json``.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle without checking its checksums (see :meth:`damaged_files`).

        Raises:
            BundleError: The folder is missing, is no bundle, has another schema version, its manifest is malformed,
                or it lacks the checksum of a file that a bundle consists of.
        """
        folder = Path(path)
        try:
            present = (folder / MANIFEST).is_file()
        except OSError as error:
            raise BundleError(f"Cannot open the bundle {folder}: {error.strerror}.") from error
        if not present:
            what = "has no bundle.json" if folder.is_dir() else "does not exist" if not folder.exists() else "is a file"
            # Never advise to export into a folder that holds something else, least of all into a run.
            way = f"{folder} -o BUNDLE" if any(folder.glob("*.pt")) else "... -o BUNDLE"
            raise BundleError(f"{folder} {what}: it is no bundle. Write one with 'dyndeploy export {way}'.")
        try:
            content = files.read_json(folder / MANIFEST)
        except InputError as error:
            raise BundleError(f"The bundle is damaged: {error}") from error
        manifest = Manifest.from_json(content)
        # A file without a checksum would pass every check unseen.
        graphs = [MODEL] if manifest.exits is None else [stage.file for stage in manifest.exits.stages]
        if manifest.detection is not None:
            graphs += [part.file for part in (*manifest.detection.parts, *manifest.detection.static_parts)]
        required = [*graphs, REFERENCE, *(name for name in (STATIC, BRANCHED) if (folder / name).exists())]
        lacking = [name for name in required if name not in manifest.files]
        if lacking:
            raise BundleError(
                f"bundle.json is malformed: files lists no checksum of {', '.join(lacking)}. Export the bundle again."
            )
        return cls(folder, manifest)

    @property
    def model(self) -> Path:
        """Path of ``model.onnx``; raises ``UsageError`` for a network that exits early."""
        if self.manifest.exits is not None:
            raise UsageError(
                f"{self.manifest.network.name} in {self.path} exits early: it is a chain of stages, not one graph, and "
                "this step takes one graph. 'dyndeploy run', 'verify' and 'profile' take stages; static.onnx "
                "(--static) is the whole network without exits."
            )
        return self.path / MODEL

    @property
    def exits(self) -> ExitsInfo:
        """Stages and thresholds; raises ``UsageError`` for a network without exits."""
        if self.manifest.exits is None:
            raise UsageError(f"{self.manifest.network.name} in {self.path} has no exits: it is one graph.")
        return self.manifest.exits

    @property
    def stages(self) -> tuple[Path, ...]:
        """Paths of the stages' graphs in order; raises ``UsageError`` for a network without exits."""
        return tuple(self.path / stage.file for stage in self.exits.stages)

    def stage_masks(self, stage: StageInfo) -> tuple[MaskInfo, ...]:
        """Masks that a stage decides on, in order of execution; their batch is the manifest's."""
        index = self.exits.stages.index(stage)
        return tuple(mask for mask in self.manifest.masks if mask.stage == index)

    @property
    def branched(self) -> Path | None:
        """Path of the stages as one graph with nested ``If``, or None if exported without ``--graph if``."""
        return self.path / BRANCHED if BRANCHED in self.manifest.files else None

    def with_thresholds(self, precision: str, thresholds: ThresholdInfo) -> Bundle:
        """Write the thresholds of a precision into the manifest, which is replaced and sealed in one step.

        Args:
            precision: Of the session or engine that they were calibrated on.
            thresholds: In the place of earlier ones of this precision.

        Returns:
            The bundle with its new manifest.

        Raises:
            UsageError: The network has no exits, or the thresholds do not fit its stages.
            BundleError: Another bundle was written to the folder since this one was opened.
            OutputError: The manifest cannot be written.
        """
        self.exits.check_thresholds(thresholds.values)
        # Where the folder above is not writable, nobody can put another bundle in the place of this one.
        guarded = self.path if os.access(self.path.resolve().parent, os.W_OK) else self.path / MANIFEST
        with files.locked(guarded):
            # Read again: another process may have stored thresholds of another precision, or exported anew.
            now = Bundle.open(self.path).manifest
            known = {} if now.exits is None else now.exits.thresholds
            if replace(self.manifest, exits=replace(self.exits, thresholds=known)) != now:
                raise BundleError(
                    f"Another bundle was written to {self.path} meanwhile. What was found for the earlier one does not "
                    "belong to it, and nothing was stored. Run the command again."
                )
            exits = replace(self.exits, thresholds={**known, precision: thresholds})
            write_manifest(self.path, replace(now, exits=exits))
        return Bundle.open(self.path)

    @property
    def static(self) -> Path | None:
        """Path of the static twin, or None if the bundle was exported without ``--static``."""
        return self.path / STATIC if STATIC in self.manifest.files else None

    def damaged_files(self) -> dict[str, str]:
        """Check every file against its SHA-256; returns what is wrong by relative path (empty: all well).

        ``bundle.json`` is checked, as it is on disk, against the checksum that it carries itself.
        """
        damaged = {}
        wrong = self._manifest_damage()
        if wrong:
            damaged[MANIFEST] = wrong
        for name, expected in self.manifest.files.items():
            path = self.path / name
            try:
                if not path.is_file():
                    damaged[name] = "missing"
                elif files.sha256(path) != expected:
                    damaged[name] = "content does not match its checksum"
            except OSError as error:
                damaged[name] = f"cannot be read: {error.strerror}"
        return damaged

    def _manifest_damage(self) -> str:
        try:
            content = files.read_json(self.path / MANIFEST)
        except InputError as error:
            return str(error)
        if not isinstance(content, dict) or SEAL not in content:
            return f"carries no {SEAL}"
        if content[SEAL] != sealed(content)[SEAL]:
            return "content does not match its checksum"
        return ""

    def require_intact(self) -> None:
        """Raise ``BundleError`` if any file is missing or changed."""
        damaged = self.damaged_files()
        if damaged:
            details = ", ".join(f"{name} ({what})" for name, what in damaged.items())
            raise BundleError(f"The bundle {self.path} is damaged: {details}. Export or copy it again.")

    def load_model(self) -> onnx.ModelProto:
        """Read ``model.onnx``.

        Raises:
            BundleError: The file is missing or cannot be decoded.
        """
        return _load_onnx(self.model)

    def load_stages(self) -> tuple[onnx.ModelProto, ...]:
        """Read the stages' graphs.

        Raises:
            UsageError: The network has no exits.
            BundleError: A file is missing or cannot be decoded.
        """
        return tuple(_load_onnx(path) for path in self.stages)

    @property
    def parts(self) -> tuple[PartInfo, ...]:
        """What the target runs in the place of ``model.onnx``, in order; empty where it runs that."""
        return () if self.manifest.detection is None else self.manifest.detection.parts

    @property
    def static_parts(self) -> tuple[PartInfo, ...]:
        """As :attr:`parts`, of the static twin; empty where the bundle holds none in parts."""
        return () if self.manifest.detection is None else self.manifest.detection.static_parts

    def load_engine_parts(self, *, static: bool = False) -> tuple[tuple[PartInfo, onnx.ModelProto], ...]:
        """Read the graphs of the parts that are engines; raises ``BundleError`` where one cannot be decoded."""
        parts = self.static_parts if static else self.parts
        return tuple((part, _load_onnx(self.path / part.file)) for part in parts if not part.host)

    def load_branched(self) -> onnx.ModelProto:
        """Read ``branched.onnx``; raises ``BundleError`` if the bundle holds none or it cannot be decoded."""
        if self.branched is None:
            raise BundleError(f"The bundle {self.path} holds no graph with branches. Export it with --graph if.")
        return _load_onnx(self.branched)

    def load_static(self) -> onnx.ModelProto:
        """Read ``static.onnx``, the static twin.

        Raises:
            BundleError: The bundle was exported without it, or the file is missing or cannot be decoded.
        """
        if self.static is None:
            raise BundleError(f"The bundle {self.path} holds no static twin. Export it again with --static.")
        return _load_onnx(self.static)

    def reference_inputs(self) -> dict[str, npt.NDArray[Any]]:
        """The reference tensors that the network takes, by name of its inputs, stacked over the samples.

        Raises:
            BundleError: The file is missing or unreadable, or lacks an input.
        """
        reference, names = self.reference(), [info.name for info in self.manifest.inputs]
        lacking = [name for name in names if name not in reference]
        if lacking:
            raise BundleError(f"{REFERENCE} of {self.path} lacks {', '.join(lacking)}. Export the bundle again.")
        return {name: reference[name] for name in names}

    def reference(self) -> dict[str, npt.NDArray[np.float32]]:
        """Tensors of ``reference.npz``: every graph input and output by name, stacked over the samples.

        A single input is also found under :data:`INPUT`, whichever name it was stored under.

        Raises:
            BundleError: The file is missing or unreadable.
        """
        path = self.path / REFERENCE
        try:
            archive = np.load(path, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array, not named ones")
            with archive:
                tensors = {name: archive[name] for name in archive.files}
        except _ARCHIVE_ERRORS as error:
            raise BundleError(
                f"Cannot read {path}: {error or type(error).__name__}. Export the bundle again."
            ) from error
        names = {INPUT, *(info.name for info in self.manifest.inputs)}
        stored = names & tensors.keys()
        if len(self.manifest.inputs) == len(stored) == 1:
            tensors |= dict.fromkeys(names, tensors[stored.pop()])
        return tensors


_ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    MemoryError,  # a damaged header can announce an array of any size
    RuntimeError,  # a damaged flag reads as "encrypted"; NotImplementedError: as an unknown compression
)


def _load_onnx(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path)
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise BundleError(f"Cannot read {path}: {error}. Export the bundle again.") from error
    # An empty or cut file can still be a valid message: one without a graph.
    if not model.HasField("graph"):
        raise BundleError(f"Cannot read {path}: it holds no graph. Export the bundle again.")
    return model
