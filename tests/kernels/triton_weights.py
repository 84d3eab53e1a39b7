"""What a Triton kernel makes of weights, against `ops.weight_rounding`."""

import numpy as np
import torch

from keras_efficient.ops.dispatch import Row
from keras_efficient.ops.dispatch import do_steps
from keras_efficient.ops.uniform_noise import uniform_noise
from keras_efficient.ops.weight_rounding import join_weight
from keras_efficient.ops.weight_rounding import round_weight
from keras_efficient.ops.weight_rounding import split_weight

RATE, DECAY, STEP, SEED = 0.01, 0.3, 7, 5


def check_weights(state, gradient, make_arguments, update=0.0):
    """Compare weights and corrections of every size, bit for bit.

    Args:
        state: State of the algorithm, for a parameter like the gradient.
        gradient: Tensor.
        make_arguments: Function that returns the record of the algorithm.
        update: What the gradient is to be turned into.
    """
    rng = np.random.default_rng(0)
    shape, device = gradient.shape, gradient.device
    start = rng.normal(size=shape) * 10.0 ** rng.integers(-9, 3, shape)
    start.flat[:4] = 0.0, -0.0, np.nan, 3e38
    start = torch.tensor(start).to(device, torch.bfloat16)
    stale = torch.tensor(rng.integers(-128, 128, shape), dtype=torch.int8)
    stale = stale.to(device)
    for rounding in ("compensated", "stochastic", "nearest"):
        correction = stale.clone() if rounding == "compensated" else None
        weight = start.clone()
        row = Row(
            weight,
            [x.clone() for x in state],
            gradient,
            SEED,
            correction=correction,
            decay=DECAY,
        )
        arguments = make_arguments(
            learning_rate=RATE, step=STEP, weight_rounding=rounding
        )
        assert do_steps([row], arguments)[0] is not None
        x = start.float() if correction is None else join_weight(start, stale)
        x = x - x * DECAY * RATE - RATE * update
        expected = [weight_of(x, rounding)]
        if correction is not None:
            expected = split_weight(x, "bfloat16")
        actual = [weight] if correction is None else [weight, correction]
        for a, b in zip(actual, expected, strict=True):
            is_number = ~torch.isnan(b.float())
            assert torch.equal(~torch.isnan(a.float()), is_number)
            assert torch.equal(a[is_number], b[is_number]), rounding
        assert (weight != start).float().mean() > 0.2, rounding


def weight_of(x, rounding):
    noise = 0.5
    if rounding == "stochastic":
        step = torch.tensor(STEP, dtype=torch.int32, device=x.device)
        noise = uniform_noise(x.shape, step, -1 - SEED)
    return round_weight(x, "bfloat16", noise)
