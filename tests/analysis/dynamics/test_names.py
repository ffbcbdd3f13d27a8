"""The short way to the names: tangency.dynamics."""

import tangency
import tangency.dynamics
from tangency.analysis import dynamics


def test_the_alias_holds_all_names():
    assert tangency.dynamics.__all__ == dynamics.__all__
    for name in dynamics.__all__:
        assert getattr(tangency.dynamics, name) is getattr(dynamics, name)
