"""Power laws with known exponents: exact, noisy, correlated, of matrices; and what is none."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.analysis import PowerLawTail, power_law_tail
from tangency.analysis.spectrum.tail import _fit
from tangency.errors import InvalidInput

RANKS = np.arange(1, 1001.0)


@settings(max_examples=25, deadline=None)
@given(
    exponent=st.floats(-1, 6),
    scale=st.floats(-20, 20),
    start=st.integers(0, 30),
    count=st.integers(60, 900),
)
def test_an_exact_law_is_found_exactly(exponent, scale, start, count):
    values = 10**scale * RANKS**-exponent
    tail = power_law_tail(values, start, start + count)
    assert tail.exponent == pytest.approx(exponent, abs=1e-7)
    assert math.log(tail.amplitude / 10**scale) == pytest.approx(0, abs=1e-6)
    assert tail.standard_error < 1e-6
    assert (tail.start, tail.stop) == (start, start + count)
    if abs(exponent) > 0.01:
        assert tail.r_squared == pytest.approx(1, abs=1e-9)


def test_ranks_count_from_one_and_the_range_is_a_slice():
    # The law holds in the range only; a shift by one rank would show at small ranks.
    values = np.concatenate([[7.0, 7.0], 3.0 * RANKS[2:40] ** -2, np.full(10, 5.0)])
    tail = power_law_tail(values, start=2, stop=40)
    assert tail.exponent == pytest.approx(2, abs=1e-9)
    assert tail.amplitude == pytest.approx(3, rel=1e-9)
    assert np.allclose(tail.law([3.0, 10.0]).numpy(), [3 / 9, 3 / 100])


def test_the_fit_is_the_maximum_of_the_likelihood_of_squared_gaussians():
    rng = np.random.default_rng(0)
    x = np.log(RANKS[:200])
    values = rng.chisquare(1, 200) * np.exp(0.4 - 1.2 * x)

    def negative(beta):
        return -scipy.stats.chi2(1, scale=np.exp(beta[0] + beta[1] * x)).logpdf(values).sum()

    best = scipy.optimize.minimize(
        negative, [0.0, -1.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}
    )
    assert np.allclose(_fit(x, values, np.ones(200)), best.x, atol=1e-5)


def correlated(rng: np.random.Generator, length: float = 0.3) -> np.ndarray:
    """Multiplicative deviations that persist over a factor exp(length) in rank."""
    keep = np.exp(-np.diff(np.log(RANKS)) / length)
    deviation = np.empty(len(RANKS))
    deviation[0] = rng.normal()
    for i, r in enumerate(keep):
        deviation[i + 1] = r * deviation[i] + math.sqrt(1 - r**2) * rng.normal()
    return np.exp(0.1 * deviation)


NOISE = {
    "squared Gaussians": lambda rng: rng.chisquare(1, len(RANKS)),
    "independent": lambda rng: np.exp(0.3 * rng.normal(size=len(RANKS))),
    "correlated": correlated,
}


def coverage(noise: str, repeats: int) -> tuple[list[float], float, float]:
    """Exponents, and how often the interval, and that of a plain regression, hold the truth."""
    rng = np.random.default_rng(1)
    exponents, hits, naive = [], 0, 0
    for _ in range(repeats):
        values = RANKS**-1.5 * NOISE[noise](rng)
        tail = power_law_tail(values)
        exponents.append(tail.exponent)
        hits += tail.interval[0] <= 1.5 <= tail.interval[1]
        part = slice(tail.start, tail.stop)
        plain = scipy.stats.linregress(np.log(RANKS[part]), np.log(values[part]))
        naive += abs(plain.slope + 1.5) < 1.96 * plain.stderr
    return exponents, hits / repeats, naive / repeats


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISE)
def test_intervals_hold_the_truth_as_often_as_they_say(noise):
    exponents, hits, naive = coverage(noise, 200)
    # Three standard errors of a mean of 200, and of a fraction of 0.95: 0.046.
    assert abs(np.mean(exponents) - 1.5) < 3 * np.std(exponents) / math.sqrt(200)
    assert hits >= 0.90
    if noise == "correlated":
        assert naive < 0.3  # what a plain regression would claim


def test_the_standard_error_is_about_the_scatter():
    rng = np.random.default_rng(2)
    tails = [power_law_tail(RANKS**-1.5 * rng.chisquare(1, 1000)) for _ in range(60)]
    scatter = np.std([tail.exponent for tail in tails])
    assert 0.7 < np.median([tail.standard_error for tail in tails]) / scatter < 1.6


def test_zeros_among_squares_do_no_harm():
    """Every second power is zero, as for an even target: the mean falls all the same."""
    values = RANKS**-1.3 * (np.arange(1000) % 2)
    assert power_law_tail(values).exponent == pytest.approx(1.3, abs=0.05)


def test_an_exponential_is_not_taken_for_a_power_law():
    tail = power_law_tail(np.exp(-RANKS / 40), 5, 300)
    assert tail.exponential_r_squared == pytest.approx(1, abs=1e-9)
    assert tail.r_squared < 0.9
    assert tail.half_exponents[1] > 3 * tail.half_exponents[0]
    low, high = tail.interval
    assert high - low > 1  # bent: no one exponent
    law = power_law_tail(RANKS**-1.5, 5, 300)
    assert law.r_squared - law.exponential_r_squared > 0.1
    assert law.half_exponents == pytest.approx((1.5, 1.5), abs=1e-9)


def test_the_eigenvalues_of_brownian_motion_fall_like_the_square():
    """min(i, j) has eigenvalues 1 / (4 sin^2((2k - 1) pi / (4n + 2))): about (k - 1/2)^-2."""
    n = 400
    index = np.arange(1, n + 1)
    values = np.linalg.eigvalsh(np.minimum(index[:, None], index))[::-1]
    exact = 1 / (4 * np.sin((2 * index - 1) * math.pi / (4 * n + 2)) ** 2)
    assert np.allclose(values, exact, rtol=1e-9)
    tail = power_law_tail(values)
    assert tail.exponent == pytest.approx(2, abs=0.05)
    assert tail.r_squared > 0.999


@pytest.mark.parametrize("exponent", [1.3, 2.0])
def test_sampled_kernel_matrices_show_the_exponent_of_the_population(exponent):
    rng = np.random.default_rng(3)
    n, features = 500, 4000
    population = np.arange(1, features + 1.0) ** -exponent
    X = rng.normal(size=(n, features)) * np.sqrt(population)
    tail = power_law_tail(np.linalg.eigvalsh(X @ X.T)[::-1])
    # Finite samples bend the curve: the default range keeps the error to some percent.
    assert tail.exponent == pytest.approx(exponent, rel=0.1)


def test_the_default_range_leaves_out_the_ends_and_what_is_rounding():
    tail = power_law_tail(np.concatenate([RANKS**-1.0, np.zeros(500)]))
    assert (tail.start, tail.stop) == (9, 333)  # of 1000 that count: ranks 10 to 333
    noise = 1e-17 * np.random.default_rng(0).normal(size=500)
    assert power_law_tail(np.concatenate([RANKS**-1.0, noise])).stop == 333
    single = np.concatenate([RANKS**-1.0, 1e7 * noise]).astype(np.float32)
    for values in (single, torch.from_numpy(single)):
        assert power_law_tail(values).stop == 333


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        (np.ones((3, 3)), {}, r"shape \(3, 3\)"),
        (["a"], {}, "real numbers"),
        ([1.0, math.nan, 2.0], {}, "1 NaN.*index 1"),
        (RANKS**-1, {"start": 5, "stop": 5}, r"range \[5:5\]"),
        (RANKS**-1, {"start": -1}, r"range \[-1:333\]"),
        (RANKS**-1, {"stop": 1001}, "within the 1000 values"),
        (RANKS**-1, {"start": 900, "stop": 905}, "too few or too close"),
        (RANKS**-1, {"start": 0, "stop": 6}, "longer range"),
        (np.zeros(100), {}, "0 are above rounding"),
        (np.zeros(100), {"start": 0, "stop": 90}, "hold 0 positive"),
        (np.where(RANKS == 50, -1e-9, RANKS**-1), {}, r"values\[49\] is -1e-09.*stop=49"),
    ],
)
def test_bad_input_is_refused(values, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        power_law_tail(values, **arguments)


def test_tensors_arrays_lists_dictionary_text_and_figure():
    values = 2 * RANKS[:300] ** -1.5
    tail = power_law_tail(torch.from_numpy(values).float())
    assert isinstance(tail, PowerLawTail)
    assert tail.exponent == pytest.approx(1.5, abs=1e-5)
    assert power_law_tail(list(values)).exponent == pytest.approx(1.5)
    entries = tail.to_dict()
    assert entries["half_exponents"] == tail.half_exponents
    assert "ranks 7 to 100" in repr(tail)
    pytest.importorskip("plotly")
    figure = tail.figure()
    drawn = next(trace for trace in figure.data if trace.name == "power law")
    assert drawn.y[0] == pytest.approx(values[6], rel=1e-3)
    assert drawn.x == (7, 100)
