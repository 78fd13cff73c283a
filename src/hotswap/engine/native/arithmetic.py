"""Functions of float32 numbers, for the compiled loops. All of it is arithmetic that a processor
does for many numbers at once; the functions of a C library are not."""

from __future__ import annotations

import math

import numpy as np

from hotswap.engine.jit import reordered
from hotswap.engine.native.machine import float_of_bits, load
from hotswap.engine.native.records import GELU, SILU

_F32 = np.float32(0)


@reordered
def exp(x):
    """float32, to about 2 units in the last place; below -87 zero or nearly so."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    # Rounded by cutting off a positive number's fraction: a floor would not be a vector's work.
    power = np.int32(np.int32(x * np.float32(1.44269504) + np.float32(128.5)) - np.int32(128))
    whole = np.float32(power)
    rest = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    # The Cephes library's polynomial for 2^f on [-0.5, 0.5].
    y = np.float32(1.9875691500e-4)
    y = y * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * rest * rest + rest + np.float32(1.0)
    return y * float_of_bits(np.int32((power + np.int32(127)) << np.int32(23)))


@reordered
def tanh(x):
    return np.float32(1.0) - np.float32(2.0) / (exp(x + x) + np.float32(1.0))


@reordered
def activated(x, kind):
    one, half = np.float32(1.0), np.float32(0.5)
    if kind == SILU:
        return x / (one + exp(-x))
    if kind == GELU:
        return x * half * (one + np.float32(math.erf(x * np.float32(0.70710678))))
    inner = np.float32(0.79788456) * (x + np.float32(0.044715) * x * x * x)
    return x * half * (one + tanh(inner))


@reordered
def mean_square(source, width):
    """Of float32 numbers, added up in the order of `LANES` lanes, so that it is a vector's work."""
    total = np.float32(0)
    for i in range(width):
        x = load(source, i, _F32)
        total += x * x
    return total / np.float32(width)


@reordered
def norm_factor(source, width, eps):
    return np.float32(1.0) / np.float32(math.sqrt(mean_square(source, width) + eps))
