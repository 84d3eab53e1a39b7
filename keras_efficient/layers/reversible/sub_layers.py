"""What reversible layers ask of inputs and of the layers inside of them."""

import collections

import keras
from keras import ops

from keras_efficient.autodiff.attributes import without_attributes
from keras_efficient.autodiff.capture import IMPLICIT_MASK
from keras_efficient.autodiff.masks import mask_of
from keras_efficient.backend import nested


def check_sub_layers(**sub_layers):
    """Raise a `TypeError` unless all are Keras layers."""
    for name, layer in sub_layers.items():
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                f"`{name}` must be a `keras.layers.Layer` instance; wrap "
                "several layers in `keras.Sequential`, a function in "
                f"`keras.layers.Lambda`. Received: {name}={layer} (of type "
                f"{type(layer)})"
            )


def check_stream_dtype(layer, blocks):
    """Raise a `ValueError` unless the streams of all have one dtype."""
    other = [b.name for b in blocks if b.compute_dtype != layer.compute_dtype]
    if other:
        raise ValueError(
            f"`blocks` must have streams of one dtype, that of layer "
            f"'{layer.name}', {layer.compute_dtype}. (It is float64 under a "
            "float64 policy, else float32.) Other streams have the blocks "
            f"{other}: build all with the same `dtype`."
        )


def split_shape(layer, shape, size=None):
    """Return the shapes of the parts of a tensor along `layer.axis`.

    Args:
        layer: A reversible layer.
        shape: Tuple.
        size: Integer, of the first part, or a float, its fraction; `None` is
            a half.
    """
    if not -len(shape) <= layer.axis < len(shape) or not (
        layer.axis % len(shape)
    ):
        raise ValueError(
            "`axis` must be an axis of the input other than the batch axis. "
            f"Received: axis={layer.axis}, input_shape={shape}"
        )
    axis = layer.axis % len(shape)
    if shape[axis] is None or shape[axis] < 2:
        raise ValueError(
            f"Layer '{layer.name}' splits its input along axis {layer.axis} "
            "into two streams, so the size of this axis must be known and at "
            f"least 2. Received: input_shape={shape}. Fix the number of "
            "channels, or pass a list of two streams."
        )
    if size is None:
        first = shape[axis] // 2
    else:
        first = round(shape[axis] * size) if isinstance(size, float) else size
    if not 0 < first < shape[axis]:
        raise ValueError(
            f"Layer '{layer.name}' splits {shape[axis]} channels into two "
            f"parts, and none must be empty. Received: a first part of {size}"
        )
    return [
        (*shape[:axis], n, *shape[axis + 1 :])
        for n in (first, shape[axis] - first)
    ]


def is_halved(layer, shape):
    """Whether one tensor of this shape is two equal streams all the way."""
    return layer.split is None and shape[layer.axis] % 2 == 0


def first_size(layer, shape, at_end=False):
    """Return the size of the first stream of one tensor.

    Args:
        layer: A reversible layer.
        shape: Tuple.
        at_end: Boolean, whether `shape` is that of outputs. Half steps with
            streams of two sizes make them change places.
    """
    if is_halved(layer, shape):
        return shape[layer.axis] // 2
    shapes = layer.stream_shapes(tuple(shape))
    if at_end:
        shapes = layer.compute_output_shape(shapes)
    return shapes[0][layer.axis]


def shapes_of_list(layer, shapes):
    """Return the shapes of streams; raise unless there is a list of them."""
    if not (len(shapes) and isinstance(shapes[0], (list, tuple))):
        raise ValueError(
            f"Layer '{layer.name}' takes a list of streams. Received: one "
            f"tensor of shape {tuple(shapes)}. Put it into a list."
        )
    return [tuple(shape) for shape in shapes]


def joined(shapes, axis):
    """Return the shape of streams of these shapes, joined along `axis`."""
    shape = list(shapes[0])
    shape[axis] = sum(other[axis] for other in shapes)
    return tuple(shape)


def pair(layer, shapes, equal=False):
    """Return the shapes of the two streams; raise unless there are two."""
    if len(shapes) != 2 or (equal and not compatible(*shapes)):
        raise ValueError(
            f"Layer '{layer.name}' takes one tensor or a list of two streams"
            + (", both of the same shape" if equal else "")
            + f". Received: streams of shapes {shapes}"
        )
    return shapes


