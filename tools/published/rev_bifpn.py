"""RevBiFPN (CerebrasResearch/RevBiFPN, `revbifpn.py`)."""

import re

from published.layers import count
from published.layers import has
from published.layers import layer

NAME = "RevBiFPN"
NECK = "rev_stack.recomp_op.recomp_transform_"


def arguments(state, num_heads=None):
    scales = count(state, re.escape(NECK) + r"(\d+)\.")
    necks = range(scales)
    # The bottleneck of the finest scale expands nothing.
    first = ["dw_conv", *["exp_conv"] * (scales - 1)]
    inputs = [state[f"{NECK}{i}.{first[i]}.conv.weight"] for i in necks]
    channels = [x.shape[1 if i else 0] for i, x in enumerate(inputs)]
    outputs = [state[f"{NECK}{i}.project_conv.conv.weight"] for i in necks]
    blocks = range(count(state, r"rev_stack\.(\d+)\."))
    silos = [k for k in blocks if has(state, f"rev_stack.{k}.f.")]
    return {
        "channels": tuple(channels),
        "head_channels": tuple(x.shape[0] for x in outputs),
        "features": state["head.final_conv.conv.weight"].shape[0],
        "extra_silos": len(silos) - scales + 1,
        "blocks_per_silo": silos[0] - 1 if silos else 0,
        "classes": state["head.fc.weight"].shape[0],
        "layout": "reference",
    }


def weights(model):
    # The first entry of the stack is the stem, which has no weights.
    for k, block in enumerate(model.get_layer("pyramid").blocks, 1):
        pick = _silo if hasattr(block, "num_scales") else _couplings
        yield from pick(block, f"rev_stack.{k}")
    for one in model.layers:
        kind, _, i = one.name.rpartition("_")
        if kind == "neck":
            yield from _mb_conv(one.layers[0], f"{NECK}{i}")
        elif kind == "head":
            yield from _mb_conv(one, f"head.pyramid_heads.{i}")
    yield from layer(model.get_layer("features"), "head.final_conv.conv")
    yield from layer(model.get_layer("features_norm"), "head.final_conv.norm")
    yield from layer(model.get_layer("logits"), "head.fc")


def _couplings(block, key):
    for i, coupling in enumerate(block.blocks):
        for name in ("f", "g"):
            at = f"{key}.rev_transform_{i}.{name}.xform_0_1"
            yield from _mb_conv(getattr(coupling, name), at)


def _silo(block, key):
    n = block.num_scales
    down = [(i, j) for i in range(n) for j in range(i + 1, n)]
    for (i, j), one in zip(down, block.down, strict=True):
        yield from _mb_conv(one, f"{key}.f.xform_{i}_{j}")
    # On the way up scales are numbered from the coarsest one on.
    up = [(i, j) for i in range(n) for j in range(i)]
    for (i, j), one in zip(up, block.up, strict=True):
        at = f"{key}.g.xform_{n - 1 - i}_{n - 1 - j}.0"
        yield from _mb_conv(one.layers[0], at)


def _mb_conv(block, key):
    parts = [("dw_conv", block.depthwise, block.depthwise_norm)]
    if block.expand is not None:
        parts.append(("exp_conv", block.expand, block.expand_norm))
    parts.append(("project_conv", block.project, block.project_norm))
    for name, conv, norm in parts:
        yield from layer(conv, f"{key}.{name}.conv")
        yield from layer(norm, f"{key}.{name}.norm")
    if block.se_ratio:
        yield from layer(block.squeeze, f"{key}.se.se.1")
        yield from layer(block.excite, f"{key}.se.se.3")
