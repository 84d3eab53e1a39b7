"""The two differentiation primitives, and what else differs by backend.

Every module here offers the same functions:

- `custom_vjp(forward, backward)`: a function with its own derivative;
- `not_differentiable(fn)`: a step inside of one that has none, and says so if
  it is differentiated for a second derivative;
- `vjp(fn, *primals)`: a function's value and its pullback;
- `segment(fn, *args)`: `fn(*args)`, not begun before `args` are there;
- `scan(step, carry, values, reverse)`: a loop that is compiled once, as
  `jax.lax.scan`, or `None`;
- `record_random(fn)`, `replay_random(state)`: for the generator that layers
  draw from behind Keras' back, where the backend has one;
- `alarm(failed, warn, fail, in_program)`: a warning or an error where a
  condition holds, from inside of a compiled program too;
- `leaf_gradients(layer, call, inputs)`: gradients of all that is trainable,
  by the keys in `leaves(layer)`, for measuring;
- `run_compiled(fn, args, owner, key)`: `fn(*args)` as one XLA program, where
  the backend does not compile all there is;
- `saved_bytes(fn, params, inputs)`: what is kept from forward to backward;
- `saved_bytes_by_label(fn, params, inputs)`: the same as a dictionary, by the
  `label(name)`, a context, in which it was computed;
- `peak_bytes(fn, params, inputs)`: the most that is alive at any time of both;
- `update_bytes(prepare)`: the same of an optimizer's update; `None` where that
  is within the other figure.

This is the only place that reads `keras.config.backend()`, and only the
chosen backend is imported.
"""

import keras

if keras.config.backend() == "jax":
    from keras_efficient.backend import jax as _backend
    from keras_efficient.backend import jax_memory as _memory
elif keras.config.backend() == "tensorflow":
    from keras_efficient.backend import tensorflow as _backend
    from keras_efficient.backend import tensorflow_memory as _memory
elif keras.config.backend() == "torch":
    from keras_efficient.backend import torch as _backend
    from keras_efficient.backend import torch_memory as _memory
else:
    from keras_efficient.backend import forward_only as _backend
    from keras_efficient.backend import forward_only as _memory

alarm = _backend.alarm
custom_vjp = _backend.custom_vjp
label = _memory.label
leaf_gradients = _backend.leaf_gradients
leaves = _backend.leaves
not_differentiable = _backend.not_differentiable
peak_bytes = _memory.peak_bytes
record_random = _backend.record_random
replay_random = _backend.replay_random
run_compiled = _backend.run_compiled
saved_bytes = _memory.saved_bytes
saved_bytes_by_label = _memory.saved_bytes_by_label
scan = _backend.scan
segment = _backend.segment
update_bytes = _memory.update_bytes
vjp = _backend.vjp
