"""Check the Triton kernel of the MicroAdam step, in a process of its own.

`python triton_micro_adam_run.py interpret|cuda|compile`. What Triton does is
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

from keras_efficient.kernels import triton_micro_adam
from keras_efficient.kernels import triton_window
from keras_efficient.ops import MicroAdamState
from keras_efficient.ops import micro_adam_step

RATE = 0.01
STOCHASTIC = ("stochastic", "window")
NEAREST = ("nearest", "full")
# size, block size, bucket size, window, k, type of values, steps, options
CASES = [
    (1, 256, 64, 10, 3, torch.bfloat16, 3, STOCHASTIC),
    (33, 256, 64, 10, 3, torch.bfloat16, 3, NEAREST),
    (257, 256, 64, 10, 3, torch.bfloat16, 12, STOCHASTIC),
    (257, 256, 64, 10, 3, torch.float32, 12, NEAREST),
    (4097, 256, 64, 10, 3, torch.bfloat16, 3, STOCHASTIC),
    (700, 64, 16, 4, 2, torch.bfloat16, 6, STOCHASTIC),
    (3000, 1024, 1024, 3, 5, torch.float32, 5, NEAREST),
]


def make_gradient(size, dtype, rng):
    """Numbers that differ in magnitude within each block.

    PyTorch takes any of those that are equal. bfloat16 has 128 numbers from
    one power of 2 to the next.
    """
    x = np.empty(2048 * math.ceil(size / 2048))
    for block in x.reshape(-1, 1024):
        i = np.arange(1024)
        block[:] = 2.0 ** (i // 128 - 6) * (1 + i % 128 / 128)
        rng.shuffle(block)
    x = x[:size] * rng.choice([-1, 1], size)
    x[6::97], x[5::89] = np.nan, -np.inf
    return torch.tensor(x).to(dtype)


def zero_state(size, block_size, bucket_size, window, k, values, device):
    blocks = math.ceil(size / block_size)
    buckets = math.ceil(size / bucket_size)
    indices = torch.uint8 if block_size <= 256 else torch.int16
    return [
        torch.zeros(shape, dtype=dtype, device=device)
        for shape, dtype in (
            ((window, blocks, k), indices),
            ((window, blocks, k), values),
            ((window,), torch.int32),
            ((buckets, bucket_size // 2), torch.uint8),
            ((buckets, 1), torch.bfloat16),
            ((buckets, 1), torch.bfloat16),
            ((blocks, 1), torch.float32),
        )
    ]


def fused(parameter, gradient, state, step, block_size, choices):
    rounding, bias_correction = choices
    t = torch.tensor(float(step), device=parameter.device)
    options = [0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-7, 0.4, 1 - 0.4]
    triton_micro_adam.micro_adam(
        *(parameter, *state, gradient),
        *(RATE, 1 - torch.pow(0.9, t), 1 - torch.pow(0.999, t), step),
        *(np.array(options, "float32"), block_size, 3),
        *(rounding == "stochastic", bias_correction == "window"),
    )


def check(case, dtype, device):
    size, block_size, *numbers, steps, choices = case
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=size)).to(device, dtype)
    state = zero_state(size, block_size, *numbers, device)
    y, others = x.clone(), [s.clone() for s in state]
    assert triton_micro_adam.serves(state[0], state[3], block_size)
    for step in range(1, steps + 1):
        gradient = make_gradient(size, dtype, rng).to(device)
        update, state = micro_adam_step(
            gradient,
            MicroAdamState(*state),
            step,
            block_size=block_size,
            rounding=choices[0],
            bias_correction=choices[1],
            seed=3,
        )
        x = x - (RATE * update).to(dtype)
        fused(y, gradient, others, step, block_size, choices)
        where = case, dtype, device, step
        for name, a, b in zip(MicroAdamState._fields, state, others):
            if name == "velocity":  # a sum, in another order
                torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
            else:
                assert torch.equal(a, b), (*where, name)
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(x, y, rtol=tolerance, atol=1e-6)


def check_skipped_steps(device):
    """Steps without a gradient leave rows that are older than the window."""
    state = zero_state(300, 256, 64, 3, 3, torch.bfloat16, device)
    others = [s.clone() for s in state]
    x = torch.zeros(300, device=device)
    rng = np.random.default_rng(0)
    for step in (1, 2, 40, 41):
        gradient = make_gradient(300, torch.float32, rng).to(device)
        update, state = micro_adam_step(
            gradient, MicroAdamState(*state), step, seed=3
        )
        y = x.clone()
        fused(y, gradient, others, step, 256, STOCHASTIC)
        x = x - RATE * update
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
        assert torch.equal(state.written, others[2])


def check_zeros(device):
    """Without gradients nothing moves; all entries are equal."""
    state = zero_state(300, 256, 64, 3, 3, torch.bfloat16, device)
    x = torch.ones(300, device=device)
    for step in (1, 2):
        fused(x, torch.zeros_like(x), state, step, 256, STOCHASTIC)
    assert (x == 1).all() and not any(s.any() for s in state[3:])


def compile_all():
    for dtype in ("fp32", "bf16"):
        text = compile_kernel(
            triton_micro_adam.micro_adam_kernel,
            {
                "parameter": f"*{dtype}",
                "indices": "*u8",
                "values": "*bf16",
                "weights": "*fp32",
                "codes": "*u8",
                "low": "*bf16",
                "high": "*bf16",
                "velocity": "*fp32",
                "gradient": f"*{dtype}",
            },
            {
                "WINDOW": 10,
                "K": 3,
                "WINDOW_SIZE": 32,
                "ROWS": 16,
                "BLOCK": 256,
                "BUCKET": 64,
                "BLOCKS": triton_micro_adam.ENTRIES // 256,
                "IS_STOCHASTIC": True,
                "IS_WINDOW": True,
            },
        )
        # What is rounded once instead of twice gives other codes.
        assert "fma.rn.f32" not in text
    compile_kernel(
        triton_window.window_kernel,
        {"written": "*i32", "weights": "*fp32"},
        {"WINDOW": 10, "ROWS": 16, "IS_WINDOW": True},
    )


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_all()
    else:
        device = "cuda" if sys.argv[1] == "cuda" else "cpu"
        for case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                check(case, dtype, device)
        check_skipped_steps(device)
        check_zeros(device)
