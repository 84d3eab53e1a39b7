from keras_efficient.conversion.chunk_loss import chunk_loss as chunk_loss
from keras_efficient.conversion.micro_batches import (
    micro_batches as micro_batches,
)
from keras_efficient.conversion.recompute import recompute as recompute
from keras_efficient.conversion.release_gradients import (
    release_gradients as release_gradients,
)
from keras_efficient.conversion.save_in_16_bits import (
    save_in_16_bits as save_in_16_bits,
)
