import keras
import numpy as np

from keras_efficient.backend.arguments import as_array
from keras_efficient.backend.arguments import check_numbers


def least_squares_stitch(front, end, ridge=0.0, name=None):
    """Make the layer that leads from one network's features to another's.

    A network that begins as one model and ends as another (SN-Net) then works
    before it is trained; it takes no training, and the features of a hundred
    examples.

    ```
    W, b = argmin |front W + b - end|^2 + ridge |W|^2
    ```

    Args:
        front: Array of shape `(..., features)`: what the first network gives
            before the stitch.
        end: Array of as many rows, `(..., features)`: what the second network
            has there for the same examples.
        ridge: Non-negative float. Defaults to `0.0`.
        name: String, of the layer. Defaults to `None`.

    Returns:
        A built `keras.layers.Dense`, to go on training with.

    Raises:
        ValueError: the numbers of rows differ, or `ridge` is negative.

    Example:

    ```python
    front = np.random.normal(size=(100, 8))
    end = np.tanh(front @ np.random.normal(size=(8, 12)))
    stitch = keras_efficient.utils.least_squares_stitch(front, end)
    ```

    Reference:
        - [Pan et al., 2023](https://arxiv.org/abs/2302.06586)
    """
    front, end = (as_array(a, "float64") for a in (front, end))
    x = front.reshape(-1, front.shape[-1])
    y = end.reshape(-1, end.shape[-1])
    if len(x) != len(y) or not len(x):
        raise ValueError(
            "`front` and `end` must have as many rows, at least one. Received: "
            f"shapes {front.shape} and {end.shape}"
        )
    check_numbers("[0, inf)", ridge=ridge)
    # Without their means, the offset takes no part, and is not penalized.
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = x - x_mean
    if ridge:
        gram = centred.T @ centred + ridge * np.eye(x.shape[1])
        kernel = np.linalg.solve(gram, centred.T @ (y - y_mean))
    else:
        kernel = np.linalg.lstsq(centred, y - y_mean, rcond=None)[0]
    layer = keras.layers.Dense(y.shape[1], name=name)
    layer.build((None, x.shape[1]))
    layer.set_weights([kernel, y_mean - x_mean @ kernel])
    return layer