def half_step_shape(layer, shape):
    """Return the shape of the outputs of a coupling with functions f and g.

    Without g the streams have changed places.
    """
    if not isinstance(shape[0], (list, tuple)):
        layer.stream_shapes(shape)
        return shape
    shapes = [tuple(one) for one in shape]
    return shapes if layer.g is not None else shapes[::-1]


def first_of(y):
    """Return what a function adds, of all that it returns."""
    return y[0] if isinstance(y, (list, tuple)) else y


def build_block(block, shapes, arguments_shape):
    """Build a block of a sequence, unless it is built."""
    if block.built:
        return
    # Any second argument says that sub-layers are built later on.
    block.build(shapes, *([] if arguments_shape is None else [arguments_shape]))


def build_with_arguments(layer, inputs, shared):
    """Check that somebody takes them, and build sub-layers with them."""
    masks = "mask", IMPLICIT_MASK
    others = {name: x for name, x in shared.items() if name not in masks}
    lost = [name for name in others if not layer.takes(name)]
    if lost:
        raise ValueError(
            f"No sub-layer of '{layer.name}' has a call argument of the "
            f"name(s) {lost}. Received: {sorted(others)}. Name the "
            "argument as in the `call` of the sub-layer, or leave it out."
        )
    if not others or layer.built_with_arguments:
        return
    shapes = nested.map_structure(lambda x: tuple(x.shape), inputs)
    shared = nested.map_structure(symbol, others)
    with without_attributes(layer):
        layer.build_sub_layers(layer.stream_shapes(shapes), shared)
    layer.built_with_arguments = True


def build_sub_layer(layer, name, input_shape, output_shape, shared):
    """Build `layer.<name>` and check that it keeps to shapes."""
    sub_layer = getattr(layer, name)
    evaluate = layer.evaluator(shared, training=False)
    y = evaluate(sub_layer, layer.symbol(input_shape))
    if not compatible(getattr(y, "shape", None), output_shape):
        raise ValueError(
            f"`{name}` must return one tensor of shape {output_shape} for its "
            f"stream of shape {input_shape}. Layer '{sub_layer.name}' returns "
            f"{getattr(y, 'shape', y)}. Give its last layer that many channels."
        )


def compatible(shape, other):
    """Whether two shapes may be the same; `None` is any size."""
    return (
        shape is not None
        and len(shape) == len(other)
        and all(m == n or None in (m, n) for m, n in zip(shape, other))
    )


def sub_layer_config(**sub_layers):
    serialize = keras.saving.serialize_keras_object
    return {name: serialize(layer) for name, layer in sub_layers.items()}


def serialized(blocks):
    """Return the configurations of blocks, which may share sub-layers.

    What is shared comes once before: Keras marks the first place of an object
    when it meets the second one, and by then has copied what is in a block.
    """
    serialize = keras.saving.serialize_keras_object
    there = [block for block in blocks if block is not None]
    found = [layer for block in there for layer in sub_layers(block)]
    times = collections.Counter(map(id, found))
    for layer in found:
        if times[id(layer)] > 1:
            serialize(layer)
    return [serialize(block) for block in blocks]


def with_sub_layers(config, *names):
    """Return `config` with the named entries turned back into layers."""
    deserialize = keras.saving.deserialize_keras_object
    return {**config, **{name: deserialize(config[name]) for name in names}}


def shared_arguments(inputs, context, mask, others=None):
    """Return the call arguments for sub-layers that there are, as tensors."""
    if isinstance(mask, (list, tuple)):  # one for each stream
        mask = next((m for m in mask if m is not None), None)
    masks = [mask_of(x) for x in nested.flatten(inputs)]
    shared = {
        "context": context,
        "mask": mask,
        IMPLICIT_MASK: next((m for m in masks if m is not None), None),
        **(others or {}),
    }
    return {
        name: nested.map_structure(_tensor, value)
        for name, value in shared.items()
        if value is not None
    }


def _tensor(x):
    if isinstance(x, keras.KerasTensor) or not hasattr(x, "__array__"):
        return x
    return ops.convert_to_tensor(x)


def sub_layers(layer):
    """List the layers that are attributes of a layer, alone or in lists."""
    found, new = {}, list(vars(layer).values())
    while new:
        value = new.pop()
        if isinstance(value, keras.layers.Layer):
            found[id(value)] = value
        elif isinstance(value, dict):  # PyTorch has its modules in one
            new += value.values()
        elif isinstance(value, (list, tuple)):
            new += value
    return list(found.values())


def symbol(x):
    has_shape = hasattr(x, "shape") and hasattr(x, "dtype")
    return keras.KerasTensor(x.shape, x.dtype) if has_shape else x
