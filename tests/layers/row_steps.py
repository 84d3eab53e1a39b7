"""Training steps of rows of the table.

Whatever a row shows is in variables of its `Case`: two steps of gradient
descent move parameters (and a factor on the input, so its gradient, too), state
moves as the layer moves it, `total` is a checksum of outputs and their masks.
"""

import keras
import numpy as np
from keras import ops

from tests.layers.row import BACKEND
from tests.layers.row import BATCH

RATE = 0.1


def to_numpy(x):
    x = np.array(ops.convert_to_numpy(x))  # a copy
    return x if x.dtype.kind in "biu" else x.astype("float64")


def state_of(case):
    """Place, name and value of all variables."""
    variables = [*case.variables, *case.metrics_variables]
    variables = {id(v): v for v in variables}.values()
    return {
        f"{i} {v.name.rstrip('_0123456789')}": to_numpy(v)
        for i, v in enumerate(variables)
    }


def two_steps(case):
    """Train two steps without a compiler, then predict.

    Returns:
        Dictionary of everything that came of it, as arrays.
    """
    x = ops.convert_to_tensor(case.row.x)
    keras.utils.set_random_seed(1)
    before = state_of(case)
    found = {}
    for i in range(2 if case.row.trains(case.mode) else 0):
        outputs, native = globals()[f"_step_{BACKEND}"](case, x)
        for kind, values in (("output", outputs), ("native", native)):
            for j, value in enumerate(values):
                found[f"{kind} {j} of step {i}"] = value
        found[f"other outputs of step {i}"] = case.seen
    found["moved"] = moves(before, state_of(case))
    for i in range(2):
        for j, value in enumerate(_predict(case, x)):
            found[f"output {j} of prediction {i}"] = value
    found["moved later"] = moves(before, state_of(case))
    return found


def moves(before, after):
    """How much floats moved, and what integers are by now."""
    return {
        name: value - before[name] if value.dtype.kind == "f" else value
        for name, value in after.items()
    }


def _predict(case, x):
    if BACKEND == "torch":
        import torch

        with torch.no_grad():
            _, outputs = case(x, training=False)
    else:
        _, outputs = case(x, training=False)
    return [to_numpy(y) for y in outputs]


def _loss(case, x):
    total, outputs = case(x, training=True)
    return total + sum(case.losses, 0.0), outputs


def _descend(variables, gradients):
    for v, g in zip(variables, gradients, strict=True):
        if g is not None:
            v.assign(v - RATE * ops.cast(g, v.dtype))


def _numbers(gradients, like):
    """No gradient is one of zeros."""
    pairs = zip(gradients, like, strict=True)
    return [np.zeros(p.shape) if g is None else to_numpy(g) for g, p in pairs]


def _step_torch(case, x):
    import torch

    variables = case.trainable_variables
    loss, outputs = _loss(case, x)
    found = torch.autograd.grad(
        loss, [*[v.value for v in variables], *case.native], allow_unused=True
    )
    _descend(variables, found[: len(variables)])
    native = _numbers(found[len(variables) :], case.native)
    return [to_numpy(y) for y in outputs], native


def _step_tensorflow(case, x):
    import tensorflow as tf

    variables = case.trainable_variables
    with tf.GradientTape() as tape:
        loss, outputs = _loss(case, x)
    found = tape.gradient(loss, [*[v.value for v in variables], *case.native])
    found = [g if g is None else tf.convert_to_tensor(g) for g in found]
    _descend(variables, found[: len(variables)])
    native = _numbers(found[len(variables) :], case.native)
    return [to_numpy(y) for y in outputs], native


def _step_jax(case, x):
    import jax

    variables = case.trainable_variables
    others = [*case.non_trainable_variables, *case.metrics_variables]

    def loss_fn(values, state):
        pairs = [*zip(variables, values), *zip(others, state)]
        with keras.StatelessScope(pairs, collect_losses=True) as scope:
            total, outputs = case(x, training=True)
            loss = total + sum(scope.losses, 0.0)
        written = [scope.get_current_value(v) for v in variables]
        state = [scope.get_current_value(v) for v in others]
        return loss, (outputs, written, state)

    found, (outputs, written, state) = jax.grad(loss_fn, has_aux=True)(
        [v.value for v in variables], [v.value for v in others]
    )
    for v, value in zip(others, state, strict=True):
        v.assign(value)
    _descend(variables, found)  # as in `fit`, which drops what was written
    return [to_numpy(y) for y in outputs], [to_numpy(w) for w in written]


class Group(keras.Model):
    """Rows side by side: one program to compile for all of them."""

    def __init__(self, cases):
        super().__init__()
        self.cases = cases
        self.built = True

    def call(self, inputs, training=None):
        totals = [
            case(inputs[str(i)], training=training)[0]
            for i, case in enumerate(self.cases)
        ]
        return ops.stack(totals)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return ops.sum(y_pred) + sum(self.losses, 0.0)


def fitted(cases, jit_compile):
    """Train cases two steps by `fit`; how each of them moved."""
    model = Group(cases)
    keras.utils.set_random_seed(1)
    before = [state_of(case) for case in cases]
    model.compile(keras.optimizers.SGD(RATE), jit_compile=jit_compile)
    x = {
        str(i): np.tile(case.row.x, (2,) + (1,) * (case.row.x.ndim - 1))
        for i, case in enumerate(cases)
    }
    model.fit(x, batch_size=BATCH, shuffle=False, verbose=0)
    return [moves(old, state_of(case)) for old, case in zip(before, cases)]
