"""Arithmetic that the Triton kernels share, to the bit that of the ops.

Kernels are to be launched with `EXACT`: a multiplication and an addition that
are rounded as one give other codes.
"""

import contextlib

import numpy as np
import torch
import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}

_LARGEST_GRADIENT = tl.constexpr(1e18)
_SMALLEST_NORMAL = tl.constexpr(2.0**-14)  # of float16


@triton.jit
def mix(x):
    """Hash uint32, as `keras_efficient.ops.uniform_noise` does."""
    x = (x ^ (x >> 16)) * tl.full(x.shape, 0x85EBCA6B, tl.uint32)
    x = (x ^ (x >> 13)) * tl.full(x.shape, 0xC2B2AE35, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def uniform_noise(position, step, seed):
    """Return numbers in [0, 1) for uint32 positions."""
    zero = tl.zeros(position.shape, tl.uint32)
    key = mix(step.to(tl.uint32) + mix(zero + seed.to(tl.uint32)))
    return (mix(position + key) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def finite_gradient(g):
    g = g.to(tl.float32)
    return tl.where(tl.abs(g) < _LARGEST_GRADIENT, g, 0.0)


@triton.jit
def round_to_bfloat16(x):
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def round_to_float16(x, noise):
    """Round numbers in [0, 65504], down after noise is added."""
    bits = x.to(tl.int32, bitcast=True) + (noise * 8192.0).to(tl.int32)
    normal = (bits & -8192).to(tl.float32, bitcast=True)
    subnormal = tl.floor(x * 16777216.0 + noise) * 5.9604644775390625e-08
    return tl.where(x < _SMALLEST_NORMAL, subnormal, normal)


def scalars(arguments, like):
    """Return what a kernel reads from the device.

    A tensor that is on the GPU stays there: nobody waits for it.

    Args:
        arguments: Record of the algorithm.
        like: Tensor on the device.

    Returns:
        Tensors of one entry: learning rate, bias of the momentum, bias of the
        velocity, in float32, and step in int32.
    """

    def scalar(x, dtype):
        x = x.item() if isinstance(x, np.generic) else x
        return torch.as_tensor(x, dtype=dtype, device=like.device).reshape(1)

    momentum_bias, velocity_bias = arguments.biases
    return (
        scalar(arguments.learning_rate, torch.float32),
        scalar(momentum_bias, torch.float32),
        scalar(velocity_bias, torch.float32),
        scalar(arguments.step, torch.int32),
    )


def device_of(tensor):
    """Return a context in which kernels run on the GPU of a tensor."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
