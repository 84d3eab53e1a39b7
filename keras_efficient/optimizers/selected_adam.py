import math

import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.ops.adam_step import adam_step
from keras_efficient.ops.newton_schulz import newton_schulz
from keras_efficient.ops.uniform_noise import uniform_noise
from keras_efficient.optimizers.compressed_optimizer import CompressedOptimizer
from keras_efficient.optimizers.dense import dense

# Steps and coefficients that end at U V^T, but for singular values a thousand
# times smaller than the norm.
POLAR = 15, (1.5, -0.5, 0.0)


@keras.saving.register_keras_serializable(package="keras_efficient")
class SelectedAdam(CompressedOptimizer):
    """Fine-tune a fixed part of the weights with Adam, those that matter least.

    Of each block of `block_size` entries of a tensor,
    `k = ceil(density * block_size)` are trained, by default those of the
    smallest magnitude when training begins; all others keep their bits.

    ```
    at step 0:  P = places of the k smallest |w| of each block
    m, v, w[P] = adam(g[P], m, v, w[P])
    ```

    State is `9 * density` bytes a parameter: 0.9 for 10 %, where Adam has 8.
    That is what shrinks: the gradient is computed for all weights, and no step
    is faster. Tensors of fewer than `min_size` elements, such as biases and
    normalizations, and those in `exclude_layers`, such as a new head, are
    trained as a whole.

    The paper selects by one threshold for the whole model, so that layers of
    small weights have more places; a fixed number in each block is what makes
    the state small.

    Args:
        learning_rate: A float, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to `0.0005`.
        density: Float in (0, 1], the part that is trained. Defaults to `0.1`.
        select: `"smallest"`, `"largest"` or `"random"`. Defaults to
            `"smallest"`.
        reselect_at: Integer, the step at which those that are no longer among
            the k smallest (or largest) of their block are frozen, too. The
            paper does it after half of the steps. Takes `density` bytes a
            parameter more. Defaults to `None`: never.
        rank_penalty: Float, the factor of the nuclear norm of the trained part
            of each matrix in the loss, `U V^T` in its gradient. The paper's
            is 5e-4; it costs 15 times two products of matrices a step, and in
            one of the authors' two optimizers it never reaches the weights.
            Defaults to `0.0`.
        block_size: Integer from 2 to 32768. Places take one byte up to 256
            and two beyond. Defaults to `256`.
        beta_1: Float in [0, 1). Defaults to `0.9`.
        beta_2: Float in [0, 1). Defaults to `0.999`.
        epsilon: Positive float, added to the root of the second moment.
            Defaults to `1e-7`.
        exclude_layers: List of regular expressions. Tensors whose path one of
            them matches are trained as a whole. Defaults to `None`.
        weight_rounding: `"compensated"`, `"stochastic"` or `"nearest"`, how
            variables of 16 bits are rounded after a step. Defaults to
            `"compensated"`.
        min_size: Integer. Smaller tensors are trained as a whole. Defaults to
            `4096`.
        name: String. Defaults to `None`: `"selected_adam"`, and so on.
        **kwargs: As those of `keras_efficient.optimizers.Adam8bit`.
            `weight_decay` is for what is trained, norms to clip by, too.

    Raises:
        ValueError: an argument is outside its range.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    optimizer = keras_efficient.optimizers.SelectedAdam(density=0.05)
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - SaRA, [Hu et al., 2024](https://arxiv.org/abs/2409.06633)
    """

    def __init__(
        self,
        learning_rate=5e-4,
        density=0.1,
        select="smallest",
        reselect_at=None,
        rank_penalty=0.0,
        block_size=256,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        exclude_layers=None,
        weight_rounding="compensated",
        min_size=4096,
        name=None,
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            min_size,
            weight_rounding,
            exclude_layers,
            name=name,
            **kwargs,
        )
        self.density = density
        self.select = select
        self.reselect_at = reselect_at
        self.rank_penalty = rank_penalty
        self.block_size = block_size
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self._check_decays("beta_1", "beta_2")
        self._check_choices(select=("smallest", "largest", "random"))
        check_numbers("(0, inf)", epsilon=epsilon)
        check_numbers("(0, 1]", density=density)
        check_numbers("[0, inf)", rank_penalty=rank_penalty)
        check_integers(2, block_size=block_size)
        check_numbers("[2, 32768]", block_size=block_size)
        if reselect_at is not None:
            check_integers(1, reselect_at=reselect_at)
            if select == "random":
                raise ValueError(
                    "`reselect_at` must be `None` for what is selected at "
                    f"random. Received: reselect_at={reselect_at}"
                )

    @property
    def _place_dtype(self):
        return "uint8" if self.block_size <= 256 else "int16"

    @property
    def _k(self):
        return math.ceil(self.density * self.block_size)

    def _add_compressed_state(self, variable):
        blocks = math.ceil(math.prod(variable.shape) / self.block_size)
        shape = blocks, self._k
        places = self._place_dtype
        slots = [
            self._add(variable, name, shape, dtype)
            for name, dtype in (
                ("places", places),
                ("momentum", "float32"),
                ("velocity", "float32"),
            )
        ]
        if self.reselect_at:
            slots.append(self._add(variable, "is_trained", shape, "uint8"))
        return tuple(slots)

    def apply(self, grads, trainable_variables=None):
        """As in Keras; the norms to clip by are of what is trained."""
        if not self.built:
            self.build(list(trainable_variables))
        variables = trainable_variables or self._trainable_variables
        self._check_variables_are_known(variables)
        is_clipped = self.clipnorm or self.global_clipnorm
        masked = []
        for gradient, variable in zip(grads, variables, strict=True):
            index = self._get_variable_index(variable)
            if gradient is not None and self._is_compressed[index]:
                slots = self._states[index]
                self._select(index, variable, slots)
                if is_clipped:
                    # Slices of TensorFlow become a tensor by this.
                    gradient = ops.reshape(dense(gradient), variable.shape)
                    gradient = self._masked(gradient, slots)
            masked.append(gradient)
        super().apply(masked, trainable_variables)

    def _select(self, index, variable, slots):
        """Choose the places, at the steps at which that is done."""
        old = [ops.convert_to_tensor(slots[i]) for i in (0, -1)]
        places, is_trained = ops.cond(
            self.iterations == 0,
            lambda: self._first(index, variable, old),
            lambda: tuple(old),
        )
        if self.reselect_at:
            is_trained = ops.cond(
                self.iterations == self.reselect_at,
                lambda: self._still_trained(index, variable, old),
                lambda: is_trained,
            )
            self.assign(slots[3], is_trained)
        self.assign(slots[0], places)

    def _first(self, index, variable, old):
        _, places = ops.top_k(self._scores(index, variable), self._k)
        return ops.cast(places, self._place_dtype), ops.ones_like(old[1])

    def _still_trained(self, index, variable, old):
        scores = self._scores(index, variable)
        border = ops.top_k(scores, self._k)[0][:, -1:]
        found = ops.take_along_axis(scores, ops.cast(old[0], "int32"), 1)
        return old[1] * ops.cast(found >= border, "uint8")

    def _scores(self, index, variable):
        """Return numbers of which the largest are selected, in blocks."""
        x = ops.convert_to_tensor(variable)
        if self.select == "random":
            x = uniform_noise(tuple(x.shape), 0, index)
        x = ops.abs(ops.cast(x, "float32"))
        if self.select == "smallest":
            x = -x
        return self._blocks(x, -math.inf)

    def _blocks(self, x, fill=0.0):
        size = math.prod(x.shape)
        x = ops.reshape(x, (size,))
        pads = -size % self.block_size
        x = ops.pad(x, [(0, pads)], constant_values=fill)
        return ops.reshape(x, (-1, self.block_size))

    def _read(self, x, places):
        """Return what stands at places of blocks, in float32."""
        x = self._blocks(ops.cast(x, "float32"))
        return ops.take_along_axis(x, ops.cast(places, "int32"), 1)

    def _spread(self, values, places, shape):
        """Return a tensor of zeros but for the values at places."""
        blocks = ops.shape(places)[0]
        starts = self.block_size * ops.arange(blocks, dtype="int32")
        indices = ops.reshape(
            starts[:, None] + ops.cast(places, "int32"), (-1,)
        )
        x = ops.scatter_update(
            ops.zeros((blocks * self.block_size,), "float32"),
            indices[:, None],
            ops.reshape(values, (-1,)),
        )
        return ops.reshape(x[: math.prod(shape)], shape)

    def _masked(self, gradient, slots):
        shape = tuple(gradient.shape)
        places = ops.convert_to_tensor(slots[0])
        values = self._read(gradient, places)
        if self.reselect_at:
            values = values * ops.cast(slots[3], "float32")
        return ops.cast(self._spread(values, places, shape), gradient.dtype)

    def _step_compressed(self, gradient, state, index, places=None):
        variable = self._trainable_variables[index]
        shape = tuple(variable.shape)
        places, m, v, *is_trained = state  # not a shard
        g = self._read(gradient, places)
        w = self._read(ops.convert_to_tensor(variable), places)
        if self.rank_penalty and len(shape) == 2:
            chosen = self._spread(w, places, shape)
            chosen = newton_schulz(chosen, *POLAR)
            g = g + self.rank_penalty * self._read(chosen, places)
        update, new_m, new_v = adam_step(g, m, v, **self._options())
        update = update + super()._decay_of(variable) * w
        if is_trained:
            go = is_trained[0] > 0
            update = ops.where(go, update, ops.zeros_like(update))
            new_m, new_v = ops.where(go, new_m, m), ops.where(go, new_v, v)
        update = self._spread(update, places, shape)
        return update, places, new_m, new_v, *is_trained

    # What is selected decays in its step.

    def _decay_of(self, variable):
        is_selected = self._is_compressed[self._get_variable_index(variable)]
        return 0.0 if is_selected else super()._decay_of(variable)

    def _apply_weight_decay(self, variables):
        rest = [v for v in variables if self._decay_of(v)]
        if rest:  # PyTorch refuses none
            super()._apply_weight_decay(rest)

    def get_config(self):
        names = ("density", "select", "reselect_at", "rank_penalty")
        names += ("block_size", "beta_1", "beta_2", "epsilon", "min_size")
        config = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **config}
