"""How a call is captured and a run recomputed, on JAX."""

import contextlib

import jax
import jax.numpy as jnp
from jax.experimental.sparse import JAXSparse
from jax.extend import core

from keras_efficient.backend.jax import is_float
from keras_efficient.backend.jax import segment

gradients_flow_through_assignments = True


def place():
    return contextlib.nullcontext


def is_dense(x):
    return not isinstance(x, JAXSparse)


def is_traced(x):
    """Whether `x` may depend on something, or is a constant."""
    return isinstance(x, jax.core.Tracer)


def is_concrete(x):
    return not is_traced(x)


def as_tensor(value):
    return value


def stopped(variable, live):
    return live  # a constant of the trace, by which it is found


def copied(x):
    return x


def needs_gradient(variable, live):
    return True  # or at least to be hidden from XLA, as seeds are


stop_gradient = jax.lax.stop_gradient


def link(leaf, value):
    return value


class Capture:
    """Run a call, and find out what it reads.

    It is traced to a program, whose constants are all that it closes over:
    variables and tensors alike. The program is what is run, now and again.

    Args:
        call: A `keras_efficient.autodiff.capture.Call`.
        tensors: List of its arguments.
        record: A `Record`, to be entered.

    Attributes:
        results: What the call returned.
        reads: What it read.
        natives: List of live tensors; none here.
    """

    natives = ()

    def __init__(self, call, tensors, record):
        closed = jax.make_jaxpr(lambda *x: call(list(x), record))(*tensors)
        self.jaxpr = closed.jaxpr
        self.reads = closed.consts
        self.results = self.replay(tensors, _when_there(self.reads, tensors))

    def replay(self, tensors, reads):
        closed = core.ClosedJaxpr(self.jaxpr, reads)
        return list(core.jaxpr_as_fun(closed)(*tensors))

    def vjp(self, tensors, reads, needed, wanted):
        """Repeat the call, to be differentiated.

        Args:
            tensors: Arguments.
            reads: What it read.
            needed: For each of `reads`, whether it needs a gradient.
            wanted: For each result, whether it may have a cotangent.

        Returns:
            The results, and a function from their cotangents (`None` is zero)
            to lists of those of tensors and of reads, to be called once.
        """
        values = [*tensors, *reads]
        needed = [True] * len(tensors) + needed
        places = [
            i
            for i, (x, need) in enumerate(zip(values, needed))
            if need and is_float(x)
        ]

        def fn(inputs):
            given = list(values)
            for i, x in zip(places, inputs):
                given[i] = x
            n = len(tensors)
            results = self.replay(given[:n], given[n:])
            flowing = [
                y for y, want in zip(results, wanted) if want and is_float(y)
            ]
            return flowing, results

        flowing, pull, results = jax.vjp(
            fn, [values[i] for i in places], has_aux=True
        )
        flow = [want and is_float(y) for y, want in zip(results, wanted)]

        def pullback(cotangents):
            ds = [d for d, flows in zip(cotangents, flow) if flows]
            ds = [
                jnp.zeros_like(y) if d is None else d
                for y, d in zip(flowing, ds)
            ]
            found = [None] * len(values)
            for i, d in zip(places, pull(ds)[0]):
                found[i] = d
            return found[: len(tensors)], found[len(tensors) :]

        return results, pullback


def _when_there(reads, tensors):
    """Return `reads`, seeds among them not before `tensors` are there.

    Left alone, XLA draws the random numbers of all layers at the start.
    """
    seeds = [x for x in reads if not is_float(x)]
    if not seeds:
        return reads
    seeds = iter(segment(lambda *x: x, *seeds, after=tensors))
    return [x if is_float(x) else next(seeds) for x in reads]
