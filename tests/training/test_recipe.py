from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.nets import create_model, model_info
from dyndeploy.training.recipe import (
    ExitsRecipe,
    LayerRecipe,
    OptimizerRecipe,
    QuantizationRecipe,
    Recipe,
    SparsityRecipe,
    TemperatureRecipe,
    differences,
    dump_recipe,
    load_recipe,
    recipe_names,
)
from tests.training.helpers import OWN, tiny

CONTENT: dict[str, Any] = {
    "name": "mine",
    "description": "A run.",
    "model": {"name": "laud_resnet14_small", "options": {"mode": "spatial"}},
    "data": {"dataset": "digits"},
    "epochs": 2,
    "batch_size": 32,
    "optimizer": {"lr": 0.1},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    *sections, key = path.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    return content


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_along_is_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    if recipe.detection is not None:
        return  # See tests/training/test_detection.py: it cannot be created everywhere.
    with torch.device("meta"):
        model = create_model(recipe.model.name, **recipe.model.options)
    config: Any = model.config
    assert config.num_classes == (10 if recipe.data.dataset in ("digits", "digit_scenes") else 1000)
    assert ("num_classes" in recipe.model.options) != name.startswith("finetune-")


def family_of(recipe: Recipe) -> str:
    return model_info(recipe.model.name).family


def papers_of(family: str) -> list[Recipe]:
    recipes = [load_recipe(name) for name in recipe_names() if not name.startswith("finetune-")]
    return [recipe for recipe in recipes if recipe.data.dataset == "imagefolder" and family_of(recipe) == family]


def test_recipes_of_laudnet_carry_its_hyper_parameters() -> None:
    papers = papers_of("laud_resnet")
    assert {recipe.model.name for recipe in papers} == {"laud_resnet50", "laud_resnet101"}
    for recipe in papers:
        assert (recipe.epochs, recipe.batch_size, recipe.input_size) == (100, 1024, (224, 224))
        assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.08, 0.9, 5e-5)
        assert recipe.optimizer.decay == "all"
        assert recipe.sparsity == SparsityRecipe(target=0.5, weight=10, bounds_until=0.33)
        assert recipe.temperature == TemperatureRecipe("exp", 5.0, 0.1)
        assert (recipe.mixing, recipe.ema, recipe.label_smoothing) == (None, None, 0)
        assert recipe.distillation is not None
        assert (recipe.distillation.weight, recipe.distillation.temperature) == (0.5, 4.0)
        assert recipe.checkpoint.url is None
        assert recipe.checkpoint.note


def test_recipes_of_dyn_perceiver_carry_its_hyper_parameters() -> None:
    papers = {recipe.model.name: recipe for recipe in papers_of("dyn_perceiver")}
    expected = {
        "reg800m_perceiver_t128": (300, 1e-3, [1, 1, 1, 2], 0.7986),
        "resnet50_0375_perceiver_t128": (300, 6e-4, [1, 1, 1, 1], 0.7770),
        "mobilenetV3_0x75_perceiver_t128": (600, 1e-3, [1, 1, 1, 3], 0.7459),
    }
    assert papers.keys() == expected.keys()
    for name, (epochs, lr, depth, accuracy) in expected.items():
        recipe = papers[name]
        assert (recipe.epochs, recipe.batch_size, recipe.input_size) == (epochs, 1024, (224, 224))
        assert recipe.optimizer == OptimizerRecipe(
            lr,
            "adamw",
            momentum=None,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            decay="matrices",
            lr_end=1e-6,
            warmup_epochs=20,
        )
        assert recipe.model.options["depth_factor"] == depth
        assert recipe.model.options["sa_widening_factor"] == 4
        assert recipe.exits == ExitsRecipe(weights=(0.5, 0.5, 1.0, 1.0))
        assert (recipe.data.rand_augment, recipe.data.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
        assert recipe.mixing is not None
        assert (recipe.mixing.mixup, recipe.mixing.cutmix, recipe.mixing.switch_probability) == (0.8, 1.0, 0.5)
        assert (recipe.mixing.probability, recipe.label_smoothing) == (1.0, 0.1)
        assert recipe.distillation is not None
        assert (recipe.distillation.weight, recipe.distillation.temperature) == (0.5, 1.0)
        assert recipe.ema is not None
        assert (recipe.ema.decay, recipe.checkpoint.accuracy) == (0.9999, accuracy)
        # timm's evaluation: shorter side 256, bicubic.
        preprocessing = model_info(name).preprocessing
        assert (preprocessing.resize, preprocessing.interpolation) == (256, "bicubic")


def test_sections_that_a_network_has_no_use_for_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"exits: laud_resnet14_small has one exit.*no use for .*: sparsity, temperature"
    ):
        Recipe.from_dict(CONTENT | {"exits": {}})
    perceiver = CONTENT | {"model": {"name": "resnet10_small_perceiver_t32"}}
    assert Recipe.from_dict(perceiver).exits == ExitsRecipe(weights=(0.5, 0.5, 1.0, 1.0))
    assert (Recipe.from_dict(perceiver).sparsity, Recipe.from_dict(perceiver).temperature) == (None, None)
    for section in ("sparsity", "temperature"):
        with pytest.raises(UsageError, match=rf"{section}: resnet10_small_perceiver_t32 has no gates.*no use.*: exits"):
            Recipe.from_dict(perceiver | {section: {}})
    with pytest.raises(UsageError, match=r"exits\.weights has 3 entries and resnet10_small_perceiver_t32 has 4 exits"):
        Recipe.from_dict(perceiver | {"exits": {"weights": [1, 1, 1]}})
    # A static network of a family with masks is trained as before, with the sections of that family.
    static = Recipe.from_dict(changed("model.options", {"mode": "static"}))
    assert (static.sparsity, static.temperature, static.exits) == (SparsityRecipe(), TemperatureRecipe(), None)


