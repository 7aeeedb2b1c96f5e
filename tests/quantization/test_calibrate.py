"""Calibration of tiny bundles: what is observed, what shares a scale, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dyndeploy.bundle import Bundle
from dyndeploy.errors import InputError, NotFiniteError, UsageError
from dyndeploy.quantization import (
    FP32,
    INT8,
    METHODS,
    CalibrationImages,
    CalibrationTable,
    TableOptions,
    calibrate,
    calibrate_images,
    find_points,
)
from dyndeploy.runtimes.staged import open_staged
from tests.bundles import SIZE, tiny_models
from tests.quantization.networks import balanced, balanced_bundle, edited, pictures, run, samples
from tests.staged_bundles import images as staged_images
from tests.staged_bundles import staged_bundle

HIDDEN, OUT = 4, 16


@pytest.mark.parametrize("mode", ["spatial", "layer", "channel", "both"])
def test_points_and_what_shares_a_scale(mode: str, tmp_path: Path) -> None:
    bundle = balanced_bundle(tmp_path / "b", mode=mode)
    table = calibrate(bundle, samples(pictures()), data="random numbers")
    blocks = {f"layer{n}.0/{point}" for n in (1, 2) for point in ("x", "h1", "h2", "y")}
    assert set(table.tensors) == blocks | {"stem/conv1:x", "stem/conv1:y"}
    # The stem's result passes a ReLU and a transposition; the second block adds its input to its output.
    scales = {point: item.scale for point, item in table.tensors.items()}
    assert scales["stem/conv1:y"] == scales["layer1.0/x"]
    assert scales["layer1.0/y"] == scales["layer2.0/x"] == scales["layer2.0/y"]
    assert len(set(scales.values())) == 2 + 1 + 2 + 2
    assert {point for point, item in table.tensors.items() if item.zero_point} == {"stem/conv1:x"}
    assert table.precision == {"stem": INT8, "layer1.0": INT8, "layer2.0": INT8}
    assert (table.network, table.mode, table.granularity, table.images) == ("tiny", mode, (2, 2), 20)
    assert table.weight_bits == 7 and table.method == "mse" and not table.notes and table.data == "random numbers"
    table.check(bundle)


def test_only_what_is_computed_is_observed() -> None:
    model = balanced("spatial")
    images = pictures()
    table = calibrate(model, samples(images), method="minmax")
    found = run(model, images, "y0", "y1", "y2")
    active = {n: np.stack([r[f"mask/layer{n}.0/spatial"][0, 0] > 0.5 for r in found]) for n in (1, 2)}
    assert 0.1 < active[2].mean() < 0.9
    # A patch has 2x2 of the 8x8 pixels.
    assert table.tensors["layer2.0/h2"].count == active[2].sum() * 4 * HIDDEN
    assert table.tensors["layer1.0/h2"].count == active[1].sum() * 4 * HIDDEN
    patches = np.repeat(np.repeat(active[2], 2, 1), 2, 2)
    dilated = np.zeros_like(patches)
    padded = np.pad(patches, ((0, 0), (1, 1), (1, 1)))
    for row in range(3):
        for column in range(3):
            dilated |= padded[:, row : row + 8, column : column + 8]
    assert table.tensors["layer2.0/h1"].count == dilated.sum() * HIDDEN
    # All pixels of what the first block gives (a projection computes everywhere), and those that the second changes.
    changed = np.concatenate([r["y2"][0][patches[i]] for i, r in enumerate(found)])
    joint = table.tensors["layer2.0/y"]
    assert joint.count == 20 * 64 * OUT + patches.sum() * OUT == 20 * 64 * OUT + changed.size
    assert joint.max == max(changed.max(), max(r["y1"].max() for r in found))
    stem = table.tensors["layer1.0/x"]
    assert stem.count == 20 * SIZE * SIZE * 8 and stem.max == max(r["y0"].max() for r in found)
    assert stem.scale == pytest.approx(stem.max / 255)


def test_skipped_channels_and_blocks_are_not_observed() -> None:
    images = pictures()
    model = balanced("channel")
    table = calibrate(model, samples(images))
    bits = sum(int(r["mask/layer2.0/channel"].sum()) for r in run(model, images))
    assert 20 <= bits <= 60
    assert table.tensors["layer2.0/h2"].count == table.tensors["layer2.0/h1"].count == bits * 64 * HIDDEN // 2
    model = balanced("layer")
    runs = sum(int(r["mask/layer2.0/layer"].sum()) for r in run(model, images))
    assert 0 < runs < 20
    assert calibrate(model, samples(images)).tensors["layer2.0/h1"].count == runs * 64 * HIDDEN


def test_batches_and_their_rest_give_the_same_table(tmp_path: Path) -> None:
    single, four = (balanced_bundle(tmp_path / str(batch), batch=batch) for batch in (1, 4))
    images = pictures(18)
    tables = [
        calibrate(single, samples(images)),
        calibrate(single, [{"input": images[:7]}, {"input": images[7:]}]),
        calibrate(four, samples(images)),
    ]
    assert tables[0] == tables[1]
    for point, item in tables[0].tensors.items():
        other = tables[2].tensors[point]
        assert item.count == other.count and item.scale == pytest.approx(other.scale, rel=1e-3), point
    assert tables[0].weights_sha256 == tables[2].weights_sha256


def test_methods_differ_and_say_their_settings() -> None:
    model = balanced("spatial")
    tables = {method: calibrate(model, samples(pictures()), method=method, percentile=99.5) for method in METHODS}
    scales = {method: table.scale("layer1.0/h1") for method, table in tables.items()}
    assert len(set(scales.values())) >= 3 and max(scales.values()) == scales["minmax"] > scales["percentile"]
    assert tables["percentile"].settings["percentile"] == 99.5
    assert {table.tensors["layer1.0/h1"].max for table in tables.values()} == {tables["mse"].tensors["layer1.0/h1"].max}


def test_later_stages_see_the_images_that_reach_them(tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "b")
    images = staged_images(40)
    with open_staged(bundle, thresholds=(0.6, 0.9)) as session:
        exits = session.run(images).exits
    assert {1, 2, 4} == set(exits.tolist())
    table = calibrate(bundle, samples(images, "images"), thresholds=(0.6, 0.9))
    per_image = 4 * 8 * 8
    # Points of the same name in several stages have one scale: of what stage 1 gives, of stages 2 and 4 as well.
    reached = [40, int((exits > 1).sum()), int((exits > 2).sum())]
    everything = calibrate(bundle, samples(images, "images"), thresholds=(2.0, 2.0))
    assert table.tensors["body/Conv:y"].count < everything.tensors["body/Conv:y"].count
    assert everything.tensors["body/Conv:y"].count - table.tensors["body/Conv:y"].count >= per_image * (40 - reached[1])
    assert table.settings["thresholds"] == [0.6, 0.9]
    assert calibrate(bundle, samples(images, "images")).settings["thresholds"] == [0.5, 0.4]  # the bundle's
    assert len(table.stages_sha256) == 3
    table.check(bundle)
    table.check(bundle.load_stages()[1])
    bare = calibrate(staged_bundle(tmp_path / "c", thresholds=None), samples(images, "images"))
    assert bare.notes == ("The bundle holds no thresholds for fp32: every image ran to the last exit.",)
    assert bare.settings["thresholds"] is None
    assert bare.tensors["body/Conv:y"] == everything.tensors["body/Conv:y"]


def test_a_block_that_never_runs_stays_in_fp32() -> None:
    model = balanced("layer")
    never = edited(model, {"layer2.0.spatial.b": np.full(1, -1e6)})
    table = calibrate(never, samples(pictures()))
    assert table.precision == {"stem": INT8, "layer1.0": INT8, "layer2.0": FP32}
    assert "layer2.0/h1" not in table.tensors and "layer2.0/x" in table.tensors
    assert "layer2.0 computed nothing on these images" in table.notes[0]


def test_a_block_that_reads_negative_values_stays_in_fp32() -> None:
    model = balanced("spatial")
    (relu,) = (node for node in model.graph.node if node.name == "stem/relu")
    relu.op_type = "Identity"
    table = calibrate(model, samples(pictures()))
    assert table.precision == {"stem": FP32, "layer1.0": FP32, "layer2.0": INT8}
    assert "layer1.0/x" not in table.tensors
    assert "stem, layer1.0 read or write negative values" in table.notes[0]


def test_convolutions_alone_are_quantised_too() -> None:
    _, static, _ = tiny_models("spatial")
    table = calibrate(static, samples(pictures()))
    assert table.tensors["stem/conv1:x"].zero_point > 0 and set(table.precision.values()) == {INT8}
    points = find_points([static])
    assert not points.dynamic and points.unsigned == set()
    assert table.network == "tiny" and table.mode == ""


def _overflowing(images: np.ndarray) -> np.ndarray:
    images[4] = np.sign(images[4]) * 3e38
    return images


def _with(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(images: np.ndarray) -> np.ndarray:
        images[index, 0, 0, 0] = value
        return images

    return change


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda images: images[:15], InputError, "15 images are too few to calibrate on: give at least 16"),
        (lambda images: images[:0], InputError, "0 images are too few"),
        (lambda images: np.zeros_like(images), InputError, "20 of 20 images are constant"),
        (lambda images: np.concatenate([images[:10]] * 2), InputError, "Only 10 of 20 images are different"),
        (_with(13, np.nan), NotFiniteError, "'input' holds 1 NaN of 768 values for image 14"),
        (_with(2, np.inf), NotFiniteError, "'input' holds 1 infinite of 768 values for image 3"),
        (_overflowing, NotFiniteError, r"'y0' \(layer1\.0/x\) holds .* of 2048 values for image 5"),
        (lambda images: images[:, :2], InputError, "Input 'input': expected float32"),
    ],
)
def test_images_that_do_not_do_are_refused(
    change: Callable[[np.ndarray], np.ndarray], error: type[Exception], said: str
) -> None:
    model = balanced("spatial")
    with pytest.raises(error, match=said):
        calibrate(model, samples(change(pictures())))


def test_a_value_inside_that_is_not_finite_is_named() -> None:
    model = balanced("spatial")
    broken = edited(model, {"layer2.0.b1": np.full(HIDDEN, np.nan)})
    with pytest.raises(NotFiniteError, match=r"'(layer2\.0/h1|y2|logits)' holds .* for image 1:"):
        calibrate(broken, samples(pictures()))


def test_a_few_constant_or_repeated_images_are_noted() -> None:
    model = balanced("spatial")
    images = np.concatenate([pictures(18), pictures(18)[:2], np.zeros((1, 3, SIZE, SIZE), np.float32)])
    table = calibrate(model, samples(images))
    assert table.notes == (
        "1 of 21 images are constant, every value the same.",
        "2 of 21 images are copies of others.",
    )


def test_too_much_clipping_is_refused() -> None:
    model = balanced("spatial")
    with pytest.raises(UsageError, match=r"percentile clips .*% of the values of .*, more than the limit of 1\.00%"):
        calibrate(model, samples(pictures()), method="percentile", percentile=90)
    table = calibrate(model, samples(pictures()), method="percentile", percentile=90, max_saturation=0.2)
    assert 0.01 < max(item.clipped for item in table.tensors.values()) <= 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "guess"}, "Unknown method 'guess'"),
        ({"weight_bits": 6}, "Weights have 7 or 8 bits, not 6"),
        ({"percentile": 10}, "A percentile lies above 50"),
        ({"max_saturation": 1.5}, r"lies in \[0, 1\), not 1.5"),
        ({"thresholds": (0.5,)}, "no exits: leave the thresholds out"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    model = balanced("spatial")
    with pytest.raises(UsageError, match=said):
        calibrate(model, samples(pictures()), **options)


def test_what_is_quantised_already_and_what_has_nothing_is_refused(tmp_path: Path) -> None:
    bundle = balanced_bundle(tmp_path / "b")
    quantised = dataclasses.replace(bundle.manifest, precision="int8")
    with pytest.raises(UsageError, match="is quantised already"):
        calibrate(Bundle(bundle.path, quantised), samples(pictures()))
    model = balanced("spatial")
    del model.graph.node[:]
    with pytest.raises(UsageError, match="nothing to quantise"):
        calibrate(model, samples(pictures()))


def test_samples_need_the_inputs_of_the_network() -> None:
    model = balanced("spatial")
    with pytest.raises(InputError, match="A sample lacks input: it holds image"):
        calibrate(model, samples(pictures(), "image"))


def test_progress_can_stop_it() -> None:
    model = balanced("spatial")
    seen: list[float] = []

    def progress(message: str, fraction: float) -> None:
        seen.append(fraction)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, samples(pictures()), total=20, progress=progress)
    assert seen == [0.05, 0.1, 0.15]


def test_a_table_of_one_export_fits_another_batch(tmp_path: Path) -> None:
    table = calibrate(balanced_bundle(tmp_path / "a"), samples(pictures()))
    table.check(balanced_bundle(tmp_path / "b", batch=4))
    table.save(tmp_path / "t.json")
    again = CalibrationTable.load(tmp_path / "t.json")
    assert again == table
    with pytest.raises(UsageError, match="mode spatial, not layer"):
        again.check(balanced_bundle(tmp_path / "c", mode="layer"))


def test_processes_share_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dyndeploy.chunks.CHUNK", 8)
    bundle, data = balanced_bundle(tmp_path / "b"), tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(5)
    for number in range(20):
        pixels = generator.normal(128, 10 + 3 * number, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(data / f"{number:02}.png")
    options = TableOptions(method="percentile", data="pictures")
    alone = calibrate_images(bundle, data, options=options)
    assert alone.images == 20
    shared = calibrate_images(bundle, data, options=options, workers=2, state=tmp_path / "state")
    assert shared.to_json() == alone.to_json()
    assert len(list((tmp_path / "state").glob("chunk-*.json"))) == 3
    images = CalibrationImages.open(bundle, data)
    one_by_one = calibrate(bundle, images.samples(range(20), "input"), method="percentile", data="pictures")
    assert one_by_one.to_json() == alone.to_json()
    with pytest.raises(UsageError, match="differs in images"):
        calibrate_images(bundle, data, range(16), options=options, state=tmp_path / "state")
