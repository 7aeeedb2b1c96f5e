"""Packages that only detection needs: ``pip install 'dyndeploy[detection]'``."""

from __future__ import annotations

import importlib
from types import ModuleType

from dyndeploy.errors import UsageError


def required(name: str, need: str) -> ModuleType:
    """Import a package of the extra ``detection``.

    Args:
        name: Of the module, such as ``"cv2"``.
        need: Who needs what, as the beginning of a sentence: ``"Resizing images for a detector needs OpenCV"``.

    Raises:
        UsageError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{need} ({error}): pip install 'dyndeploy[detection]'.") from error
