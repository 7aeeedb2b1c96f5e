"""Files of detectors' weights: our own, mmdetection's, torchvision's, and classifiers that backbones start from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dyndeploy.nets.checkpoint_rules import OPTIONAL_SUFFIX, CheckpointRules
from dyndeploy.nets.laud_checkpoints import LaudRules

if TYPE_CHECKING:
    from dyndeploy.nets.detector import Detector

BACKBONE = "backbone."

_PIXELS = "panoptic_head.pixel_decoder.encoder.layers"
_QUERIES = "panoptic_head.transformer_decoder.layers"

_MMDETECTION = (
    (r"neck\.fpn\.inner_blocks\.(\d+)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"neck\.fpn\.layer_blocks\.(\d+)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"head\.classification_head\.conv\.(\d+)\.0\.", r"bbox_head.cls_convs.\1.conv."),
    (r"head\.regression_head\.conv\.(\d+)\.0\.", r"bbox_head.reg_convs.\1.conv."),
    (r"head\.classification_head\.cls_logits\.", "bbox_head.retina_cls."),
    (r"head\.regression_head\.bbox_reg\.", "bbox_head.retina_reg."),
    (r"rpn\.conv\.0\.0\.", "rpn_head.rpn_conv."),
    (r"rpn\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"rpn\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"roi_heads\.box_head\.fc6\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"roi_heads\.box_head\.fc7\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"roi_heads\.mask_head\.(\d+)\.0\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_head.mask_head.conv_logits."),
    (r"head\.level_embed$", "level_embed"),
    (r"head\.(encoder|decoder)\.(\d+)\.(cross_attn|norms)\.", r"\1.layers.\2.\3."),
    (r"head\.(encoder|decoder)\.(\d+)\.ffn\.fc1\.", r"\1.layers.\2.ffn.layers.0.0."),
    (r"head\.(encoder|decoder)\.(\d+)\.ffn\.fc2\.", r"\1.layers.\2.ffn.layers.1."),
    (r"head\.encoder\.(\d+)\.self_attn\.", r"encoder.layers.\1.self_attn."),
    (r"head\.decoder\.(\d+)\.self_attn\.", r"decoder.layers.\1.self_attn.attn."),
    (r"head\.ref_point_head\.0\.", "decoder.ref_point_head.layers.0."),
    (r"head\.ref_point_head\.2\.", "decoder.ref_point_head.layers.1."),
    (r"head\.norm\.", "decoder.norm."),
    (r"head\.(memory_trans_\w+|query_map)\.", r"\1."),
    (r"head\.label_embedding\.", "dn_query_generator.label_embedding."),
    (r"head\.(aux_)?branches\.(cls|reg)\.", r"bbox_head.\1\2_branches."),
    (r"neck\.decoder\.input_projections\.(\d+)\.0\.", r"panoptic_head.pixel_decoder.input_convs.\1.conv."),
    (r"neck\.decoder\.input_projections\.(\d+)\.1\.", r"panoptic_head.pixel_decoder.input_convs.\1.gn."),
    (r"neck\.decoder\.adapter_1\.0\.", "panoptic_head.pixel_decoder.lateral_convs.0.conv."),
    (r"neck\.decoder\.adapter_1\.1\.", "panoptic_head.pixel_decoder.lateral_convs.0.gn."),
    (r"neck\.decoder\.layer_1\.0\.", "panoptic_head.pixel_decoder.output_convs.0.conv."),
    (r"neck\.decoder\.layer_1\.1\.", "panoptic_head.pixel_decoder.output_convs.0.gn."),
    (r"neck\.decoder\.level_embed$", "panoptic_head.pixel_decoder.level_encoding.weight"),
    (r"neck\.decoder\.mask_projection\.", "panoptic_head.pixel_decoder.mask_feature."),
    (r"neck\.decoder\.encoder\.layers\.(\d+)\.self_attn\.", rf"{_PIXELS}.\1.self_attn."),
    (r"neck\.decoder\.encoder\.layers\.(\d+)\.fc1\.", rf"{_PIXELS}.\1.ffn.layers.0.0."),
    (r"neck\.decoder\.encoder\.layers\.(\d+)\.fc2\.", rf"{_PIXELS}.\1.ffn.layers.1."),
    (r"neck\.decoder\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.", rf"{_PIXELS}.\1.norms.0."),
    (r"neck\.decoder\.encoder\.layers\.(\d+)\.final_layer_norm\.", rf"{_PIXELS}.\1.norms.1."),
    (r"head\.transformer\.decoder\.layers\.(\d+)\.cross_attn\.", rf"{_QUERIES}.\1.cross_attn.attn."),
    (r"head\.transformer\.decoder\.layers\.(\d+)\.self_attn\.out_proj\.", rf"{_QUERIES}.\1.self_attn.attn.out_proj."),
    (r"head\.transformer\.decoder\.layers\.(\d+)\.fc1\.", rf"{_QUERIES}.\1.ffn.layers.0.0."),
    (r"head\.transformer\.decoder\.layers\.(\d+)\.fc2\.", rf"{_QUERIES}.\1.ffn.layers.1."),
    (r"head\.transformer\.decoder\.layers\.(\d+)\.cross_attn_layer_norm\.", rf"{_QUERIES}.\1.norms.0."),
    (r"head\.transformer\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.", rf"{_QUERIES}.\1.norms.1."),
    (r"head\.transformer\.decoder\.layers\.(\d+)\.final_layer_norm\.", rf"{_QUERIES}.\1.norms.2."),
    (r"head\.transformer\.decoder\.layernorm\.", "panoptic_head.transformer_decoder.post_norm."),
    (r"head\.transformer\.decoder\.mask_predictor\.mask_embedder\.0\.0\.", "panoptic_head.mask_embed.0."),
    (r"head\.transformer\.decoder\.mask_predictor\.mask_embedder\.1\.0\.", "panoptic_head.mask_embed.2."),
    (r"head\.transformer\.decoder\.mask_predictor\.mask_embedder\.2\.0\.", "panoptic_head.mask_embed.4."),
    (r"head\.transformer\.queries_embedder\.", "panoptic_head.query_embed."),
    (r"head\.transformer\.queries_features\.", "panoptic_head.query_feat."),
    (r"head\.transformer\.level_embed\.", "panoptic_head.level_embed."),
    (r"head\.class_predictor\.", "panoptic_head.cls_embed."),
)
"""Names here -> names in mmdetection's files."""

