"""Names that were mistyped: what is suggested, and what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.errors import nearest_name, unknown_name
from dyndeploy.nets import model_names
from dyndeploy.targets import device_names, target_names

DEVICES = sorted({*device_names(), *target_names()})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("jetson-nano", "nano"),
        ("Nanno", "nano"),
        ("jetson-tx2", "tx2"),
        ("jetson-orin-nano", "orin_nano"),
        ("orinnano", "orin_nano"),
        ("nvidia-a100", "a100"),
        ("RTX-4090", "rtx4090"),
        ("rtx4080", None),  # another board, with another speed
        ("tx3", None),
        ("orin", None),  # three boards have that word in their names
        ("raspberry", None),
    ],
)
def test_a_board_is_suggested_only_where_it_was_meant(typed: str, meant: str | None) -> None:
    assert nearest_name(typed, DEVICES) == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("laud_resnet5", "laud_resnet50"),
        ("laudresnet50", "laud_resnet50"),
        ("laud_resnet_101", "laud_resnet101"),
        ("reg800m_perciever_t128", "reg800m_perceiver_t128"),
        ("laud_resnet152", None),
    ],
)
def test_a_network_is_suggested_with_its_own_numbers(typed: str, meant: str | None) -> None:
    assert nearest_name(typed, model_names()) == meant


@given(st.sampled_from(DEVICES), st.sampled_from(["jetson-", "nvidia_", "geforce ", ""]))
def test_a_vendors_name_in_front_changes_nothing(device: str, vendor: str) -> None:
    assert nearest_name(vendor + device, DEVICES) == device


@given(st.text(max_size=12))
def test_a_suggestion_is_always_a_known_name(typed: str) -> None:
    assert nearest_name(typed, DEVICES) in {None, *DEVICES}


@pytest.mark.parametrize(("typed", "meant"), [("fb16", "bf16"), ("fp61", "fp16"), ("fp17", None), ("int 8", "int8")])
def test_letters_in_the_wrong_order_are_a_slip_another_number_is_not(typed: str, meant: str | None) -> None:
    assert nearest_name(typed, ["bf16", "fp16", "fp32", "int8"]) == meant


def test_a_version_behind_a_name_without_one_is_left_out() -> None:
    assert nearest_name("cuda11", ["cpu", "cuda", "tensorrt"]) == "cuda"


def test_the_error_lists_what_there_is() -> None:
    assert str(unknown_name("mode", "spatail", ["spatial", "layer"])) == (
        "Unknown mode 'spatail'. Did you mean 'spatial'? Known: layer, spatial."
    )
    assert str(unknown_name("mode", "x", [])) == "Unknown mode 'x'. Known: (none)."
