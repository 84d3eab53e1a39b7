from keras_efficient.callbacks.average_weights import (
    average_weights as average_weights,
)
from keras_efficient.callbacks.recompute_batch_norm import (
    recompute_batch_norm as recompute_batch_norm,
)
from keras_efficient.conversion.freeze_statistics import (
    freeze_statistics as freeze_statistics,
)
from keras_efficient.conversion.merge_batch_norm import (
    merge_batch_norm as merge_batch_norm,
)
from keras_efficient.conversion.to_tune_mode import to_tune_mode as to_tune_mode
from keras_efficient.utils.adapt_batch_norm import (
    adapt_batch_norm as adapt_batch_norm,
)
from keras_efficient.utils.align_classifier import (
    align_classifier as align_classifier,
)
from keras_efficient.utils.average_statistics import (
    average_statistics as average_statistics,
)
from keras_efficient.utils.check_reversibility import (
    check_reversibility as check_reversibility,
)
from keras_efficient.utils.class_statistics import (
    class_statistics as class_statistics,
)
from keras_efficient.utils.convert_optimizer_state import (
    convert_optimizer_state as convert_optimizer_state,
)
from keras_efficient.utils.input_bases import input_bases as input_bases
from keras_efficient.utils.item_difficulties import (
    item_difficulties as item_difficulties,
)
from keras_efficient.utils.layer_budgets import layer_budgets as layer_budgets
from keras_efficient.utils.least_squares_stitch import (
    least_squares_stitch as least_squares_stitch,
)
from keras_efficient.utils.memory_plan import MemoryPlan as MemoryPlan
from keras_efficient.utils.memory_plan import memory_plan as memory_plan
from keras_efficient.utils.memory_report import memory_report as memory_report
from keras_efficient.utils.memory_usage import LayerMemory as LayerMemory
from keras_efficient.utils.memory_usage import MemoryReport as MemoryReport
from keras_efficient.utils.memory_usage import MemoryUsage as MemoryUsage
from keras_efficient.utils.optimizer_state_bytes import (
    optimizer_state_bytes as optimizer_state_bytes,
)
from keras_efficient.utils.peak_bytes import peak_bytes as peak_bytes
from keras_efficient.utils.plot_learning_rate import (
    plot_learning_rate as plot_learning_rate,
)
from keras_efficient.utils.saved_activation_bytes import (
    saved_activation_bytes as saved_activation_bytes,
)
from keras_efficient.utils.scale_task_vector import (
    scale_task_vector as scale_task_vector,
)
from keras_efficient.utils.selectable_dataset import (
    SelectableDataset as SelectableDataset,
)
