"""The tasks of `peers.py`: functions that make the contenders."""

import functools

import keras
import numpy as np
import torch
from torch import nn

from benchmarks import torch_peers
from benchmarks.live_bytes import live_bytes
from benchmarks.optimizers_peers import tensors_of
from benchmarks.reversible_worker import build
from benchmarks.torch_peers import import_quietly
from keras_efficient import optimizers
from keras_efficient.layers import AdditiveCoupling
from keras_efficient.layers import InvertibleDownsampling2D
from keras_efficient.layers import ReversibleSequence
from keras_efficient.utils import optimizer_state_bytes

DEPTH = 16
UPDATES = 20
ADAM = {"betas": (0.9, 0.999), "eps": 1e-7, "weight_decay": 0.01}


class Passes:
    """A forward and a backward pass.

    Args:
        call: Function of one tensor.
        parameters: List of tensors.
        x: Tensor.
        d: Tensor, the cotangent of the outputs.
        moved: Boolean, whether parameters are in the layout of Keras.
    """

    def __init__(self, call, parameters, x, d, moved=False):
        self.call = call
        self.parameters = list(parameters)
        self.batch = x, d
        self.moved = moved

    def step(self):
        for parameter in self.parameters:
            parameter.grad = None
        x, d = self.batch
        y = self.call(x)
        y.backward(d)
        return y

    def look(self):
        values = self.step().detach()
        gradients = [p.grad for p in self.parameters]
        if self.moved:
            gradients = [g.t() if g.ndim == 2 else g for g in gradients]
        gradients = [g.clone() for g in gradients]
        for parameter in self.parameters:
            parameter.grad = None
        kept = live_bytes(self.call, *self.batch, self.parameters)["kept"]
        return {"values": [values], "gradients": gradients, "kept": kept}


def couplings(options):
    shape = max(1, round(2048 * options.scale)), 256
    x, d = _batch(options.device, shape, shape)
    plain = build("plain", "mlp", DEPTH, shape[1:])
    weights = torch_peers.weights_of_functions(plain)

    def modules(wrap):
        functions = list(map(torch_peers.function, weights))
        pairs = list(zip(functions[::2], functions[1::2]))
        module = wrap(pairs).to(options.device).train()
        # revlib has no gradients unless its input has one.
        leaf = x.clone().requires_grad_(wrap is torch_peers.revlib)
        # In one order, whatever the packages make of it.
        parameters = [p for f in functions for p in f.parameters()]
        return Passes(module, parameters, leaf, d)

    def ours():
        model = build("reversible", "mlp", DEPTH, shape[1:])
        parameters = [v.value for v in model.trainable_variables]
        call = functools.partial(model, training=True)
        return Passes(call, parameters, x, d, moved=True)

    return {
        "PyTorch": lambda: modules(torch_peers.Plain),
        "keras_efficient": ours,
        "keras_efficient, modules": lambda: modules(_run_of_modules),
        "memcnn": lambda: modules(torch_peers.memcnn),
        "revlib": lambda: modules(torch_peers.revlib),
        "FrEIA": lambda: modules(_freia),
    }


def _run_of_modules(pairs):
    def layer(module):
        shape = None, module[-1].out_features
        return keras.layers.TorchModuleWrapper(module, output_shape=shape)

    blocks = [AdditiveCoupling(layer(f), layer(g)) for f, g in pairs]
    return ReversibleSequence(blocks)


def _freia(pairs):
    package = import_quietly("FrEIA.modules")

    def block(f, g):
        functions = iter((f, g))
        return package.NICECouplingBlock(
            [(2 * f[-1].out_features,)],
            subnet_constructor=lambda *_: next(functions),
        )

    return _Freia([block(f, g) for f, g in pairs])


