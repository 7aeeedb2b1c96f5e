"""Checkpoints as other tools leave them: loaded, or refused with the true reason."""

from __future__ import annotations

import collections
import pickle
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import CheckpointError
from dyndeploy.nets import create_model, load_checkpoint, save_checkpoint

Weights = dict[str, Tensor]


class Net(nn.Module):
    """Somebody's own network: nothing in it may be missing, nothing else may be in its files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 10)


def laud() -> nn.Module:
    return create_model("laud_resnet14_small", mode="spatial", width_mult=0.1)


NETWORKS: list[Callable[[], nn.Module]] = [Net, laud]


@pytest.fixture(params=NETWORKS, ids=["own", "laud"])
def make(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    torch.manual_seed(0)
    made: Callable[[], nn.Module] = request.param
    return made


def other(weights: Weights) -> Weights:
    return {key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def assert_loaded(model: nn.Module, weights: Weights) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def swapped(weights: Weights, names: dict[str, str]) -> Weights:
    return {next((new + key[len(old) :] for old, new in names.items() if key.startswith(old)), key): value
            for key, value in weights.items()}  # fmt: skip


LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "compiled": lambda w: prefixed("_orig_mod.", w),
    "compiled, then spread": lambda w: {"state_dict": prefixed("module._orig_mod.", w)},
    "spread, then compiled": lambda w: {"model": prefixed("_orig_mod.module.", w)},
    "spread twice": lambda w: prefixed("module.module.", w),
    "part of it compiled": lambda w: swapped(w, {"layer1.": "layer1._orig_mod."}),
    "part of it spread": lambda w: swapped(w, {"conv1.": "module.conv1.", "layer1.": "module.layer1."}),
    "checkpointed activations": lambda w: swapped(w, {"layer1.": "layer1._checkpoint_wrapped_module."}),
    "thop": lambda w: {**w, "total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1, dtype=torch.float64)},
    "thop, spread": lambda w: prefixed("module.", {**w, "layer1.total_ops": torch.ones(1), "total_ops": torch.ones(1)}),
    "a counter beside spread weights": lambda w: {**prefixed("module.", w), "epoch": torch.tensor(1)},
    "PyTorch's average": lambda w: {"n_averaged": torch.tensor(9), **prefixed("module.", w)},
    "texts beside the weights": lambda w: {**w, "epoch": 3, "arch": "net", "best": None},
    "only an average": lambda w: {"model_ema": w, "epoch": 3},
    "only an average, spread": lambda w: {"state_dict_ema": prefixed("module.", w)},
    "an average second": lambda w: {"model_ema": other(w), "model": w},
    "an average in the same dict": lambda w: {
        "state_dict": {**prefixed("ema_model.", other(w)), **prefixed("model.", w)}
    },
    "Lightning": lambda w: {
        "epoch": 3, "global_step": 1200, "pytorch-lightning_version": "2.4.0", "callbacks": {"best": torch.tensor(0.1)},
        "state_dict": {**prefixed("model.", w), "loss.weight": torch.ones(10), "accuracy.correct": torch.ones(3, 2)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}], "hyper_parameters": {"lr": np.float64(0.1)},
    },
    "Lightning, compiled": lambda w: {"state_dict": prefixed("model._orig_mod.", w)},
    "Lightning, called net": lambda w: {"state_dict": prefixed("net.", w)},
    "OpenMMLab": lambda w: {
        "meta": {"epoch": 100, "time": "now"},
        "state_dict": {
            **{("head." if key.startswith("fc") else "backbone.") + key: value for key, value in w.items()},
            "data_preprocessor.mean": torch.ones(3, 1, 1),
        },
    },
    "deeper": lambda w: {"checkpoint": {"model": {"state_dict": w}}},
    "an unusual entry": lambda w: {"generator": w, "step": 7},
    "BasicSR": lambda w: {"params": w, "params_ema": other(w)},
    "state of layers": lambda w: {**w, "layer1._extra_state": torch.ones(5, dtype=torch.uint8)},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, make: Callable[[], nn.Module], layout: str) -> None:
    weights = other(make().state_dict())
    torch.save(LAYOUTS[layout](weights), tmp_path / "c.pt")
    model = make()
    report = load_checkpoint(model, tmp_path / "c.pt")
    assert_loaded(model, weights)
    assert not report.missing
    assert report.averaged == ("average" in layout and layout.startswith("only"))


@pytest.mark.parametrize("wrap", ["module", "_orig_mod"])
def test_the_network_may_be_the_wrapped_one(tmp_path: Path, wrap: str) -> None:
    weights = other(Net().state_dict())
    torch.save(weights, tmp_path / "c.pt")
    model = nn.ModuleDict({wrap: Net()})
    load_checkpoint(model, tmp_path / "c.pt")
    assert_loaded(model, prefixed(f"{wrap}.", weights))


def test_a_child_called_module_is_no_wrapper(tmp_path: Path) -> None:
    source = nn.ModuleDict({"module": nn.Linear(2, 2), "gate": nn.Linear(2, 1)})
    save_checkpoint(source, tmp_path / "a.pt")
    target = nn.ModuleDict({"module": nn.Linear(2, 2), "gate": nn.Linear(2, 1)})
    load_checkpoint(target, tmp_path / "a.pt")
    assert_loaded(target, source.state_dict())


@pytest.mark.parametrize("layout", ["an average second", "an average in the same dict", "BasicSR"])
def test_the_average_is_taken_where_asked(tmp_path: Path, make: Callable[[], nn.Module], layout: str) -> None:
    weights = make().state_dict()
    torch.save(LAYOUTS[layout](weights), tmp_path / "c.pt")
    model = make()
    report = load_checkpoint(model, tmp_path / "c.pt", weights="ema")
    assert_loaded(model, other(weights))
    assert report.averaged and report.others and f"also holds {report.others[0]}" in report.summary()


def test_weights_are_chosen_by_name(tmp_path: Path) -> None:
    weights = Net().state_dict()
    torch.save({"student": weights, "teacher": other(weights), "optimizer": {"state": {}}}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"several sets of weights that fit: student, teacher.*--weights NAME"):
        load_checkpoint(Net(), tmp_path / "c.pt")
    model = Net()
    assert load_checkpoint(model, tmp_path / "c.pt", weights="teacher").weights == "teacher"
    assert_loaded(model, other(weights))
    for wanted, message in (("ema", "holds no averaged weights"), ("optimizer", "holds no weights 'optimizer'")):
        with pytest.raises(CheckpointError, match=rf"{message}.*is called: student, teacher"):
            load_checkpoint(Net(), tmp_path / "c.pt", weights=wanted)


def test_our_own_training_checkpoints_keep_the_average_deep_inside(tmp_path: Path) -> None:
    source = laud()
    average = other(source.state_dict())
    save_checkpoint(source, tmp_path / "checkpoint.pt", training={"ema": average, "recipe": {"seed": 0}})
    model = laud()
    assert load_checkpoint(model, tmp_path / "checkpoint.pt").others == ("ema",)
    assert_loaded(model, source.state_dict())
    report = load_checkpoint(model, tmp_path / "checkpoint.pt", weights="ema")
    assert report.averaged and report.source_format == "dyndeploy"
    assert_loaded(model, average)


def test_the_command_line_takes_the_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = laud().state_dict()
    torch.save({"model": weights, "model_ema": other(weights)}, tmp_path / "c.pt")
    command = ["export", "laud_resnet14_small", "--mode", "spatial", "--granularity", "4-4-2-1"]
    command += ["-O", "width_mult=0.1", "-o", str(tmp_path / "b")]
    assert run([*command, "--weights", "ema"]) == 2
    assert "give one" in capsys.readouterr().err
    command += ["--checkpoint", str(tmp_path / "c.pt")]
    assert run([*command, "--weights", "best"]) == 1
    assert "is called: model, model_ema" in capsys.readouterr().err
    assert run([*command, "--weights", "ema"]) == 0
    assert "'model_ema' is a moving average" in capsys.readouterr().err
    assert "the weights are 'model_ema' of c.pt" in Bundle.open(tmp_path / "b").manifest.notes
    assert run(command) == 0
    assert "'model' was taken; the file also holds model_ema" in capsys.readouterr().err


def test_two_halves_are_not_mixed(tmp_path: Path) -> None:
    weights = Net().state_dict()
    lacking = {key: value for key, value in weights.items() if not key.startswith("fc")}
    torch.save({"state_dict": {**prefixed("model.", lacking), **prefixed("teacher.", weights)}}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"lacks fc\.weight, fc\.bias"):
        load_checkpoint(Net(), tmp_path / "c.pt", weights="model")


VALUES: dict[str, Any] = {
    **{f"NumPy {kind}": np.dtype(kind).type(1) for kind in ("f2", "f4", "f8", "i1", "i8", "u1", "u2", "u8", "?", "c8")},
    "NumPy text": np.str_("a"),
    "NumPy date": np.datetime64("2020-01-01"),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "texts": np.array(["a", "bc"]),
    "state of NumPy's generator": np.random.RandomState(0).get_state(),
    "path": Path("a/b"),
    "default": collections.defaultdict(list, {"a": [1]}),
    "queue": collections.deque([1, 2], 5),
    "frozen": frozenset([1]),
    "range": range(3),
    "date": datetime(2024, 5, 6),
    "namespace": types.SimpleNamespace(lr=0.1),
    "version": torch.__version__,
    "type": torch.float16,
}


@pytest.mark.parametrize("value", VALUES)
def test_what_scripts_store_beside_the_weights(tmp_path: Path, value: str) -> None:
    source, target = Net(), Net()
    torch.save({"state_dict": source.state_dict(), "note": VALUES[value], "epoch": np.int64(4)}, tmp_path / "c.pt")
    assert load_checkpoint(target, tmp_path / "c.pt").epoch == 4
    assert_loaded(target, source.state_dict())


def test_notes_of_training_tools_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of packages that are not installed here, as OpenMMLab and Lightning store them."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values = np.arange(3.0)

    class ConfigDict(dict):  # type: ignore[type-arg]
        pass

    for kind in (HistoryBuffer, ConfigDict):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    source, target = Net(), Net()
    notes = {"loss": HistoryBuffer(), "cfg": ConfigDict(lr=0.1)}
    torch.save({"state_dict": prefixed("backbone.", source.state_dict()), "message_hub": notes}, tmp_path / "c.pt")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    load_checkpoint(target, tmp_path / "c.pt")
    assert_loaded(target, source.state_dict())


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "a")


def _tar(path: Path) -> None:
    path.with_suffix(".txt").write_text("a")
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_suffix(".txt"), "a.txt")


HEALTHY: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer pickles": (
        lambda path: torch.save(Net().state_dict(), path, pickle_protocol=4),
        r"is whole, but pickled \(protocol 4\).*torch\.save",
    ),
    "newer pickles, old layout": (
        lambda path: torch.save(Net().state_dict(), path, pickle_protocol=5, _use_new_zipfile_serialization=False),
        r"is whole, but pickled \(protocol 5\)",
    ),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": [1] * 99}, 4)) and None, "is whole, but pickled"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n") and None, "Git LFS"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>") and None, "is a web page"),
    "zip": (_zip, r"zip archive without a checkpoint \(it holds notes\.txt\)"),
    "tar": (_tar, "is a tar archive"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(99)) and None, "compressed by gzip"),
    "array": (lambda path: np.save(path.open("wb"), np.ones(3)), "is a NumPy array"),
    "Keras": (lambda path: path.write_bytes(b"\x89HDF\r\n" + bytes(99)) and None, "HDF5"),
    "own object": (
        lambda path: torch.save({"state_dict": {}, "x": Net}, path),
        r"Python object tests.*Net, which could",
    ),
    "meta": (
        lambda path: torch.save({k: v.to("meta") for k, v in Net().state_dict().items()}, path),
        "has a shape and no values",
    ),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_files_are_never_called_damaged(tmp_path: Path, kind: str) -> None:
    write, message = HEALTHY[kind]
    write(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(Net(), tmp_path / "c.pt")
    assert "truncated" not in str(caught.value) and "download or copy it again" not in str(caught.value)


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_damaged_files_with_newer_pickles_are(tmp_path: Path, layout: str, kept: float) -> None:
    path = tmp_path / "c.pt"
    torch.save(Net().state_dict(), path, pickle_protocol=4, _use_new_zipfile_serialization=layout == "new")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(Net(), path)


def test_distributed_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match="distributed checkpoint: make one file of it"):
        load_checkpoint(Net(), tmp_path)


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    source, target = Net(), Net()
    header, data = {}, b""
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    for key, value in source.state_dict().items():
        raw = value.numpy().tobytes()
        header[key] = {
            "dtype": kinds[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    (tmp_path / "c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match=r"is a safetensors file.*pip install safetensors"):
        load_checkpoint(target, tmp_path / "c.safetensors")
    monkeypatch.undo()
    pytest.importorskip("safetensors")
    load_checkpoint(target, tmp_path / "c.safetensors")
    assert_loaded(target, source.state_dict())


@pytest.mark.parametrize("network", [Net, laud], ids=["own", "laud"])
def test_negative_variances_are_refused(tmp_path: Path, network: Callable[[], nn.Module]) -> None:
    weights = network().state_dict()
    weights["bn1.running_var"][1] = -0.5
    torch.save({"model": prefixed("module.", weights)}, tmp_path / "c.pt")
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"c\.pt: bn1\.running_var holds variances that are not positive \(1 of"):
        load_checkpoint(model, tmp_path / "c.pt")
    assert_loaded(model, before)
