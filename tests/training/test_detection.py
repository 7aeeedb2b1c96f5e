from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dyndeploy.errors import InputError, UsageError
from dyndeploy.nets import create_model, load_checkpoint, save_checkpoint
from dyndeploy.nets.trained import read_trained
from dyndeploy.tasks.annotations import AnnotatedImage
from dyndeploy.tasks.detection import DetectionTask, encode_mask
from dyndeploy.tasks.scenes import digit_scenes, write_coco
from dyndeploy.training import CHECKPOINT, LOG, RESULT, Recipe, load_recipe, recipe_names, train
from dyndeploy.training.batches import datasets, training_batches
from dyndeploy.training.detection import _Image
from dyndeploy.training.optimization import parameter_groups
from dyndeploy.training.processes import Part
from dyndeploy.training.recipe import SparsityRecipe, TemperatureRecipe
from dyndeploy.training.scenes import Collate, Scenes, batch_of, coco_files, resized_masks
from tests.training.test_engine import Recorder, StopError, weights

vision = pytest.mark.vision("torchvision", "cv2", "pycocotools")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(kind: str = "retinanet", **changes: Any) -> Recipe:
    """Four scenes of 48 pixels in batches of two: a second or two for an epoch."""
    content: dict[str, Any] = {
        "name": "tiny",
        "description": "For tests.",
        "model": {
            "name": f"laud_{kind}_small",
            "options": {"mode": "spatial", "size": [48, 48], "pyramid_channels": 8, "tower": 1},
            "input_size": [48, 48],
        },
        "data": {"dataset": "digit_scenes", "scenes": [4, 3]},
        "epochs": 1,
        "batch_size": 2,
        "optimizer": {"name": "adamw", "lr": 0.001},
        "detection": {"proposal_samples": 16, "region_samples": 8},
        "seed": 5,
    }
    return Recipe.from_dict(content | changes)


def without(recipe: Recipe, *names: str) -> dict[str, Any]:
    return {key: value for key, value in recipe.as_dict().items() if key not in names}


# -------------------------------------------------------------------- runs


