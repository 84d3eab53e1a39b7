import typing
import warnings

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.table import Table

from keras_efficient import backend
from keras_efficient.autodiff.record import values
from keras_efficient.autodiff.streams import split
from keras_efficient.backend import nested
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import shared_arguments


class Reversibility(typing.NamedTuple):
    """What `check_reversibility` found.

    Attributes:
        reconstruction: For each block, the largest error of its reconstructed
            inputs, relative to their largest entry.
        gradient: For each block, the relative error (in the 2-norm) of the
            gradient of its variables; 0 for a block without variables.
        inputs: The relative error of the gradient of the inputs.
        discrete: Names of the sub-layers that make discrete choices.
    """

    reconstruction: list
    gradient: list
    inputs: float
    discrete: list


def check_reversibility(layer, inputs, context=None, mask=None):
    """Measure how well a layer recomputes its activations, and print a table.

    The blocks run forward, in inference mode, and are then undone one after
    the other, each from what the one behind it gave back, as in the backward
    pass. The gradient of `sum(outputs ** 2) / 2` in training mode is compared
    with that of the plain twin, which stores its activations.

    Errors around 1e-6 to 1e-4 are rounding, growing slowly with depth. Larger
    ones point to an `uncouple` that does not fit its `couple`, to a scale or
    momentum too small for the depth, or to a sub-layer that answers to a
    change in the last bit: a rounding, a top-k or an argmax turns out
    differently in the recomputation now and then. Such sub-layers are looked
    for, with small changes of their inputs, and reported by a warning.

    Args:
        layer: A built `keras_efficient.layers.ReversibleLayer`. It is not
            changed.
        inputs: As in its call: array or tensor, or a list of streams.
        context: As in its call.
        mask: As in its call.

    Returns:
        A named tuple of the figures in the table: `reconstruction` and
        `gradient`, lists with one entry a block, `inputs`, the error of the
        gradient of the inputs, and `discrete`, names of sub-layers.

    Raises:
        TypeError: `layer` is not a reversible layer.
        ValueError: `layer` is not built.

    Example:

    ```python
    block = keras_efficient.layers.AdditiveCoupling(keras.layers.Dense(8))
    run = keras_efficient.layers.ReversibleSequence([block])
    x = keras.random.normal((4, 16))
    run(x)
    errors = keras_efficient.utils.check_reversibility(run, x)
    ```
    """
    if not isinstance(layer, ReversibleLayer):
        raise TypeError(
            "`layer` must be a `keras_efficient.layers.ReversibleLayer`, such "
            f"as a `ReversibleSequence`. Received: {layer} (of type "
            f"{type(layer)}). Pass the layer, not the model around it."
        )
    if not layer.built:
        raise ValueError(
            f"Layer '{layer.name}' has to be built. Call it on inputs once."
        )
    inputs = nested.map_structure(ops.convert_to_tensor, inputs)
    shared = shared_arguments(None, context, mask)
    reconstruction, discrete = _reconstruct(layer, inputs, shared)
    found = Reversibility(
        reconstruction, *_compare_gradients(layer, inputs, shared), discrete
    )
    _print(layer, found)
    if discrete:
        warnings.warn(
            f"Sub-layers {discrete} jump where their inputs change by a "
            "little: they make discrete choices (rounding, top-k, argmax), "
            "and rounding errors of the reconstruction flip some of them. "
            "Use `ReversibleSequence(..., exact=True)`, which reconstructs "
            "bit for bit, or keep these layers out of the run.",
            stacklevel=2,
        )
    return found


