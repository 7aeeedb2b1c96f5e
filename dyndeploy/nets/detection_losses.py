"""What detectors are trained for: which anchors and proposals belong to which objects, and the losses.

Reference: mmdetection 2.21 with the settings of LAUDNet's detectors ("Latency-Aware Unified Dynamic Networks for
Efficient Image Recognition", Han et al., TPAMI 2024): focal loss and L1 for RetinaNet; sampled cross entropy and L1 for
the two stages of Faster R-CNN; binary cross entropy on crops of the masks for Mask R-CNN. torchvision's sampler, focal
loss, box coder and RoIAlign are used. Its own losses differ as :data:`TORCHVISION` says, and can be had instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dyndeploy.blocks.boxes import torchvision

Target = Mapping[str, Tensor]
"""The objects of one image: ``boxes`` (n, 4) x1, y1, x2, y2 in pixels of the network's input; ``labels`` (n,), int64;
for a Mask R-CNN ``masks`` (n, h, w) in the same pixels."""

NOTHING, UNCLEAR = -1, -2
"""In place of an object's number: the background, and what is neither trained as an object nor as background."""


class Sampling(NamedTuple):
    """How many boxes of an image are trained on, and how large a part of them holds objects at most."""

    boxes: int
    objects: float


class Overlap(NamedTuple):
    """When a box belongs to the object that it overlaps most, by intersection over union.

    Attributes:
        object: From here on it does.
        background: Below, it is background.
        best: An object's best boxes belong to it from here on, all that are equally good; None asks for ``object``.
    """

    object: float
    background: float
    best: float | None = None


RETINANET = Overlap(0.5, 0.4, 0.0)
PROPOSAL = Overlap(0.7, 0.3, 0.3)
REGION = Overlap(0.5, 0.5)
REGION_WITH_MASK = Overlap(0.5, 0.5, 0.5)
"""The last one is Mask R-CNN's."""

PROPOSALS = Sampling(256, 0.5)
REGIONS = Sampling(512, 0.25)

_GAMMA, _ALPHA = 2.0, 0.25


def assigned(objects: Tensor, boxes: Tensor, rule: Overlap) -> Tensor:
    """Return the object that each box belongs to, by number: (m,), with :data:`NOTHING` and :data:`UNCLEAR`.

    An object that overlaps no box at all gets none; of several objects that have the same best box the last one gets
    it.

    Args:
        objects: Boxes (n, 4).
        boxes: Anchors or proposals (m, 4).
        rule: When they belong together.
    """
    if not len(objects):
        return torch.full((len(boxes),), NOTHING, dtype=torch.int64, device=boxes.device)
    overlaps = torchvision().ops.box_iou(objects, boxes)
    best, owner = overlaps.max(0)
    found = torch.full_like(owner, UNCLEAR)
    found[best < rule.background] = NOTHING
    found = torch.where(best >= rule.object, owner, found)
    if rule.best is None or not len(boxes):
        return found
    top = overlaps.max(1, keepdim=True).values
    own_best = (overlaps == top) & (top >= rule.best) & (top > 0)
    numbers = torch.arange(len(objects), device=boxes.device)[:, None]
    last = torch.where(own_best, numbers, NOTHING).max(0).values
    return torch.where(last >= 0, last, found)


def matched(objects: Tensor, boxes: Tensor, rule: Overlap) -> Tensor:
    """Return what :func:`assigned` does, as torchvision matches.

    Where an object's best boxes count, all do, however little they overlap it, and each belongs to the object that it
    overlaps most itself.
    """
    if not len(objects) or not len(boxes):
        return assigned(objects, boxes, rule)
    from torchvision.models.detection._utils import Matcher

    best = rule.best is not None and rule.best < rule.object
    owners: Tensor = Matcher(rule.object, rule.background, best)(torchvision().ops.box_iou(objects, boxes))
    return owners


class Losses(NamedTuple):
    """Whose losses: what packages do in different ways.

    Attributes:
        name: Of the package.
        matched: Which object each box belongs to: :func:`assigned` or :func:`matched`.
        beta: Errors of proposals' and regions' deltas that are smaller count by their square; 0 for L1.
        of_images: RetinaNet's losses are averaged over each image's anchors with objects, then over images; not over
            the anchors of the batch.
        padding: Whether anchors count that lie in the padding of an image that is smaller than others of its batch.
        least: Sampled anchors of either kind count as so many at least in each image.
        soft: The mask that a region should have is what RoIAlign gives, without half-pixel coordinates; not 0 or 1.
    """

    name: str
    matched: Callable[[Tensor, Tensor, Overlap], Tensor]
    beta: float = 0.0
    of_images: bool = False
    padding: bool = False
    least: int = 1
    soft: bool = False


