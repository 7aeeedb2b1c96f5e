from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.nets import LaudResNet, load_checkpoint, model_names, registry, save_checkpoint
from dyndeploy.nets.factories import build_network, import_module, load_function, parse_options

OWN = """
from typing import Literal
from torch import nn
from neighbour import WIDTH
from dyndeploy.nets import model_info, register_model

class Net(nn.Module):
    def __init__(self, width: int = WIDTH, rate: float = 0.5, bias: bool = True, sides: tuple[int, ...] = (1, 2),
                 pair: tuple[int, float] | None = None, kind: Literal["a", "b"] = "a", plain=3, anything=None):
        super().__init__()
        self.linear = nn.Linear(width, 2, bias=bias)
        self.given = (rate, sides, pair, kind, plain, anything)

def needs(width: int):
    return Net(width)

def loose(**options):
    net = Net()
    net.given = options
    return net

def number():
    return 3

def fails():
    raise ValueError("no\\nway.")

made = Net()
"""

FAMILY = """
from dyndeploy.nets import model_info, register_model
info = model_info("laud_resnet14_small")

@register_model(family="mine", config_type=info.config_type, input_size=(16, 16), preprocessing=info.preprocessing,
                defaults={"num_classes": 4})
def laud_of_a_test(config):
    return info.entry_point(config)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n", encoding="utf-8")
    path = tmp_path / "own_net.py"
    path.write_text(OWN, encoding="utf-8")
    sys.modules.pop("neighbour", None)
    return str(path)


def test_a_file_makes_a_network_and_nothing_is_left_behind(own: str) -> None:
    path, bytecode = list(sys.path), sys.dont_write_bytecode
    one, other = build_network("Net", {"width": 7}, own), build_network("Net", None, own)
    assert (sys.path, sys.dont_write_bytecode) == (path, bytecode)
    assert type(one) is type(other)
    assert isinstance(one, nn.Module)
    assert [tuple(p.shape) for p in one.parameters()] == [(2, 7), (2,)]
    assert sorted(entry.name for entry in Path(own).parent.iterdir()) == ["neighbour.py", "own_net.py"]
    assert isinstance(build_network("needs", {"width": 3}, own), type(one))


def test_relative_files_begin_in_a_folder_or_here(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = build_network("Net", None, "own_net.py", folder=Path(own).parent)
    monkeypatch.chdir(Path(own).parent)
    assert type(build_network("Net", None, "own_net.py")) is type(there)
    # By name the file is another module; the working directory is searched only while it is imported.
    assert type(build_network("Net", None, "own_net")).__name__ == "Net"
    sys.modules.pop("own_net")


def test_a_registered_model_of_a_file_is_built_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    path = tmp_path / "family.py"
    path.write_text(FAMILY, encoding="utf-8")
    network = build_network("laud_of_a_test", {"mode": "layer", "width_mult": 0.1}, str(path))
    assert isinstance(network, LaudResNet)
    assert network.config.num_classes == 4
    assert "laud_of_a_test" in model_names()
    assert parse_options("laud_of_a_test", ["mode=layer"], str(path)) == {"mode": "layer"}
    # A network of the package needs no import, and may be named with one.
    assert isinstance(build_network("laud_resnet14_small", {"width_mult": 0.1}, str(path)), LaudResNet)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("Nett", {}, UsageError, "Did you mean 'Net'"),
        ("Net", {"widht": 3}, UsageError, r"'widht'\. Did you mean 'width'.* Known: anything, bias, kind"),
        ("needs", {}, UsageError, r"needs width: give them as options \(-O width=\.\.\.\)"),
        ("number", {}, UsageError, "gives int: a network is a torch.nn.Module"),
        ("fails", {}, UsageError, r"fails of .*own_net\.py raised ValueError: no way\.$"),
        ("made", {}, UsageError, "made of .* is Net: give the name of a function or class"),
        ("WIDTH", {}, UsageError, "WIDTH of .* is int: give the name of a function or class"),
    ],
)
def test_what_makes_no_network(
    own: str, name: str, options: dict[str, Any], error: type[DyndeployError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        build_network(name, options, own)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    for source in ("nowhere.py", str(tmp_path / "no" / "where.py")):
        with pytest.raises(InputError, match=r"There is no file .*where\.py\. Give the path"):
            import_module(source)
    with pytest.raises(InputError, match=r"There is no module no_such\.module"):
        import_module("no_such.module")
    broken = tmp_path / "broken.py"
    for text, message in (
        ("x = 1\nraise OSError('gone')\n", r"broken\.py, line 2 raised OSError: gone while it was imported\."),
        ("import no_such_package\n", r"line 1 raised ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = = 1\n", r"broken\.py raised SyntaxError"),
        ("import sys\nsys.exit(3)\n", "line 2 raised SystemExit: 3"),
    ):
        broken.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message) as caught:
            import_module(str(broken))
        assert "\n" not in str(caught.value)
    broken.write_text("x = 1\n", encoding="utf-8")
    assert import_module(str(broken)) is import_module(str(broken))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("width=3", 3),
        ("rate=1e-3", 0.001),
        ("bias=False", False),
        ("sides=4-4-2-1", (4, 4, 2, 1)),
        ("sides=4,4,2,1", (4, 4, 2, 1)),
        ("sides=(4, 2)", (4, 2)),
        ("sides=-1,2", (-1, 2)),
        ("sides=7", (7,)),
        ("pair=none", None),
        ("pair=2,0.5", (2, 0.5)),
        ("kind=b", "b"),
        ("plain=4", 4),
        ("anything={'a': 1}", {"a": 1}),
        ("anything=a-b", "a-b"),
    ],
)
def test_options_are_read_by_the_types_of_a_signature(own: str, text: str, value: Any) -> None:
    key = text.split("=")[0]
    assert parse_options("Net", [text], own) == {key: value}
    assert isinstance(build_network("Net", {key: value}, own), nn.Module)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width", "'-O width' is not valid: give key=value"),
        ("width=x", "-O width=x is not valid: give a whole number"),
        ("width=1.5", "give a whole number"),
        ("rate=fast", "give a number"),
        ("bias=1", "give true or false"),
        ("sides=4-x", "give whole numbers joined by '-' or ','"),
        ("pair=1,2,3", "give 2 values"),
        ("kind=c", "give one of a, b"),
        ("widht=3", "Did you mean 'width'"),
    ],
)
def test_options_that_do_not_fit(own: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options("Net", [text], own)
    assert message in str(caught.value)


def test_options_of_a_family_are_read_by_its_config_type() -> None:
    texts = ["mode=spatial-layer-both-static", "granularity=4-4-2-1", "channel-granularity=2", "width_mult=0.5"]
    assert parse_options("laud_resnet50", [*texts, "replace_stride_with_dilation=true,false,false"]) == {
        "mode": ("spatial", "layer", "both", "static"),
        "granularity": (4, 4, 2, 1),
        "channel_granularity": 2,
        "width_mult": 0.5,
        "replace_stride_with_dilation": (True, False, False),
    }
    assert parse_options("resnet10_small_perceiver_t32", ["depth_factor=1-0-0-0"]) == {"depth_factor": (1, 0, 0, 0)}
    with pytest.raises(UsageError, match="Unknown argument of resnet10_small_perceiver_t32 'mode'"):
        parse_options("resnet10_small_perceiver_t32", ["mode=layer"])
    with pytest.raises(UsageError, match="mode is given twice"):
        parse_options("laud_resnet50", ["mode=layer", "mode=both"])


def test_a_function_that_takes_anything_gets_anything(own: str) -> None:
    assert parse_options("loose", ["a=1", "b=text"], own) == {"a": 1, "b": "text"}


def test_functions_by_reference(own: str) -> None:
    assert load_function(f"{own}:number")() == 3
    assert load_function("math:sqrt")(4) == 2
    for reference, message in (("number", "names no function"), (f"{own}:", "names no function")):
        with pytest.raises(UsageError, match=message):
            load_function(reference)
    with pytest.raises(UsageError, match="and no function"):
        load_function("math:pi")


def test_checkpoints_of_any_network(own: str, tmp_path: Path) -> None:
    one, other = build_network("Net", None, own), build_network("Net", None, own)
    save_checkpoint(one, tmp_path / "w.pt", epoch=2)
    report = load_checkpoint(other, tmp_path / "w.pt")
    assert (report.source_format, report.epoch, report.missing, report.unexpected) == ("dyndeploy", 2, (), ())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(DyndeployError, match=r"linear\.weight has the shape \(2, 5\).*Create the network"):
        load_checkpoint(build_network("Net", {"width": 6}, own), tmp_path / "w.pt")
    with pytest.raises(DyndeployError, match=r"another architecture: it lacks linear\.bias"):
        save_checkpoint(build_network("Net", {"bias": False}, own), tmp_path / "n.pt")
        load_checkpoint(one, tmp_path / "n.pt")
