"""Gates and dynamic blocks: what networks that decide are built from, those of the zoo and a user's own."""

from dyndeploy.blocks.block import Block, DynamicBlock, dynamic_blocks, mask_name
from dyndeploy.blocks.exits import EarlyExits, Segment, StagedNetwork, confidence_of, early_exits
from dyndeploy.blocks.folding import fold_batch_norm
from dyndeploy.blocks.gates import (
    ConvLinearChannelMasker,
    Gate,
    LoweredCall,
    MlpChannelMasker,
    PooledGate,
    SpatialMasker,
)
from dyndeploy.blocks.outputs import named_outputs
from dyndeploy.blocks.skip import Skip, skip
from dyndeploy.blocks.tape import Tape
from dyndeploy.blocks.token_gates import HeadGate, SublayerGate, SublayerGates, ThresholdGate, TokenGate
from dyndeploy.blocks.token_selection import CumulativeGate, TopKTokenGate, cumulative
from dyndeploy.blocks.transformer import TransformerBlock
from dyndeploy.confidences import CONFIDENCES

__all__ = [
    "CONFIDENCES",
    "Block",
    "ConvLinearChannelMasker",
    "CumulativeGate",
    "DynamicBlock",
    "EarlyExits",
    "Gate",
    "HeadGate",
    "LoweredCall",
    "MlpChannelMasker",
    "PooledGate",
    "Segment",
    "Skip",
    "SpatialMasker",
    "StagedNetwork",
    "SublayerGate",
    "SublayerGates",
    "Tape",
    "ThresholdGate",
    "TokenGate",
    "TopKTokenGate",
    "TransformerBlock",
    "confidence_of",
    "cumulative",
    "dynamic_blocks",
    "early_exits",
    "fold_batch_norm",
    "mask_name",
    "named_outputs",
    "skip",
]
