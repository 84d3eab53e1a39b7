"""RevCol (megvii-research/RevCol, `models/revcol.py`)."""

import warnings

import numpy as np

from published.layers import count
from published.layers import has
from published.layers import layer

NAME = "RevCol"
# The first column has a scale for each level, and nothing to be scaled.
UNUSED = r"subnet0\.alpha\d+"


def arguments(state, num_heads=None):
    levels = range(count(state, r"subnet0\.level(\d+)\."))
    supervised = has(state, "cls_blocks.")
    head = "cls_blocks.0" if supervised else "cls"
    first = "subnet0.level{}.blocks.0.dwconv.weight"
    shapes = [state[first.format(i)].shape for i in levels]
    zeros = sum(
        int(np.sum(x == 0)) for key, x in state.items() if ".alpha" in key
    )
    if zeros:
        warnings.warn(
            f"{zeros} scales are exactly 0 and count as 0.001, see the "
            "docstring of `RevCol`: results differ by a little.",
            stacklevel=2,
        )
    return {
        "channels": tuple(shape[0] for shape in shapes),
        "depths": tuple(
            count(state, rf"subnet0\.level{i}\.blocks\.(\d+)\.") for i in levels
        ),
        "columns": count(state, r"subnet(\d+)\."),
        "kernel_size": state[first.format(0)].shape[-1],
        "far_feedback": has(state, "subnet1.level0.fusion.up2."),
        "intermediate_supervision": supervised,
        "classes": state[f"{head}.classifier.1.weight"].shape[0],
    }


def weights(model):
    yield from layer(model.get_layer("patches"), "stem.0")
    yield from layer(model.get_layer("patches_norm"), "stem.1")
    runs = [m for m in model.layers if m.name.startswith("columns_")]
    runs.sort(key=lambda run: run.name)
    columns = [block for run in runs for block in run.blocks]
    for k, column in enumerate(columns):
        for i, scale in enumerate(column.scales):
            yield scale, f"subnet{k}.alpha{i}", _flat(scale)
        for i, level in enumerate(column.levels):
            yield from _level(level, f"subnet{k}.level{i}")
    if len(runs) == 1:
        yield from _classifier(model, "predictions", "cls")
        return
    for k in range(1, len(runs) + 1):
        yield from _classifier(model, f"class_{k}", f"cls_blocks.{k - 1}")
    for k in range(1, len(runs)):
        yield from _decoder(model, f"image_{k}", f"decoder_blocks.{k - 1}")


def _level(level, key):
    if level.downsample:
        for i, one in enumerate(level.down):
            yield from layer(one, f"{key}.fusion.down.{i}")
    for i, one in enumerate(level.up):
        up = "up" if i < 2 else "up2"
        at = f"{key}.fusion.{up}.channel_reschedule.{i % 2}"
        yield from layer(one, at)
    for i, block in enumerate(level.blocks):
        yield from _block(block, f"{key}.blocks.{i}")


def _block(block, key):
    yield from layer(block.depthwise, f"{key}.dwconv")
    yield from layer(block.norm, f"{key}.norm")
    yield from layer(block.widen, f"{key}.pwconv1")
    yield from layer(block.narrow, f"{key}.pwconv2")
    yield block.scale, f"{key}.gamma", _flat(block.scale)


def _classifier(model, name, key):
    for i, part in enumerate(("norm", "logits")):
        one = model.get_layer(f"{name}_{part}")
        yield from layer(one, f"{key}.classifier.{i}")


def _decoder(model, name, key):
    names = {m.name for m in model.layers}
    if f"{name}_norm" in names:  # for more than 1000 classes
        yield from layer(model.get_layer(f"{name}_norm"), f"{key}.projback.0")
        pixels = f"{key}.projback.1"
    else:
        pixels = f"{key}.projback.0"
    for i in range(len(names)):
        if f"{name}_conv_{i}" not in names:
            break
        for j, part in enumerate(("conv", "norm")):
            one = model.get_layer(f"{name}_{part}_{i}")
            yield from layer(one, f"{key}.proj_layers.{i}.{j}")
        block = model.get_layer(f"{name}_block_{i}")
        yield from _block(block, f"{key}.normal_layers.{i}.0")
    yield from layer(model.get_layer(f"{name}_pixels"), pixels)


def _flat(variable):
    return lambda x: x.reshape(variable.shape)
