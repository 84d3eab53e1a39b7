"""Train in two processes of PyTorch: DTensors, and DistributedDataParallel.

`python torch_run.py FOLDER` starts them. Both check what they find, and the
first one writes `found.json`.
"""

import contextlib
import json
import re
import sys
import types
from pathlib import Path

import keras
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Partial
from torch.distributed.tensor import Shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from keras_efficient import config
from keras_efficient import layers
from keras_efficient import optimizers
from keras_efficient.callbacks import AutoDrop
from keras_efficient.callbacks import BanditLearningRate
from keras_efficient.utils.average_statistics import average_statistics

STEPS = 3
SHAPES = {
    "matrix": (64, 512),
    "kernel": (4, 3, 16, 64),
    "rows": (128, 100),  # blocks and groups straddle rows
    "vector": (8192,),
    "bias": (31,),  # plain, in unequal parts
}


def normal(*shape, seed):
    values = np.random.default_rng(seed).normal(size=shape)
    return torch.tensor(values, dtype=torch.float32)


def make_variables(mesh, dtype):
    variables = []
    for i, (name, shape) in enumerate(SHAPES.items()):
        x = normal(*shape, seed=i).to(getattr(torch, dtype))
        if mesh is not None:
            x = distribute_tensor(x, mesh, [Shard(0)])
        x = torch.nn.Parameter(x)
        variables.append(keras.Variable(x, dtype=dtype, name=name))
    return variables


def step(make, mesh, dtype, **options):
    """Step on DTensors or, without a mesh, on tensors; return all."""
    variables, optimizer = make_variables(mesh, dtype), make(**options)
    optimizer.build(variables)
    for i in range(STEPS):
        gradients = [
            normal(*v.shape, seed=[i, j]).to(v.value.dtype)
            for j, v in enumerate(variables)
        ]
        if mesh is not None:
            gradients = [
                distribute_tensor(g, mesh, [Shard(0)]) for g in gradients
            ]
        optimizer.apply(gradients, variables)
    return variables, optimizer


def whole(variable):
    x = variable.value.detach()
    return (x.full_tensor() if isinstance(x, DTensor) else x).float()


def local_bytes(optimizer):
    values = [v.value.detach() for v in optimizer.variables]
    values = [x.to_local() if isinstance(x, DTensor) else x for x in values]
    return sum(x.numel() * x.element_size() for x in values)


def check_dtensors(mesh, found):
    for make, dtype, kernels, options in (
        (optimizers.MicroAdam, "float32", "auto", {}),
        (optimizers.MicroAdam, "bfloat16", "off", {}),
        (optimizers.Adam8bit, "float32", "auto", {"clipnorm": 1.0}),
        (optimizers.Adam8bit, "bfloat16", "auto", {}),
        (
            optimizers.Adam8bit,
            "bfloat16",
            "off",
            {"weight_rounding": "stochastic", "use_ema": True},
        ),
        (optimizers.Lion8bit, "float32", "auto", {"global_clipnorm": 1.0}),
        (
            optimizers.SGD8bit,
            "float32",
            "auto",
            {"gradient_accumulation_steps": 3, "weight_decay": 0.1},
        ),
    ):
        config.set_kernels(kernels)
        one = step(make, None, dtype, **options)
        two = step(make, mesh, dtype, **options)
        name = f"{make.__name__} {dtype} {kernels}"
        pairs = [
            (v.name, whole(v), whole(w))
            for x, y in ((one[0], two[0]), (one[1].variables, two[1].variables))
            for v, w in zip(x, y)
        ]
        clips = any("clip" in option for option in options)
        found["differ"][name] = [
            name for name, x, y in pairs if not clips and not torch.equal(x, y)
        ]
        found["bytes"][name] = local_bytes(two[1]) / local_bytes(one[1])
        check_files(*one, *two)
    config.set_kernels("auto")


def check_files(variables, one, divided_variables, two):
    """Both save the same, and load what the other one has saved."""
    stores = {}, {}
    for optimizer, store in zip((one, two), stores):
        optimizer.save_own_variables(store)
    shapes = [{k: x.shape for k, x in store.items()} for store in stores]
    assert shapes[0] == shapes[1]
    one.load_own_variables(stores[1])
    two.load_own_variables(stores[0])
    for v, w, i in zip(one.variables, two.variables, stores[0]):
        for variable, store in ((v, stores[1]), (w, stores[0])):
            expected = store[i].astype("float32").ravel()
            actual = whole(variable).ravel()
            np.testing.assert_array_equal(actual, expected)


