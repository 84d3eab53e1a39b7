"""How a run of equal blocks is recomputed in a loop, on JAX."""

import jax
import jax.numpy as jnp

from keras_efficient.backend import nested
from keras_efficient.backend.jax import is_float
from keras_efficient.backend.jax_recompute import Program
from keras_efficient.backend.jax_recompute import cotangent
from keras_efficient.backend.jax_recompute import without_marks


def recomputed_loop(loop, inputs, tensors):
    """Run `loop.tape` over and over, on the values of one block at a time.

    Args:
        loop: A `keras_efficient.autodiff.scanned_run.Loop`.
        inputs: Nested structure of tensors.
        tensors: List of tensors that all blocks take.

    Returns:
        `(outputs, losses, updates)`; the last two are lists of tensors, with
        one entry for each block along a leading axis.
    """
    tape = loop.tape
    streams = jax.eval_shape(loop.enter, inputs)
    structure, count = nested.skeleton(streams), len(nested.flatten(streams))
    tape.arguments = nested.skeleton((streams, list(tensors)))
    program = Program(tape, [*nested.flatten(streams), *tensors])
    stacked = [
        None if x is None else _stack(values)
        for x, values in zip(program.sources, loop.values_of_sources())
    ]

    def run(stacked, others, inputs, tensors):
        def step(streams, sources):
            results, kept = program.evaluate(
                sources, others, [*streams, *tensors]
            )
            return results[:count], (results[count:], kept)

        first = nested.flatten(loop.enter(inputs))
        streams, (more, kept) = jax.lax.scan(
            step, first, stacked, length=loop.length
        )
        outputs = loop.leave(nested.pack(structure, streams))
        seen = loop.keep(first, streams)
        return (outputs, more), (streams, kept, seen)

    @jax.custom_vjp
    def node(*args):
        return run(*args)[0]

    def forward(stacked, others, inputs, tensors):
        needed, stacked, others, (inputs, tensors) = without_marks(
            stacked, others, (inputs, tensors)
        )
        results, kept = run(stacked, others, inputs, tensors)
        return results, (needed, stacked, tensors, kept)

    def pull_back(residuals, d_results):
        needed, stacked, tensors, (streams, kept, seen) = residuals
        d_outputs, d_more = d_results
        d_streams = nested.flatten(
            loop.enter_cotangents(nested.map_structure(_dense, d_outputs))
        )

        def step(carry, values):
            streams, d_streams, d_tensors = carry
            sources, kept, d_more = values
            backward = tape.backward(
                streams,
                [None] * count + tensors,
                kept,
                needed.value,
                [*d_streams, *d_more],
            )
            d_sources = backward.walk(sources)
            d_arguments = backward.arguments()
            d_tensors = [
                d if new is None else d + new
                for d, new in zip(d_tensors, d_arguments[count:])
            ]
            streams = nested.flatten(backward.streams)
            return (streams, d_arguments[:count], d_tensors), d_sources

        zeros = [jnp.zeros_like(x) if is_float(x) else None for x in tensors]
        (streams, d_streams, d_tensors), d_stacked = jax.lax.scan(
            step,
            (streams, d_streams, zeros),
            (stacked, kept, list(map(cotangent, d_more))),
            reverse=True,
            length=loop.length,
        )
        d_stacked = loop.compare(seen, streams, d_stacked)
        d_inputs = loop.leave_cotangents(nested.pack(structure, d_streams))
        return d_stacked, [None] * len(program.others), d_inputs, d_tensors

    node.defvjp(forward, pull_back, symbolic_zeros=True)
    outputs, more = node(stacked, program.others, inputs, tensors)
    losses = tape.counts[1]
    return outputs, more[:losses], more[losses:]


def _stack(values):
    """Stack tensors, without an operation for each of them."""
    if not values[0].ndim:
        return jnp.stack(values)
    joined = jax.lax.concatenate(values, 0)
    return joined.reshape(len(values), *values[0].shape)


def _dense(d):
    d_or_none = cotangent(d)
    return jnp.zeros(d.shape, d.dtype) if d_or_none is None else d
