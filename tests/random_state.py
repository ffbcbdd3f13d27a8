"""NumPy's global random state in a form that compares."""

from __future__ import annotations

import numpy as np


def numpy_state() -> tuple[bytes, int]:
    """The numbers that the generator holds, and the place of the next one among them."""
    state = np.random.get_state()  # noqa: NPY002
    return state[1].tobytes(), state[2]
