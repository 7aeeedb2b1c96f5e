"""The reproduction of the LAUDNet predictor, as published or with its faults repaired: apart from everything else.

It sees a network as a :class:`NetworkSpec` and prices lists of operators, not graphs; what it says differs from
:func:`dyndeploy.prediction.predict` by construction.
"""

from dyndeploy.prediction.laudnet.blocks import MODES
from dyndeploy.prediction.laudnet.fixes import Fix
from dyndeploy.prediction.laudnet.network_spec import (
    BlockSpec,
    MaskerSpec,
    NetworkSpec,
    StemSpec,
    is_network_name,
    network_names,
    network_spec,
    published_blocks,
)
from dyndeploy.prediction.laudnet.operators import Operator, operator_kinds
from dyndeploy.prediction.laudnet.predictor import Predictor, predict_bundle, predict_network
from dyndeploy.prediction.laudnet.transformers import (
    TRANSFORMER_MODES,
    TransformerSpec,
    is_transformer_name,
    transformer_names,
    transformer_spec,
)

__all__ = [
    "MODES",
    "TRANSFORMER_MODES",
    "BlockSpec",
    "Fix",
    "MaskerSpec",
    "NetworkSpec",
    "Operator",
    "Predictor",
    "StemSpec",
    "TransformerSpec",
    "is_network_name",
    "is_transformer_name",
    "network_names",
    "network_spec",
    "operator_kinds",
    "predict_bundle",
    "predict_network",
    "published_blocks",
    "transformer_names",
    "transformer_spec",
]
