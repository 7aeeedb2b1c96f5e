from __future__ import annotations

import subprocess
import sys

import pytest

import dyndeploy


def test_every_public_name_resolves() -> None:
    for name in dyndeploy.__all__:
        assert getattr(dyndeploy, name) is not None
    assert set(dyndeploy.__all__) == set(dir(dyndeploy))
    with pytest.raises(AttributeError, match="no attribute 'exprt_model'"):
        _ = dyndeploy.exprt_model


def test_import_needs_no_heavy_package() -> None:
    script = (
        "import sys, dyndeploy\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_public_name_says_what_it_is() -> None:
    for name in set(dyndeploy.__all__) - {"__version__"}:
        text = getattr(dyndeploy, name).__doc__ or ""
        assert text.strip().splitlines()[0].strip().endswith((".", ":")), name
