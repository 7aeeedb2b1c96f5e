"""A network as the predictor sees it: shapes only."""

from __future__ import annotations

from dyndeploy.nets.laud_resnet import LaudResNet, block_inputs
from dyndeploy.prediction.laudnet.network_spec import BlockSpec, MaskerSpec, NetworkSpec, StemSpec


def describe(network: LaudResNet, input_size: tuple[int, int]) -> NetworkSpec:
    """Return the shapes of a LAUD-ResNet for an input size (H, W)."""
    architecture = network.architecture
    blocks = tuple(
        BlockSpec(
            name=block.name,
            c_in=block.in_channels,
            width=block.width,
            c_out=block.out_channels,
            height=height,
            map_width=width,
            stride=block.stride,
            groups=block.groups,
            dilation=block.dilation,
            projection=block.downsample is not None,
            mask_before_norm=True,
        )
        for block, height, width in block_inputs(network, *input_size)
    )
    return NetworkSpec(
        name=network.name,
        input_size=input_size,
        stem=StemSpec(
            c_in=3,
            c_out=network.conv1.out_channels,
            kernel=architecture.stem_kernel,
            stride=architecture.stem_stride,
            pool_stride=2 if architecture.stem_pool else 0,
        ),
        stages=architecture.blocks,
        blocks=blocks,
        classes=network.fc.out_features,
        maskers=tuple(
            MaskerSpec(
                channel=stage.channel_masker,
                layers=stage.channel_masker_layers,
                reduction=stage.reduction,
                spatial_groups=stage.spatial_groups,
            )
            for stage in network.config.stages()
        ),
    )
