from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dyndeploy.data import LabelledImages, ShiftedImages
from dyndeploy.errors import CheckpointError, DyndeployError, InputError, OutputError, UsageError
from dyndeploy.nets import LaudResNet, create_model, full_flops, load_checkpoint, save_checkpoint
from dyndeploy.nets.factories import build_network
from dyndeploy.training import (
    BEST,
    CHECKPOINT,
    EMA,
    LOG,
    RECIPE,
    RESULT,
    EpochRecord,
    Recipe,
    TrainResult,
    batches,
    load_recipe,
    train,
)
from dyndeploy.training.batches import datasets, training_batches
from dyndeploy.training.processes import Part
from tests.training.helpers import OWN, mixed_channels, own, tiny, tiny_perceiver


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class StopError(Exception):
    """Stands for anything that ends a run."""


class Recorder:
    """Collects what the engine tells, and may stop it somewhere."""

    def __init__(self, stop_at: tuple[int, int] | None = None, error: type[BaseException] = StopError) -> None:
        self.stop_at, self.error = stop_at, error
        self.iterations: list[tuple[int, int, int]] = []
        self.epochs: list[int] = []

    def iteration(self, epoch: int, iteration: int, iterations: int, loss: float) -> None:
        assert loss > 0
        self.iterations.append((epoch, iteration, iterations))
        if self.stop_at == (epoch, iteration):
            raise self.error

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        self.epochs.append(record.epoch)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path / CHECKPOINT, weights_only=True)["state_dict"]
    return state


def without_time(result: TrainResult) -> list[dict[str, Any]]:
    rows: list[Any] = [{**vars(record), "seconds": None} for record in result.history]
    return [*rows, result.evaluation.as_dict()]


def assert_same_run(one: TrainResult, other: TrainResult) -> None:
    assert without_time(one) == without_time(other)
    a, b = weights(one.checkpoint.parent), weights(other.checkpoint.parent)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    recorder = Recorder()
    state = torch.get_rng_state()
    result = train(tiny(epochs=4), tmp_path, progress=recorder)
    assert torch.equal(torch.get_rng_state(), state)
    # 1437 images in batches of 240.
    assert recorder.iterations == [(e, i, 5) for e in (1, 2, 3, 4) for i in (1, 2, 3, 4, 5)]
    assert recorder.epochs == [1, 2, 3, 4]
    assert result.resumed_from == 0

    first, last = result.history[0], result.history[-1]
    assert last.training["cross_entropy"] < first.training["cross_entropy"] - 0.3
    assert result.evaluation.images == 360
    assert last.held_out == result.evaluation.measures()
    expected = first.training["cross_entropy"] + 10 * first.training["sparsity"]
    assert first.training["loss"] == pytest.approx(expected, rel=1e-5)
    assert first.training["distillation"] == 0
    # The last iteration is at 19/20 of the run.
    assert last.training["temperature"] == pytest.approx(5.0 * (0.1 / 5.0) ** 0.95)
    assert last.training["lr"] == pytest.approx(0.05 * 0.5 * (1 + np.cos(np.pi * 0.95)))

    with (tmp_path / LOG).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["held_out.accuracy"]) == result.evaluation.accuracy
    assert float(rows[-1]["held_out.layer3.0.rate"]) == result.evaluation.blocks[2].rate
    assert json.loads((tmp_path / RESULT).read_text())["evaluation"]["accuracy"] == result.evaluation.accuracy
    assert load_recipe(tmp_path / RECIPE) == tiny(epochs=4)

    # The checkpoint alone gives the network that was evaluated.
    model = create_model("laud_resnet14_small", **tiny().model.options)
    report = load_checkpoint(model, result.checkpoint)
    assert (report.missing, report.unexpected, report.epoch) == ((), (), 4)
    assert isinstance(model, LaudResNet)
    assert result.evaluation.flops_ratio == pytest.approx(result.evaluation.flops / full_flops(model, 8))


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(tmp_path: Path) -> None:
    one = train(tiny(epochs=1), tmp_path / "one")
    torch.rand(3)
    assert_same_run(one, train(tiny(epochs=1), tmp_path / "two"))
    other = train(tiny(epochs=1, seed=6), tmp_path / "three")
    assert one.history[0].training != other.history[0].training


