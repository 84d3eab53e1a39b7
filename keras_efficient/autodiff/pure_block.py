"""A block as pure functions of the values of its variables."""

import keras
from keras import ops

from keras_efficient.autodiff.fixed_point import FixedPoint
from keras_efficient.autodiff.functional_call import FunctionalLayer
from keras_efficient.autodiff.replay import Replay
from keras_efficient.backend import nested


class PureBlock:
    """One block of a run, forward and backward.

    Args:
        block: A built layer with `couple`, `pull_back`, `standardize` and
            `keeps_inputs`, see `keras_efficient.layers.ReversibleLayer`.
        options: Dictionary of call arguments for sub-layers that are not
            tensors, among them `"training"`.
        exact: Whether streams are fixed-point integers.
    """

    def __init__(self, block, options, exact=False):
        self.block = block
        self.options = options
        self.exact = exact
        self.params = block.trainable_variables
        self.state = block.non_trainable_variables
        # Sub-layers in the order of their calls, once `forward` has run.
        self.called = []
        self._functional = {}

    def forward(self, shared, params, state, streams):
        """Run the block and note what it takes to run it again.

        Args:
            shared: Dictionary of call arguments for sub-layers.
            params: Values of `self.params`.
            state: Values of `self.state`.
            streams: What `couple` takes.

        Returns:
            `(streams, losses, updates, kept)`. `losses` has one entry for
            each call of a sub-layer; `updates` maps positions in `state` to
            new values; `kept` is for `backward`.
        """
        scope = keras.StatelessScope(
            zip(self.params + self.state, [*params, *state]),
            collect_losses=True,
        )
        before = [scope.get_current_value(v) for v in self.state]
        self.called, losses, records = [], [], []

        def evaluate(layer, x):
            functional = self._functional_layer(layer)
            y, added, record = functional.record(scope, self.read(x), shared)
            self.called.append(functional)
            losses.append(added)
            records.append(record)
            return self.write(self.block.standardize(y))

        inputs = streams if self.block.keeps_inputs else ()
        with scope:
            streams = self.block.couple(self.unpack(streams), evaluate)
        after = [scope.get_current_value(v) for v in self.state]
        updates = {
            i: new
            for i, (old, new) in enumerate(zip(before, after))
            if new is not old
        }
        own = set(map(id, self.own_state))
        own = [old for v, old in zip(self.state, before) if id(v) in own]
        return self.pack(streams), losses, updates, (own, records, inputs)

    def backward(self, shared, params, kept, outputs, d_losses, d_outputs):
        """Return the inputs and the cotangents of all that led to them.

        Args:
            shared: Dictionary of call arguments for sub-layers.
            params: Values of `self.params`.
            kept: As from `forward`.
            outputs: Streams, as from `forward`.
            d_losses: Cotangents of the losses.
            d_outputs: Cotangents of the streams.

        Returns:
            `(streams, d_streams, d_params, d_shared)`.
        """
        own_state, records, inputs = kept
        layers = [functional.layer for functional in self.called]
        calls = zip(layers, zip(self.called, records, d_losses))
        replay = Replay(self, params, own_state, calls, shared)
        known = inputs if self.block.keeps_inputs else outputs
        streams, d_streams = replay.pull_back(self.unpack(known), d_outputs)
        d_params = [
            replay.d_params[id(v)]
            if id(v) in replay.d_params
            else ops.zeros_like(p)
            for v, p in zip(self.params, params)
        ]
        return self.pack(streams), d_streams, d_params, replay.d_shared

    @property
    def own_params(self):
        """Trainable variables of the block that no sub-layer has."""
        return _without(self.params, [f.params for f in self.called])

    @property
    def own_state(self):
        return _without(self.state, [f.state for f in self.called])

    def read(self, streams):
        """What sub-layers see of streams."""
        if not self.exact:
            return streams
        dtype = self.block.compute_dtype
        return nested.map_structure(lambda x: x.floats(dtype), streams)

    def write(self, y):
        """What streams take up of the output of a sub-layer."""
        return nested.map_structure(FixedPoint.of, y) if self.exact else y

    def pack(self, streams):
        """Streams as tensors, to be handed on to the next block."""
        if not self.exact:
            return streams
        return nested.map_structure(lambda x: x.values, streams)

    def unpack(self, tensors):
        """Undo `pack`."""
        if not self.exact:
            return tensors
        return nested.map_structure(FixedPoint, tensors)

    def _functional_layer(self, layer):
        if id(layer) not in self._functional:
            self._functional[id(layer)] = FunctionalLayer(layer, self.options)
        return self._functional[id(layer)]


def _without(variables, groups):
    taken = {id(v) for group in groups for v in group}
    return [v for v in variables if id(v) not in taken]
