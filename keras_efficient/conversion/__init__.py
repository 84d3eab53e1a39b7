from keras_efficient.conversion.chunk_loss import chunk_loss as chunk_loss
from keras_efficient.conversion.micro_batches import (
    micro_batches as micro_batches,
)
from keras_efficient.conversion.recompute import recompute as recompute
from keras_efficient.conversion.release_gradients import (
    release_gradients as release_gradients,
)