@pytest.mark.parametrize("stop_at", [(2, 1), (3, 4)])
def test_resuming_equals_never_having_stopped(tmp_path: Path, stop_at: tuple[int, int]) -> None:
    whole = train(tiny(), tmp_path / "whole")
    with pytest.raises(StopError):
        train(tiny(), tmp_path / "parts", progress=Recorder(stop_at))
    torch.rand(7)
    resumed = train(tiny(), tmp_path / "parts")
    assert resumed.resumed_from == stop_at[0] - 1
    assert_same_run(whole, resumed)
    # A finished run is not trained any further.
    again = Recorder()
    assert_same_run(whole, train(tiny(), tmp_path / "parts", progress=again))
    assert again.iterations == []


def test_ctrl_c_leaves_the_last_epochs_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path, progress=Recorder((3, 2), KeyboardInterrupt))
    model = create_model("laud_resnet14_small", **tiny().model.options)
    assert load_checkpoint(model, tmp_path / CHECKPOINT).epoch == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CHECKPOINT, LOG, RECIPE])


def test_killed_in_the_middle_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    # Momentum, moving average, mixing, clipping, two parts: all that a run carries from epoch to epoch.
    recipe = mixed_channels(compute={"accumulation": 2})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(recipe.as_dict()))
    root = Path(__file__).parents[2]
    script = root / "tests" / "training" / "spread.py"
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "2"], cwd=root, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    left = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert {CHECKPOINT, EMA, LOG, RECIPE} <= left
    assert RESULT not in left

    resumed = train(recipe, tmp_path / "run", device="cpu")
    whole = train(recipe, tmp_path / "whole", device="cpu")
    assert (resumed.resumed_from, whole.resumed_from) == (1, 0)
    assert_same_run(whole, resumed)
    assert resumed.ema_evaluation == whole.ema_evaluation
    for name in (EMA, CHECKPOINT):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (tmp_path / "run", tmp_path / "whole"))
        assert all(torch.equal(a["state_dict"][key], value) for key, value in b["state_dict"].items())
    assert a["extra"]["training"]["optimizer"].keys() == b["extra"]["training"]["optimizer"].keys()
    for one, other in zip(
        a["extra"]["training"]["optimizer"]["state"].values(),
        b["extra"]["training"]["optimizer"]["state"].values(),
        strict=True,
    ):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    # Batch norm and the FLOPs budget know a part's images only: frozen and weightless they let parts add up exactly.
    exact = {"precision": "float64", "batch_norm": "frozen"}
    changes: dict[str, Any] = {"epochs": 1, "mixing": {}, "optimizer": {"lr": 0.001}}
    for name, recipe in (
        ("masks", tiny(sparsity={"weight": 0.0}, **changes)),
        ("exits", tiny_perceiver(**changes)),
    ):
        runs = []
        for parts in (1, 3):
            plain = recipe.as_dict() | {"compute": exact | {"accumulation": parts}}
            runs.append(train(Recipe.from_dict(plain), tmp_path / name / str(parts), device="cpu"))
        whole, added = (run.history[0].training for run in runs)
        assert added["loss"] == pytest.approx(whole["loss"], rel=1e-9)
        assert added["accuracy"] == pytest.approx(whole["accuracy"], abs=1e-12)
        a, b = (weights(run.checkpoint.parent) for run in runs)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-6, atol=1e-9)


def test_bfloat16_follows_float32(tmp_path: Path) -> None:
    for name, recipe in (("masks", tiny(epochs=1)), ("exits", tiny_perceiver(epochs=1))):
        runs = []
        for precision in ("float32", "bfloat16"):
            plain = recipe.as_dict() | {"compute": {"precision": precision}}
            runs.append(train(Recipe.from_dict(plain), tmp_path / name / precision, device="cpu"))
        full, half = (run.history[0].training["loss"] for run in runs)
        assert half != full
        assert half == pytest.approx(full, rel=0.1)
        # Weights stay as they were.
        assert all(w.dtype != torch.bfloat16 for w in weights(runs[1].checkpoint.parent).values())


