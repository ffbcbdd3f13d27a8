"""The angle of a versine, accurate near zero.

The engine carries the versine v = 1 - cos(theta). From it follow theta and the integral
h(v) = int_0^v theta dv' = sin(theta) - theta cos(theta), which is what a ReLU takes away from the
versine (Cho and Saul 2009, eq. 6, with 1 - kappa written without cancellation).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from tangency.infinite.roots import root as square_root

__all__ = ["angle_and_integral", "arcsine", "polynomial_of_angle"]

_DEGREE = {torch.float32: 9, torch.float64: 19}


@cache
def _polynomials(degree: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """P and Q with theta = sqrt(v) P(v) and h = v^1.5 Q(v) on [0, 1].

    theta = 2 asin(sqrt(v / 2)) = sqrt(2 v) sum_k a_k (v / 2)^k, a_k = C(2k, k) / (4^k (2k + 1));
    h is its integral. The series are economised by Chebyshev interpolation.
    """
    terms = 100
    a = [math.comb(2 * k, k) / 4**k / (2 * k + 1) / 2**k * math.sqrt(2) for k in range(terms)]
    theta = Polynomial(a)
    integral = Polynomial([a_k / (k + 1.5) for k, a_k in enumerate(a)])
    fits = (
        np.polynomial.Chebyshev.interpolate(f, degree, domain=[0, 1]).convert(kind=Polynomial)
        for f in (theta, integral)
    )
    first, second = (tuple(float(c) for c in fit.coef) for fit in fits)
    return first, second


def polynomial_of_angle(degree: int) -> tuple[float, ...]:
    """Coefficients of P, constant first, with theta = sqrt(v) P(v) for versines v <= 1."""
    return _polynomials(degree)[0]


def _evaluate(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """A polynomial by Estrin's scheme, whose short chains of dependent operations overlap."""
    terms: list[Tensor | float] = list(coefficients)
    power = x
    while len(terms) > 1:
        pairs = [low + high * power for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = [*pairs, *terms[len(pairs) * 2 :]]
        power = power * power
    return torch.as_tensor(terms[0])


def angle_and_integral(versine: Tensor) -> tuple[Tensor, Tensor]:
    """theta in [0, pi] and h = sin(theta) - theta cos(theta) of versines in [0, 2].

    Relative accuracy is a few units of rounding everywhere near v = 0; values that rounding has
    pushed outside [0, 2] are clipped.
    """
    p, q = _polynomials(_DEGREE.get(versine.dtype, 19))
    v = versine.clamp(0.0, 2.0)
    near = torch.minimum(v, 2 - v)
    root = square_root(near)
    theta = root * _evaluate(p, near)
    integral = near * root * _evaluate(q, near)
    far = v > 1
    # theta(v) = pi - theta(2 - v); integrating, h(v) = h(2 - v) + pi (v - 1).
    return (
        torch.where(far, math.pi - theta, theta),
        torch.where(far, integral + math.pi * (v - 1), integral),
    )


def arcsine(sine: Tensor, cosine_squared: Tensor) -> Tensor:
    """asin of `sine`, given also 1 - sine^2, which the caller knows without cancellation."""
    p, _ = _polynomials(_DEGREE.get(sine.dtype, 19))
    versine = cosine_squared / (1 + sine.abs())  # 1 - |sine|
    complement = square_root(versine) * _evaluate(p, versine)
    return torch.copysign(math.pi / 2 - complement, sine)
