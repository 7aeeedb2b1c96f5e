"""The command line as users and scripts meet it: exit codes, stdout, stderr."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dyndeploy.bundle import Bundle
from dyndeploy.cli import COMMANDS, run
from dyndeploy.cli._arguments import print_table
from dyndeploy.cli._progress import progress_bar, progress_line
from dyndeploy.nets import create_model

NAME = "laud_resnet14_small"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "bundle"
    assert run(["export", NAME, "--mode", "layer", "--static", "-o", str(folder)]) == 0
    return folder


def test_models_and_targets_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "models", "--json")
    assert (code, err) == (0, "")
    assert {"laud_resnet50", "laud_resnet101", NAME} <= {model["name"] for model in json.loads(out)}
    code, out, _ = call(capsys, "targets", "--json")
    assert code == 0
    assert {"cpu", "nano", "tx2"} <= {target["name"] for target in json.loads(out)}
    code, out, _ = call(capsys, "targets", "nano", "--json")
    assert json.loads(out)["precisions"]["int8"]["supported"] is False
    assert "no INT8" in json.loads(out)["precisions"]["int8"]["reason"]
    code, out, _ = call(capsys, "targets", "nano")
    assert code == 0
    assert "has no INT8 instructions" in out
    assert "data-dependent output shape" in out
    assert "Where skipping can pay, predicted: ResNet-50" in out and "layer4" in out
    code, out, _ = call(capsys, "targets", "tx2", "--json")
    paying = json.loads(out)["break_even"]
    assert (paying["kind"], paying["precision"]) == ("predicted", "fp16")
    assert [stage["stage"] for stage in paying["stages"]] == ["layer1", "layer2", "layer3", "layer4", "all"]
    assert all(0 < stage["rate"] <= 1 for stage in paying["stages"])
    assert (list(paying["batches"]), paying["batches"]["1"]) == (["1"], paying["stages"])
    assert [each["static_ms"] for each in paying["published"]] == [15.7]
    code, out, _ = call(capsys, "targets", "h200")
    assert code == 0
    assert "Predicted rates up to which skipping pays, by batch:" in out
    assert "At batch 1 skipping cannot pay anywhere: predicted to cost more than it saves at any rate." in out
    code, out, _ = call(capsys, "targets", "cpu")
    assert code == 0 and "'dyndeploy profile' measures" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert command in out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert call(capsys, "--version")[:2] == (0, "0.1.0\n")
    assert call(capsys, "exprt")[0] == 2
    assert call(capsys, "export", "--nonsense")[0] == 2


def test_export_then_verify(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "verify", str(exported), "--json")
    report = json.loads(out)
    assert code == 0
    assert report["passed"] is True
    assert report["flipped_bits"] == 0


def test_export_options_reach_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    model = create_model(NAME, mode="both", channel_granularity=(4, 2, 2, 1), channel_masker_layers=1, num_classes=7)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "c.pth")
    arguments = ["--mode", "both", "--granularity", "8-4-2-1", "--channel-granularity", "4-2-2-1"]
    arguments += ["--channel-masker-layers", "1", "--num-classes", "7", "--batch", "2"]
    arguments += ["--input-size", "32x40", "--target", "tx2", "--json", "-q"]
    code, out, err = call(
        capsys, "export", NAME, *arguments, "--checkpoint", str(tmp_path / "c.pth"), "-o", str(tmp_path / "b")
    )
    manifest = json.loads(out)
    assert (code, err) == (0, "")
    assert manifest["network"]["granularity"] == [8, 4, 2, 1]
    assert manifest["network"]["channel_granularity"] == [4, 2, 2, 1]
    assert manifest["network"]["checkpoint"] == "c.pth"
    assert len(manifest["network"]["checkpoint_sha256"]) == 64
    assert (manifest["batch"], manifest["input_size"], manifest["opset"]) == (2, [32, 40], 13)
    assert manifest["outputs"][0]["shape"] == [2, 7]
    assert manifest["masks"][0]["shape"] == [2, 1, 4, 5]


def test_random_weights_are_said_to_be_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = call(capsys, "export", NAME, "--mode", "static", "-o", str(tmp_path / "b"))
    assert "weights are random" in err


def test_verify_fails_with_exit_code_1(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = shutil.copytree(exported, tmp_path / "b")
    content = bytearray((broken / "model.onnx").read_bytes())
    content[1000] ^= 1
    (broken / "model.onnx").write_bytes(content)
    code, out, _ = call(capsys, "verify", str(broken))
    assert code == 1
    assert "FAILED" in out
    assert "model.onnx" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "laud_resnet5", "-o", "{tmp}/b"], 2, "Did you mean 'laud_resnet50'"),
        (["export", NAME, "--target", "nanno", "-o", "{tmp}/b"], 2, "Did you mean 'nano'"),
        (["export", NAME, "--target", "nano", "--precision", "int8", "-o", "{tmp}/b"], 2, "no INT8 instructions"),
        (["export", NAME, "--target", "tx2", "--precision", "bf16", "-o", "{tmp}/b"], 2, "no BF16 instructions"),
        (["export", NAME, "--mode", "spacial", "-o", "{tmp}/b"], 2, "Did you mean 'spatial'"),
        (["export", NAME, "--granularity", "4-4-x-1", "-o", "{tmp}/b"], 2, "joined by '-'"),
        (["export", NAME, "--granularity", "4-4-2", "-o", "{tmp}/b"], 2, "3 entries"),
        (["export", NAME, "--input-size", "32x", "-o", "{tmp}/b"], 2, "HEIGHTxWIDTH"),
        (["export", NAME, "--checkpoint", "{tmp}/none.pth", "-o", "{tmp}/b"], 1, "none.pth"),
        (["export", NAME, "--checkpoint", "{tmp}/junk.pth", "-o", "{tmp}/b"], 1, "junk.pth"),
        (["export", NAME, "--data", "{tmp}/empty", "-o", "{tmp}/b"], 1, "no images"),
        (["export", NAME, "-o", "/proc/nowhere/b"], 1, "Cannot create the folder"),
        (["verify", "{tmp}/nowhere"], 1, "does not exist"),
        (["verify", "{tmp}"], 1, "no bundle.json"),
        (["targets", "jetson"], 2, "Unknown target"),
        (["predict", NAME + "x", "--device", "v100"], 2, "Unknown network"),
        (["predict", "laud_resnet50", "--device", "v1000"], 2, "Did you mean 'v100'"),
    ],
)
def test_bad_input(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.pth").write_bytes(os.urandom(2000))
    (tmp_path / "empty").mkdir()
    got, out, err = call(capsys, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert got == code
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "junk.pth"]


def test_no_heavy_import_for_light_commands() -> None:
    script = (
        "import sys\nfrom dyndeploy.cli import run\n"
        "run(['targets', '--json'])\n"
        "heavy = {'torch', 'onnxruntime', 'sklearn', 'matplotlib', 'tensorrt'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_interrupt_that_a_library_swallows_ends_the_next_step() -> None:
    script = (
        "import contextlib, signal, sys\n"
        "from dyndeploy.cli._progress import interrupt, progress_line\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "interrupt.install()\n"
        "with contextlib.suppress(KeyboardInterrupt):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "try:\n"
        "    progress_line('next')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 130


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("device list", 0, "No devices"),
        ("device add desk me@host", 2, "set HOME, XDG_CONFIG_HOME or DYNDEPLOY_DEVICES"),
        ("predict resnet50 --device nano", 0, "ms per image"),
        ("predict resnet50 --device cpu", 2, "not calibrated"),
        ("plan laud_resnet50", 2, "not calibrated"),
        ("calibrate-device", 2, "set HOME or XDG_CONFIG_HOME"),
        ("profile b --device nano", 2, "No address is known"),
    ],
)
def test_users_without_a_home(
    arguments: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "DYNDEPLOY_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # No entry in the list of users either.
    got, out, err = call(capsys, *arguments.split())
    assert got == code
    assert message in out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "my[file]"), "cannot use my[file]: Permission denied."),
        (FileNotFoundError(errno.ENOENT, "No such file", b"caf\xe9"), r"cannot use caf\udce9: No such file."),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write the output: No space left on device."),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the system refused: Cannot allocate memory."),
    ],
)
def test_what_the_system_refuses_is_called_what_it_is(
    error: OSError, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Bundle, "open", fail)
    assert call(capsys, "verify", "b") == (1, "", f"dyndeploy: {message}\n")


def test_names_of_users_are_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, exported: Path, tmp_path: Path
) -> None:
    names = ["cat[orig]", "set[/a]", "[red]x[/red]", ":cat:", "a\x1b[31mb", "long" * 50]
    print_table(("a[b]", "value"), [(name, 1) for name in names], title="[v2] " + "title " * 60)
    out, _ = capsys.readouterr()
    assert out.startswith("[v2] " + "title " * 59)
    for name in ("a[b]", *names[:4], r"a\x1b[31mb"):
        assert name in out
    assert out.count("long") >= 49 and "\x1b" not in out
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress_line("set[/a] \x1b[31m")
    with progress_bar() as show:
        show("set[/a]", 0.5)
    assert r"  set[/a] \x1b[31m ..." in capsys.readouterr().err
    bundle = shutil.copytree(exported, tmp_path / "b [/v2]".replace("/", "\\"))
    assert call(capsys, "verify", str(bundle))[1].startswith(f"{bundle}\n")
