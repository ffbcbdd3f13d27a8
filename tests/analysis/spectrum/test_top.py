"""The largest eigenvalues against dense factorisations, from matrices and operators."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from tests.random_state import numpy_state

import tangency as tg
from tangency.analysis import TopSpectrum, kernel_matrix, spectrum, top_spectrum
from tangency.errors import InvalidInput


def gram(n: int, rank: int | None = None, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, rank or n + 3))
    return features @ features.T


def network(out: int = 1, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = torch.nn.Linear(3, 20), torch.nn.Tanh(), torch.nn.Linear(20, out)
    return torch.nn.Sequential(*layers).double()


def points(n: int = 30) -> torch.Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["array", "tensor", "checked", "scipy", "linear_operator"])
def test_every_form_gives_the_dense_eigenvalues(form):
    K = gram(40)
    given = {
        "array": lambda: K,
        "tensor": lambda: torch.from_numpy(K),
        "checked": lambda: kernel_matrix(K),
        "scipy": lambda: aslinearoperator(K),
        "linear_operator": lambda: pytest.importorskip("linear_operator").to_linear_operator(
            torch.from_numpy(K)
        ),
    }[form]()
    y = np.random.default_rng(1).normal(size=(40, 2))
    top, full = top_spectrum(given, 6, y), spectrum(K, y)
    assert np.allclose(top.eigenvalues.numpy(), np.linalg.eigvalsh(K)[::-1][:6], rtol=1e-12)
    assert torch.allclose(top.power, full.power[:6], rtol=1e-8)
    assert top.rest == pytest.approx(float(full.power[6:].sum()), rel=1e-10)
    assert torch.allclose(top.cumulative_power, full.cumulative_power[:6])
    assert torch.allclose(top.learning_times(0.1, 0.5), full.learning_times(0.1, 0.5)[:6])
    assert top.converged
    assert float(top.residuals.max()) < 1e-10 * float(top.eigenvalues[0])
    gaps = torch.from_numpy(K) @ top.modes - top.modes * top.eigenvalues
    assert torch.allclose(top.residuals, gaps.norm(dim=0), atol=1e-13 * float(top.eigenvalues[0]))
    assert torch.allclose(top.modes.T @ top.modes, torch.eye(6).double(), atol=1e-12)
    assert (top.size, top.examples) == (40, 40)


@pytest.mark.parametrize("out", [1, 2])
def test_the_operator_of_a_network(out):
    model, x = network(out), points()
    kernel = tg.EmpiricalKernel(model, output="full")
    y = torch.sin(x[:, :out])
    dense = kernel.ntk(x)
    top, full = top_spectrum(kernel.operator(x), 5, y), spectrum(dense, y)
    assert torch.allclose(top.eigenvalues, full.eigenvalues[:5], rtol=1e-10)
    assert torch.allclose(top.power, full.power[:5], rtol=1e-7)
    assert (top.size, top.examples) == (30 * out, 30)
    assert torch.allclose(top.learning_times(), full.learning_time[:5])
    assert torch.allclose(top_spectrum(dense, 5, y).power, full.power[:5], rtol=1e-7)
    assert top_spectrum(kernel.operator(x), 2, examples=30).examples == 30


def test_single_precision():
    K = gram(40).astype(np.float32)
    for given in (K, aslinearoperator(K)):
        top = top_spectrum(given, 4)
        assert top.eigenvalues.dtype == torch.float32
        assert top.converged
        exact = np.linalg.eigvalsh(K.astype(float))[::-1][:4]
        assert np.allclose(top.eigenvalues.numpy(), exact, rtol=1e-5)


def test_a_hundred_thousand_rows_are_never_written_down():
    n = 100_000  # 75 GiB
    values = np.arange(1, n + 1.0) ** -2
    operator = LinearOperator(
        (n, n), matvec=lambda v: values * v.ravel(), matmat=lambda v: values[:, None] * v
    )
    y = np.zeros(n)
    y[[1, 7]] = 3.0, 4.0
    top = top_spectrum(operator, 3, y)
    assert np.allclose(top.eigenvalues.numpy(), [1, 1 / 4, 1 / 9], rtol=1e-10)
    assert np.allclose(top.power.numpy(), [0, 9, 0], atol=1e-10)
    assert top.rest == pytest.approx(16)


class Stored:
    """A matrix on disk that says how much of it is read at a time."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.largest = array, array.shape, 0

    def __array__(self, dtype=None):
        raise AssertionError("read whole")

    def __getitem__(self, rows):
        self.largest = max(self.largest, len(self.array[rows]))
        return self.array[rows]


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr("tangency.analysis.matrix._physical_memory", lambda: 10_000)
    # The package shares its name with the function that it exports.
    operators = importlib.import_module("tangency.analysis.spectrum.operators")
    monkeypatch.setattr(operators, "BLOCK", 8 * 40 * 7)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_stored_matrix_larger_than_memory_is_read_in_rows(dtype):
    K, y = gram(40).astype(dtype), np.ones(40)
    stored = Stored(K)
    full = np.linalg.eigvalsh(K.astype(float))[::-1]
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    for given in (stored, K, torch.from_numpy(K)):
        top = top_spectrum(given, 4, y)
        assert np.allclose(top.eigenvalues.numpy(), full[:4], rtol=tolerance)
        assert top.eigenvalues.numpy().dtype == dtype
        assert float(top.power.sum()) + top.rest == pytest.approx(40, rel=1e-5)
    assert stored.largest == 7
    with pytest.raises(InvalidInput, match="needs about"):
        kernel_matrix(stored)
    with pytest.raises(InvalidInput, match="not symmetric"):
        top_spectrum(Stored(np.triu(K)), 1)
    with pytest.raises(InvalidInput, match="dtype int64"):
        top_spectrum(Stored(np.eye(40, dtype=int)), 1)
    with pytest.raises(InvalidInput, match="must be square"):
        top_spectrum(Stored(K[:, :30]), 1)


