"""Engines of bundles, built ahead of time for GPUs that are not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.nets import create_model
from dyndeploy.runtimes.tensorrt_ahead import rtx_package
from dyndeploy.runtimes.tensorrt_engine import ENGINES, EngineSettings
from dyndeploy.runtimes.tensorrt_rtx import ahead_target, build_bundle_ahead


def installed() -> bool:
    try:
        rtx_package()
    except DyndeployError:
        return False
    return True


needs_rtx = pytest.mark.skipif(not installed(), reason="TensorRT-RTX is not installed: pip install 'dyndeploy[rtx]'")


@pytest.fixture(scope="module")
def spatial(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    network = create_model("laud_resnet14_small", mode="spatial", granularity=(4, 2, 2, 1))
    settings = ExportSettings(target="rtx4090", precision="fp16", static=True)
    return export_model(network, tmp_path_factory.mktemp("rtx") / "b", settings)


def test_only_gpus_that_it_supports(tmp_path: Path) -> None:
    network = create_model("laud_resnet14_small", mode="layer")
    bundle = export_model(network, tmp_path / "b", ExportSettings(target="nano"))
    with pytest.raises(UsageError, match="no engines for nano: it builds ahead of time for rtx3060, rtx3090, rtx4090"):
        ahead_target(bundle)


def test_another_target_and_another_runtime_are_refused(spatial: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engine", str(spatial.path), "--target", "rtx3090"]) == 2
    assert "exported for rtx4090, not for rtx3090: export it again with --target rtx3090" in capsys.readouterr().err
    assert run(["engine", str(spatial.path), "--runtime", "tensorrt-rtx"]) == 2
    assert "Did you mean 'tensorrt_rtx'" in capsys.readouterr().err


@pytest.mark.skipif(installed(), reason="it is installed")
def test_how_to_get_it(spatial: Bundle) -> None:
    with pytest.raises(DyndeployError, match=r"pip install 'dyndeploy\[rtx\]'"):
        build_bundle_ahead(spatial)


@needs_rtx
def test_engines_of_a_bundle(spatial: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engine", str(spatial.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    dynamic, static = found["engines"]
    assert (dynamic["graph"], static["graph"]) == ("dynamic", "static twin")
    assert not dynamic["cached"] and dynamic["run"] is False
    plugins = [layer for layer in dynamic["layers"] if layer["kind"] == "custom_layer"]
    assert len(plugins) == 2 * 4, "a masker and a block in each of four places"
    assert not [layer for layer in static["layers"] if layer["kind"] == "custom_layer"]
    blocks = [layer["outputs"][0]["type"] for layer in plugins if "Bottleneck" in layer["name"]]
    assert blocks == ["float16"] * 4
    assert Path(dynamic["path"]).parent == spatial.path / ENGINES
    assert set(found["predicted"]) == {"dynamic at the rates of the reference images", "static twin"}
    assert len({prediction["runtime"] for prediction in found["predicted"].values()}) == 1
    # The bundle is as it was: engines lie outside its seal.
    Bundle.open(spatial.path).require_intact()

    assert run(["engine", str(spatial.path)]) == 0
    printed = capsys.readouterr().out
    assert "built, not run" in printed and "found" in printed and "Predicted for rtx4090, static twin" in printed


@needs_rtx
def test_a_damaged_engine_is_built_again(spatial: Bundle, tmp_path: Path) -> None:
    settings = EngineSettings(static=True, cache=tmp_path)
    [first] = build_bundle_ahead(spatial, settings)
    assert build_bundle_ahead(spatial, settings)[0].cached
    first.path.write_bytes(first.path.read_bytes()[:-7])
    [again] = build_bundle_ahead(spatial, settings)
    assert not again.cached and again.path == first.path
    assert again.path.stat().st_size == again.metadata["engine_bytes"]
