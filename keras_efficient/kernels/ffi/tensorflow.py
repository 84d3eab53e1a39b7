"""Kernels on tensors of TensorFlow: eager, `tf.function`, `jit_compile`.

The operation `XlaCallModule`, which also carries what JAX exports, runs a
program of StableHLO that holds nothing but the call of the handler.
"""

import ctypes
import functools

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from keras_efficient.kernels.ffi import xla_version
from keras_efficient.kernels.ffi.host import Host
from keras_efficient.kernels.ffi.tensors import Spec

_ELEMENTS = {
    "bool": "i1",
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "float64": "f64",
    **{f"int{n}": f"i{n}" for n in (8, 16, 32, 64)},
    **{f"uint{n}": f"ui{n}" for n in (8, 16, 32, 64)},
}
# Words of the API's table, as in `xla_handler`.
_API_VERSION, _API_REGISTER = 4, 9
_MODULE_VERSION = 9  # of the operation, not of the FFI

_registered = set()


class TensorFlowHost(Host):
    framework = "tensorflow"

    # AutoGraph would rewrite all it finds below, the compiler included.
    @tf.autograph.experimental.do_not_convert
    def __call__(self, kernel, args):
        return super().__call__(kernel, args)

    def as_tensor(self, value, name):
        tensor = tf.convert_to_tensor(value)
        if not tensor.shape.is_fully_defined():
            raise ValueError(
                "Kernels need shapes that are known when the graph is built. "
                f"Received: '{name}' with shape {tensor.shape}. Give the "
                "`tf.function` an `input_signature` without `None`, or call "
                "`tf.ensure_shape` first."
            )
        return tensor

    def spec_of(self, tensor):
        return Spec(tuple(tensor.shape), tensor.dtype.name)

    def run(self, kernel, values, specs, results):
        compiled, name = kernel.handler(specs, results, self.framework)
        if name not in _registered:
            _register(name.encode(), compiled.address)
            _registered.add(name)
        aliases = tuple(kernel.aliases.items())

        @tf.custom_gradient
        def call(*values):
            outputs = gen_xla_ops.xla_call_module(
                args=values,
                version=_MODULE_VERSION,
                module=_module(name, tuple(specs), tuple(results), aliases),
                Sout=[spec.shape for spec in results],
                Tout=[tf.as_dtype(spec.dtype) for spec in results],
                platforms=["CPU"],
                dim_args_spec=[],
                function_list=[],
                has_token_input_output=False,
                disabled_checks=[f"custom_call:{name}"],
            )
            return outputs, functools.partial(_no_gradient, kernel.name)

        return call(*values)


def _no_gradient(name, *gradients):
    raise RuntimeError(
        f"'{name}' has no derivative. Call it outside of the `tf.GradientTape`,"
        " or with `tf.stop_gradient(x)`."
    )


@functools.lru_cache(maxsize=None)
def _module(name, specs, results, aliases):
    """Write the program as text."""
    types = ", ".join(map(_type, specs))
    result_types = ", ".join(map(_type, results))
    bare = result_types
    if len(results) > 1:
        bare = f"({result_types})"
    names = ", ".join(f"%a{i}" for i in range(len(specs)))
    parameters = ", ".join(
        f"%a{i}: {_type(spec)}" for i, spec in enumerate(specs)
    )
    count = f":{len(results)}" if len(results) > 1 else ""
    returned = [f"%r#{i}" if count else "%r" for i in range(len(results))]
    attributes = ", ".join(
        (
            "api_version = 4 : i32",
            "backend_config = {}",
            f"operand_layouts = [{', '.join(map(_layout, specs))}]",
            f"result_layouts = [{', '.join(map(_layout, results))}]",
            "output_operand_aliases = ["
            + ", ".join(_alias(*pair, bool(count)) for pair in aliases)
            + "]",
        )
    )
    return f"""module @m {{
  func.func public @main({parameters}) -> ({result_types}) {{
    %r{count} = stablehlo.custom_call @{name}({names}) {{{attributes}}}
      : ({types}) -> {bare}
    return {", ".join(returned)} : {result_types}
  }}
}}"""


def _type(spec):
    dims = "".join(f"{length}x" for length in spec.shape)
    return f"tensor<{dims}{_ELEMENTS[spec.dtype]}>"


def _layout(spec):
    """Row-major, which XLA would not keep to by itself."""
    ndim = len(spec.shape)
    return f"dense<{list(reversed(range(ndim)))}> : tensor<{ndim}xindex>"


def _alias(argument, result, is_tuple):
    return (
        "#stablehlo.output_operand_alias<"
        f"output_tuple_indices = [{result if is_tuple else ''}], "
        f"operand_index = {argument}, operand_tuple_indices = []>"
    )


class _Span(ctypes.Structure):
    _fields_ = [("start", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class _Arguments(ctypes.Structure):
    """`XLA_FFI_Handler_Register_Args`."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("name", _Span),
        ("platform", _Span),
        ("instantiate", ctypes.c_void_p),
        ("prepare", ctypes.c_void_p),
        ("initialize", ctypes.c_void_p),
        ("execute", ctypes.c_void_p),
        ("traits", ctypes.c_uint32),
    ]


def _register(name, address):
    library = ctypes.CDLL(str(xla_version.tensorflow_library()))
    library.XLA_FFI_GetApi.restype = ctypes.c_void_p
    api = (ctypes.c_int64 * 10).from_address(library.XLA_FFI_GetApi())
    version = api[_API_VERSION] & 0xFFFFFFFF, api[_API_VERSION] >> 32
    if version not in xla_version.TESTED:
        raise RuntimeError(f"The XLA FFI {version} was not tested.")
    arguments = _Arguments(
        struct_size=_Arguments.traits.offset + ctypes.sizeof(ctypes.c_uint32),
        name=_Span(name, len(name)),
        platform=_Span(b"Host", 4),
        execute=address,
    )
    register = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Arguments))
    if register(api[_API_REGISTER])(ctypes.byref(arguments)):
        raise RuntimeError(f"TensorFlow refused the XLA handler {name}.")


call = TensorFlowHost()
