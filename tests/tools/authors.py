"""What the networks of the authors compute, and how they call their weights.

Written from their equations, by PyTorch's functions. A weight is made, at
random, where it is used for the first time: so one call makes a state dict.
"""

import numpy as np
import torch
from torch.nn import functional as F


class Weights(dict):
    """A state dict: `weights(key, *shape)` is the tensor of a key."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, key, *shape):
        if key not in self:
            # Not around zero, that order shows, and small enough for depth.
            x = torch.rand(shape, generator=self.generator) - 0.3
            fan = np.prod(shape[1:]) if len(shape) > 1 else 1
            self[key] = 2 * x / fan**0.5
            if key.endswith("running_var"):
                self[key] = x + 0.8
        return self[key]


def conv(w, key, x, outputs, size=1, strides=1, padding=0, groups=1, bias=True):
    kernel = w(f"{key}.weight", outputs, x.shape[1] // groups, size, size)
    bias = w(f"{key}.bias", outputs) if bias else None
    return F.conv2d(x, kernel, bias, strides, padding, groups=groups)


def linear(w, key, x, outputs):
    kernel = w(f"{key}.weight", outputs, x.shape[-1])
    return F.linear(x, kernel, w(f"{key}.bias", outputs))


def layer_norm(w, key, x):
    n = x.shape[-1]
    gamma, beta = w(f"{key}.weight", n), w(f"{key}.bias", n)
    return F.layer_norm(x, (n,), gamma, beta, 1e-6)


def last(x):
    return x.permute(0, 2, 3, 1)


def first(x):
    return x.permute(0, 3, 1, 2)


# RevBiFPN


def conv_norm(w, key, x, outputs, size=1, strides=1, groups=1, act=True):
    padding = (size - 1) // 2
    at = f"{key}.conv"
    x = conv(w, at, x, outputs, size, strides, padding, groups, bias=False)
    names = "running_mean", "running_var", "weight", "bias"
    values = [w(f"{key}.norm.{name}", outputs) for name in names]
    w[f"{key}.norm.num_batches_tracked"] = torch.tensor(7)
    x = F.batch_norm(x, *values, False, 0.1, 1e-3)
    return F.hardswish(x) if act else x


def mb_conv(w, key, x, outputs, size, expansion, ratio, strides=1):
    n = x.shape[1]
    inner = n * expansion
    y = x
    if expansion > 1:
        y = conv_norm(w, f"{key}.exp_conv", y, inner)
    y = conv_norm(w, f"{key}.dw_conv", y, inner, size, strides, inner)
    if ratio:
        gate = y.mean((2, 3), keepdim=True)
        gate = conv(w, f"{key}.se.se.1", gate, max(1, int(n * ratio)))
        gate = conv(w, f"{key}.se.se.3", F.hardswish(gate), inner)
        y = y * F.hardsigmoid(gate)
    return conv_norm(w, f"{key}.project_conv", y, outputs, act=False)


def rev_bifpn(w, x, channels, head_channels, features, rounds, repeat, classes):
    kernels, extra = (3, 5, 5, 5), (0, 0, 0, 2)
    expand, ratios = (1, 1, 2, 2), (0.25, 0.25, 0.125, 0.0)
    copies = -(-channels[0] // 16 // 3)
    x = torch.cat([x] * copies, 1)[:, : channels[0] // 16]
    b, c, h, v = x.shape
    x = x.reshape(b, c, h // 4, 4, v // 4, 4).permute(0, 3, 5, 1, 2, 4)
    maps, k = [x.reshape(b, 16 * c, h // 4, v // 4)], 0
    for _ in range(rounds):
        for _ in range(repeat):
            k += 1
            for i, x in enumerate(maps):
                key = f"rev_stack.{k}.rev_transform_{i}"
                args = kernels[i], expand[i], ratios[i]
                a, b = x.chunk(2, 1)
                b = b + mb_conv(w, f"{key}.f.xform_0_1", a, b.shape[1], *args)
                a = a + mb_conv(w, f"{key}.g.xform_0_1", b, a.shape[1], *args)
                maps[i] = torch.cat([a, b], 1)
        k += 1
        n = min(len(maps) + 1, len(channels))
        u = maps + [0] * (n - len(maps))
        for i, x in enumerate(maps):
            for j in range(i + 1, n):
                s = 2 ** (j - i)
                args = 2 * s - 1 + extra[i], expand[i], ratios[i], s
                key = f"rev_stack.{k}.f.xform_{i}_{j}"
                u[j] = u[j] + mb_conv(w, key, x, channels[j], *args)
        maps = list(u)
        for i in range(n):
            for j in range(i):
                args = 3 + extra[i], expand[j], ratios[j]
                key = f"rev_stack.{k}.g.xform_{n - 1 - i}_{n - 1 - j}.0"
                y = mb_conv(w, key, u[i], channels[j], *args)
                y = F.interpolate(y, scale_factor=2 ** (i - j), mode="bilinear")
                maps[j] = maps[j] + y
    expand, ratios = (1, 2, 2, 2), (0.25, 0.25, 0.125, 0.125)
    for i, outputs in enumerate(head_channels):
        key = f"rev_stack.recomp_op.recomp_transform_{i}"
        maps[i] = mb_conv(w, key, maps[i], outputs, 5, expand[i], ratios[i])
    x = maps[0]
    for i, y in enumerate(maps[1:]):
        args = y.shape[1], 5, expand[i], ratios[i], 2
        x = y + mb_conv(w, f"head.pyramid_heads.{i}", x, *args)
    x = conv_norm(w, "head.final_conv", x, features).mean((2, 3))
    return [linear(w, "head.fc", x, classes)]


# RevCol


def next_block(w, key, x, size, expansion):
    n = x.shape[1]
    y = conv(w, f"{key}.dwconv", x, n, size, padding=size // 2, groups=n)
    y = layer_norm(w, f"{key}.norm", last(y))
    y = F.gelu(linear(w, f"{key}.pwconv1", y, expansion * n))
    y = linear(w, f"{key}.pwconv2", y, n)
    return x + first(w(f"{key}.gamma", n) * y)


def up(w, key, x, outputs, factor):
    x = linear(w, f"{key}.channel_reschedule.0", last(x), outputs)
    x = first(layer_norm(w, f"{key}.channel_reschedule.1", x))
    return F.interpolate(x, scale_factor=factor, mode="nearest")


def norm_first(w, key, x):
    return first(layer_norm(w, key, last(x)))


def rev_col(w, x, channels, depths, columns, far, supervised, classes, size=3):
    n = len(channels)
    x = norm_first(w, "stem.1", conv(w, "stem.0", x, channels[0], 4, 4))
    c, results, images = [0] * n, [], []
    for k in range(columns):
        below = x
        old, c = c, list(c)
        for i in range(n):
            key, width = f"subnet{k}.level{i}", channels[i]
            y = below
            if i:
                y = conv(w, f"{key}.fusion.down.0", y, width, 2, 2)
                y = norm_first(w, f"{key}.fusion.down.1", y)
            if k and i < n - 1:
                y = y + up(w, f"{key}.fusion.up", old[i + 1], width, 2)
            if k and i == 0 and far:
                factor = 2 ** (n - 1)
                y = y + up(w, f"{key}.fusion.up2", old[-1], width, factor)
            for j in range(depths[i]):
                y = next_block(w, f"{key}.blocks.{j}", y, size, 4)
            alpha = w(f"subnet{k}.alpha{i}", 1, width, 1, 1)
            c[i] = below = alpha * old[i] + y
        quarter, rest = divmod(4 * (k + 1), columns)
        if (supervised and not rest) or k == columns - 1:
            head = f"cls_blocks.{quarter - 1}" if supervised else "cls"
            y = c[-1].mean((2, 3))
            y = layer_norm(w, f"{head}.classifier.0", y)
            results.append(linear(w, f"{head}.classifier.1", y, classes))
            if k < columns - 1:
                key = f"decoder_blocks.{quarter - 1}"
                images.append(decoder(w, key, c[-1], channels, classes))
    return results + images


def decoder(w, key, x, channels, classes):
    if classes > 1000:
        side = 4 * 2 ** (len(channels) - 1)
        x = norm_first(w, f"{key}.projback.0", x)
        x = conv(w, f"{key}.projback.1", x, 3 * side**2)
        return F.pixel_shuffle(x, side)
    for i, width in enumerate(reversed(channels[:-1])):
        x = conv(w, f"{key}.proj_layers.{i}.0", x, width)
        x = F.gelu(norm_first(w, f"{key}.proj_layers.{i}.1", x))
        x = F.interpolate(
            x, scale_factor=2, mode="bilinear", align_corners=True
        )
        x = next_block(w, f"{key}.normal_layers.{i}.0", x, 3, 1)
    return F.pixel_shuffle(conv(w, f"{key}.projback.0", x, 48), 4)


# Rev-ViT


def rev_vit(w, x, layers, heads, width, inner, patch, classes):
    x = conv(w, "patch_embed.proj", x, width, patch, patch)
    x = x.flatten(2).transpose(1, 2)
    x = x + w("pos_embed", 1, x.shape[1], width)
    x1 = x2 = x
    for i in range(layers):
        key = f"rev_backbone.layers.{i}"
        y = layer_norm(w, f"{key}.F.norm", x2)
        query, keys, values = (
            linear(w, f"{key}.F.attn.{name}", y, width)
            .unflatten(-1, (heads, -1))
            .transpose(1, 2)
            for name in "qkv"
        )
        scores = query @ keys.transpose(-1, -2) / (width // heads) ** 0.5
        y = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        x1 = x1 + linear(w, f"{key}.F.attn.proj", y, width)
        y = layer_norm(w, f"{key}.G.norm", x1)
        y = F.gelu(linear(w, f"{key}.G.mlp.fc1", y, inner))
        x2 = x2 + linear(w, f"{key}.G.mlp.fc2", y, width)
    x = layer_norm(w, "norm", torch.cat([x1, x2], -1)).mean(1)
    return [linear(w, "head.projection", x, classes)]
