"""Building in a process of its own: what it is given, and what is said where it does not come back. No TensorRT."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.runtimes import tensorrt_ahead
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_planned, require_capability, rtx_package
from dyndeploy.runtimes.tensorrt_device import creators, interface_version, version_text
from dyndeploy.runtimes.tensorrt_plan import plan_build
from tests.bundles import tiny_models
from tests.runtimes.fake_tensorrt import World, make_tensorrt

PACKAGE = BuilderPackage("no_such_tensorrt", "RTX 1.7.1", ())


def test_rtx_has_the_interface_of_11() -> None:
    trt = make_tensorrt(World("11.1.0"))
    assert version_text(trt) == "11.1.0" and interface_version("11.1.0") == (11, 1, 0)
    trt.__name__, trt.__version__ = "tensorrt_rtx_bindings", "1.7.1.116"
    assert version_text(trt) == "RTX 1.7.1.116"
    assert interface_version(version_text(trt)) >= (11,)
    assert creators(trt) == set()
    plan, _ = plan_build(tiny_models()[0], "fp16", "RTX 1.7.1.116", capabilities=("8.9",))
    assert plan.typed and plan.capabilities == ("8.9",) and plan.to_json()["capabilities"] == ["8.9"]


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_ahead, "_DISTRIBUTIONS", ("dyndeploy-no-such-package",))
    with pytest.raises(DyndeployError, match=r"pip install 'dyndeploy\[rtx\]'"):
        rtx_package()


def test_a_process_finds_libraries_by_further_names(tmp_path: Path) -> None:
    library = tmp_path / "libnumber.so.1"
    library.write_bytes(b"")
    package = BuilderPackage("m", "1", (tmp_path,), {"libnumber.so": library}, (tmp_path / "further",))
    with package.process_environment() as environment:
        first, second, *_ = environment["LD_LIBRARY_PATH"].split(os.pathsep)
        assert (Path(first) / "libnumber.so").resolve() == library and second == str(tmp_path)
        assert environment["PYTHONPATH"].startswith(f"{tmp_path / 'further'}{os.pathsep}")
        code = "import dyndeploy.runtimes.tensorrt_worker"
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert not Path(first).exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "TensorRT RTX 1.7.1 ended by SIGABRT before the engine was built"),
        ("raise SystemExit(3)", "ended with status 3.*Its last messages: none"),
        (
            "import sys, pathlib; f = pathlib.Path(sys.argv[1]);"
            "(f / 'messages.txt').write_text('INFO: begin\\nERROR: no memory\\nINFO: end\\n'); sys.exit(1)",
            "Its last messages: ERROR: no memory$",
        ),
        ("import sys; open(sys.argv[1] + '/answer.json', 'w').write('{'); sys.exit(0)", "ended with status 0"),
        (
            "import sys; open(sys.argv[1] + '/answer.json', 'w').write("
            '\'{"refused": "the graph is odd", "problems": ["A: why"], "errors": ["parser"]}\')',
            "^The graph is odd. A: why$",
        ),
    ],
)
def test_a_builder_that_ends(code: str, message: str) -> None:
    plan, copy = plan_build(tiny_models()[0], "fp32", PACKAGE.text)
    with pytest.raises(DyndeployError, match=message):
        build_planned(plan, copy, PACKAGE, worker=("-c", code))


def test_a_package_that_is_not_there() -> None:
    plan, copy = plan_build(tiny_models()[0], "fp32", PACKAGE.text)
    with pytest.raises(DyndeployError, match="No module named 'no_such_tensorrt'"):
        build_planned(plan, copy, PACKAGE)


def test_gpus_that_rtx_supports() -> None:
    assert require_capability("8.9") == "8.9"
    with pytest.raises(UsageError, match=r"does not support compute capability 9\.0: it has engines for 7\.5, 8\.6"):
        require_capability("9.0")
