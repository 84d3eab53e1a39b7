import keras

from keras_efficient import backend


def average_statistics(model):
    """Average what processes have gathered by themselves, on PyTorch.

    Under `torch.nn.parallel.DistributedDataParallel` each process normalizes
    by its own batch, and moves the statistics of `BatchNormalization` by it.
    DistributedDataParallel would send buffers around, but those of Keras are
    parameters without gradients, which it leaves alone: the statistics of
    processes drift apart, and with them what models predict. Call this in
    all processes before models are evaluated or saved, after each epoch for
    instance. It sends 4 bytes for each number once.

    All non-trainable variables of floats are averaged, those of
    normalization. Seeds are left as they are: processes draw masks of their
    own. Without several processes of `torch.distributed`, and on other
    backends, where Keras itself has one value of each variable, it does
    nothing.

    Args:
        model: Built Keras model, not what DistributedDataParallel made of it.

    Example:

    ```python
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.BatchNormalization()]
    )
    keras_efficient.utils.average_statistics(model)
    ```
    """
    if backend.dtensors is None:
        return
    for variable in model.non_trainable_variables:
        if keras.backend.is_float_dtype(variable.dtype):
            backend.dtensors.average(variable.value)
