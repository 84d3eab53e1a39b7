from keras_efficient.metrics.orthonormality_error import (
    OrthonormalityError as OrthonormalityError,
)
