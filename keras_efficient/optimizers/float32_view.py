import contextlib

import keras
from keras import ops


class Float32View(keras.Variable):
    """A variable of 16 bits that is float32 to an optimizer.

    It holds nothing but a scalar that nobody reads. While it is open, which is
    during a step, its value is one float32 tensor. Otherwise each read makes
    one, and each assignment is rounded.

    Args:
        variable: `keras.Variable` of 16 bits.
        read: Function that returns its value in float32.
        write: Function that assigns float32 to it.
    """

    def __init__(self, variable, read, write):
        super().__init__("zeros", (), "float32", name=variable.name)
        self.variable = variable
        self.read = read
        self.write = write
        self.tensor = None

    @property
    def value(self):
        # TensorFlow assigns to the value of a variable.
        if keras.config.backend() == "tensorflow":
            return self
        return self.read() if self.tensor is None else self.tensor

    def assign(self, value):
        value = ops.convert_to_tensor(value, "float32")
        if self.tensor is None:
            self.write(value)
        else:
            self.tensor = value
        return value

    dtype = property(lambda self: "float32")
    shape = property(lambda self: self.variable.shape)
    ndim = property(lambda self: self.variable.ndim)
    path = property(lambda self: self.variable.path)
    constraint = property(lambda self: self.variable.constraint)
    # The rest is what Keras' optimizers of TensorFlow ask a variable for.
    device = property(lambda self: self.variable.value.device)
    handle = property(lambda self: self.variable.value.handle)
    _unique_id = property(lambda self: self.variable.value._unique_id)

    def __tf_tensor__(self, dtype=None, name=None):
        tensor = self.read() if self.tensor is None else self.tensor
        return tensor if dtype is None else ops.cast(tensor, dtype)


@contextlib.contextmanager
def opened(variables):
    """Open the views among variables; assign what became of them."""
    views = [v for v in variables if isinstance(v, Float32View)]
    try:
        for view in views:
            view.tensor = view.read()
        yield
        for view in views:
            view.write(view.tensor)
    finally:
        for view in views:
            view.tensor = None
