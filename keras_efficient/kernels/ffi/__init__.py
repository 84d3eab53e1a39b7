"""The bridge: Numba kernels on tensors of JAX, TensorFlow, PyTorch and NumPy.

It knows of no optimizer, and of no other room.
"""
