"""Generalisation: test error from the training set, from theory, and by bounds."""

from tangency.analysis.generalization.cross_validation import (
    CrossValidation,
    k_fold,
    leave_one_out,
)
from tangency.analysis.generalization.eigenlearning import (
    Eigenlearning,
    effective_regularization,
    eigenlearning,
)
from tangency.analysis.generalization.estimated_curve import estimated_learning_curve
from tangency.analysis.generalization.learning_curve import LearningCurve, learning_curve
from tangency.analysis.generalization.measured_curve import (
    MeasuredLearningCurve,
    measured_learning_curve,
)
from tangency.analysis.generalization.norm_bounds import NormBounds, norm_bounds
from tangency.analysis.generalization.population import Population, population
from tangency.analysis.generalization.ridge_path import RidgePath, ridge_path
from tangency.analysis.generalization.risk_estimates import (
    generalized_cross_validation,
    kernel_alignment_risk,
)
from tangency.analysis.generalization.scaling import (
    CurveExponent,
    ScalingLaw,
    curve_exponent,
    scaling_law,
)

__all__ = [
    "CrossValidation",
    "CurveExponent",
    "Eigenlearning",
    "LearningCurve",
    "MeasuredLearningCurve",
    "NormBounds",
    "Population",
    "RidgePath",
    "ScalingLaw",
    "curve_exponent",
    "effective_regularization",
    "eigenlearning",
    "estimated_learning_curve",
    "generalized_cross_validation",
    "k_fold",
    "kernel_alignment_risk",
    "learning_curve",
    "leave_one_out",
    "measured_learning_curve",
    "norm_bounds",
    "population",
    "ridge_path",
    "scaling_law",
]
