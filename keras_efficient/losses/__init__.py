from keras_efficient.losses.pooled_outputs_distillation import (
    PooledOutputsDistillation as PooledOutputsDistillation,
)
