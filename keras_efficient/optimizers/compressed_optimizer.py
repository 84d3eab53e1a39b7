import math

from keras import ops

from keras_efficient import backend
from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.kernels import policy
from keras_efficient.kernels.ffi.tensors import framework_of
from keras_efficient.ops import dispatch
from keras_efficient.ops.adam_step import adam_step
from keras_efficient.ops.weight_rounding import is_16_bit
from keras_efficient.optimizers.batched_step import batched_step
from keras_efficient.optimizers.batched_step import step_each
from keras_efficient.optimizers.dense import dense
from keras_efficient.optimizers.divided_optimizer import DividedOptimizer
from keras_efficient.optimizers.excluded import find_excluded
from keras_efficient.optimizers.excluded import record_of
from keras_efficient.optimizers.float32_weights import Float32Weights
from keras_efficient.optimizers.float32_weights import float32_gradients
from keras_efficient.optimizers.local_shards import check_division
from keras_efficient.optimizers.local_shards import first_entry
from keras_efficient.optimizers.local_shards import is_divided
from keras_efficient.optimizers.local_shards import value_of
from keras_efficient.optimizers.names import automatic_name
from keras_efficient.optimizers.names import check_real
from keras_efficient.optimizers.names import check_replicas
from keras_efficient.optimizers.sharded_step import step_on_shards
from keras_efficient.optimizers.state_layout import is_distributed


