"""One network on one data set, studied from every side."""

from tangency.study.convergence import Convergence, converge
from tangency.study.generalization import Generalization
from tangency.study.networks import ACTIVATIONS, Family, imported, perceptrons
from tangency.study.result import Score, Study
from tangency.study.run import study

__all__ = [
    "ACTIVATIONS",
    "Convergence",
    "Family",
    "Generalization",
    "Score",
    "Study",
    "converge",
    "imported",
    "perceptrons",
    "study",
]
