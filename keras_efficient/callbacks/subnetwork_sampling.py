import keras
import numpy as np

from keras_efficient.backend.arguments import check_integers


class SubnetworkSampling(keras.callbacks.Callback):
    """Choose another part of an elastic network before each training step.

    So a network of `keras_efficient.layers.ElasticDense` and `ElasticConv2D`
    trains all its sizes at once (once-for-all). It saves neither memory nor
    time: a step is that of the whole network.

    On JAX, variables are elsewhere while `fit` runs, and what is assigned to
    them between two steps would be lost: the callback brings them back first.
    In a callback of your own, call `model.jax_state_sync()` before
    `set_active`.

    Args:
        choose: Function of a `numpy.random.Generator`, which calls
            `set_active` of the layers.
        seed: Integer. What is drawn depends on it and on the number of the
            step alone. Defaults to `0`.

    Raises:
        TypeError: `choose` is not callable.

    Example:

    ```python
    hidden = keras_efficient.layers.ElasticDense(64, "relu")
    model = keras.Sequential(
        [keras.Input((8,)), hidden, keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    callback = keras_efficient.callbacks.SubnetworkSampling(
        lambda random: hidden.set_active(units=int(random.choice([16, 64])))
    )
    x = np.random.normal(size=(64, 8))
    model.fit(x, x[:, :1], callbacks=[callback])
    ```

    Reference:
        - [Cai et al., 2020](https://arxiv.org/abs/1908.09791)
    """

    def __init__(self, choose, seed=0):
        super().__init__()
        if not callable(choose):
            raise TypeError(
                "`choose` must be a function of a random generator. Received: "
                f"choose={choose}"
            )
        check_integers(0, seed=seed)
        self.choose, self.seed = choose, seed

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        sync = getattr(self.model, "jax_state_sync", None)
        if sync is not None:
            sync()
        self.choose(np.random.default_rng([self.seed, self._epoch, batch]))
