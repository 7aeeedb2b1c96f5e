"""Mask2Former: its outputs, its parts, and that our deformable attention computes what transformers' does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dyndeploy.nets import Mask2Former, create_model
from dyndeploy.nets.mask2former import MaskQueryOutput, _package_config, transformers_mask2former

pytestmark = pytest.mark.vision("transformers")


@pytest.fixture(scope="module")
def network() -> Mask2Former:
    torch.manual_seed(0)
    network = create_model("laud_mask2former_small", mode="layer")
    assert isinstance(network, Mask2Former)
    for layer in network.neck.decoder.encoder.layers:  # type: ignore[union-attr,operator]
        for part in (layer.self_attn.sampling_offsets, layer.self_attn.attention_weights):
            torch.nn.init.normal_(part.weight, std=0.1)
    return network.eval()


@torch.no_grad()
def test_deformable_attention_is_that_of_transformers(network: Mask2Former) -> None:
    package, ours = transformers_mask2former(), network.neck.decoder.encoder.layers[0].self_attn  # type: ignore[union-attr,operator,index]
    theirs = package.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(128, 8, 3, 4)
    theirs.load_state_dict(ours.state_dict())
    sizes = [(3, 2), (6, 4), (12, 8)]
    cells = sum(height * width for height, width in sizes)
    inputs = {
        "hidden_states": torch.randn(2, cells, 128),
        "attention_mask": torch.zeros(2, cells, dtype=torch.bool),
        "encoder_hidden_states": torch.randn(2, cells, 128),
        "position_embeddings": torch.randn(2, cells, 128),
        "reference_points": torch.rand(2, cells, 3, 2),
        "spatial_shapes_list": sizes,
    }
    torch.testing.assert_close(ours(**inputs)[0], theirs(**inputs)[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_masks_are_those_of_transformers(network: Mask2Former) -> None:
    ours = network.head.transformer.decoder.mask_predictor  # type: ignore[union-attr]
    theirs = transformers_mask2former().Mask2FormerMaskPredictor(128, 8, 128)
    theirs.load_state_dict(ours.state_dict())
    queries, pixels = torch.randn(50, 2, 128), torch.randn(2, 128, 12, 8)
    (masks, closed), (expected, blocked) = ours(queries, pixels, (3, 2)), theirs(queries, pixels, (3, 2))
    torch.testing.assert_close(masks, expected, atol=1e-5, rtol=0)
    assert torch.equal(closed, blocked) and closed.shape == (16, 50, 6) and 0.2 < float(closed.float().mean()) < 0.8


@torch.no_grad()
def test_outputs_are_classes_and_masks_of_the_queries(network: Mask2Former) -> None:
    images, size = torch.randn(2, 3, 128, 96), torch.tensor([[128.0, 96.0]] * 2)
    output = network(images, size)
    assert isinstance(output, MaskQueryOutput)
    assert {name: tuple(value.shape) for name, value in output.outputs().items()} == {
        "class_logits": (2, 50, 11),
        "mask_logits": (2, 50, 64, 48),
    }
    assert network.task.mask_stride == 2 and network.task.decoding == "queries" and not network.task.rounding
    assert len(output.masks) == 8 and 0 < float(output.flops_ratio.mean()) <= 1
    levels, _ = network.features(images)
    layers = network.head(levels)
    assert len(layers) == 3
    assert torch.equal(layers[-1].mask_logits, output.mask_logits)
    alone = network(images[1:], size[1:])
    torch.testing.assert_close(alone.class_logits[0], output.class_logits[1], atol=1e-4, rtol=0)


@pytest.mark.vision("cv2")
def test_detections_have_masks_of_the_image(network: Mask2Former) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (found,) = network.detect([image])
    assert len(found) == 100 and found.masks is not None and found.masks.shape == (100, 50, 70)
    for box, mask in zip(found.boxes, found.masks, strict=True):
        rows, columns = np.nonzero(mask)
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)
        assert box.tolist() == list(expected)


def test_published_options() -> None:
    with torch.device("meta"):
        network = create_model("laud_mask2former_resnet101", mode="layer")
    assert isinstance(network, Mask2Former)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 63.08
    assert network.strides == (4, 8, 16, 32) and network.task.mask_stride == 4 and network.task.detections == 100
    assert network.facts().parts == {"backbone": "backbone", "neck": "neck", "head": "heads"}
    assert len(network.head.transformer.decoder.layers) == 9
    network.train()
    assert network.backbone.layer1[0].masker_spatial.training  # type: ignore[union-attr,index,operator]


def test_losses_are_those_of_transformers_with_their_weights(network: Mask2Former) -> None:
    package = transformers_mask2former()
    images, size = torch.randn(2, 3, 64, 64), torch.tensor([[64.0, 64.0], [48.0, 64.0]])
    masks = torch.zeros(2, 48, 64)
    masks[0, 8:40, 8:30], masks[1, 20:44, 34:60] = 1, 1
    targets = [
        {"labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]},
        {"labels": torch.tensor([1, 7]), "masks": masks},
    ]
    torch.manual_seed(3)
    losses = network(images, size, targets).losses
    assert set(losses) == {f"layer{n}.{kind}" for n in range(3) for kind in ("classification", "mask", "dice")}
    levels, _ = network.features(images)
    criterion = package.Mask2FormerLoss(_package_config(network.config), {})
    wanted = [torch.zeros(0, 64, 64), torch.cat([masks, torch.zeros(2, 16, 64)], 1)]
    torch.manual_seed(3)
    for number, (classes, queries) in enumerate(network.head(levels)):
        theirs = criterion(queries, classes, wanted, [target["labels"] for target in targets])
        assert float(losses[f"layer{number}.mask"]) == pytest.approx(5 * float(theirs["loss_mask"]), rel=1e-5)
        assert float(losses[f"layer{number}.dice"]) == pytest.approx(5 * float(theirs["loss_dice"]), rel=1e-5)
        classification = 2 * float(theirs["loss_cross_entropy"])
        assert float(losses[f"layer{number}.classification"]) == pytest.approx(classification, rel=1e-5)
    nothing = network(images, size, [targets[0]] * 2).losses
    assert float(nothing["layer0.mask"]) == float(nothing["layer0.dice"]) == 0
    assert float(nothing["layer0.classification"]) > 0
