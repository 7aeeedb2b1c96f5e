"""The reference's measured facts, and the blocks that they are about."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from dyndeploy.prediction.laudnet import BlockSpec, NetworkSpec, network_spec

_DATA = Path(__file__).parent / "data"
_MODELS = {"resnet": "resnet50", "regnety004": "regnety004", "regnety008": "regnety008"}


def rows(name: str) -> list[dict[str, str]]:
    with (_DATA / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def following(block: BlockSpec) -> BlockSpec:
    """The block that repeats ``block``'s stage."""
    height, width = block.out_size
    return dataclasses.replace(
        block,
        c_in=block.c_out,
        height=height,
        map_width=width,
        stride=1,
        projection=False,
        squeezed=round(0.25 * block.c_out) if block.squeezed else 0,
    )


def stage_block(family: str, stage: int, which: str) -> BlockSpec:
    spec = network_spec(_MODELS[family])
    first = spec.blocks[spec.stage_of_block.index(stage - 1)]
    return first if which == "first" else following(first)


def with_stages(model: str, stages: tuple[int, ...]) -> NetworkSpec:
    """The model with other block counts (the reference's script uses 3-4-6-3 for every model)."""
    spec = network_spec(model)
    blocks = []
    for stage, count in enumerate(stages):
        first = spec.blocks[spec.stage_of_block.index(stage)]
        blocks += [first, *[following(first)] * (count - 1)]
    return dataclasses.replace(spec, stages=stages, blocks=tuple(blocks))
