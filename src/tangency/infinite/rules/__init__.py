"""One file per family of operations; importing this package registers all rules."""

from tangency.infinite.rules import affine, convolution, normalization, pointwise, structure

__all__ = ["affine", "convolution", "normalization", "pointwise", "structure"]
