from keras_efficient.callbacks.ability_curriculum import (
    AbilityCurriculum as AbilityCurriculum,
)
from keras_efficient.callbacks.auto_drop import AutoDrop as AutoDrop
from keras_efficient.callbacks.bandit_learning_rate import (
    BanditLearningRate as BanditLearningRate,
)
from keras_efficient.callbacks.instance_learning_rate import (
    InstanceLearningRate as InstanceLearningRate,
)
from keras_efficient.callbacks.learning_curve import (
    LearningCurve as LearningCurve,
)
from keras_efficient.callbacks.momentum_schedule import (
    MomentumSchedule as MomentumSchedule,
)
from keras_efficient.callbacks.parallel_average import (
    ParallelAverage as ParallelAverage,
)
from keras_efficient.callbacks.self_distillation import (
    SelfDistillation as SelfDistillation,
)
from keras_efficient.callbacks.subnetwork_sampling import (
    SubnetworkSampling as SubnetworkSampling,
)
from keras_efficient.callbacks.translation_grid import (
    TranslationGrid as TranslationGrid,
)