class _Freia(nn.Module):
    """Blocks of FrEIA, which take and return tuples, one after the other."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            (x,), _ = block((x,))
        return x


def resampling(options):
    channels = 32
    shape = max(1, round(16 * options.scale)), channels, 64, 64
    small = shape[0], 4 * channels, 32, 32
    x, d = _batch(options.device, shape, small)
    start = np.random.default_rng(1).normal(size=(channels, 4, 4)) / 4
    start = torch.tensor(start, dtype=torch.float32, device=options.device)

    def plain():
        weight = start.clone().requires_grad_()

        def call(x):
            skew = weight - weight.mT
            eye = torch.eye(4, device=weight.device)
            kernel = torch.linalg.solve(eye + skew, eye - skew)
            kernel = kernel.reshape(-1, 1, 2, 2)
            return nn.functional.conv2d(x, kernel, stride=2, groups=channels)

        return Passes(call, [weight], x, d)

    def ours():
        layer = InvertibleDownsampling2D(
            2, kind="orthogonal", data_format="channels_first"
        )
        layer.build(shape)
        layer.set_weights([start.cpu().numpy()])
        return Passes(layer, [layer.kernel.value], x, d)

    def iunets():
        layers = import_quietly("iunets.layers")
        module = layers.InvertibleDownsampling2D(channels).to(options.device)
        with torch.no_grad():
            module.weight.copy_(start)
        return Passes(module, [module.weight], x, d)

    return {"PyTorch": plain, "keras_efficient": ours, "iunets": iunets}


class Updates:
    """Steps of an optimizer on parameters, by gradients that are given.

    Args:
        make: Function of a list of parameters. It returns the function that
            takes a step by gradients, and one that counts bytes of state.
        start: List of tensors, the first values.
        gradients: List of lists of tensors, one a step, again and again.
    """

    def __init__(self, make, start, gradients):
        self.start = start
        self.parameters = [x.clone().requires_grad_() for x in start]
        self.apply, self.count = make(self.parameters)
        self.gradients = gradients
        self.taken = 0

    @torch.no_grad()
    def step(self):
        self.apply(self.gradients[self.taken % len(self.gradients)])
        self.taken += 1

    def look(self):
        for _ in range(UPDATES):
            self.step()
        pairs = zip(self.parameters, self.start)
        moved = [(p - x).detach().clone() for p, x in pairs]
        return {"values": moved, "kept": self.count()}


def optimizer(options):
    side = max(256, 64 * round(16 * options.scale**0.5))
    torch.manual_seed(0)
    shapes = [(side, side), (side, 4 * side), (4 * side, side)]
    draw = functools.partial(torch.randn, device=options.device)
    start = [0.02 * draw(shape) for shape in shapes]
    mean = [draw(shape) for shape in shapes]
    gradients = [[m + draw(m.shape) for m in mean] for _ in range(4)]

    def of_torch(module, name, **arguments):
        def make(parameters):
            optimizer = getattr(import_quietly(module), name)(
                parameters, 1e-3, **arguments
            )

            def step(gradients):
                for parameter, gradient in zip(parameters, gradients):
                    parameter.grad = gradient
                optimizer.step()

            return step, lambda: sum(
                x.nbytes
                for state in optimizer.state.values()
                for x in tensors_of(state)
            )

        return make

    def of_keras(kind):
        def make(parameters):
            variables = [keras.Variable(p.detach()) for p in parameters]
            # What is compared is what the variables hold.
            parameters[:] = [v.value for v in variables]
            optimizer = kind(1e-3, weight_decay=0.01)
            optimizer.build(variables)

            def step(gradients):
                optimizer.apply(gradients, variables)

            return step, lambda: optimizer_state_bytes(optimizer)

        return make

    makers = {
        "PyTorch": of_torch("torch.optim", "AdamW", fused=True, **ADAM),
        "keras_efficient": of_keras(optimizers.AdamW8bit),
        "Keras, 32 bits": of_keras(keras.optimizers.AdamW),
        "torchao": of_torch("torchao.optim", "AdamW8bit", **ADAM),
        "pytorch_optimizer": of_torch(
            "pytorch_optimizer", "FlashAdamW", **ADAM
        ),
    }
    return {
        name: functools.partial(Updates, make, start, gradients)
        for name, make in makers.items()
    }


def _batch(device, *shapes):
    rng = np.random.default_rng(0)
    return [
        torch.tensor(rng.normal(size=shape), dtype=torch.float32, device=device)
        for shape in shapes
    ]
