import keras


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Base class of optimizers that leave the step to another one.

    Options, learning rate, iterations and the scale of losses are those of
    the optimizer inside. A subclass writes `apply`, and `build`, which builds
    the optimizer inside.
    """

    # What may not be inside, besides its own kind, and what to do about it.
    REFUSED = (keras.optimizers.LossScaleOptimizer,)
    ADVICE = "Put `LossScaleOptimizer` around this one."

    def __init__(self, optimizer, name=None):
        optimizer = keras.optimizers.get(optimizer)
        if isinstance(optimizer, (*self.REFUSED, type(self))):
            raise ValueError(
                "`optimizer` must be an optimizer, not a wrapper of some. "
                f"{self.ADVICE} Received: {type(optimizer).__name__}"
            )
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = optimizer

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.inner_optimizer.build(variables)

    def _known(self, trainable_variables):
        """Build for these variables, or return those it was built for."""
        if not self.built:
            self.build(list(trainable_variables))
        if trainable_variables is None:
            return self._trainable_variables
        self._check_variables_are_known(trainable_variables)
        return list(trainable_variables)

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

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

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
