"""The process of `optimizers.py` that measures one backend and workload."""

import math
import os
import statistics
import time

import keras

from benchmarks.optimizers_bounds import FUSED
from benchmarks.optimizers_bounds import KERAS_ADAM
from keras_efficient import config
from keras_efficient import optimizers
from keras_efficient.utils import optimizer_state_bytes
from keras_efficient.utils import peak_bytes

LEARNING_RATE = 1e-5
WARM_UP = 2
KERAS = ("Adam", "AdamW", "Lion", "Adafactor")
OURS = ("MicroAdam", "Adam8bit", "AdamW8bit", "Lion8bit", "SinkGD")
COLUMNS = 512  # of the embedding


def run(mode, workload, options):
    """Return what was measured, as a dictionary for JSON."""
    if mode == "torch":
        import torch

        torch.set_num_threads(os.cpu_count())
        if options.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA device")
    shapes = shapes_of(workload, options.size * 1e6)
    problem = Problem(shapes, options.dtype, mode)
    contenders, failures, missing = prepare(problem, options)
    seconds = take_turns(contenders, options.steps)
    count = sum(map(math.prod, shapes))
    row = next(
        row
        for row in config.report()
        if (row["framework"], row["device"])
        == (mode.partition("-")[0], options.device)
    )
    return {
        "shapes": shapes,
        "parameters": count,
        "parameter bytes": count * (4 if options.dtype == "float32" else 2),
        "kernels": row["kernel"] + (row["reason"] and f" ({row['reason']})"),
        "contenders": {**rows(contenders, seconds), **failures},
        "not installed": missing,
    }


def shapes_of(workload, size):
    """Return the shapes of about `size` parameters."""
    if workload == "embedding":
        return [(max(1, round(size / COLUMNS)), COLUMNS)]
    # Two blocks, each of q, k, v, out, up and down; and two matrices more.
    d = max(64, 64 * round(math.sqrt(size / 26) / 64))
    block = [(d, d)] * 4 + [(d, 4 * d), (4 * d, d)]
    return [*block, *block, (d, d), (d, d)]


class Problem:
    """Parameters and their gradients, which all contenders share."""

    def __init__(self, shapes, dtype, mode):
        self.mode = mode
        self.variables, self.gradients = [], []
        # Drawn by the device: a billion numbers take the CPU half a minute.
        seed = keras.random.SeedGenerator(0)
        for i, shape in enumerate(shapes):
            name = "embeddings" if len(shapes) == 1 else f"kernel_{i}"
            value = keras.random.normal(shape, stddev=0.02, seed=seed)
            self.variables.append(keras.Variable(value, dtype=dtype, name=name))
            gradient = keras.random.normal(shape, stddev=0.01, seed=seed)
            self.gradients.append(keras.ops.cast(gradient, dtype))
        if mode == "jax":
            # A donated buffer is gone: the variables do not keep theirs.
            self.values = [v.value for v in self.variables]


class KerasContender:
    """An optimizer of Keras, with kernels or in the portable form."""

    def __init__(self, optimizer, problem, kernels):
        self.optimizer = optimizer
        self.problem = problem
        self.kernels = kernels
        self.state_bytes = optimizer_state_bytes(optimizer)
        self._apply = self._compile()

    def step(self):
        config.set_kernels(self.kernels)
        self._apply()

    def _compile(self):
        make = {"jax": self._jax, "torch": self._torch}
        return make.get(self.problem.mode, self._tensorflow)()

    def _jax(self):
        import jax

        def apply(state, gradients, values):
            return self.optimizer.stateless_apply(state, gradients, values)

        problem = self.problem
        compiled = jax.jit(apply, donate_argnums=(0, 2))
        # Two contenders may share an optimizer and thus its state.
        holder = self.optimizer.__dict__
        first = [v.value for v in self.optimizer.variables]
        holder.setdefault("benchmark_state", first)

        def step():
            state = holder.pop("benchmark_state")
            problem.values, state = compiled(
                state, problem.gradients, problem.values
            )
            holder["benchmark_state"] = state
            jax.block_until_ready(problem.values)

        return step

    def _tensorflow(self):
        import tensorflow as tf

        problem = self.problem

        @tf.function(jit_compile=problem.mode == "tensorflow-xla")
        def apply(gradients):
            self.optimizer.apply(gradients, problem.variables)
            return self.optimizer.iterations.value + 0

        return lambda: apply(problem.gradients).numpy()

    def _torch(self):
        import torch

        from benchmarks.optimizers_peers import finish

        problem = self.problem

        @torch.no_grad()
        def step():
            self.optimizer.apply(problem.gradients, problem.variables)
            finish(problem.gradients)

        return step


def prepare(problem, options):
    """Build contenders, take their first steps and measure bytes."""
    makers, missing = {}, []
    for name in KERAS:
        makers[f"Keras {name}"] = keras_contender(
            getattr(keras.optimizers, name), problem, ("auto",)
        )
    for name in OURS:
        makers[name] = keras_contender(
            getattr(optimizers, name), problem, ("auto", "off")
        )
    if problem.mode == "torch":
        from benchmarks.optimizers_peers import peers

        found, missing = peers(problem, options.device, LEARNING_RATE)
        makers.update(found)
    contenders, failures = {}, {}
    for name, make in makers.items():
        if options.only and name not in (*options.only, KERAS_ADAM):
            continue
        suffix = ""
        try:
            for contender, suffix in zip(make(), ("", ", portable")):
                for _ in range(WARM_UP):
                    contender.step()
                contender.extra_bytes = peak_bytes(contender.step)
                contenders[name + suffix] = contender
        except Exception as error:
            if name == KERAS_ADAM:
                raise
            failures[name + suffix] = {"fails": short(error)}
    return contenders, failures, missing


def keras_contender(optimizer_class, problem, choices):
    def make():
        optimizer = optimizer_class(learning_rate=LEARNING_RATE)
        optimizer.build(problem.variables)
        return [
            KerasContender(optimizer, problem, kernels) for kernels in choices
        ]

    return make


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
        ratios = {
            other: statistics.median(
                a / b for a, b in zip(seconds[name], seconds[other])
            )
            for other in (KERAS_ADAM, FUSED)
            if other in seconds
        }
        result[name] = {
            "median ms": 1000 * statistics.median(seconds[name]),
            "ratio": ratios[KERAS_ADAM],
            "ratios": ratios,
            "state bytes": contender.state_bytes,
            "extra bytes": contender.extra_bytes,
            "rounds ms": [1000 * s for s in seconds[name]],
        }
    return result


def short(error):
    """Return the last line of an error; before it TensorFlow has its trace."""
    line = (str(error).strip() or "no message").splitlines()[-1].strip()
    return f"{type(error).__name__}: {line}"[:160]
