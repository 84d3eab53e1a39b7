"""Ways to call a layer `f`, for rows of the table."""

from keras import ops

from tests.layers.row import BATCH
from tests.layers.row import normal


def second(f, x, training):
    return f(x, 5 * x, training=training)


def misspelt(f, x, training):
    return f(x, trainign=training)


def by_keyword(f, x, training):
    return f(second=ops.cos(x), x=x, training=training)


def numpy_second(f, x, training):
    return f(x, normal(BATCH, 4, seed=3), training=training)


def number_second(f, x, training):
    return f(x, second=0.5, training=training)


def any_arguments(f, x, training):
    return f(x, more=ops.cos(x), b=x * 2, training=training)


def all_kinds(f, x, training):
    return f(
        x,
        [2 * x, None],
        gate={"g": ops.sin(x), "none": None},
        flag=True,
        name="tanh",
        scale=0.5,
        training=training,
    )


def given_mask(f, x, training):
    return f(x, mask=ops.any(x != 0, axis=-1), training=training)


def context(f, x, training):
    scale = ops.cos(x[0] if isinstance(x, list) else x)
    return f(x, context={"scale": scale}, training=training)


def dictionary(f, x, training):
    return f({"b": x, "a": (ops.sin(x), None)}, training=training)


def with_what_is_left(f, x, training):
    y = f(x, training=training)
    layer = f.blocks[-1].f if hasattr(f, "blocks") else f
    layer = getattr(layer, "layers", [layer])[0]
    return y, layer.left


def with_the_sum(f, x, training):
    layer = getattr(f, "layers", [f])[0]
    layer.total = 0.0
    return f(f(x, training=training), training=training), layer.total


def no_training(f, x, training):
    return f(x)


def twice(f, x, training):
    return f(f(x, training=training) / 2, training=training)


def both(f, x, training):
    return f([x, ops.cos(x)], training=training)


def attend(f, x, training):
    return f(x, value=x * x, training=training)


def attend_itself(f, x, training):
    return f(x, value=x, training=training)


def queries(f, x, training):
    return f([x, x * x], training=training)
