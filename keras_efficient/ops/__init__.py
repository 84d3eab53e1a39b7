from keras_efficient.ops.adam_8bit_arguments import (
    Adam8bitState as Adam8bitState,
)
from keras_efficient.ops.adam_8bit_step import adam_8bit_step as adam_8bit_step
from keras_efficient.ops.adam_step import adam_step as adam_step
from keras_efficient.ops.binarize import binarize as binarize
from keras_efficient.ops.block_top_k import block_top_k as block_top_k
from keras_efficient.ops.ld_adam_step import ld_adam_step as ld_adam_step
from keras_efficient.ops.linear_cross_entropy import (
    linear_cross_entropy as linear_cross_entropy,
)
from keras_efficient.ops.lion_8bit_step import lion_8bit_step as lion_8bit_step
from keras_efficient.ops.micro_adam_arguments import (
    MicroAdamState as MicroAdamState,
)
from keras_efficient.ops.micro_adam_step import (
    micro_adam_step as micro_adam_step,
)
from keras_efficient.ops.quantize_4bit import dequantize_4bit as dequantize_4bit
from keras_efficient.ops.quantize_4bit import quantize_4bit as quantize_4bit
from keras_efficient.ops.quantize_8bit import dequantize_8bit as dequantize_8bit
from keras_efficient.ops.quantize_8bit import quantize_8bit as quantize_8bit
from keras_efficient.ops.sgd_8bit_step import sgd_8bit_step as sgd_8bit_step
from keras_efficient.ops.sink_gd_step import sink_gd_step as sink_gd_step
