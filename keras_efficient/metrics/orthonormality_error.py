import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_efficient")
class OrthonormalityError(keras.metrics.Metric):
    """Measure how far the product of decoder and encoder is from identity.

    With E and D the linear maps of an encoder and a decoder, the products of
    their weights, over all unit vectors e_i of n inputs,

    ```
    part="diagonal":      sum_i (e_i . D E e_i - 1)^2 / n
    part="off_diagonal":  sum_{i != j} (e_j . D E e_i)^2 / (n (n - 1))
    ```

    A code of r < n values cannot bring the sum over all entries below n - r.

    Args:
        part: `"diagonal"` or `"off_diagonal"`, the entries that are averaged.
            Defaults to `"diagonal"`.
        name: String. Defaults to `"orthonormality_error"`.
        **kwargs: Arguments of `keras.metrics.Metric`, such as `dtype`.

    Call arguments:
        y_true: Unit vectors, a tensor of shape `(batch, ...)`.
        y_pred: D E y_true, of the same shape. (For a model that has no method
            for it, with biases but without activations, that is
            `model(y_true) - model(zeros)`.)

    Raises:
        ValueError: `part` is none of its choices.

    Example:

    ```python
    model = keras_efficient.models.InvertibleAutoencoder(
        [keras_efficient.layers.InvertibleDense(8)]
    )
    model.build((None, 8))
    metric = keras_efficient.metrics.OrthonormalityError("off_diagonal")
    units = keras.ops.eye(8)
    print(metric(units, model.linear(units)))
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
    """

    def __init__(self, part="diagonal", name="orthonormality_error", **kwargs):
        super().__init__(name=name, **kwargs)
        if part not in ("diagonal", "off_diagonal"):
            raise ValueError(
                "`part` must be 'diagonal' or 'off_diagonal'. Received: "
                f"part={part!r}"
            )
        self.part = part
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred):
        y_true = ops.convert_to_tensor(y_true, self.dtype)
        y_pred = ops.convert_to_tensor(y_pred, self.dtype)
        value = 1 if self.part == "diagonal" else 0
        chosen = ops.cast(ops.equal(y_true, value), self.dtype)
        self.total.assign_add(ops.sum(chosen * (y_pred - y_true) ** 2))
        self.count.assign_add(ops.sum(chosen))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)

    def get_config(self):
        return {**super().get_config(), "part": self.part}
