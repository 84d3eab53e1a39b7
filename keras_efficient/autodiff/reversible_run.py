"""The walk over a run of reversible blocks.

The forward pass keeps the outputs of the last block and, for each call of a
sub-layer, the few numbers that it changed (batch statistics, seeds). The
backward pass walks the blocks in reverse. There each sub-layer is evaluated
once: the value reconstructs the inputs of its block, the pullback
differentiates it. Forward 1, evaluation 1, pullback 2 units of work: 4,
against 3 for a plain run, at a memory that does not depend on depth.

A block that cannot reconstruct its inputs may keep them (`keeps_inputs`);
its sub-layers are still evaluated anew.
"""

import typing

from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.backward import Backward
from keras_efficient.autodiff.capture import Call
from keras_efficient.autodiff.capture import arguments_of_block
from keras_efficient.autodiff.capture import call_arguments
from keras_efficient.autodiff.fixed_point import FixedPoint
from keras_efficient.autodiff.fixed_point import to_floats
from keras_efficient.autodiff.fixed_point import to_kind
from keras_efficient.autodiff.reconstruction_check import is_finite
from keras_efficient.autodiff.replay import Replay
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.autodiff.tape import Tape
from keras_efficient.backend import nested


def reversible_run(
    blocks,
    inputs,
    shared,
    training,
    axis=None,
    exact=False,
    check=None,
    store=None,
):
    """Run `blocks` over `inputs` without keeping what lies between them.

    Args:
        blocks: Built layers as `keras_efficient.layers.ReversibleLayer`.
        inputs: Nested structure of tensors, what the first block takes; one
            tensor if `axis` is given.
        shared: Dictionary of further call arguments for all sub-layers that
            take them: nested structures of tensors and of anything else.
        training: Python bool, passed on to all sub-layers.
        axis: Integer or `None`. Where to split one tensor into two streams
            for the blocks. (Joined again, they are kept once, as the output.)
        exact: Python bool. Whether blocks see streams as fixed-point
            integers.
        check: `ReconstructionCheck` or `None`.
        store: How the outputs and what blocks keep is stored, one of
            `storage.STORES`.

    Returns:
        The outputs of the last block. Variables have been written, and losses
        added.
    """
    run = ReversibleRun(blocks, shared, training, axis, exact, check, store)
    return run.run((inputs, run.tensors))


class ReversibleRun(Tape):
    """The tape of a run. See `reversible_run` for the arguments."""

    def __init__(
        self, blocks, shared, training, axis, exact, check, store=None
    ):
        variables = {id(v): v for block in blocks for v in block.variables}
        super().__init__(variables.values(), store)
        self.blocks = blocks
        self.shared = shared
        # Tensors are arguments of the run, all else is left where it is.
        self.tensors = [x for x in nested.flatten(shared) if ops.is_tensor(x)]
        self.training = training
        self.axis = axis
        self.kind = FixedPoint if exact else None
        self.check = check
        # For some blocks, where a few of the numbers that they get are kept;
        # and where it is kept whether the outputs are finite.
        self.samples = {}
        self.finite = None
        self.passes = []  # one of each block
        self.last = None
        self.keeps_outputs = not exact and not blocks[-1].keeps_inputs

    def share(self, tensors):
        """Return the arguments for sub-layers, `tensors` among them."""
        tensors = iter(tensors)
        shared, self.shared = self.shared, None
        return nested.map_structure(
            lambda x: next(tensors) if ops.is_tensor(x) else x, shared
        )

    def forward(self, inputs, tensors):
        shared = self.share(tensors)
        streams = self.pack(self.write(split(inputs, self.axis)))
        width = 0
        for i, block in enumerate(self.blocks):
            # Of the first inputs, and of those where streams have been added:
            # what is dropped on the way back leaves no trace in what is before.
            if self.check and len(streams) > width:
                width = len(streams)
                self.samples[i] = self.keep_all(self.check.keep(streams))
            own = arguments_of_block(shared, i)
            streams = self.forward_of(block, streams, own)
        if self.check:
            _, (_, self.finite) = self.keep_all(is_finite(streams))
        if self.kind:
            self.last = self.keep_all(streams, self.keep_activation)
        return join(self.read(self.unpack(streams)), self.axis)

    def forward_of(self, block, streams, shared):
        first = len(self.entries)
        if self.gates:
            # Else XLA has the activations of several blocks alive at once.
            streams = backend.segment(lambda *x: x, *streams)
        inputs = streams
        self.scope.own = {}

        def evaluate(layer, x):
            x = self.read(x)
            known = call_arguments(layer, x, shared)
            known = {**known, "training": self.training}
            call = Call(layer, (x,), known, block.standardize)
            results = self.record(call, len(nested.flatten(x)))
            return self.write(call.results.outputs(results))

        streams = self.pack(block.couple(self.unpack(streams), evaluate))
        self.passes.append(
            Pass(
                block,
                self.entries[first:],
                self.scope.own,
                self.keep_all(inputs, self.keep_activation)
                if block.keeps_inputs
                else None,
            )
        )
        return streams

    def keep_all(self, streams, keep=None):
        """Return the nesting of `streams`, and where each is kept."""
        leaves = nested.flatten(streams)
        return [nested.skeleton(streams), *map(keep or self.keep, leaves)]

    def read(self, streams):
        """What sub-layers see of streams."""
        return to_floats(streams, self.kind, self.blocks[0].compute_dtype)

    def write(self, y):
        """What streams take up of the output of a sub-layer."""
        return to_kind(y, self.kind)

    def pack(self, streams):
        """Streams as tensors, to be handed on to the next block."""
        if self.kind is None:
            return streams
        return nested.map_structure(lambda x: x.values, streams)

    def unpack(self, tensors):
        """Undo `pack`."""
        if self.kind is None:
            return tensors
        return nested.map_structure(self.kind, tensors)

    def references_of_steps(self):
        for one in self.passes:
            # From here on it knows where to find the values.
            for key, (variable, value) in one.own.items():
                one.own[key] = variable, self.reference(value)
            yield [
                *(ref for _, ref in one.own.values()),
                *(ref for entry in one.entries for ref in entry.references()),
                *((slot, None) for slot in (one.inputs or [None])[1:]),
            ]

    def backward(self, *values):
        return _BackwardOfRun(self, *values)


