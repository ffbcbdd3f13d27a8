"""Kernel matrices and targets at the door: what passes, what is refused, with what message."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import tangency as tg
from tangency.analysis import matrix
from tangency.analysis.matrix import cross_matrix, eigensystem, kernel_matrix, targets
from tangency.errors import InvalidInput, TangencyError


def gram(n: int, rank: int | None = None, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, rank or n + 3))
    return features @ features.T


def test_numpy_and_torch_give_the_same():
    K = gram(5)
    a, b = kernel_matrix(K), kernel_matrix(torch.from_numpy(K))
    assert torch.equal(a.matrix, b.matrix)
    assert a.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_at_least_single_precision(dtype):
    kernel = kernel_matrix(torch.eye(3, dtype=dtype))
    assert kernel.matrix.dtype == torch.float64
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert kernel.result(kernel.matrix).dtype == expected


def test_full_kernel_is_flattened_by_example_then_output():
    n, out = 3, 2
    J = torch.randn(n, out, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    K = torch.einsum("iap,jbp->ijab", J, J)
    kernel = kernel_matrix(K)
    for i in range(n):
        for j in range(n):
            for a in range(out):
                for b in range(out):
                    entry = kernel.matrix[i * out + a, j * out + b]
                    assert entry == pytest.approx(float(K[i, j, a, b]), rel=1e-14)
    values = torch.arange(6.0).reshape(3, 2)
    assert kernel.flatten(values)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(kernel.unflatten(kernel.flatten(values)), values)


def test_gradients_and_the_input_are_left_alone():
    K = torch.eye(3, requires_grad=True)
    assert not kernel_matrix(K).matrix.requires_grad
    array = gram(4)
    array.flags.writeable = False
    kernel_matrix(array)


def test_big_endian_arrays_are_read():
    K = gram(4)
    assert np.allclose(kernel_matrix(K.astype(">f8")).matrix.numpy(), K)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\).*\(n, n\)"),
        (np.ones(4), r"shape \(4,\)"),
        (np.ones((3, 3, 2)), r"pass one output at a time: K\[:, :, a\]"),
        (np.ones((3, 3, 2, 1)), r"shape \(3, 3, 2, 1\)"),
        (np.ones((0, 0)), "empty"),
        (np.array([[1.0, math.nan], [math.nan, 1.0]]), r"2 NaN or infinite.*\(0, 1\)"),
        (np.array([[math.inf, 0.0], [0.0, 1.0]]), r"1 NaN or infinite.*\(0, 0\)"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "not symmetric.*reaches 0.1"),
        (np.eye(3, dtype=int), "dtype torch.int64"),
        (np.eye(3, dtype=complex), "dtype complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (torch.eye(3, dtype=torch.complex64), "dtype torch.complex64"),
        ([[1.0]], "is a list"),
    ],
)
def test_bad_kernels_are_refused(kernel, message):
    with pytest.raises(InvalidInput, match=message):
        kernel_matrix(kernel)


def test_full_kernel_must_swap_outputs_with_examples():
    K = torch.zeros(2, 2, 2, 2)
    K[0, 1, 0, 1] = 1.0
    with pytest.raises(InvalidInput, match="not symmetric"):
        kernel_matrix(K)
    K[1, 0, 1, 0] = 1.0
    kernel_matrix(K)


def test_rounding_asymmetry_passes():
    K = gram(6).astype(np.float32)
    K[0, 1] *= 1 + 3e-7
    matrix = kernel_matrix(K).matrix
    assert torch.equal(matrix, matrix.mT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(4), r"shape \(4,\).*3 examples"),
        (np.zeros((3, 2, 1)), r"shape \(3, 2, 1\)"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        (np.array([0, 1, 2]), "one-hot"),
        (np.array([True, False, True]), "one-hot"),
        (torch.tensor([0, 1, 2]), "one-hot"),
        (np.array([0.0, math.nan, 1.0]), r"first at index \(1,\)"),
        (np.array(1.0), "shape"),
        ([0.0, 1.0, 2.0], "is a list"),
    ],
)
def test_bad_targets_are_refused(values, message):
    with pytest.raises(InvalidInput, match=message):
        targets(values, kernel_matrix(gram(3)))


def test_targets_must_have_the_outputs_of_a_full_kernel():
    kernel = kernel_matrix(np.eye(6).reshape(3, 2, 3, 2).transpose(0, 2, 1, 3))
    assert targets(np.zeros((3, 2)), kernel).values.shape == (3, 2)
    with pytest.raises(InvalidInput, match=r"3 outputs.*kernel has 2"):
        targets(np.zeros((3, 3)), kernel)
    with pytest.raises(InvalidInput, match="1 outputs"):
        targets(np.zeros(3), kernel)


def test_cross_kernel_must_fit():
    train = kernel_matrix(gram(3))
    assert cross_matrix(np.ones((5, 3)), train).shape == (5, 3)
    for bad in (np.ones((3, 5)), np.ones((5, 3, 1, 1)), np.ones(3)):
        with pytest.raises(InvalidInput, match=r"must be \(m, 3\)"):
            cross_matrix(bad, train)
    with pytest.raises(InvalidInput, match="empty"):
        cross_matrix(np.ones((0, 3)), train)
    with pytest.raises(InvalidInput, match="NaN"):
        cross_matrix(np.full((1, 3), math.nan), train)


def test_eigensystem_is_descending_and_reconstructs():
    K = gram(6)
    system = eigensystem(kernel_matrix(K))
    assert bool((system.values.diff() <= 0).all())
    rebuilt = system.vectors @ torch.diag(system.values) @ system.vectors.mT
    assert np.allclose(rebuilt.numpy(), K, atol=1e-12 * np.abs(K).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_null_modes_are_those_that_the_rank_says(dtype, scale):
    K = (gram(12, rank=5) * scale).astype(dtype)
    assert int(eigensystem(kernel_matrix(K)).null.sum()) == 7


def test_huge_entries_do_not_overflow_the_tolerance():
    assert math.isfinite(eigensystem(kernel_matrix(np.eye(3) * 1e300)).tolerance)


def test_zero_kernel_is_all_null():
    assert bool(eigensystem(kernel_matrix(np.zeros((3, 3)))).null.all())


def test_errors_are_tangency_errors_and_value_errors():
    assert issubclass(InvalidInput, TangencyError)
    assert issubclass(InvalidInput, ValueError)


class Stored:
    """A matrix that is read when it is asked for, as a Zarr or Dask array is."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.reads = values, 0
        self.shape = values.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.reads += 1
        return self.values


