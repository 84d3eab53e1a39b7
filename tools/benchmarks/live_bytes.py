"""What PyTorch holds in memory during a training step, whoever holds it."""

import functools
import gc

from keras_efficient.backend.torch_memory import count_alive
from keras_efficient.utils import peak_bytes


def live_bytes(model, x, cotangent, parameters):
    """Count the bytes of tensors alive in one forward and backward pass.

    Every storage that an operation writes is followed until it is freed, so
    it does not matter whether autograd, a module or a context holds it, and
    storages that were resized count with the size that they have.

    Args:
        model: A module or Keras model.
        x: Tensor, its inputs.
        cotangent: Tensor, the gradient of its outputs.
        parameters: List of tensors. These, `x` and `cotangent` do not count.

    Returns:
        Dictionary: "kept", the bytes alive between the passes, with the
        outputs, and "peak", the most at the end of any operation, with the
        gradients. On a GPU also "device peak", the most that its allocator
        had lent at any time, in a second run of both passes.
    """
    with count_alive([x, cotangent, *parameters]) as storages:
        outputs = model(x)
        gc.collect()
        kept = storages.count()
        outputs.backward(cotangent)
    del outputs
    drop_gradients(x, *parameters)
    found = {"kept": kept, "peak": storages.peak}
    if x.is_cuda:
        passes = functools.partial(both_passes, model, x, cotangent)
        found["device peak"] = peak_bytes(passes)
        drop_gradients(x, *parameters)
    return found


def both_passes(model, x, cotangent):
    model(x).backward(cotangent)


def drop_gradients(*tensors):
    for tensor in tensors:
        tensor.grad = None
