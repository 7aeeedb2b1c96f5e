from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dyndeploy.data import ImageFolderDataset
from dyndeploy.errors import UsageError
from dyndeploy.nets import Preprocessing
from dyndeploy.training.augmentation import Mix, TimmPolicy, apply_mix, draw_mix
from dyndeploy.training.recipe import DataRecipe, MixingRecipe

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2), resize=16, interpolation="bicubic")


def recipe(**changes: Any) -> DataRecipe:
    return DataRecipe("imagefolder", **({"rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 1.0} | changes))


def test_mixup_by_hand() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    mixed, targets = apply_mix(Mix(0.75, None), images, torch.tensor([2, 0, 1, 1]), 3)
    assert mixed[:, 0, 0, 0].tolist() == pytest.approx([0.25, 0.75, 2.25, 2.75])
    assert targets.tolist() == [[0.25, 0, 0.75], [0.75, 0, 0.25], [0, 1, 0], [0, 1, 0]]


def test_cutmix_by_hand() -> None:
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    mixed, targets = apply_mix(Mix(0.625, (1, 3, 0, 3)), images, torch.tensor([0, 1]), 2)
    expected = torch.zeros(4, 4)
    expected[1:3, 0:3] = 1
    assert torch.equal(mixed[0], expected.expand(3, 4, 4))
    assert torch.equal(mixed[1], 1 - expected.expand(3, 4, 4))
    assert targets.tolist() == [[0.625, 0.375], [0.375, 0.625]]
    # The network's own images stay as they are.
    assert images[0].sum() == 0


def test_smoothed_mixed_targets_are_timms() -> None:
    # on = 0.9 + 0.1 / K, off = 0.1 / K, then lam * own + (1 - lam) * partner's: F.cross_entropy smooths the mix.
    torch.manual_seed(0)
    logits = torch.randn(2, 5, dtype=torch.float64)
    _, targets = apply_mix(Mix(0.7, None), torch.zeros(2, 3, 1, 1, dtype=torch.float64), torch.tensor([1, 4]), 5)
    smoothed = torch.full((2, 5), 0.02, dtype=torch.float64)
    smoothed[0, 1] += 0.9 * 0.7
    smoothed[0, 4] += 0.9 * 0.3
    smoothed[1, 4] += 0.9 * 0.7
    smoothed[1, 1] += 0.9 * 0.3
    expected = -(smoothed * logits.log_softmax(1)).sum(1).mean()
    loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@given(seed=st.integers(0, 2**32), height=st.integers(2, 40), width=st.integers(2, 40))
def test_a_boxs_share_is_its_area(seed: int, height: int, width: int) -> None:
    mix = draw_mix(MixingRecipe(mixup=0.0), (height, width), np.random.default_rng(seed))
    assert mix.box is not None
    top, bottom, left, right = mix.box
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / (height * width))


def test_mixes_are_drawn_as_often_as_the_recipe_says() -> None:
    rng = np.random.default_rng(0)
    mixes = [
        draw_mix(MixingRecipe(0.8, 1.0, probability=0.75, switch_probability=0.4), (8, 8), rng) for _ in range(8000)
    ]
    cut = np.mean([mix.box is not None for mix in mixes])
    none = np.mean([mix == Mix(1.0, None) for mix in mixes])
    # Three standard errors.
    assert none == pytest.approx(0.25, abs=0.0146)
    assert cut == pytest.approx(0.75 * 0.4, abs=0.0155)
    shares = np.array([draw_mix(MixingRecipe(0.8, 0.0), (8, 8), rng).share for _ in range(8000)])
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * 2.6).
    assert shares.mean() == pytest.approx(0.5, abs=0.011)
    assert shares.var() == pytest.approx(1 / 10.4, abs=0.004)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith("timm"):
            raise ImportError("No module named 'timm'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    for changes in ({"random_erasing": 0.0}, {"rand_augment": None}):
        with pytest.raises(UsageError, match=r"need timm .*pip install 'dyndeploy\[augment\]'"):
            TimmPolicy(recipe(**changes), PREPROCESSING, (16, 16))


@pytest.mark.vision("timm")
def test_policies_vary_images_by_their_seeds_alone() -> None:
    policy = TimmPolicy(recipe(), PREPROCESSING, (16, 16))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    random.seed(3)
    torch.manual_seed(3)
    states = random.getstate(), torch.get_rng_state()
    varied = [np.asarray(policy.image(image, seed)) for seed in range(8)]
    for seed in range(8):
        np.testing.assert_array_equal(varied[seed], np.asarray(policy.image(image, seed)))
    # Each of RandAugment's two operations is left out half of the time.
    assert len({each.tobytes() for each in varied}) >= 4
    values = np.zeros((3, 16, 16), np.float32)
    erased, same = policy.input(values, 7), policy.input(values, 7)
    np.testing.assert_array_equal(erased, same)
    # timm erases between 2 % and a third of the area, with noise for every pixel.
    assert 0.02 <= (erased != 0).mean() <= 0.4
    assert not values.any()
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.vision("timm")
def test_a_policy_that_timm_does_not_know() -> None:
    with pytest.raises(UsageError, match="timm does not understand 'random-m9'"):
        TimmPolicy(recipe(rand_augment="random-m9"), PREPROCESSING, (16, 16))


@pytest.mark.vision("timm")
def test_image_folders_under_a_policy(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "only" / "a.png")
    policy = TimmPolicy(recipe(), PREPROCESSING, (16, 16))

    def item(epoch: int, **options: Any) -> np.ndarray:
        dataset = ImageFolderDataset(tmp_path, PREPROCESSING, (16, 16), augment=True, seed=1, **options)
        dataset.set_epoch(epoch)
        return dataset[0][0]

    np.testing.assert_array_equal(item(2, policy=policy), item(2, policy=policy))
    assert not np.array_equal(item(2, policy=policy), item(2))
    assert not np.array_equal(item(2, policy=policy), item(3, policy=policy))