class TooLarge:
    """A kernel of a million examples, that must not be read."""

    shape = (10**6, 10**6)

    def __array__(self, dtype: Any = None) -> np.ndarray:
        raise AssertionError("read, although it cannot fit")


def test_analyses_share_one_eigendecomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: (made.append(1), eigh(m))[1])
    generator = torch.Generator().manual_seed(0)
    K = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    kernel = kernel_matrix(K @ K.mT)
    y = torch.randn(6, generator=generator, dtype=torch.float64)
    assert kernel_matrix(kernel) is kernel
    tg.spectrum(kernel, y)
    tg.GradientFlow(kernel, y).predict(3.0)
    tg.GradientDescent(kernel, y, 0.1).loss(3)
    assert made == [1]


def test_stored_matrices_are_read_once_and_whole() -> None:
    K = np.array([[2.0, 0.5], [0.5, 1.0]], dtype=np.float32)
    stored = Stored(K)
    kernel = kernel_matrix(stored)
    assert stored.reads == 1
    assert kernel.dtype == torch.float32
    np.testing.assert_array_equal(kernel.matrix.numpy(), K.astype(float))
    train = kernel_matrix(K)
    np.testing.assert_array_equal(cross_matrix(Stored(K[:1]), train).numpy(), K[:1].astype(float))


def test_linear_operators_are_written_down() -> None:
    linear_operator = pytest.importorskip("linear_operator")
    root = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    lazy = linear_operator.operators.RootLinearOperator(root)
    assert torch.equal(kernel_matrix(lazy).matrix, root @ root.mT)


def test_a_matrix_beyond_memory_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidInput, match=r"1000000 rows.*GiB.*top_spectrum"):
        kernel_matrix(TooLarge())


def test_an_eigendecomposition_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_matrix(np.eye(100))
    monkeypatch.setattr(matrix, "_physical_memory", lambda: 100_000)  # five times 80 kB are needed
    with pytest.raises(InvalidInput, match="eigendecomposition"):
        _ = kernel.eigensystem
