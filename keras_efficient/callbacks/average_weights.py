import keras
import numpy as np
from keras import ops


def average_weights(models, into):
    """Give a model the mean of the weights of several.

    What is averaged are trainable weights and the statistics of
    normalizations, in float64. All else, such as seeds, counters and tables,
    stays as it is in `into`. Statistics of a mean of weights are not the mean
    of statistics: call `keras_efficient.utils.recompute_batch_norm`
    afterwards.

    Args:
        models: List of `keras.Model`s of the same architecture, or of paths
            of their files, `.keras` or `.weights.h5`.
        into: `keras.Model` that gets the mean; it may be one of them.

    Returns:
        `into`.

    Raises:
        ValueError: `models` is empty, or shapes are not those of `into`.

    Example:

    ```python
    build = lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    mean = keras_efficient.utils.average_weights(
        [build(), build()], into=build()
    )
    ```
    """
    models = list(models)
    if not models:
        raise ValueError("`models` must not be empty. Received: models=[]")
    before = host_copies(into.variables)
    mean = RunningMean(into)
    try:
        for source in models:
            if not isinstance(source, keras.Model):
                into.load_weights(source)
                source = into
                mean.add(source)
                assign_all(into.variables, before)
            else:
                mean.add(source)
    except Exception:
        assign_all(into.variables, before)
        raise
    mean.write()
    return into


class RunningMean:
    """The mean of the weights of models, on the host.

    Args:
        model: The `keras.Model` that gets the mean.

    Attributes:
        count: Integer, of how many.
    """

    def __init__(self, model):
        self.model = model
        self.count = 0
        self.values = None

    def add(self, model):
        """Take in the weights that a model has now."""
        variables = averaged(model)
        expected = [tuple(v.shape) for v in averaged(self.model)]
        shapes = [tuple(v.shape) for v in variables]
        if shapes != expected:
            raise ValueError(
                "`models` must have weights of the same shapes. Received: "
                f"'{model.name}' with {shapes}, and '{self.model.name}' with "
                f"{expected}"
            )
        self.count += 1
        values = [v.astype("float64") for v in host_copies(variables)]
        if self.values is None:
            self.values = values
        for mean, value in zip(self.values, values):
            mean += (value - mean) / self.count

    def write(self):
        """Assign the mean to the model."""
        assign_all(averaged(self.model), self.values)


def averaged(model):
    """List the variables of a model that are averaged."""
    trainable = {id(variable) for variable in model.trainable_variables}
    return [
        variable
        for variable in model.variables
        if (id(variable) in trainable or variable.name.startswith("moving_"))
        and "float" in keras.backend.standardize_dtype(variable.dtype)
    ]


def host_copies(variables):
    """Return copies as arrays of NumPy; JAX gives its buffers away."""
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def assign_all(variables, values):
    for variable, value in zip(variables, values, strict=True):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        variable.assign(ops.convert_to_tensor(np.asarray(value), dtype))
