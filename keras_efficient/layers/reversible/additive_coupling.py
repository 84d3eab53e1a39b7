import keras

from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import build_sub_layer
from keras_efficient.layers.reversible.sub_layers import check_sub_layers
from keras_efficient.layers.reversible.sub_layers import first_of
from keras_efficient.layers.reversible.sub_layers import half_step_shape
from keras_efficient.layers.reversible.sub_layers import pair
from keras_efficient.layers.reversible.sub_layers import sub_layer_config
from keras_efficient.layers.reversible.sub_layers import with_sub_layers


@keras.saving.register_keras_serializable(package="keras_efficient")
class AdditiveCoupling(ReversibleLayer):
    """Couple two streams so that the inputs follow from the outputs.

    The layer computes

    ```
    y1 = x1 + f(x2)        x2 = y2 - g(y1)
    y2 = x2 + g(y1)        x1 = y1 - f(x2)
    ```

    on the left, and its inverse on the right. `f` and `g` are arbitrary
    Keras layers; they need not be invertible themselves. (If one returns a
    list or a tuple, its first entry is added and the others are dropped.)
    Dropout inside them drops the same units in the recomputation and
    BatchNormalization updates its statistics once a step. Without `g` the
    layer is the half step with a swap, `y1 = x2, y2 = x1 + f(x2)`; streams of
    two shapes then change places. With `first=2` the streams change roles,
    `y2 = x2 + f(x1), y1 = x1 + g(y2)`.

    The cost is one more evaluation of `f` and `g` a training step, a third of
    the time of a plain step. A single coupling keeps its output; many of
    them in a `keras_efficient.layers.ReversibleSequence` keep no more than
    one does.

    Args:
        f: A `keras.layers.Layer`, applied to the second stream.
        g: A `keras.layers.Layer`, applied to the first stream. Defaults to
            `None`, the half step with a swap.
        axis: Integer. The axis along which a single input tensor is split
            into two streams, the second larger by one if its size is odd.
            Defaults to `-1`.
        first: Integer, `1` or `2`: the stream to which is added first.
            Defaults to `1`.
        split: Where to split a single input tensor: an integer, the size of
            the first stream along `axis`, or a float, its fraction. Blocks of
            a sequence agree on it. Defaults to `None`, half.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: One tensor, or a list of two.
        context: Tensors for those of `f` and `g` whose `call` has this
            argument, see `keras_efficient.layers.ReversibleLayer`.
        mask: The same for masks.
        training: Python bool, passed on to `f` and `g`.

    Returns:
        One tensor or a list of two, as the inputs, of the same shapes.

    Raises:
        TypeError: `f` or `g` is not a Keras layer.
        ValueError: `first` is none of its choices, the input cannot be split,
            or `f` or `g` does not return
            the shape of the stream to which it is added.

    Example:

    ```python
    coupling = keras_efficient.layers.AdditiveCoupling(
        keras.layers.Dense(8, activation="gelu"),
        keras.layers.Dense(8, activation="gelu"),
    )
    x = keras.random.normal((2, 16))
    y = coupling(x)
    x_again = coupling.inverse(y)
    ```

    Reference:
        - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    """

    additive = True

    def __init__(self, f, g=None, axis=-1, first=1, split=None, **kwargs):
        super().__init__(axis=axis, **kwargs)
        check_sub_layers(f=f)
        if first not in (1, 2):
            raise ValueError(f"`first` must be 1 or 2. Received: first={first}")
        if g is not None:
            check_sub_layers(g=g)
        self.f = f
        self.g = g
        self.first = first
        self.split = split

    def _order(self, streams):
        """Put the stream first to which is added first, or put it back."""
        return tuple(streams) if self.first == 1 else tuple(streams)[::-1]

    def build_sub_layers(self, shapes, shared):
        first, second = self._order(pair(self, shapes))
        build_sub_layer(self, "f", second, first, shared)
        if self.g is not None:
            build_sub_layer(self, "g", first, second, shared)

    def couple(self, streams, evaluate):
        x1, x2 = self._order(streams)
        y1 = x1 + evaluate(self.f, x2)
        if self.g is None:
            return self._order((x2, y1))
        y2 = x2 + evaluate(self.g, y1)
        return self._order((y1, y2))

    def uncouple(self, streams, evaluate):
        y1, y2 = self._order(streams)
        if self.g is None:
            return self._order((y2 - evaluate(self.f, y1), y1))
        x2 = y2 - evaluate(self.g, y1)
        x1 = y1 - evaluate(self.f, x2)
        return self._order((x1, x2))

    def pull_back(self, outputs, cotangents, vjp):
        """Reconstruct the inputs and pull the cotangents back to them.

        With J the Jacobian of a function at the point of its evaluation:

        ```
        d1 = dy1 + J_g(y1)^T dy2        dx1 = d1
                                        dx2 = dy2 + J_f(x2)^T d1
        half step:  dx1 = dy2,          dx2 = dy1 + J_f(x2)^T dy2
        ```
        """
        (y1, y2), (d1, d2) = map(self._order, (outputs, cotangents))
        if self.g is None:
            value, pullback = vjp(self.f, y1)
            x, d = (y2 - value, y1), (d2, d1 + pullback(d2))
            return self._order(x), self._order(d)
        value, pullback = vjp(self.g, y1)
        x2, d1 = y2 - value, d1 + pullback(d2)
        value, pullback = vjp(self.f, x2)
        x1, d2 = y1 - value, d2 + pullback(d1)
        return self._order((x1, x2)), self._order((d1, d2))

    def standardize(self, y):
        return super().standardize(first_of(y))

    def compute_output_shape(self, inputs_shape, context_shape=None):
        return half_step_shape(self, inputs_shape)

    def get_config(self):
        return {
            **super().get_config(),
            **sub_layer_config(f=self.f, g=self.g),
            "first": self.first,
            "split": self.split,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**with_sub_layers(config, "f", "g"))
