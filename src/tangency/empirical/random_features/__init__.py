"""Random features of the empirical kernel."""

from tangency.empirical.random_features.projections import random_features

__all__ = ["random_features"]
