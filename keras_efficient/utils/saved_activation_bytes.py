import keras

from keras_efficient import backend
from keras_efficient.conversion.step_bytes import as_function


def saved_activation_bytes(model, inputs):
    """Measure the bytes that a training step keeps for its backward pass.

    Parameters and inputs are not counted, and the model is not changed. Each
    backend is asked in its own way:

    - PyTorch: the storages that autograd saves while the model runs forward;
    - TensorFlow: the tensors that the backward part of the traced graph
      reads from its forward part;
    - JAX: the temporary memory of the compiled gradient. One XLA program has
      no line between forward and backward, so this is its peak, with the
      working memory of the kernels.

    Compare models on one backend; between backends the figures differ in
    meaning.

    Args:
        model: A built Keras model or layer with one or several outputs.
        inputs: Array, tensor, or a nested structure of them: one batch.

    Returns:
        Integer, bytes.

    Raises:
        NotImplementedError: the backend has no derivatives.

    Example:

    ```python
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    x = keras.random.normal((32, 64))
    keras_efficient.utils.saved_activation_bytes(model, x)
    ```
    """
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    return backend.saved_bytes(*as_function(model), inputs)
