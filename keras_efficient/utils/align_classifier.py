import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import as_array
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers


def align_classifier(
    head,
    means,
    covariances,
    tasks=None,
    epochs=5,
    samples=256,
    temperature=0.1,
    learning_rate=0.01,
    batch_size=128,
    seed=0,
):
    """Train a head once more, on features drawn anew for all classes (SLCA).

    It undoes the bias to the classes that were learned last, without their
    examples; it leaves the backbone as it is, and saves nothing.

    In each epoch, `samples` features of each class c of task t, of T, come from

    ```
    N(means_c (0.9 + 0.1 (t + 1) / (T + 1)),  covariances_c + 1e-5 I)
    ```

    and the head learns to tell them apart by the cross-entropy of

    ```
    logits / (temperature |logits|),   |logits| the mean of the norms by task
    ```

    by SGD with a momentum of 0.9, a decay of 5e-4 and a rate that falls by a
    cosine. While a backbone is fine-tuned on a task, give it a rate a hundredth
    of that of the head: `keras.optimizers.MultiOptimizer`.

    Args:
        head: Built layer from features to logits. It is trained in place.
        means: Array of shape `(classes, features)`; see
            `keras_efficient.utils.class_statistics`.
        covariances: Array of shape `(classes, features, features)`.
        tasks: List of the number of the task of each class, from 0. Defaults
            to `None`, one task.
        epochs: Positive integer. Defaults to `5`.
        samples: Positive integer. Defaults to `256`.
        temperature: Positive float. Defaults to `0.1`.
        learning_rate: Positive float. Defaults to `0.01`.
        batch_size: Positive integer. Defaults to `128`.
        seed: Integer. Defaults to `0`.

    Returns:
        List of the mean loss of each epoch.

    Raises:
        ValueError: arrays or tasks do not fit, the head is not built or not
            trained, or a number is not positive.

    Example:

    ```python
    features = np.random.normal(size=(60, 4)).astype("float32")
    statistics = keras_efficient.utils.class_statistics(
        features, np.arange(60) % 3
    )
    head = keras.layers.Dense(3)
    head.build((None, 4))
    keras_efficient.utils.align_classifier(head, *statistics, epochs=1)
    ```

    Reference:
        - [Zhang et al., 2023](https://arxiv.org/abs/2303.05118)
    """
    means, covariances = map(as_array, (means, covariances))
    classes = len(means)
    tasks = np.zeros(classes, int) if tasks is None else as_array(tasks)
    if (
        means.ndim != 2
        or covariances.shape != (*means.shape, means.shape[1])
        or tasks.shape != (classes,)
        or set(tasks) != set(range(tasks.max() + 1))
    ):
        raise ValueError(
            "`means`, `covariances` and `tasks` must be of shapes (classes, "
            "features), (classes, features, features) and (classes,), tasks "
            f"being numbered from 0. Received: {means.shape}, "
            f"{covariances.shape} and tasks={tasks.tolist()}"
        )
    if not (head.built and head.trainable_variables):
        raise ValueError(
            "`head` must be built, and have trainable weights. Received: "
            f"{head}, built={head.built}, trainable={head.trainable}"
        )
    check_integers(1, epochs=epochs, samples=samples, batch_size=batch_size)
    check_numbers(
        "(0, inf)", temperature=temperature, learning_rate=learning_rate
    )
    count = int(tasks.max()) + 1
    means = means * (0.9 + 0.1 * (tasks + 1) / (count + 1))[:, None]
    factors = [_factor(covariance) for covariance in covariances]
    labels = np.repeat(np.arange(classes), samples)
    steps = epochs * -(-len(labels) // batch_size)
    model = keras.Sequential([keras.Input(means.shape[1:]), head])
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps),
            momentum=0.9,
            weight_decay=5e-4,
        ),
        _decoupled_loss(tasks, temperature),
    )
    random, losses = np.random.default_rng(seed), []
    for _ in range(epochs):
        noise = random.normal(size=(classes, samples, means.shape[1]))
        x = [m + z @ f.T for m, z, f in zip(means, noise, factors)]
        x = np.concatenate(x).astype("float32")
        order = random.permutation(len(x))
        history = model.fit(
            x[order],
            labels[order],
            batch_size=batch_size,
            verbose=0,
            shuffle=False,
        )
        losses += history.history["loss"]
    return losses


def _factor(covariance):
    """Return F with F F^T = covariance + 1e-5 I."""
    values, vectors = np.linalg.eigh(covariance.astype("float64"))
    return vectors * np.sqrt(np.maximum(values, 0) + 1e-5)


def _decoupled_loss(tasks, temperature):
    members = np.eye(int(tasks.max()) + 1, dtype="float32")[tasks]

    def loss(labels, logits):
        logits = ops.cast(logits, "float32")
        # (batch, tasks): the squares of the logits of each task.
        squares = ops.matmul(ops.square(logits), members)
        norm = ops.mean(ops.sqrt(squares + 1e-14), axis=-1, keepdims=True)
        return keras.losses.sparse_categorical_crossentropy(
            labels, logits / (norm + 1e-7) / temperature, from_logits=True
        )

    return loss
