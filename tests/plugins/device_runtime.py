"""The Python binding of the C++ runtime, loaded from where it lies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BINDING = Path(__file__).parent.parent.parent / "plugins" / "runtime" / "python" / "dyndeploy_runtime.py"


def binding() -> ModuleType:
    """The module ``dyndeploy_runtime``."""
    if "dyndeploy_runtime" not in sys.modules:
        spec = importlib.util.spec_from_file_location("dyndeploy_runtime", BINDING)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["dyndeploy_runtime"] = module
        spec.loader.exec_module(module)
    return sys.modules["dyndeploy_runtime"]
