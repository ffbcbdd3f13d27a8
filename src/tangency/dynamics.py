"""Training in closed form, by an ODE solver, and over ensembles: `tangency.analysis.dynamics`."""

from tangency.analysis.dynamics import *  # noqa: F403
from tangency.analysis.dynamics import __all__ as __all__
