from keras_efficient.conversion.recompute import recompute as recompute
