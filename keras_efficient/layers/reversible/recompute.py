import keras
from keras import ops

from keras_efficient.autodiff.functional_call import call_layer
from keras_efficient.autodiff.reversible_run import reversible_run
from keras_efficient.backend import nested


@keras.saving.register_keras_serializable(package="keras_efficient")
class Recompute(keras.layers.Layer):
    """Keep the inputs of layers, and compute all else again when it is needed.

    What a training step keeps for its backward pass is the input of each
    layer given here; all activations inside are recomputed, at the cost of
    one more evaluation, a third of the time of a plain step. Unlike a
    `ReversibleSequence` it takes any layer, of any shape; the inputs it keeps
    grow with the number of layers.

    Unlike `keras.remat` (in 3.15.1) it is right for layers with state: the
    recomputation drops the same units, seeds and batch statistics move on
    once a step.

    Args:
        layer: A `keras.layers.Layer`, or a list of them to be run one after
            the other. Each is one segment; group layers into a segment by
            `keras.Sequential`.
        arguments: Dictionary of further arguments for the `call` of all
            layers that have them, those that are not tensors, such as
            `{"use_causal_mask": True}`. Defaults to `None`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: What the (first) layer takes as its first argument.
        mask: Tensor for all layers whose `call` has this argument.
        training: Python bool, passed on to all layers.
        **tensors: Further tensors by name, for the `call` of all layers that
            have them, such as `value=...` for
            `keras.layers.MultiHeadAttention`.

    Returns:
        What the (last) layer returns.

    Raises:
        TypeError: `layer` is not a layer, or one returns a tensor that is not
            floating point.

    Example:

    ```python
    hidden = [keras.layers.Dense(256, activation="gelu") for _ in range(4)]
    model = keras.Sequential([
        keras.Input((64,)),
        keras_efficient.layers.Recompute(hidden),
        keras.layers.Dense(10),
    ])
    ```

    Reference:
        - [Chen et al., 2016](https://arxiv.org/abs/1604.06174)
    """

    def __init__(self, layer, arguments=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        layers = list(layer) if isinstance(layer, (list, tuple)) else [layer]
        for entry in layers:
            if not isinstance(entry, keras.layers.Layer):
                raise TypeError(
                    "`layer` must be a `keras.layers.Layer` or a list of "
                    f"them. Received: {entry} (of type {type(entry)})"
                )
        if not layers:
            raise ValueError("`layer` must not be an empty list.")
        self.layers = layers
        self.arguments = dict(arguments or {})
        self.supports_masking = True

    def build(self, inputs_shape):
        # Layers are built with all arguments of the call, when they are there.
        pass

    def call(self, inputs, mask=None, training=None, **tensors):
        tensors = _given(mask, tensors)
        if not all(layer.built for layer in self.layers):
            self._symbolic_call(inputs, tensors)
        inputs, tensors = nested.map_structure(
            ops.convert_to_tensor, (inputs, tensors)
        )
        options = {**self.arguments, "training": bool(training)}
        segments = [_Segment(layer) for layer in self.layers]
        outputs, losses = reversible_run(segments, inputs, tensors, options)
        for loss in losses:
            self.add_loss(loss)
        return outputs

    def compute_output_spec(self, inputs, mask=None, training=None, **tensors):
        return self._symbolic_call(inputs, _given(mask, tensors))

    def _symbolic_call(self, inputs, tensors):
        """Build the layers and return symbolic outputs."""
        x, tensors = nested.map_structure(
            lambda x: keras.KerasTensor(x.shape, x.dtype), (inputs, tensors)
        )
        options = {**self.arguments, "training": None}
        for layer in self.layers:
            x = call_layer(layer, x, tensors, options)
        return x

    def get_config(self):
        layers = map(keras.saving.serialize_keras_object, self.layers)
        return {
            **super().get_config(),
            "layer": list(layers),
            "arguments": self.arguments,
        }

    @classmethod
    def from_config(cls, config):
        layers = map(keras.saving.deserialize_keras_object, config["layer"])
        return cls(**{**config, "layer": list(layers)})


class _Segment:
    """A layer as a block of a run: it keeps its inputs."""

    keeps_inputs = True

    def __init__(self, layer):
        self.layer = layer
        self.trainable_variables = layer.trainable_variables
        self.non_trainable_variables = layer.non_trainable_variables

    def couple(self, inputs, evaluate):
        return evaluate(self.layer, inputs)

    def pull_back(self, inputs, cotangents, vjp):
        _, pullback = vjp(self.layer, inputs)
        return inputs, pullback(cotangents)

    def standardize(self, y):
        for x in nested.flatten(y):
            dtype = keras.backend.standardize_dtype(x.dtype)
            if not keras.backend.is_float_dtype(dtype):
                raise TypeError(
                    "What `Recompute` runs must return floating-point "
                    f"tensors. Layer '{self.layer.name}' returns one of "
                    f"dtype {dtype}; leave it outside."
                )
        return y


def _given(mask, tensors):
    tensors = {"mask": mask, **tensors}
    return {name: x for name, x in tensors.items() if x is not None}
