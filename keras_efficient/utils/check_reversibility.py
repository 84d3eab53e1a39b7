import math
import warnings

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.table import Table

from keras_efficient import backend
from keras_efficient.autodiff.capture import call_arguments
from keras_efficient.autodiff.fixed_point import FixedPoint
from keras_efficient.autodiff.fixed_point import to_floats
from keras_efficient.autodiff.fixed_point import to_kind
from keras_efficient.backend import nested
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.run_blocks import split_streams
from keras_efficient.layers.reversible.sub_layers import shared_arguments
from keras_efficient.utils import reversibility
from keras_efficient.utils.discrete_choices import jumps
from keras_efficient.utils.reversibility import Reversibility
from keras_efficient.utils.sizes import largest

# What a pass allows where all sub-layers return float32, and where some
# return 16 bits.
_LIMIT, _LIMIT_16_BITS = 1e-3, 3e-2


def check_reversibility(layer, inputs, context=None, mask=None):
    """Measure how well a layer recomputes its activations, and give a verdict.

    The blocks run forward, in inference mode, and are then undone one after
    the other, each from what the one behind it gave back, as in the backward
    pass. The gradient of `sum(outputs ** 2) / 2` in training mode is compared
    with that of the plain twin, which stores its activations: the gradient of
    the inputs and of all that is trainable, whoever owns it, as a training
    step gets it. (On JAX, of the variables of the layer.)

    Errors around 1e-6 to 1e-4 are rounding, and grow slowly with depth. Larger
    ones point to an `uncouple` that does not fit its `couple`, or to a scale or
    momentum too small for the depth. Or a sub-layer answers to a change in the
    last bit: a rounding, a top-k or an argmax turns out differently in the
    recomputation now and then. Such sub-layers are looked for, with small
    changes of their inputs, and reported by a warning.

    The check passes if no error is above 1e-3 (3e-2 where a layer computes in
    16 bits). Of other layers with an `inverse`, such as invertible layers
    and resamplings, `inverse(layer(inputs))` is compared with the inputs; they
    store their activations, so their gradients are those of Keras.

    Args:
        layer: A built layer with a method `inverse`. It is not changed.
        inputs: As in its call: array or tensor, or a list of streams.
        context: As in its call.
        mask: As in its call.

    Returns:
        A named tuple of the figures in the table and the verdict:
        `reconstruction` and `gradient`, lists with one entry a block,
        `inputs`, the error of the gradient of the inputs, `discrete`, names of
        sub-layers, `passed`, a boolean, and `reason`, a string that says why
        it failed and what to do.

    Raises:
        TypeError: `layer` has no `inverse`.
        ValueError: `layer` is not built.

    Example:

    ```python
    block = keras_efficient.layers.AdditiveCoupling(keras.layers.Dense(8))
    run = keras_efficient.layers.ReversibleSequence([block])
    x = keras.random.normal((4, 16))
    run(x)
    found = keras_efficient.utils.check_reversibility(run, x)
    assert found.passed, found.reason
    ```
    """
    if not isinstance(layer, keras.layers.Layer) or not callable(
        getattr(layer, "inverse", None)
    ):
        raise TypeError(
            "`layer` must be a layer with a method `inverse`, such as a "
            f"`keras_efficient.layers.ReversibleSequence`. Received: {layer} "
            f"(of type {type(layer)}). Pass the layer, not the model around it."
        )
    if not layer.built:
        raise ValueError(
            f"Layer '{layer.name}' has to be built. Call it on inputs once."
        )
    inputs = nested.map_structure(ops.convert_to_tensor, inputs)
    if isinstance(layer, ReversibleLayer):
        found = _of_a_run(layer, inputs, shared_arguments(None, context, mask))
    else:
        found = _of_an_inverse(layer, inputs)
    _print(layer, found)
    if found.discrete:
        warnings.warn(
            f"Sub-layers {found.discrete} jump where their inputs change by a "
            "little: they make discrete choices (rounding, top-k, argmax), "
            "and rounding errors of the reconstruction flip some of them. "
            "Use `ReversibleSequence(..., exact=True)`, which reconstructs "
            "bit for bit, or keep these layers out of the run.",
            stacklevel=2,
        )
    return found


def _of_a_run(layer, inputs, shared):
    reconstruction, discrete, limit = _reconstruct(layer, inputs, shared)
    gradient, others, d_inputs = _compare_gradients(layer, inputs, shared)
    names = [block.name for block in layer.couplings()]
    problems = [
        (_far(reconstruction, limit), names, reversibility.RECONSTRUCTION),
        (
            [math.isnan(error) for error in gradient],
            names,
            reversibility.NO_GRADIENT,
        ),
        (_far(gradient, limit), names, reversibility.GRADIENT),
        (_far([others], limit), ["others"], reversibility.OTHERS),
        (_far([d_inputs], limit), ["inputs"], reversibility.INPUTS),
        ([not layer.exact] * len(discrete), discrete, reversibility.DISCRETE),
    ]
    # A reconstruction is undone from the last block on.
    reason = next(
        (
            text.format(name=[n for n, bad in zip(names, found) if bad][-1])
            for found, names, text in problems
            if any(found)
        ),
        "",
    )
    return Reversibility(
        reconstruction, gradient, d_inputs, discrete, not reason, reason
    )


