"""Eigenlearning: what kernel ridge regression learns from n examples, mode by mode, on average.

With the eigenvalues l_i of the kernel over the distribution of the data and the target's
coefficients v_i, the effective regularisation kappa and the learnabilities L_i are given by

    n = sum_i l_i / (l_i + kappa) + ridge / kappa,      L_i = l_i / (l_i + kappa),

and, with E_0 = n / (n - sum_i L_i^2),

    test error  = E_0 (sum_i (1 - L_i)^2 v_i^2 + noise)
    train error = (ridge / (n kappa))^2 test error

(the eigenlearning equations of Simon, Dickens, Karkada & DeWeese 2023; the learning curves of
Bordelon, Canatar & Pehlevan 2020). Exact for Gaussian features as n and the number of modes grow;
an approximation elsewhere. Modes far below kappa add to the ridge by their eigenvalue and to the
noise by their power; so does the tail of a `Population`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from tangency import drawing
from tangency.analysis.generalization.population import Population
from tangency.errors import InvalidInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Eigenlearning", "effective_regularization", "eigenlearning"]


@dataclass(frozen=True, eq=False, repr=False)
class Eigenlearning:
    """Kernel ridge regression on n random examples, on average over them.

    Errors are mean squared: mean over examples, sum over outputs.

    Attributes:
        population: the kernel and target over the distribution.
        examples: n; it need not be whole.
        ridge: as in (K + ridge)^-1.
        noise: variance of the labels' noise, summed over outputs.
        kappa: effective regularisation, in units of eigenvalues.
        learnability: (M,) L_i in [0, 1]: the fraction of the target's mode i that is learned. They
            sum to n, less the part (ridge + tail) / kappa (conservation of learnability).
        test_error: against noisy targets; infinite at the peak, where n meets the number of modes
            without ridge.
        train_error: on the n examples.
    """

    population: Population
    examples: float
    ridge: float
    noise: float
    kappa: float
    learnability: Tensor
    test_error: float
    train_error: float

    @property
    def target_learnability(self) -> float:
        """Fraction of the target's power that is learned: sum v_i^2 L_i / sum v_i^2."""
        total = self.population.total_power
        return float(self.population.power @ self.learnability) / total if total else 1.0

    @property
    def clean_test_error(self) -> float:
        """Test error against targets without noise."""
        return self.test_error - self.noise

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, the population as a dictionary."""
        return {
            "population": self.population.to_dict(),
            "examples": self.examples,
            "ridge": self.ridge,
            "noise": self.noise,
            "kappa": self.kappa,
            "learnability": self.learnability,
            "target_learnability": self.target_learnability,
            "test_error": self.test_error,
            "train_error": self.train_error,
        }

    def figure(self) -> Figure:
        """Learnability of each mode against its eigenvalue over kappa, with the target's power.

        Raises:
            MissingDependency: Plotly is not installed.
        """
        figure = drawing.new_figure(
            f"What {self.examples:g} examples teach", "mode", "fraction", x_axis="log"
        )
        index = torch.arange(1, len(self.learnability) + 1)
        drawing.line(figure, index, self.learnability, "learnability")
        total = self.population.total_power
        if total:
            left = 1 - self.population.power.cumsum(0) / total
            drawing.line(
                figure, index, left, "target power in later modes", drawing.INFINITE, dash="dash"
            )
        return figure

    def __repr__(self) -> str:
        return (
            f"Eigenlearning(n = {self.examples:g}, ridge {self.ridge:.3g}, noise {self.noise:.3g}: "
            f"kappa {self.kappa:.4g}, target learnability {self.target_learnability:.4g}, test "
            f"error {self.test_error:.4g}, train error {self.train_error:.4g})"
        )


def eigenlearning(
    population: Population, examples: float, ridge: float = 0.0, noise: float = 0.0
) -> Eigenlearning:
    """Predicted learnability of every mode and errors for one training set size.

    Args:
        population: eigenvalues and power, exact or estimated.
        examples: n, positive.
        ridge: as in (K + ridge)^-1, with K the kernel matrix (not divided by n).
        noise: variance of the labels' noise, summed over outputs. A `population` that was estimated
            from noisy labels holds it already, spread over the hopeless modes.

    Raises:
        InvalidInput: numbers out of range, or more than a tenth of the examples that the population
            was estimated from.
    """
    _check(examples, ridge, noise)
    _check_sample(population, examples)
    eigenvalues, power = population.eigenvalues, population.power
    kappa = effective_regularization(population, examples, ridge)
    learned = _learnability(eigenvalues, kappa)
    missed = _missed(eigenvalues, kappa)
    slack = _slack(population, examples, ridge, kappa)
    error = float(missed.square() @ power) + population.tail_power + noise
    spare = float((learned * missed).sum()) + slack  # n - sum L_i^2 without cancellation
    test = _quotient(examples * error, spare)
    # The tail acts as a ridge on what is learned, but not on the residuals.
    ridge_share = slack if population.tail_trace == 0 else (ridge / kappa)
    train = (ridge_share / examples) * (ridge_share / examples) * test if ridge_share else 0.0
    return Eigenlearning(population, float(examples), ridge, noise, kappa, learned, test, train)


def effective_regularization(population: Population, examples: float, ridge: float = 0.0) -> float:
    """kappa with n = sum_i l_i / (l_i + kappa) + (ridge + tail) / kappa.

    Zero where there is no ridge, no tail and at least as many examples as modes.

    Raises:
        InvalidInput: numbers out of range.
    """
    _check(examples, ridge, 0.0)
    eigenvalues = population.eigenvalues[population.eigenvalues > 0].numpy()
    constant = ridge + population.tail_trace
    if constant == 0 and examples >= len(eigenvalues):
        return 0.0
    lowest, highest = _bracket(eigenvalues, examples, constant)

    def excess(log_kappa: float) -> float:
        # Each term as 1 / (1 + kappa / l): neither overflows nor underflows to 0 / 0.
        ratios = np.exp(np.minimum(log_kappa - logs, 700.0))
        terms = float((1 / (1 + ratios)).sum())
        rest = math.exp(min(math.log(constant) - log_kappa, 700.0)) if constant else 0.0
        return terms + rest - examples

    logs = np.log(eigenvalues)
    if excess(lowest) <= 0:
        return math.exp(lowest)
    if excess(highest) >= 0:
        return math.exp(highest)
    return math.exp(float(brentq(excess, lowest, highest, xtol=1e-14, rtol=1e-15, maxiter=500)))


def _bracket(
    eigenvalues: np.ndarray[Any, Any], examples: float, constant: float
) -> tuple[float, float]:
    """Logarithms of a lower and an upper bound of kappa.

    Above: l / (l + kappa) < l / kappa. Below: the ridge alone, or, of the k smallest-listed
    eigenvalues down to l_k with k > n, k l_k / (l_k + kappa) <= n.
    """
    highest = math.log((float(eigenvalues.sum()) + constant) / examples)
    bounds = [math.log(constant / examples)] if constant > 0 else []
    count = len(eigenvalues)
    if count > examples:
        bounds.append(math.log(float(eigenvalues.min())) + math.log((count - examples) / examples))
    return max(bounds), highest


def _learnability(eigenvalues: Tensor, kappa: float) -> Tensor:
    if kappa == 0:
        return (eigenvalues > 0).double()
    return eigenvalues / (eigenvalues + kappa)


def _missed(eigenvalues: Tensor, kappa: float) -> Tensor:
    """1 - L_i without cancellation."""
    if kappa == 0:
        return (eigenvalues == 0).double()
    return kappa / (eigenvalues + kappa)


def _slack(population: Population, examples: float, ridge: float, kappa: float) -> float:
    """n - sum_i L_i: the examples that are spent on the ridge and the tail."""
    if kappa == 0:
        return examples - population.rank
    return (ridge + population.tail_trace) / kappa


def _quotient(numerator: float, denominator: float) -> float:
    """The test error, infinite at the peak; a target that is learned whole has none there."""
    if numerator == 0:
        return 0.0
    return numerator / denominator if denominator > 0 else math.inf


def _check_sample(population: Population, examples: float) -> None:
    """A sample of m that stands for the distribution makes errors too small by n / m."""
    samples = population.samples
    if samples is not None and examples > samples / 10:
        raise InvalidInput(
            f"examples is {examples:g}, but a population estimated from {samples} examples "
            f"predicts up to a tenth of them: {examples:g} are a large part of all that it knows. "
            "Use tangency.estimated_learning_curve, which goes up to the whole sample."
        )


def _check(examples: float, ridge: float, noise: float) -> None:
    if not (math.isfinite(examples) and examples > 0):
        raise InvalidInput(f"examples is {examples}, but must be positive.")
    for name, value in (("ridge", ridge), ("noise", noise)):
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInput(f"{name} is {value}, but must be zero or positive.")
