"""What layers share that go on from the statistics of training data."""

import keras

from keras_efficient.layers.normalization.base_normalization import (
    BaseNormalization,
)


class SourceStatistics(BaseNormalization):
    """Hold the weights of a `keras.layers.BatchNormalization`.

    Its moving statistics stay as they are, those of the training data, the
    source; `gamma` and `beta` can be trained.
    """

    def build_statistics(self):
        self.source_mean = self.channel_state("source_mean", "zeros")
        self.source_variance = self.channel_state("source_variance", "ones")

    @classmethod
    def from_batch_normalization(cls, layer, **settings):
        """Make such a layer from a built BatchNormalization.

        Args:
            layer: A built `keras.layers.BatchNormalization`.
            **settings: Arguments of this class.

        Returns:
            A built layer that normalizes as `layer` does in inference, as far
            as its settings let it.

        Raises:
            TypeError: `layer` is something else.
            ValueError: `layer` is not built.
        """
        if not isinstance(layer, keras.layers.BatchNormalization):
            raise TypeError(
                "`layer` must be a `keras.layers.BatchNormalization`. "
                f"Received: {layer} (of type {type(layer)})"
            )
        if not layer.built:
            raise ValueError(
                "`layer` has no statistics yet. Build or call it first. "
                f"Received: {layer}"
            )
        settings = {
            "axis": layer.axis,
            "epsilon": layer.epsilon,
            "dtype": layer.dtype_policy,
            "name": layer.name,
            **settings,
        }
        ours = cls(**settings)
        spec = layer.input_spec
        shape = [None] * spec.ndim
        for axis, size in spec.axes.items():
            shape[axis] = size
        ours.build(tuple(shape))
        ours.source_mean.assign(layer.moving_mean)
        ours.source_variance.assign(layer.moving_variance)
        if layer.scale:
            ours.gamma.assign(layer.gamma)
        if layer.center:
            ours.beta.assign(layer.beta)
        ours.start()
        return ours

    def start(self):
        """Begin with what the source says."""
