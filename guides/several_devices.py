"""
Title: Several devices, and state that lies where its parameter lies
Author: The keras_efficient authors
Date created: 2026/11/26
Last modified: 2026/11/26
Description: DataParallel, ZeRO-1, ModelParallel, DDP and FSDP in one training.
Accelerator: None
"""

"""
## What this guide does

It trains the same transformer on one device and on several, and prints what a
device then has of parameters and of optimizer state. On JAX the eight devices
are eight parts of this machine's CPU: what is shown is where bytes lie and that
losses agree, not how fast it is.

```shell
KERAS_BACKEND=jax python guides/several_devices.py
KERAS_BACKEND=torch torchrun --standalone --nproc-per-node 2 \\
    guides/several_devices.py
```

`KERAS_BACKEND` may be `jax`, `tensorflow` or `torch`. Where one machine is
outgrown, you take what your backend has: `keras.distribution` on JAX,
`DistributedDataParallel` and `fully_shard` on PyTorch, `tf.distribute` on
TensorFlow. There is no engine of ours, and none is needed.
"""

import argparse
import contextlib
import math
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ["KERAS_BACKEND"] == "jax":
    # Before JAX is imported. With real GPUs or TPUs, leave this out.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_force_host_platform_device_count=8"
    )

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_efficient

VOCABULARY = 1024


def make_data(options):
    """Return sequences in which each token follows from the one before."""
    rng = np.random.default_rng(0)
    rows = options.batch_size * options.steps
    tokens = rng.integers(0, VOCABULARY, size=(rows, 1))
    following = rng.permutation(VOCABULARY)
    for _ in range(options.length):
        tokens = np.hstack([tokens, following[tokens[:, -1:]]])
    return tokens[:, :-1].astype("int32"), tokens[:, 1:].astype("int32")


def make_model(options, optimizer):
    keras.utils.set_random_seed(0)
    model = keras_efficient.models.ReversibleCausalLM(
        vocabulary_size=VOCABULARY,
        num_layers=options.depth,
        num_heads=4,
        hidden_dim=options.width,
        intermediate_dim=4 * options.width,
    )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


"""
## JAX: one line before the model

`keras.distribution.set_distribution(...)` comes before the model is built.

- `DataParallel`: each device has all parameters and a part of the batch.
- `DataParallel` and `zero=True` of the optimizer: each device has a part of the
  *state*, too, and does that part of the step: ZeRO-1. What it makes of it is
  gathered, 4 bytes a parameter and step.
- `ModelParallel`: a `LayoutMap` says which axis of which kernel is divided.
  State lies with its parameter, and nothing is moved for the step.

The first matrix of a pair is divided by columns, the second one by rows: then
one sum in the forward pass joins them (Megatron). For attention that is by
heads. Here all are divided by columns or heads, and the embedding by words.
"""


def distributions():
    """Return each distribution, with the options of the optimizer."""
    devices = keras.distribution.list_devices()
    data = keras.distribution.DataParallel(devices=devices)
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // 4, 4), ("batch", "model"), devices
    )
    layout_map = keras.distribution.LayoutMap(mesh)
    model = keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )
    return {
        "one device": (None, {}),
        "DataParallel": (data, {}),
        "DataParallel, zero": (data, {"zero": True}),
        "ModelParallel": (model, {}),
        "ModelParallel, zero": (model, {"zero": True}),
    }, layout_map


def divide(layout_map, model, parts=4):
    """Write the layouts of a model's matrices into a `LayoutMap`.

    By paths, because a pattern of another rank than its variable is an error.
    """
    for variable in model.trainable_variables:
        rank = len(variable.shape)
        axes = {2: (None, "model"), 3: (None, "model", None)}.get(rank)
        if "embedding" in variable.path:
            axes = ("model", None)
        divided = axes and variable.shape[axes.index("model")]
        if axes and divided % parts == 0:
            layout_map[f"^{variable.path}$"] = axes


def bytes_on_a_device(variables):
    total = 0
    for variable in variables:
        value = variable.value
        total += value.addressable_shards[0].data.nbytes
    return total


