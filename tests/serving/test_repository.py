"""Repositories: what is written, and what is refused before anything is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import BundleError, DyndeployError, InputError, OutputError, UsageError
from dyndeploy.serving import ServingOptions, write_repository
from dyndeploy.serving import repository as module
from tests.bundles import many_bundle, resealed, tiny_bundle
from tests.detector_bundles import detector_bundle_by_hand
from tests.staged_bundles import staged_bundle


@pytest.fixture
def options(tmp_path: Path) -> ServingOptions:
    """With libraries that are only copied here."""
    for name in ("libdyndeploy.so", "libonnxruntime.so.1", "operators.so"):
        (tmp_path / name).write_text(name)
    return ServingOptions(
        library=tmp_path / "libdyndeploy.so",
        onnxruntime=str(tmp_path / "libonnxruntime.so.1"),
        native=str(tmp_path / "operators.so"),
    )


def named(bundle: Bundle, names: tuple[str, ...]) -> Bundle:
    return resealed(bundle, network=replace(bundle.manifest.network, class_names=names))


def parameter(config: str, key: str) -> str:
    found = re.search(rf'key: "{key}"\n\s*value {{\n\s*string_value: "(.*)"', config)
    assert found is not None
    return found[1]


def test_a_repository_holds_all_that_a_server_needs(tmp_path: Path, options: ServingOptions) -> None:
    names = (*(f"class {index}" for index in range(9)), "two\nlines")
    bundle = named(tiny_bundle(tmp_path / "tiny"), names)
    (model,) = write_repository({"tiny": bundle.path}, tmp_path / "repository", options)
    assert (model.name, model.version, model.notes) == ("tiny", 1, ())
    folder = tmp_path / "repository" / "tiny"
    assert {path.name for path in (folder / "1").iterdir()} == {
        "model.py", "dyndeploy_runtime.py", "libdyndeploy.so", "libonnxruntime.so.1", "operators.so", "bundle",
    }  # fmt: skip
    assert Bundle.open(folder / "1" / "bundle").damaged_files() == {}
    assert (folder / "labels.txt").read_text().splitlines() == [*names[:9], "two lines"]
    config = (folder / "config.pbtxt").read_text()
    assert parameter(config, "onnxruntime") == "libonnxruntime.so.1"
    assert parameter(config, "native") == "operators.so"
    assert parameter(config, "runtime") == "onnxruntime"
    assert "dims: 10\n  label_filename" in config
    assert "not measured" in config.splitlines()[0]


def test_outputs_are_those_of_the_task(tmp_path: Path, options: ServingOptions) -> None:
    bundles = {
        "plain": tiny_bundle(tmp_path / "plain").path,
        "staged": staged_bundle(tmp_path / "staged").path,
        "boxes": detector_bundle_by_hand(tmp_path / "boxes").path,
    }
    write_repository(bundles, tmp_path / "repository", options)

    def outputs(name: str) -> list[str]:
        config = (tmp_path / "repository" / name / "config.pbtxt").read_text()
        return re.findall(r'^output {\n  name: "(\w+)"', config, re.MULTILINE)

    assert outputs("plain") == ["label", "score", "logits", "rates", "ms"]
    assert outputs("staged") == ["label", "score", "logits", "exit", "ms"]
    assert outputs("boxes") == [
        "count", "boxes", "scores", "labels", "category_ids", "class_names", "image_size", "rates", "ms",
    ]  # fmt: skip


def test_bundles_can_be_linked(tmp_path: Path, options: ServingOptions) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    write_repository({"tiny": bundle.path}, tmp_path / "repository", replace(options, link=True))
    assert (tmp_path / "repository" / "tiny" / "1" / "bundle").resolve() == bundle.path.resolve()


def test_an_update_adds_a_version_and_new_models(tmp_path: Path, options: ServingOptions) -> None:
    tiny, other = tiny_bundle(tmp_path / "tiny"), staged_bundle(tmp_path / "staged")
    repository = tmp_path / "repository"
    write_repository({"tiny": tiny.path}, repository, options)
    update = replace(options, update=True, instances=2)
    models = write_repository({"tiny": tiny.path, "staged": other.path}, repository, update)
    assert [(model.name, model.version) for model in models] == [("tiny", 2), ("staged", 1)]
    assert (repository / "tiny" / "1" / "model.py").is_file()
    assert Bundle.open(repository / "tiny" / "2" / "bundle").damaged_files() == {}
    assert "count: 2" in (repository / "tiny" / "config.pbtxt").read_text()
    with pytest.raises(UsageError, match=r"other inputs or outputs than the model 'tiny'"):
        write_repository({"tiny": other.path}, repository, update)
    assert not (repository / "tiny" / "3").exists()


def test_the_onnxruntime_backend_gets_the_graph_and_the_operators(tmp_path: Path, options: ServingOptions) -> None:
    bundle = tiny_bundle(tmp_path / "tiny", batch=2)
    write_repository(
        {"tiny": bundle.path}, tmp_path / "repository", replace(options, backend="onnxruntime", served_at="/models")
    )
    folder = tmp_path / "repository" / "tiny"
    assert (folder / "1" / "model.onnx").read_bytes() == bundle.model.read_bytes()
    config = (folder / "config.pbtxt").read_text()
    assert 'op_library_filename: "/models/tiny/1/operators.so"' in config
    assert "max_batch_size: 0" in config
    assert re.findall(r'^(?:input|output) {\n  name: "(.*)"', config, re.MULTILINE) == [
        "input", "logits", "mask/layer1.0/spatial", "mask/layer2.0/spatial",
    ]  # fmt: skip


def test_a_bundle_of_a_jetson_says_so_to_the_server(tmp_path: Path, options: ServingOptions) -> None:
    bundle = tiny_bundle(tmp_path / "nano", target="nano")
    write_repository({"nano": bundle.path}, tmp_path / "repository", options)
    config = (tmp_path / "repository" / "nano" / "config.pbtxt").read_text()
    assert [parameter(config, key) for key in ("machine", "runtime", "target")] == ["aarch64", "tensorrt", "nano"]
    # On the CPU of any server, where that is asked for.
    write_repository({"nano": bundle.path}, tmp_path / "cpu", replace(options, runtime="onnxruntime"))
    config = (tmp_path / "cpu" / "nano" / "config.pbtxt").read_text()
    assert parameter(config, "runtime") == "onnxruntime"
    assert parameter(config, "machine") == module.platform.machine()


Spoil = Callable[[Path, ServingOptions], tuple[dict[str, Path], ServingOptions]]


def _damaged(folder: Path, options: ServingOptions) -> tuple[dict[str, Path], ServingOptions]:
    bundle = tiny_bundle(folder / "tiny")
    bundle.model.write_bytes(b"")
    return {"tiny": bundle.path}, options


BAD: dict[str, tuple[Spoil, type[DyndeployError], str]] = {
    "damaged": (_damaged, BundleError, "is damaged"),
    "no bundle": (lambda folder, options: ({"x": folder}, options), BundleError, "it is no bundle"),
    "a name": (
        lambda folder, options: ({"a/b": tiny_bundle(folder / "tiny").path}, options), UsageError, "be a model's name"
    ),
    "no images": (
        lambda folder, options: ({"x": many_bundle(folder / "many").path}, options), UsageError, "not one image"
    ),
    "a detector's graph": (
        lambda folder, options: (
            {"x": detector_bundle_by_hand(folder / "boxes").path}, replace(options, backend="onnxruntime")
        ),
        UsageError, "is a detector",
    ),
    "stages": (
        lambda folder, options: ({"x": staged_bundle(folder / "s").path}, replace(options, backend="onnxruntime")),
        UsageError, "Export with --graph if",
    ),
    "no engine": (
        lambda folder, options: ({"x": tiny_bundle(folder / "tiny").path}, replace(options, backend="tensorrt")),
        UsageError, "give --engines DIR",
    ),
    "no library": (
        lambda folder, options: ({"x": tiny_bundle(folder / "tiny").path}, replace(options, library=folder / "lib.so")),
        UsageError, "Build plugins/runtime",
    ),
    "no such backend": (
        lambda folder, options: ({"x": tiny_bundle(folder / "tiny").path}, replace(options, backend="pytorch")),
        UsageError, "Known: python, onnxruntime, tensorrt",
    ),
    "no profile": (
        lambda folder, options: ({"x": tiny_bundle(folder / "tiny").path}, replace(options, profiles=[folder / "p"])),
        InputError, "Cannot read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_end_before_anything_is_written(tmp_path: Path, options: ServingOptions, case: str) -> None:
    spoil, kind, message = BAD[case]
    bundles, changed = spoil(tmp_path, options)
    with pytest.raises(kind, match=message):
        write_repository(bundles, tmp_path / "repository", changed)
    assert not (tmp_path / "repository").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path, options: ServingOptions) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "mine").write_text("kept")
    with pytest.raises(OutputError, match="exists, and a server may be reading it"):
        write_repository({"tiny": bundle.path}, tmp_path / "repository", options)
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["mine"]


def test_the_command_names_models_and_says_what_it_wrote(
    tmp_path: Path, options: ServingOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    command = [
        "serve-config", f"first={bundle.path}", f"second={bundle.path}", "-o", str(tmp_path / "repository"),
        "--library", str(options.library), "--onnxruntime", str(options.onnxruntime), "--native", "off",
    ]  # fmt: skip
    assert run(command) == 0
    assert f"tritonserver --model-repository={tmp_path / 'repository'}" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "repository").iterdir()} == {"first", "second"}
    assert run(command) == 1
    assert "--update" in capsys.readouterr().err
    assert run(["serve-config", str(bundle.path), str(bundle.path), "-o", str(tmp_path / "other")]) == 2
    assert "Two bundles would be the model 'tiny'" in capsys.readouterr().err
