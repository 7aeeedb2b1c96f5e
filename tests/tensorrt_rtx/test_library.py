"""The C++ plugins in NVIDIA's own registry and builder, where headers of TensorRT 11 are (see ``test_contract``)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes.native import NativeLibrary, native_library
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_ahead
from dyndeploy.runtimes.tensorrt_stand_ins import FORMAT
from tests.bundles import MODES, tiny_models
from tests.tensorrt.test_contract import NO_HEADERS, TOOLS, node_cases, run
from tests.tensorrt_rtx import test_bindings
from tests.tensorrt_rtx.conftest import VERSION
from tests.tensorrt_rtx.kinds import transformer
from tests.tensorrt_rtx.recorded import listed

pytestmark = [
    pytest.mark.skipif(not TOOLS, reason="no cmake or no C++ compiler"),
    pytest.mark.skipif(VERSION is None, reason=NO_HEADERS),
]
tensorrt = test_bindings.tensorrt


def test_the_contract_holds_in_the_real_registry(built: Path, library: NativeLibrary, rtx: BuilderPackage) -> None:
    with rtx.process_environment() as environment:
        summary = run(built / "contract_loaded", library.path, env=environment)
    match = re.search(rf"TensorRT {VERSION} headers, IPluginV3: (\d+) checks, 0 failed", summary)
    assert match and int(match[1]) > 7000, summary


def stored(engine: bytes) -> list[tuple[str, bytes]]:
    """The plugins of an engine, and the bytes of what it keeps of each: fields in the builder's own coding."""
    found = []
    # Behind the name of the last field stand its type, its length and the four bytes of its value.
    for last in re.finditer(rb"dyndeploy_format\x07.{33}INT32.{14}(.{4})", engine, re.DOTALL):
        begins = {name: engine.rfind(name.encode() + b"\x13", 0, last.start()) for name in OPERATORS}
        name = max(begins, key=begins.__getitem__)
        assert last[1] == FORMAT.to_bytes(4, "little")
        found.append((name, engine[begins[name] : last.end()]))
    return found


@pytest.mark.parametrize("mode", [*MODES, "transformer"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_library_and_its_stand_ins_give_the_same_engine(
    mode: str, precision: str, library: NativeLibrary, rtx: BuilderPackage, tmp_path: Path
) -> None:
    source = transformer(tmp_path, "token head layer")["model"][0] if mode == "transformer" else tiny_models(mode)[0]
    theirs = build_ahead(source, precision, library=library, package=rtx)
    ours = build_ahead(source, precision, package=rtx)
    assert theirs.plugins == f"libdyndeploy_tensorrt.so (sha256 {library.sha256})"
    assert theirs.plan.library_sha256 == library.sha256 and ours.plan.library_sha256 is None
    assert listed(theirs.built) == listed(ours.built)
    assert stored(ours.engine) == stored(theirs.engine) and len(stored(ours.engine)) >= 4


@pytest.mark.skipif("DYNDEPLOY_TENSORRT_LIBRARY" not in os.environ, reason="DYNDEPLOY_TENSORRT_LIBRARY is not set")
def test_with_the_real_kernels_the_bytes_are_equal(rtx: BuilderPackage) -> None:
    """The library must be built against headers of TensorRT 11, with nvcc: scratch memory is then the kernels' own."""
    source, _, _ = tiny_models("both")
    real = native_library(os.environ["DYNDEPLOY_TENSORRT_LIBRARY"])
    for precision in ("fp32", "fp16"):
        theirs = build_ahead(source, precision, library=real, package=rtx)
        ours = build_ahead(source, precision, package=rtx)
        assert [layer.workspace for layer in ours.built.layers] == [layer.workspace for layer in theirs.built.layers]
        assert ours.engine == theirs.engine


def test_a_wrong_node_is_refused_in_words(library: NativeLibrary, rtx: BuilderPackage) -> None:
    from tests.tensorrt_rtx import test_refusals

    for way, message in (
        ("count", "the node has 10 inputs and 1 outputs, expected 11 and 1"),
        ("shape", "w1"),
        ("attribute", "attribute dilations is missing"),
    ):
        assert re.search(message, test_refusals.refusal(way, rtx, library)), way


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_bindings_load_the_library(tensorrt: BuilderPackage, library: NativeLibrary, tmp_path: Path) -> None:
    said = test_bindings.through(tensorrt, tmp_path, library.path, stand_ins=False)
    assert said["stand_ins"] == 0
    test_bindings.check(said)
    assert len(node_cases()) == len(said["creators"])
