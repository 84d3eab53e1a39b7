import functools

import keras
from keras import ops

from keras_efficient.autodiff.held_constant import held_constant
from keras_efficient.layers import InvertibleSequential
from keras_efficient.models.adversarial_model import AdversarialModel
from keras_efficient.models.application import channel_axis
from keras_efficient.models.patch_discriminator import PatchDiscriminator
from keras_efficient.models.unpaired_batches import UnpairedBatches
from keras_efficient.models.unpaired_batches import is_array


@keras.saving.register_keras_serializable(package="keras_efficient")
class InvAutoTranslator(AdversarialModel):
    """Translate images of domain A to B, and back with the same weights.

    It learns from images of A and images of B that do not belong together.
    One stack of invertible layers, read forwards, is the generator F_AB; read
    backwards, each layer as the inverse of itself, it is F_BA. This is half
    the parameters of the two generators that others train for a cycle.

    ```
    F_AB(x) = f_n(... f_1(x))
    F_BA(y) = f_1^-1(... f_n^-1(y))

    generator_loss     = sum over both domains of mean (D(F(x)) - 1)^2
                         + cycle_weight * mean |F^-1(F(x)) - x|
    discriminator_loss = sum over both domains of
                         mean (D(y) - 1)^2 / 2 + mean D(F(x))^2 / 2
    ```

    F is learned with D held constant, D with the images F(x) held constant.
    Both losses are one scalar with one backward pass and one step, in which
    every variable has the gradient of its own loss and goes to its own
    optimizer. The cycle drives the layers to orthonormality, where their
    inverses are exact. Adversarial losses are squares, whose gradients do not
    vanish where the discriminator is sure of itself, as those of a
    cross-entropy do.

    All layers are shared and invertible, also those at both ends, so that
    images of A and B have the same number of channels. Change the resolution
    by `InvertibleDownsampling2D` and `InvertibleUpsampling2D`, not by ordinary
    convolutions. Learned slopes let contrast and brightness change, which
    orthonormal kernels keep. Let the stack begin close to the identity, such
    as by a layer and the `Inverse` of another with the same kernel, slopes
    of 1 between them. Random kernels mix up colors and places, and
    adversarial training takes long to put them in order.

    `fit(x, y)` takes the images of A as `x` and those of B as `y`: two arrays
    of any lengths, or a dataset of batches `(x, y)`. Each array is shuffled on
    its own; the shorter one is repeated. `evaluate(x, y)` and
    `validation_data=(x, y)` take the same and do not shuffle. Metrics given
    to `compile` compare F_AB(x) with y, which means something for paired
    images. The logs hold the two losses above, `cycle_error`, the mean of
    |F^-1(F(x)) - x|, and `loss`, the sum of both losses and those that layers
    add.

    Args:
        layers: List of invertible layers, from images to images of the same
            shape, see `keras_efficient.layers.InvertibleSequential`.
        discriminator_a: Layer or model that scores images of A: 1 for real
            ones. Defaults to `None`, a
            `keras_efficient.models.PatchDiscriminator`.
        discriminator_b: The same for B.
        cycle_weight: Non-negative float. Defaults to `10.0`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: Images of A, a tensor of shape
            `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` for `"channels_first"`.

    Returns:
        The images in B, of the same shape.

    Raises:
        TypeError: a layer has no `inverse`.
        ValueError: the layers or their inverses change the shape of images,
            the images of A and B have different numbers of channels, or
            `cycle_weight` is negative.

    Example:

    ```python
    conv = lambda: keras_efficient.layers.InvertibleConv2D(
        12, 3, padding="same"
    )
    model = keras_efficient.models.InvAutoTranslator([
        keras_efficient.layers.InvertibleDownsampling2D(),
        conv(),
        keras_efficient.layers.InvertibleLeakyReLU(learned=True),
        conv(),
        keras_efficient.layers.InvertibleUpsampling2D(),
    ])
    model.compile()
    day = keras.random.uniform((8, 32, 32, 3))
    dusk = keras.random.uniform((6, 32, 32, 3)) ** 2
    model.fit(day, dusk, batch_size=4)
    images = model.translate(day, to="B")
    ```

    Reference:
        - [Teng and Choromanska, 2019](https://arxiv.org/abs/1802.06869)
        - [Zhu et al., 2017](https://arxiv.org/abs/1703.10593), for cycles
        - [Mao et al., 2017](https://arxiv.org/abs/1611.04076), for squares
    """

    def __init__(
        self,
        layers,
        discriminator_a=None,
        discriminator_b=None,
        cycle_weight=10.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not cycle_weight >= 0:
            raise ValueError(
                "`cycle_weight` must not be negative. Received: "
                f"cycle_weight={cycle_weight}"
            )
        self.generator = InvertibleSequential(layers, name="generator")
        if discriminator_a is None:
            discriminator_a = PatchDiscriminator(name="discriminator_a")
        if discriminator_b is None:
            discriminator_b = PatchDiscriminator(name="discriminator_b")
        self.discriminator_a = discriminator_a
        self.discriminator_b = discriminator_b
        self.cycle_weight = cycle_weight
        self.generator_loss_tracker = keras.metrics.Mean("generator_loss")
        self.discriminator_loss_tracker = keras.metrics.Mean(
            "discriminator_loss"
        )
        self.cycle_error_tracker = keras.metrics.Mean("cycle_error")

    def build(self, input_shape):
        if not self.generator.built:
            self.generator.build(input_shape)
        there = self.generator.compute_output_shape(input_shape)
        back = self.generator.compute_inverse_shape(input_shape)
        for way, shape in (("to B", there), ("to A", back)):
            same = [
                None in (a, b) or a == b for a, b in zip(shape, input_shape)
            ]
            if len(shape) != len(input_shape) or not all(same):
                raise ValueError(
                    "`layers` must map images to images of the same shape in "
                    "both directions. Received: images of shape "
                    f"{tuple(input_shape)}, which become {tuple(shape)} on "
                    f"the way {way}. Use as many channels at the end as at "
                    "the beginning, and as much upsampling as downsampling."
                )
        for discriminator in self.discriminators():
            if not discriminator.built:
                discriminator.build(input_shape)

    def call(self, inputs):
        return self.generator(inputs)

    def discriminators(self):
        return [self.discriminator_a, self.discriminator_b]

    def translate(self, images, to="B"):
        """Return `images` of one domain as they would be in the other.

        Args:
            images: Tensor of images, all of which are computed at once. For
                batches of many images of A use `predict`.
            to: `"B"` for images of A, `"A"` for images of B.

        Returns:
            A tensor of the same shape.
        """
        if to == "B":
            return self.generator(images)
        if to == "A":
            return self.generator.inverse(images)
        raise ValueError(f"`to` must be 'A' or 'B'. Received: to={to!r}")

    def fit(self, x=None, y=None, batch_size=None, epochs=1, **kwargs):
        held_out = kwargs.get("validation_data")
        if isinstance(held_out, (tuple, list)) and all(map(is_array, held_out)):
            size = kwargs.get("validation_batch_size") or batch_size
            held_out = UnpairedBatches(*held_out, size, shuffle=False)
            kwargs["validation_data"] = held_out
        if is_array(x) and is_array(y):
            shuffle = kwargs.get("shuffle", True)
            x, y = UnpairedBatches(x, y, batch_size, shuffle), None
            batch_size = None
            kwargs["shuffle"] = False  # nor the batches once more
        return super().fit(x, y, batch_size, epochs, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        if is_array(x) and is_array(y):
            x, y = UnpairedBatches(x, y, batch_size, shuffle=False), None
            batch_size = None
        return super().evaluate(x, y, batch_size, **kwargs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        self._check_images(x, y, sample_weight)
        fake_a = self.translate(y, "A")
        cycle_error = (
            _distance(self.translate(y_pred, "A"), x)
            + _distance(self.translate(fake_a, "B"), y)
        ) / 2
        generator_loss = 2 * self.cycle_weight * cycle_error
        discriminator_loss = 0.0
        for discriminator, real, fake in zip(
            self.discriminators(), (x, y), (fake_a, y_pred)
        ):
            judge = functools.partial(discriminator, training=training)
            with held_constant(discriminator):
                generator_loss += _miss(judge(fake), 1)
            discriminator_loss += _miss(judge(real), 1) / 2
            discriminator_loss += _miss(judge(ops.stop_gradient(fake)), 0) / 2
        n = ops.shape(x)[0]  # the weight that Keras gives to `loss`
        self.generator_loss_tracker.update_state(generator_loss, n)
        self.discriminator_loss_tracker.update_state(discriminator_loss, n)
        self.cycle_error_tracker.update_state(cycle_error, n)
        return sum(self.losses, generator_loss + discriminator_loss)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        generator = self.generator.get_config()
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "layers": generator["layers"],
            "discriminator_a": serialize(self.discriminator_a),
            "discriminator_b": serialize(self.discriminator_b),
            "cycle_weight": self.cycle_weight,
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        layers = [deserialize(layer) for layer in config["layers"]]
        discriminators = {
            name: deserialize(config[name])
            for name in ("discriminator_a", "discriminator_b")
        }
        return cls(**{**config, "layers": layers, **discriminators})

    def _check_images(self, x, y, sample_weight):
        if y is None or sample_weight is not None:
            raise ValueError(
                "`InvAutoTranslator` learns from images of A as `x` and "
                "images of B as `y`, without weights of samples. Received: "
                f"y={y}, sample_weight={sample_weight}"
            )
        axis = channel_axis()
        if len(x.shape) != len(y.shape) or x.shape[axis] != y.shape[axis]:
            raise ValueError(
                "The images of both domains must have the same number of "
                "channels, since the layers that translate them are the same. "
                f"Received: images of A of shape {tuple(x.shape)}, of B of "
                f"shape {tuple(y.shape)}. Repeat the channels of grayscale "
                "images, for example."
            )


def _distance(images, others):
    images, others = ops.cast(images, "float32"), ops.cast(others, "float32")
    return ops.mean(ops.abs(images - others))


def _miss(scores, target):
    """Return the mean square of how far scores are from their target."""
    return ops.mean(ops.square(ops.cast(scores, "float32") - target))