def own(name: str, **changes: Any) -> dict[str, Any]:
    return CONTENT | {"model": {"name": name, "import": str(OWN)}} | changes


def test_an_imported_network_is_asked_what_it_has_use_for() -> None:
    cnn = Recipe.from_dict(own("SmallCnn"))
    assert (cnn.sparsity, cnn.temperature, cnn.exits) == (SparsityRecipe(), TemperatureRecipe(), None)
    assert cnn.input_size == (8, 8)
    exits = Recipe.from_dict(own("three_exits"))
    assert exits.sparsity == SparsityRecipe()
    assert exits.exits is not None
    assert exits.exits.weights == (0.5, 1.0, 1.0)
    plain = Recipe.from_dict(
        own("three_exits") | {"model": {"name": "TwoLists", "import": str(OWN), "input_size": [8, 8]}}
    )
    assert plain.exits is not None
    assert plain.exits.weights == (0.5, 1.0)
    assert Recipe.from_dict(plain.as_dict()) == plain
    assert plain.as_dict()["model"]["import"] == str(OWN)
    with pytest.raises(UsageError, match="TwoLists does not say what it takes: give"):
        Recipe.from_dict(own("TwoLists"))
    with pytest.raises(UsageError, match="Did you mean 'SmallCnn'"):
        Recipe.from_dict(own("SmallCnnn"))
    with pytest.raises(UsageError, match=r"argument of SmallCnn of .*'widht'\. Did you mean 'width'"):
        Recipe.from_dict(own("x") | {"model": {"name": "SmallCnn", "import": str(OWN), "options": {"widht": 3}}})
    with pytest.raises(InputError, match=r"There is no file nowhere\.py"):
        Recipe.from_dict(own("x") | {"model": {"name": "SmallCnn", "import": "nowhere.py"}})
    with pytest.raises(UsageError, match=r"exits\.weights: the loss function that is named weighs the exits"):
        Recipe.from_dict(own("three_exits", exits={"weights": [1, 1, 1]}, loss="a.py:f"))


def test_files_that_a_recipe_imports_lie_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "net.py").write_text(OWN.read_text(encoding="utf-8"), encoding="utf-8")
    content = own("x") | {"model": {"name": "SmallCnn", "import": "net.py"}, "loss": "net.py:on_a_circle"}
    recipe = load_recipe(write(folder / "r.yaml", yaml.safe_dump(content)))
    assert recipe.model.imported == str(folder / "net.py")
    assert recipe.loss == f"{folder / 'net.py'}:on_a_circle"
    assert load_recipe(write(tmp_path / "elsewhere.yaml", dump_recipe(recipe))) == recipe
    assert sorted(path.name for path in folder.iterdir()) == ["net.py", "r.yaml"]


def test_layer_settings_are_read_by_pattern() -> None:
    recipe = Recipe.from_dict(changed("optimizer.layers", {"*.masker_*": {"lr_mult": 0.1}}))
    assert recipe.optimizer.layers == {"*.masker_*": LayerRecipe(lr_mult=0.1)}
    assert Recipe.from_dict(recipe.as_dict()) == recipe


def test_defaults_are_the_papers() -> None:
    recipe = Recipe.from_dict(CONTENT)
    assert recipe.sparsity == SparsityRecipe(target=0.5, weight=10.0, bounds_until=0.33)
    assert recipe.temperature == TemperatureRecipe("exp", 5.0, 0.1)
    assert recipe.exits is None
    assert recipe.input_size == (32, 32)
    assert recipe.distillation is None