@vision
@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_a_run_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path, kind: str) -> None:
    recipe = tiny(kind, epochs=2, ema={"decay": 0.5})
    state = torch.get_rng_state()
    whole = train(recipe, tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(StopError):
        train(recipe, tmp_path / "parts", progress=Recorder((2, 1)))
    torch.rand(7)
    resumed = train(recipe, tmp_path / "parts")
    assert resumed.resumed_from == 1
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [[{**vars(record), "seconds": None} for record in run.history] for run in (whole, resumed)]
    assert rows[0] == rows[1]

    # What is said of it, and what of it was trained.
    evaluation, first = whole.evaluation, whole.history[0]
    assert evaluation.detection is not None
    assert evaluation.detection.images == evaluation.images == 3
    assert (evaluation.detection.masks is None) == (kind == "retinanet")
    losses = {"retinanet": ["classification", "bbox_regression"]}.get(
        kind, ["objectness", "rpn_bbox_regression", "classification", "bbox_regression", "mask"]
    )
    terms = sum(first.training[name] for name in losses)
    assert first.training["loss"] == pytest.approx(terms + first.training["sparsity"], rel=1e-5)
    assert first.training["temperature"] == 0.1
    with (tmp_path / "whole" / LOG).open(newline="") as stream:
        row = list(csv.DictReader(stream))[-1]
    assert float(row["held_out.boxes.ap50"]) == (evaluation.detection.boxes.ap50 or 0)
    assert float(row["held_out.flops_ratio"]) == evaluation.flops_ratio
    assert float(row["held_out.backbone.layer2.0.rate"]) == evaluation.blocks[2].rate
    assert json.loads((tmp_path / "whole" / RESULT).read_text())["evaluation"]["detection"]["images"] == 3
    network = create_model(recipe.model.name, **recipe.model.options)
    assert load_checkpoint(network, tmp_path / "whole" / CHECKPOINT).missing == ()
    trained = read_trained(tmp_path / "whole" / CHECKPOINT)
    assert (trained.name, len(trained.class_names), trained.category_ids) == (
        recipe.model.name,
        10,
        tuple(range(1, 11)),
    )
    # Stem, first stage and the batch norms' statistics stay as they were.
    start = weights_at_start(recipe)
    moved = {key for key in a if not torch.equal(a[key], start[key])}
    assert not any(key.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1.")) for key in moved)
    assert not any("running_" in key for key in moved)
    assert {key.split(".")[0] for key in moved} >= {"backbone", "neck"}
    assert any("masker" in key for key in moved)


@pytest.mark.vision("torchvision", "cv2", "pycocotools", "transformers")
@pytest.mark.parametrize("kind", ["ddq_detr", "mask2former"])
def test_detectors_with_queries_train(tmp_path: Path, kind: str) -> None:
    options = {"mode": "spatial", "size": [48, 48], "pyramid_channels": 32, "encoder_layers": 1, "queries": 12}
    recipe = tiny(
        kind, model={"name": f"laud_{kind}_small", "options": options, "input_size": [48, 48]}, detection={}, seed=1
    )
    result = train(recipe, tmp_path)
    record, evaluation = result.history[0], result.evaluation.detection
    assert evaluation is not None and evaluation.images == 3
    assert (evaluation.masks is None) == (kind == "ddq_detr")
    terms = {name: value for name, value in record.training.items() if name.startswith(("encoder.", "layer"))}
    assert {name.split(".")[0] for name in terms} >= {"layer0", "layer1"}
    assert min(terms.values()) > 0
    assert record.training["loss"] == pytest.approx(sum(terms.values()) + record.training["sparsity"], rel=1e-5)
    start, end = weights_at_start(recipe), weights(tmp_path)
    moved = {key.split(".")[0] for key in end if not torch.equal(end[key], start[key])}
    assert moved == {"backbone", "neck", "head"}


@vision
def test_masks_of_queries_are_kept_as_runs() -> None:
    masks = np.random.default_rng(0).random((2, 5, 7)) < 0.5
    boxes, scores = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([0.5, 0.25], np.float32)
    found = _Image(boxes, scores, np.array([3, 1]), [encode_mask(mask) for mask in masks], (5, 7)).detections()
    np.testing.assert_array_equal(found.masks, masks)
    assert found.labels.tolist() == [3, 1] and found.boxes.tolist() == boxes.tolist()
    nothing = _Image(boxes[:0], scores[:0], np.zeros(0, np.int64), [], (5, 7)).detections()
    assert nothing.masks is not None and nothing.masks.shape == (0, 5, 7)


def weights_at_start(recipe: Recipe) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        state: dict[str, torch.Tensor] = create_model(recipe.model.name, **recipe.model.options).state_dict()
    return state


@vision
def test_every_recipe_of_a_detector_gives_the_network_that_it_names() -> None:
    recipes = [recipe for recipe in map(load_recipe, recipe_names()) if recipe.detection is not None]
    assert {recipe.data.dataset for recipe in recipes} == {"digit_scenes", "coco"}
    for recipe in recipes:
        with torch.device("meta"):
            config: Any = create_model(recipe.model.name, **recipe.model.options).config
        assert config.num_classes == (10 if recipe.data.dataset == "digit_scenes" else 80)
        assert ("num_classes" in recipe.model.options) != recipe.name.startswith("finetune-")
    official = {r.name: r for r in recipes if r.data.dataset == "coco" and not r.name.startswith("finetune-")}
    assert sorted({recipe.model.name for recipe in official.values()}) == [
        "laud_ddq_detr_resnet101", "laud_ddq_detr_resnet50_512", "laud_faster_rcnn_resnet101",
        "laud_mask2former_resnet101", "laud_mask_rcnn_resnet101", "laud_retinanet_resnet101",
        "laud_retinanet_resnet50_512",
    ]  # fmt: skip
    assert len(official) == 2 * 7
    targets = {
        "retinanet": (0.6, 0.5, 0.2),
        "faster-rcnn": (0.8, 0.5, 0.5),
        "mask-rcnn": (0.8, 0.8, 0.3),
    }
    for kind, (channel, layer, factor) in targets.items():
        for mode, target in (("channel", channel), ("layer", layer)):
            (recipe,) = (r for name, r in official.items() if f"{kind}-resnet101-{mode}" in name)
            optimizer = recipe.optimizer
            assert (recipe.epochs, recipe.batch_size) == (12, 16)
            assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.02, 0.9, False)
            assert (optimizer.schedule, optimizer.steps, optimizer.step_factor) == ("steps", (8, 11), 0.1)
            assert (optimizer.warmup_iterations, optimizer.warmup_start, optimizer.weight_decay) == (500, 0.001, 1e-4)
            assert recipe.sparsity == SparsityRecipe(target, 1.0, None)
            assert recipe.temperature is not None
            assert (recipe.temperature.start, recipe.temperature.end) == (0.1, 0.1)
            (layers,) = optimizer.layers.values()
            assert (layers.lr_mult, layers.weight_decay_mult) == (factor, 0.9)
    queries = {"ddq-detr-resnet101": (12, (11,), 2e-4, 0.1), "mask2former-resnet101": (50, (44, 48), 1e-4, 0.01)}
    for kind, (epochs, steps, rate, clip) in queries.items():
        for mode in ("channel-2222", "layer"):
            recipe = official[f"laud-{kind}-{mode}"]
            optimizer = recipe.optimizer
            assert (recipe.epochs, recipe.batch_size, optimizer.steps) == (epochs, 16, steps)
            assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", rate, 0.05)
            assert optimizer.clip_norm == clip and optimizer.layers["backbone.*"].lr_mult == 0.1
            assert recipe.sparsity == SparsityRecipe(0.5, 1.0, None)


@vision
@pytest.mark.parametrize("mode", ["channel-2222", "layer"])
def test_norms_and_embeddings_of_mask2former_do_not_decay(mode: str) -> None:
    recipe = load_recipe(f"laud-mask2former-resnet101-{mode}")
    with torch.device("meta"):
        network = create_model(recipe.model.name, **recipe.model.options)
    still = {
        name
        for group in parameter_groups(network, recipe.optimizer)
        if group["decay_mult"] == 0.0
        for name in group["names"]
    }
    kinds = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.Embedding)
    assert still == {"neck.decoder.level_embed"} | {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters()
    }


