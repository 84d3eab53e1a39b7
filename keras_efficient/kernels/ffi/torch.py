"""Kernels on the own memory of tensors of PyTorch."""

import functools

import numpy as np
import torch

from keras_efficient.kernels.ffi import threads
from keras_efficient.kernels.ffi.host import Host
from keras_efficient.kernels.ffi.tensors import Spec
from keras_efficient.kernels.ffi.tensors import why_not_plain

_BITS = (torch.bfloat16, torch.float16)


class TorchHost(Host):
    framework = "torch"

    # Dynamo would trace into `numpy()`.
    @torch.compiler.disable
    def __call__(self, kernel, args):
        return super().__call__(kernel, args)

    def as_tensor(self, value, name):
        """Return a tensor, or an array where that is what a kernel gets."""
        if not isinstance(value, torch.Tensor):
            return np.array(value)
        reason = why_not_plain(value)
        if reason:
            raise TypeError(
                f"'{name}' must be a tensor with memory of its own: {reason}. "
                "Pass a plain tensor, such as `x.to_local()` of a DTensor, "
                "`x.to_dense()` or `x.resolve_neg()`."
            )
        return value

    def spec_of(self, tensor):
        return Spec(tuple(tensor.shape), _name_of(tensor.dtype))

    def run(self, kernel, values, specs, results):
        known = dict(zip(kernel.inputs, values))
        if torch.is_grad_enabled() and any(
            isinstance(x, torch.Tensor) and x.requires_grad for x in values
        ):
            raise RuntimeError(
                f"'{kernel.name}' has no derivative. Call it under "
                "`torch.no_grad()`, or with `x.detach()`."
            )
        for name in kernel.in_place:
            known[name] = torch.as_tensor(known[name])
            if not known[name].is_contiguous():
                raise ValueError(
                    f"'{name}' is overwritten by '{kernel.name}' and must be "
                    "contiguous. Received: strides "
                    f"{known[name].stride()}. Pass `x.contiguous()` and keep "
                    "the result."
                )
        for name, spec in zip(kernel.results, results):
            if name in kernel.outputs:
                dtype = getattr(torch, spec.dtype)
                known[name] = torch.empty(spec.shape, dtype=dtype, device="cpu")
        kernel.run(
            [_array(known[name]) for name in kernel.parameters],
            threads.limit(self.framework),
        )
        for name in kernel.in_place:
            # So that autograd notices, as after an operation of its own.
            torch.autograd.graph.increment_version(known[name])
        return [known[name] for name in kernel.results]


@functools.lru_cache(maxsize=None)
def _name_of(dtype):
    return str(dtype).removeprefix("torch.")


def _array(tensor):
    if not isinstance(tensor, torch.Tensor):
        return tensor
    tensor = tensor.detach() if tensor.requires_grad else tensor
    tensor = tensor.contiguous()
    if tensor.dtype in _BITS:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


call = TorchHost()
