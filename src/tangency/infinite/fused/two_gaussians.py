"""C text of the dual of a piecewise linear function of two Gaussians.

It is what `tangency.infinite.duals.two_gaussians_piecewise` computes, in float64 and at the same
nodes; that module has the formulas. Pairs go through in blocks, node by node, so that all loops
are over neighbouring pairs. Two things differ in form:

- What concerns one side alone (angles of the rays, mean slopes) is an array of that side.
- The correlation at t = 0 is a sum over pairs of rays, not over sectors, and needs no sorting.
  Over the angle, psi = r f with f'' + f = sum_k w_k delta(. - a_k), so that f is a sinusoid,
  whose coefficients are the mean slopes, and sum_k w_k G(. - a_k). The convolution of G with
  itself gives, for the angle 0 <= d <= pi between two rays,
  E[psi psi'] = sum_i s_i s_i' E d_i psi E d_i psi'
                + sum_kl w_k w_l' (sin(d) (pi - d) / 2 - cos(d) d (2 pi - d) / 4) / (2 pi^2).

  One minus that is right to 1e-15, as versines are that come from float64 moments of convolutions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from tangency.infinite.angles import polynomial_of_angle
from tangency.infinite.duals.two_gaussians_cones import Cones
from tangency.infinite.duals.two_gaussians_piecewise import RAY_NUMBERS, SIDE_NUMBERS

__all__ = ["INPUTS", "OfTwo", "text_of_two"]

BLOCK = 64
"""Pairs that are computed at a time, in arrays that stay in cache."""

INPUTS = 2
"""The first arguments are the versines of the two Gaussians; those of the sides follow."""

_ATAN, _SINE, _COSINE, _EXPONENTIAL = 20, 7, 8, 12
"""Degrees of polynomials, whose errors are below 1e-15."""

_LONGEST = 22.0
"""The stretched path is shorter: the least scale is 1e-9."""


@dataclass(frozen=True)
class OfTwo:
    """A function of two Gaussians in a graph.

    Attributes:
        cones: the function.
        nodes: of the integral along the path.
        output: 0 for the versine, 1 and 2 for the second moments of the derivatives.
    """

    cones: Cones
    nodes: int
    output: int


def text_of_two(of_two: OfTwo, outputs: list[int]) -> list[str]:
    """Statements that compute `outputs` of the pairs p0 to p1.

    p2 and p3 are the versines; then the arrays of the left and of the right side and the results
    follow.
    """
    return _Text(of_two, outputs).lines()


class _Text:
    def __init__(self, of_two: OfTwo, outputs: list[int]) -> None:
        self.cones, self.nodes = of_two.cones, of_two.nodes
        self.outputs = outputs
        self.count = len(self.cones.rays)
        numbers = self.count * RAY_NUMBERS + SIDE_NUMBERS
        self.left, self.right = 2 + INPUTS, 2 + INPUTS + numbers
        self.results = self.right + numbers
        self.flat: list[tuple[int, int]] = []
        self.slanted: list[tuple[int, int]] = []
        for k, j in itertools.product(range(self.count), repeat=2):
            if self._products(k, j) != (0.0, 0.0):
                both = self._axis(k), self._axis(j)
                along = both[0] is not None and both[0] == both[1]
                (self.flat if along else self.slanted).append((k, j))

    def _axis(self, k: int) -> int | None:
        """The axis along which a ray lies, whatever the standard deviations."""
        x, y = self.cones.rays[k]
        return 0 if y == 0 else 1 if x == 0 else None

    def _products(self, k: int, j: int) -> tuple[float, float]:
        (a, b), (c, d) = self.cones.jumps[k], self.cones.jumps[j]
        return a * c, b * d

    def _ray(self, side: int, k: int, number: int) -> str:
        """Coordinate 0 or 1, angle or weight of a ray of a side."""
        return f"p{side + k * RAY_NUMBERS + number}[b + e]"

    def _number(self, side: int, number: int) -> str:
        """Gains (0, 1), mean slopes (2, 3), and their products (4, 5)."""
        return f"p{side + self.count * RAY_NUMBERS + number}[b + e]"

    def lines(self) -> list[str]:
        unit, weights = np.polynomial.legendre.leggauss(self.nodes)
        names = ["turn1", "turn2", "acute1", "acute2", "theta1", "theta2", "scale", "reach"]
        names += ["lost0", "lost1", "later0", "later1"]
        names += [f"{n}{k}{j}" for k, j in self.slanted for n in ("b", "c", "apart")]
        return [
            f"static const double nodes[] = {{{_listed((unit + 1) / 2)}}};",
            f"static const double weights[] = {{{_listed(weights / 2)}}};",
            f"double {', '.join(f'{name}[{BLOCK}]' for name in names)};",
            f"for (long b = p0; b < p1; b += {BLOCK}) {{",
            f"const long count = p1 - b < {BLOCK} ? p1 - b : {BLOCK};",
            "#pragma GCC ivdep",
            "for (long e = 0; e < count; e++) {",
            *self._setup(),
            "}",
            "for (long e = 0; e < count; e++) reach[e] = log((1 + sqrt(1 + scale[e] * scale[e]))"
            " / scale[e]);",
            f"for (int n = 0; n < {self.nodes}; n++) {{",
            "#pragma GCC ivdep",
            "for (long e = 0; e < count; e++) {",
            *self._node(),
            "}",
            "}",
            "#pragma GCC ivdep",
            "for (long e = 0; e < count; e++) {",
            *self._finish(),
            "}",
            "}",
        ]

    def _setup(self) -> list[str]:
        lines, angle = [], polynomial_of_angle(19)
        for m in (1, 2):
            lines += [
                f"double v{m} = p{1 + m}[b + e];",
                f"v{m} = v{m} < 0 ? 0 : v{m} > 2 ? 2 : v{m};",
                f"turn{m}[e] = v{m} > 1 ? -1.0 : 1.0;",
                f"const double a{m} = v{m} > 1 ? 2 - v{m} : v{m};",
                f"acute{m}[e] = a{m};",
                f"const double x{m} = a{m} < 1e-40 ? 1e-40 : a{m};",
                f"const double t{m} = sqrt(x{m}) * ({_polynomial(angle, f'x{m}')});",
                f"theta{m}[e] = t{m};",
            ]
        lines.append("double least = 10;")
        for k, j in self.slanted:
            e1, e2 = self._ray(self.left, k, 0), self._ray(self.left, k, 1)
            f1, f2 = self._ray(self.right, j, 0), self._ray(self.right, j, 1)
            lines += [
                "{",
                f"const double e1 = {e1}, e2 = {e2}, f1 = turn1[e] * {f1}, f2 = turn2[e] * {f2};",
                "const double b1 = e1 * f1, b2 = e2 * f2, cross = e1 * f2 - e2 * f1;",
                "const double apart = cross * cross;",
                f"b{k}{j}[e] = b1; c{k}{j}[e] = b2; apart{k}{j}[e] = apart;",
                "double speed = b1 * t2 * (b1 * t2) + b2 * t1 * (b2 * t1)"
                " + fabs(b1 * b2) * (t1 * t1 + t2 * t2);",
                "speed = speed < 1e-60 ? 1e-60 : speed;",
                "const double near = sqrt(apart / speed);",
                "least = apart > 1e-24 && near < least ? near : least;",
                "}",
            ]
        zeros = " = ".join(f"{name}{i}[e]" for name in ("lost", "later") for i in (0, 1))
        return [*lines, "scale[e] = least < 1e-9 ? 1e-9 : least;", f"{zeros} = 0;"]

    def _node(self) -> list[str]:
        """What one node adds to the integrals."""
        lines = [
            f"const double x = reach[e] * nodes[n] * {1 / 32!r};",
            f"double grown = {_polynomial(_exponential(), 'x')};",
            *["grown *= grown;"] * 5,
            "const double shrunk = 1 / grown;",
            "const double t = scale[e] * 0.5 * (grown - shrunk);",
            "const double dt = weights[n] * reach[e] * scale[e] * 0.5 * (grown + shrunk);",
        ]
        for m in (1, 2):
            lines += [
                f"const double h{m} = 0.5 * t * theta{m}[e], q{m} = h{m} * h{m};",
                f"const double s{m} = h{m} * ({_polynomial(_sine(), f'q{m}')});",
                f"const double g{m} = {_polynomial(_cosine(), f'q{m}')};",
                f"const double sin{m} = 2 * s{m} * g{m}, half{m} = 2 * s{m} * s{m};",
                f"const double cos{m} = 1 - half{m}, square{m} = sin{m} * sin{m};",
                f"const double push{m} = theta{m}[e] * sin{m};",
            ]
        lines += [
            "const double gone = half1 + half2 - half1 * half2, sines = sin1 * sin2;",
            "double total0 = 0, total1 = 0;",
        ]
        for k, j in self.slanted:
            lines += ["{", *self._slanted(k, j), *self._added(k, j), "}"]
        for k, j in self.flat:
            lines += ["{", *self._flat(k, j), *self._added(k, j), "}"]
        return [
            *lines,
            "total0 *= dt; total1 *= dt;",
            "lost0[e] += total0; later0[e] += total0 * (acute1[e] - half1);",
            "lost1[e] += total1; later1[e] += total1 * (acute2[e] - half2);",
        ]

    def _added(self, k: int, j: int) -> list[str]:
        return [
            f"total{i} += {product!r} * rate;"
            for i, product in enumerate(self._products(k, j))
            if product != 0
        ]

    def _slanted(self, k: int, j: int) -> list[str]:
        """The rate of a pair of rays; one division serves the arctangent and the root."""
        return [
            f"const double b1 = b{k}{j}[e], b2 = c{k}{j}[e];",
            f"const double inner = apart{k}{j}[e] + 2 * b1 * b2 * gone + b1 * b1 * square2"
            " + b2 * b2 * square1;",
            "const double root = sqrt(inner);",
            "const double y = sines * root, z = -(b1 * cos1 * square2 + b2 * cos2 * square1);",
            "const double wide = fabs(z), most = y > wide ? y : wide, few = y > wide ? wide : y;",
            "const double both = 1 / (most * root), q = few * both * root, w = q * q;",
            f"double angle = q * ({_polynomial(_arctangent(), 'w')});",
            f"angle = y > wide ? {math.pi / 2!r} - angle : angle;",
            f"angle = z < 0 ? {math.pi!r} - angle : angle;",
            "const double rate = (push1 * b2 + push2 * b1) * angle * (both * most);",
        ]

    def _flat(self, k: int, j: int) -> list[str]:
        """The same for two rays along one axis, whose root cancels."""
        axis = self._axis(k)
        assert axis is not None
        m, other = 1 + axis, 2 - axis
        sign = self.cones.rays[k][axis] * self.cones.rays[j][axis]
        return [
            f"const double along = {sign!r} * turn{m}[e];",
            f"const double angle = along > 0 ? {math.pi!r} - t * theta{m}[e] : t * theta{m}[e];",
            f"const double rate = theta{other}[e] * along * angle;",
        ]

    def _finish(self) -> list[str]:
        lines = ["const double sign = turn1[e] * turn2[e];", "double match = 0;"]
        for i in (0, 1):
            means = (self._number(side, 2 + i) for side in (self.left, self.right))
            products = (self._number(side, 4 + i) for side in (self.left, self.right))
            lines.append(f"double start{i} = {' * '.join(means)};")
            lines.append(f"match += turn{i + 1}[e] * {' * '.join(products)};")
        for k, j in itertools.product(range(self.count), repeat=2):
            lines += ["{", *self._meeting(k, j), "}"]
        scale = 1 / (4 * math.pi**2)
        lines.append("double versine = 1 - match;")
        for i in (0, 1):
            gains = " * ".join(self._number(side, i) for side in (self.left, self.right))
            lines += [
                f"const double moment{i} = start{i} - sign * {scale!r} * lost{i}[e];",
                f"versine += {gains} * turn{i + 1}[e] * (acute{i + 1}[e] * start{i}"
                f" - sign * {scale!r} * later{i}[e]);",
            ]
        names = ("versine", "moment0", "moment1")
        return lines + [
            f"p{self.results + at}[b + e] = {names[output]};"
            for at, output in enumerate(self.outputs)
        ]

    def _meeting(self, k: int, j: int) -> list[str]:
        """What two rays add where z' is z, reflected: at an angle of `part` full turns."""
        e1, e2 = self._ray(self.left, k, 0), self._ray(self.left, k, 1)
        f1, f2 = self._ray(self.right, j, 0), self._ray(self.right, j, 1)
        a, b = self._ray(self.left, k, 2), self._ray(self.right, j, 2)
        w = f"{self._ray(self.left, k, 3)} * {self._ray(self.right, j, 3)}"
        pi = repr(math.pi)
        lines = [
            f"double part = fabs({a} - (sign * {b} + (turn1[e] < 0 ? {pi} : 0)))"
            f" * {1 / (2 * math.pi)!r};",
            "part = part - floor(part);",
            "part = part > 0.5 ? 1 - part : part;",
            f"const double f1 = turn1[e] * {f1}, f2 = turn2[e] * {f2};",
            f"const double cosine = {e1} * f1 + {e2} * f2, sine = fabs({e1} * f2 - {e2} * f1);",
            "const double saw = sign * (part * (part - 1) + 1.0 / 6) / 2;",
            f"match += {w} * ({pi} * sine * (0.5 - part) - {math.pi**2!r} * cosine * part"
            f" * (1 - part)) * {1 / (2 * math.pi**2)!r};",
        ]
        return lines + [
            f"start{i} += {product!r} * saw;"
            for i, product in enumerate(self._products(k, j))
            if product != 0
        ]


