"""The reversible vision models once more, in NumPy, channels last."""

import itertools
import math

import keras
import numpy as np
from keras import ops
from numpy.lib.stride_tricks import sliding_window_view

from keras_efficient.layers import MBConv
from keras_efficient.layers import ReversibleParallel

erf = np.vectorize(math.erf)


def value(variable):
    return ops.convert_to_numpy(variable).astype("float64")


def randomize(model, seed=0):
    """Give all float variables values that show in the result."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        if "float" in v.dtype:
            v.assign(rng.uniform(0.2, 0.8, v.shape) * rng.choice([1, 1, -1]))
            if "variance" in v.path:
                v.assign(rng.uniform(0.5, 1.5, v.shape))


def windows(x, size, strides, symmetric=False):
    """`(batch, *grid, channels, *window)`, zeros around as by "same"."""
    axes = range(1, x.ndim - 1)
    pads = [(0, 0)] * x.ndim
    for axis in axes:
        n = x.shape[axis]
        total = max((-(-n // strides) - 1) * strides + size - n, 0)
        pads[axis] = (total // 2, total - total // 2)
        if symmetric:
            pads[axis] = (size // 2, size // 2)
    view = sliding_window_view(np.pad(x, pads), (size,) * len(axes), axes)
    return view[(slice(None), *[slice(None, None, strides)] * len(axes))]


def conv(layer, x):
    kernel = value(layer.kernel)
    rank = kernel.ndim - 2
    view = windows(x, kernel.shape[0], layer.strides[0])
    kernel = np.moveaxis(kernel, rank, 0)
    y = np.tensordot(view, kernel, axes=rank + 1)
    return y + value(layer.bias) if layer.use_bias else y


def depthwise(layer, x, symmetric=False):
    kernel = value(layer.kernel)[..., 0]
    rank = kernel.ndim - 1
    strides = layer.strides
    strides = strides if isinstance(strides, int) else strides[0]
    view = windows(x, kernel.shape[0], strides, symmetric)
    axes = tuple(range(-rank, 0))
    y = (view * np.moveaxis(kernel, -1, 0)).sum(axes)
    return y + value(layer.bias) if layer.use_bias else y


def conv_transpose(layer, x):
    """For kernels and strides of 2."""
    kernel = value(layer.kernel)
    rank = kernel.ndim - 2
    sizes = [2 * n for n in x.shape[1:-1]]
    y = np.zeros((len(x), *sizes, kernel.shape[-2]))
    for at in itertools.product((0, 1), repeat=rank):
        place = (slice(None), *[slice(a, None, 2) for a in at])
        y[place] = x @ kernel[at].T
    return y + value(layer.bias)


def dense(layer, x):
    return x @ value(layer.kernel) + value(layer.bias)


def norm(layer, x):
    kind = type(layer).__name__
    if kind == "BatchNormalization":
        mean, variance = value(layer.moving_mean), value(layer.moving_variance)
    else:
        last = isinstance(layer, keras.layers.LayerNormalization)
        axes = -1 if last else range(1, x.ndim - 1)
        axes = axes if axes == -1 else tuple(axes)
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    x = (x - mean) / np.sqrt(variance + layer.epsilon)
    return x * value(layer.gamma) + value(layer.beta)


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def hard_silu(x):
    return x * hard_sigmoid(x)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def mean(x):
    return x.mean(tuple(range(1, x.ndim - 1)))


def enlarge(x, factor, kind):
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis]
        if kind == "nearest":
            x = np.repeat(x, factor, axis)
            continue
        at = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
        if kind == "aligned":
            at = np.linspace(0, n - 1, n * factor)
        matrix = np.maximum(1 - np.abs(at[:, None] - np.arange(n)), 0)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def mb_conv(layer, x):
    if layer.expansion != 1:
        x = hard_silu(norm(layer.expand_norm, conv(layer.expand, x)))
    x = depthwise(layer.depthwise, x, layer.padding == "symmetric")
    x = hard_silu(norm(layer.depthwise_norm, x))
    if layer.se_ratio:
        gate = hard_silu(dense(layer.squeeze, mean(x)))
        gate = hard_sigmoid(dense(layer.excite, gate))
        x = x * gate.reshape(len(x), *[1] * (x.ndim - 2), -1)
    return norm(layer.project_norm, conv(layer.project, x))


def transform(layer, x):
    """A bottleneck, or one that is enlarged afterwards."""
    if isinstance(layer, MBConv):
        return mb_conv(layer, x)
    first, up = layer.layers
    return enlarge(mb_conv(first, x), up.size[0], "bilinear")


def couple(block, x):
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    if block.first == 2:
        y2 = x2 + mb_conv(block.f, x1)
        return np.concatenate([x1 + mb_conv(block.g, y2), y2], -1)
    y1 = x1 + mb_conv(block.f, x2)
    return np.concatenate([y1, x2 + mb_conv(block.g, y1)], -1)


def silo(block, x):
    down, up = iter(block.down), iter(block.up)
    n = block.num_scales
    u = list(x) + [0] * block.new_scale
    for i in range(n - 1):
        for j in range(i + 1, n):
            u[j] = u[j] + transform(next(down), x[i])
    y = list(u)
    for i in range(1, n):
        for j in range(i):
            y[j] = y[j] + transform(next(up), u[i])
    return y


def rev_bifpn(model, x):
    run = model.get_layer("pyramid")
    channels = run.blocks[0].blocks[0].filters // 16
    x = np.concatenate([x] * (channels // 3 + 1), -1)[..., :channels]
    b, h, w, c = x.shape
    (stem,) = (m for m in model.layers if "Downsampling" in type(m).__name__)
    order = (5, 2, 4) if stem.order == "channels" else (2, 4, 5)
    x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, *order)
    maps = [x.reshape(b, h // 4, w // 4, c * 16)]
    for block in run.blocks:
        if isinstance(block, ReversibleParallel):
            maps = [couple(b, x) for b, x in zip(block.blocks, maps)]
        else:
            maps = silo(block, maps)
    maps = [
        mb_conv(model.get_layer(f"neck_{i}").layers[0], x)
        for i, x in enumerate(maps)
    ]
    if isinstance(model.output, list):
        return maps
    heads = [layer for layer in model.layers if isinstance(layer, MBConv)]
    x = maps[0]
    for layer, finer in zip(heads, maps[1:], strict=True):
        x = mb_conv(layer, x) + finer
    kinds = {type(layer).__name__: layer for layer in model.layers}
    x = norm(kinds["BatchNormalization"], conv(kinds["Conv2D"], x))
    return softmax(dense(kinds["Dense"], mean(hard_silu(x))))


def decoder(model, x):
    """What paints an image of two levels again."""
    convs = [m for m in model.layers if type(m).__name__ == "Conv2D"]
    kinds = {type(layer).__name__: layer for layer in model.layers}
    if len(convs) > 1:
        x = gelu(norm(kinds["ChannelNormalization"], conv(convs[0], x)))
        x = next_block(kinds["ConvNeXtBlock"], enlarge(x, 2, "aligned"))
    else:
        x = norm(kinds["ChannelNormalization"], x)
    x = conv(convs[-1], x)
    b, h, w, c = x.shape
    n = round((c // 3) ** 0.5)
    x = x.reshape(b, h, w, 3, n, n).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * n, w * n, 3)


def next_block(block, x):
    y = norm(block.norm, depthwise(block.depthwise, x))
    y = conv(block.narrow, gelu(conv(block.widen, y)))
    return x + value(block.scale) * y


def level(layer, inputs):
    x, *above = inputs
    if layer.downsample:
        x = norm(layer.down[1], conv(layer.down[0], x))
    for i, (y, factor) in enumerate(zip(above, layer.factors, strict=True)):
        y = norm(layer.up[2 * i + 1], conv(layer.up[2 * i], y))
        x = x + enlarge(y, factor, "nearest")
    for block in layer.blocks:
        x = next_block(block, x)
    return x


def rev_col(model, x):
    kinds = {type(layer).__name__: layer for layer in model.layers}
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.LayerNormalization)
    ]
    patches = norm(norms[0], conv(kinds["Conv2D"], x))
    c = None
    for column in model.get_layer("columns_1").blocks:
        below, new = patches, []
        for i, layer in enumerate(column.levels):
            above = []
            if c and i + 1 < len(c):
                above = [c[i + 1]]
                if i == 0 and column.far_feedback:
                    above.append(c[-1])
            below = level(layer, [below, *above])
            if c:
                below = below + value(column.scales[i]) * c[i]
            new.append(below)
        c = new
    if isinstance(model.output, list):
        return c
    return softmax(dense(kinds["Dense"], norm(norms[1], mean(c[-1]))))


def reversible_unet(model, x):
    def run(name, x):
        for block in model.get_layer(name).blocks:
            x = couple(block, x)
        return x

    convs = [m for m in model.layers if type(m).__name__.startswith("Conv")]
    down = [m for m in convs if "Transpose" not in type(m).__name__]
    up = [m for m in convs if "Transpose" in type(m).__name__]
    x, skips = conv(down[0], x), []
    for i, layer in enumerate(down[1:-1]):
        skips.append(run(f"down_{i}", x))
        x = conv(layer, skips[-1])
    x = run(f"bottom_{len(skips)}", x)
    for i, layer in zip(reversed(range(len(skips))), up, strict=True):
        x = run(f"up_{i}", conv_transpose(layer, x) + skips[i])
    return softmax(conv(down[-1], x))