def train_on_jax(options, table):
    ways, layout_map = distributions()
    for make in (keras.optimizers.Adam, keras_efficient.optimizers.MicroAdam):
        for name, (distribution, extra) in ways.items():
            if extra and make is keras.optimizers.Adam:
                continue  # an option of ours
            keras.utils.clear_session()  # names, and so paths, start anew
            keras.distribution.set_distribution(distribution)
            model = make_model(options, make(options.learning_rate, **extra))
            x, y = make_data(options)
            if not len(layout_map):
                model(x[:1])  # the first one is on one device
                divide(layout_map, model)
            run = model.fit(x, y, options.batch_size, options.epochs, verbose=0)
            table.add_row(
                f"{make.__name__}, {name}",
                f"{bytes_on_a_device(model.variables) / 2**10:.0f}",
                f"{bytes_on_a_device(model.optimizer.variables) / 2**10:.0f}",
                f"{run.history['loss'][-1]:.4f}",
            )
    keras.distribution.set_distribution(None)


"""
`keras_efficient.config.report()` says whether kernels work on shards, and
`keras_efficient.utils.memory_report` counts bytes on one device.

**Several hosts.** Each process calls `keras.distribution.initialize(
"10.0.0.1:1234", num_processes, process_id)` before anything else, and sees all
devices. Each gives `fit` its own part of the data as a `tf.data.Dataset` or
array. **Save on all processes**: a variable that is divided is gathered by all
of them, and a `save` on one process only waits for ever. Give
`BackupAndRestore` a folder that all see.

**Another number of devices.** Files have whole tensors in one order. A run that
eight devices began, one device goes on with, and the other way.

## PyTorch: DistributedDataParallel

This is Keras' own form: wrap the model, and give each process its part of a
batch. Gradients are averaged while the backward pass goes on; a reversible run
hands over all of its gradients at its end, so put several shorter runs into a
deep model to have communication overlap with computation.
"""


def train_on_torch(options, table):
    import torch
    import torch.distributed as dist

    ranks = int(os.environ.get("WORLD_SIZE", 1))  # what torchrun says
    rank = int(os.environ.get("RANK", 0))
    if ranks > 1:
        dist.init_process_group("gloo")  # "nccl" for GPUs
    optimizer = keras_efficient.optimizers.MicroAdam(options.learning_rate)
    model = make_model(options, optimizer)
    x, y = (keras.ops.convert_to_tensor(array) for array in make_data(options))
    model(x[:1])
    optimizer.build(model.trainable_variables)
    parallel = model
    if ranks > 1:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(options.epochs):
        losses = []
        for first in range(0, len(x), options.batch_size):
            rows = slice(first + rank, first + options.batch_size, ranks)
            model.zero_grad()
            logits = parallel(x[rows], training=True)
            loss = model.loss(y[rows], logits)
            loss.backward()
            variables = model.trainable_variables
            with torch.no_grad():
                optimizer.apply([v.value.grad for v in variables], variables)
            losses.append(loss.detach())
        loss = torch.stack(losses).mean()
        if ranks > 1:
            # What BatchNormalization has gathered differs by process.
            keras_efficient.utils.average_statistics(model)
            dist.all_reduce(loss)
            loss /= ranks
    table.add_row(
        f"MicroAdam, DistributedDataParallel, {ranks} ranks",
        *(
            f"{sum(v.value.nbytes for v in variables) / 2**10:.0f}"
            for variables in (model.variables, optimizer.variables)
        ),
        f"{loss.item():.4f}",
    )
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()
    return rank == 0


"""
**With `fit`.** Keras' `fit` calls the model, not the wrapper around it: each
process would train a model of its own, without an error. Let a model call its
network, which is built, through the wrapper instead:

```python
class Parallel(keras.Model):
    def __init__(self, network):
        super().__init__()
        self.network = network
        # Not by `setattr`, which would track its parameters once more.
        self.__dict__["parallel"] = DistributedDataParallel(network)

    def call(self, x, training=None):
        return (self.parallel if training else self.network)(
            x, training=training
        )
```

and give `fit` of each process its own part of the data, with as many steps.
Save `network`.

**BatchNormalization.** Each process normalizes by its own part of the batch,
and moves its own statistics. DistributedDataParallel would broadcast buffers,
but Keras' are parameters, and drift apart:
`keras_efficient.utils.average_statistics(model)` in all processes before you
evaluate or save.

**fully_shard.** Modules of PyTorch keep their parameters as DTensors. Wrap each
one in a `keras.Variable` once, and give our 8-bit optimizers and `MicroAdam`
gradients and variables as they are:

```python
variables = [keras.Variable(p) for p in model.parameters()]
optimizer.build(variables)
loss.backward()
optimizer.apply([p.grad for p in model.parameters()], variables)
```

Each rank steps on its rows, by the kernels; state is made of DTensors, too, and
`torch.distributed.checkpoint` takes it. `fully_shard` cannot take a Keras
layer: it swaps parameters that Keras holds on to. LDAdam, and Muon's matrices,
need all of a matrix, and say so.

## TensorFlow: tf.distribute

Build and compile within `strategy.scope()`, with `jit_compile=False`:
TensorFlow compiles no program for variables of several devices. Under
`MultiWorkerMirroredStrategy` Keras' own `fit` fails; a loop of your own works,
but TensorFlow sends no numbers of 8 bits to other workers, so that of ours only
optimizers with float32 state do (`LDAdam(error_feedback="full")`): for several
hosts take JAX or PyTorch.
"""


