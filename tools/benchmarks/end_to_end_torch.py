"""The networks of `end_to_end.py` in plain PyTorch, with checkpointing.

The optimizer is `AdamW8bit` of torchao on the CPU and of bitsandbytes on a GPU.
"""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.end_to_end_networks import CONTEXT
from benchmarks.end_to_end_networks import HEAD_WIDTH
from benchmarks.end_to_end_networks import LEARNING_RATE


class CausalAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-3)
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        shape = batch, length, 3, width // HEAD_WIDTH, HEAD_WIDTH
        qkv = self.inputs(self.norm(x)).view(shape).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, f, g):
        super().__init__()
        self.f, self.g = f, g

    def residuals(self, x):
        x = x + self.f(x)
        return x + self.g(x)

    def forward(self, x):
        return checkpoint(self.residuals, x, use_reentrant=False)


def feed_forward(width):
    return nn.Sequential(
        nn.LayerNorm(width, eps=1e-3),
        nn.Linear(width, 4 * width),
        nn.GELU(),
        nn.Linear(4 * width, width),
    )


class Transformer(nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        self.tokens = nn.Embedding(128, width)
        self.places = nn.Embedding(CONTEXT, width)
        blocks = [
            Block(CausalAttention(width), feed_forward(width))
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.LayerNorm(width, eps=1e-3), nn.Linear(width, 128)
        )
        for embedding in (self.tokens, self.places):  # as Keras starts them
            nn.init.uniform_(embedding.weight, -0.05, 0.05)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places.weight
        return self.head(self.blocks(x))


class Convolutional(nn.Module):
    def __init__(self, depth, width):
        super().__init__()

        def convolution(channels=width):
            return nn.Sequential(
                nn.BatchNorm2d(width, eps=1e-3, momentum=0.01),
                nn.ReLU(),
                nn.Conv2d(width, channels, 3, padding=1),
            )

        blocks = [Block(convolution(), convolution()) for _ in range(depth)]
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), *blocks, convolution(3)
        )

    def forward(self, x):
        return x + self.layers(x)


class TorchContender:
    def __init__(self, mode, network, contender, depth, width):
        make = {"transformer": Transformer, "convolutional": Convolutional}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.module = make[network](depth, width).to(self.device)
        if self.device == "cuda":
            from bitsandbytes.optim import AdamW8bit
        else:
            from torchao.optim import AdamW8bit
        self.optimizer = AdamW8bit(
            self.module.parameters(), LEARNING_RATE, weight_decay=0.0
        )

    def step(self, x, y):
        x = torch.from_numpy(x).to(self.device)
        y = torch.from_numpy(y).to(self.device)
        outputs = self.module(x)
        if y.dtype.is_floating_point:
            loss = functional.mse_loss(outputs, y)
        else:
            loss = functional.cross_entropy(
                outputs.flatten(0, 1), y.long().flatten()
            )
        loss.backward()
        self.optimizer.step()
        self.drop_gradients()
        return loss.item()

    def count_params(self):
        return sum(x.numel() for x in self.module.parameters())

    def held_bytes(self):
        """Return the bytes of parameters and optimizer state."""
        from benchmarks.optimizers_peers import tensors_of

        states = self.optimizer.state.values()
        held = list(self.module.parameters()) + list(self.module.buffers())
        held += [x for state in states for x in tensors_of(state)]
        return sum(x.nbytes for x in held)

    def drop_gradients(self):
        self.optimizer.zero_grad()
