"""The process of `reversible.py` that measures one backend and kind."""

import functools
import statistics
import time

import keras
import numpy as np

from benchmarks.blocks import Remat
from benchmarks.blocks import attention_and_feed_forward
from benchmarks.blocks import channel_axis
from keras_efficient.backend import saved_bytes
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import Recompute
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import saved_activation_bytes

INPUT_SHAPE = {
    "mlp": (2048, 256),
    "conv": (16, 16, 16, 128),
    "transformer": (16, 128, 256),
}
LEARNING_RATE = {"mlp": 0.1, "conv": 0.01, "transformer": 0.1}
WARM_UP = 3
REMAT = "keras.remat"


def run(mode, kind, options):
    """Return what was measured, as a dictionary for JSON."""
    shape = INPUT_SHAPE[kind]
    shape = max(1, round(shape[0] * options.scale)), *shape[1:]
    if mode == "torch" and kind == "conv":
        # What its convolutions work in; or each one permutes.
        keras.config.set_image_data_format("channels_first")
        shape = shape[0], shape[-1], *shape[1:-1]
    x, y = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    contenders, failures = keras_contenders(mode, kind, options.depth, x, y)
    missing = []
    if mode == "torch" and kind != "transformer":
        from benchmarks.torch_peers import torch_contenders

        model = build("plain", kind, options.depth, shape[1:])
        peers, missing = torch_contenders(model, x, y, LEARNING_RATE[kind])
        for contender in peers.values():
            prepare(contender)
        contenders.update(peers)
    check_losses({name: c.losses for name, c in contenders.items()})
    seconds = take_turns(contenders, options.steps)
    return {
        "batch shape": shape,
        "depth": options.depth,
        "deeper": options.depth * options.deeper,
        "contenders": {**rows(contenders, seconds), **failures},
        "not installed": missing,
        "growth": growth(mode, kind, options, x, y, contenders),
        "reversible over": {
            name: compare(contenders, seconds, "reversible", name)
            for name in ("memcnn", "revlib")
            if name in contenders
        },
    }


def keras_contenders(mode, kind, depth, x, y):
    contenders, failures = {}, {}
    for name in ("plain", "reversible", "Recompute", REMAT):
        try:
            contender = KerasContender(name, mode, kind, depth, x, y)
            prepare(contender)
            contenders[name] = contender
        except Exception as error:
            if name != REMAT:
                raise
            failures[name] = {"fails": short(error)}
    return contenders, failures


class KerasContender:
    """A compiled model and its batch."""

    reference = "plain"

    def __init__(self, name, mode, kind, depth, x, y):
        self.name = name
        self.batch = x, y
        self.model = build(name, kind, depth, x.shape[1:])
        self.model.compile(
            optimizer=keras.optimizers.SGD(LEARNING_RATE[kind]),
            loss="mse",
            jit_compile=mode in ("jax", "tensorflow-xla"),
        )

    def step(self):
        return float(self.model.train_on_batch(*self.batch))

    def measure(self):
        """Return the bytes that a step holds, in a dictionary."""
        x, y = map(keras.ops.convert_to_tensor, self.batch)
        model = functools.partial(self.model, training=True)
        if keras.config.backend() == "tensorflow" and self.name == REMAT:
            # It gives gradients to variables, and none to the values that
            # stand for them in `saved_activation_bytes`.
            return {"kept": saved_bytes(lambda x, _: model(x), x, [])}
        saved = saved_activation_bytes(self.model, x)
        if keras.config.backend() != "torch":
            return {"kept": saved}
        from benchmarks.live_bytes import live_bytes

        weights = [variable.value for variable in self.model.weights]
        live = live_bytes(model, x, y, weights)
        return {**live, "saved_activation_bytes": saved}


