"""The process of `end_to_end.py` that trains one contender."""

import math
import time

import keras

import keras_efficient
from benchmarks.end_to_end_networks import LEARNING_RATE
from benchmarks.end_to_end_networks import NETWORKS
from keras_efficient.conversion.step_bytes import bytes_of
from keras_efficient.utils import peak_bytes

WARM_UP = 2  # steps that trace and compile


def serve(connection, mode, network, contender, batch_size):
    """Answer what is asked, until nobody asks.

    A size, `(depth, width)`, is answered by the number of parameters: a network
    is built, and has made its first steps, `WARM_UP`. "peak" is answered by the
    bytes that a step takes, and "time" by the seconds of a step and its loss.
    What goes wrong is sent as a string, and ends the process.
    """
    if mode == "torch":  # what its convolutions work in
        keras.config.set_image_data_format("channels_first")
    if contender == "PyTorch":
        from benchmarks.end_to_end_torch import TorchContender as make
    else:
        make = KerasContender
    batches = NETWORKS[network][1](batch_size)
    trained = None
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        try:
            if asked == "peak":
                connection.send(peak_of_step(trained, next(batches)))
            elif asked == "time":
                connection.send(time_of_step(trained, next(batches)))
            else:
                del trained
                keras.utils.clear_session()
                keras.utils.set_random_seed(0)
                trained = make(mode, network, contender, *asked)
                for _ in range(WARM_UP):
                    trained.step(*next(batches))
                connection.send(trained.count_params())
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no message"]
            connection.send(f"{type(error).__name__}: {lines[0]}")
            return


def peak_of_step(contender, batch):
    contender.drop_gradients()
    above = peak_bytes(lambda: contender.step(*batch))
    if above is None:
        raise RuntimeError("the peak of a step cannot be measured here")
    return contender.held_bytes() + above


def time_of_step(contender, batch):
    start = time.perf_counter()
    loss = contender.step(*batch)
    return time.perf_counter() - start, loss


class KerasContender:
    def __init__(self, mode, network, contender, depth, width):
        build, _, loss = NETWORKS[network]
        self.model = build(contender, depth, width)
        if contender == "reversible, MicroAdam":
            optimizer = keras_efficient.optimizers.MicroAdam(LEARNING_RATE)
        else:
            optimizer = keras.optimizers.Adam(LEARNING_RATE)
        self.model.compile(
            optimizer, loss, jit_compile=mode in ("jax", "tensorflow-xla")
        )
        self.step = self.model.train_on_batch

    def count_params(self):
        weights = self.model.trainable_variables
        return sum(math.prod(weight.shape) for weight in weights)

    def held_bytes(self):
        """Return the bytes of parameters and optimizer state."""
        variables = self.model.variables + self.model.optimizer.variables
        return bytes_of(variables)

    def drop_gradients(self):
        if keras.config.backend() == "torch":
            self.model.zero_grad()  # PyTorch keeps them until the next step
