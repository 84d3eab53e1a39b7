"""What a training step holds in memory, on TensorFlow."""

import collections
import math

import tensorflow as tf

from keras_efficient.backend import labels

# Operations that hand their input's buffer on, those that ask for no more than
# its shape, and what is there before the first one.
_SAME_BUFFER = ("ExpandDims", "Identity", "IdentityN", "Reshape", "Squeeze")
_SAME_BUFFER += ("StopGradient",)
_SHAPE_ONLY = ("Rank", "Shape", "ShapeN", "Size", "ZerosLike")
_GIVEN = ("Const", "Placeholder")


def label(name):
    """Give what is computed within to `name`."""
    return tf.name_scope(labels.marked(name))


def saved_bytes(fn, params, inputs):
    """Count the bytes that the gradient of `sum(fn)` reads from the forward."""
    return sum(saved_bytes_by_label(fn, params, inputs).values())


def saved_bytes_by_label(fn, params, inputs):
    """Count them by the label in which they were computed.

    Both are traced into one graph. What an operation of the backward part
    reads and an operation of the forward part wrote has to be kept; params,
    inputs and constants are there anyway.
    """
    graph, forward = _trace(fn, params, inputs)
    kept = {}
    for op in graph.get_operations():
        if op.name in forward or op.type in _SHAPE_ONLY:
            continue
        for tensor in map(_buffer, op.inputs):
            if tensor.op.name in forward:
                kept[tensor.name] = tensor
    counts = collections.Counter()
    for tensor in kept.values():
        counts[labels.find(tensor.op.name)] += _size(tensor)
    return dict(counts)


def products_by_label(fn, params, inputs):
    """Count the multiplications of products and convolutions in `fn`."""
    counts = collections.Counter()
    traced = tf.function(fn).get_concrete_function(*_specs(params, inputs))
    for op in traced.graph.get_operations():
        count = _products(op)
        if count:
            counts[labels.find(op.name)] += count
    return dict(counts)


def _products(op):
    if not op.outputs:
        return 0
    sizes = [
        [n or 1 for n in x.shape] if x.shape.rank is not None else []
        for x in (*op.inputs, op.outputs[0])
    ]
    each = 0
    if op.type in ("MatMul", "BatchMatMulV2"):
        name = "transpose_a" if op.type == "MatMul" else "adj_x"
        each = sizes[0][-2 if op.get_attr(name) else -1]
    elif op.type == "Einsum":
        terms, result = op.get_attr("equation").decode().split("->")
        lengths = {}
        for term, shape in zip(terms.split(","), sizes):
            lengths.update(zip(reversed(term), reversed(shape)))
        summed = set(terms) - set(result) - set(",.")
        each = math.prod(lengths.get(x, 1) for x in summed)
    elif op.type in ("Conv2D", "Conv3D"):
        each = math.prod(sizes[1][:-1])
    elif op.type == "DepthwiseConv2dNative":
        each = math.prod(sizes[1][:2])
    return each * math.prod(sizes[-1])


def peak_bytes(fn, params, inputs, release=False):
    """Count the most bytes alive in the gradient of `sum(fn)`, with it.

    `release` changes nothing: all gradients count.

    The operations of the graph are gone through as `_in_order` lists them. A
    buffer lives until the last operation that reads it, which may write into
    it what has its size and is computed entry by entry.
    """
    graph, _ = _trace(fn, params, inputs)
    operations = _in_order(graph)
    last = {}
    for number, op in enumerate(operations):
        if op.type not in _SHAPE_ONLY:
            last.update({_buffer(x).ref(): number for x in op.inputs})
    results = {_buffer(tensor).ref() for tensor in graph.outputs}
    for tensor in results:
        last.pop(tensor, None)  # the result lives on
    ends = collections.defaultdict(int)
    alive = peak = 0
    for tensor, number in last.items():
        ends[number] += _size(tensor.deref())
    for number, op in enumerate(operations):
        own = [x for x in op.outputs if _buffer(x) is x]
        new = sum(map(_size, own))
        taken = 0 if op.type in _NEW_BUFFER else min(new, ends[number])
        alive += new - taken
        peak = max(peak, alive)
        alive -= ends[number] - taken
        # What nobody reads, such as the outputs of what is recomputed.
        alive -= sum(
            _size(x)
            for x in own
            if x.ref() not in last and x.ref() not in results
        )
    return peak


# Their result is not written over what they read.
_NEW_BUFFER = ("BatchMatMulV2", "ConcatV2", "Einsum", "MatMul", "Transpose")
_NEW_BUFFER += ("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput")
_NEW_BUFFER += ("Conv3D", "Conv3DBackpropFilterV2", "Conv3DBackpropInputV2")


def _in_order(graph):
    """List operations as traced, but the gradient of a kernel first.

    It reads the image, which may be gone when that of the image is made.
    """
    operations = list(graph.get_operations())
    for i in range(len(operations) - 1):
        op, following = operations[i : i + 2]
        if "BackpropInput" in op.type and "BackpropFilter" in following.type:
            operations[i : i + 2] = following, op
    return operations


def _trace(fn, params, inputs):
    """Return the graph of the gradient, and the names of forward operations."""
    forward = set()

    @tf.function
    def gradient(params, inputs):
        leaves = tf.nest.flatten(params)
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            outputs = fn(params, inputs)
        graph = tf.compat.v1.get_default_graph()
        forward.update(op.name for op in graph.get_operations())
        return tape.gradient(tf.nest.flatten(outputs), leaves)

    traced = gradient.get_concrete_function(*_specs(params, inputs))
    return traced.graph, forward


def _specs(params, inputs):
    return tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), (params, inputs)
    )


def _buffer(tensor):
    """Return the tensor whose memory a tensor is."""
    while tensor.op.type in _SAME_BUFFER:
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def _size(tensor):
    count = tensor.shape.num_elements()
    if tensor.op.type in _GIVEN or count is None:
        return 0
    return count * tensor.dtype.size


def drop_gradients():
    """Do nothing: a program has no gradients but its own."""
    return None  # AutoGraph takes no function without a statement


def update_bytes(prepare):
    """Return 0: in the program of a step, entries are updated in place."""
    return 0
