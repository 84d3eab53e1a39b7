"""Kernels on arrays of JAX, in and out of `jax.jit`."""

import ctypes

import jax

from keras_efficient.kernels.ffi.host import Host
from keras_efficient.kernels.ffi.tensors import Spec

_registered = set()


class JAXHost(Host):
    framework = "jax"

    def as_tensor(self, value, name):
        return jax.numpy.asarray(value)

    def spec_of(self, tensor):
        return Spec(tuple(tensor.shape), tensor.dtype.name)

    def run(self, kernel, values, specs, results):
        compiled, name = kernel.handler(specs, results, self.framework)
        if name not in _registered:
            jax.ffi.register_ffi_target(
                name,
                jax.ffi.pycapsule(ctypes.c_void_p(compiled.address)),
                "cpu",
            )
            _registered.add(name)
        return jax.ffi.ffi_call(
            name,
            [
                jax.ShapeDtypeStruct(spec.shape, jax.numpy.dtype(spec.dtype))
                for spec in results
            ],
            input_output_aliases=kernel.aliases,
            vmap_method="sequential",
        )(*values)


call = JAXHost()
