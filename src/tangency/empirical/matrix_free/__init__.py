"""The empirical kernel as a linear operator, without ever writing it down."""

from tangency.empirical.matrix_free.operator import KernelOperator

__all__ = ["KernelOperator"]
