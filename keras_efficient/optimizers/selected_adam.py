import math

import keras
import numpy as np
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.ops.adam_step import adam_step
from keras_efficient.ops.joined_blocks import JoinedBlocks
from keras_efficient.ops.joined_blocks import at_indices
from keras_efficient.ops.joined_blocks import concatenate
from keras_efficient.ops.joined_blocks import cut
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
        select: `"smallest"`, the default, `"largest"` or `"random"`.
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
        min_size: Integer. Smaller ones are trained whole. Defaults to `4096`.
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
    def _k(self):
        return math.ceil(self.density * self.block_size)

    def _add_compressed_state(self, variable):
        blocks = math.ceil(math.prod(variable.shape) / self.block_size)
        shape = blocks, self._k
        places = "uint8" if self.block_size <= 256 else "int16"
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
        indices = [self._get_variable_index(v) for v in variables]
        rows = [*zip(indices, grads, strict=True)]
        compressed = [
            i for i, g in rows if g is not None and self._is_compressed[i]
        ]
        self._select(0, compressed, self._first)
        if self.reselect_at:
            self._select(self.reselect_at, compressed, self._still_trained)
        if self.clipnorm or self.global_clipnorm:
            grads = [
                self._masked(i, g) if i in compressed else g for i, g in rows
            ]
        super().apply(grads, trainable_variables)

    def _select(self, step, indices, choose):
        """Give variables new places, or new flags, at one step."""
        slots = [self._states[i][::3] for i in indices]  # places, flags
        old = [[ops.convert_to_tensor(x) for x in row] for row in slots]
        new = ops.cond(
            self.iterations == step,
            lambda: [choose(i, *row) for i, row in zip(indices, old)],
            lambda: old,
        )
        for row in zip(slots, old, new):
            for slot, x, y in zip(*row):
                if y is not x:  # on PyTorch it is, at all other steps
                    self.assign(slot, y)

    def _first(self, index, places, *is_trained):
        _, found = ops.top_k(self._scores(index), self._k)
        found = ops.cast(found, places.dtype)
        return [found, *map(ops.ones_like, is_trained)]

    def _still_trained(self, index, places, is_trained):
        scores = self._scores(index)
        border = ops.top_k(scores, self._k)[0][:, -1:]
        found = ops.take_along_axis(scores, ops.cast(places, "int32"), 1)
        return [places, is_trained * ops.cast(found >= border, "uint8")]

    def _scores(self, index):
        """Return numbers of which the largest are selected, in blocks."""
        x = ops.convert_to_tensor(self._trainable_variables[index])
        blocks = JoinedBlocks([x.shape], self.block_size)
        if self.select == "random":
            x = uniform_noise(tuple(x.shape), 0, index)
        x = ops.abs(blocks.join([ops.cast(x, "float32")]))
        x = -x if self.select == "smallest" else x
        places = ops.arange(self.block_size, dtype="float32")
        return ops.where(places >= blocks.counts(), -math.inf, x)

    def _masked(self, index, gradient):
        shape = tuple(self._trainable_variables[index].shape)
        # Slices of TensorFlow become a tensor by this.
        gradient = ops.reshape(dense(gradient), shape)
        blocks = JoinedBlocks([shape], self.block_size)
        places, _, _, *is_trained = self._states[index]
        values = _read(blocks, [gradient], places)
        for x in is_trained:
            values = values * ops.cast(x, "float32")
        (masked,) = _spread(blocks, values, places)
        return ops.cast(masked, gradient.dtype)

    def _step_compressed(self, gradient, state, index, places=None):
        variable = self._trainable_variables[index]
        (results,) = self._step_blocks([variable], [gradient], [state])
        return results

    def _step_batch(self, rows, learning_rate):
        _, variables, _, gradients, states = zip(*rows)
        results = self._step_blocks(variables, gradients, states)
        for variable, old, (update, *new) in zip(variables, states, results):
            for x, y in zip(old[1:3], new[1:3]):  # the moments, on PyTorch
                x.copy_(y)
            self._move(variable, update, learning_rate)

    def _step_blocks(self, variables, gradients, states):
        """Return what `_step_compressed` does, of several variables.

        Blocks know nothing of the tensor they are in.
        """
        blocks = JoinedBlocks([x.shape for x in variables], self.block_size)
        places, m, v, *is_trained = map(concatenate, zip(*states))
        g = _read(blocks, gradients, places)
        w = _read(blocks, map(ops.stop_gradient, variables), places)
        if self.rank_penalty:
            g = g + self.rank_penalty * self._polar(blocks, w, places)
        update, new_m, new_v = adam_step(g, m, v, **self._options())
        decays = [super(SelectedAdam, self)._decay_of(x) for x in variables]
        decays = np.repeat(decays, blocks.blocks)[:, None]
        update = update + w * ops.convert_to_tensor(decays, "float32")
        if is_trained:
            go = is_trained[0] > 0
            update = ops.where(go, update, ops.zeros_like(update))
            new_m, new_v = ops.where(go, new_m, m), ops.where(go, new_v, v)
        state = places, new_m, new_v, *is_trained
        state = [cut(x, blocks.blocks) for x in state]
        return zip(_spread(blocks, update, places), *state)

    def _polar(self, blocks, w, places):
        """Return the gradient of the nuclear norms, at places of blocks."""
        polar = [
            newton_schulz(x, *POLAR) if len(x.shape) == 2 else 0.0 * x
            for x in _spread(blocks, w, places)
        ]
        return _read(blocks, polar, places)

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


def _read(blocks, tensors, places):
    """Return what stands at places of blocks, in float32."""
    x = blocks.join([ops.cast(x, "float32") for x in tensors])
    return ops.take_along_axis(x, ops.cast(places, "int32"), 1)


def _spread(blocks, values, places):
    """Return tensors of zeros but for the values at places of blocks."""
    return blocks.split(at_indices(places, values, blocks.block_size))
