import keras

from keras_efficient.autodiff.streams import join
from keras_efficient.autodiff.streams import split
from keras_efficient.layers.reversible.reversible_layer import ReversibleLayer
from keras_efficient.layers.reversible.sub_layers import shapes_of_list
from keras_efficient.layers.reversible.sub_layers import split_shape


@keras.saving.register_keras_serializable(package="keras_efficient")
class ReversibleSplit(ReversibleLayer):
    """Split the first stream of a run into two.

    ```
    call:     [x, *others] -> [x[:size], x[size:], *others]
    ```

    and joins them again in the inverse. In an invertible U-Net a part of the
    channels goes down to the next level and the rest waits on the side;
    `keras_efficient.layers.ReversibleConcatenate` fetches it.

    Args:
        size: Integer, the size of the first part along `axis`, or a float
            between 0 and 1, its fraction of the stream (rounded).
        axis: Integer. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: List of tensors.

    Returns:
        List of one more tensor.

    Raises:
        ValueError: nothing would be left of one of the two parts, or the input
            is no list.

    Example:

    ```python
    layer = keras_efficient.layers.ReversibleSplit(0.25)
    first, second = layer([keras.random.normal((2, 4, 4, 8))])  # 2 and 6
    ```

    Reference:
        - [Etmann et al., 2020](https://arxiv.org/abs/2005.05220)
    """

    additive = True

    def __init__(self, size, axis=-1, **kwargs):
        super().__init__(axis=axis, **kwargs)
        self.size = size

    def build_sub_layers(self, shapes, shared):
        self._sizes(shapes)

    def _sizes(self, shapes):
        return split_shape(self, tuple(shapes[0]), self.size)

    def stream_shapes(self, inputs_shape):
        return shapes_of_list(self, inputs_shape)

    def couple(self, streams, evaluate):
        x, *others = streams
        first, _ = self._sizes([x.shape])
        return *split(x, self.axis, first[self.axis]), *others

    def uncouple(self, streams, evaluate):
        first, second, *others = streams
        return join((first, second), self.axis), *others

    def compute_output_shape(self, inputs_shape, context_shape=None):
        _, *others = inputs_shape
        return [*self._sizes(inputs_shape), *others]

    def get_config(self):
        return {**super().get_config(), "size": self.size}
