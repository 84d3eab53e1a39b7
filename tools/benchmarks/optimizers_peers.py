"""Optimizers of PyTorch and of packages for it, for `optimizers.py`.

`torchao` and `bitsandbytes` are no dependencies: who has them installed gets
them measured.
"""

import importlib

import torch

from benchmarks.optimizers_bounds import FUSED

PACKAGES = {
    "torchao AdamW8bit": ("torchao.optim", "AdamW8bit", ("cpu", "cuda")),
    "bitsandbytes AdamW8bit": ("bitsandbytes.optim", "AdamW8bit", ("cuda",)),
}


def peers(problem, device, learning_rate):
    """Return functions that make contenders, and the packages missing.

    Args:
        problem: What the contenders are given.
        device: "cpu" or "cuda".
        learning_rate: Float.
    """
    parameters = [variable.value for variable in problem.variables]

    def maker(optimizer_class, **kwargs):
        def make():
            optimizer = optimizer_class(parameters, learning_rate, **kwargs)
            return [TorchContender(optimizer, problem.gradients)]

        return make

    makers, missing = {FUSED: maker(torch.optim.AdamW, fused=True)}, []
    for name, (module, class_name, devices) in PACKAGES.items():
        if device not in devices:
            continue
        try:
            found = getattr(importlib.import_module(module), class_name)
        except ImportError:
            missing.append(module.partition(".")[0])
        else:
            makers[name] = maker(found)
    return makers, missing


class TorchContender:
    """A `torch.optim.Optimizer` and the gradients of its parameters."""

    def __init__(self, optimizer, gradients):
        self.optimizer = optimizer
        self.gradients = gradients

    @property
    def state_bytes(self):
        return sum(
            value.nbytes
            for state in self.optimizer.state.values()
            for value in tensors_of(state)
        )

    def step(self):
        parameters = self.optimizer.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, self.gradients):
            parameter.grad = gradient
        self.optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        finish(self.gradients)


def tensors_of(state):
    """Yield the tensors of a state, and those within its tensor classes."""
    for value in state.values():
        if hasattr(value, "__tensor_flatten__"):
            names, _ = value.__tensor_flatten__()
            yield from (getattr(value, name) for name in names)
        elif isinstance(value, torch.Tensor):
            yield value


def finish(tensors):
    """Wait for the GPU."""
    if tensors[0].is_cuda:
        torch.cuda.synchronize()
