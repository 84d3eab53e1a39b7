from keras_efficient.ops.adam_step import adam_step as adam_step
from keras_efficient.ops.block_top_k import block_top_k as block_top_k
from keras_efficient.ops.micro_adam_step import MicroAdamState as MicroAdamState
from keras_efficient.ops.micro_adam_step import (
    micro_adam_step as micro_adam_step,
)
from keras_efficient.ops.quantize_4bit import dequantize_4bit as dequantize_4bit
from keras_efficient.ops.quantize_4bit import quantize_4bit as quantize_4bit
