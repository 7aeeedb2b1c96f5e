"""A network as the LAUDNet predictor sees it: shapes only."""

from __future__ import annotations

from typing import Any

from dyndeploy.nets.laud_resnet import LaudResNet, block_inputs


def describe(network: LaudResNet, input_size: tuple[int, int]) -> dict[str, Any]:
    """Return the shapes of a LAUD-ResNet for an input size (H, W): JSON of ``prediction.laudnet.NetworkSpec``."""
    architecture = network.architecture
    return {
        "name": network.name,
        "input_size": list(input_size),
        "stem": {
            "c_in": 3,
            "c_out": network.conv1.out_channels,
            "kernel": architecture.stem_kernel,
            "stride": architecture.stem_stride,
            "pool_stride": 2 if architecture.stem_pool else 0,
        },
        "stages": list(architecture.blocks),
        "blocks": [
            {
                "name": block.name,
                "c_in": block.in_channels,
                "width": block.width,
                "c_out": block.out_channels,
                "height": height,
                "map_width": width,
                "stride": block.stride,
                "groups": block.groups,
                "dilation": block.dilation,
                "projection": block.downsample is not None,
                "mask_before_norm": True,
                "kernel": 3,
                "squeezed": 0,
            }
            for block, height, width in block_inputs(network, *input_size)
        ],
        "classes": network.fc.out_features,
        "maskers": [
            {
                "channel": stage.channel_masker,
                "layers": stage.channel_masker_layers,
                "reduction": stage.reduction,
                "spatial_groups": stage.spatial_groups,
            }
            for stage in network.config.stages()
        ],
    }
