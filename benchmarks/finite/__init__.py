"""What the benchmark of finite-width kernels (`empirical.py`) is made of."""