@pytest.mark.parametrize(
    ("mode", "accuracy", "varying"),
    # Whether one of the few channels comes to depend on the image so soon depends on the processor's rounding.
    [("spatial", 0.92, True), ("channel", 0.85, False), ("layer", 0.90, True)],
    ids=["spatial", "channel", "layer"],
)
def test_laud_resnets_reach_an_accuracy_at_a_cost(tmp_path: Path, mode: str, accuracy: float, varying: bool) -> None:
    model = {
        "name": "laud_resnet14_small",
        "options": {"mode": mode, "granularity": [4, 4, 2, 1], "channel_granularity": 1, "width_mult": 0.2},
        "input_size": [16, 16],
    }
    recipe = tiny(
        model=model,
        epochs=7,
        batch_size=48,
        optimizer={"lr": 0.15, "weight_decay": 0.0005},
        sparsity={"target": 0.65, "weight": 40.0, "bounds_until": 3.0},
        seed=0,
    )
    evaluation = train(recipe, tmp_path, device="cpu").evaluation
    # About 0.3 of the FLOPs are never skipped at this size; chance is 0.1.
    assert evaluation.accuracy >= accuracy
    assert evaluation.flops_ratio == pytest.approx(0.65, abs=0.05)
    assert any(mask.varying > 0 for block in evaluation.blocks for mask in block.masks) or not varying


def test_a_dyn_perceiver_reaches_an_accuracy_at_a_cost(tmp_path: Path) -> None:
    optimizer = {"name": "adamw", "lr": 0.005, "weight_decay": 0.05, "decay": "matrices", "warmup_epochs": 1}
    exits = {"weights": [1.0, 1.0, 1.0, 1.0], "thresholds": [0.8, 0.8, 0.8]}
    recipe = tiny_perceiver(epochs=5, batch_size=48, optimizer=optimizer, exits=exits, seed=0)
    result = train(recipe, tmp_path, device="cpu")
    evaluation = result.evaluation
    accuracies = [entry.accuracy for entry in evaluation.exits]
    assert min(accuracies) >= 0.85
    assert accuracies[-1] == evaluation.accuracy >= 0.95
    early = evaluation.early_exit
    assert early is not None
    # Exit 1 alone costs 0.82 of the whole in this network.
    assert early.accuracy >= 0.94
    assert early.macs_ratio <= 0.92
    assert sum(early.shares) == pytest.approx(1)
    record = result.history[-1]
    terms = [record.training[f"exit{number}.cross_entropy"] for number in (1, 2, 3, 4)]
    assert record.training["loss"] == pytest.approx(sum(terms) + 0.5 * record.training["distillation"], rel=1e-5)
    assert record.held_out["exit2.accuracy"] == accuracies[1]
    assert record.held_out["early_exit.accuracy"] == early.accuracy


def test_the_best_epoch_is_kept_and_may_be_an_average(tmp_path: Path) -> None:
    # An average that hardly moves is worse than the network; without inertia it is the network.
    for decay, averaged in ((0.999, False), (0.0, False)):
        recipe = tiny_perceiver(epochs=3, ema={"decay": decay})
        result = train(recipe, tmp_path / str(decay), device="cpu")
        scores = [np.mean([row.held_out[f"exit{i}.accuracy"] for i in (1, 2, 3, 4)]) for row in result.history]
        assert result.best_epoch == 1 + int(np.argmax(scores))
        model = create_model(recipe.model.name, **recipe.model.options)
        assert result.best_checkpoint is not None
        report = load_checkpoint(model, result.best_checkpoint)
        assert report.epoch == result.best_epoch
        assert report.extra["averaged"] is averaged
        assert report.extra["score"] == pytest.approx(max(scores))
        assert result.ema_checkpoint is not None and result.ema_evaluation is not None
        assert (result.ema_evaluation.accuracy == result.evaluation.accuracy) is (decay == 0.0)