def train_on_tensorflow(options, table):
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    with contextlib.suppress(RuntimeError):  # it has been used already
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    strategy = tf.distribute.MirroredStrategy(
        [device.name for device in tf.config.list_logical_devices("CPU")]
    )
    x, y = make_data(options)
    for name, scope in (
        ("one device", contextlib.nullcontext),
        ("MirroredStrategy", strategy.scope),
    ):
        with scope():
            keras.utils.set_random_seed(0)
            model = make_model(
                options,
                keras_efficient.optimizers.MicroAdam(options.learning_rate),
            )
            model.compile(model.optimizer, model.loss, jit_compile=False)
        run = model.fit(x, y, options.batch_size, options.epochs, verbose=0)
        table.add_row(
            f"MicroAdam, {name}",
            *(
                f"{sum(map(bytes_of, variables)) / 2**10:.0f}"
                for variables in (model.variables, model.optimizer.variables)
            ),
            f"{run.history['loss'][-1]:.4f}",
        )


def bytes_of(variable):
    return variable.value.dtype.size * math.prod(variable.shape)


"""
## What a fleet would need: on paper, not run

With `P` parameters, `n` devices, `B` bytes a second between two of them, `T`
tokens a device and step, and `F` operations a second of a device; here 10^9,
64, 25 GB/s, 16,000 and 400 TFLOP/s:

| what | formula | here |
|---|---|---|
| computing a step | `6 P T / F` | 0.25 s |
| gradients, all-reduce in bfloat16 | `2 (n - 1)/n 2P / B` | 0.16 s |
| ZeRO-1, float32 gathered | `(n - 1)/n (2P + 4P) / B` | 0.24 s |
| ZeRO-1, bfloat16 gathered | `(n - 1)/n (2P + 2P) / B` | 0.16 s |
| FSDP: gather twice, scatter | `3 (n - 1)/n 2P / B` | 0.24 s |
| Adam's state a device, ZeRO-1 | `8 P / n` | 125 MB |
| MicroAdam's, ZeRO-1 | `0.94 P / n` | 15 MB |
| checkpoint, bfloat16, MicroAdam | `(2 + 1 + 0.94) P` | 3.9 GB |
| checkpoint, float32, Adam | `(4 + 8) P` | 12 GB |

All of it overlaps with the backward pass but the last bucket and, with ZeRO-1,
the all-gather after the step. Communication is hidden as long as `6 T / F` is
above `4 / B`: from some 11,000 tokens a device here, whatever the size.

Compressed state changes the choice. With Adam, 10^10 parameters in bfloat16
take 100 GB, and FSDP is needed for the state alone; with MicroAdam under ZeRO-1
they take 20 GB for weights, 20 GB for gradients, and 19.4 GB / n for
corrections and state: they fit one device of 80 GB.

A pipeline of `s` stages and `m` micro batches idles `(s - 1) / (m + s - 1)` of
the time, and each stage keeps the activations of up to `s` micro batches: with
reversible runs, two streams of each instead of all layers. Stages hand over the
two streams, `2 x width` numbers a token where a plain one hands over one.
"""

TRAIN = {
    "jax": train_on_jax,
    "tensorflow": train_on_tensorflow,
    "torch": train_on_torch,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="an epoch")
    parser.add_argument("--depth", type=int, default=1, help="blocks")
    parser.add_argument("--width", type=int, default=128, help="of a stream")
    parser.add_argument("--length", type=int, default=16, help="in tokens")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()

    table = Table(
        keras.config.backend(),
        "KiB of parameters a device",
        "KiB of state a device",
        "loss",
    )
    is_first = TRAIN[keras.config.backend()](options, table)
    if is_first is not False:
        Console().print(table)


if __name__ == "__main__":
    main()
