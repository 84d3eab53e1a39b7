import numpy as np

from keras_efficient.backend.arguments import as_array
from keras_efficient.callbacks.item_response import ability

ROUNDS = 200
PRECISION = 1e-6


def item_difficulties(responses):
    """Estimate how hard examples are, from who got them right.

    It needs the answers of several models, or of one after several epochs; it
    makes none itself. The fit is a joint maximum, which leaves out how sure it
    is of each number.

    Abilities theta_j and difficulties b_i are fitted in turn, each concave, by
    Newton's method until neither moves:

    ```
    P(j is right on i) = sigmoid(theta_j - b_i),   theta_j, b_i ~ N(0, 1)
    ```

    The authors of PUDF fit the same model by variational inference.

    Args:
        responses: Array of shape `(people, items)`, 1 where the answer is
            right, 0 where it is wrong.

    Returns:
        Array of float64 of shape `(items,)`: the harder, the higher.

    Raises:
        ValueError: `responses` is no such array.

    Example:

    ```python
    responses = [[1, 1, 0], [1, 0, 0]]
    print(keras_efficient.utils.item_difficulties(responses))
    ```

    Reference:
        - [Meng et al., 2024](https://arxiv.org/abs/2408.05326)
    """
    right = as_array(responses, "float64")
    if right.ndim != 2 or 0 in right.shape or not np.isin(right, (0, 1)).all():
        raise ValueError(
            "`responses` must be an array of shape (people, items) of 0 and 1. "
            f"Received: shape {right.shape}"
        )
    b = np.zeros(right.shape[1])
    for _ in range(ROUNDS):
        before, theta = b, ability(right, b)
        # P(wrong) = sigmoid(b - theta): people and items change places.
        b = ability(1 - right.T, theta)
        if np.abs(b - before).max() < PRECISION:
            break
    return b