# -------------------------------------------------------------------- images


def scene_set(recipe: Recipe) -> tuple[Scenes, Scenes]:
    training, held_out = datasets(recipe)
    assert isinstance(training, Scenes)
    assert isinstance(held_out, Scenes)
    return training, held_out


@vision
def test_images_are_mirrored_and_scaled_with_their_objects() -> None:
    recipe = tiny("mask_rcnn", detection={"flip": 1.0, "scale": [0.5, 0.5]})
    training, held_out = scene_set(recipe)
    source = digit_scenes(4, (48, 48), "train", 5)
    training.set_epoch(3)
    source.set_epoch(3)
    scene, image = training[1], source[1]
    assert scene.input.shape == (3, 24, 24)
    assert scene.placement.resized == (24, 24)
    expected = np.stack([48 - image.boxes[:, 2], image.boxes[:, 1], 48 - image.boxes[:, 0], image.boxes[:, 3]], 1)
    np.testing.assert_allclose(scene.boxes, expected / 2)
    np.testing.assert_array_equal(scene.labels, image.labels)
    assert image.masks is not None
    np.testing.assert_array_equal(scene.masks, image.masks[:, ::2, ::2][:, :, ::-1])
    plain = held_out[0]
    assert plain.input.shape == (3, 48, 48)
    np.testing.assert_array_equal(plain.boxes, digit_scenes(3, (48, 48), "held_out", 5)[0].boxes)
    # The same item again, and another epoch's.
    np.testing.assert_array_equal(training[1].input, scene.input)
    training.set_epoch(4)
    assert not np.array_equal(training[1].input, scene.input)


