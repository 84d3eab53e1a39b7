"""Layers that are hard to repeat: what they read and write is out of sight."""

import keras
from keras import layers
from keras import ops


class Own(layers.Layer):
    """A layer whose call is a function of one tensor."""

    def __init__(self, fn, *parts):
        super().__init__()
        self.parts = list(parts)
        self.fn = fn

    def call(self, x):
        return self.fn(x)


class Parent(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4, "tanh")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


class Silent(layers.Layer):
    """Has no argument `training`; its Dropout gets it all the same."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4, "tanh")
        self.dropout = layers.Dropout(0.5)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(self.dropout(self.dropout(x)))


class Firm(layers.Layer):
    """Says itself when its layers train."""

    def __init__(self):
        super().__init__()
        self.always = layers.Dropout(0.5, seed=3)
        self.never = layers.Dropout(0.5, seed=3)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=False):
        x = self.norm(x, training=not training)
        return self.always(x, training=True) + self.never(x, training=False)


class State(layers.Layer):
    """Base class of layers with a state of the shape of the last axis."""

    def build(self, shape):
        self.state = self.add_weight(shape=(shape[-1],), trainable=False)


class CentersByMovingAverage(State):
    """Reads what it has just assigned."""

    def call(self, x):
        mean = ops.mean(x, axis=0)
        self.state.assign(0.5 * self.state + 0.5 * mean)
        return ops.tanh(x - self.state)


class WritesTwice(State):
    def call(self, x):
        self.state.assign_add(ops.mean(x, axis=0))
        y = x * self.state
        self.state.assign(ops.cos(self.state) + ops.mean(y, axis=0))
        return y + ops.sin(self.state)


class ReadsThenWrites(State):
    def call(self, x):
        y = ops.sin(x + self.state)
        self.state.assign(ops.mean(y, axis=0))
        return y


class WritesOnly(State):
    def call(self, x):
        self.state.assign(ops.max(x, axis=0))
        return ops.tanh(x)


class WritesInInference(State):
    def call(self, x, training=False):
        if not training:
            self.state.assign_add(ops.mean(x, axis=0))
        return ops.tanh(x + self.state)


class Counts(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, x):
        self.count.assign_add(1)
        return ops.sin(x * ops.cast(self.count, x.dtype))


class NormalizesItsWeight(layers.Layer):
    """Assigns a trainable weight in its call, as SpectralNormalization."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x, training=False):
        if training:
            norm = ops.sqrt(ops.sum(ops.square(self.kernel)))
            self.kernel.assign(self.kernel / norm)
        return x @ self.kernel


class Measures(layers.Layer):
    """Has a metric."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean()

    def call(self, x):
        self.mean.update_state(ops.mean(x * x))
        return ops.tanh(x)


class AddsLosses(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        self.add_loss(ops.mean(ops.sin(x * self.w)))
        self.add_loss(ops.sum(self.w**2))
        return x * self.w


class Draws(layers.Layer):
    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(5)

    def call(self, x):
        first = keras.random.normal((4, 4), seed=self.generator)
        second = keras.random.uniform((4, 4), seed=self.generator)
        return ops.sin(x * first) + second


class UsesMask(layers.Layer):
    def __init__(self):
        super().__init__()
        self.supports_masking = True

    def call(self, x, mask=None):
        return x if mask is None else ops.tanh(x) * _floats(mask, x)


class MakesMask(UsesMask):
    """Hands on another mask than it gets."""

    def call(self, x, mask=None):
        if mask is not None:
            self.add_loss(ops.mean(x * _floats(mask, x)))
        return ops.tanh(x)

    def compute_mask(self, x, mask=None):
        return ops.any(x > 0.5, axis=-1)


def _floats(mask, x):
    return ops.cast(mask, x.dtype)[..., None]


class Second(layers.Layer):
    """Takes two tensors."""

    def build(self, x_shape, second_shape=None):
        self.w = self.add_weight(shape=(x_shape[-1],), initializer="ones")

    def call(self, x, second):
        return ops.tanh(x * self.w) * second


class AnyArguments(layers.Layer):
    """Takes what there is, by its name."""

    def call(self, x, **others):
        for name in sorted(others):
            if name not in ("training", "mask"):
                x = ops.sin(x * others[name])
        return x


class AllKinds(layers.Layer):
    """Tensors among other things, in and out."""

    def call(self, x, parts, gate=None, flag=None, name="", scale=1.0):
        assert flag is True and parts[1] is None and gate["none"] is None
        y = getattr(ops, name)(x * gate["g"]) * scale + parts[0]
        return {"y": (y, None, 7), "n": [ops.argmax(y, -1)], "name": name}


class Conditioned(layers.Layer):
    """Looks at a context."""

    def build(self, x_shape, context_shape=None):
        self.w = self.add_weight(shape=(x_shape[-1],), initializer="ones")

    def call(self, x, context):
        return ops.tanh(x * context["scale"] + self.w)


class LeavesATensor(layers.Layer):
    """Has an output that is an attribute."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        self.left = ops.sin(x * self.w)
        return ops.tanh(x * self.w)


class AddsToAnAttribute(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        self.total = self.total + ops.mean(ops.square(x * self.w))
        return ops.tanh(x * self.w)


class FillsAList(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, x):
        self.seen.append(ops.sin(x))
        return ops.tanh(x)


class FillsACache(layers.Layer):
    """Computes something once, at its first call."""

    table = None

    def call(self, x):
        if self.table is None:
            self.table = ops.arange(x.shape[-1], dtype=x.dtype)
        return ops.tanh(x * self.table)


class Returns(layers.Layer):
    """Returns its input, a weight and a number that depends on neither."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x, self.w * 1, ops.ones((2,)), x


class Box:
    def __init__(self, content):
        self.content = content


class Opaque(layers.Layer):
    def call(self, x):
        return Box(ops.tanh(x))

    def compute_output_spec(self, x):
        return Box(x)


class Branches(layers.Layer):
    """Branches and loops by what tensors hold."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        y = ops.cond(
            ops.mean(x) > 0, lambda: ops.sin(x * self.w), lambda: x * self.w
        )
        _, y = ops.fori_loop(
            0, 3, lambda i, c: (c[0] + 1, ops.tanh(c[1] * self.w)), (0.0, y)
        )
        return ops.where(y > 0, y, ops.stop_gradient(y) * x)


@ops.custom_gradient
def straight_through(x):
    def gradient(*args, upstream=None):
        return args[0] if upstream is None else upstream

    return ops.round(x), gradient
