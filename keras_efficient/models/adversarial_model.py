"""What models with a generator and discriminators have in common."""

import functools

import keras


class AdversarialModel(keras.Model):
    """A model that is compiled with two optimizers.

    A subclass defines `discriminators` and `compute_loss`, which returns one
    scalar. The training step is that of Keras: one backward pass, after which
    each variable goes to the optimizer that it belongs to.
    """

    def discriminators(self):
        """Return the layers that the discriminator's optimizer trains."""
        raise NotImplementedError

    def compile(
        self, generator_optimizer=None, discriminator_optimizer=None, **kwargs
    ):
        """Configure training.

        Args:
            generator_optimizer: Optimizer of the generator, by name or an
                instance. Defaults to `None`,
                `keras.optimizers.Adam(2e-4, beta_1=0.5)`.
            discriminator_optimizer: That of both discriminators, likewise;
                another instance.
            **kwargs: Other arguments of `keras.Model.compile`, such as
                `metrics` and `jit_compile`, but `optimizer` and losses.
        """
        refused = {"optimizer", "loss", "loss_weights"} & set(kwargs)
        if refused:
            raise ValueError(
                f"`{type(self).__name__}` has losses of its own and two "
                "optimizers, `generator_optimizer` and "
                f"`discriminator_optimizer`. Received: {sorted(refused)}"
            )
        generator_optimizer = _optimizer(generator_optimizer, "generator")
        discriminator_optimizer = _optimizer(
            discriminator_optimizer, "discriminator"
        )
        if generator_optimizer is discriminator_optimizer:
            raise ValueError(
                "`generator_optimizer` and `discriminator_optimizer` must be "
                f"two instances. Received twice: {generator_optimizer}"
            )
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        both = keras.optimizers.MultiOptimizer(self._optimizer_of)
        super().compile(both, **kwargs)
        self._serialize_compile_config = functools.partial(
            keras.saving.serialize_keras_object,
            {
                "generator_optimizer": generator_optimizer,
                "discriminator_optimizer": discriminator_optimizer,
                **kwargs,
            },
        )

    def get_compile_config(self):
        return self._serialize_compile_config() if self.compiled else {}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def zero_grad(self, set_to_none=True):
        # Called by the training step of Keras on PyTorch, which registers
        # variables by their paths (Keras 3.15). Of two discriminators whose
        # layers have the same names one may be missed, as after loading, and
        # its gradients would add up from step to step.
        for variable in self.trainable_variables:
            variable.value.grad = None

    def _optimizer_of(self, variable):
        for layer in self.discriminators():
            if any(variable is other for other in layer.variables):
                return self.discriminator_optimizer
        return self.generator_optimizer


def _optimizer(optimizer, owner):
    if optimizer is None:
        return keras.optimizers.Adam(2e-4, beta_1=0.5, name=f"{owner}_adam")
    return keras.optimizers.get(optimizer)
