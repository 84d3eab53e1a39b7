"""Messages that several backends raise."""

NO_SECOND_DERIVATIVE = (
    "A layer that recomputes its activations was differentiated twice, which "
    "it does not support here. For second derivatives build the layer with "
    "`reversible=False, exact=False`, which stores the activations, and leave "
    "out `Recompute`."
)

NO_FUNCTION_TRANSFORM = (
    "A layer that recomputes its activations was called under a transform of "
    "`torch.func` (`grad`, `vmap`, ...), which has no part in its backward "
    "pass. Set `reversible=False` on the layer, which stores the activations, "
    "leave out `Recompute`, or use `torch.autograd.grad`."
)

DRAWS = (
    "Layer '{}' draws random numbers from a generator of TensorFlow (operation "
    "'{}'), which would give others when the layer is recomputed. Draw them "
    "with `keras.random` and a `keras.random.SeedGenerator`, with "
    "`tf.random.stateless_...`, or leave the layer outside."
)

WRITES_A_VARIABLE = (
    "Layer '{}' writes a variable of TensorFlow (operation '{}') in its call, "
    "and would write it again when it is recomputed. Make it a variable of "
    "Keras (`self.add_weight`), or leave the layer outside."
)

WRITES_INTO_ITS_INPUT = (
    "Layer '{}' writes into its input in place, so that it cannot be "
    "recomputed from it. Let it write into a copy (`x = x.clone()`)."
)

NO_HOST = (
    "On {} nothing can be kept in the memory of the host while the program "
    "runs on another device. Use `store='bfloat16'` or `store=None`, or the "
    "backend 'torch'."
)

CLOSED_OVER = (
    "A block reads a tensor that is neither an argument nor a variable outside "
    "of its sub-layers, so that its gradient would be lost. Pass the tensor as "
    "`context`, make it a variable, or build the layer with "
    "`reversible=False`."
)
