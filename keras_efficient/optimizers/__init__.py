from keras_efficient.optimizers.micro_adam import MicroAdam as MicroAdam
