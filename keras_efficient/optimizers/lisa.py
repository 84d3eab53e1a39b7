import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.ops.adam_8bit_arguments import Adam8bitState
from keras_efficient.ops.adam_8bit_step import adam_8bit_step
from keras_efficient.ops.adam_step import adam_step
from keras_efficient.ops.uniform_noise import uniform_noise
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.optimizers.adam_8bit import Adam8bit
from keras_efficient.optimizers.alike_blocks import choose
from keras_efficient.optimizers.alike_blocks import roles
from keras_efficient.optimizers.dense import dense
from keras_efficient.optimizers.variable_groups import find_groups
from keras_efficient.optimizers.variable_groups import groups_record
from keras_efficient.optimizers.variable_groups import layer_names


@keras.saving.register_keras_serializable(package="keras_efficient")
class LISA(Adam8bit):
    """Fine-tune a few blocks at a time, with Adam's state for these alone.

    Of a stack of blocks of like shapes, `active_blocks` are trained for
    `period` steps, then others. What is in no block, such as embeddings, final
    normalization and head, is always trained. The state of a block begins at
    zero each time:

    ```
    every `period` steps:  S = the next `active_blocks` blocks
    g = g of what is in S or in no block, else 0     (before it is clipped)
    m, v = 0 for S;  t = 1, 2, ... period
    w = w - learning_rate (adam(g, m, v, t) + weight_decay w)     for S
    ```

    State of the blocks lies in slots, one for each active block: its bytes
    are those of Adam times `active_blocks / len(blocks)`, or those of Adam8bit
    times that. Which blocks are active is computed from the number of the
    step inside the compiled step, without a callback or a retrace, and a run
    that is resumed goes on with the same ones. What shrinks is the state:
    gradients of all blocks are still computed, and no step is faster. Weights
    of a block that is not active keep their bits.

    Args:
        learning_rate: As of `Adam8bit`. Defaults to `0.001`.
        blocks: List with one entry for each block: a layer, or a part of the
            paths of its variables in whole steps, `"encoder/block_3"` or
            `"block_3"`. Trainable variables of all blocks must have the same
            shapes in the same order.
        active_blocks: Integer, how many are trained at a time. Defaults to
            `2`.
        period: Integer, the number of steps until others are. Defaults to
            `20`.
        order: `"cycle"`, all blocks in turn, in another order each time; or
            `"uniform"`, drawn anew each period, as in the paper: few periods
            then leave blocks out. Defaults to `"cycle"`.
        moments: `"float32"` or `"8bit"`, those of `Adam8bit`, for all tensors
            of at least `min_size` elements. Defaults to `"float32"`.
        seed: Integer, of the order. Defaults to `0`.
        beta_1, beta_2, epsilon, exclude_layers, weight_rounding, min_size,
            name, **kwargs: As those of `keras_efficient.optimizers.Adam8bit`.

    Raises:
        ValueError: an argument is outside its range; when it is built, if
            blocks are not alike, overlap, or have no variables.

    Example:

    ```python
    model = keras.Sequential([keras.Input((8,))] + [
        keras.layers.Dense(8, "relu", name=f"block_{i}") for i in range(4)
    ])
    optimizer = keras_efficient.optimizers.LISA(
        blocks=[f"block_{i}" for i in range(4)], active_blocks=1
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Pan et al., 2024](https://arxiv.org/abs/2403.17919)
    """

    NEEDS_ALL_GRADIENTS = True

    def __init__(
        self,
        learning_rate=0.001,
        *,
        blocks,
        active_blocks=2,
        period=20,
        order="cycle",
        moments="float32",
        seed=0,
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
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            exclude_layers=exclude_layers,
            weight_rounding=weight_rounding,
            min_size=min_size,
            name=name,
            **kwargs,
        )
        self.blocks = [layer_names("blocks", x)[0] for x in blocks]
        self.active_blocks = active_blocks
        self.period = period
        self.order = order
        self.moments = moments
        self.seed = seed
        self._check_choices(
            order=("cycle", "uniform"), moments=("float32", "8bit")
        )
        check_integers(1, active_blocks=active_blocks)
        if not active_blocks <= len(self.blocks):
            raise ValueError(
                "`active_blocks` must be from 1 to the number of `blocks`. "
                f"Received: active_blocks={active_blocks} of "
                f"{len(self.blocks)} blocks"
            )
        check_integers(1, period=period)
        # Not by `setattr`, because TensorFlow would wrap it.
        self.__dict__["_record"] = None

    def build(self, variables):
        if self.built:
            return
        found = find_groups(
            "blocks", [[x] for x in self.blocks], variables, self._record
        )
        self.__dict__["_block_of"] = found
        self.__dict__["_roles"] = roles(variables, found, self.blocks)
        super().build(variables)
        self.__dict__["_record"] = groups_record(variables, found)
        self._slots = [
            self._add_slots(role[0], variables[role[0]]) for role in self._roles
        ]

    def _is_compressible(self, variable):
        return self.moments == "8bit" and super()._is_compressible(variable)

    def _add_compressed_state(self, variable):
        is_in_block = self._block(variable) is not None
        return () if is_in_block else super()._add_compressed_state(variable)

    def _add_plain_state(self, variable):
        is_in_block = self._block(variable) is not None
        return () if is_in_block else super()._add_plain_state(variable)

    def _block(self, variable):
        return self._block_of[self._get_variable_index(variable)]

    def _add_slots(self, index, variable):
        """Return the state of each active block, for a role's first."""
        add = super()._add_plain_state
        if self._is_compressed[index]:
            add = super()._add_compressed_state
        return [add(variable) for _ in range(self.active_blocks)]

    def active(self):
        """Return the indices of the active blocks, int32, in this step."""
        turn = ops.cast(self.iterations, "int32") // self.period
        count = len(self.blocks)
        return choose(count, self.active_blocks, turn, self.order, self.seed)

    def _is_active(self):
        """Return a vector of booleans, one for each block."""
        blocks = ops.arange(len(self.blocks), dtype="int32")
        return ops.any(blocks[:, None] == self.active()[None], axis=1)

    def apply(self, grads, trainable_variables=None):
        """As in Keras; gradients of what is not active count as 0."""
        if not self.built:
            self.build(list(trainable_variables))
        variables = trainable_variables or self._trainable_variables
        self._check_variables_are_known(variables)
        is_active = self._is_active()
        masked = []
        for gradient, variable in zip(grads, variables, strict=True):
            block = self._block(variable)
            if gradient is not None and block is not None:
                gradient = dense(gradient)
                zeros = ops.zeros_like(gradient)
                gradient = ops.where(is_active[block], gradient, zeros)
            masked.append(gradient)
        super().apply(masked, trainable_variables)

    def _apply_weight_decay(self, variables):
        # Variables of blocks decay in their step.
        rest = [v for v in variables if self._block(v) is None]
        rest = [v for v in rest if self._decay_of(v)]
        if rest:  # PyTorch refuses none
            super()._apply_weight_decay(rest)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        rest, in_blocks = [], {}
        for gradient, variable in zip(grads, trainable_variables):
            index = self._get_variable_index(variable)
            if self._block_of[index] is None:
                rest.append((gradient, variable))
            else:
                in_blocks[index] = gradient, variable
        if rest:
            super()._backend_update_step(*zip(*rest), learning_rate)
        active, rate = self.active(), ops.cast(learning_rate, "float32")
        for number, role in enumerate(self._roles):
            rows = [in_blocks.get(index) for index in role]
            self._step_role(number, rows, active, rate)

    def _step_role(self, number, rows, active, learning_rate):
        """Step the variables of one role.

        `rows` has for each block a gradient and its variable, or `None`.
        """
        given = [row for row in rows if row is not None]
        if not given:
            return
        zeros = ops.zeros(given[0][1].shape, "float32")
        gradients = [
            zeros if row is None else ops.cast(row[0], "float32")
            for row in rows
        ]
        branches = [lambda g=g: g for g in gradients]
        moves = [zeros] * len(rows)
        for place, slots in enumerate(self._slots[number]):
            gradient = ops.switch(active[place], branches)
            update = self._step_slot(number, place, gradient, slots)
            moves = [
                ops.where(active[place] == block, update, move)
                for block, move in enumerate(moves)
            ]
        rates = ops.cast(self._is_active(), "float32") * learning_rate
        for block, row in enumerate(rows):
            if row is not None:
                self._move_in_block(row[1], moves[block], rates[block])

    def _step_slot(self, number, place, gradient, slots):
        """Assign the new state of a slot; return Adam's update."""
        iterations = ops.cast(self.iterations, "int32")
        step = iterations % self.period + 1
        state = []
        for slot in slots:  # which another block may have left
            value = ops.convert_to_tensor(slot)
            zeros = ops.zeros_like(value)
            state.append(ops.where(step == 1, zeros, value))
        options = {**self._options(), "step": step}
        if len(slots) == 2:
            update, *state = adam_step(gradient, *state, **options)
        else:
            # A seed that no state has, nor a correction of 16 bits.
            seed = len(self._block_of) + number * self.active_blocks + place
            noise = uniform_noise(slots[-1].shape, iterations, seed)
            update, state = adam_8bit_step(
                gradient, Adam8bitState(*state), noise=noise, **options
            )
        for slot, value in zip(slots, state):
            self.assign(slot, value)
        return update

    def _move_in_block(self, variable, update, rate):
        """Subtract `rate * update`, and decay; nothing moves at rate 0."""
        index = self._get_variable_index(variable)
        if is_16_bit(variable):
            x = self._weights.read(index, variable)
            x = x - rate * (self._decay_of(variable) * x + update)
            step = ops.cast(self.iterations + 1, "int32")
            self._weights.write(self, index, variable, x, step)
            return
        if self._decay_of(variable):
            x = ops.convert_to_tensor(variable)
            update = update + self._decay_of(variable) * x
        self.assign_sub(variable, ops.cast(rate * update, variable.dtype))

    def get_config(self):
        names = "active_blocks", "period", "order", "moments", "seed"
        config = {name: getattr(self, name) for name in names}
        config["blocks"] = list(self.blocks)
        if self._record:
            config["record"] = self._record
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        record = config.pop("record", None)
        optimizer = super().from_config(config, custom_objects)
        optimizer.__dict__["_record"] = record
        return optimizer
