"""Kernels for CUDA devices, of Triton. They know nothing of Keras."""
