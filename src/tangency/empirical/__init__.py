"""The kernel of a network at its present parameters, exact at finite width."""

from tangency.empirical.kernel import EmpiricalKernel

__all__ = ["EmpiricalKernel"]