def _reconstruct(layer, inputs, shared):
    """Return the error of each block, and names of discrete sub-layers."""
    evaluate = layer.evaluator(shared, False, on_integers=layer.exact)
    on_floats = layer.evaluator(shared, False)
    discrete = set()

    def probe(sub_layer, x):
        floats = layer.to_float(x) if layer.exact else x
        if _jumps(lambda x: on_floats(sub_layer, x), floats):
            discrete.add(sub_layer.name)
        return evaluate(sub_layer, x)

    streams = split(*layer.standardize_streams(inputs))
    stored = [layer.to_fixed(streams) if layer.exact else streams]
    for block in layer.couplings():
        stored.append(block.couple(stored[-1], probe))
    errors, again = [], stored.pop()
    for block in reversed(layer.couplings()):
        again = block.uncouple(again, evaluate)
        errors.append(
            max(
                _size(ops.subtract(a, b)) / max(_size(b), 1e-30)
                for a, b in zip(again, stored.pop())
            )
        )
    return errors[::-1], sorted(discrete)


def _jumps(fn, x):
    """Whether `fn` jumps somewhere on the way from `x` to a point nearby.

    Of the entry of `fn` that changes most on the way, the half of the way
    with the larger change is followed, ten times. What is left of the change
    of a continuous function is about a thousandth; a jump stays whole.
    """

    def value(x):
        y = nested.flatten(fn(x))
        y = [ops.convert_to_numpy(ops.cast(v, "float32")).ravel() for v in y]
        return np.concatenate(y)

    rng = np.random.default_rng(0)
    away = nested.map_structure(
        lambda x: ops.cast(0.1 * _size(x) * rng.normal(size=x.shape), x.dtype),
        x,
    )

    def at(t):
        return value(nested.map_structure(lambda x, d: x + t * d, x, away))

    left, right, y_left, y_right = 0.0, 1.0, at(0.0), at(1.0)
    followed = np.argmax(np.abs(y_right - y_left))
    whole = abs(y_right[followed] - y_left[followed])
    if whole < 1e-2 * np.max(np.abs(y_left)):
        return False
    for _ in range(10):
        middle = (left + right) / 2
        y = at(middle)
        if abs(y[followed] - y_left[followed]) > abs(
            y_right[followed] - y[followed]
        ):
            right, y_right = middle, y
        else:
            left, y_left = middle, y
    return abs(y_right[followed] - y_left[followed]) > 0.2 * whole


def _compare_gradients(layer, inputs, shared):
    """Return the error of each block, and that of the inputs."""
    params, state = layer.trainable_variables, layer.non_trainable_variables

    def gradient(reversible):
        def fn(param_values, inputs):
            scope = keras.StatelessScope(
                zip(params + state, [*param_values, *values(state)])
            )
            with scope:
                return layer(inputs, training=True, **shared)

        before, layer.reversible = layer.reversible, reversible
        try:
            y, pullback = backend.vjp(fn, values(params), inputs)
            return pullback(y)
        finally:
            layer.reversible = before

    (d_params, d_inputs), random = backend.record_random(lambda: gradient(True))
    with backend.replay_random(random):
        plain_d_params, plain_d_inputs = gradient(False)
    pair_of = {
        id(v): pair for v, *pair in zip(params, d_params, plain_d_params)
    }
    errors = [
        _relative_in_norm([pair_of[id(v)] for v in block.trainable_variables])
        for block in layer.couplings()
    ]
    pairs = zip(nested.flatten(d_inputs), nested.flatten(plain_d_inputs))
    return errors, _relative_in_norm(list(pairs))


def _size(x):
    return float(np.max(np.abs(ops.convert_to_numpy(x).astype("float64"))))


def _relative_in_norm(pairs):
    """The error of all first entries together, relative to the second."""
    error = size = 0.0
    for pair in pairs:
        a, b = (ops.convert_to_numpy(x).astype("float64") for x in pair)
        error += np.sum((a - b) ** 2)
        size += np.sum(b**2)
    return float(np.sqrt(error / max(size, 1e-60)))


def _print(layer, found):
    table = Table(
        "block", "reconstruction error", "gradient error", title=layer.name
    )
    for block, *errors in zip(
        layer.couplings(), found.reconstruction, found.gradient
    ):
        table.add_row(block.name, *[f"{error:.1e}" for error in errors])
    table.add_row("inputs", "", f"{found.inputs:.1e}")
    Console().print(table)
