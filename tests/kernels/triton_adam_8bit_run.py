"""Check the Triton kernel of the 8-bit Adam step, in a process of its own.

`python triton_adam_8bit_run.py interpret|cuda|compile`. What Triton does is
settled when it is imported.
"""

import math
import os
import sys

if __name__ == "__main__" and sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from triton_compile import compile_kernel

from keras_efficient.kernels import triton_adam_8bit
from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops.quantize_8bit import is_along_last
from keras_efficient.ops.quantize_8bit import scale_shape

SHAPES = [(1,), (33,), (257,), (4097,), (3, 3, 5, 7), (64, 48), (70, 60)]
RATE = 0.01


def make_gradient(shape, dtype, rng):
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-9, 6, size=shape)
    x.flat[7::97], x.flat[5::89] = np.nan, -np.inf
    x.flat[64:128] = 0.0
    return torch.tensor(x).to(dtype)


def fused(parameter, gradient, state, step):
    shape = tuple(parameter.shape)
    rows = math.prod(shape[:-1]) if is_along_last(shape) else 1
    t = torch.tensor(float(step), device=parameter.device)
    options = np.array([0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-7], "float32")
    triton_adam_8bit.adam_8bit(
        *(x.reshape(rows, -1) for x in (parameter, *state, gradient)),
        *(RATE, 1 - torch.pow(0.9, t), 1 - torch.pow(0.999, t), step),
        *(options, 3),
    )


def check(shape, dtype, device):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=shape)).to(device, dtype)
    state = [
        torch.zeros(size, dtype=codes, device=device)
        for size, codes in (
            (shape, torch.int8),
            (scale_shape(shape), torch.float16),
            (shape, torch.uint8),
            (scale_shape(shape), torch.float16),
        )
    ]
    y, others = x.clone(), [s.clone() for s in state]
    for step in range(1, 5):
        gradient = make_gradient(shape, dtype, rng).to(device)
        update, state = adam_8bit_step(
            gradient, Adam8bitState(*state), step, seed=3
        )
        x = x - (RATE * update).to(dtype)
        fused(y, gradient, others, step)
        for name, a, b in zip(Adam8bitState._fields, state, others):
            assert torch.equal(a, b), (shape, dtype, device, step, name)
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(x, y, rtol=tolerance, atol=1e-6)


def compile_all():
    for dtype in ("fp32", "bf16"):
        for is_aligned in (True, False):
            text = compile_kernel(
                triton_adam_8bit.adam_8bit_kernel,
                {
                    "parameter": f"*{dtype}",
                    "m_codes": "*i8",
                    "m_scale": "*fp16",
                    "v_codes": "*u8",
                    "v_scale": "*fp16",
                    "gradient": f"*{dtype}",
                },
                {
                    "IS_ALIGNED": is_aligned,
                    "GROUPS": triton_adam_8bit.GROUPS,
                },
            )
            # What is rounded once instead of twice gives other codes.
            assert "fma.rn.f32" not in text


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_all()
    else:
        device = "cuda" if sys.argv[1] == "cuda" else "cpu"
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                check(shape, dtype, device)
