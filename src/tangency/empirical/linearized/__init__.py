"""A network linearised in its parameters, and its Taylor polynomials, as modules."""

from tangency.empirical.linearized.linearization import linearize, taylor

__all__ = ["linearize", "taylor"]