def build(name, kind, depth, shape):
    """Build the model of a contender; all have the same weights."""
    keras.utils.set_random_seed(0)
    axis = channel_axis() if kind == "conv" else -1
    blocks = [AdditiveCoupling(*pair(kind), axis=axis) for _ in range(depth)]
    inputs = keras.Input(shape)
    if name in ("plain", "reversible"):
        run = ReversibleSequence(blocks, reversible=name == "reversible")
        return keras.Model(inputs, run(inputs))
    for block in blocks:
        block.reversible = False
    if name == "Recompute":
        return keras.Model(inputs, Recompute(blocks)(inputs))
    x = inputs
    for block in blocks:
        x = Remat(block)(x)
    return keras.Model(inputs, x)


def pair(kind):
    """Return the two functions of a block."""
    if kind == "transformer":
        return attention_and_feed_forward(width=128, head_width=32)
    return function(kind), function(kind)


def function(kind):
    if kind == "conv":
        # Without a normalization, streams grow with depth, unless weights are
        # small.
        small = keras.initializers.VarianceScaling(0.05)
        return keras.layers.Conv2D(
            64, 3, padding="same", activation="relu", kernel_initializer=small
        )
    return keras.Sequential(
        [
            keras.layers.LayerNormalization(),
            keras.layers.Dense(512, activation="gelu"),
            keras.layers.Dense(128),
        ]
    )


def prepare(contender):
    """Measure bytes, at the initial weights, and take the first steps."""
    contender.bytes = contender.measure()
    contender.losses = [contender.step() for _ in range(WARM_UP)]


def check_losses(losses):
    """Raise an error unless all contenders take the same steps.

    The first loss checks the forward pass, how far it falls the gradients.
    """
    first, *_, last = losses["plain"]
    for name, (its_first, *_, its_last) in losses.items():
        same = abs(its_first - first) <= 1e-4 * abs(first)
        fall, its_fall = first - last, its_first - its_last
        if not same or not abs(its_fall - fall) <= 0.02 * abs(fall):
            raise ValueError(
                "These contenders do not compute the same, so there is "
                f"nothing to compare. Losses of the first steps of 'plain': "
                f"{losses['plain']}, of '{name}': {losses[name]}"
            )


def take_turns(contenders, rounds):
    """Time steps; the one that begins changes from round to round."""
    names = list(contenders)
    seconds = {name: [] for name in names}
    for i in range(rounds):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            contenders[name].step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def rows(contenders, seconds):
    """Sum up the rounds for the table."""
    result = {}
    for name, contender in contenders.items():
        reference = contender.reference
        median, its = map(
            statistics.median, (seconds[name], seconds[reference])
        )
        ratios = compare(contenders, seconds, name, reference)
        result[name] = {
            "reference": reference,
            "median ms": 1000 * median,
            "ratio": ratios["time"],
            "ratio of medians": median / its,
            **contender.bytes,
            "kept ratio": ratios["kept"],
            "losses": contender.losses,
            "rounds ms": [1000 * s for s in seconds[name]],
        }
    return result


def compare(contenders, seconds, name, reference):
    """Divide what one contender takes by what another takes.

    For the time it is the median over rounds of the ratio within a round.
    """
    ours, its = contenders[name].bytes, contenders[reference].bytes
    pairs = zip(seconds[name], seconds[reference])
    return {
        "time": statistics.median(a / b for a, b in pairs),
        **{key: ours[key] / its[key] for key in ("kept", "peak") if key in its},
    }


def growth(mode, kind, options, x, y, contenders):
    """Return how many bytes more a step takes at `deeper` times the depth."""
    if options.deeper == 1:
        return {}
    grown = {}
    for name in ("plain", "reversible"):
        depth = options.depth * options.deeper
        deep = KerasContender(name, mode, kind, depth, x, y).measure()
        shallow = contenders[name].bytes
        # The most of what is known: JAX has no line between the passes.
        key = next(k for k in ("device peak", "peak", "kept") if k in deep)
        grown[name] = deep[key] - shallow[key]
    return grown


def short(error):
    """One line of an error."""
    line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {line}"[:60]
