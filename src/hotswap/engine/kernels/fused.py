"""The decode step's kernels in Triton, gathered. Importing it needs Triton."""

from hotswap.engine.kernels.activation import gated_activation
from hotswap.engine.kernels.attention import attention_scratch, paged_attention
from hotswap.engine.kernels.norm import add_rms_norm, rms_norm
from hotswap.engine.kernels.rotary import rope_and_store

__all__ = [
    "add_rms_norm",
    "attention_scratch",
    "gated_activation",
    "paged_attention",
    "rms_norm",
    "rope_and_store",
]