class Pass(typing.NamedTuple):
    """One block of a run, forward.

    Attributes:
        block: The block.
        entries: The calls of its sub-layers, in order.
        own: Dictionary of the variables that it reads itself, and where.
        inputs: The nesting of its inputs and where they are, if it keeps
            them.
    """

    block: object
    entries: list
    own: dict
    inputs: object


class _BackwardOfRun(Backward):
    def __init__(self, run, outputs, given, kept, *values):
        super().__init__(run, given, kept, *values)
        self.failed = []
        self.alarm = None
        d_outputs = [
            ops.zeros(*spec) if d is None else d
            for d, spec in zip(self.d_outputs, run.specs)
        ]
        self.d_streams = split(nested.pack(run.outputs, d_outputs), run.axis)
        self.streams = ()
        if run.last is not None:
            self.streams = self.kept_in(run.last)
        elif run.keeps_outputs:
            slots = [("output", i) for i in range(len(outputs))]
            outputs = self.bring_back(slots, outputs)
            self.streams = split(nested.pack(run.outputs, outputs), run.axis)

    def step(self, step, sources):
        one = self.tape.passes[step]
        keys = [key for entry in one.entries for key in entry.result_keys()]
        waiting = [self.d[key] for key in keys if key in self.d]
        self.streams, self.d_streams = self.begin(
            step,
            sources,
            self.streams,
            self.d_streams,
            after=(self.d_streams, waiting),
        )
        known = self.streams
        if one.inputs is not None:
            structure, *slots = one.inputs
            known = nested.pack(structure, map(self.value, slots))
        replay = Replay(self, one)
        streams, self.d_streams = replay.pull_back(
            self.tape.unpack(known), self.d_streams
        )
        self.streams = self.tape.pack(streams)
        self.compare(step)
        return self.end(step)

    def kept_in(self, places):
        """Undo `ReversibleRun.keep_all`."""
        structure, *slots = places
        kept = [self.kept[i] for _, i in slots]
        return nested.pack(structure, self.bring_back(slots, kept))

    def bring_back(self, slots, values):
        """Undo `put_away`, not before cotangents are there."""
        if self.tape.store is not None:
            values = backend.segment(
                lambda *x: x, *values, after=self.d_streams
            )
        return map(self.tape.bring_back, values, slots)

    def compare(self, step):
        """Compare what has been reconstructed with the samples of it."""
        run = self.tape
        if step in run.samples:
            samples = self.kept_in(run.samples[step])
            self.failed.append(run.check.failed(samples, self.streams))
        if run.check and not step:
            finite = self.kept[run.finite]
            self.alarm = run.check.sound(self.failed, finite)

    def walk(self, sources):
        total = super().walk(sources)
        if self.alarm is not None:
            total = self.tape.check.mark(total, self.alarm)
        return total

    def arguments(self):
        d_inputs = nested.flatten(join(self.d_streams, self.tape.axis))
        return [*d_inputs, *super().arguments()[len(d_inputs) :]]
