"""Fused forms of functions of `mixers/primitives.py`: torch_scan.py, PyTorch's own scan with its
gradient, triton_scan.py, its kernel for a GPU, and jax_scan.py, also across devices. Tests hold
each to the plain form."""
