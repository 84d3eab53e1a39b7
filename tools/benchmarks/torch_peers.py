"""The blocks of `reversible.py` as modules of PyTorch, for its peers.

`memcnn` and `revlib` are no dependencies: who has them installed gets them
measured.
"""

import importlib
import warnings

import numpy as np
import torch
from torch import nn

from benchmarks.live_bytes import live_bytes


def torch_contenders(model, x, y, learning_rate):
    """Return contenders by name, and the names of packages not installed.

    Args:
        model: The plain Keras model, from which weights are copied.
        x: Array, the inputs, channels first.
        y: Array, the targets.
        learning_rate: Of SGD.
    """
    device = model.weights[0].value.device
    x, y = (torch.from_numpy(z).to(device) for z in (x, y))
    contenders, missing = {}, []
    for name, wrap in (
        ("torch plain", Plain),
        ("memcnn", memcnn),
        ("revlib", revlib),
    ):
        functions = list(map(function, weights_of_functions(model)))
        pairs = list(zip(functions[::2], functions[1::2]))
        try:
            module = wrap(pairs).to(device)
        except ImportError:
            missing.append(name)
        else:
            # revlib has no gradients unless its input has one.
            leaf = x.clone().requires_grad_(name == "revlib")
            contenders[name] = TorchContender(module, leaf, y, learning_rate)
    return contenders, missing


class TorchContender:
    """A module, its optimizer and its batch."""

    reference = "torch plain"

    def __init__(self, module, x, y, learning_rate):
        self.module = module
        self.batch = x, y
        self.optimizer = torch.optim.SGD(module.parameters(), learning_rate)

    def step(self):
        x, y = self.batch
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.module(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def measure(self):
        """Return the bytes that a step holds, in a dictionary."""
        parameters = list(self.module.parameters())
        return live_bytes(self.module, *self.batch, parameters)


def weights_of_functions(model):
    """List the weights of f and g of each block, in the layout of PyTorch."""
    run = model.layers[-1]
    return [
        [
            np.moveaxis(w, (-1, -2), (0, 1)) if w.ndim > 1 else w
            for w in layer.get_weights()
        ]
        for block in run.blocks
        for layer in (block.f, block.g)
    ]


def function(weights):
    """Make the module of `reversible_worker.function` with these weights."""
    if weights[0].ndim == 4:
        channels = len(weights[1])
        module = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
        )
    else:
        width, hidden = len(weights[0]), len(weights[3])
        module = nn.Sequential(
            nn.LayerNorm(width, eps=1e-3),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(value.copy()))
    return module


class Plain(nn.Module):
    """Additive couplings that store their activations."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs = nn.ModuleList(map(nn.ModuleList, pairs))

    def forward(self, x):
        x1, x2 = x.chunk(2, dim=1)
        for f, g in self.pairs:
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
        return torch.cat([x1, x2], dim=1)


def memcnn(pairs):
    package = import_quietly("memcnn")
    # The first block has to leave the batch intact.
    blocks = [
        package.InvertibleModuleWrapper(
            package.AdditiveCoupling(f, g), keep_input=i == 0
        )
        for i, (f, g) in enumerate(pairs)
    ]
    return nn.Sequential(*blocks)


def revlib(pairs):
    package = import_quietly("revlib")
    functions = [function for pair in pairs for function in pair]
    return package.ReversibleSequential(*functions)


def import_quietly(name):
    """Import a package and silence what newer versions of PyTorch say to it."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    return importlib.import_module(name)
