"""Check the Triton kernel of the 8-bit Adam step, in a process of its own.

`python triton_adam_8bit_run.py interpret|cuda|compile`. What Triton does is
settled when it is imported.
"""

import math
import os
import re
import sys
import warnings

if __name__ == "__main__" and sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton_compile import compile_kernel
from triton_weights import check_weights

from keras_efficient import config
from keras_efficient.kernels.gpu import adam_8bit as triton_adam_8bit
from keras_efficient.kernels.gpu.table import alignment_of
from keras_efficient.ops import Adam8bitState
from keras_efficient.ops import adam_8bit_step
from keras_efficient.ops.adam_8bit_arguments import Adam8bitArguments
from keras_efficient.ops.dispatch import Row
from keras_efficient.ops.dispatch import do_steps
from keras_efficient.ops.quantize_8bit import scale_shape
from keras_efficient.ops.weight_rounding import round_weight

SHAPES = [
    *((1,), (33,), (257,), (0,), (4097,), (3, 3, 5, 7), (64, 48), (70, 60)),
    *((64, 64), (32,), (5, 0), (300, 32)),
]
RATE = 0.01


def make_gradient(shape, dtype, rng):
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-9, 6, size=shape)
    x.flat[7::97], x.flat[5::89] = np.nan, -np.inf
    x.flat[64:128] = 0.0
    return torch.tensor(x).to(dtype)


def zero_state(shape, device):
    return [
        torch.zeros(size, dtype=codes, device=device)
        for size, codes in (
            (shape, torch.int8),
            (scale_shape(shape), torch.float16),
            (shape, torch.uint8),
            (scale_shape(shape), torch.float16),
        )
    ]


def fused_steps(parameters, gradients, states, step):
    seeds = range(len(parameters))
    return do_steps(
        list(map(Row, parameters, states, gradients, seeds)),
        Adam8bitArguments(learning_rate=RATE, step=step),
    )


def check(dtype, gradient_dtype, device):
    """Compare with the portable form, which steps one after another."""
    rng = np.random.default_rng(0)
    parameters = [
        torch.tensor(rng.normal(size=shape)).to(device, dtype)
        for shape in SHAPES
    ]
    states = [zero_state(shape, device) for shape in SHAPES]
    fused = [x.clone() for x in parameters]
    others = [[x.clone() for x in state] for state in states]
    for step in range(1, 5):
        gradients = [
            make_gradient(shape, gradient_dtype, rng).to(device)
            for shape in SHAPES
        ]
        gradients[-1] = gradients[-1].T.contiguous().T
        results = fused_steps(fused, gradients, others, step)
        assert None not in results
        for i, gradient in enumerate(gradients):
            update, states[i] = adam_8bit_step(
                gradient, Adam8bitState(*states[i]), step, seed=i
            )
            moved = parameters[i].float() - RATE * update
            if dtype == torch.bfloat16:
                moved = round_weight(moved, "bfloat16")
            parameters[i] = moved
            where = SHAPES[i], dtype, device, step
            for name, a, b in zip(Adam8bitState._fields, states[i], others[i]):
                if math.prod(SHAPES[i]):
                    assert torch.equal(a, b), (*where, name)
            tolerance = 1e-6 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(
                parameters[i], fused[i], rtol=tolerance, atol=1e-6
            )


def check_launches(device):
    """All tensors of a kind take one launch."""
    kernel = triton_adam_8bit.adam_8bit_kernel
    launches = []

    class Counter:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    triton_adam_8bit.adam_8bit_kernel = Counter()
    shapes = [(64,), (4, 4096), (96, 32)]
    ones = [torch.ones(shape, device=device) for shape in shapes]
    fused_steps(ones, ones, [zero_state(shape, device) for shape in shapes], 1)
    triton_adam_8bit.adam_8bit_kernel = kernel
    assert launches == [(1 + 16 + 3,)]


def check_odd_addresses(device):
    """Addresses that 16 does not divide are those of views."""
    assert alignment_of(np.array([[32, 48], [64, 36]])) == 4
    results = []
    for first in (0, 1):
        tensors = [
            torch.zeros(x.numel() + first, dtype=x.dtype, device=device)[first:]
            for x in (torch.zeros(64), *zero_state((64,), "cpu"))
        ]
        gradient = torch.linspace(-1, 1, 64, device=device)
        fused_steps([tensors[0]], [gradient], [tensors[1:]], 1)
        results.append(tensors)
    for x, y in zip(*results):
        assert x.abs().sum() > 0 and torch.equal(x, y)


def check_rounding_of_weights(device):
    """Of a step whose roots are exact, and of decay alone."""
    shape = (70, 60)
    gradient = torch.linspace(-2, 2, 4200).reshape(shape).bfloat16().to(device)
    state = zero_state(shape, device)

    def arguments(**options):
        return Adam8bitArguments(beta_1=0.0, beta_2=0.0, **options)

    update = adam_8bit_step(
        gradient, Adam8bitState(*state), 7, beta_1=0.0, beta_2=0.0
    )
    check_weights(state, gradient, arguments, update[0])
    check_weights(state, torch.zeros_like(gradient), Adam8bitArguments)


def compile_all():
    for dtype in (tl.float32, tl.bfloat16):
        for is_aligned in (True, False):
            text = compile_kernel(
                triton_adam_8bit.adam_8bit_kernel,
                {
                    "IS_ALIGNED": is_aligned,
                    "GROUPS": triton_adam_8bit.GROUPS,
                    "COLUMNS": 13,
                    "PARAMETER": dtype,
                    "GRADIENT": dtype,
                    "ROUNDING": 2 if dtype == tl.bfloat16 else 0,
                    "ALIGNMENT": 16,
                },
            )
            # What is rounded once instead of twice gives other codes.
            assert "fma.rn.f32" not in text
            # Loads of several entries.
            assert is_aligned == bool(re.search(r"ld\.global\.v4", text))


def check_a_launch_that_fails(device):
    """What has stepped does not step again, and the rest is as it was."""
    launch, launched = triton_adam_8bit._launch, []

    def launch_once(*args):
        if launched:
            raise RuntimeError("out of resources")
        launched.append(launch(*args))

    triton_adam_8bit._launch = launch_once
    shapes = [(64, 64), (70, 60)]
    parameters = [torch.zeros(x, device=device) for x in shapes]
    gradients = [torch.ones(x, device=device) for x in shapes]
    states = [zero_state(x, device) for x in shapes]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = fused_steps(parameters, gradients, states, 1)
    assert "out of resources" in str(caught[0].message)
    assert first is not None and parameters[0].abs().min() > 0
    assert second is None and not parameters[1].any()
    assert not any(x.any() for x in states[1])
    triton_adam_8bit._launch = launch


if __name__ == "__main__":
    config.set_kernels("triton")
    if sys.argv[1] == "compile":
        compile_all()
    else:
        device = "cuda" if sys.argv[1] == "cuda" else "cpu"
        check(torch.float32, torch.float32, device)
        check(torch.bfloat16, torch.bfloat16, device)
        check(torch.bfloat16, torch.float32, device)
        check_launches(device)
        check_odd_addresses(device)
        check_a_launch_that_fails(device)
        check_rounding_of_weights(device)
