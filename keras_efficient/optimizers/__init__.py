from keras_efficient.optimizers.adagrad_norm import AdaGradNorm as AdaGradNorm
from keras_efficient.optimizers.adam_8bit import Adam8bit as Adam8bit
from keras_efficient.optimizers.adamw_8bit import AdamW8bit as AdamW8bit
from keras_efficient.optimizers.adaptive_batch import (
    AdaptiveBatch as AdaptiveBatch,
)
from keras_efficient.optimizers.gradient_projection import (
    GradientProjection as GradientProjection,
)
from keras_efficient.optimizers.ld_adam import LDAdam as LDAdam
from keras_efficient.optimizers.lion_8bit import Lion8bit as Lion8bit
from keras_efficient.optimizers.lisa import LISA as LISA
from keras_efficient.optimizers.masked_optimizer import (
    MaskedOptimizer as MaskedOptimizer,
)
from keras_efficient.optimizers.micro_adam import MicroAdam as MicroAdam
from keras_efficient.optimizers.muon_8bit import Muon8bit as Muon8bit
from keras_efficient.optimizers.selected_adam import (
    SelectedAdam as SelectedAdam,
)
from keras_efficient.optimizers.sgd_8bit import SGD8bit as SGD8bit
from keras_efficient.optimizers.sink_gd import SinkGD as SinkGD
from keras_efficient.optimizers.sixteen_bit import SixteenBit as SixteenBit
from keras_efficient.optimizers.unfreezing import Unfreezing as Unfreezing
