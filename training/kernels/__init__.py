"""Fused forms of functions of `mixers/primitives.py`: torch_scan.py, PyTorch's own scan with its
gradient, and triton_scan.py, its kernel for a GPU. Tests hold each to the plain form."""
