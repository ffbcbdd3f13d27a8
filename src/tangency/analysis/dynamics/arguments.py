"""Arguments that all trainings share."""

from __future__ import annotations

import math

from tangency.errors import InvalidInput

__all__ = ["check_rate", "check_ridge"]


def check_rate(learning_rate: float) -> None:
    """Refuse a learning rate that is not positive."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InvalidInput(f"learning_rate is {learning_rate}, but must be positive.")


def check_ridge(ridge: float, name: str = "ridge") -> None:
    """Refuse a ridge that is negative."""
    if not (math.isfinite(ridge) and ridge >= 0):
        raise InvalidInput(f"{name} is {ridge}, but must be zero or positive.")
