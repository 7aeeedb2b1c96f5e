"""Networks: the registry, the dynamic networks and their checkpoints."""

from __future__ import annotations

from dyndeploy.blocks.macs import exit_macs
from dyndeploy.nets.ada_vit import AdaVit, AdaVitConfig
from dyndeploy.nets.checkpoints import LoadReport, load_checkpoint, save_checkpoint
from dyndeploy.nets.ddq_detr import DdqDetr, DdqDetrConfig
from dyndeploy.nets.detector import AnchorDetectorConfig, Detector, DetectorConfig, DetectorOutput
from dyndeploy.nets.dyn_perceiver import DynPerceiver, DynPerceiverConfig
from dyndeploy.nets.faster_rcnn import FasterRCNN
from dyndeploy.nets.laud import LaudConfig, LaudNetwork, full_flops, static_macs
from dyndeploy.nets.laud_regnet import LaudRegNet, LaudRegNetBlock, LaudRegNetConfig
from dyndeploy.nets.laud_resnet import LaudBottleneck, LaudResNet, LaudResNetConfig
from dyndeploy.nets.mask2former import Mask2Former, Mask2FormerConfig
from dyndeploy.nets.mask_rcnn import MaskRCNN
from dyndeploy.nets.perceiver_costs import official_flops
from dyndeploy.nets.registry import (
    DEFAULT_PREPROCESSING,
    ModelInfo,
    Preprocessing,
    create_model,
    model_info,
    model_names,
    preprocessing_at,
    register_model,
    registered,
)
from dyndeploy.nets.results import AdaVitOutput, BlockMasks, Densities, DynamicOutput, ExitOutput, NetworkFacts
from dyndeploy.nets.retinanet import RetinaNet
from dyndeploy.nets.trained import TrainedNetwork, read_trained

__all__ = [
    "DEFAULT_PREPROCESSING",
    "AdaVit",
    "AdaVitConfig",
    "AdaVitOutput",
    "AnchorDetectorConfig",
    "BlockMasks",
    "DdqDetr",
    "DdqDetrConfig",
    "Densities",
    "Detector",
    "DetectorConfig",
    "DetectorOutput",
    "DynPerceiver",
    "DynPerceiverConfig",
    "DynamicOutput",
    "ExitOutput",
    "FasterRCNN",
    "LaudBottleneck",
    "LaudConfig",
    "LaudNetwork",
    "LaudRegNet",
    "LaudRegNetBlock",
    "LaudRegNetConfig",
    "LaudResNet",
    "LaudResNetConfig",
    "LoadReport",
    "Mask2Former",
    "Mask2FormerConfig",
    "MaskRCNN",
    "ModelInfo",
    "NetworkFacts",
    "Preprocessing",
    "RetinaNet",
    "TrainedNetwork",
    "create_model",
    "exit_macs",
    "full_flops",
    "load_checkpoint",
    "model_info",
    "model_names",
    "official_flops",
    "preprocessing_at",
    "read_trained",
    "register_model",
    "registered",
    "save_checkpoint",
    "static_macs",
]