def test_epochs_over_the_budget_are_never_the_best(tmp_path: Path) -> None:
    result = train(tiny(epochs=1, sparsity={"target": 0.65}), tmp_path)
    assert result.evaluation.flops_ratio > 0.7
    assert (result.best_checkpoint, result.best_epoch) == (None, None)
    assert not (tmp_path / BEST).exists()


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    train(tiny(epochs=1), tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(UsageError, match=r"another recipe \(it differs in epochs, optimizer\.lr\)"):
        train(tiny(epochs=2, optimizer={"lr": 0.01}), tmp_path)
    wider = {"name": "laud_resnet14_small", "options": {"width_mult": 0.2}, "input_size": [8, 8]}
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train(tiny(model=wider), tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert train(tiny(epochs=2, seed=9), tmp_path, resume=False).resumed_from == 0
    assert (
        load_checkpoint(create_model("laud_resnet14_small", **tiny().model.options), tmp_path / CHECKPOINT).epoch == 2
    )


def test_checkpoints_that_cannot_be_resumed(tmp_path: Path) -> None:
    save_checkpoint(create_model("laud_resnet14_small", **tiny().model.options), tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
        train(tiny(), tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train(tiny(), tmp_path)


def test_the_flops_come_to_the_target(tmp_path: Path) -> None:
    ratios = {}
    # At this size and width the parts that are never skipped are 0.6 of the whole.
    for target in (0.75, 0.9):
        sparsity = {"target": target, "weight": 100.0, "bounds_until": 1.0}
        result = train(tiny(epochs=4, batch_size=60, sparsity=sparsity), tmp_path / str(target))
        ratios[target] = result.history[-1].training["flops_ratio"]
    assert ratios[0.75] == pytest.approx(0.75, abs=0.05)
    assert ratios[0.9] == pytest.approx(0.9, abs=0.05)


def test_a_teacher_is_listened_to(tmp_path: Path) -> None:
    static = tiny(epochs=2, sparsity={"weight": 0.0}, model=model_recipe(mode="static"))
    teacher = train(static, tmp_path / "teacher").checkpoint
    model = model_recipe() | {"initial_weights": str(teacher)}
    taught = train(tiny(epochs=1, model=model, distillation={"weight": 2.0}), tmp_path / "taught")
    alone = train(tiny(epochs=1, model=model), tmp_path / "alone")
    terms = taught.history[0].training
    assert terms["distillation"] > 0
    expected = terms["cross_entropy"] + 10 * terms["sparsity"] + 2 * terms["distillation"]
    assert terms["loss"] == pytest.approx(expected, rel=1e-5)
    assert alone.history[0].training["distillation"] == 0
    # Both start from the teacher's weights, which already know something.
    assert alone.history[0].training["cross_entropy"] < 2.0


def model_recipe(**options: Any) -> dict[str, Any]:
    plain = tiny().as_dict()["model"]
    return {**plain, "options": plain["options"] | options}


def test_impossible_recipes_end_before_anything_is_written(tmp_path: Path) -> None:
    output = tmp_path / "run"
    cases: list[tuple[Recipe, type[DyndeployError], str]] = [
        (tiny(distillation={}), UsageError, "static network of its initial weights"),
        (tiny(data={"dataset": "imagefolder"}), UsageError, "names no images"),
        (tiny(model=model_recipe(num_classes=7)), UsageError, "10 classes and the network has 7"),
        (tiny(batch_size=1438), UsageError, "more than the 1437 training images"),
        (tiny(model=model_recipe() | {"initial_weights": "nowhere.pt"}), CheckpointError, "nowhere"),
    ]
    for recipe, error, message in cases:
        with pytest.raises(error, match=message):
            train(recipe, output)
    assert not output.exists()


def test_digits_are_shifted_only_where_the_recipe_says_so() -> None:
    plain = tiny().as_dict()
    plain["model"]["input_size"] = [40, 32]
    training, held_out = datasets(Recipe.from_dict(plain))
    assert isinstance(training, ShiftedImages)
    assert (training.distance, training.seed) == (2, 5)
    assert isinstance(held_out, LabelledImages)
    plain["data"]["augment"] = False
    assert isinstance(datasets(Recipe.from_dict(plain))[0], LabelledImages)


def test_divergence_is_reported_and_the_last_checkpoint_kept(tmp_path: Path) -> None:
    with pytest.raises(DyndeployError, match=r"Training diverged.*Lower optimizer\.lr"):
        train(tiny(optimizer={"lr": 1e30}), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError):
        train(tiny(epochs=1), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("workers", [0, 1])
def test_image_folders_resume_alike_with_and_without_worker_processes(tmp_path: Path, workers: int) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = (level + rng.integers(-30, 30, (12, 12, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    recipe = tiny(
        data={"dataset": "imagefolder", "folder": str(tmp_path / "images"), "workers": workers},
        model=model_recipe(num_classes=2),
        batch_size=4,
        epochs=2,
    )
    whole = train(recipe, tmp_path / "whole")
    assert whole.evaluation.images == 4
    with pytest.raises(StopError):
        train(recipe, tmp_path / "parts", progress=Recorder((2, 2)))
    assert_same_run(whole, train(recipe, tmp_path / "parts"))
    if workers:
        other = recipe.as_dict()
        other["data"]["workers"] = 0
        assert_same_run(whole, train(Recipe.from_dict(other), tmp_path / "in-process"))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(tmp_path / part / name / f"{i}.jpg")
    return tmp_path


def of_images(folder: Path, workers: int) -> Recipe:
    model = {**tiny().as_dict()["model"], "options": {"mode": "layer", "width_mult": 0.1, "num_classes": 2}}
    data = {"dataset": "imagefolder", "folder": str(folder), "workers": workers}
    return tiny(model=model, batch_size=8, data=data, epochs=1)


def test_damaged_images_are_named_before_the_first_epoch(image_folder: Path) -> None:
    for path in ("train/bee/3.jpg", "val/ant/1.jpg"):
        (image_folder / path).write_bytes((image_folder / path).read_bytes()[:300])
    output = image_folder / "run"
    with pytest.raises(InputError, match=r"2 of 20 images cannot be read\..*bee/3\.jpg: .*ant/1\.jpg: ") as caught:
        train(of_images(image_folder, 0), output, device="cpu")
    assert "\n" not in str(caught.value)
    assert not output.exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fits", [True, False])
def test_an_image_that_is_damaged_meanwhile_is_one_line(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int, fits: bool
) -> None:
    usage = shutil.disk_usage("/")
    free = (1 << 40) if fits else (1 << 20) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    recipe = of_images(image_folder, workers)
    if not fits:
        recipe = Recipe.from_dict(recipe.as_dict() | {"model": {**recipe.as_dict()["model"], "input_size": [96, 96]}})
    training, _ = datasets(recipe)
    batches._say.cache_clear()
    good = [images.clone() for images, _ in training_batches(training, recipe, 0, [Part(0, 8, 8)])]
    assert [images.shape for images in good] == [(8, 3, *recipe.input_size)] * 2
    assert ("comes through pipes" in caplog.text) == (workers > 0 and not fits)
    (image_folder / "train" / "ant" / "5.jpg").write_bytes(b"gone")
    with pytest.raises(InputError, match=r"5\.jpg is not an image") as caught:
        list(training_batches(training, recipe, 0, [Part(0, 8, 8)]))
    assert "\n" not in str(caught.value)


def test_batches_are_alike_whichever_way_they_come(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage, seen = shutil.disk_usage("/"), []
    for workers, free in ((0, 0), (1, 1 << 40), (1, 600 << 10), (1, 1000)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        recipe = of_images(image_folder, workers)
        recipe = Recipe.from_dict(recipe.as_dict() | {"model": {**recipe.as_dict()["model"], "input_size": [96, 96]}})
        training, _ = datasets(recipe)
        seen.append(list(training_batches(training, recipe, 3, [Part(0, 8, 8)])))
    for other in seen[1:]:
        for (images, labels), (same, also) in zip(seen[0], other, strict=True):
            assert torch.equal(images, same) and torch.equal(labels, also)
            assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert "read in the training process" in caplog.text


def test_a_loading_process_that_is_killed_is_one_line(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = of_images(image_folder, 1)
    training, _ = datasets(recipe)
    parent = os.getpid()

    def die(self: object, index: int) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(type(training), "__getitem__", die)
    with pytest.raises(DyndeployError, match=r"1 processes that read images failed.*lower data.workers") as caught:
        list(training_batches(training, recipe, 0, [Part(0, 8, 8)]))
    assert "\n" not in str(caught.value)


def test_results_are_those_of_release_0_1_0(tmp_path: Path) -> None:
    """The losses of 0.1.0, up to the rounding of the processor's sums: noise and masks are what they were."""
    before = {
        "spatial": (2.201087164878845, 0.4698794424533844, 0.9714134335517883, 6.899881649017334),
        "both": (2.323714017868042, 0.5129170775413513, 1.030992817878723, 7.452884864807129),
    }
    for mode, numbers in before.items():
        recipe = tiny(epochs=2)
        if mode == "both":
            recipe = tiny(epochs=1, model=model_recipe(mode=mode, channel_granularity=1))
        terms = train(recipe, tmp_path / mode, device="cpu").history[0].training
        found = tuple(terms[name] for name in ("cross_entropy", "sparsity", "flops_ratio", "loss"))
        assert found == pytest.approx(numbers, rel=1e-6, abs=0)


def test_a_users_network_comes_to_its_target_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    # The stem and the head are 0.23 of the whole.
    recipe = own(
        "SmallCnn",
        epochs=2,
        batch_size=24,
        optimizer={"lr": 0.1},
        sparsity={"target": 0.6, "weight": 20.0, "bounds_until": 3.0},
    )
    whole = train(recipe, tmp_path / "whole", device="cpu")
    assert whole.evaluation.accuracy is not None
    assert whole.evaluation.accuracy > 0.35
    assert whole.history[-1].training["flops_ratio"] == pytest.approx(0.6, abs=0.08)
    assert [block.name for block in whole.evaluation.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(mask.kind == "layer" for block in whole.evaluation.blocks for mask in block.masks)
    with pytest.raises(StopError):
        train(recipe, tmp_path / "parts", device="cpu", progress=Recorder((2, 3)))
    resumed = train(recipe, tmp_path / "parts", device="cpu")
    assert resumed.resumed_from == 1
    assert_same_run(whole, resumed)
    network = build_network(recipe.model.name, recipe.model.options, recipe.model.imported)
    assert load_checkpoint(network, whole.checkpoint).missing == ()


def test_three_exits_around_a_laud_block(tmp_path: Path) -> None:
    recipe = own(
        "three_exits",
        epochs=3,
        batch_size=48,
        optimizer={"lr": 0.1},
        exits={"thresholds": [0.3, 0.3]},
        distillation={"weight": 0.5, "temperature": 1.0},
        sparsity={"target": 0.8, "weight": 40.0, "bounds_until": 3.0},
    )
    evaluation = train(recipe, tmp_path, device="cpu").evaluation
    assert [entry.exit for entry in evaluation.exits] == [1, 2, 3]
    assert evaluation.accuracy == evaluation.exits[-1].accuracy > 0.35
    (block,) = evaluation.blocks
    assert block.name == "stages.1.block"
    assert evaluation.exits[0].macs < evaluation.exits[1].macs < evaluation.exits[2].macs
    assert evaluation.exits[2].macs == pytest.approx(evaluation.flops, rel=1e-6)
    assert evaluation.early_exit is not None
    assert sum(evaluation.early_exit.shares) == pytest.approx(1)


def test_a_loss_by_name(tmp_path: Path) -> None:
    recipe = own("Embedding", epochs=2, batch_size=48, loss=f"{OWN}:on_a_circle", sparsity={"weight": 0.0})
    result = train(recipe, tmp_path, device="cpu")
    first, last = (record.training["task"] for record in (result.history[0], result.history[-1]))
    assert last < first
    assert (result.evaluation.accuracy, result.evaluation.cross_entropy) == (None, None)
    assert result.evaluation.loss == result.history[-1].held_out["loss"]
    assert result.evaluation.loss is not None
    assert 0 < result.evaluation.loss < 1
    assert json.loads((tmp_path / RESULT).read_text())["evaluation"]["accuracy"] is None
