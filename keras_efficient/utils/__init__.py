from keras_efficient.utils.check_reversibility import (
    check_reversibility as check_reversibility,
)
from keras_efficient.utils.optimizer_state_bytes import (
    optimizer_state_bytes as optimizer_state_bytes,
)
from keras_efficient.utils.peak_bytes import peak_bytes as peak_bytes
from keras_efficient.utils.saved_activation_bytes import (
    saved_activation_bytes as saved_activation_bytes,
)
