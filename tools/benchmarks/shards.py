"""Steps on shards: bytes on a device, bytes moved and time, on JAX.

A matrix is stepped on one device and on eight, which are parts of the CPU:
under `DataParallel`, with `zero=True`, and under `ModelParallel` on a mesh of 2
x 4. "state" is what one device has, in bytes a parameter. "moved" is what
collectives of the compiled step leave on a device, in bytes a parameter. "ms"
is the median of steps that take turns; "ratio" is that to one device without a
distribution. The eight devices share the cores: where each has an eighth, 1.0
is a shard at the speed of one device, and where each has all, 8.0 is.
"""

import math
import os
import re
import time

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

SHAPES = {
    "aligned": ((1024, 1024), (None, "model")),
    "one axis of blocks": ((4096, 256), ("model", None)),
    "misaligned": ((1024, 768), (None, "model")),
    "straddling": ((2048, 100), ("model", None)),
    "last block not full": ((1000, 300), (None, "model")),
}
COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute"
    r"|reduce-scatter)(?:-start)?\("
)


def add_arguments(parser):
    parser.add_argument("--steps", type=int, default=15, help="rounds")


def main(options):
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import keras

    from keras_efficient import optimizers

    table = Table(
        *("matrix", "optimizer", "layout", "state", "moved", "ms", "ratio"),
        box=SIMPLE,
    )
    for shape_name, (shape, axes) in SHAPES.items():
        for make in (
            keras.optimizers.Adam,
            optimizers.MicroAdam,
            optimizers.Adam8bit,
        ):
            runs = {}
            for name, distribution, zero in ways(keras, axes):
                if zero and make is keras.optimizers.Adam:
                    continue
                keras.distribution.set_distribution(distribution)
                runs[name] = Run(keras, make, shape, zero)
            times = {name: [] for name in runs}
            for _ in range(options.steps + 2):
                for name, run in runs.items():
                    times[name].append(run.step())
            medians = {k: np.median(v[2:]) for k, v in times.items()}
            for name, run in runs.items():
                table.add_row(
                    f"{shape_name} {shape}" if name == "one" else "",
                    make.__name__,
                    name,
                    f"{run.state_bytes:.2f}",
                    f"{run.moved:.1f}",
                    f"{medians[name]:.2f}",
                    f"{medians[name] / medians['one']:.2f}",
                )
    Console(width=110).print(table)
    return 0


def ways(keras, axes):
    """Return name, distribution and `zero` of each way."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["kernel"] = axes
    model = keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch"
    )
    data = keras.distribution.DataParallel(devices=devices)
    return (
        ("one", None, {}),
        ("data", data, {}),
        ("data, zero", data, {"zero": True}),
        ("model 2 x 4", model, {}),
        ("model 2 x 4, zero", model, {"zero": True}),
    )


class Run:
    """An optimizer on one variable, compiled as Keras does."""

    def __init__(self, keras, make, shape, options):
        import jax

        value = np.random.default_rng(0).normal(size=shape).astype("float32")
        variable = keras.Variable(value, name="kernel")
        optimizer = make(**options)
        optimizer.build([variable])
        self.values = [variable.value]
        self.state = [v.value for v in optimizer.variables]
        # A gradient is where its parameter is, and is not donated.
        self.gradient = jax.device_put(value[::-1], variable.value.sharding)
        layouts = [[x.sharding for x in y] for y in (self.values, self.state)]
        self.program = (
            jax.jit(
                optimizer.stateless_apply,
                donate_argnums=(0, 2),
                out_shardings=tuple(layouts),
            )
            .lower(self.state, [self.gradient], self.values)
            .compile()
        )
        size = math.prod(shape)
        self.moved = moved(self.program.as_text()) / size
        self.state_bytes = (
            sum(x.addressable_shards[0].data.nbytes for x in self.state) / size
        )

    def step(self):
        """Return the milliseconds of a step."""
        import jax

        start = time.perf_counter()
        self.values, self.state = self.program(
            self.state, [self.gradient], self.values
        )
        jax.block_until_ready((self.values, self.state))
        return 1e3 * (time.perf_counter() - start)


def moved(text):
    """Return the bytes that the collectives of a program leave on a device."""
    total = 0
    for shapes in COLLECTIVE.findall(text):
        for dtype, dims in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            size = math.prod(map(int, filter(None, dims.split(","))))
            total += size * int(re.search(r"\d+", dtype)[0]) // 8
    return total
