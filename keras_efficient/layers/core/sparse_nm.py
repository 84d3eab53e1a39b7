import math

import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.backend.layers_inside import layers_inside
from keras_efficient.layers.core.base_reparametrized import BaseReparametrized
from keras_efficient.layers.core.base_reparametrized import kernel_of

METHODS = ("mask_decay", "structure_decay", "sr_ste", "step")
# Where an exponential decay, then at 0.7 %, is taken for over.
LAST_EXPONENT = 5.0


@keras.saving.register_keras_serializable(package="keras_efficient")
class SparseNM(BaseReparametrized):
    """Train a kernel towards N non-zeros in each M inputs of an output.

    Weights are taken in groups of `m` along the input axis; `mask` is 1 for
    the `n` largest magnitudes of a group, found anew in each call, and no
    gradient flows through it. With t, the number of training steps after
    `dense_steps`:

    ```
    "mask_decay"       w' = w (mask + (1 - mask) d)
                       d = max(0, 1 - rate t)  or  exp(-rate t), 0 from 5 on
    "structure_decay"  w' = w mask_t, of n_t = m - 1, m/2, m/4, ... n,
                       in equal frames of the first 1 / rate steps
    "sr_ste"           w' = w mask, dL/dw = dL/dw' + 2e-4 (1 - mask) w
    "step"             w' = w mask
    ```

    For the first `dense_steps` steps w' = w. Nothing is traced anew on the
    way. This makes a kernel that hardware for N:M sparsity can use; in Keras
    itself it saves no time.

    The kernel that is trained and saved stays dense until
    `SparseNM.sparsify(model)` writes the zeros. If an axis is no multiple of
    `m`, its last group is smaller and keeps up to `n`.

    The regularization of `"sr_ste"` is added as a loss, 1e-4 times the sum of
    squares of what is masked, in training only.

    Args:
        layer: A `keras.layers.Layer` with a `kernel`, such as `Dense` or a
            convolution.
        n: Integer, how many of a group are kept. Defaults to `2`.
        m: Integer, the size of a group. Defaults to `4`.
        method: One of the names above. Defaults to `"mask_decay"`.
        decay: `"linear"` or `"exponential"`, of `"mask_decay"`. Defaults to
            `"linear"`.
        rate: Positive float, a step's part of the decay. Defaults to `8e-4`,
            which ends after 1250 steps.
        dense_steps: Integer, of the first phase. Defaults to `0`.
        gradient: `"scaled"`, `dL/dw = w'/w dL/dw'`, as automatic
            differentiation has it, so that less and less reaches pruned
            weights; or `"straight_through"`, `dL/dw = dL/dw'`, as in the
            authors' code. `"sr_ste"` is always straight through. Defaults to
            `"scaled"`, after the text of the abstract, which the code differs
            from.
        axis: Integer, that of the inputs. Defaults to `-2`, which it is in
            kernels of `Dense` and of convolutions.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: What `layer` is called on.
        training: Boolean. Only then steps are counted.

    Returns:
        What `layer` returns.

    Raises:
        TypeError: `layer` is not a layer.
        ValueError: an argument is outside its range; `layer` has no kernel.

    Example:

    ```python
    layer = keras_efficient.layers.SparseNM(keras.layers.Dense(4), n=1, m=4)
    y = layer(keras.ops.ones((2, 8)))
    ```

    Reference:
        - [Bambhaniya et al., 2024](https://arxiv.org/abs/2402.04744)
        - SR-STE, [Zhou et al., 2021](https://arxiv.org/abs/2102.04010)
    """

    def __init__(
        self,
        layer,
        n=2,
        m=4,
        method="mask_decay",
        decay="linear",
        rate=8e-4,
        dense_steps=0,
        gradient="scaled",
        axis=-2,
        **kwargs,
    ):
        super().__init__(layer, **kwargs)
        check_integers(1, n=n, m=m)
        if not n < m:
            raise ValueError(
                f"`n` must be less than `m`. Received: n={n}, m={m}"
            )
        for name, value, allowed in (
            ("method", method, METHODS),
            ("decay", decay, ("linear", "exponential")),
            ("gradient", gradient, ("scaled", "straight_through")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {allowed}. "
                    f"Received: {name}={value}"
                )
        check_numbers("(0, inf)", rate=rate)
        check_integers(0, dense_steps=dense_steps)
        self.n = n
        self.m = m
        self.method = method
        self.decay = decay
        self.rate = rate
        self.dense_steps = dense_steps
        self.gradient = gradient
        self.axis = axis

    def build_transform(self, shape):
        self.steps = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            name="steps",
        )

    def transform_kernel(self, kernel, training):
        t = ops.cast(self.steps - self.dense_steps, "float32") * self.rate
        if training:
            self.steps.assign(self.steps + 1)
        kept = self._kept(t) if self.method == "structure_decay" else self.n
        mask = group_mask(kernel, kept, self.m, self.axis)
        mask = ops.cast(mask, kernel.dtype)
        if self.method == "sr_ste" and training:
            rest = ops.where(t >= 0, (1 - mask) * kernel, 0 * kernel)
            self.add_loss(1e-4 * ops.sum(ops.square(rest)))
        if self.method == "mask_decay":
            mask = mask + (1 - mask) * ops.cast(self._decayed(t), kernel.dtype)
        mask = ops.where(t >= 0, mask, ops.ones_like(mask))
        mask = ops.stop_gradient(mask)
        if self.gradient == "scaled" and self.method != "sr_ste":
            return mask * kernel
        # Its value is exactly that of the first term.
        value = ops.stop_gradient(mask * kernel)
        return value + (kernel - ops.stop_gradient(kernel))

    def _decayed(self, t):
        if self.decay == "linear":
            return ops.maximum(0.0, 1 - t)
        return ops.where(t < LAST_EXPONENT, ops.exp(-t), 0.0)

    def _kept(self, t):
        """Return how many of a group are kept, an int32 scalar."""
        numbers = frames(self.n, self.m)
        # One frame for each but the last, which goes on.
        place = ops.floor(t * (len(numbers) - 1))
        place = ops.clip(place, 0, len(numbers) - 1)
        numbers = ops.convert_to_tensor(numbers, "int32")
        return ops.take(numbers, ops.cast(place, "int32"))

    @staticmethod
    def sparsify(model):
        """Write zeros into the kernels, for inference.

        Args:
            model: A built model or layer.

        Returns:
            Dictionary from the path of each kernel to the largest number of
            non-zeros in a group.

        Raises:
            ValueError: the model has no such layer.
        """
        found = {}
        layers = layers_inside(model)
        for layer in (x for x in layers if isinstance(x, SparseNM)):
            kernel = kernel_of(layer.layer)
            value = ops.convert_to_tensor(kernel)
            mask = group_mask(value, layer.n, layer.m, layer.axis)
            value = ops.where(mask, value, ops.zeros_like(value))
            kernel.assign(value)
            groups, _ = grouped(value, layer.m, layer.axis)
            counts = ops.sum(ops.cast(groups != 0, "int32"), axis=-1)
            found[kernel.path] = int(ops.max(counts))
        if not found:
            raise ValueError(
                f"'{model.name}' must have a `SparseNM` layer. It has none."
            )
        return found

    def get_config(self):
        names = ("n", "m", "method", "decay", "rate", "dense_steps")
        names += ("gradient", "axis")
        config = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **config}


