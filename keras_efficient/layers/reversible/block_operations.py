"""A reversible block as something else than a layer."""

import keras


class Couple(keras.Operation):
    """`couple` as an operation, which runs on symbolic tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, streams, shared):
        evaluate = self.layer.evaluator(shared, training=False)
        return self.layer.couple(streams, evaluate)


class Undone:
    """A block the other way round: what undoes it, and is undone by it."""

    keeps_inputs = False
    undoes = True

    def __init__(self, block):
        self.block = block
        self.couple = block.uncouple
        self.uncouple = block.couple
        self.standardize = block.standardize
        self.bijective = block.bijective
        self.compute_dtype = block.compute_dtype
        self.variables = block.variables

    def pull_back(self, outputs, cotangents, vjp):
        return vjp.derive(self, outputs, cotangents)

    def couple_with_log_det(self, streams, evaluate):
        inputs, log_det = self.block.uncouple_with_log_det(streams, evaluate)
        return inputs, -log_det

    def uncouple_with_log_det(self, streams, evaluate):
        outputs, log_det = self.block.couple_with_log_det(streams, evaluate)
        return outputs, -log_det