def test_a_dumped_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = tiny(distillation={"weight": 0.25}, checkpoint={"accuracy": 0.5, "note": "größer"})
    again = load_recipe(write(tmp_path / "again.yaml", dump_recipe(recipe)))
    # YAML has no tuples: granularity comes back as a list, as it was given.
    assert again == recipe
    assert differences(again, recipe) == ()


def test_differences_are_named_by_their_keys() -> None:
    assert differences(tiny(), tiny(epochs=9, distillation={})) == (
        "epochs",
        "distillation.weight",
        "distillation.temperature",
    )
    assert differences(tiny(), tiny(optimizer={"lr": 0.06})) == ("optimizer.lr",)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("epoch", 3, "key in the file 'epoch'. Did you mean 'epochs'"),
        ("model.option", {}, "key in model 'option'. Did you mean 'options'"),
        ("optimizer.learning_rate", 0.1, "Unknown key in optimizer 'learning_rate'"),
        ("model.name", "laud_resnet14_smal", "Did you mean 'laud_resnet14_small'"),
        ("model.options.granularty", 4, "Did you mean 'granularity'"),
        ("model.options.mode", "spatail", "Did you mean 'spatial'"),
        ("model.options.granularity", [4, 4], "granularity=[4, 4] has 2 entries"),
        ("model.options", [1], "model.options: [1] is not valid: give a mapping"),
        ("model", 3, "model is not a mapping of keys to values but 3"),
        ("model.input_size", [32], "model.input_size: [32] is not valid: give two whole numbers"),
        ("model.input_size", [0, 32], "model.input_size: [0, 32] is not valid"),
        ("data.dataset", "digit", "Did you mean 'digits'"),
        ("data.augment", "yes", "data.augment: 'yes' is not valid: give true or false"),
        ("data.workers", -1, "data.workers: -1 is not valid"),
        ("epochs", 0, "epochs: 0 is not valid: give a value at least 1"),
        ("epochs", 2.5, "epochs: 2.5 is not valid: give a whole number"),
        ("epochs", True, "epochs: True is not valid"),
        ("epochs", None, "epochs: None is not valid"),
        ("batch_size", 1, "batch_size: 1 is not valid"),
        ("optimizer.lr", "5e-2", "YAML takes 5e-2 for text: write 0.05."),
        ("optimizer.lr", "fast", "optimizer.lr: 'fast' is not valid: give a number"),
        ("optimizer.lr", float("nan"), "optimizer.lr: nan is not valid"),
        ("optimizer.lr", -0.1, "optimizer.lr: -0.1 is not valid: give a value above 0"),
        ("optimizer.momentum", 1.0, "optimizer.momentum: 1.0 is not valid"),
        ("optimizer.weight_decay", -1, "optimizer.weight_decay: -1.0 is not valid"),
        ("sparsity.target", 0, "sparsity.target: 0.0 is not valid"),
        ("sparsity.target", 1.5, "sparsity.target: 1.5 is not valid"),
        ("sparsity.bounds_until", 0, "sparsity.bounds_until: 0.0 is not valid"),
        ("temperature.schedule", "exponential", "Unknown temperature.schedule 'exponential'"),
        ("temperature.end", 0, "temperature.end: 0.0 is not valid"),
        ("temperature.noise_until", 1.1, r"temperature.noise_until: 1.1 is not valid: give a value from 0 to 1"),
        ("distillation.temperature", 0, "distillation.temperature: 0.0 is not valid"),
        ("checkpoint.accuracy", 77.1, "checkpoint.accuracy: 77.1 is not valid: give a value a fraction"),
        ("optimizer.name", "adam", "Did you mean 'adamw'"),
        ("optimizer.decay", "matrix", "Did you mean 'matrices'"),
        ("optimizer.betas", [0.9, 0.999], "optimizer.betas means nothing to sgd"),
        ("optimizer.betas", [0.9], "optimizer.betas: [0.9] is not valid: give two numbers"),
        ("optimizer.warmup_epochs", 2, "optimizer.warmup_epochs: 2 is not valid: give a value at least 0 and below"),
        ("optimizer.clip_norm", 0, "optimizer.clip_norm: 0.0 is not valid"),
        ("optimizer.layers", {"fc.*": {"lr": 0.1}}, "Unknown key in optimizer.layers.fc.* 'lr'"),
        ("optimizer.layers", {"fc.*": {"lr_mult": -1}}, "optimizer.layers.fc.*.lr_mult: -1.0 is not valid"),
        ("optimizer.layers", [1], "optimizer.layers: [1] is not valid"),
        ("compute.precision", "float16", "Did you mean 'bfloat16'"),
        ("compute.batch_norm", "sync", "Unknown compute.batch_norm 'sync'"),
        ("compute.accumulation", 3, "compute.accumulation: 3 is not valid: give a value that divides the batch of 32"),
        ("quantization.weight_bits", 6, "quantization.weight_bits: 6 is not valid: give a value of 7 or 8"),
        ("quantization.method", "maxmin", "Did you mean 'minmax'"),
        ("quantization.images", 0, "quantization.images: 0 is not valid"),
        ("quantization.momentum", 0, "quantization.momentum: 0.0 is not valid: give a value above 0"),
        ("quantization.freeze_observers_after", -1, "quantization.freeze_observers_after: -1 is not valid"),
        ("quantization.weight_bits", 8, "has the batch norms folded into its weights: set compute.batch_norm to froz"),
        ("mixing", {"mixup": 0, "cutmix": 0}, "mixing: mixup and cutmix are both 0"),
        ("mixing.probability", 1.5, "mixing.probability: 1.5 is not valid"),
        ("label_smoothing", 1, "label_smoothing: 1.0 is not valid"),
        ("ema.decay", 1, "ema.decay: 1.0 is not valid"),
        ("data.rand_augment", "rand-m9", "data.rand_augment adds to the augmentation of image folders"),
        ("data.random_erasing", 2, "data.random_erasing: 2.0 is not valid"),
        ("seed", -1, "seed: -1 is not valid"),
        ("name", "", "name: '' is not valid: give a text"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = write(tmp_path / "r.yaml", yaml.safe_dump(changed(path, value)))
    with pytest.raises(UsageError) as caught:
        load_recipe(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith("r.yaml: ")
    assert caught.value.exit_code == 2


def test_what_a_run_for_int8_needs_of_the_other_sections(tmp_path: Path) -> None:
    content = CONTENT | {"quantization": {"table": "t.json"}, "compute": {"batch_norm": "frozen"}}
    file = write(tmp_path / "r.yaml", yaml.safe_dump(content))
    recipe = load_recipe(file)
    assert recipe.quantization == QuantizationRecipe(7, str(tmp_path / "t.json"), None, 256, 0.05, 100)
    # Written elsewhere, it still means the same file.
    assert load_recipe(write(tmp_path / "again.yaml", dump_recipe(recipe))) == recipe
    assert load_recipe("digits-laud-resnet14-small-spatial").quantization is None
    content["compute"] = {"batch_norm": "frozen", "precision": "bfloat16"}
    with pytest.raises(UsageError, match=r"set compute\.precision to float32 \(it is bfloat16\)"):
        Recipe.from_dict(content)


def test_missing_keys_are_named() -> None:
    content = {key: value for key, value in CONTENT.items() if key not in ("epochs", "optimizer")}
    with pytest.raises(UsageError, match="the file lacks epochs, optimizer"):
        Recipe.from_dict(content)
    with pytest.raises(UsageError, match=r"optimizer lacks optimizer\.lr"):
        Recipe.from_dict(changed("optimizer", {"momentum": 0.5}))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_recipes_of_other_editors(tmp_path: Path, encoding: str) -> None:
    known = load_recipe("digits-laud-resnet14-small-spatial")
    (tmp_path / "r.yaml").write_bytes(dump_recipe(known).replace("\n", "\r\n").encode(encoding))
    assert load_recipe(tmp_path / "r.yaml") == known


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'digits-laud-resnet14-small-spatial'"):
        load_recipe("digits-laud-resnet14-small-spacial")
    with pytest.raises(InputError, match="There is no recipe"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(write(tmp_path / "broken.yaml", "a: [1, 2"))
    with pytest.raises(UsageError, match="is not a mapping"):
        load_recipe(write(tmp_path / "empty.yaml", ""))
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\x00\x80")
    with pytest.raises(InputError, match=r"binary\.yaml is not text in UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    # Tags that would make PyYAML build objects are refused, not obeyed.
    hostile = write(tmp_path / "hostile.yaml", "!!python/object/apply:os.mkdir ['pwned']")
    with pytest.raises(DyndeployError, match="not valid YAML"):
        load_recipe(hostile)
    assert not (tmp_path / "pwned").exists()
    assert not Path("pwned").exists()


def test_changes_beside_the_recipe_are_checked_too() -> None:
    recipe = tiny().with_changes(epochs=7, folder="pictures", initial_weights="w.pt")
    assert (recipe.epochs, recipe.data.folder, recipe.model.initial_weights) == (7, "pictures", "w.pt")
    assert tiny().with_changes() == tiny()
    with pytest.raises(UsageError, match="epochs: 0 is not valid"):
        tiny().with_changes(epochs=0)
