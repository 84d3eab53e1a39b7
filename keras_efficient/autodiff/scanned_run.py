"""A run of identical blocks as a loop: compiled once, whatever its length.

The first block is traced, and stands for all. The values of the variables of
all blocks are stacked for it, a copy of them that a run without the loop does
not need. Inside of a loop nothing can be moved from the backward to the
forward pass, so there is nothing to hold back either.
"""

from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.reconstruction_check import is_finite
from keras_efficient.autodiff.reversible_run import ReversibleRun
from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split


def scanned_run(
    blocks, inputs, shared, training, axis=None, exact=False, check=None
):
    """Do what `reversible_run` does, for blocks that differ in values only.

    See there for arguments and results. The code of the first block is used
    for all; no two blocks may share a variable that is written.
    """
    loop = Loop(blocks, shared, training, axis, exact, check)
    outputs, losses, updates = backend.recomputed_loop(
        loop, inputs, loop.tape.tensors
    )
    for variable, values in zip(loop.tape.scope.written.values(), updates):
        place = loop.place_of(variable)
        for i, block in enumerate(blocks):
            block.variables[place].assign(values[i])
    for add_loss, loss in zip(loop.tape.takers, losses):
        add_loss(ops.sum(loss))
    return outputs


class Loop:
    """What `backend.recomputed_loop` takes. See `reversible_run`."""

    def __init__(self, blocks, shared, training, axis, exact, check):
        self.blocks = blocks
        self.length = len(blocks)
        self.axis = axis
        self.check = check
        self.tape = _OneBlock(blocks[:1], shared, training, None, exact, None)
        self.places = {id(v): i for i, v in enumerate(blocks[0].variables)}

    def enter(self, inputs):
        """Turn the inputs of the run into the streams of the first block."""
        return self.tape.pack(self.tape.write(split(inputs, self.axis)))

    def leave(self, streams):
        """Turn the streams of the last block into the outputs of the run."""
        return join(self.tape.read(self.tape.unpack(streams)), self.axis)

    def enter_cotangents(self, d_outputs):
        return split(d_outputs, self.axis)

    def leave_cotangents(self, d_streams):
        return join(d_streams, self.axis)

    def keep(self, first, last):
        """Return what `compare` needs of the first and the last streams."""
        return self.check and (self.check.keep(first), is_finite(last))

    def compare(self, seen, streams, gradients):
        """Compare reconstructed streams; return what becomes of gradients."""
        if not self.check:
            return gradients
        samples, finite = seen
        failed = self.check.failed(samples, streams)
        alarm = self.check.sound([failed], finite)
        if alarm is None:
            return gradients
        return self.check.mark(gradients, alarm)

    def values_of_sources(self):
        """List the values of each source, one for each block."""
        tables = [block.variables for block in self.blocks]
        return [
            [
                backend.as_tensor(table[self.place_of(variable)].value)
                for table in tables
            ]
            for variable in self.tape.variables_of_sources
        ]

    def place_of(self, variable):
        """Where the variable is in the list of those of its block."""
        if id(variable) in self.places:
            return self.places[id(variable)]
        raise ValueError(
            "`scan=True` compiles the first block for all of them, so that "
            "they may read and write variables of their own only. Block "
            f"'{self.blocks[0].name}' also reads "
            + ("a tensor" if variable is None else f"'{variable.path}'")
            + ", which is none of them. Pass it as `context`, or use "
            "`scan=False`."
        )


class _OneBlock(ReversibleRun):
    """The tape of the first block, from streams to streams."""

    gates = False

    def __init__(self, *args):
        super().__init__(*args)
        self.keeps_outputs = True  # the streams, whatever their dtype

    def forward(self, streams, tensors):
        block = self.blocks[0]
        outputs = self.forward_of(block, streams, self.share(tensors))
        for entry in self.entries:
            for _, name in entry.call.attributes.places:
                raise ValueError(
                    f"`scan=True` cannot hand out what block '{block.name}' "
                    f"leaves in an attribute, `{name}`. Return it, hand a "
                    "loss to `add_loss`, or use `scan=False`."
                )
        return outputs
