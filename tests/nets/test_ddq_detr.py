"""DDQ-DETR: which queries are distinct, the first row's quirk, padding, and what becomes of too few cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets import DdqDetr, DetectorOutput, create_model
from dyndeploy.nets.box_geometry import corners, inverse_sigmoid
from dyndeploy.nets.ddq_detr import EncodedPyramid, Selected, distinct

pytestmark = pytest.mark.vision("torchvision")


def small(**options: object) -> DdqDetr:
    torch.manual_seed(0)
    network = create_model("laud_ddq_detr_small", mode="layer", **options)
    assert isinstance(network, DdqDetr)
    for branches in (network.head.branches, network.head.aux_branches):
        for classifier, regression in zip(branches.cls, branches.reg, strict=True):
            nn.init.normal_(classifier.weight, std=0.3)  # type: ignore[arg-type]
            nn.init.normal_(regression[-1].weight, std=0.05)  # type: ignore[index,arg-type]
    return network.eval()


@pytest.fixture(scope="module")
def network() -> DdqDetr:
    return small()


def pyramid(network: DdqDetr, height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, network.config.pyramid_channels, -(-height // stride), -(-width // stride), generator=generator)
        for stride in network.strides
    ]


def test_distinct_boxes_are_those_that_nothing_better_covers() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.36], [0.5, 0.5, 0.4, 0.3], [0.1, 0.1, 0.3, 0.3]])
    scores = torch.tensor([0.6, 0.9, 0.5, 0.1])
    every = torch.ones(4, dtype=torch.bool)
    # IoU of 1 with 0 is 0.9, with 2 it is 0.833.
    assert distinct(boxes, scores, every, 4).tolist() == [1, 3, -1, -1]
    without = torch.tensor([True, False, True, True])
    # IoU of 0 with 2 is 0.75.
    assert distinct(boxes, scores, without, 4).tolist() == [0, 2, 3, -1]


@pytest.mark.parametrize("first_survives", [True, False])
def test_all_queries_count_as_distinct_where_the_first_one_is(
    network: DdqDetr, first_survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = network.head
    survivors = torch.tensor([[first_survives, True, False, False, True]])
    seen: list[Tensor] = []

    def fixed(query: Tensor, reference: Tensor, candidates: Tensor, number: int) -> Tensor:
        return survivors

    monkeypatch.setattr(head, "_survivors", fixed)
    hook = head.decoder[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    width = network.config.pyramid_channels
    sizes = [(2, 2), (1, 1), (1, 1), (1, 1)]
    encoded = EncodedPyramid(
        torch.randn(1, 7, width),
        sizes,
        torch.zeros(1, 7, dtype=torch.bool),
        torch.ones(1, 4, 2),
        torch.zeros(1, 7, 4),
        torch.ones(1, 7, dtype=torch.bool),
    )
    with torch.no_grad():
        decoded = head.decode(Selected(torch.randn(1, 5, width), torch.zeros(1, 5, 10), torch.zeros(1, 5, 4)), encoded)
    hook.remove()
    assert decoded[0].distinct.all()
    assert decoded[1].distinct.tolist() == [[True] * 5 if first_survives else survivors[0].tolist()]
    rows = [[bool(a or b) for b in survivors[0]] for a in survivors[0]]
    assert (~seen[0][0]).tolist() == rows


def test_padding_changes_nothing_behind_the_neck(network: DdqDetr) -> None:
    alone = pyramid(network, 96, 64)
    generator = torch.Generator().manual_seed(2)
    padded = []
    for level in alone:
        larger = torch.randn(1, level.shape[1], level.shape[2] + 1, level.shape[3] + 2, generator=generator)
        larger[:, :, : level.shape[2], : level.shape[3]] = level
        padded.append(larger)
    size = torch.tensor([96.0, 64.0])
    with torch.no_grad():
        boxes, scores, labels, count = network.detected(alone, size)
        others = network.detected(padded, size)
    assert count == others[3] == 100
    torch.testing.assert_close(others[1], scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(others[0], boxes, atol=1e-3, rtol=0)
    assert torch.equal(others[2], labels)


def test_detections_are_the_best_scores_of_distinct_queries(network: DdqDetr) -> None:
    size = torch.tensor([[96.0, 64.0]])
    levels = pyramid(network, 96, 64)
    with torch.no_grad():
        (logits, boxes), open_queries = network.head(levels, network.strides, size)
        found, scores, labels, count = network.detected(levels, size[0])
    probabilities = logits[0].sigmoid().masked_fill(~open_queries[0, :, None], -1)
    expected = probabilities.flatten().sort(descending=True).values[:100]
    torch.testing.assert_close(scores, expected)
    assert int(count) == 100
    query, label = np.unravel_index(int(probabilities.argmax()), probabilities.shape)
    assert int(labels[0]) == label
    x, y, width, height = boxes[0, query].tolist()
    box = [(x - width / 2) * 64, (y - height / 2) * 96, (x + width / 2) * 64, (y + height / 2) * 96]
    limit = [64, 96, 64, 96]
    np.testing.assert_allclose(found[0], np.clip(box, 0, limit), atol=1e-4)


def test_fewer_cells_than_queries_are_filled_up() -> None:
    network = small(queries=60, detections=700)
    levels = pyramid(network, 16, 16)  # 16 + 4 + 1 + 1 cells
    with torch.no_grad():
        encoded = network.head.encode(levels, network.strides, torch.tensor([[16.0, 16.0]]))
        selected = network.head.select(encoded)
        _, scores, _, count = network.detected(levels, torch.tensor([16.0, 16.0]))
    filled = selected.content[0].abs().sum(1) > 0
    assert 1 <= int(filled.sum()) <= 22
    assert filled.tolist() == [True] * int(filled.sum()) + [False] * (60 - int(filled.sum()))
    assert not selected.boxes[0][~filled].any() and not selected.logits[0][~filled].any()
    assert len(scores) == 600
    assert not scores[int(count) :].any() and (scores[: int(count)] > 0).all()


def test_images_of_a_batch_are_detected_one_by_one(network: DdqDetr) -> None:
    images, sizes = torch.randn(2, 3, 96, 64), torch.tensor([[96.0, 64.0]] * 2)
    with torch.no_grad():
        both = network(images, sizes)
        assert isinstance(both, DetectorOutput)
        for index in range(2):
            alone = network(images[index : index + 1], sizes[:1])
            torch.testing.assert_close(both.scores[index], alone.scores[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(both.boxes[index], alone.boxes[0], atol=1e-3, rtol=0)
    assert list(both.outputs()) == ["boxes", "scores", "labels", "count"]
    assert len(both.masks) == 8 and 0 < float(both.flops_ratio.mean()) <= 1


@pytest.mark.vision("cv2")
def test_images_are_not_padded(network: DdqDetr) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    feeds, placement = network.task.prepare(image)
    assert feeds["input"].shape == (1, 3, 91, 128) and placement.resized == (91, 128)
    (found,) = network.detect([image])
    assert len(found) == 100 and found.boxes[:, 2].max() <= 70 and found.boxes[:, 3].max() <= 50


def test_helpers_by_hand() -> None:
    assert corners(torch.tensor([0.5, 0.4, 0.2, 0.6])).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])
    values = inverse_sigmoid(torch.tensor([0.25, 0.0, 1.0, -3.0]), 1e-3)
    assert values.tolist() == pytest.approx([np.log(1 / 3), np.log(1e-3), -np.log(1e-3), np.log(1e-3)], rel=1e-5)


def test_published_options() -> None:
    with torch.device("meta"):
        network = create_model("laud_ddq_detr_resnet101", mode="layer")
    assert isinstance(network, DdqDetr)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 67.66
    assert network.strides == (8, 16, 32, 64) and network.task.divisor == 1
    assert network.facts().parts == {"backbone": "backbone", "neck": "neck", "head": "heads"}
    assert network.facts().options["queries"] == 900


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pyramid_channels": 100}, "multiple of 32"),
        ({"heads": 12}, "heads=12"),
        ({"queries": 0}, "queries=0"),
        ({"points": 2.5}, "points=2.5"),
        ({"tower": 2}, "tower"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("laud_ddq_detr_small", **options)


def test_losses_reach_every_weight_that_is_trained() -> None:
    network = small(queries=12).train()
    boxes = torch.tensor([[8.0, 8.0, 40.0, 50.0], [30.0, 20.0, 60.0, 60.0]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 7])},
        {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    result = network(torch.randn(2, 3, 64, 64), torch.tensor([[64.0, 64.0], [48.0, 64.0]]), targets)
    losses = result.losses
    kinds = ("classification", "bbox_regression", "giou")
    expected = {f"{where}.{kind}" for where in ("encoder", "layer0", "layer1") for kind in kinds}
    expected |= {f"layer{number}.noisy.{kind}" for number in (0, 1) for kind in kinds}
    expected |= {f"{where}.dense_{kind}" for where in ("encoder", "layer0", "layer1") for kind in (kinds[0], kinds[2])}
    assert set(losses) == expected
    torch.stack(list(losses.values())).sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in network.named_parameters() if parameter.grad is not None} == trained
    assert not any(".bn" in name for name in trained)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
