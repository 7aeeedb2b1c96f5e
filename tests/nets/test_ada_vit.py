"""Adaptive vision transformers against the official code's run, and against compact execution."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dyndeploy.blocks import Tape, dynamic_blocks
from dyndeploy.blocks.macs import dense_macs
from dyndeploy.errors import UsageError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.nets import AdaVit, AdaVitOutput, create_model, model_names
from dyndeploy.nets.ada_vit import sine_positions
from dyndeploy.training import Recipe
from tests.nets import vit_reference
from tests.nets.vit_reference import DATA, OPTIONS, filled, images, official_keys

PAIRS = [
    *(("ada_t2t_vit_19", name) for name in ("token", "token_mlp", "head", "layer", "all")),
    *((net, name) for net in ("ada_t2t_vit_14", "ada_deit_tiny") for name in ("token_mlp", "head", "layer", "all")),
    *(("ada_deit_small", name) for name in OPTIONS if name != "static"),
]
"""The networks and configurations that the official code was run with."""


def build(name: str, configuration: str = "static", **options: Any) -> AdaVit:
    network = create_model(name, **{**OPTIONS[configuration], **options})
    assert isinstance(network, AdaVit)
    return network.eval()


def shapes(network: AdaVit) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def policy_biases(network: AdaVit, seed: int) -> dict[str, np.ndarray]:
    """Biases with which every kind of decision falls either way."""
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(-1.5, 1.5, shape).astype(np.float32)
        for key, shape in shapes(network).items()
        if key.endswith("_select.mlp_head.bias")
    }


def agree(result: AdaVitOutput, expected: vit_reference.Result, tolerance: float) -> None:
    for name in ("token", "head", "layer"):
        own, other = getattr(result, name), getattr(expected, name)
        assert (own is None) == (other is None), name
        if own is not None:
            assert torch.equal(own.double(), other.double()), name
    scale = expected.logits.abs().max()
    assert (result.logits - expected.logits).abs().max() <= tolerance * scale


@torch.no_grad()
def test_equals_the_official_code() -> None:
    stored = np.load(DATA / "ada_deit_tiny_token_mlp.npz")
    biases = {key[len("bias.") :]: stored[key] for key in stored.files if key.startswith("bias.")}
    network = build("ada_deit_tiny", "token_mlp")
    network.load_state_dict(filled(official_keys("ada_deit_tiny", "token_mlp"), biases))
    result = network(images(2))
    assert np.array_equal(result.token.numpy(), stored["token"])
    assert result.head is None and result.layer is None
    assert np.abs(result.logits.numpy() - stored["logits"]).max() <= 1e-5 * np.abs(stored["logits"]).max()
    # And so does the second opinion, which the other configurations are held against.
    state = filled(official_keys("ada_deit_tiny", "token_mlp"), biases)
    agree(result, vit_reference.run(state, images(2), OPTIONS["token_mlp"]), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "configuration"), PAIRS, ids=str)
def test_equals_compact_execution(name: str, configuration: str) -> None:
    network = build(name, configuration, img_size=112)
    state = filled(shapes(network), policy_biases(network, seed=3))
    network.load_state_dict(state)
    # In double precision no decision is near enough to its threshold to fall otherwise.
    x = images(2, 112).double()
    result = network.double()(x)
    expected = vit_reference.run({key: value.double() for key, value in state.items()}, x, OPTIONS[configuration])
    agree(result, expected, 1e-11)
    for masks in (result.token, result.head, result.layer):
        if masks is not None:
            assert 0.1 < float(masks.mean()) < 0.95


@torch.no_grad()
def test_corner_cases_of_one_block_each() -> None:
    network = build("ada_deit_tiny", "all")
    biases = policy_biases(network, seed=5)

    def policy(block: int, kind: str, values: list[float]) -> None:
        biases[f"blocks.{block}.{kind}.mlp_head.bias"] = np.array(values, np.float32)

    policy(5, "layer_select", [-99, 99])  # MLP alone, on the tokens that the policy keeps all the same.
    policy(6, "layer_select", [-99, -99])
    policy(7, "layer_select", [99, 99])
    policy(7, "head_select", [-99] * 3)
    policy(8, "attn.token_select", [-99])
    policy(9, "attn.token_select", [99])
    state = filled(shapes(network), biases)
    network.load_state_dict(state)
    result = network.double()(images(1).double())
    double = {key: value.double() for key, value in state.items()}
    agree(result, vit_reference.run(double, images(1).double(), OPTIONS["all"]), 1e-11)
    assert result.layer[0, 4:7].tolist() == [[0, 1], [0, 0], [1, 1]]
    assert result.head[0, 6].sum() == 0
    assert result.token[0, 8].sum() == 1 and result.token[0, 9].sum() == 197
    assert 1 < result.token[0, 5].sum() < 197


_LISTS = sorted({(line.split("\t")[0], line.split("\t")[1])
                 for line in (DATA / "ada_vit_keys.tsv").read_text().splitlines()[1:]})  # fmt: skip


@pytest.mark.parametrize(("name", "configuration"), _LISTS, ids=str)
def test_keys_equal_the_official_code(name: str, configuration: str) -> None:
    with torch.device("meta"):
        network = build(name, configuration)
    assert shapes(network) == official_keys(name, configuration)


_PARAMETERS = {
    "ada_t2t_vit_14": (21_545_550, 21_590_980, 21_600_964),
    "ada_t2t_vit_19": (39_177_422, 39_258_691, 39_274_819),
    "ada_deit_tiny": (5_717_416, 5_730_347, 5_734_571),
    "ada_deit_small": (22_050_664, 22_089_164, 22_097_612),
    "ada_deit_base": (86_567_656, 86_695_310, 86_712_206),
}
_MACS = {
    "ada_t2t_vit_14": 4_783_468_544,
    "ada_t2t_vit_19": 8_479_682_176,
    "ada_deit_tiny": 1_253_683_200,
    "ada_deit_small": 4_598_882_304,
    "ada_deit_base": 17_563_828_224,
}


@pytest.mark.parametrize("name", _PARAMETERS)
def test_parameters_and_macs(name: str) -> None:
    with torch.device("meta"):
        networks = [build(name), build(name, "all"), build(name, "all", norm_policy=True)]
    counts = tuple(sum(parameter.numel() for parameter in network.parameters()) for network in networks)
    assert counts == _PARAMETERS[name]
    assert [key for key, p in networks[1].named_parameters() if not p.requires_grad and ".w" not in key] == [
        "pos_embed"
    ]
    macs = dense_macs(networks[0], [torch.zeros(1, 3, 224, 224)]).total
    # The sums of the performers' denominators (32 per token) are no product here.
    assert macs == pytest.approx(_MACS[name], rel=1e-4)


def test_positions_are_sines_and_cosines() -> None:
    for width, values in ((384, (0.81525064, 0.05339503, -0.86372328)), (448, (0.81902879, 0.08608568, -0.04859868))):
        table = sine_positions(197, width)[0]
        found = [float(table[at]) for at in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (5, 3), (196, 100))]
        assert found == pytest.approx([0, 1, 0.84147096, 0.54030228, *values], abs=1e-6)


def test_class_defaults_are_static_and_implications_are_the_commands() -> None:
    with torch.device("meta"):
        assert dict(build("ada_deit_tiny").named_modules()).keys().isdisjoint({"blocks.1.head_select"})
        assert not list(dynamic_blocks(build("ada_deit_tiny")))
        implied = {"head_v2": "head_select", "head_attn": "head_select", "token_with_mlp": "attn.token_select"}
        for option, module in implied.items():
            assert f"blocks.1.{module}.mlp_head" in dict(build("ada_deit_tiny", **{option: True}).named_modules())


@torch.no_grad()
def test_masks_have_paths_and_results_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = build("ada_vit_small", "all")
    network.load_state_dict(filled(shapes(network), policy_biases(network, 1)))
    x = images(3, 32)
    with Tape(network) as tape:
        together = network(x)
    assert {name for name in tape.masks if "blocks.3" in name} == {
        f"mask/blocks.3/{gate}" for gate in ("token", "head", "attention", "mlp")
    }
    assert {name for name in tape.masks if "blocks.0" in name} == {"mask/blocks.0/token"}
    assert torch.equal(tape.masks["mask/blocks.3/token"], together.token[:, 3])
    assert torch.equal(tape.masks["mask/blocks.3/mlp"].flatten(), together.layer[:, 2, 1])
    for index in range(3):
        alone = network(x[index : index + 1])
        assert torch.equal(alone.token[0], together.token[index])
        assert torch.allclose(alone.logits[0], together.logits[index], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_thresholds_are_strict_and_may_be_other_ones() -> None:
    network = build("ada_vit_small", layer=True)
    block = network.blocks[1]
    block.layer_select.mlp_head.weight.zero_()
    block.layer_select.mlp_head.bias.copy_(torch.tensor([1e-9, 2e-7]))
    assert network(images(1, 32)).layer[0, 0].tolist() == [0, 1]
    block.layer_select.mlp_head.bias.fill_(1.0)  # sigmoid(1) = 0.73
    for threshold, on in ((0.73, 1.0), (0.74, 0.0)):
        other = build("ada_vit_small", layer=True, layer_threshold=threshold)
        other.load_state_dict(network.state_dict())
        assert other(images(1, 32)).layer[0, 0].tolist() == [on, on]


def test_training_gives_every_policy_a_gradient_and_drop_path_ends_where_policies_begin() -> None:
    torch.manual_seed(0)
    network = build("ada_vit_small", "all", drop_path=0.5).train()
    result = network(images(4, 32))
    assert set(result.token.unique().tolist()) == {0.0, 1.0}
    (result.logits.square().mean() + result.token.mean() + result.head.mean() + result.layer.mean()).backward()
    for name, parameter in network.named_parameters():
        if "select" in name:
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name
        if not parameter.requires_grad:
            assert parameter.grad is None
    rates = [block.drop_path for block in network.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_copy_shares_nothing() -> None:
    network = build("ada_vit_small", "all", norm_policy=True)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin.blocks[2].attn.token_select.norm is twin.blocks[2].norm1
    assert network.blocks[2].norm1.weight.tolist() == [1.0] * 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_threshold": 0.0}, "token_threshold"),
        ({"head_threshold": 1.0}, "head_threshold"),
        ({"layer_threshold": float("nan")}, "layer_threshold"),
        ({"keep_layers": 0}, "keep_layers"),
        ({"keep_layers": 6, "layer": True}, "none of the 6 blocks"),
        ({"token_start_layer": 6, "token": True}, "none of the 6 blocks"),
        ({"head_v2": True, "head_attn": True}, "one of them"),
        ({"img_size": 30}, "multiple"),
        ({"token": 1}, "true or false"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"num_classes": 0}, "num_classes"),
        ({"tau": 5}, "tau"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("ada_vit_small", **options)


@pytest.mark.parametrize("name", [name for name in model_names("ada_vit") if name != "ada_vit_small"])
def test_images_of_another_size_are_refused(name: str) -> None:
    with torch.device("meta"):
        network = build(name)
        with pytest.raises(UsageError, match="takes images of 224x224 pixels, and got 256 x 224"):
            network(torch.zeros(1, 3, 256, 224))


@torch.no_grad()
def test_other_image_sizes_and_half_precision() -> None:
    network = build("ada_t2t_vit_14", "all", img_size=64, num_classes=5)
    x: Tensor = images(2, 64)
    result = network(x)
    assert result.logits.shape == (2, 5) and result.token.shape == (2, 14, 17)
    half = network.bfloat16()(x.bfloat16())
    assert half.logits.dtype == torch.bfloat16 and bool(torch.isfinite(half.logits).all())


def test_an_image_size_among_the_options_is_the_size_of_export_and_training(tmp_path: Path) -> None:
    network = build("ada_vit_small", token=True, img_size=16)
    bundle = export_model(network, tmp_path / "bundle")
    assert bundle.manifest.input_size == (16, 16)
    with pytest.raises(UsageError, match="takes images of 16x16 pixels, and got 32 x 32"):
        export_model(network, tmp_path / "other", ExportSettings(input_size=(32, 32)))
    model = {"name": "ada_vit_small", "options": {"token": True, "img_size": 16}}
    content = {"name": "r", "description": "For tests.", "model": model, "data": {"dataset": "digits"}}
    recipe = Recipe.from_dict({**content, "epochs": 1, "batch_size": 2, "optimizer": {"lr": 0.1}})
    assert recipe.input_size == (16, 16) and recipe.preprocessing.resize == 16
