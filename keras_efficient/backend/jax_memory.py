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
    return _compile(gradient, params, inputs).temp_size_in_bytes


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

    def add(jaxpr, names, times):
        for equation in jaxpr.eqns:
            stack = f"{names}/{equation.source_info.name_stack}"
            inner = [
                getattr(x, "jaxpr", x)
                for x in jax.tree_util.tree_leaves(equation.params)
                if isinstance(x, (core.Jaxpr, core.ClosedJaxpr))
            ]
            for program in inner:
                add(program, stack, times * equation.params.get("length", 1))
            if not inner:
                counts[labels.find(stack)] += times * _products(equation)

    add(jax.make_jaxpr(fn)(params, inputs).jaxpr, "", 1)
    return dict(counts)


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


def peak_bytes(fn, params, inputs):
    """Count the bytes of a compiled step that overwrites the parameters.

    With the update in the same program, XLA need not hold all gradients at
    once.
    """
    gradient_of = _gradient_of(fn)

    def step(params, inputs):
        gradients = gradient_of(params, inputs)
        return jax.tree_util.tree_map(jax.numpy.subtract, params, gradients)

    memory = _compile(jax.jit(step, donate_argnums=0), params, inputs)
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + new


def _gradient_of(fn):
    def total(params, inputs):
        outputs = jax.tree_util.tree_leaves(fn(params, inputs))
        return sum(output.sum() for output in outputs)

    return jax.grad(total)


def _compile(jitted, params, inputs):
    # Machine code that is not made better takes the same memory.
    options = {"xla_backend_optimization_level": 0}
    if jax.default_backend() == "cpu":
        options["xla_llvm_disable_expensive_passes"] = True
    else:
        options = None
    lowered = jitted.lower(params, inputs)
    return lowered.compile(compiler_options=options).memory_analysis()


def update_bytes(prepare):
    """Return `None`: `peak_bytes` is of a program with an update in it."""
    return None