class CompressedOptimizer(DividedOptimizer):
    """Base class: compressed state for some tensors, plain state for others.

    A subclass says which tensors are compressed (`_is_compressible`; those of
    at least `min_size` elements by default), what state they have
    (`_add_compressed_state`) and how they step (`_step_compressed`; and, where
    kernels may do so, `HAS_KERNEL` and `_kernel_arguments`). Other tensors, and
    those whose path matches `exclude_layers`, keep Adam's moments in float32,
    unless it overrides `_add_plain_state` and `_step_plain`.

    Of variables with 16 bits all is computed in float32: unscaling, clipping,
    accumulation, decay, the step and the average. Only what comes of it is
    rounded, once, as `weight_rounding` says.
    """

    # Whether plain states of many tensors make one: entries that do not know
    # of each other.
    STEPS_BY_ENTRY = True
    HAS_KERNEL = False
    # Whether layers in `exclude_layers` keep plain state.
    EXCLUDES_TO_PLAIN = True

    def __init__(
        self,
        learning_rate,
        min_size,
        weight_rounding,
        exclude_layers,
        name=None,
        zero=False,
        **kwargs,
    ):
        name = automatic_name(type(self)) if name is None else name
        super().__init__(
            zero=zero, learning_rate=learning_rate, name=name, **kwargs
        )
        check_integers(0, min_size=min_size)
        self.min_size = min_size
        self.exclude_layers = list(exclude_layers or [])
        # What was excluded when this was built, or is to be. Not by `setattr`,
        # because TensorFlow would wrap it.
        self.__dict__["_excluded"] = None
        self.weight_rounding = weight_rounding
        self._weights = Float32Weights(weight_rounding)

    def _check_decays(self, *names):
        check_numbers("[0, 1)", **{name: getattr(self, name) for name in names})

    def _check_choices(self, **choices):
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {allowed}. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def _check_bucket_size(self):
        if self.bucket_size < 2 or self.bucket_size % 2:
            raise ValueError(
                "`bucket_size` must be even, because two codes share a byte. "
                f"Received: bucket_size={self.bucket_size}"
            )

    def build(self, variables):
        if self.built:
            return
        check_real(self, variables)
        super().build(variables)
        # For each variable, whether it is compressed, and its state.
        excluded = self._find_excluded(variables)
        self.__dict__["_excluded"] = record_of(variables, excluded)
        self._is_compressed = [
            not (is_excluded and self.EXCLUDES_TO_PLAIN)
            and self._is_compressible(variable)
            for variable, is_excluded in zip(variables, excluded)
        ]
        # For each compressed variable, how its blocks are divided. Not by
        # `setattr`, which would track it.
        self.__dict__["_shards"] = [
            self._find_shards(variable)
            if is_compressed and is_distributed(variable)
            else None
            for variable, is_compressed in zip(variables, self._is_compressed)
        ]
        for variable, is_compressed in zip(variables, self._is_compressed):
            if is_divided(variable):
                check_division(self, variable, is_compressed)
        self._states = [
            self._add_compressed_state(variable)
            if is_compressed
            else self._add_plain_state(variable)
            for variable, is_compressed in zip(variables, self._is_compressed)
        ]
        self._weights.build(self, variables, self.zero)

    def _find_excluded(self, variables):
        patterns = self.exclude_layers
        return find_excluded(patterns, variables, self._excluded)

    def _is_compressible(self, variable):
        return math.prod(variable.shape) >= max(1, self.min_size)

    def _add_compressed_state(self, variable):
        """Return a tuple of variables."""
        raise NotImplementedError

    def _add_plain_state(self, variable):
        return tuple(
            self._add(variable, name, variable.shape)
            for name in ("momentum", "velocity")
        )

    def apply(self, grads, trainable_variables=None):
        """As in Keras; gradients that are sparse become dense."""
        check_replicas(self)
        grads = [x if x is None else dense(x) for x in grads]
        super().apply(float32_gradients(self, grads), trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        if self._shards[index]:
            step_on_shards(self, index, gradient, variable, learning_rate)
            return
        slots = self._states[index]
        state = [ops.convert_to_tensor(slot) for slot in slots]
        # TensorFlow's gradient of an embedding is sparse; this makes it dense.
        gradient = ops.reshape(gradient, variable.shape)
        is_compressed = self._is_compressed[index]
        if is_compressed and self._has_kernel(index):
            row = self._row(index, variable, state, gradient)
            arguments = self._kernel_arguments(learning_rate)
            (results,) = dispatch.do_steps([row], arguments)
            if results is not None:
                correction = self._weights.corrections[index]
                corrections = [] if correction is None else [correction]
                targets = variable, *corrections, *slots
                for target, result in zip(targets, results, strict=True):
                    self.assign(target, result)
                return
        step = self._step_compressed if is_compressed else self._step_plain
        update, *state = step(gradient, state, index)
        for slot, result in zip(slots, state):
            self.assign(slot, result)
        self._move(variable, update, learning_rate)

    def _has_kernel(self, index):
        """Return whether there is a kernel for a compressed variable."""
        return self.HAS_KERNEL

    def _row(self, index, variable, state, gradient):
        """Return what `dispatch.do_steps` takes of a variable."""
        correction = self._weights.corrections[index]
        if correction is not None:
            correction = value_of(correction, variable)
        return dispatch.Row(
            parameter=value_of(variable, variable),
            state=tuple(state),
            gradient=gradient,
            seed=index,
            correction=correction,
            decay=self._decay_of(variable) if is_16_bit(variable) else 0.0,
            first=first_entry(variable),
        )

    def _kernel_arguments(self, learning_rate):
        """Return the record that `dispatch.do_steps` takes."""
        raise NotImplementedError

    def _step_compressed(self, gradient, state, index, places=None):
        """Return the update and the new state, in one tuple.

        Of a shard, `places` are those of its blocks in the whole tensor.
        """
        raise NotImplementedError

    def _step_batch(self, rows, learning_rate):
        """Do `_step_compressed` for rows of `batched_step`."""
        step_each(self, self._step_compressed, rows, learning_rate)

    def _step_plain(self, gradient, state, index):
        """As `_step_compressed`, for plain state."""
        return adam_step(gradient, *state, **self._options())

    def _options(self):
        """Return the arguments of the steps that `self` has."""
        return {
            "step": self.iterations + 1,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }

    def _move(self, variable, update, learning_rate):
        learning_rate = ops.cast(learning_rate, "float32")
        update = learning_rate * update
        if not is_16_bit(variable):
            self.assign_sub(variable, ops.cast(update, variable.dtype))
            return
        index = self._get_variable_index(variable)
        x = self._weights.read(index, variable)
        x = x - x * self._decay_of(variable) * learning_rate - update
        step = ops.cast(self.iterations + 1, "int32")
        self._weights.write(self, index, variable, x, step)

    def _decay_of(self, variable):
        """Return the weight decay of a variable, 0 for none."""
        is_decayed = self.weight_decay and self._use_weight_decay(variable)
        return self.weight_decay if is_decayed else 0.0

    def _apply_weight_decay(self, variables):
        # Variables of 16 bits decay in the step.
        variables = [v for v in variables if not is_16_bit(v)]
        if variables:
            super()._apply_weight_decay(variables)

    def _update_model_variables_moving_average(self, trainable_variables):
        super()._update_model_variables_moving_average(
            self._weights.read(i, variable) if is_16_bit(variable) else variable
            for i, variable in enumerate(trainable_variables)
        )

    def get_config(self):
        config = {
            "weight_rounding": self.weight_rounding,
            "exclude_layers": list(self.exclude_layers),
        }
        if self._excluded:
            config["excluded"] = self._excluded
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        excluded = config.pop("excluded", None)
        optimizer = super().from_config(config, custom_objects)
        optimizer.__dict__["_excluded"] = excluded
        return optimizer

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        """Update all variables: on PyTorch many at a time.

        TensorFlow copies what a kernel of a graph overwrites, but not within
        an XLA program.
        """
        # A native variable of TensorFlow has a method of that name.
        values = [
            variable if callable(variable.value) else variable.value
            for variable in trainable_variables
        ]
        if framework_of(values) == "torch":
            batched_step(self, grads, trainable_variables, learning_rate)
            return

        step = super()._backend_update_step

        def step_all(grads, learning_rate):
            step(grads, trainable_variables, learning_rate)

        if self.HAS_KERNEL and policy.choose(*values) == "numba":
            key = tuple(map(id, trainable_variables))
            backend.run_compiled(step_all, (grads, learning_rate), self, key)
        else:
            step_all(grads, learning_rate)