def test_repeated_eigenvalues_are_all_found():
    n = 24
    angles = 2 * math.pi * np.arange(n) / n
    K = np.exp(np.cos(angles[:, None] - angles))  # cosine and sine share an eigenvalue
    exact = np.linalg.eigvalsh(K)[::-1]
    assert exact[1] == pytest.approx(exact[2])
    assert np.allclose(top_spectrum(K, 7).eigenvalues.numpy(), exact[:7], rtol=1e-10)
    assert np.allclose(top_spectrum(np.eye(20), 4).eigenvalues.numpy(), 1)


def test_singular_kernels():
    low = top_spectrum(gram(30, rank=3), 6, np.ones(30))
    assert bool((low.eigenvalues[3:].abs() < 1e-12 * low.eigenvalues[0]).all())
    assert low.learning_times()[3:].tolist() == [math.inf] * 3
    zero = top_spectrum(np.zeros((9, 9)), 2, np.ones(9))
    assert zero.eigenvalues.tolist() == [0, 0]
    assert zero.converged
    assert zero.rest == pytest.approx(7)
    assert top_spectrum(np.zeros((9, 9)), 2, np.zeros(9)).cumulative_power.tolist() == [1, 1]


@pytest.mark.parametrize("k", [1, 4, 5, 9])
def test_any_number_of_eigenvalues(k):
    K = gram(9)
    assert np.allclose(top_spectrum(K, k).eigenvalues, np.linalg.eigvalsh(K)[::-1][:k])


def test_too_few_iterations_are_reported():
    n = 3000
    values = 1 - 1e-7 * np.arange(n)
    operator = LinearOperator((n, n), matvec=lambda v: values * v.ravel())
    with pytest.raises(InvalidInput, match="no eigenvalue converged in 1 iterations"):
        top_spectrum(operator, 3, iterations=1)
    gap = np.concatenate([[5.0], values[1:]])
    operator = LinearOperator((n, n), matvec=lambda v: gap * v.ravel())
    part = top_spectrum(operator, 4, iterations=2)
    assert not part.converged
    assert "NOT converged" in repr(part)
    assert float(part.eigenvalues[0]) == pytest.approx(5)


def test_a_loose_tolerance_is_honest():
    K = gram(300, seed=4)
    loose = top_spectrum(K, 5, tolerance=1e-2)
    assert loose.converged
    exact = np.linalg.eigvalsh(K)[::-1][:5]
    gaps = np.abs(loose.eigenvalues.numpy() - exact)
    assert (gaps <= loose.residuals.numpy() + 1e-9).all()


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        (np.eye(4), {"k": 0}, "k is 0"),
        (np.eye(4), {"k": 5}, "has 4 eigenvalues"),
        (np.eye(4), {"k": 1, "tolerance": -1.0}, "tolerance is -1"),
        (np.triu(np.ones((4, 4))), {"k": 1}, "not symmetric"),
        (aslinearoperator(np.triu(np.ones((4, 4)))), {"k": 1}, "not symmetric: u"),
        (aslinearoperator(np.ones((4, 3))), {"k": 1}, r"shape \(4, 3\)"),
        (aslinearoperator(np.eye(4) * math.nan), {"k": 1}, "NaN or infinity"),
        (aslinearoperator(np.eye(4, dtype=complex)), {"k": 1}, "complex128"),
        (aslinearoperator(np.eye(4)), {"k": 1, "targets": np.ones(3)}, "4 rows"),
        (aslinearoperator(np.eye(4)), {"k": 1, "targets": np.arange(4)}, "one-hot"),
        (aslinearoperator(np.eye(4)), {"k": 1, "targets": np.full(4, math.nan)}, "NaN"),
        (aslinearoperator(np.eye(4)), {"k": 1, "examples": 3}, "examples is 3"),
        (np.eye(4), {"k": 1, "targets": np.ones(3)}, "4 examples"),
        ("K", {"k": 1}, "is a str"),
    ],
)
def test_bad_input_is_refused(kernel, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        top_spectrum(kernel, **arguments)


def test_nothing_global_is_touched_and_seeds_repeat():
    K = gram(50)
    before, torch_before = numpy_state(), torch.get_rng_state()
    first, again = top_spectrum(K, 3, seed=5), top_spectrum(K, 3, seed=5)
    assert torch.equal(first.modes, again.modes)
    assert numpy_state() == before
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_dictionary_text_and_figure():
    top = top_spectrum(gram(12), 3, np.ones(12))
    assert isinstance(top, TopSpectrum)
    assert top.to_dict()["rest"] == top.rest
    assert "3 of 12 modes" in repr(top)
    assert top_spectrum(gram(12), 3).cumulative_power is None
    with pytest.raises(InvalidInput, match="fraction"):
        top.learning_times(fraction=2.0)
    with pytest.raises(InvalidInput, match="learning_rate"):
        top.learning_times(0.0)
    pytest.importorskip("plotly")
    assert np.allclose(top.figure().data[0].y, top.eigenvalues.numpy(), rtol=1e-4)
