import numpy as np

from keras_efficient.backend.arguments import as_array


def class_statistics(features, labels):
    """Return the mean and the covariance of the features of each class.

    It is what `keras_efficient.utils.align_classifier` draws features from in
    place of examples that are gone; it takes features^2 floats a class, 236 MB
    for 100 classes of 768.

    Args:
        features: Array of shape `(examples, features)`, such as
            `backbone.predict(x)`.
        labels: Array of one integer class an example, from 0.

    Returns:
        `(means, covariances)`, float32 arrays of shapes `(classes, features)`
        and `(classes, features, features)`; covariances divide by the number
        of examples.

    Raises:
        ValueError: arrays do not fit, or a class up to the largest is empty.

    Example:

    ```python
    features = np.random.normal(size=(60, 4))
    means, covariances = keras_efficient.utils.class_statistics(
        features, np.arange(60) % 3
    )
    ```

    Reference:
        - [Zhang et al., 2023](https://arxiv.org/abs/2303.05118)
    """
    features = as_array(features, "float64")
    labels = as_array(labels)
    if (
        features.ndim != 2
        or labels.shape != features.shape[:1]
        or labels.dtype.kind not in "iu"
        or labels.min(initial=0) < 0
    ):
        raise ValueError(
            "`features` must be of shape (examples, features), `labels` one "
            "integer of at least 0 for each. Received: "
            f"{features.shape}, {labels.shape} of {labels.dtype}"
        )
    means, covariances = [], []
    for label in range(int(labels.max()) + 1):
        rows = features[labels == label]
        if not len(rows):
            raise ValueError(
                "Each class must have examples. Received: none of class "
                f"{label}"
            )
        means.append(rows.mean(0))
        covariances.append(
            np.cov(rows.T, bias=True).reshape(2 * rows.shape[1:])
        )
    return np.array(means, "float32"), np.array(covariances, "float32")