def test_masks_take_the_nearest_pixel() -> None:
    masks = np.zeros((1, 4, 6), np.bool_)
    masks[0, 1:3, 2:5] = True
    assert resized_masks(masks, (2, 3)).tolist() == [[[0, 0, 0], [0, 1, 1]]]
    assert resized_masks(masks, (4, 6)).tolist() == masks.astype(int).tolist()
    assert resized_masks(masks[:0], (2, 3)).shape == (0, 2, 3)


class Sizes:
    """Images of several sizes, one of them without objects, one with a crowd."""

    classes, category_ids = ("a", "b"), (7, 9)

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> AnnotatedImage:
        height, width = self.sizes[index]
        boxes = np.array([[1, 1, width - 1, height - 1], [2, 2, 9, 9]], np.float32)[: 2 * (index > 0)]
        count = len(boxes)
        crowd = np.array([False, True])[:count]
        image = np.full((height, width, 3), 50 * (index + 1), np.uint8)
        return AnnotatedImage(image, boxes, np.zeros(count, np.int64), crowd, None, index)

    def coco(self, indices: Any) -> dict[str, Any]:
        return {}


@vision
def test_a_batch_is_padded_and_each_image_can_be_had_as_it_would_be_alone() -> None:
    scenes = Scenes(Sizes([(40, 60), (60, 40), (64, 30)]), DetectionTask(size=(64, 64)), None, 0)
    batch = Collate(32, tensors=True)([scenes[0], scenes[1], scenes[2]])
    assert batch.inputs.shape == (3, 3, 64, 64)
    assert batch.image_size.tolist() == [[43, 64], [64, 43], [64, 30]]
    assert [len(target["boxes"]) for target in batch.targets] == [0, 1, 1]  # The crowd is left out.
    assert float(batch.inputs[1, :, :, 43:].abs().sum()) == 0
    parts = list(batch.alike(32))
    assert [(part.inputs.shape[2:], part.indices) for part in parts] == [((64, 64), (0, 1)), ((64, 32), (2,))]
    through_a_pipe = Collate(32, tensors=False)([scenes[0], scenes[1], scenes[2]])
    assert torch.equal(batch_of(through_a_pipe).inputs, batch.inputs)


@vision
def test_batches_hold_one_orientation() -> None:
    recipe = tiny()
    training, _ = scene_set(recipe)
    assert training.in_batches([2, 0, 1], 2, np.random.default_rng(0)) == [2, 0, 1]
    training.landscape = lambda index: index % 2 == 0  # type: ignore[method-assign]
    order = training.in_batches(list(range(11)), 2, np.random.default_rng(0))
    assert sorted(order) == list(range(11))
    pairs = [order[start : start + 2] for start in range(0, 10, 2)]
    assert sum((one - other) % 2 for one, other in pairs) <= 1
    whole = [batch.indices for batch in training_batches(training, recipe, 0, [Part(0, 2, 2)])]  # type: ignore[union-attr]
    assert len(whole) == 2


# -------------------------------------------------------------------- COCO


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    for part, split in (("train", "train"), ("val", "held_out")):
        write_coco(folder / part, digit_scenes(3, (48, 48), split))
    return folder


def changed(coco: Path, folder: Path, part: str, change: Any) -> Path:
    """A copy with other annotations of one part."""
    shutil.copytree(coco, folder, dirs_exist_ok=True)
    path = folder / part / "annotations.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))
    return folder


def on(folder: Path, kind: str = "retinanet", **changes: Any) -> Recipe:
    return tiny(kind, data={"dataset": "coco", "folder": str(folder)}, **changes)


