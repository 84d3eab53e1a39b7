from keras_efficient.layers.reversible.additive_coupling import (
    AdditiveCoupling as AdditiveCoupling,
)
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence as ReversibleSequence,
)
