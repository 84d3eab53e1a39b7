"""
Title: Measure memory without fooling yourself
Author: The keras_efficient authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Controls, second calls, allocators, and what each figure means.
Accelerator: None
"""

"""
## What this guide does

It measures the memory of training steps in the ways that go wrong most often,
and in those that do not, on one convolutional network on handwritten digits.

```shell
KERAS_BACKEND=jax python guides/measuring_memory.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. It has to be set before
Keras is imported for the first time. Peaks are asked of Linux.
"""

import argparse
import functools
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import keras_efficient

"""
## The network

Blocks of convolutions, reversible or, with `reversible=False`, plain.
"""


def function(width):
    return keras.Sequential(
        [
            layers.BatchNormalization(),
            layers.Conv2D(width, 3, padding="same", activation="relu"),
            layers.Conv2D(width, 3, padding="same"),
        ]
    )


def build(depth, width, reversible):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2 * width, 3, padding="same")(inputs)
    blocks = [
        keras_efficient.layers.AdditiveCoupling(
            function(width), function(width)
        )
        for _ in range(depth)
    ]
    x = keras_efficient.layers.ReversibleSequence(blocks, reversible)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(10)(x))
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def load(batch_size):
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    return np.resize(x, (batch_size, 8, 8, 1)), np.resize(y, batch_size)


"""
## A control that must grow

"It takes 20 MB" says little, and "it does not grow with depth" may be true of
a measure that sees nothing. So measure at two depths, and beside the network
that must not grow one that must: its plain twin. If the control stays flat,
it is the measure that is wrong.

`saved_activation_bytes` counts what is kept between the forward and the
backward pass:

- on PyTorch the storages that autograd saves, each once;
- on TensorFlow the tensors that the backward part of the graph reads from its
  forward part;
- on JAX the temporary memory of the compiled gradient: its peak, with working
  memory.

So compare networks on one backend, never one network on two.
"""


def with_control(options, x):
    table = Table(title="bytes kept for the backward pass")
    table.add_column("blocks")
    depths = options.depth, 4 * options.depth
    kept = {"reversible": [], "plain, the control": []}
    for name, figures in kept.items():
        table.add_column(name)
        for depth in depths:
            model = build(depth, options.width, name == "reversible")
            figures.append(
                keras_efficient.utils.saved_activation_bytes(model, x)
            )
    for depth, *figures in zip(depths, *kept.values()):
        table.add_row(str(depth), *[f"{figure:,}" for figure in figures])
    growth = [f"x {after / before:.2f}" for before, after in kept.values()]
    table.add_row("growth", *growth)
    Console().print(table)


"""
## The second call, not the first

The first step traces and compiles, builds the state of the optimizer, and
fills caches. All of that stays or is done once; none of it is what a step
takes. `peak_bytes` measures a call from what the process holds before it to
the highest point: call it twice, believe the second, and look at a third to
see how much it varies.

On TensorFlow the second figure is next to nothing, far below the bytes that
the same network was found to keep. It is wrong; the next section has why.
"""


def first_and_second(options, x, y):
    model = build(options.depth, options.width, reversible=False)
    step = functools.partial(model.train_on_batch, x, y)
    table = Table("step", "bytes at the peak", title="peak_bytes")
    for number in ("first", "second", "third"):
        peak = keras_efficient.utils.peak_bytes(step)
        table.add_row(number, f"{peak:,}" if peak is not None else "unknown")
    Console().print(table)


"""
## What an allocator holds back

The operating system counts pages that the process has, not tensors that it
uses. Memory that was freed within the step may still be there: glibc keeps
freed blocks for the next request, and blocks that are a little too small are
of no use. Blocks that it maps on their own are given back at once; from
which size on, glibc adapts to what the program frees, up to 32 MB.
`MALLOC_MMAP_THRESHOLD_=131072` fixes it at 128 kB. That costs time, so it is
for measuring, or for a network that hardly fits.

TensorFlow's allocator under oneDNN keeps what it has got: the second step uses
what the first one has left, and the process does not grow, the control no
more than the reversible network. `TF_ONEDNN_USE_SYSTEM_ALLOCATOR=1` gives it
the allocator of the system. (On other backends it does nothing.)

Such variables have to be there when the process starts. So this guide starts
itself again for each line, with `--peak`, and the reversible network has its
control there, too.
"""

SETTINGS = {
    "as it is": {},
    "MALLOC_MMAP_THRESHOLD_=131072": {"MALLOC_MMAP_THRESHOLD_": "131072"},
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR=1": {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"},
    "both": {
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
    },
}


def peaks_of_second_step(options):
    """Return the peaks of a plain and a reversible network."""
    x, y = load(options.batch_size)
    peaks = []
    for reversible in (False, True):
        model = build(options.depth, options.width, reversible)
        step = functools.partial(model.train_on_batch, x, y)
        step()
        peaks.append(keras_efficient.utils.peak_bytes(step))
    return peaks


def in_processes(options):
    table = Table("process", "plain", "reversible", title="second step, bytes")
    names = list(SETTINGS)
    if keras.config.backend() != "tensorflow":
        names = names[:2]
    for name in names[: options.processes]:
        result = subprocess.run(
            [sys.executable, __file__, "--peak", *arguments(options)],
            env={
                **os.environ,
                "KERAS_BACKEND": keras.config.backend(),
                **SETTINGS[name],
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peaks = result.stdout.splitlines()[-1].split()
        table.add_row(name, *[f"{int(peak):,}" for peak in peaks])
    Console().print(table)


def arguments(options):
    return [
        f"--depth={options.depth}",
        f"--width={options.width}",
        f"--batch-size={options.batch_size}",
    ]


"""
## What else goes wrong

- **Process and tensors.** The largest resident size of a process since its
  start (`ru_maxrss`) has the imports and the compiler in it and never falls.
- **A GPU.** There, PyTorch and TensorFlow are asked for the peak of their
  allocators, which count tensors. JAX takes most of the memory beforehand;
  `peak_bytes` returns `None`, and `saved_activation_bytes` asks the compiler.
- **A batch too small.** Parameters, gradients and the state of the optimizer
  do not depend on the batch. Where they are most of the memory, activations
  do not show. `memory_report` tells the two apart.
- **Other work** on the machine changes seconds, not bytes.
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=4, help="blocks")
    parser.add_argument("--width", type=int, default=16, help="of a stream")
    parser.add_argument("--batch-size", type=int, default=512)
    help = "at most so many settings of the allocator"
    parser.add_argument("--processes", type=int, help=help)
    help = "print the peaks of the second step, and stop"
    parser.add_argument("--peak", action="store_true", help=help)
    options = parser.parse_args()

    if options.peak:
        print(*peaks_of_second_step(options))
        return
    print(keras.config.backend())
    x, y = load(options.batch_size)
    with_control(options, x)
    first_and_second(options, x, y)
    if sys.platform.startswith("linux"):
        in_processes(options)


if __name__ == "__main__":
    main()
