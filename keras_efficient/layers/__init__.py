from keras_efficient.layers.adaptation.compact_random_features import (
    CompactRandomFeatures as CompactRandomFeatures,
)
from keras_efficient.layers.adaptation.eco_tta_block import (
    EcoTTABlock as EcoTTABlock,
)
from keras_efficient.layers.adaptation.gradient_reversal import (
    GradientReversal as GradientReversal,
)
from keras_efficient.layers.adaptation.hopfield import Hopfield as Hopfield
from keras_efficient.layers.adaptation.hopfield_layer import (
    HopfieldLayer as HopfieldLayer,
)
from keras_efficient.layers.adaptation.hopfield_pooling import (
    HopfieldPooling as HopfieldPooling,
)
from keras_efficient.layers.adaptation.hourglass_block import (
    HourglassBlock as HourglassBlock,
)
from keras_efficient.layers.adaptation.hydra import Hydra as Hydra
from keras_efficient.layers.adaptation.hyper_network import (
    HyperNetwork as HyperNetwork,
)
from keras_efficient.layers.adaptation.key_value_bottleneck import (
    KeyValueBottleneck as KeyValueBottleneck,
)
from keras_efficient.layers.adaptation.pooling_mixer import (
    PoolingMixer as PoolingMixer,
)
from keras_efficient.layers.binary.binarized import Binarized as Binarized
from keras_efficient.layers.convolutional.conv_bn import ConvBN as ConvBN
from keras_efficient.layers.convolutional.conv_next_block import (
    ConvNeXtBlock as ConvNeXtBlock,
)
from keras_efficient.layers.convolutional.depthwise_conv_3d import (
    DepthwiseConv3D as DepthwiseConv3D,
)
from keras_efficient.layers.convolutional.mb_conv import MBConv as MBConv
from keras_efficient.layers.core.reparametrized import (
    Reparametrized as Reparametrized,
)
from keras_efficient.layers.core.sparse_nm import SparseNM as SparseNM
from keras_efficient.layers.elastic.elastic_conv_2d import (
    ElasticConv2D as ElasticConv2D,
)
from keras_efficient.layers.elastic.elastic_dense import (
    ElasticDense as ElasticDense,
)
from keras_efficient.layers.heads.fixed_classifier import (
    FixedClassifier as FixedClassifier,
)
from keras_efficient.layers.invertible.inverse import Inverse as Inverse
from keras_efficient.layers.invertible.invertible_conv_1d import (
    InvertibleConv1D as InvertibleConv1D,
)
from keras_efficient.layers.invertible.invertible_conv_2d import (
    InvertibleConv2D as InvertibleConv2D,
)
from keras_efficient.layers.invertible.invertible_conv_3d import (
    InvertibleConv3D as InvertibleConv3D,
)
from keras_efficient.layers.invertible.invertible_dense import (
    InvertibleDense as InvertibleDense,
)
from keras_efficient.layers.invertible.invertible_leaky_relu import (
    InvertibleLeakyReLU as InvertibleLeakyReLU,
)
from keras_efficient.layers.invertible.invertible_residual import (
    InvertibleResidual as InvertibleResidual,
)
from keras_efficient.layers.invertible.invertible_sequential import (
    InvertibleSequential as InvertibleSequential,
)
from keras_efficient.layers.invertible.orthogonal_mixing import (
    OrthogonalMixing as OrthogonalMixing,
)
from keras_efficient.layers.normalization.ada_b2n import AdaB2N as AdaB2N
from keras_efficient.layers.normalization.alpha_bn import AlphaBN as AlphaBN
from keras_efficient.layers.normalization.batch_channel_normalization import (
    BatchChannelNormalization as BatchChannelNormalization,
)
from keras_efficient.layers.normalization.evo_norm import EvoNorm as EvoNorm
from keras_efficient.layers.normalization.instance_batch_normalization import (
    InstanceBatchNormalization as InstanceBatchNormalization,
)
from keras_efficient.layers.normalization.p_rep_bn import PRepBN as PRepBN
from keras_efficient.layers.normalization.simplified_linear_attention import (
    SimplifiedLinearAttention as SimplifiedLinearAttention,
)
from keras_efficient.layers.normalization.unmix_tns import UnMixTNS as UnMixTNS
from keras_efficient.layers.normalization.weight_standardization import (
    WeightStandardization as WeightStandardization,
)
from keras_efficient.layers.regularization.shannon_decay import (
    ShannonDecay as ShannonDecay,
)
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
from keras_efficient.layers.reversible.rev_silo import RevSilo as RevSilo
from keras_efficient.layers.reversible.reversible_column import (
    ReversibleColumn as ReversibleColumn,
)
from keras_efficient.layers.reversible.reversible_concatenate import (
    ReversibleConcatenate as ReversibleConcatenate,
)
from keras_efficient.layers.reversible.reversible_layer import (
    ReversibleLayer as ReversibleLayer,
)
from keras_efficient.layers.reversible.reversible_mb_conv import (
    ReversibleMBConv as ReversibleMBConv,
)
from keras_efficient.layers.reversible.reversible_parallel import (
    ReversibleParallel as ReversibleParallel,
)
from keras_efficient.layers.reversible.reversible_sequence import (
    ReversibleSequence as ReversibleSequence,
)
from keras_efficient.layers.reversible.reversible_split import (
    ReversibleSplit as ReversibleSplit,
)
from keras_efficient.layers.reversible.reversible_transformer_decoder import (
    ReversibleTransformerDecoder as ReversibleTransformerDecoder,
)
from keras_efficient.layers.reversible.reversible_transformer_encoder import (
    ReversibleTransformerEncoder as ReversibleTransformerEncoder,
)
from keras_efficient.layers.reversible.tiled import Tiled as Tiled
from keras_efficient.layers.self_tuning.self_tuning_dense import (
    SelfTuningDense as SelfTuningDense,
)
from keras_efficient.layers.self_tuning.self_tuning_dropout import (
    SelfTuningDropout as SelfTuningDropout,
)
