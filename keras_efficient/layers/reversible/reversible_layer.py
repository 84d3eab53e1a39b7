import keras
from keras import ops

from keras_efficient import backend
from keras_efficient.autodiff.attributes import without_attributes
from keras_efficient.autodiff.capture import BLOCK_ARGUMENTS
from keras_efficient.autodiff.capture import accepted
from keras_efficient.autodiff.plain_run import evaluator
from keras_efficient.autodiff.reversible_run import reversible_run
from keras_efficient.autodiff.scanned_run import scanned_run
from keras_efficient.backend import nested
from keras_efficient.layers.reversible.block_operations import Couple
from keras_efficient.layers.reversible.block_operations import Undone
from keras_efficient.layers.reversible.log_det import HasLogDet
from keras_efficient.layers.reversible.run_blocks import run_blocks
from keras_efficient.layers.reversible.sub_layers import build_with_arguments
from keras_efficient.layers.reversible.sub_layers import shared_arguments
from keras_efficient.layers.reversible.sub_layers import split_shape
from keras_efficient.layers.reversible.sub_layers import sub_layers


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleLayer(HasLogDet, keras.layers.Layer):
    """Base class of layers whose inputs can be computed from their outputs.

    To write a coupling of your own, subclass it and say how it computes
    (`couple`) and how that is undone (`uncouple`). Both call sub-layers
    through `evaluate(layer, x)`, each as often as the other, at the same
    points; everything else in them has to be differentiable `keras.ops`. The
    derivative follows from the two, at one evaluation of each sub-layer; a
    subclass can override `pull_back` with a shorter one.

    Reversible, here and in the whole library, means: activations are
    recomputed from the outputs during the backward pass instead of being kept
    for it. (`keras.layers.ReversibleEmbedding` is something else.)

    Streams are float32 (float64 under a float64 policy) also in mixed
    precision, because rounding errors of the streams add up in the
    reconstruction; sub-layers compute in their own policies.

    Args:
        axis: Integer. The axis along which a single input tensor is split
            into two streams, the second larger by one if its size is odd.
            Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: One tensor, or a list of streams.
        context: Tensor or nested structure of tensors for all sub-layers
            whose `call` has an argument `context`; gradients flow back to
            it. Defaults to `None`.
        mask: Tensor for all sub-layers whose `call` has an argument `mask`,
            Keras fills it in from the inputs if there is nothing else. (What
            hangs on the inputs hangs on those of sub-layers, too.)
        training: Python bool, passed on to all sub-layers.
        return_log_det: Python bool. Whether to return `(outputs, log_det)`,
            with `log |det J|` of shape `(batch,)`, J being the Jacobian of
            all outputs by all inputs of an example: for normalizing flows.
            Defaults to `False`.
        **arguments: Further arguments by name, for all sub-layers whose
            `call` has them: tensors, to which gradients flow back, nested
            structures of them, or anything else.

    Raises:
        ValueError: no sub-layer takes the `context`, or one of `arguments`.

    Example:

    ```python
    class Rotation(keras_efficient.layers.ReversibleLayer):
        # (y1, y2) = (x2, -x1 + f(x2))
        def __init__(self, f, **kwargs):
            super().__init__(**kwargs)
            self.f = f

        def couple(self, streams, evaluate):
            x1, x2 = streams
            return x2, evaluate(self.f, x2) - x1

        def uncouple(self, streams, evaluate):
            y1, y2 = streams
            return evaluate(self.f, y1) - y2, y1

    rotation = Rotation(keras.layers.Dense(8, activation="tanh"))
    x = keras.random.normal((2, 16))
    x_again = rotation.inverse(rotation(x))
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """

    # Whether the backward pass reconstructs activations or finds them stored.
    reversible = True
    # Whether streams are integers inside, see `ReversibleSequence`.
    exact = False
    # Whether identical blocks are compiled as a loop.
    scan = False
    # How what is kept is stored, see `ReversibleSequence`.
    store = None
    # What to do where the backward pass does not come back to the inputs.
    check = "warn"
    # Whether `couple` only adds, subtracts and negates, as `exact` needs it.
    additive = False
    # Whether the backward pass gets the inputs, for want of an inverse.
    keeps_inputs = False
    # Whether it undoes another block.
    undoes = False
    # Where one tensor is split: `None`, an integer or a fraction.
    split = None
    # Whether all outputs follow from the inputs that `uncouple` gives.
    bijective = True

    def __init__(self, axis=-1, **kwargs):
        # Streams carry their own precision past a mixed policy: in bfloat16
        # the errors of the reconstruction grow with every block.
        super().__init__(autocast=False, **kwargs)
        self.dtype_policy = keras.DTypePolicy(
            "float64" if self.variable_dtype == "float64" else "float32"
        )
        self.supports_masking = True
        self.axis = axis
        self.built_with_arguments = False

    # Not `forward`: on PyTorch a layer is a module, and that is its call.
    def couple(self, streams, evaluate):
        """Compute the outputs: a tuple of streams from a tuple of streams.

        Args:
            streams: Tuple of tensors.
            evaluate: `evaluate(layer, x)` returns what the sub-layer makes of
                `x`, a stream or a nested structure of tensors.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define `couple(streams, evaluate)`."
        )

    def uncouple(self, streams, evaluate):
        """Compute the inputs from the outputs; the inverse of `couple`."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `uncouple(streams, evaluate)`."
        )

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        Args:
            outputs: Streams, as `couple` returns them.
            cotangents: Their cotangents.
            vjp: `vjp(layer, x)` returns what the sub-layer makes of `x`, and
                the function that pulls a cotangent of that back to `x`.

        Returns:
            `(inputs, cotangents)`.
        """
        return vjp.derive(self, outputs, cotangents)

    def standardize(self, y):
        """Bring the output of a sub-layer to the dtype of the streams."""
        return nested.map_structure(
            lambda x: ops.cast(x, self.compute_dtype), y
        )

    # A method: Keras would follow a property to the layers when it saves.
    def couplings(self):
        """List the layers that a call runs one after the other."""
        return [self]

    def build(self, inputs_shape, context_shape=None, arguments_shape=None):
        # With further arguments, sub-layers are built once their dtypes are
        # known too.
        if context_shape is None and arguments_shape is None:
            shapes = self.stream_shapes(inputs_shape)
            with without_attributes(self):
                self.build_sub_layers(shapes, {})

    def build_sub_layers(self, shapes, shared):
        """Build the sub-layers, by a symbolic run of `couple`.

        Args:
            shapes: List of the shapes of the streams.
            shared: Dictionary of symbolic tensors for sub-layers.
        """
        streams = tuple(map(self.symbol, shapes))
        Couple(self).compute_output_spec(streams, shared)

    def call(
        self,
        inputs,
        context=None,
        mask=None,
        training=None,
        return_log_det=False,
        **arguments,
    ):
        shared = shared_arguments(inputs, context, mask, arguments)
        build_with_arguments(self, inputs, shared)
        scan = self.scan and backend.recomputed_loop is not None
        scan = scan and not return_log_det and BLOCK_ARGUMENTS not in shared
        run = scanned_run if scan else reversible_run
        blocks = self.couplings()
        return run_blocks(
            self, run, blocks, inputs, shared, training, return_log_det
        )

    def takes(self, name):
        """Whether a sub-layer has a call argument of this name."""
        return name in ("mask", "training") or any(
            accepted(layer, {name: None}) for layer in sub_layers(self)
        )

    def inverse(
        self,
        outputs,
        context=None,
        mask=None,
        training=False,
        return_log_det=False,
        **arguments,
    ):
        """Return the inputs for which the layer gives `outputs`.

        It is a run of its own: its backward pass reconstructs the outputs
        from the inputs.

        Args:
            outputs: One tensor or a list of streams, as `call` returns them.
            context: As in the call.
            mask: As in the call.
            training: Python bool. With `True`, BatchNormalization uses the
                statistics of the batch, and Dropout cannot be inverted.
            return_log_det: As in the call, of the inverse.
            **arguments: As in the call.

        Returns:
            The inputs, one tensor or a list, as `outputs`.
        """
        if not self.built:
            raise ValueError(
                f"Layer '{self.name}' has to be built before `inverse` is "
                "used. Call it on inputs once, or call `build(input_shape)`."
            )
        shared = shared_arguments(outputs, context, mask, arguments)
        blocks = [Undone(block) for block in reversed(self.couplings())]
        is_lean = all(block.bijective for block in blocks)
        run = reversible_run if is_lean else None
        return run_blocks(
            self, run, blocks, outputs, shared, training, return_log_det
        )

    def stream_shapes(self, inputs_shape):
        """List the shapes of the streams, given that of the input(s)."""
        if len(inputs_shape) and isinstance(inputs_shape[0], (list, tuple)):
            return [tuple(shape) for shape in inputs_shape]
        return split_shape(self, tuple(inputs_shape), self.split)

    def symbol(self, shape):
        return keras.KerasTensor(shape, self.compute_dtype)

    def compute_output_shape(self, inputs_shape, context_shape=None):
        self.stream_shapes(inputs_shape)
        return inputs_shape

    def compute_output_spec(
        self,
        inputs,
        context=None,
        mask=None,
        training=None,
        return_log_det=False,
        **arguments,
    ):
        shared = shared_arguments(inputs, context, mask, arguments)
        build_with_arguments(self, inputs, shared)
        shapes = nested.map_structure(lambda x: tuple(x.shape), inputs)
        shapes = self.compute_output_shape(shapes)
        if isinstance(inputs, (list, tuple)):
            outputs = type(inputs)(map(self.symbol, shapes))
        else:
            outputs = self.symbol(tuple(shapes))
        if not return_log_det:
            return outputs
        first = nested.flatten(inputs)[0]
        return outputs, self.symbol(tuple(first.shape)[:1])

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}

    def evaluator(self, shared, training, kind=None):
        """Return `evaluate` for a run that stores its activations.

        Args:
            shared: Dictionary of further arguments for sub-layers.
            training: Python bool.
            kind: What streams are of, see
                `autodiff.fixed_point.to_kind`.
        """
        return evaluator(self, shared, training, kind)
