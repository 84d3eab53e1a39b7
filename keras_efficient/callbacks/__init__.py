from keras_efficient.callbacks.auto_drop import AutoDrop as AutoDrop
from keras_efficient.callbacks.bandit_learning_rate import (
    BanditLearningRate as BanditLearningRate,
)
from keras_efficient.callbacks.parallel_average import (
    ParallelAverage as ParallelAverage,
)
from keras_efficient.callbacks.translation_grid import (
    TranslationGrid as TranslationGrid,
)