def check_errors(mesh, found):
    """None of them has touched memory, and all ranks go on."""

    def attempt(make, placements, gradient=None, shape=(64, 512)):
        x = distribute_tensor(normal(*shape, seed=0), mesh, placements)
        variable = keras.Variable(torch.nn.Parameter(x), name="x")
        optimizer = make()
        try:
            optimizer.build([variable])
            optimizer.apply(
                [x if gradient is None else gradient(x)], [variable]
            )
        except (TypeError, ValueError) as error:
            return str(error)
        return "no error"

    by_rows = [Shard(0)]
    found["errors"] = {
        "axis": attempt(optimizers.Adam8bit, [Shard(1)]),
        "matrix": attempt(optimizers.LDAdam, by_rows),
        "blocks": attempt(optimizers.MicroAdam, by_rows, shape=(43, 192)),
        "slots": attempt(
            lambda: optimizers.LISA(blocks=["x"], active_blocks=1), by_rows
        ),
        "partial": attempt(
            optimizers.Adam8bit,
            by_rows,
            lambda x: DTensor.from_local(
                x.full_tensor(), x.device_mesh, [Partial()]
            ),
        ),
        "plain gradient": attempt(
            optimizers.Adam8bit, by_rows, lambda x: x.full_tensor()
        ),
        "alike": attempt(
            optimizers.Adam8bit,
            by_rows,
            lambda x: x.redistribute(placements=[Shard(0)]),
        ),
    }


def check_fully_shard(mesh, rank, found):
    """Train a module of PyTorch by `fully_shard`, and in one process."""

    def train(parallel):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(128, 256),
            torch.nn.GELU(),
            torch.nn.Linear(256, 64),
        )
        if parallel:
            for part in (model[0], model[2], model):
                fully_shard(part, mesh=mesh)
        parameters = list(model.parameters())
        variables = [
            keras.Variable(p, name=f"w{i}") for i, p in enumerate(parameters)
        ]
        optimizer = optimizers.MicroAdam(1e-3)
        optimizer.build(variables)
        x, y = normal(32, 128, seed=0), normal(32, 64, seed=1)
        if parallel:
            x, y = x[rank::2], y[rank::2]
        losses = []
        for _ in range(10):
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.apply([p.grad for p in parameters], variables)
            model.zero_grad()
            total = loss.detach()
            if parallel:
                dist.all_reduce(total)
                total /= 2
            losses.append(total.item())
        return losses, local_bytes(optimizer)

    one, bytes_1 = train(False)
    two, bytes_2 = train(True)
    found["fully_shard"] = {"one": one, "two": two, "bytes": bytes_2 / bytes_1}


# DistributedDataParallel


