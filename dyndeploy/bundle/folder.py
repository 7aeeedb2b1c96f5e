"""The bundle as a folder: open and check. (It is written by ``dyndeploy.export``.)"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dyndeploy import files
from dyndeploy.bundle.manifest import Manifest
from dyndeploy.errors import BundleError, InputError

MANIFEST = "bundle.json"
MODEL = "model.onnx"
STATIC = "static.onnx"
REFERENCE = "reference.npz"


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
            BundleError: The folder is missing, is no bundle, or has another schema version.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            what = "has no bundle.json" if folder.is_dir() else "does not exist" if not folder.exists() else "is a file"
            raise BundleError(f"{folder} {what}: it is no bundle. Write one with 'dyndeploy export ... -o {folder}'.")
        try:
            content = files.read_json(folder / MANIFEST)
        except InputError as error:
            raise BundleError(f"The bundle is damaged: {error}") from error
        return cls(folder, Manifest.from_json(content))

    @property
    def model(self) -> Path:
        """Path of ``model.onnx``."""
        return self.path / MODEL

    @property
    def static(self) -> Path | None:
        """Path of the static twin, or None if the bundle was exported without ``--static``."""
        return self.path / STATIC if STATIC in self.manifest.files else None

    def damaged_files(self) -> dict[str, str]:
        """Check every file against its SHA-256; returns what is wrong by relative path (empty: all well)."""
        damaged = {}
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                damaged[name] = "missing"
            elif files.sha256(path) != expected:
                damaged[name] = "content does not match its checksum"
        return damaged

    def require_intact(self) -> None:
        """Raise ``BundleError`` if any file is missing or changed."""
        damaged = self.damaged_files()
        if damaged:
            details = ", ".join(f"{name} ({what})" for name, what in damaged.items())
            raise BundleError(f"The bundle {self.path} is damaged: {details}. Export or copy it again.")

    def reference(self) -> dict[str, npt.NDArray[np.float32]]:
        """Tensors of ``reference.npz``: ``input`` and every graph output by name, stacked over the images.

        Raises:
            BundleError: The file is missing or unreadable.
        """
        try:
            with np.load(self.path / REFERENCE, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"Cannot read {self.path / REFERENCE}: {error}. Export the bundle again.") from error
