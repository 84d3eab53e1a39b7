import inspect

import keras

from keras_efficient.autodiff.attributes import without_attributes
from keras_efficient.autodiff.capture import Call
from keras_efficient.autodiff.capture import accepted
from keras_efficient.autodiff.masks import mask_of
from keras_efficient.autodiff.masks import with_mask
from keras_efficient.autodiff.recompute import recompute
from keras_efficient.autodiff.storage import check_store
from keras_efficient.backend import nested


class _Signed:
    """A `call` that Keras finds to have the signature of the layer inside."""

    def __init__(self, call):
        self.call = call

    def __get__(self, layer, cls=None):
        if layer is None:
            return self.call

        def call(*args, **kwargs):
            return self.call(layer, *args, **kwargs)

        call.__signature__ = vars(layer)["_signature"]
        return call


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

    It reads and writes what the layer reads and writes: variables of other
    layers, such as tied weights, are trained, states are carried on, losses,
    metrics and masks come out, and so do tensors that a call leaves in
    attributes, such as an auxiliary loss. What cannot be recomputed raises an
    error: an output in which tensors cannot be found, a sparse or ragged
    tensor, an input that is written into in place, tensors that are put into
    a list of the layer.

    Args:
        layer: A `keras.layers.Layer`, or a list of them to be run one after
            the other. Each is one segment; group layers into a segment by
            `keras.Sequential`.
        arguments: Dictionary of further arguments for the `call` of all
            layers that have them, such as `{"use_causal_mask": True}`: those
            that are to be part of the config. Defaults to `None`.
        store: How inputs are stored for the backward pass: `"bfloat16"`, in
            half of the bytes, with gradients that are wrong by about 0.1 %
            (`guides/benchmarks.md`), or `"host"`, on PyTorch in the memory of
            the host. Defaults to `None`, as they are.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        *args, **kwargs: Those of `layer`, whatever they are: its `call` and
            this one have the same signature. With a list of layers, the first
            argument is that of the first layer, further ones are passed by
            name, to all layers that have them.

    Returns:
        What the (last) layer returns.

    Raises:
        TypeError: `layer` is not a layer, it has no such argument, or it
            returns objects in which tensors cannot be found.
        ValueError: `layer` is an empty list, or `store` none of its choices.
        NotImplementedError: `store="host"`, by the first call in training on
            a device other than the CPU, but for PyTorch.

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

    def __init__(self, layer, arguments=None, store=None, **kwargs):
        layers = list(layer) if isinstance(layer, (list, tuple)) else [layer]
        for entry in layers:
            if not isinstance(entry, keras.layers.Layer):
                raise TypeError(
                    "`layer` must be a `keras.layers.Layer` or a list of "
                    f"them. Received: {entry} (of type {type(entry)})"
                )
        if not layers:
            raise ValueError("`layer` must not be an empty list.")
        check_store(store)
        arguments = dict(arguments or {})
        # Keras asks for it while it initializes the layer.
        vars(self)["_signature"] = _signature(layers, arguments)
        super().__init__(autocast=False, **kwargs)
        self.layers = layers
        self.arguments = arguments
        self.store = store
        self.supports_masking = True
        self.built = True  # it has no variables of its own

    def takes(self, name):
        """Whether a call has an argument of this name."""
        parameters = self._signature.parameters
        return name in parameters or any(
            accepted(layer, {name: None}) for layer in self.layers
        )

    def build(self, inputs_shape):
        """Build the layers, for one tensor of this shape.

        (A call does it, too, and knows all arguments and their dtypes.)
        """
        x = keras.KerasTensor(inputs_shape, self.layers[0].compute_dtype)
        for layer in self.layers:
            if type(layer).build is not keras.layers.Layer.build:
                if not layer.built:
                    layer.build(x.shape)
            x = layer.compute_output_spec(x) if layer.built else layer(x)

    @_Signed
    def call(self, *args, **kwargs):
        if not all(layer.built for layer in self.layers):
            self._build_by_call(args, kwargs)
        known = [v for layer in self.layers for v in layer.variables]
        return recompute(
            [
                lambda *outputs, layer=layer, more=more: Call(
                    layer, outputs or args, more
                )
                for layer, more in self._calls(args, kwargs)
            ],
            known,
            self.store,
        )

    def _build_by_call(self, args, kwargs):
        try:
            with without_attributes(self):
                self.compute_output_spec(*args, **kwargs)
        except Exception:
            # Symbolic calls return tensors only.
            with keras.StatelessScope():
                for layer, more in self._calls(args, kwargs):
                    args = (layer(*args, **more),)

    def compute_output_spec(self, *args, **kwargs):
        """Build the layers and return symbolic outputs."""
        args, kwargs = nested.map_structure(_symbol, (args, kwargs))
        for layer, more in self._calls(args, kwargs):
            outputs = layer(*args, **more)
            args = (outputs,)
        # Without masks, whose symbols no model around could compute. When the
        # model runs, tensors have those that the layers hung on them.
        return nested.map_structure(_unmasked, outputs)

    def compute_mask(self, inputs, previous_mask):
        return None  # the layers have hung theirs on their outputs

    def _calls(self, args, kwargs):
        """List pairs of a layer and the keyword arguments of its call."""
        kwargs = {**self.arguments, **kwargs}
        if len(self.layers) == 1:
            return [(self.layers[0], kwargs)]
        training = {k: kwargs.pop(k) for k in ("training",) if k in kwargs}
        kwargs = {name: x for name, x in kwargs.items() if x is not None}
        taken = [
            {**accepted(layer, kwargs), **training} for layer in self.layers
        ]
        lost = kwargs.keys() - {name for part in taken for name in part}
        if lost - {"mask"}:
            raise TypeError(
                f"None of the layers of '{self.name}' takes the argument(s) "
                f"{sorted(lost)}."
            )
        if "mask" in kwargs and kwargs["mask"] is mask_of(args[0]):
            # That of the input: the layers behind have those of theirs.
            taken = taken[:1] + [
                {name: x for name, x in part.items() if name != "mask"}
                for part in taken[1:]
            ]
        return list(zip(self.layers, taken))

    def get_config(self):
        layers = map(keras.saving.serialize_keras_object, self.layers)
        return {
            **super().get_config(),
            "layer": list(layers),
            "arguments": self.arguments,
            "store": self.store,
        }

    @classmethod
    def from_config(cls, config):
        layers = map(keras.saving.deserialize_keras_object, config["layer"])
        return cls(**{**config, "layer": list(layers)})


def _signature(layers, arguments):
    """The signature of a call: what is in `arguments` need not be given."""
    if len(layers) > 1:
        return inspect.signature(_call_of_several)
    parameters = dict(inspect.signature(layers[0].call).parameters)
    if "training" not in parameters:
        parameters["training"] = _keyword("training", None)
    for name in arguments.keys() & parameters.keys():
        parameters[name] = _keyword(name, arguments[name])
    return inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind))


def _call_of_several(inputs, mask=None, training=None, **tensors):
    pass


def _keyword(name, default):
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default)


def _symbol(x):
    """Return a symbolic tensor for a tensor, with its mask."""
    if not (keras.ops.is_tensor(x) or isinstance(x, keras.KerasTensor)):
        return x
    mask = mask_of(x)
    if mask is not None:
        mask = keras.KerasTensor(mask.shape, mask.dtype)
    return with_mask(keras.KerasTensor(x.shape, x.dtype), mask)


def _unmasked(y):
    if not isinstance(y, keras.KerasTensor):
        return y
    return keras.KerasTensor(y.shape, y.dtype)
