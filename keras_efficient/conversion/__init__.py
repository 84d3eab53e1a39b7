from keras_efficient.conversion.chunk_loss import chunk_loss as chunk_loss