@vision
def test_training_on_ones_own_classes_in_one_command(tmp_path: Path, coco: Path) -> None:
    def fewer(content: dict[str, Any]) -> None:
        ids = {1: 12, 2: 30}
        content["categories"] = [{"id": 12, "name": "cat"}, {"id": 30, "name": "dog"}]
        for item in content["annotations"]:
            item["category_id"] = ids[1 + item["category_id"] % 2]

    folder = changed(changed(coco, tmp_path / "one", "train", fewer), tmp_path / "own", "val", fewer)
    recipe = on(folder)
    start = create_model(recipe.model.name, **{**recipe.model.options, "num_classes": 5})
    save_checkpoint(start, tmp_path / "five.pt")
    result = train(recipe.with_changes(initial_weights=str(tmp_path / "five.pt")), tmp_path / "run")
    assert result.recipe.model.options["num_classes"] == 2
    assert result.evaluation.detection is not None
    assert [entry.name for entry in result.evaluation.detection.boxes.classes] == ["cat", "dog"]
    trained = read_trained(result.checkpoint)
    assert (trained.class_names, trained.category_ids) == (("cat", "dog"), (12, 30))


@vision
def test_annotations_that_cannot_be_trained_on_are_refused(tmp_path: Path, coco: Path) -> None:
    def empty(content: dict[str, Any]) -> None:
        content["annotations"] = []

    for part in ("train", "val"):
        with pytest.raises(InputError, match=rf"{part}.annotations\.json holds no objects, so there is nothing"):
            datasets(on(changed(coco, tmp_path / part, part, empty)))

    def renamed(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "zero"

    with pytest.raises(InputError, match="zero"):
        datasets(on(changed(coco, tmp_path / "names", "val", renamed)))
    with pytest.raises(UsageError, match=r"have 10 classes and the network has 3: set model\.options\.num_classes"):
        train(on(coco, model={**tiny().as_dict()["model"], "options": {"num_classes": 3}}), tmp_path / "run")
    shutil.copytree(coco / "train", tmp_path / "half" / "train")
    with pytest.raises(InputError, match="has no images and COCO annotations for 'val'"):
        datasets(on(tmp_path / "half"))
    with pytest.raises(UsageError, match=r"names no images: give the folder that holds images and COCO annotations"):
        datasets(tiny(data={"dataset": "coco"}))
    damaged = changed(coco, tmp_path / "damaged", "val", lambda content: None)
    (damaged / "val" / "images" / "000001.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="1 of 6 images cannot be read"):
        train(on(damaged), tmp_path / "run")


@vision
def test_odd_annotations_are_said_and_trained_around(
    tmp_path: Path, coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(content: dict[str, Any]) -> None:
        # Image 1 has nothing, image 2 a crowd and a box without area beside one that reaches out.
        base = {"iscrowd": 0, "category_id": 1, "image_id": 2, "area": 1}
        content["annotations"] = [
            {**base, "id": 1, "bbox": [30, 30, 40, 10]},
            {**base, "id": 2, "bbox": [5, 5, 0, 9]},
            {**base, "id": 3, "bbox": [0, 0, 20, 20], "iscrowd": 1},
        ]

    recipe = on(changed(coco, tmp_path, "train", odd), detection={"flip": 0.0})
    training, _ = scene_set(recipe)
    said = " ".join(caplog.messages)
    for words in ("Images without annotations", "Crowds", "without area", "reach out"):
        assert words in said
    assert [len(training[index].boxes) for index in range(3)] == [0, 1, 0]
    np.testing.assert_allclose(training[1].boxes, [[30, 30, 48, 40]])
    # Batches of images without objects are trained on like others.
    result = train(recipe, tmp_path / "run")
    assert np.isfinite(result.history[0].training["loss"])


@vision
def test_one_annotation_file_is_divided(tmp_path: Path, coco: Path) -> None:
    recipe = on(coco / "train")
    training, held_out = scene_set(recipe)
    assert (len(training), len(held_out)) == (2, 1)
    ids = {scene.source[i].image_id for scene in (training, held_out) for i in range(len(scene))}
    assert ids == {1, 2, 3}
    named = coco_files(
        tiny(
            data={
                "dataset": "coco",
                "folder": str(coco),
                "images": ["train/images", "val/images"],
                "annotations": ["train/annotations.json", "val/annotations.json"],
            }
        ).data
    )
    assert [place.images.parent.name for place in named] == ["train", "val"]


# -------------------------------------------------------------------- what recipes say


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"dataset": "digits"}}, "detectors learn from images with objects: give digit_scenes or coco"),
        ({"data": {"dataset": "coco", "scenes": [3, 3]}}, r"data\.scenes is for the dataset digit_scenes"),
        ({"data": {"dataset": "digit_scenes", "annotations": ["a"]}}, r"data\.annotations is for the dataset coco"),
        ({"data": {"dataset": "digit_scenes", "mean": [0, 0, 0]}}, "a detector says itself how images become"),
        ({"mixing": {}}, "mixing: detectors are not trained with that yet"),
        ({"distillation": {}}, "distillation: detectors are not trained with that yet"),
        ({"label_smoothing": 0.1}, "label_smoothing: detectors are not"),
        ({"compute": {"batch_norm": "synchronized"}}, r"compute\.batch_norm: the batch norms of a detector"),
        ({"detection": {"losses": "detectron"}}, r"Unknown detection\.losses 'detectron'. .*mmdetection.*torchvision"),
        ({"detection": {"flip": 2.0}}, r"detection\.flip: 2\.0 is not valid"),
        ({"detection": {"scale": [2.0, 1.0]}}, r"detection\.scale: \[2\.0, 1\.0\] is not valid"),
        ({"detection": {"region_samples": 0}}, r"detection\.region_samples: 0 is not valid"),
        ({"optimizer": {"lr": 0.1, "schedule": "steps"}}, r"optimizer\.steps belongs to the schedule steps"),
        ({"optimizer": {"lr": 0.1, "schedule": "steps", "steps": [3, 2]}}, r"optimizer\.steps: \[3, 2\] is not valid"),
        ({"optimizer": {"lr": 0.1, "warmup_start": 2.0}}, r"optimizer\.warmup_start: 2\.0 is not valid"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny(**changes)


def test_what_a_detector_is_held_to_by_itself() -> None:
    recipe = tiny()
    assert recipe.sparsity == SparsityRecipe(0.5, 1.0, None)
    assert recipe.temperature == TemperatureRecipe("exp", 0.1, 0.1)
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    with pytest.raises(UsageError, match="detection: laud_resnet14_small finds no objects"):
        Recipe.from_dict({**recipe.as_dict(), "model": {"name": "laud_resnet14_small"}, "data": {"dataset": "digits"}})


@vision
def test_bfloat16_and_parts(tmp_path: Path) -> None:
    recipe = tiny(
        "mask_rcnn", batch_size=4, compute={"accumulation": 2, "precision": "bfloat16"}, detection={"region_samples": 4}
    )
    result = train(recipe, tmp_path)
    assert not any("losses" in note for note in result.notes)
    assert all(np.isfinite(value) for value in result.history[0].training.values())


@vision
def test_torchvisions_losses_are_chosen_by_name_and_said_so(tmp_path: Path) -> None:
    recipe = tiny(detection={"losses": "torchvision", "flip": 0.0})
    result = train(recipe, tmp_path / "run")
    assert result.notes[0] == (
        "The losses are torchvision's (detection.losses), not mmdetection's, which LAUDNet used."
    )
    ours = train(tiny(detection={"flip": 0.0}), tmp_path / "ours").history[0].training
    assert result.history[0].training["classification"] != pytest.approx(ours["classification"], rel=1e-5)


@pytest.mark.vision("torchvision", "cv2", "pycocotools", "transformers")
def test_detectors_with_losses_of_their_own_have_no_others(tmp_path: Path) -> None:
    options = {"size": [48, 48], "pyramid_channels": 32, "encoder_layers": 1, "queries": 12}
    model = {"name": "laud_mask2former_small", "options": options, "input_size": [48, 48]}
    recipe = tiny(model=model, detection={"losses": "torchvision"})
    with pytest.raises(UsageError, match=r"detection\.losses: laud_mask2former_small has losses of its own"):
        train(recipe, tmp_path / "run")


# -------------------------------------------------------------------- what a run starts from


def theirs(network: Any, first: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """A network's weights by the names that another package gives them, which begin like this."""
    names = {own: other for other, own in network.checkpoint_rules().other_names().items() if other.startswith(first)}
    return {names.get(key, key): value for key, value in network.state_dict().items()}


@vision
def test_official_files_start_networks_of_other_classes(tmp_path: Path) -> None:
    options = {"mode": "layer", "pyramid_channels": 8, "tower": 1, "width_mult": 0.2}
    for kind, heads in (
        ("retinanet", ("bbox_head.", "neck.l", "neck.fpn_")),
        ("mask_rcnn", ("roi_head.", "neck.l", "neck.fpn_", "rpn_head.")),
    ):
        torch.manual_seed(1)
        official = create_model(f"laud_{kind}_small", num_classes=4, **options)
        state = theirs(official, heads)
        assert all(name.startswith((*heads, "backbone.")) for name in state)
        torch.save({"meta": {"epoch": 12}, "state_dict": state, "optimizer": {}}, tmp_path / "epoch_12.pth")
        network = create_model(f"laud_{kind}_small", num_classes=2, **options)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        report = load_checkpoint(network, tmp_path / "epoch_12.pth", classes=2)
        fresh = {key for key in report.fresh if before[key].shape != official.state_dict()[key].shape}
        assert fresh
        assert report.classes is not None
        for key, value in network.state_dict().items():
            other = before if key in report.fresh else official.state_dict()
            assert torch.equal(value, other[key]), key
        assert "mode" in report.untold


@vision
def test_a_classifier_starts_the_backbone(tmp_path: Path) -> None:
    classifier = create_model("laud_resnet26_small", mode="static", width_mult=0.2)
    save_checkpoint(classifier, tmp_path / "classifier.pt")
    detector = create_model(
        "laud_faster_rcnn_small", mode="both", channel_granularity=1, pyramid_channels=8, width_mult=0.2
    )
    report = load_checkpoint(detector, tmp_path / "classifier.pt", classes=10)
    own = detector.state_dict()
    for key, value in classifier.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(own[f"backbone.{key}"], value)
    assert all(key.startswith(("neck", "rpn", "roi_heads")) or "masker" in key for key in report.untrained)


def test_classifiers_learn_from_scenes_of_one_digit() -> None:
    recipe = Recipe.from_dict(
        {
            "name": "tiny",
            "description": "For tests.",
            "model": {"name": "laud_resnet14_small", "input_size": [24, 24]},
            "data": {"dataset": "digit_scenes", "scenes": [12, 5], "digit_size": [14, 40], "contrast": 120},
            "epochs": 1,
            "batch_size": 4,
            "optimizer": {"lr": 0.1},
        }
    )
    training, held_out = datasets(recipe)
    assert (len(training), len(held_out), training.classes) == (12, 5, tuple("0123456789"))
    scene = digit_scenes(12, (24, 24), "train", 0, (1, 1), (14, 24), 120)[3]
    inputs, label = training[3]
    mean, std = np.float32(recipe.preprocessing.mean), np.float32(recipe.preprocessing.std)
    np.testing.assert_allclose(inputs.transpose(1, 2, 0), (scene.image / np.float32(255) - mean) / std, atol=1e-5)
    assert label == scene.labels[0]
    batches = list(training_batches(training, recipe, 1, [Part(0, 4, 4)]))
    assert [tuple(batch.inputs.shape) for batch in batches] == [(4, 3, 24, 24)] * 3
