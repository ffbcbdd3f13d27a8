"""Tiles: every entry once, none too large, no slivers, and exact symmetry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangency.tiles import Tile, fill, plan, progress

sizes = st.integers(1, 40)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n1=sizes, n2=sizes, size=sizes)
def test_a_plan_covers_every_entry_once(n1: int, n2: int, size: int) -> None:
    covered = torch.zeros(n1, n2)
    for tile in plan(n1, n2, size):
        assert min(tile.shape) > 0
        assert max(tile.shape) <= size
        covered[tile.rows, tile.columns] += 1
    assert (covered == 1).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n=sizes, size=sizes)
def test_a_symmetric_plan(n: int, size: int) -> None:
    """Every entry on and above the diagonal once; below it only within the diagonal tiles."""
    covered = torch.zeros(n, n)
    for tile in plan(n, n, size, symmetric=True):
        assert max(tile.shape) <= size
        assert tile.columns.start >= tile.rows.start
        covered[tile.rows, tile.columns] += 1
    assert (covered.triu() == torch.ones(n, n).triu()).all()
    assert covered.max() == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(n=st.integers(1, 300), size=st.integers(1, 60))
def test_no_slivers(n: int, size: int) -> None:
    """Tiles differ by at most one row, and there are no more than needed."""
    lengths = [tile.shape[0] for tile in plan(n, 1, size)]
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == -(-n // size)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 9),
    size=st.integers(1, 6),
    trailing=st.sampled_from([(), (3,), (2, 2), (3, 3)]),
)
def test_symmetric_fill(n: int, size: int, trailing: tuple[int, ...]) -> None:
    """A kernel with noise of rounding comes out as its mean with its mirror image, or as itself."""
    generator = torch.Generator().manual_seed(n)
    random = torch.randn(n, n, *trailing, generator=generator, dtype=torch.float64)
    kernel = random + mirrored(random)
    noise = 1e-9 * torch.randn(n, n, *trailing, generator=generator, dtype=torch.float64)
    out = torch.full_like(kernel, torch.nan)
    for tile in plan(n, n, size, symmetric=True):
        values = (kernel + noise)[tile.rows, tile.columns]
        fill(out, tile, values, symmetric=True)
    assert torch.equal(out, mirrored(out))
    assert float((out - kernel).abs().max()) < 1e-8


def mirrored(kernel: torch.Tensor) -> torch.Tensor:
    """K_ab(x', x) = K_ba(x, x') of a full kernel; K(x', x) = K(x, x') of any other."""
    if kernel.dim() == 4:
        return torch.einsum("ijab->jiba", kernel)
    return torch.einsum("ij...->ji...", kernel)


def test_a_plain_fill_writes_only_its_tile() -> None:
    out = torch.zeros(4, 4)
    fill(out, Tile(slice(0, 2), slice(2, 4)), torch.ones(2, 2))
    assert out.sum() == 4
    assert (out[:2, 2:] == 1).all()


def test_a_fill_off_the_diagonal_is_mirrored_without_change() -> None:
    out = torch.zeros(5, 5, dtype=torch.float64)
    values = torch.rand(2, 3, dtype=torch.float64)
    fill(out, Tile(slice(0, 2), slice(2, 5)), values, symmetric=True)
    assert torch.equal(out[:2, 2:], values)
    assert torch.equal(out[2:, :2], values.T)
    assert (out[:2, :2] == 0).all()
    assert (out[2:, 2:] == 0).all()


def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("kernel", 5) as advance:
        for _ in range(5):
            advance()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
