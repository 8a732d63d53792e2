"""Kernels compiled by numba at their first use; imported only where they run."""
