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
import triton.language as tl
from triton_compile import compile_kernel
from triton_weights import check_weights

from keras_efficient import config
from keras_efficient.kernels.gpu import micro_adam as triton_micro_adam
from keras_efficient.kernels.gpu import window as triton_window
from keras_efficient.ops import MicroAdamState
from keras_efficient.ops import micro_adam_step
from keras_efficient.ops.dispatch import Row
from keras_efficient.ops.dispatch import do_steps
from keras_efficient.ops.micro_adam_arguments import MicroAdamArguments
from keras_efficient.ops.weight_rounding import round_weight

RATE = 0.01
STOCHASTIC = ("stochastic", "window")
NEAREST = ("nearest", "full")
# sizes, block size, bucket size, window, k, type of values, steps, options
CASES = [
    ((1, 257, 33), 256, 64, 10, 3, torch.bfloat16, 12, STOCHASTIC),
    ((257, 512), 256, 64, 10, 3, torch.float32, 12, NEAREST),
    ((4097, 255, 2048), 256, 64, 10, 3, torch.bfloat16, 3, STOCHASTIC),
    ((700, 64), 64, 16, 4, 2, torch.bfloat16, 6, STOCHASTIC),
    ((257, 1024), 256, 64, 1, 0, torch.bfloat16, 4, STOCHASTIC),
    ((3000,), 1024, 1024, 3, 5, torch.float32, 5, NEAREST),
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


def fused(parameters, gradients, states, step, block_size, choices):
    window, _, k = states[0][0].shape
    arguments = MicroAdamArguments(
        learning_rate=RATE,
        step=step,
        window=window,
        k=k,
        block_size=block_size,
        bucket_size=2 * states[0][3].shape[1],
        rounding=choices[0],
        bias_correction=choices[1],
    )
    seeds = range(len(states))
    rows = list(map(Row, parameters, states, gradients, seeds))
    assert None not in do_steps(rows, arguments)


def check(case, dtype, device):
    """Compare with the portable form, which steps one after another."""
    sizes, block_size, *numbers, steps, choices = case
    rng = np.random.default_rng(0)
    parameters = [
        torch.tensor(rng.normal(size=size)).to(device, dtype) for size in sizes
    ]
    states = [zero_state(size, block_size, *numbers, device) for size in sizes]
    moved = [x.clone() for x in parameters]
    others = [[x.clone() for x in state] for state in states]
    for step in range(1, steps + 1):
        gradients = [
            make_gradient(size, dtype, rng).to(device) for size in sizes
        ]
        fused(moved, gradients, others, step, block_size, choices)
        for i, gradient in enumerate(gradients):
            update, states[i] = micro_adam_step(
                gradient,
                MicroAdamState(*states[i]),
                step,
                block_size=block_size,
                rounding=choices[0],
                bias_correction=choices[1],
                seed=i,
            )
            weight = parameters[i].float() - RATE * update
            if dtype == torch.bfloat16:
                weight = round_weight(weight, "bfloat16")
            parameters[i] = weight
            where = sizes[i], case, dtype, device, step
            for name, a, b in zip(MicroAdamState._fields, states[i], others[i]):
                if name == "velocity":  # a sum, in another order
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
                else:
                    assert torch.equal(a, b), (*where, name)
            tolerance = 1e-6 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(
                parameters[i], moved[i], rtol=tolerance, atol=1e-6
            )


def check_launches(device):
    """All tensors of a layout take one launch of each kernel."""
    names, launches = ("window_kernel", "micro_adam_kernel"), []
    kernels = [getattr(triton_micro_adam, name) for name in names]

    class Counter:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            launches.append((self.name, grid))
            return self.kernel[grid]

    for name, kernel in zip(names, kernels):
        setattr(triton_micro_adam, name, Counter(name, kernel))
    sizes = [300, 5000, 64]
    fused(
        [torch.ones(size, device=device) for size in sizes],
        [torch.ones(size, device=device) for size in sizes],
        [
            zero_state(size, 256, 64, 3, 3, torch.bfloat16, device)
            for size in sizes
        ],
        1,
        256,
        STOCHASTIC,
    )
    for name, kernel in zip(names, kernels):
        setattr(triton_micro_adam, name, kernel)
    assert launches == [(names[0], (3,)), (names[1], (1 + 5 + 1,))]


def check_skipped_steps(device):
    """Steps without a gradient leave rows that are older than the window."""
    rng = np.random.default_rng(0)
    states = [
        zero_state(300, 256, 64, 3, 3, torch.bfloat16, device) for _ in range(2)
    ]
    others = [[x.clone() for x in state] for state in states]
    parameters = [torch.zeros(300, device=device) for _ in range(2)]
    for step, count in ((1, 2), (2, 2), (5, 1), (40, 2), (41, 2)):
        gradients = [
            make_gradient(300, torch.float32, rng).to(device)
            for _ in range(count)
        ]
        moved = [x.clone() for x in parameters[:count]]
        # The second one, which has skipped a step, comes first.
        fused(
            moved[::-1],
            gradients[::-1],
            others[:count][::-1],
            step,
            256,
            ("nearest", "window"),
        )
        for i, gradient in enumerate(gradients):
            update, states[i] = micro_adam_step(
                gradient, MicroAdamState(*states[i]), step, rounding="nearest"
            )
            parameters[i] = parameters[i] - RATE * update
            torch.testing.assert_close(
                parameters[i], moved[i], rtol=1e-5, atol=1e-6
            )
            assert torch.equal(states[i][2], others[i][2])


def check_zeros(device):
    """Without gradients nothing moves; all entries are equal."""
    state = zero_state(300, 256, 64, 3, 3, torch.bfloat16, device)
    x = torch.ones(300, device=device)
    for step in (1, 2):
        fused([x], [torch.zeros_like(x)], [state], step, 256, STOCHASTIC)
    assert (x == 1).all() and not any(s.any() for s in state[3:])


def check_a_launch_that_fails(device):
    """The first of two has succeeded by then, and the state is as it was."""
    state = zero_state(300, 256, 64, 4, 3, torch.bfloat16, device)
    parameter = torch.zeros(300, device=device)
    kernel = triton_micro_adam.micro_adam_kernel
    triton_micro_adam.micro_adam_kernel = None
    try:
        gradient = torch.ones(300, device=device)
        fused([parameter], [gradient], [state], 1, 256, NEAREST)
        raise AssertionError("the launch did not fail")
    except TypeError:
        assert not any(x.any() for x in (parameter, *state))
    triton_micro_adam.micro_adam_kernel = kernel


def check_rounding_of_weights(device):
    """Of decay, for entries of the window and for others."""
    state = zero_state(1000, 256, 64, 10, 3, torch.bfloat16, device)
    gradient = torch.zeros(1000, dtype=torch.bfloat16, device=device)
    check_weights(state, gradient, MicroAdamArguments)


def compile_all():
    for dtype in (tl.float32, tl.bfloat16):
        text = compile_kernel(
            triton_micro_adam.micro_adam_kernel,
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
                "COLUMNS": 16,
                "PARAMETER": dtype,
                "INDICES": tl.uint8,
                "VALUES": tl.bfloat16,
                "GRADIENT": dtype,
                "ROUNDING": 2 if dtype == tl.bfloat16 else 0,
                "ALIGNMENT": 16,
            },
        )
        # What is rounded once instead of twice gives other codes.
        assert "fma.rn.f32" not in text
    compile_kernel(
        triton_window.window_kernel,
        {"WINDOW": 10, "ROWS": 16, "IS_WINDOW": True, "COLUMNS": 16},
    )


if __name__ == "__main__":
    config.set_kernels("triton")
    if sys.argv[1] == "compile":
        compile_all()
    else:
        device = "cuda" if sys.argv[1] == "cuda" else "cpu"
        for case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                check(case, dtype, device)
        check_launches(device)
        check_skipped_steps(device)
        check_zeros(device)
        check_a_launch_that_fails(device)
        check_rounding_of_weights(device)
