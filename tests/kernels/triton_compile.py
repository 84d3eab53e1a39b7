"""Compile Triton kernels for an H200 where there is none."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    "table": "*i64",
    "rows_of_programs": "*i32",
    "weights": "*fp32",
    "learning_rate": "*fp32",
    "momentum_bias": "*fp32",
    "velocity_bias": "*fp32",
    "step": "*i32",
}


def compile_kernel(kernel, constants):
    """Return the text of the program.

    Args:
        kernel: What `triton.jit` returned.
        constants: Dict from names of arguments to values.
    """
    types = {**POINTERS, **dict.fromkeys(constants, "constexpr")}
    names = kernel.arg_names
    signature = {name: types.get(name, "fp32") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={"enable_fp_fusion": False},
    )
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]
