import keras
from keras import ops

from keras_efficient.backend.arguments import check_integers
from keras_efficient.backend.arguments import check_numbers
from keras_efficient.optimizers.apply_if import apply_if
from keras_efficient.optimizers.names import path_of
from keras_efficient.optimizers.optimizer_wrapper import OptimizerWrapper
from keras_efficient.optimizers.variable_groups import find_groups
from keras_efficient.optimizers.variable_groups import groups_record
from keras_efficient.optimizers.variable_groups import layer_names


@keras.saving.register_keras_serializable(package="keras_efficient")
class Unfreezing(OptimizerWrapper):
    """Fine-tune from the head down: one group of layers more at a time.

    ```
    group g is trained from step g * interval on,
    at learning_rate * factor^g, its own steps counted from 1
    ```

    Each group has an optimizer of its own, a copy of the one given. Before
    its start a group keeps all its bits: no decay, no momentum, no part in
    the norm that all are clipped by; when it starts, its first step is as
    large as that of the head was. What is trained is decided from the number
    of the step inside the compiled step: nothing is traced anew, and a run
    that is resumed goes on as it was.

    State is that of the optimizer in the end, and so is the time of a step,
    but for the optimizer's part in groups that wait: gradients are computed
    for all. A schedule counts the steps of its group.

    A `BatchNormalization` of a group that waits moves its statistics, unlike
    one of a layer with `trainable=False`: see `keras_efficient.utils
    .to_tune_mode`.

    Args:
        optimizer: `keras.optimizers.Optimizer`, or what
            `keras.optimizers.get` takes. A `LossScaleOptimizer` goes around
            the wrapper.
        groups: List of groups, the first to be trained first: each a list of
            layers, or of parts of the paths of variables in whole steps
            (`"block_3"`). Together they must have all trainable variables.
        interval: Integer, the number of steps from one start to the next.
        factor: Positive float, of the learning rate from group to group.
            Defaults to `1.0`. (Howard and Ruder take `1 / 2.6`.)
        name: String. Defaults to a name of the class.

    Raises:
        ValueError: an argument is outside its range; when it is built, if a
            variable is in no group or in two, or a group has none.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((8,)),
        keras.layers.Dense(8, name="body"),
        keras.layers.Dense(1, name="head"),
    ])
    optimizer = keras_efficient.optimizers.Unfreezing(
        keras.optimizers.Adam(1e-3), [["head"], ["body"]], interval=200
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    Reference:
        - [Howard and Ruder, 2018](https://arxiv.org/abs/1801.06146)
    """

    NEEDS_ALL_GRADIENTS = True
    REFUSED = (
        keras.optimizers.LossScaleOptimizer,
        keras.optimizers.MultiOptimizer,
    )

    def __init__(self, optimizer, groups, interval, factor=1.0, name=None):
        super().__init__(optimizer, name)
        optimizer = self.inner_optimizer
        self.groups = [layer_names("groups", group) for group in groups]
        if not self.groups:
            raise ValueError(
                f"`groups` must not be empty. Received: groups={groups}"
            )
        check_integers(1, interval=interval)
        check_numbers("(0, inf)", factor=factor)
        self.interval = interval
        self.factor = factor
        # Of all groups together, here.
        self._norm = optimizer.global_clipnorm
        if self._norm and optimizer.gradient_accumulation_steps:
            raise ValueError(
                "`global_clipnorm` of the optimizer must be `None` where it "
                "accumulates gradients. "
                f"Received: global_clipnorm={self._norm}. Use `clipnorm`."
            )
        optimizer.global_clipnorm = None
        self.optimizers = [optimizer, *map(self._copy, range(1, len(groups)))]
        # Not by `setattr`, because TensorFlow would wrap it.
        self.__dict__["_record"] = None

    def _copy(self, group):
        """Return the optimizer of a group."""
        config = self.inner_optimizer.get_config()
        config["name"] = f"{config['name']}_group_{group}"
        rate, scale = self.inner_optimizer._learning_rate, self.factor**group
        if isinstance(rate, keras.Variable):
            config["learning_rate"] = scale * float(ops.convert_to_numpy(rate))
        copy = type(self.inner_optimizer).from_config(config)
        if not isinstance(rate, keras.Variable):
            copy.learning_rate = _Scaled(rate, scale)
        return copy

    def build(self, variables):
        if self.built:
            return
        found = find_groups("groups", self.groups, variables, self._record)
        lost = [path_of(v) for v, g in zip(variables, found) if g is None]
        if lost:
            raise ValueError(
                "`groups` must have all trainable variables. In none are: "
                f"{lost}. Add their layers to the last group, or set their "
                "`trainable` to `False`."
            )
        keras.optimizers.Optimizer.build(self, variables)
        self.__dict__["_group_of"] = found
        self.__dict__["_record"] = groups_record(variables, found)
        for group, optimizer in enumerate(self.optimizers):
            optimizer.build(
                [v for v, place in zip(variables, found) if place == group]
            )

    def _by_group(self, variables):
        groups = [[] for _ in self.optimizers]
        for place, variable in enumerate(variables):
            index = self._get_variable_index(variable)
            groups[self._group_of[index]].append(place)
        return groups

    def apply(self, grads, trainable_variables=None):
        """As in Keras; what waits for its start is left alone."""
        variables = self._known(trainable_variables)
        grads = list(grads)
        is_active = [
            self.iterations >= group * self.interval
            for group in range(len(self.optimizers))
        ]
        places = self._by_group(variables)
        if self._norm:
            grads = self._clipped(grads, places, is_active)
        for group, optimizer in enumerate(self.optimizers):
            rows = [(grads[i], variables[i]) for i in places[group]]
            if all(gradient is None for gradient, _ in rows):
                continue
            if group == 0:
                optimizer.apply(*zip(*rows))
            else:
                gradients, its = map(list, zip(*rows))
                apply_if(
                    is_active[group], optimizer, lambda g=gradients: g, its
                )

    def _clipped(self, grads, places, is_active):
        """Clip by the norm of the gradients of all active groups."""
        squares = 0.0
        for group, its in enumerate(places):
            for i in its:
                if grads[i] is not None:
                    square = ops.sum(ops.square(ops.cast(grads[i], "float32")))
                    squares += ops.where(is_active[group], square, 0.0)
        # The optimizers divide by the scale of the loss.
        norm = ops.sqrt(squares) / (self.loss_scale_factor or 1.0)
        factor = self._norm / ops.maximum(norm, self._norm)
        return [
            g if g is None else g * ops.cast(factor, g.dtype) for g in grads
        ]

    @property
    def variables(self):
        states = [v for x in self.optimizers for v in x.variables]
        return self._variables + states

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        for group, optimizer in enumerate(self.optimizers):
            scale = self.factor**group
            if callable(learning_rate):
                optimizer.learning_rate = _Scaled(learning_rate, scale)
            else:
                optimizer.learning_rate = learning_rate * scale

    @property
    def loss_scale_factor(self):
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor):
        for optimizer in getattr(self, "optimizers", ()):
            optimizer.loss_scale_factor = factor

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        for optimizer in self.optimizers:
            optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        for optimizer, places in zip(self.optimizers, self._by_group(var_list)):
            optimizer.finalize_variable_values([var_list[i] for i in places])

    def get_config(self):
        config = super().get_config()
        config["optimizer"]["config"]["global_clipnorm"] = self._norm
        for name in ("groups", "interval", "factor"):
            config[name] = getattr(self, name)
        config["groups"] = [list(names) for names in self.groups]
        return {**config, "record": self._record} if self._record else config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        record = config.pop("record", None)
        optimizer = super().from_config(config, custom_objects)
        optimizer.__dict__["_record"] = record
        return optimizer


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule, or a function without arguments, times a number."""

    def __init__(self, schedule, scale):
        self.schedule = schedule
        self.scale = scale

    def __call__(self, step):
        schedule = self.schedule
        is_schedule = isinstance(
            schedule, keras.optimizers.schedules.LearningRateSchedule
        )
        return self.scale * (schedule(step) if is_schedule else schedule())

    def get_config(self):
        return {"schedule": self.schedule, "scale": self.scale}
