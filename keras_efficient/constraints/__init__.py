from keras_efficient.constraints.static_sparsity import (
    StaticSparsity as StaticSparsity,
)
