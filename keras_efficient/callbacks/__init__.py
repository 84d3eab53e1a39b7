from keras_efficient.callbacks.auto_drop import AutoDrop as AutoDrop
