"""What a training step holds in memory, on JAX."""

import collections
import math

import jax
from jax.extend import core

from keras_efficient.backend import labels


def label(name):
    """Give what is computed within to `name`."""
    return jax.named_scope(labels.marked(name))


def saved_bytes(fn, params, inputs):
    """Count the temporary bytes of the compiled gradient of `sum(fn)`.

    Inside one XLA program there is no line between forward and backward:
    this is the peak of everything that is neither an input nor an output.
    """
    gradient = jax.jit(_gradient_of(fn))
    memory, _ = _compile(gradient, params, inputs)
    return memory.temp_size_in_bytes


def saved_bytes_by_label(fn, params, inputs):
    """Count the bytes of the residuals of `jax.vjp` by label.

    These are what differentiation asks to keep, before XLA joins operations
    and computes some of it again.
    """

    def residuals(params, inputs):
        return jax.vjp(lambda params: fn(params, inputs), params)[1]

    jaxpr = jax.make_jaxpr(residuals)(params, inputs).jaxpr
    names = {
        variable: labels.find(str(equation.source_info.name_stack))
        for equation in jaxpr.eqns
        for variable in equation.outvars
    }
    counts = collections.Counter()
    # Literals have a value.
    for variable in {x for x in jaxpr.outvars if not hasattr(x, "val")}:
        if variable in names:  # neither a parameter nor a constant
            aval = variable.aval
            counts[names[variable]] += aval.size * aval.dtype.itemsize
    return dict(counts)


def products_by_label(fn, params, inputs):
    """Count the multiplications of products and convolutions in `fn`."""
    counts = collections.Counter()
    jaxpr = jax.make_jaxpr(fn)(params, inputs).jaxpr
    for equation, names, times in _equations(jaxpr):
        counts[labels.find(names)] += times * _products(equation)
    return dict(counts)


def _equations(jaxpr, names="", times=1):
    """Yield equations without programs inside, their names, how often."""
    for equation in jaxpr.eqns:
        stack = f"{names}/{equation.source_info.name_stack}"
        inner = [
            getattr(x, "jaxpr", x)
            for x in jax.tree_util.tree_leaves(equation.params)
            if isinstance(x, (core.Jaxpr, core.ClosedJaxpr))
        ]
        for program in inner:
            again = times * equation.params.get("length", 1)
            yield from _equations(program, stack, again)
        if not inner:
            yield equation, stack, times


def _products(equation):
    name, params = equation.primitive.name, equation.params
    sizes = [x.aval.shape for x in (*equation.invars, *equation.outvars)]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        each = math.prod(sizes[0][axis] for axis in contracted)
    elif name == "conv_general_dilated":
        outputs = params["dimension_numbers"].rhs_spec[0]
        each = math.prod(sizes[1]) // sizes[1][outputs]
    else:
        return 0
    return math.prod(sizes[-1]) * each


def peak_bytes(fn, params, inputs, release=False):
    """Count the bytes of a compiled step that overwrites the parameters.

    With the update in the same program, XLA need not hold all gradients at
    once, whatever `release` says.
    """
    gradient_of = _gradient_of(fn)

    def step(params, inputs):
        gradients = gradient_of(params, inputs)
        return jax.tree_util.tree_map(jax.numpy.subtract, params, gradients)

    jitted = jax.jit(step, donate_argnums=0)
    memory, jaxpr = _compile(jitted, params, inputs)
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + new + _workspace(jaxpr)


# Convolutions with smaller kernels take no copy of what they read.
_LARGE_KERNEL = 4096


def _workspace(jaxpr):
    """Estimate what convolutions take that is not in XLA's plan, on a CPU.

    They copy what they read, padded: the image, and in the gradient of a
    kernel, which is a convolution of two images, the other one, too. One runs
    at a time. (As measured with jaxlib 0.10.)
    """
    if jax.default_backend() != "cpu":
        return 0
    found = [0]
    for equation, _, _ in _equations(jaxpr):
        if equation.primitive.name != "conv_general_dilated":
            continue
        image, kernel = (x.aval for x in equation.invars)
        numbers = equation.params["dimension_numbers"]
        sizes = list(image.shape)
        for axis, (low, high) in zip(
            numbers.lhs_spec[2:], equation.params["padding"]
        ):
            sizes[axis] += max(low, 0) + max(high, 0)
        padded = math.prod(sizes) * image.dtype.itemsize
        windows = math.prod(kernel.shape[i] for i in numbers.rhs_spec[2:])
        result = equation.outvars[0].aval.shape
        places = math.prod(result[i] for i in numbers.out_spec[2:])
        if windows > places:
            found.append(padded + kernel.size * kernel.dtype.itemsize)
        elif kernel.size > _LARGE_KERNEL:
            found.append(padded)
    return max(found)


def _gradient_of(fn):
    def total(params, inputs):
        outputs = jax.tree_util.tree_leaves(fn(params, inputs))
        return sum(output.sum() for output in outputs)

    return jax.grad(total)


def _compile(jitted, params, inputs):
    """Return what the compiled function takes, and its jaxpr."""
    # Machine code that is not made better takes the same memory.
    options = {"xla_backend_optimization_level": 0}
    if jax.default_backend() == "cpu":
        options["xla_llvm_disable_expensive_passes"] = True
    else:
        options = None
    traced = jitted.trace(params, inputs)
    compiled = traced.lower().compile(compiler_options=options)
    return compiled.memory_analysis(), traced.jaxpr.jaxpr


def drop_gradients():
    """Do nothing: a program has no gradients but its own."""


def update_bytes(prepare):
    """Return `None`: `peak_bytes` is of a program with an update in it."""
    return None
