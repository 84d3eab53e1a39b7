import keras
import numpy as np
from keras import ops

from keras_efficient.optimizers.excluded import is_end
from keras_efficient.optimizers.names import path_of
from keras_efficient.optimizers.optimizer_wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_efficient")
class GradientProjection(OptimizerWrapper):
    """Learn something new without changing what old inputs give.

    It keeps a model from forgetting tasks whose examples are gone; it saves no
    memory, takes that of the bases and one copy of the weights in a step, and
    with each task less is left to learn in.

    A kernel W whose old inputs lie in the columns of S, orthonormal, moves only
    at right angles to them, so that x W stays as it is for x = S z:

    ```
    G <- G - S S^T G,      U = the optimizer's step,     W <- W + U - S S^T U
    ```

    The gradient is projected before it is clipped and enters moments, as in the
    paper; the step once more, since Adam divides by a different number for
    each entry, and weight decay has a direction of its own. Kernels of more
    than two axes, such as those of convolutions, are matrices of as many rows
    as S has. Variables without a basis train as ever; what they do to old
    inputs is not prevented. `keras_efficient.utils.input_bases` finds bases for
    `Dense` and `Conv2D` layers and holds their biases.

    CUBER, which lets gradients of related tasks through, is not built beyond
    this: its text was not at hand.

    Args:
        optimizer: `keras.optimizers.Optimizer`, or what
            `keras.optimizers.get` takes. It belongs to the wrapper from then
            on. It must not have `use_ema`, whose averages would be of steps
            that are not projected.
        bases: Dictionary from paths of variables to arrays of shape
            `(rows, directions)` with orthonormal columns. They are saved with
            the settings of the optimizer.
        name: String. Defaults to a name of the class.

    Raises:
        ValueError: a basis is not orthonormal, belongs to no variable or does
            not fit it, or `optimizer` is a wrapper itself or has `use_ema`.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    x = np.random.normal(size=(3, 8)).astype("float32")
    before = model(x)
    optimizer = keras_efficient.optimizers.GradientProjection(
        "adam", keras_efficient.utils.input_bases(model, x, energy=1.0)
    )
    model.compile(optimizer, "mse")
    model.fit(np.random.normal(size=(64, 8)), np.zeros((64, 4)))
    print(keras.ops.max(keras.ops.abs(model(x) - before)))
    ```

    Reference:
        - [Saha et al., 2021](https://arxiv.org/abs/2103.09762), for gradients
        - [Lin et al., 2022](https://arxiv.org/abs/2211.00789), CUBER
    """

    REFUSED = (
        keras.optimizers.LossScaleOptimizer,
        keras.optimizers.MultiOptimizer,
    )
    ADVICE = (
        "Put `LossScaleOptimizer` around this one, and this one around those "
        "in a `MultiOptimizer`."
    )

    def __init__(self, optimizer, bases, name=None):
        super().__init__(optimizer, name)
        if self.inner_optimizer.use_ema:
            raise ValueError(
                "`optimizer` must not average weights. Received: use_ema=True"
            )
        self.bases = {
            path: np.asarray(basis, "float32") for path, basis in bases.items()
        }
        for path, basis in self.bases.items():
            error = 1.0
            if basis.ndim == 2:
                error = np.abs(basis.T @ basis - np.eye(basis.shape[1]))
            if not np.max(error, initial=0) < 1e-3:
                raise ValueError(
                    "`bases` must be matrices with orthonormal columns. "
                    f"Received: shape {basis.shape} for '{path}'"
                )

    def build(self, variables):
        if self.built:
            return
        keras.optimizers.Optimizer.build(self, variables)
        rows = {}
        for path, basis in self.bases.items():
            found = [
                i
                for i, variable in enumerate(variables)
                if is_end(path_of(variable), path)
            ]
            if len(found) != 1 or found[0] in rows:
                raise ValueError(
                    "Each path in `bases` must be that of one variable that is "
                    f"trained. Received: '{path}', which fits {len(found)}"
                )
            variable = variables[found[0]]
            size = int(np.prod(variable.shape))
            if size % len(basis) or not self._fits(variable.shape, len(basis)):
                raise ValueError(
                    "A basis must have as many rows as the kernel has, as a "
                    f"matrix. Received: {len(basis)} rows for '{path}' of "
                    f"shape {tuple(variable.shape)}"
                )
            rows[found[0]] = self.add_variable(
                shape=basis.shape,
                initializer=_constant(basis),
                dtype="float32",
                name=f"basis_{found[0]}",
            )
        # Not by `setattr`, which would track them once more.
        self.__dict__["_basis_of"] = {
            self._var_key(variables[i]): basis for i, basis in rows.items()
        }
        self.inner_optimizer.build(variables)

    @staticmethod
    def _fits(shape, rows):
        products = np.cumprod([1, *shape])
        return rows in products

    def apply(self, grads, trainable_variables=None):
        trainable_variables = self._known(trainable_variables)
        bases = [
            self._basis_of.get(self._var_key(v)) for v in trainable_variables
        ]
        grads = [
            g if s is None or g is None else _project(g, s)
            for g, s in zip(grads, bases)
        ]
        held = [
            (v, s, ops.copy(v.value))
            for v, s in zip(trainable_variables, bases)
            if s is not None
        ]
        self.inner_optimizer.apply(grads, trainable_variables)
        for variable, basis, before in held:
            step = ops.subtract(
                ops.cast(variable.value, "float32"),
                ops.cast(before, "float32"),
            )
            after = ops.cast(before, "float32") + _project(step, basis)
            variable.assign(ops.cast(after, variable.dtype))

    def get_config(self):
        bases = {path: basis.tolist() for path, basis in self.bases.items()}
        return {**super().get_config(), "bases": bases}


def _project(x, basis):
    """Return x - S S^T x, x being a matrix of as many rows as S."""
    rows = ops.reshape(ops.cast(x, "float32"), (basis.shape[0], -1))
    inside = ops.matmul(basis, ops.matmul(ops.transpose(basis), rows))
    return ops.cast(ops.reshape(rows - inside, x.shape), x.dtype)


def _constant(basis):
    return lambda shape, dtype=None: ops.convert_to_tensor(basis, dtype)