_QUERY_WEIGHTS = ("head.transformer.queries_embedder.", "head.transformer.queries_features.")
_LEVEL_WEIGHTS = ("level_embed", "level_embed.weight")
_JOINED = re.compile(rf"{re.escape(_QUERIES)}\.(\d+)\.self_attn\.attn\.in_proj_(weight|bias)$")

_TORCHVISION = (
    (r"backbone\.", "backbone.body."),
    (r"neck\.fpn\.", "backbone.fpn."),
    (r"neck\.extra\.", "backbone.fpn.extra_blocks."),
    (r"rpn\.", "rpn.head."),
    (r"roi_heads\.mask_head\.(\d+)\.0\.", r"roi_heads.mask_head.mask_fcn\1."),
)
"""Names here -> names in torchvision's files, where they differ; some of its releases leave the last ``.0`` out."""

_BRANCH = re.compile(r"head\.(aux_)?branches\.cls\.\d+$")
_ONE_MORE = ("roi_heads.box_predictor.cls_score.", "head.class_predictor.")
"""Classifiers with an output for the background, or for no object."""

_CLASSIFIERS = ("fc.", "head.fc.")
"""Of a classifier whose backbone a detector starts with."""

_NORMED = re.compile(r"(?:inner_blocks|layer_blocks|(?:classification|regression|box|mask)_head(?:\.conv)?)\.\d+\.1\.")
"""Norms behind the convolutions of a pyramid or a head."""

_DIFFERS = (
    "torchvision's detectors round their anchors, place them by other strides and read regions without half-pixel "
    "coordinates: here these weights find slightly other boxes; fine-tune them, or measure"
)

_LAST_LEVELS = "neck.extra.p6.weight"

_BACKGROUND_FIRST = "roi_heads.box_predictor.cls_score."
_DELTAS = "roi_heads.box_predictor.bbox_pred."
_MASKS = "roi_heads.mask_predictor.mask_fcn_logits."


