import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import as_array
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


@keras.saving.register_keras_serializable(package="keras_efficient")
class FixedClassifier(keras.layers.Layer):
    """Classify by the angle to targets that are given and never trained.

    Features learn to come near what stands for their class, which is to help
    when classes arrive one after the other; it saves the gradient and the
    optimizer state of a head, and no activations.

    ```
    logits_c = <f, t_c> / (|f| |t_c| temperature)
    ```

    Targets t_c, of the size of the features f, are:

    - an array: such as embeddings of the names of the classes by a language
      model, which place like classes close to each other;
    - `"simplex"`: all at the same, largest angle; needs features of at least
      `num_classes - 1` dimensions;
    - `"orthogonal"`: at right angles; needs at least `num_classes`.

    The last two need no language model. The temperature that the paper on
    language-guided targets uses is not known to us. Put a `Dense` before it
    where features have another size.

    Args:
        num_classes: Integer above 1.
        targets: See above. Defaults to `"simplex"`. An array is a part of the
            layer's settings, and so of the `.keras` file.
        temperature: Positive float. Defaults to `0.07`.
        seed: Integer, for how random targets are turned. Defaults to `0`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Features, a tensor of shape `(batch, ..., features)`.

    Returns:
        Logits, a tensor of shape `(batch, ..., num_classes)`.

    Raises:
        ValueError: an argument is outside its range, or targets do not fit
            the features.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((8,)),
        keras.layers.Dense(16),
        keras_efficient.layers.FixedClassifier(10),
    ])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    ```

    Reference:
        - [Ni et al., 2024](https://arxiv.org/abs/2403.16124), for embeddings
        - [Yang et al., 2022](https://arxiv.org/abs/2203.09081), for simplexes
    """

    def __init__(
        self,
        num_classes,
        targets="simplex",
        temperature=0.07,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_integers(2, num_classes=num_classes)
        check_integers(0, seed=seed)
        if not isinstance(targets, str):
            targets = as_array(targets, "float32")
            if targets.ndim != 2 or len(targets) != num_classes:
                raise ValueError(
                    "`targets` must be an array of shape (num_classes, "
                    f"features). Received: shape {targets.shape} for "
                    f"num_classes={num_classes}"
                )
            if not (np.linalg.norm(targets, axis=-1) > 0).all():
                raise ValueError("`targets` must not be 0. Received: zeros")
        elif targets not in ("simplex", "orthogonal"):
            raise ValueError(
                "`targets` must be 'simplex', 'orthogonal' or an array. "
                f"Received: targets={targets!r}"
            )
        check_numbers("(0, inf)", temperature=temperature)
        self.num_classes, self.targets = num_classes, targets
        self.temperature, self.seed = temperature, seed
        self.supports_masking = True

    def build(self, input_shape):
        size = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(size, self.num_classes),
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(
                self._unit_targets(size).T, dtype
            ),
            trainable=False,
        )

    def _unit_targets(self, size):
        """Return an array of shape `(num_classes, size)`, rows of norm 1."""
        targets, n = self.targets, self.num_classes
        if isinstance(targets, str):
            needed = n - 1 if targets == "simplex" else n
            if size < needed:
                raise ValueError(
                    f"Targets {targets!r} of {n} classes need features of at "
                    f"least {needed} dimensions. Received: {size}"
                )
            corners = np.eye(n)
            if targets == "simplex":
                # The corners as seen from their centre, without the axis
                # that they all agree on.
                corners -= 1 / n
                corners = corners @ np.linalg.svd(corners)[2][:-1].T
            random = np.random.default_rng(self.seed).normal
            turn = np.linalg.qr(random(size=(size, needed)))[0]
            targets = corners @ turn.T
        elif targets.shape[1] != size:
            raise ValueError(
                "`targets` must be of the size of the features. Received: "
                f"targets of {targets.shape[1]}, features of {size}. Put a "
                "`Dense` before this layer."
            )
        return targets / np.linalg.norm(targets, axis=-1, keepdims=True)

    def call(self, inputs):
        # In float32: the squares of 16 bits overflow.
        f = ops.cast(inputs, "float32")
        square = ops.sum(ops.square(f), axis=-1, keepdims=True)
        f = f * ops.rsqrt(ops.maximum(square, 1e-12)) / self.temperature
        return ops.matmul(ops.cast(f, self.compute_dtype), self.kernel)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.num_classes)

    def get_config(self):
        targets = self.targets
        if not isinstance(targets, str):
            targets = targets.tolist()
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "targets": targets,
            "temperature": self.temperature,
            "seed": self.seed,
        }
