"""QuantizedChannelMasker: decides which groups of hidden channels are computed, from bytes.

:mod:`dyndeploy.ops.channel_masker` with the scale of ``x`` folded into the weights of the first layer. The decision
itself is one of floats, and pooled sums of bytes are exact in them.
"""

from __future__ import annotations

from dyndeploy.ops._quantized_masker import quantized_masker
from dyndeploy.ops.channel_masker import SPECS as OF_FLOATS

SPECS = tuple(map(quantized_masker, OF_FLOATS))