class DetectorRules(CheckpointRules):
    """The rules of a detector: those of its backbone, and the names of two other packages.

    mmdetection's files have the background as last class, as here; torchvision's have it first.

    Args:
        network: It.
    """

    def __init__(self, network: Detector) -> None:
        self.network = network
        rules = network.backbone.checkpoint_rules()  # type: ignore[operator]
        assert isinstance(rules, LaudRules)
        self._backbone = rules
        # Read once: it is asked for every name of a file.
        self._own: Mapping[str, Tensor] = network.state_dict()
        self._notes: tuple[str, ...] = ()

    def other_names(self) -> Mapping[str, str]:
        """Those of mmdetection and torchvision."""
        found = {}
        # mmdetection counts P6 and P7 on after the levels that have maps of the backbone.
        levels = sum(name.startswith("neck.fpn.layer_blocks.") and name.endswith(".weight") for name in self._own)
        last = tuple((rf"neck\.extra\.p{6 + step}\.", f"neck.fpn_convs.{levels + step}.conv.") for step in (0, 1))
        for name in self._own:
            for pattern, theirs in (*_MMDETECTION, *last):
                other, count = re.subn(f"^{pattern}", theirs, name)
                if count:
                    found[other] = name
            for pattern, theirs in _TORCHVISION:
                other, count = re.subn(f"^{pattern}", theirs, name)
                if count:
                    found[other] = name
                    found[re.sub(r"(inner_blocks|layer_blocks)\.(\d+)\.0\.", r"\1.\2.", other)] = name
            if name.startswith("rpn.conv.0.0."):
                found[name.replace("rpn.conv.0.0.", "rpn.head.conv.")] = name
        return found

    def start_names(self) -> Mapping[str, str]:
        """Those of a classifier, with which a backbone starts."""
        return {name.removeprefix(BACKBONE): name for name in self._own if name.startswith(BACKBONE)}

    def start_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The backbone alone of a detector of another kind; all of any other file."""
        if _kind(weights) in (None, _kind(self._own)):
            return dict(weights)
        return {name: value for name, value in weights.items() if name.startswith(BACKBONE)}

    def may_start_without(self, key: str, weights: Mapping[str, Tensor]) -> bool:
        """All but the backbone, where there is nothing but a backbone."""
        return not key.startswith(BACKBONE) and all(name.startswith(BACKBONE) for name in weights if name in self._own)

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move the background of torchvision's heads to the end, and leave out what it has for it alone.

        Of an attention that transformers keeps as three layers, mmdetection has the weights in one tensor.
        """
        own, found = self._own, _separated(weights)
        self._notes = ()
        deltas = f"{_DELTAS}weight"
        # Its batch norms do not count batches.
        frozen = not any(name.endswith(OPTIONAL_SUFFIX) for name in found)
        if frozen and _LAST_LEVELS in own and own[_LAST_LEVELS].shape[0] == own[_LAST_LEVELS].shape[1]:
            self._notes = (_DIFFERS,)
        if deltas not in own or deltas not in found or len(found[deltas]) != len(own[deltas]) + 4:
            return found
        self._notes = (_DIFFERS,)
        for key in [name for name in found if name.startswith(_BACKGROUND_FIRST)]:
            found[key] = torch.roll(found[key], -1, 0)
        for prefix, rows in ((_DELTAS, 4), (_MASKS, 1)):
            for key in [name for name in found if name.startswith(prefix)]:
                found[key] = found[key][rows:]
        return found

    def notes(self) -> tuple[str, ...]:
        """That torchvision's detectors compute something else from the same weights."""
        return self._notes

    def may_lack(self, key: str) -> bool:
        """Maskers, which static networks have not."""
        return key.startswith(BACKBONE) and self._backbone.may_lack(key.removeprefix(BACKBONE))

    def may_ignore(self, key: str) -> bool:
        """What the backbone's rules ignore, its classifier among it."""
        if key.removeprefix(BACKBONE).startswith(_CLASSIFIERS):
            return True
        return key.startswith(BACKBONE) and self._backbone.may_ignore(key.removeprefix(BACKBONE))

    def another_architecture(self, weights: Mapping[str, Tensor]) -> str | None:
        """Say which kind of detector the file is of, else how its backbone differs."""
        if any(map(_NORMED.search, weights)):
            return (
                "is of another detector: its pyramid or its heads have norms, as torchvision's second versions "
                "(..._resnet50_fpn_v2), which no detector here has. Take the first version's weights "
                "(..._resnet50_fpn)."
            )
        theirs, ours = _kind(weights), _kind(self._own)
        if theirs is not None and theirs != ours:
            return f"is of another detector: it is a {theirs}, and this network is a {ours}. Create a {theirs}."
        for key, value in self._own.items():
            if key.endswith(_LEVEL_WEIGHTS) and key in weights and len(weights[key]) != len(value):
                return f"is of another detector: it reads {_levels(weights[key], value)}."
        return self._backbone.another_architecture(_inside(weights))

    def conflict(self, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> str | None:
        """Compare the maskers of the backbones."""
        return self._backbone.conflict(_inside(weights), options)

    def hint(self, weights: Mapping[str, Tensor], key: str) -> str | None:
        """Name the argument of ``create_model`` that would make a weight fit."""
        if key.startswith(BACKBONE):
            return self._backbone.hint(_inside(weights), key.removeprefix(BACKBONE))
        if key == _LAST_LEVELS and weights[key].ndim == 4:
            source = "p5" if weights[key].shape[1] == self.network.config.pyramid_channels else "c5"
            return f"The checkpoint's P6 is a convolution of {source.upper()}: last_levels={source!r}?"
        rows, own = weights[key].shape[0], self._own[key].shape[0]
        classes = self.network.config.num_classes
        for module in self.classifiers(self.network, classes):
            if key.startswith(f"{module}.") and rows != own:
                theirs = rows - 1 if key.startswith(_ONE_MORE) else rows * classes // own
                return f"The checkpoint has {theirs} classes: num_classes={theirs}?"
        if key.startswith(_QUERY_WEIGHTS) and rows != own:
            return f"The checkpoint has {rows} queries: queries={rows}?"
        if key.endswith(_LEVEL_WEIGHTS) and rows != own:
            return f"The checkpoint reads {_levels(weights[key], self._own[key])}."
        return "Create the detector that the file was saved from: its heads or its pyramid are others."

    def untold(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """What the backbone's rules say."""
        return self._backbone.untold(_inside(weights))

    def classifiers(self, network: nn.Module, classes: int) -> tuple[str, ...]:
        """The layers with outputs for every class; and P6, which torchvision's first RetinaNet has of P5."""
        names = (
            "head.classification_head.cls_logits",
            "roi_heads.box_predictor.cls_score",
            "roi_heads.box_predictor.bbox_pred",
            "roi_heads.mask_predictor.mask_fcn_logits",
            "head.class_predictor",
            "head.label_embedding",
            *(name for name, _ in network.named_modules() if _BRANCH.match(name)),
            "neck.extra.p6",
        )
        modules = dict(network.named_modules())
        return tuple(name for name in names if name in modules)


def _levels(theirs: Tensor, ours: Tensor) -> str:
    """Say how many levels codes are of."""
    return f"{len(theirs)} levels of a pyramid, and there are networks with {len(ours)} levels only"


def _separated(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with queries, keys and values of the mask queries' attention as layers of their own."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        joined = _JOINED.match(name)
        if joined is None or len(value) % 3:
            found[name] = value
            continue
        layer, kind = joined.groups()
        for part, values in zip("qkv", value.chunk(3), strict=True):
            found[f"head.transformer.decoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = values
    return found


def _inside(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}


def _kind(weights: Mapping[str, Tensor]) -> str | None:
    """What kind of detector weights are of, by names that only one kind has."""
    for part, kind in (
        ("query_map.", "DDQ-DETR"),
        ("mask_embed", "Mask2Former"),
        ("mask_head.", "Mask R-CNN"),
        ("mask_predictor.", "Mask R-CNN"),
        ("roi_head", "Faster R-CNN"),
        ("classification_head.", "RetinaNet"),
        ("retina_cls.", "RetinaNet"),
    ):
        if any(part in name for name in weights):
            return kind
    return None
