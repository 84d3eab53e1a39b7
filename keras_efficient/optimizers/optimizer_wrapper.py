"""What optimizers around an optimizer have in common."""

import keras


class OptimizerWrapper(keras.optimizers.Optimizer):
    """An optimizer that hands all but a part of its work to another.

    A subclass defines `build` and `apply`, and adds its options to the config.
    The state of both is saved, its own first.
    """

    def __init__(self, optimizer, name=None):
        optimizer = keras.optimizers.get(optimizer)
        wrappers = (
            OptimizerWrapper,
            keras.optimizers.LossScaleOptimizer,
            keras.optimizers.MultiOptimizer,
        )
        if isinstance(optimizer, wrappers):
            cls = type(self).__name__
            raise ValueError(
                "`optimizer` must be an optimizer, not a wrapper of some. "
                f"Put `LossScaleOptimizer` around `{cls}`, and `{cls}` around "
                "each of those in a `MultiOptimizer`. "
                f"Received: {type(optimizer).__name__}"
            )
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = optimizer

    @property
    def variables(self):
        return self._variables + self.inner_optimizer.variables

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self):
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor):
        if hasattr(self, "inner_optimizer"):  # not while this is initialized
            self.inner_optimizer.loss_scale_factor = factor

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def get_config(self):
        return {
            "name": self.name,
            "optimizer": keras.optimizers.serialize(self.inner_optimizer),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        # Keras overwrites the name of the class in what it is given.
        optimizer = keras.optimizers.deserialize(
            dict(config.pop("optimizer")), custom_objects=custom_objects
        )
        return cls(optimizer, **config)
