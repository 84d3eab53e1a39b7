"""Rev-ViT (facebookresearch/SlowFast, `REV_VIT_S` and `REV_VIT_B`)."""

from published.layers import count
from published.layers import layer

NAME = "ReversibleViT"
BACKBONE = "rev_backbone.layers"


def arguments(state, num_heads=None):
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    side = patch * round(state["pos_embed"].shape[1] ** 0.5)
    inner = state[f"{BACKBONE}.0.G.mlp.fc1.weight"].shape[0]
    return {
        "num_layers": count(state, r"rev_backbone\.layers\.(\d+)\."),
        "num_heads": num_heads or max(1, width // 64),
        "hidden_dim": width,
        "intermediate_dim": inner,
        "patch_size": patch,
        "input_shape": (side, side, channels),
        "classes": state["head.projection.weight"].shape[0],
    }


def weights(model):
    yield from layer(model.get_layer("patches"), "patch_embed.proj")
    yield model.get_layer("positions").table, "pos_embed", lambda x: x[0]
    for i, block in enumerate(model.get_layer("blocks").blocks):
        attention, feed_forward = block.attention, block.feed_forward
        key = f"{BACKBONE}.{i}.F"
        yield from layer(attention.norm, f"{key}.norm")
        for name in ("query", "key", "value"):
            one = getattr(attention, name)
            yield from layer(one, f"{key}.attn.{name[0]}")
        yield from layer(attention.projection, f"{key}.attn.proj")
        key = f"{BACKBONE}.{i}.G"
        yield from layer(feed_forward.norm, f"{key}.norm")
        yield from layer(feed_forward.expansion, f"{key}.mlp.fc1")
        yield from layer(feed_forward.projection, f"{key}.mlp.fc2")
    yield from layer(model.get_layer("norm"), "norm")
    yield from layer(model.get_layer("predictions"), "head.projection")
