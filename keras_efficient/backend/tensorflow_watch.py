"""Find what a call on TensorFlow does that a second call would do otherwise."""

import contextlib
import functools

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import op_callbacks

from keras_efficient.backend.errors import DRAWS
from keras_efficient.backend.errors import WRITES_A_VARIABLE

# Operations without a seed of their own among their inputs, and those that
# write. (Keras draws with `Stateless...`, and its writes are held back.)
_DRAWS = ("Random", "Multinomial", "TruncatedNormal", "Parameterized", "Rng")
_DRAWS += ("StatefulUniform", "StatefulStandard", "StatefulTruncated")
_WRITES = ("Assign", "Resource")
_READS = ("ResourceGather",)
_CALLS = ("PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf")
_CALLS += ("While", "StatelessWhile", "Case", "StatelessCase")


@contextlib.contextmanager
def refuse_unrepeatable(layer):
    """Raise an error if a call of `layer` within draws or writes by itself.

    A random number that TensorFlow draws from a generator of its own would be
    another one in the backward pass; a variable that is written without Keras
    would be written twice. Functions that are called are looked into.

    Raises:
        ValueError: It says what was found, and what to do.
    """
    if tf.executing_eagerly():
        with _look(functools.partial(_check_eager, layer, set())):
            yield
        return
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    yield
    for operation in graph.get_operations()[before:]:
        _check(layer, operation.type)
        if operation.type in _CALLS:
            for name in _functions(operation.node_def):
                _check_function(layer, name)


@contextlib.contextmanager
def _look(callback):
    op_callbacks.add_op_callback(callback)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(callback)


def _check_eager(
    layer, new, op_type, inputs, attrs, outputs, op_name=None, graph=None
):
    op_type = tf.compat.as_str(op_type)
    if op_type == "VarHandleOp":
        new.add(id(outputs[0]))
    elif not (op_type == "AssignVariableOp" and id(inputs[0]) in new):
        _check(layer, op_type)
    if op_type.startswith("__"):  # a function
        _check_function(layer, op_type)


def _check(layer, op_type):
    if op_type.startswith(_DRAWS):
        raise ValueError(DRAWS.format(layer.name, op_type))
    if op_type.startswith(_WRITES) and op_type not in _READS:
        raise ValueError(WRITES_A_VARIABLE.format(layer.name, op_type))


def _check_function(layer, name):
    for op_type in _operations(name):
        _check(layer, op_type)


@functools.cache
def _operations(name):
    """Return the set of types of operations in a function, at any depth."""
    found = set()
    for node in context.context().get_function_def(name).node_def:
        found.add(node.op)
        for inner in _functions(node) if node.op in _CALLS else ():
            found |= _operations(inner)
    return frozenset(found)


def _functions(node):
    """List the names of the functions that a node of a graph calls."""
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for one in value.list.func:
            yield one.name
