"""How a run is recomputed, on JAX."""

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend import core

from keras_efficient.backend.errors import CLOSED_OVER
from keras_efficient.backend.errors import NO_HOST
from keras_efficient.backend.jax import is_float


def recomputed(tape, tensors):
    """Run `tape.trace`, and take its derivative from `tape.backward`.

    Args:
        tape: A `keras_efficient.autodiff.tape.Tape`.
        tensors: List of tensors.

    Returns:
        What `tape.trace` returns.
    """
    program = Program(tape, tensors)

    @jax.custom_vjp
    def node(sources, others, tensors):
        return program.evaluate(sources, others, tensors)[0]

    def forward(sources, others, tensors):
        needed, sources, others, tensors = without_marks(
            sources, others, tensors
        )
        results, kept = program.evaluate(sources, others, tensors)
        outputs, given = tape.hand_over(results, tensors)
        return results, (needed, outputs, sources, given, kept)

    def pull_back(residuals, d_results):
        needed, outputs, sources, given, kept = residuals
        d_results = list(map(cotangent, d_results))
        backward = tape.backward(outputs, given, kept, needed.value, d_results)
        d_sources = backward.walk(sources)
        others = [None] * len(program.others)
        return d_sources, others, backward.arguments()

    node.defvjp(forward, pull_back, symbolic_zeros=True)
    return node(program.sources, program.others, list(tensors))


class Program:
    """What `tape.trace` does, as a function of all that it takes.

    Args:
        tape: A `keras_efficient.autodiff.tape.Tape`.
        tensors: List of tensors, or of their shapes and dtypes.

    Attributes:
        sources: List of those of the tape; `None` where it is not used.
        others: List of the constants that are no sources.
    """

    def __init__(self, tape, tensors):
        def trace(*tensors):
            results = tape.trace(list(tensors))
            self.count = len(results)
            return [*results, *tape.kept]

        closed = jax.make_jaxpr(trace)(*tensors)
        self.jaxpr = closed.jaxpr
        number = {id(x): k for k, x in enumerate(tape.sources)}
        used = {id(x) for x in closed.consts}
        self.sources = [x if id(x) in used else None for x in tape.sources]
        self.others = [x for x in closed.consts if id(x) not in number]
        self.order = [number.get(id(x)) for x in closed.consts]
        tape.kept = tape.sources = None

    def evaluate(self, sources, others, tensors):
        """Return the results, and what is kept for the backward pass."""
        others = iter(others)
        consts = [next(others) if k is None else sources[k] for k in self.order]
        closed = core.ClosedJaxpr(self.jaxpr, consts)
        found = list(core.jaxpr_as_fun(closed)(*tensors))
        return found[: self.count], found[self.count :]


def without_marks(sources, others, tensors):
    """Take off the marks of `symbolic_zeros`.

    Returns:
        For each source whether it needs a gradient, and the values of all.
    """
    if any(x.perturbed for x in others):
        raise ValueError(CLOSED_OVER)
    needed = Static(x is not None and x.perturbed for x in sources)
    values = jax.tree_util.tree_map(
        lambda x: x.value,
        (sources, others, tensors),
        is_leaf=lambda x: hasattr(x, "perturbed"),
    )
    return needed, *values


def cotangent(d):
    """Return a cotangent, or `None` if it is zero because of its dtype or of
    what depends on it."""
    is_zero = isinstance(d, SymbolicZero) or not is_float(d)
    return None if is_zero else d


@jax.tree_util.register_static
class Static:
    """What is known while tracing, among tensors."""

    def __init__(self, value):
        self.value = tuple(value)

    def __eq__(self, other):
        return self.value == other.value

    def __hash__(self):
        return hash(self.value)


def to_host(x):
    if jax.default_backend() != "cpu":
        raise NotImplementedError(NO_HOST.format("JAX"))
    return x, lambda x: x
