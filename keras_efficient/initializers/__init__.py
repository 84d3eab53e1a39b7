from keras_efficient.initializers.delta_orthogonal import (
    DeltaOrthogonal as DeltaOrthogonal,
)
