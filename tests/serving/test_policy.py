"""What a server is told to do follows from the profile, by numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dyndeploy.bundle import MODEL
from dyndeploy.errors import InputError, UsageError
from dyndeploy.measure import profile_bundle
from dyndeploy.serving import Measured, make_policy, read_measured
from tests.bundles import tiny_bundle
from tests.staged_bundles import staged_bundle

MEASURED = Measured("profile.json", 12.5, 2, "cpu", {})


def test_instances_fill_the_processors_and_queues_hold_what_is_served_in_time(tmp_path: Path) -> None:
    policy = make_policy(tiny_bundle(tmp_path / "bundle", batch=8), MEASURED, processors=7)
    assert (policy.instances, policy.threads, policy.max_batch, policy.images_at_once) == (3, 2, 8, 8)
    assert policy.batch_ms == 100
    assert policy.in_flight == 80
    batching = policy.dynamic_batching()
    assert batching["preferred_batch_size"] == [8]
    assert batching["max_queue_delay_microseconds"] == 10_000
    queues = {entry["key"]: entry["value"] for entry in batching["priority_queue_policy"]}
    assert {level: queue["default_timeout_microseconds"] for level, queue in queues.items()} == {
        1: 800_000, 2: 3_200_000, 3: 25_600_000,
    }  # fmt: skip
    assert {level: queue["max_queue_size"] for level, queue in queues.items()} == {1: 192, 2: 768, 3: 6144}


def test_one_image_at_a_time_waits_for_no_others(tmp_path: Path) -> None:
    batching = make_policy(tiny_bundle(tmp_path / "bundle"), MEASURED, processors=1).dynamic_batching()
    assert batching["max_queue_delay_microseconds"] == 0
    assert "preferred_batch_size" not in batching


def test_open_batches_of_stages_and_large_fixed_ones(tmp_path: Path) -> None:
    staged = make_policy(staged_bundle(tmp_path / "staged"), None, processors=1)
    assert (staged.images_at_once, staged.padded) == (8, False)
    assert staged.dynamic_batching()["max_queue_delay_microseconds"] == 0
    large = make_policy(tiny_bundle(tmp_path / "large", batch=16), None, processors=1)
    assert (large.max_batch, large.images_at_once, large.instances) == (16, 16, 1)
    assert "not measured" in large.source


def test_gpus_have_one_instance_and_threads_are_those_that_were_measured(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    assert make_policy(bundle, replace(MEASURED, device="orin-nano"), processors=8).instances == 1
    assert make_policy(bundle, MEASURED, processors=8, instances=3).instances == 3
    with pytest.raises(UsageError, match="measured with 2 threads, not 4"):
        make_policy(bundle, MEASURED, processors=8, threads=4)


def test_a_profile_is_read_and_known_by_its_graphs(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", batch=2)
    profile = profile_bundle(bundle, rates=(0.5,), repeats=2)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json()))
    measured = read_measured(path)
    assert measured.ms == profile.data.samples.median / 2
    assert measured.files[MODEL] == bundle.manifest.files[MODEL]
    assert measured.is_of(bundle)
    assert not measured.is_of(tiny_bundle(tmp_path / "other", mode="channel", batch=2))


@pytest.mark.parametrize("text", ["{}", "[1]", '{"kind": "calibration"}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no profile of a bundle"):
        read_measured(path)
