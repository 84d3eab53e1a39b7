"""The two differentiation primitives, and what else differs by backend.

Every module here offers the same functions:

- `custom_vjp(forward, backward)`: a function with its own derivative;
- `not_differentiable(fn)`: a step inside of one that has none, and says so if
  it is differentiated for a second derivative;
- `vjp(fn, *primals)`: a function's value and its pullback;
- `segment(fn, *args)`: `fn(*args)`, not begun before `args` are there;
- `recomputed_loop(loop, inputs, tensors)`: the same of equal blocks as a loop
  that is compiled once; `None` where nothing is gained by it;
- `Capture(call, tensors, record)`: a call that is run now, and can be repeated
  and differentiated, with all that it reads;
- `recomputed(tape, tensors)`: what `tape.trace` returns, differentiated by a
  walk over the steps of `tape.backward`, and what these two need besides:
  `gradients_flow_through_assignments`, `as_tensor(value)`,
  `stopped(variable, live)`,
  `stop_gradient(x)`, `copied(x)`, `needs_gradient(variable, live)`,
  `link(leaf, value)`, `is_traced(x)`, `is_dense(x)`, `is_float(x)`,
  `is_concrete(x)`, `place()`, and `to_host(x)`, a tensor in the memory of the
  host and the function that brings it back;
- `over_chunks(step, carry, rows, size, kinds)`: a loop over chunks of rows, by
  default at least `ROWS_A_CHUNK`;
  `operand(x, dtype)`, `large_operand(x, dtype)`, `factor(x, dtype)`,
  `product(a, b)`, `add_product(total, a, b)`, `products_of(dtype)`,
  `add_rows(total, indices, rows)`,
  `soft_cap(z, cap)` and
  `scratch(like, rows, columns)` for what is done in it, with float32 sums;
  `cross_entropy`, a faster form of the portable one, or `None`;
  `can_look_at(x)`, whether values are there while Python runs;
- `record_random(fn)`, `replay_random(state)`: for the generator that layers
  draw from behind Keras' back, where the backend has one;
- `alarm(failed, warn, fail, in_program)`: a warning or an error where a
  condition holds, from inside of a compiled program too;
- `divided_train_step(model, micro, *args)`: a training step in parts;
  `gradient_hooks(variables, update)`: a context in which each gradient is
  handed over once it is complete, or `None`;
- `eagerly()`: a context in which operations run now, not in the program that
  is traced; `gradients_lose_masks`, whether a gradient loses Keras' masks;
- `leaf_gradients(layer, call, inputs)`: gradients of all that is trainable,
  by the keys in `leaves(layer)`, for measuring;
- `run_compiled(fn, args, owner, key)`: `fn(*args)` as one XLA program, where
  the backend does not compile all there is;
- `saved_bytes(fn, params, inputs)`: what is kept from forward to backward;
- `saved_bytes_by_label(fn, params, inputs)`: the same as a dictionary, by the
  `label(name)`, a context, in which it was computed;
- `products_by_label(fn, params, inputs)`: the multiplications of matrix
  products and convolutions in the forward pass, in the same way;
- `peak_bytes(fn, params, inputs, release=False)`: the most that is alive at any
  time of both; on PyTorch, whether each gradient is gone when complete, and if
  not, with those of the step before until `fn` calls `drop_gradients()`;
- `shards`, a module for variables that are divided among devices, with
  `own_sharding(variable)`, `sharding_of(mesh, names)`,
  `on_shards(step, mesh, tensors, names, results, scalars)`,
  `places_on_shard(mesh, shape, names)` and `constrained(x, mesh, names)`;
  `None` where the backend does not divide them;
- `dtensors`, the same for DTensors of PyTorch, with `is_divided(x)`,
  `local(x)`, `division(x)`, `is_alike(x, like)`, `divided(array, like)` and
  `zeros(shape, dtype, like, axis)`; `None` elsewhere;
- `files`, a module with `as_array(value)` and `as_tensor(array)` for bfloat16,
  which Keras writes by way of float32 there; `None` elsewhere;
- `whole(variable)`, all of a variable as an array, from all processes, and
  `mean_of_processes(number)`, where processes have losses of their own;
- `update_bytes(prepare)`: the same of an optimizer's update; `None` where that
  is within the other figure.

This is the only place that reads `keras.config.backend()`, and only the
chosen backend is imported.
"""