MMDETECTION = Losses("mmdetection", assigned)
TORCHVISION = Losses("torchvision", matched, beta=1 / 9, of_images=True, padding=True, least=0, soft=True)

LOSSES: Mapping[str, Losses] = MappingProxyType({kind.name: kind for kind in (MMDETECTION, TORCHVISION)})
"""By name."""


def sampled(owners: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw boxes at random, from the global generator: indices of some with objects, and of some background."""
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    kinds = torch.where(owners >= 0, 1, torch.where(owners == NOTHING, 0, -1))
    with_object, background = BalancedPositiveNegativeSampler(*sampling)([kinds])
    return torch.nonzero(with_object[0]).flatten(), torch.nonzero(background[0]).flatten()


def dense(raw: Tensor, values: int) -> Tensor:
    """Return a dense head's map (N, anchors * values, h, w) as (N, h * w * anchors, values), in float32 at least."""
    rows = raw.permute(0, 2, 3, 1).reshape(len(raw), -1, values)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def focal_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    inside: Sequence[Tensor],
    targets: Sequence[Target],
    coder: Any,
    like: Losses = MMDETECTION,
) -> dict[str, Tensor]:
    """Return the losses of a RetinaNet: focal loss, and L1 of the deltas of anchors with objects.

    Both are divided by the number of anchors with objects in all images, counted as one at least in each; or averaged
    image by image.

    Args:
        logits: (N, anchors, classes).
        deltas: (N, anchors, 4).
        anchors: (anchors, 4).
        inside: Which anchors lie in an image or in its own padding, (anchors,), for each image.
        targets: What is in each image.
        coder: Makes deltas of boxes.
        like: Whose losses.
    """
    focal, l1, count = logits.new_zeros(()), logits.new_zeros(()), 0
    for index, target in enumerate(targets):
        own = _counting(inside[index], like)
        owners = like.matched(target["boxes"], anchors[own], RETINANET)
        wanted = torch.zeros_like(logits[index])[own]
        (positive,) = torch.where(owners >= 0)
        wanted[positive, target["labels"][owners[positive]]] = 1
        clear = owners != UNCLEAR
        own_focal = torchvision().ops.sigmoid_focal_loss(
            logits[index][own][clear], wanted[clear], alpha=_ALPHA, gamma=_GAMMA, reduction="sum"
        )
        own_l1 = _distance(deltas[index][own][positive], anchors[own][positive], target, owners[positive], coder)
        with_objects = max(1, len(positive))
        share = with_objects if like.of_images else 1
        focal, l1 = focal + own_focal / share, l1 + own_l1 / share
        count += 1 if like.of_images else with_objects
    return {"classification": focal / count, "bbox_regression": l1 / count}


def proposal_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    inside: Sequence[Tensor],
    targets: Sequence[Target],
    coder: Any,
    sampling: Sampling = PROPOSALS,
    like: Losses = MMDETECTION,
) -> dict[str, Tensor]:
    """Return the losses of a region proposal network: binary cross entropy and L1 of sampled anchors.

    Both are divided by the number of samples in all images.

    Args:
        logits: (N, anchors, 1).
        deltas: (N, anchors, 4).
        anchors: See :func:`focal_losses`, as for the others.
        inside: See there.
        targets: See there.
        coder: See there.
        sampling: How many anchors of an image are drawn.
        like: Whose losses.
    """
    entropy, l1, count = logits.new_zeros(()), logits.new_zeros(()), 0
    for index, target in enumerate(targets):
        own = _counting(inside[index], like)
        owners = like.matched(target["boxes"], anchors[own], PROPOSAL)
        positive, negative = sampled(owners, sampling)
        chosen = torch.cat([positive, negative])
        wanted = (owners[chosen] >= 0).to(logits)
        entropy = entropy + F.binary_cross_entropy_with_logits(logits[index][own][chosen, 0], wanted, reduction="sum")
        l1 = l1 + _distance(
            deltas[index][own][positive], anchors[own][positive], target, owners[positive], coder, like.beta
        )
        count += max(like.least, len(positive)) + max(like.least, len(negative))
    return {"objectness": entropy / max(1, count), "rpn_bbox_regression": l1 / max(1, count)}