def _of_an_inverse(layer, inputs):
    outputs = layer(inputs)
    again = layer.inverse(outputs)
    error = _relative(nested.flatten(again), nested.flatten(inputs))
    reason = ""
    if error > _limit([outputs, again]):
        reason = reversibility.INVERSE.format(name=layer.name)
    return Reversibility([error], [], None, [], not reason, reason)


def _far(errors, limit):
    return [error > limit or error == math.inf for error in errors]


def _limit(tensors):
    dtypes = [
        keras.backend.standardize_dtype(x.dtype)
        for x in nested.flatten(tensors)
    ]
    short = any(dtype in ("bfloat16", "float16") for dtype in dtypes)
    return _LIMIT_16_BITS if short else _LIMIT


def _reconstruct(layer, inputs, shared):
    """Return the error of each block, discrete sub-layers, and the limit."""
    kind, dtype = FixedPoint if layer.exact else None, layer.compute_dtype
    evaluate = layer.evaluator(shared, training=False, kind=kind)
    on_floats = layer.evaluator(shared, training=False)
    discrete, limits = set(), [_LIMIT]

    def probe(sub_layer, x):
        floats = to_floats(x, kind, dtype)
        known = call_arguments(sub_layer, floats, shared)
        limits.append(_limit(sub_layer(floats, **known, training=False)))
        if jumps(lambda x: on_floats(sub_layer, x), floats):
            discrete.add(sub_layer.name)
        return evaluate(sub_layer, x)

    streams = split_streams(layer, inputs)
    stored = [to_kind(streams, kind)]
    for block in layer.couplings():
        stored.append(block.couple(stored[-1], probe))
    errors, again = [], stored.pop()
    for block in reversed(layer.couplings()):
        again = block.uncouple(again, evaluate)
        errors.append(
            _relative(
                to_floats(again, kind, dtype),
                to_floats(stored.pop(), kind, dtype),
            )
        )
    return errors[::-1], sorted(discrete), max(limits)


def _compare_gradients(layer, inputs, shared):
    """Return the errors of blocks, of other variables and of the inputs."""

    def gradients(reversible):
        before, layer.reversible = layer.reversible, reversible
        try:
            return backend.leaf_gradients(
                layer, lambda x: layer(x, training=True, **shared), inputs
            )
        finally:
            layer.reversible = before

    (ours, d_inputs), random = backend.record_random(lambda: gradients(True))
    with backend.replay_random(random):
        plain, plain_d_inputs = gradients(False)

    def error(keys):
        keys = keys & plain.keys()
        pairs = [(ours.get(key, 0.0), plain[key]) for key in keys]
        if keys and not any(largest(b) for _, b in pairs):
            return math.nan
        return _relative_in_norm(pairs)

    of_blocks = [backend.leaves(block) for block in layer.couplings()]
    others = error(plain.keys() - set().union(*of_blocks))
    pairs = zip(nested.flatten(d_inputs), nested.flatten(plain_d_inputs))
    pairs = [pair for pair in pairs if pair[1] is not None]
    return list(map(error, of_blocks)), others, _relative_in_norm(pairs)


def _relative(again, before):
    """Return the largest error of tensors relative to their largest entry.

    What padding has added to `again` is not looked at.
    """
    errors = []
    for a, b in zip(again, before, strict=True):
        a = a[tuple(slice(n) for n in b.shape)]
        if a.shape != b.shape:
            return math.inf
        a, b = (ops.cast(x, "float32") for x in (a, b))
        error = largest(ops.subtract(a, b)) / max(largest(b), 1e-30)
        errors.append(math.inf if math.isnan(error) else error)
    return max(errors)


def _relative_in_norm(pairs):
    """Return the error of all first entries, relative to the second."""
    error = size = 0.0
    for pair in pairs:
        a, b = (ops.convert_to_numpy(x).astype("float64") for x in pair)
        error += np.sum((a - b) ** 2)
        size += np.sum(b**2)
    return float(np.sqrt(error / max(size, 1e-60)))


def _print(layer, found):
    """Print a table of the figures, and the verdict."""
    table = Table(
        "block", "reconstruction error", "gradient error", title=layer.name
    )
    is_run = isinstance(layer, ReversibleLayer)
    blocks = layer.couplings() if is_run else [layer]
    gradient = found.gradient or [None] * len(blocks)
    for block, error, d in zip(blocks, found.reconstruction, gradient):
        table.add_row(block.name, _figure(error), _figure(d))
    table.add_row("inputs", "", _figure(found.inputs))
    console = Console()
    console.print(table)
    verdict = "Passed." if found.passed else f"Failed: {found.reason}"
    console.print(verdict, markup=False, highlight=False, soft_wrap=True)


def _figure(error):
    if error is None:
        return "as in Keras"
    return "none to compare" if math.isnan(error) else f"{error:.1e}"
