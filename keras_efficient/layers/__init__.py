from keras_efficient.layers.reversible.additive_coupling import (
    AdditiveCoupling as AdditiveCoupling,
)
from keras_efficient.layers.reversible.affine_coupling import (
    AffineCoupling as AffineCoupling,
)
from keras_efficient.layers.reversible.invertible_downsampling_1d import (
    InvertibleDownsampling1D as InvertibleDownsampling1D,
)
from keras_efficient.layers.reversible.invertible_downsampling_2d import (
    InvertibleDownsampling2D as InvertibleDownsampling2D,
)
from keras_efficient.layers.reversible.invertible_downsampling_3d import (
    InvertibleDownsampling3D as InvertibleDownsampling3D,
)
from keras_efficient.layers.reversible.invertible_upsampling_1d import (
    InvertibleUpsampling1D as InvertibleUpsampling1D,
)
from keras_efficient.layers.reversible.invertible_upsampling_2d import (
    InvertibleUpsampling2D as InvertibleUpsampling2D,
)
from keras_efficient.layers.reversible.invertible_upsampling_3d import (
    InvertibleUpsampling3D as InvertibleUpsampling3D,
)
from keras_efficient.layers.reversible.momentum_coupling import (
    MomentumCoupling as MomentumCoupling,
)
from keras_efficient.layers.reversible.recompute import Recompute as Recompute
from keras_efficient.layers.reversible.reversible_layer import (
    ReversibleLayer as ReversibleLayer,
)
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence as ReversibleSequence,
)