import keras

if keras.config.backend() == "jax":
    from keras_efficient.backend import jax as _backend
    from keras_efficient.backend import jax_capture as _capture
    from keras_efficient.backend import jax_chunks as _chunks
    from keras_efficient.backend import jax_loop as _loop
    from keras_efficient.backend import jax_memory as _memory
    from keras_efficient.backend import jax_recompute as _recompute
    from keras_efficient.backend import jax_shards as _shards
    from keras_efficient.backend import jax_steps as _steps

    _dtensors = _files = None
elif keras.config.backend() == "tensorflow":
    from keras_efficient.backend import tensorflow as _backend
    from keras_efficient.backend import tensorflow_capture as _capture
    from keras_efficient.backend import tensorflow_chunks as _chunks
    from keras_efficient.backend import tensorflow_memory as _memory
    from keras_efficient.backend import tensorflow_recompute as _recompute
    from keras_efficient.backend import tensorflow_steps as _steps

    _loop = _shards = _dtensors = _files = None
elif keras.config.backend() == "torch":
    from keras_efficient.backend import torch as _backend
    from keras_efficient.backend import torch_capture as _capture
    from keras_efficient.backend import torch_chunks as _chunks
    from keras_efficient.backend import torch_files as _files
    from keras_efficient.backend import torch_memory as _memory
    from keras_efficient.backend import torch_recompute as _recompute
    from keras_efficient.backend import torch_shards as _dtensors
    from keras_efficient.backend import torch_steps as _steps

    _loop = _shards = None
else:
    from keras_efficient.backend import forward_only as _backend
    from keras_efficient.backend import forward_only as _capture
    from keras_efficient.backend import forward_only as _memory
    from keras_efficient.backend import forward_only as _recompute
    from keras_efficient.backend import forward_only as _steps
    from keras_efficient.backend import forward_only_chunks as _chunks

    _loop = _shards = _dtensors = _files = None

Capture = _capture.Capture
ROWS_A_CHUNK = _chunks.ROWS_A_CHUNK
add_product = _chunks.add_product
add_rows = _chunks.add_rows
alarm = _backend.alarm
as_tensor = _capture.as_tensor
can_look_at = _chunks.can_look_at
copied = _capture.copied
cross_entropy = _chunks.cross_entropy
dtensors = _dtensors
custom_vjp = _backend.custom_vjp
divided_train_step = _steps.divided_train_step
drop_gradients = _memory.drop_gradients
eagerly = _backend.eagerly
factor = _chunks.factor
files = _files
gradient_hooks = _steps.gradient_hooks
gradients_flow_through_assignments = _capture.gradients_flow_through_assignments
is_concrete = _capture.is_concrete
gradients_lose_masks = _backend.gradients_lose_masks
is_dense = _capture.is_dense
is_float = _capture.is_float
is_traced = _capture.is_traced
label = _memory.label
large_operand = _chunks.large_operand
leaf_gradients = _backend.leaf_gradients
leaves = _backend.leaves
link = _capture.link
needs_gradient = _capture.needs_gradient
mean_of_processes = getattr(_dtensors, "mean_of_processes", lambda x: x)
not_differentiable = _backend.not_differentiable
operand = _chunks.operand
over_chunks = _chunks.over_chunks
peak_bytes = _memory.peak_bytes
place = _capture.place
product = _chunks.product
products_by_label = _memory.products_by_label
products_of = _chunks.products_of
record_random = _backend.record_random
recomputed = _recompute.recomputed
recomputed_loop = _loop and _loop.recomputed_loop
replay_random = _backend.replay_random
run_compiled = _backend.run_compiled
saved_bytes = _memory.saved_bytes
saved_bytes_by_label = _memory.saved_bytes_by_label
scratch = _chunks.scratch
segment = _backend.segment
shards = _shards
soft_cap = _chunks.soft_cap
stop_gradient = _capture.stop_gradient
stopped = _capture.stopped
to_host = _recompute.to_host
update_bytes = _memory.update_bytes
vjp = _backend.vjp
whole = getattr(_shards or _dtensors, "whole", keras.ops.convert_to_numpy)
