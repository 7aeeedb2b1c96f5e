"""Times and MACs of a detector's parts: sums by the names of nodes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dyndeploy.cli._profile import print_profile
from dyndeploy.errors import InputError
from dyndeploy.measure import Profile, profile_bundle
from dyndeploy.measure.parts import PartTimes, StepTimes, parts_of
from tests.bundles import BLOCK_MACS, HEAD_MACS, STATIC_MACS, STEM_MACS, parted_bundle

NAMES = ["backbone", "neck", "heads", "post-processing", "other"]


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    bundle = parted_bundle(tmp_path_factory.mktemp("parted"), mode="layer")
    return profile_bundle(bundle, rates=(0.0, 1.0), repeats=2, warmup=1, native="off")


def test_macs_of_parts_and_the_dynamic_share(parted: Profile) -> None:
    none, full = parted.rates
    assert [part.name for part in none.parts] == NAMES
    backbone = STEM_MACS + sum(BLOCK_MACS.values())
    assert [part.static_macs for part in none.parts] == [backbone, 0, HEAD_MACS, 0, 0]
    maskers, projection = 8 + 16, 64 * 8 * 16
    assert [part.needed_macs for part in none.parts] == [STEM_MACS + maskers + projection, 0, HEAD_MACS, 0, 0]
    assert [part.needed_macs for part in full.parts] == [backbone + maskers, 0, HEAD_MACS, 0, 0]
    assert parted.dynamic_share == pytest.approx(sum(BLOCK_MACS.values()) / STATIC_MACS)
    assert parted.speedup_limit == pytest.approx(STATIC_MACS / (STEM_MACS + HEAD_MACS))
    whole = STATIC_MACS / sum(part.needed_macs for part in none.parts)
    assert none.ideal_speedup == pytest.approx(whole)
    part = none.part("backbone")
    assert part is not None
    assert part.ideal_speedup is not None
    assert none.ideal_speedup < part.ideal_speedup == backbone / (STEM_MACS + maskers + projection)
    assert none.part("tail") is None


def test_times_of_parts_are_those_of_their_blocks(parted: Profile) -> None:
    for result in (*parted.rates, parted.data):
        blocks = {part.name: part for part in (*result.blocks, *result.rest)}
        assert list(blocks) == ["layer1.0", "layer2.0", "stem", "neck", "heads", "post-processing", "other"]
        backbone = result.part("backbone")
        assert backbone is not None
        own = [blocks[name] for name in ("stem", "layer1.0", "layer2.0")]
        assert backbone.static_ms == pytest.approx(sum(block.static_ms for block in own))
        assert backbone.dynamic_ms == pytest.approx(sum(block.dynamic_ms for block in own))
        rest = result.part("post-processing")
        assert rest is not None
        assert rest.dynamic_ms == blocks["post-processing"].dynamic_ms > 0
        assert rest.realisation is None


def test_realisation_of_a_part_by_hand() -> None:
    static_ms, dynamic_ms = {"b.0": 6.0, "stem": 2.0, "neck": 1.0}, {"b.0": 3.0, "stem": 2.0}
    part = parts_of(static_ms, dynamic_ms, {"b.0": 90.0}, {"b.0": 45.0})[0]
    assert part == PartTimes("backbone", 8.0, 5.0, 90.0, 45.0)
    assert (part.ideal_speedup, part.realised_speedup, part.realisation) == (2.0, 1.6, 0.8)
    assert replace(part, dynamic_ms=0.0).realisation is None
    assert replace(part, static_macs=0.0).ideal_speedup is None


def test_parts_are_read_back(parted: Profile) -> None:
    value = json.loads(json.dumps(parted.to_json()))
    assert value["dynamic_share"] == parted.dynamic_share
    assert value["rates"][0]["parts"][0]["realisation"] == parted.rates[0].parts[0].realisation
    assert Profile.from_json(value) == parted
    for key in ("dynamic_macs", "dynamic_share"):
        del value[key]
    older = Profile.from_json(value)
    assert (older.dynamic_share, older.speedup_limit) == (None, None)


def test_networks_without_parts_have_none(profile: Profile) -> None:
    assert profile.data.parts == ()
    assert profile.dynamic_share is not None
    assert "parts" not in profile.to_json()["data"]


def test_the_table_says_how_far_skipping_carries(parted: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    print_profile(parted)
    text = " ".join(capsys.readouterr().out.split())
    assert "node profile, every node's fastest run of a few" in text
    assert "Dynamic share: 45.9% of the twin's MACs stand in blocks that can be skipped" in text
    assert "the whole would be 1.85x as fast" in text


def with_steps(profile: Profile) -> Profile:
    """The profile as if its target had run the network in two parts."""
    steps = (StepTimes("part0.onnx", False, 4.0, 2.5), StepTimes("part1.npz", True, 1.0, 1.25))
    rates = tuple(replace(rate, steps=steps) for rate in profile.rates)
    return replace(profile, rates=rates, data=replace(profile.data, steps=steps))


def test_steps_are_written_printed_and_read(parted: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    assert "steps" not in parted.to_json()["data"]
    stepped = with_steps(parted)
    value = json.loads(json.dumps(stepped.to_json()))
    assert value["rates"][0]["steps"][1] == {"name": "part1.npz", "host": True, "static_ms": 1.0, "dynamic_ms": 1.25}
    assert Profile.from_json(value) == stepped
    print_profile(stepped)
    out = capsys.readouterr().out
    assert "engines and host programs, measured in the rounds: median ms per batch" in out
    row = next(line for line in out.splitlines() if "part1.npz" in line)
    assert row.replace("│", "").split() == ["part1.npz", "host", "1.000", "1.250", "1.250", "1.250"]
    value["data"]["steps"][0]["static_ms"] = -1
    with pytest.raises(InputError, match=r"data\.steps\[0\]\.static_ms"):
        Profile.from_json(value)