def frames(n, m):
    """Return the numbers of kept weights of "structure_decay", in order.

    ```
    m - 1, m/2, m/4, ... n
    ```
    """
    halves = [m >> i for i in range(1, m.bit_length())]
    return [m - 1, *(k for k in halves if n < k < m - 1), n][m - 1 == n :]


def grouped(x, m, axis):
    """Return `x` as `(..., groups, m)`, with zeros behind its end, and the
    function that undoes it."""
    moved = ops.moveaxis(x, axis, -1)
    shape, size = tuple(moved.shape), moved.shape[-1]
    groups = math.ceil(size / m)
    pads = [(0, 0)] * (len(shape) - 1) + [(0, groups * m - size)]
    padded = ops.reshape(ops.pad(moved, pads), (*shape[:-1], groups, m))

    def undo(y):
        y = ops.reshape(y, (*shape[:-1], groups * m))[..., :size]
        return ops.moveaxis(y, -1, axis)

    return padded, undo


def group_mask(x, n, m, axis):
    """Return a mask of the `n` largest magnitudes of each group of `m`.

    Among equals, those that come first may be taken, or others: there are
    never more than `n`. `n` may be a tensor.
    """
    groups, undo = grouped(ops.stop_gradient(x), m, axis)
    order = ops.argsort(-ops.abs(groups), axis=-1)
    ranks = ops.argsort(order, axis=-1)
    return undo(ranks < n)
