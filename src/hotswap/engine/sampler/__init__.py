"""From logits to tokens: bias, penalties, temperature, top-k, top-p, min-p, then one draw.

`ReferenceSampler` is plain torch and runs anywhere; a faster sampler must give equal tokens.
"""

from hotswap.engine.sampler.drawn import Drawn
from hotswap.engine.sampler.reference import ReferenceSampler as Sampler

__all__ = ["Drawn", "Sampler"]