def make_model():
    keras.utils.set_random_seed(0)
    inner = keras.layers.Dense(32, "tanh"), keras.layers.Dense(32, "tanh")
    inputs = keras.Input((64,))
    x = layers.ReversibleSequence([layers.AdditiveCoupling(*inner)])(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = layers.Recompute(keras.layers.Dense(128, "tanh"))(x)
    x = keras.layers.Dense(8)(x)
    model = keras.Model(inputs, x)
    model.compile(optimizers.Adam8bit(1e-3, min_size=0), "mse")
    return model


class WithUnused(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.unused = model, torch.nn.Linear(4, 4)

    def forward(self, x, training):
        return self.model(x, training=training)


def gradients_of(model, call, batches, wait=contextlib.nullcontext):
    """Return the gradients of batches, of which the last one is reduced."""
    model.zero_grad()
    *first, last = batches
    with wait():
        for x, y in first:
            torch.nn.functional.mse_loss(call(x), y).backward()
    torch.nn.functional.mse_loss(call(last[0]), last[1]).backward()
    return [v.value.grad.clone() for v in model.trainable_variables]


def check_ddp(rank, found):
    batches = [
        (normal(16, 64, seed=i), normal(16, 8, seed=10 + i)) for i in range(4)
    ]
    for name, options in (
        ("plain", {}),
        ("static graph", {"static_graph": True}),
        ("unused", {"find_unused_parameters": True}),
        ("no_sync", {}),
    ):
        model = make_model()
        # A layer that the forward pass leaves out.
        module = WithUnused(model) if name == "unused" else model
        parallel = DistributedDataParallel(module, **options)
        own = [batches[2 * i + rank] for i in range(2)]
        own = own if name == "no_sync" else own[:1]
        actual = gradients_of(
            model,
            lambda x: parallel(x, training=True),
            own,
            parallel.no_sync,
        )
        # In one process: the mean of what both ranks have, batch by batch.
        all_ranks = []
        for other in range(2):
            twin = make_model()
            theirs = [batches[2 * i + other] for i in range(2)][: len(own)]
            all_ranks.append(
                gradients_of(twin, lambda x: twin(x, training=True), theirs)
            )
        error = max(
            (a - (x + y) / 2).abs().max().item()
            for a, x, y in zip(actual, *all_ranks)
        )
        found["ddp"][name] = error
    check_statistics(model, parallel, batches, rank, found)


def check_statistics(model, parallel, batches, rank, found):
    """Steps of Keras' optimizer; statistics of BatchNormalization."""
    x, y = batches[rank]
    for _ in range(3):
        model.zero_grad()
        loss = model.compute_loss(y=y, y_pred=parallel(x, training=True))
        loss.backward()
        variables = model.trainable_variables
        model.optimizer.apply([v.value.grad for v in variables], variables)
    found["weights apart"] = apart(model.trainable_variables)
    found["statistics apart"] = apart(model.non_trainable_variables)
    average_statistics(model)
    found["averaged apart"] = apart(model.non_trainable_variables)


def parallel_of_the_guide():
    """The model that `fit` takes, as the guide writes it."""
    guide = Path(__file__).parents[2] / "guides" / "several_devices.py"
    (block,) = re.findall(
        r"```python\n(class Parallel.*?)```", guide.read_text(), re.DOTALL
    )
    names = {
        "keras": keras,
        "DistributedDataParallel": DistributedDataParallel,
    }
    exec(block, names)
    return names["Parallel"]


def check_fit(rank, found):
    """The weights of two processes are those of one with all examples."""
    x, y = normal(64, 64, seed=20), normal(64, 8, seed=21)

    def network():
        keras.utils.set_random_seed(0)
        inner = keras.layers.Dense(32, "tanh"), keras.layers.Dense(32, "tanh")
        coupling = layers.AdditiveCoupling(*inner)
        last = keras.layers.Dense(8)
        return keras.Sequential(
            [keras.Input((64,)), layers.ReversibleSequence([coupling]), last]
        )

    parallel = parallel_of_the_guide()
    for name, make in (
        ("SGD", lambda: keras.optimizers.SGD(0.1)),
        ("Adam8bit", lambda: optimizers.Adam8bit(1e-3, min_size=0)),
    ):
        model, one, alone = parallel(network()), network(), network()
        for each, part, size in (
            (model, slice(rank, None, 2), 8),
            (alone, slice(rank, None, 2), 8),
            (one, slice(None), 16),
        ):
            each.compile(make(), "mse")
            each.fit(x[part], y[part], size, shuffle=False, verbose=0)
        pairs = zip(model.get_weights(), one.get_weights(), strict=True)
        found["fit"][name] = {
            "apart": apart(model.trainable_variables),
            "alone": apart(alone.trainable_variables),
            "error": max(float(np.abs(a - b).max()) for a, b in pairs),
        }


def apart(variables):
    """Return how far the floats of both ranks are from each other."""
    worst = 0.0
    for variable in variables:
        x = variable.value.detach()
        if x.is_floating_point():
            both = [torch.empty_like(x) for _ in range(2)]
            dist.all_gather(both, x.contiguous())
            worst = max(worst, (both[0] - both[1]).abs().max().item())
    return worst


def check_callbacks(rank, mesh, found):
    """The bandit sees losses that differ, AutoDrop parts of parameters."""
    model = make_model()
    bandit = BanditLearningRate([1e-4, 1e-3, 1e-2], steps_per_pull=1)
    bandit.set_model(model)
    bandit.on_train_begin()
    random = np.random.default_rng(rank)
    for batch in range(20):
        bandit.on_train_batch_begin(batch)
        loss = 1 + random.normal() / (1 + batch)
        bandit.on_train_batch_end(batch, {"loss": loss})
    pulls = torch.tensor([*bandit._memory["pulls"], bandit._memory["arm"]])
    both = [torch.empty_like(pulls) for _ in range(2)]
    dist.all_gather(both, pulls)
    found["pulls alike"] = torch.equal(*both)
    steps = []
    for place in (None, mesh):
        variables = make_variables(place, "float32")
        drop = AutoDrop(mode="window", window_steps=1, threshold=30)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(variables)
        drop.set_params({"steps": 8, "epochs": 2})
        drop.set_model(
            types.SimpleNamespace(
                trainable_variables=variables, optimizer=optimizer
            )
        )
        drop.on_train_begin()
        for epoch in range(2):
            drop.on_epoch_begin(epoch)
            for batch in range(8):
                drop.on_train_batch_begin(batch)
                for i, variable in enumerate(variables):
                    x = normal(*variable.shape, seed=[epoch, batch, i])
                    if place is not None:
                        x = distribute_tensor(x, place, [Shard(0)])
                    variable.assign_sub(x)
                optimizer.iterations.assign_add(1)
            drop.on_epoch_end(epoch, {})
        steps.append(list(drop.drop_steps))
    found["drops"] = steps


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2
    )
    mesh = dist.init_device_mesh("cpu", (2,))
    found = {"differ": {}, "bytes": {}, "ddp": {}, "fit": {}}
    check_dtensors(mesh, found)
    check_errors(mesh, found)
    check_fully_shard(mesh, rank, found)
    check_ddp(rank, found)
    check_fit(rank, found)
    check_callbacks(rank, mesh, found)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(worker, (sys.argv[1],), nprocs=2)
