"""A step that is taken or not, decided within a compiled step."""

import keras
from keras import ops


def apply_if(condition, optimizer, gradients, variables):
    """Step an optimizer if a condition holds; else nothing of it changes.

    Args:
        condition: Boolean scalar tensor.
        optimizer: A built `keras.optimizers.Optimizer`.
        gradients: Function that returns a list of tensors or `None`, called
            where the step is taken.
        variables: List of the variables that it was built for, or, but on
            JAX, of some of them.
    """
    if keras.config.backend() != "jax":
        ops.cond(
            condition,
            lambda: optimizer.apply(gradients(), variables),
            lambda: None,
        )
        return
    # What is assigned in a branch of JAX has to come out of it.
    states = optimizer.variables
    values = [ops.convert_to_tensor(v) for v in variables]
    state = [ops.convert_to_tensor(v) for v in states]
    new_values, new_state = ops.cond(
        condition,
        lambda: optimizer.stateless_apply(state, gradients(), values),
        lambda: (values, state),
    )
    for variable, value in zip([*variables, *states], new_values + new_state):
        variable.assign(value)
