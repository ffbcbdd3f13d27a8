"""Training in whole steps."""

from __future__ import annotations

import torch

from tangency.analysis.dynamics.times import Moments, Times, check_whole
from tangency.analysis.dynamics.training import LinearizedTraining
from tangency.errors import InvalidInput

__all__ = ["Descent"]


class Descent(LinearizedTraining):
    """Training in whole steps. Above `max_learning_rate` it grows without bound."""

    whole_steps = True

    def checked(self, times: Times) -> Moments:
        when, what = super().checked(times), type(self).__name__
        check_whole(when.values, what)
        if bool(torch.isinf(when.values).any()) and self.learning_rate >= self.max_learning_rate:
            raise InvalidInput(
                f"{what} with learning_rate {self.learning_rate:g} has no limit: it is "
                f"stable below max_learning_rate = {self.max_learning_rate:.6g} only."
            )
        return when