class Regions(NamedTuple):
    """Sampled regions of one image, those with objects first.

    Attributes:
        boxes: (m, 4).
        owners: Numbers of the objects of the first ones, (k,), k at most m.
    """

    boxes: Tensor
    owners: Tensor


@torch.no_grad()
def sampled_regions(
    proposals: Tensor, target: Target, rule: Overlap, sampling: Sampling = REGIONS, like: Losses = MMDETECTION
) -> Regions:
    """Draw the regions of an image that its heads are trained on: from its proposals (m, 4) and its objects."""
    objects = target["boxes"]
    owners = like.matched(objects, proposals, rule)
    owners = torch.cat([torch.arange(len(objects), device=owners.device), owners])
    boxes = torch.cat([objects.to(proposals), proposals])
    positive, negative = sampled(owners, sampling)
    return Regions(boxes[torch.cat([positive, negative])], owners[positive])


def region_losses(
    logits: Tensor,
    deltas: Tensor,
    regions: Sequence[Regions],
    targets: Sequence[Target],
    coder: Any,
    like: Losses = MMDETECTION,
) -> dict[str, Tensor]:
    """Return the losses of a box head: mean cross entropy, and L1 of the regions with objects over all regions.

    Args:
        logits: (M, classes + 1) of the regions of all images, the background last.
        deltas: (M, classes * 4).
        regions: Of each image.
        targets: What is in each image.
        coder: Makes deltas of boxes.
        like: Whose losses.
    """
    classes = logits.shape[1] - 1
    labels, l1, start = [], deltas.new_zeros(()), 0
    for found, target in zip(regions, targets, strict=True):
        own = target["labels"][found.owners]
        rest = len(found.boxes) - len(own)
        labels.append(torch.cat([own, own.new_full((rest,), classes)]))
        rows = deltas[start : start + len(own)].view(-1, classes, 4)
        chosen = rows[torch.arange(len(own), device=rows.device), own]
        l1 = l1 + _distance(chosen, found.boxes[: len(own)], target, found.owners, coder, like.beta)
        start += len(found.boxes)
    return {
        "classification": F.cross_entropy(logits, torch.cat(labels), reduction="sum") / max(1, start),
        "bbox_regression": l1 / max(1, start),
    }


def mask_losses(
    logits: Tensor, regions: Sequence[Regions], targets: Sequence[Target], like: Losses = MMDETECTION
) -> dict[str, Tensor]:
    """Return the loss of a mask head: mean binary cross entropy of the map of the object's class.

    Args:
        logits: (M, classes, s, s) of the regions with objects of all images.
        regions: Of each image.
        targets: What is in each image, ``masks`` among it.
        like: Whose losses.
    """
    labels = torch.cat([target["labels"][found.owners] for found, target in zip(regions, targets, strict=True)])
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    wanted = torch.cat(
        [mask_targets(found, target, logits.shape[2], like) for found, target in zip(regions, targets, strict=True)]
    )
    total = F.binary_cross_entropy_with_logits(own, wanted.to(own), reduction="sum")
    return {"mask": total / max(1, own.numel())}


def mask_targets(regions: Regions, target: Target, size: int, like: Losses = MMDETECTION) -> Tensor:
    """Return what of its object's mask lies in each region that holds one: (k, size, size), bool or in [0, 1]."""
    boxes = regions.boxes[: len(regions.owners)]
    numbered = torch.cat([regions.owners[:, None].to(boxes), boxes], 1)
    masks = target["masks"][:, None].to(boxes)
    if not len(numbered):
        return torch.zeros((0, size, size), dtype=torch.bool, device=boxes.device)
    cut: Tensor = torchvision().ops.roi_align(masks, numbered, size, 1.0, sampling_ratio=0, aligned=not like.soft)
    return cut[:, 0] if like.soft else cut[:, 0] >= 0.5


def _counting(inside: Tensor, like: Losses) -> Tensor:
    """Which of an image's anchors count."""
    return torch.ones_like(inside) if like.padding else inside


def _distance(deltas: Tensor, boxes: Tensor, target: Target, owners: Tensor, coder: Any, beta: float = 0.0) -> Tensor:
    """Sum of the (smooth) L1 distances between deltas (k, 4) and those that lead from boxes (k, 4) to their objects."""
    wanted = coder.encode_single(target["boxes"][owners], boxes)
    return F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=beta)