# -- polynomials -------------------------------------------------------------------------------


def _listed(numbers: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    return ", ".join(repr(float(number)) for number in numbers)


def _polynomial(coefficients: tuple[float, ...], x: str) -> str:
    """By Horner's scheme."""
    text = repr(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        text = f"({text} * {x} + {coefficient!r})"
    return text


_Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]


def _economised(
    function: Callable[[_Numbers], _Numbers], degree: int, end: float
) -> tuple[float, ...]:
    fit = Chebyshev.interpolate(function, degree, domain=[0, end]).convert(kind=Polynomial)
    return tuple(float(c) for c in fit.coef)


@cache
def _arctangent() -> tuple[float, ...]:
    return _economised(lambda z: np.arctan(np.sqrt(z)) / np.sqrt(z), _ATAN, 1.0)


@cache
def _sine() -> tuple[float, ...]:
    return _economised(lambda q: np.sin(np.sqrt(q)) / np.sqrt(q), _SINE, (math.pi / 4) ** 2)


@cache
def _cosine() -> tuple[float, ...]:
    return _economised(lambda q: np.cos(np.sqrt(q)), _COSINE, (math.pi / 4) ** 2)


@cache
def _exponential() -> tuple[float, ...]:
    return _economised(np.exp, _EXPONENTIAL, _LONGEST / 32)
