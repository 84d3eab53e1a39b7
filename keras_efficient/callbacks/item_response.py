"""Item response theory with one parameter: P(right) = sigmoid(theta - b)."""

import numpy as np

from keras_efficient.backend.arguments import as_array

STEPS = 30  # of Newton's method, each at most 1 wide


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def ability(responses, difficulties):
    """Return the most probable theta, of a prior N(0, 1).

    ```
    theta = argmax  -theta^2 / 2 + sum_i log sigmoid(r_i (theta - b_i))
    ```

    with r_i = 1 for a right answer, -1 for a wrong one. The sum is concave.
    More axes of `responses`, before the last, are more people.
    """
    right = as_array(responses, "float64")
    theta = np.zeros(right.shape[:-1])
    for _ in range(STEPS):
        p = sigmoid(theta[..., None] - difficulties)
        slope = (right - p).sum(-1) - theta
        curvature = (p * (1 - p)).sum(-1) + 1
        theta = theta + np.clip(slope / curvature, -1, 1)
    return theta
