"""Tangency: the neural tangent kernel for PyTorch."""
