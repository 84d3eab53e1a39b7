import keras

from keras_efficient.layers.reversible.recompute import Recompute


@keras.saving.register_keras_serializable(package="keras_efficient")
class RevBiFPNNeck(Recompute):
    """Lead from one feature map of the pyramid to that of the head.

    Its input is an output of the reversible run, which is kept anyway: with
    `reversible=True` it keeps nothing else.

    Args:
        layer: See `keras_efficient.layers.Recompute`.
        reversible: Boolean. Defaults to `True`.
        **kwargs: Further arguments of `Recompute`.
    """

    def __init__(self, layer, reversible=True, **kwargs):
        super().__init__(layer, **kwargs)
        self.reversible = reversible

    def call(self, inputs, training=None):
        if self.reversible:
            return super().call(inputs, training=training)
        for layer in self.layers:
            inputs = layer(inputs, training=training)
        return inputs

    def compute_output_spec(self, inputs, training=None):
        return super().compute_output_spec(inputs, training=training)

    def get_config(self):
        return {**super().get_config(), "reversible": self.reversible}
