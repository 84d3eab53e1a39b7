import keras

from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import joined
from keras_efficient.layers.reversible.sub_layers import shapes_of_list


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleConcatenate(ReversibleLayer):
    """Join the first two streams of a run, undoing `ReversibleSplit`.

    ```
    call:     [a, b, *others] -> [concatenate(a, b), *others]
    ```

    Args:
        axis: Integer. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: List of at least two tensors.

    Returns:
        List of one tensor less.

    Raises:
        ValueError: there are less than two streams, or the input is no list.

    Example:

    ```python
    layer = keras_efficient.layers.ReversibleConcatenate()
    a, b = keras.random.normal((2, 3)), keras.random.normal((2, 5))
    (y,) = layer([a, b])
    a_again, b_again = layer.inverse([y])
    ```

    Reference:
        - [Etmann et al., 2020](https://arxiv.org/abs/2005.05220)
    """

    additive = True

    def build_sub_layers(self, shapes, shared):
        if len(shapes) < 2:
            raise ValueError(
                f"Layer '{self.name}' joins two streams of a list. Received: "
                f"shapes {shapes}"
            )
        self._size = shapes[0][self.axis]

    def stream_shapes(self, inputs_shape):
        return shapes_of_list(self, inputs_shape)

    def couple(self, streams, evaluate):
        first, second, *others = streams
        return join((first, second), self.axis), *others

    def uncouple(self, streams, evaluate):
        x, *others = streams
        return *split(x, self.axis, self._size), *others

    def compute_output_shape(self, inputs_shape, context_shape=None):
        first, second, *others = inputs_shape
        return [joined((first, second), self.axis), *map(tuple, others)]
