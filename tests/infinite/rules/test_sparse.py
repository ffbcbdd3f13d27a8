"""Sparse adjacencies, against re-initialised modules and against the same matrix stored densely."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.infinite.sampling.networks import reinitialise
from tests.infinite.test_monte_carlo import ntk_by_autograd
from torch import Tensor, nn

from tangency import EmpiricalKernel
from tangency.errors import UnsupportedOperation
from tangency.infinite import InfiniteKernel, Init
from tangency.program import sparse

NODES, FEATURES = 6, 5
INIT = Init(weight=1.7, bias=0.1)
Product = Callable[[Tensor, Tensor], Tensor]


def adjacency() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(NODES, NODES, generator=generator, dtype=torch.float64)
    return torch.where(weights > 0.5, weights, 0.0) + torch.eye(NODES).double().roll(1, 0)


def inputs(n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, NODES, FEATURES, generator=generator, dtype=torch.float64)


class Graph(nn.Module):
    """Two graph convolutions over an adjacency of the module's own, mean over the nodes."""

    def __init__(self, product: Product, matrix: Tensor, width: int = 16, buffer: bool = True):
        super().__init__()
        if buffer:
            self.register_buffer("adjacency", matrix)
        else:
            self.adjacency = matrix
        self.product = product
        self.first, self.second = nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def aggregate(self, x: Tensor) -> Tensor:
        columns = x.transpose(0, 1).flatten(1)
        summed = self.product(self.adjacency, columns)
        return summed.unflatten(1, (-1, x.shape[-1])).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.aggregate(self.first(x)))
        return self.last(torch.relu(self.second(self.aggregate(h))).mean(1))


def edges() -> tuple[Tensor, Tensor]:
    """Places and weights of a list of edges, one of them in two halves."""
    matrix = adjacency()
    places = matrix.nonzero().T
    weights = matrix[places[0], places[1]]
    weights[0] /= 2
    return torch.cat([places, places[:, :1]], 1), torch.cat([weights, weights[:1]])


PLACES, WEIGHTS = edges()
CLOSED_OVER = adjacency().to_sparse()

PRODUCTS: dict[str, tuple[Product, Callable[[Tensor], Tensor]]] = {
    "mm": (torch.sparse.mm, Tensor.to_sparse),
    "mm of rows": (torch.sparse.mm, Tensor.to_sparse_csr),
    "operator": (lambda a, x: a @ x, Tensor.to_sparse),
    "operator on rows": (lambda a, x: a @ x, Tensor.to_sparse_csr),
    "spmm": (torch.spmm, Tensor.to_sparse),
    "addmm": (lambda a, x: torch.sparse.addmm(x, a, x, beta=2, alpha=0.5) * 2 - 4 * x,
              Tensor.to_sparse),
    "plain addmm": (lambda a, x: torch.addmm(x, a, x) - x, Tensor.to_sparse),
    "transposed": (lambda a, x: (x.T @ a.t().coalesce()).T, Tensor.to_sparse),
    "scaled": (lambda a, x: torch.sparse.mm(3 * a, x) / 3, Tensor.to_sparse),
    "made dense": (lambda a, x: a.to_dense() @ x, Tensor.to_sparse),
    "normalised": (
        lambda a, x: torch.sparse.mm(a, x) / (s := torch.sparse.sum(a, 1).to_dense()[:, None]) * s,
        Tensor.to_sparse,
    ),
    "made sparse": (lambda a, x: torch.sparse.mm(a.to_sparse(), x), lambda a: a),
    "made of edges": (
        lambda a, x: torch.sparse.mm(torch.sparse_coo_tensor(PLACES, WEIGHTS, (NODES, NODES)), x),
        lambda a: a,
    ),
    "closed over": (lambda a, x: torch.sparse.mm(CLOSED_OVER, x), lambda a: a),
}  # fmt: skip


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_sparse_adjacency_is_the_dense_one(name: str, buffer: bool) -> None:
    product, store = PRODUCTS[name]
    matrix = store(adjacency())
    model = Graph(product, matrix, buffer=buffer).double()
    matrix = model.adjacency
    x = inputs()
    found = InfiniteKernel(model, x, init=INIT).pair(x)
    dense = InfiniteKernel(Graph(torch.matmul, adjacency()).double(), x, init=INIT).pair(x)
    # An angle near zero is known to the root of the rounding of its cosine.
    torch.testing.assert_close(found, dense, rtol=1e-8, atol=0)
    assert model.adjacency is matrix  # the module's own is still there
    assert model(x).shape == (3, 1)


def test_the_kernel_is_the_limit_of_the_mean() -> None:
    """Of the modules with their sparse matrix, by plain autograd."""
    x, generator = inputs(), torch.Generator().manual_seed(1)
    model = Graph(torch.sparse.mm, adjacency().to_sparse(), width=192).double()
    draws = []
    for _ in range(40):
        reinitialise(model, 1.7, 0.1, generator)
        draws.append(ntk_by_autograd(model, x))
    drawn = torch.stack(draws)
    exact = InfiniteKernel(model, x, init=INIT).ntk(x)
    norm = torch.linalg.matrix_norm(exact)
    bound = 0.02 + 3 * float((drawn.var(0) / len(drawn)).sum().sqrt() / norm)
    assert float(torch.linalg.matrix_norm(drawn.mean(0) - exact) / norm) < bound < 0.12


class OfExamples(nn.Module):
    """A graph convolution over an adjacency that comes with every example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.last(torch.relu(torch.bmm(adjacency, self.first(x))).mean(1))


@pytest.mark.parametrize("store", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_sparse_data(store: Callable[[Tensor], Tensor]) -> None:
    matrices = adjacency() * torch.tensor([1.0, 0.5, 2.0]).double()[:, None, None]
    model, x = OfExamples().double(), inputs()
    kernel = InfiniteKernel(model, (x, store(matrices)), init=INIT)
    dense = InfiniteKernel(model, (x, matrices), init=INIT).pair((x, matrices))
    torch.testing.assert_close(kernel.pair((x, store(matrices))), dense, rtol=0, atol=0)
    torch.testing.assert_close(kernel.pair((x, matrices)), dense, rtol=0, atol=0)


def test_the_empirical_kernel_uses_the_recorded_graph() -> None:
    x = inputs()
    model = Graph(torch.sparse.mm, adjacency().to_sparse()).double()
    kernel = EmpiricalKernel(model)
    torch.testing.assert_close(kernel.ntk(x), ntk_by_autograd(model, x), rtol=1e-10, atol=0)
    assert kernel._subject.preparations.recording.get(x) is not None


REFUSED: dict[str, tuple[Product, str]] = {
    "largest neighbour": (
        lambda a, x: torch.sparse.mm(a.to_sparse_csr(), x, "amax"),
        'reduce="amax".*only sums along the edges',
    ),
    "softmax of entries": (
        lambda a, x: torch.sparse.mm(torch.sparse.softmax(a, 1), x),
        r"(?s)cannot record Graph.*Sparse matrices are recorded as dense ones",
    ),
    "no size": (
        lambda a, x: torch.sparse.mm(torch.sparse_coo_tensor(PLACES, WEIGHTS), x),
        "pass the size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    product, message = REFUSED[name]
    matrix = adjacency().to_sparse()
    model = Graph(product, matrix).double()
    matrix = model.adjacency
    with pytest.raises(UnsupportedOperation, match=message):
        InfiniteKernel(model, inputs(), init=INIT)
    assert model.adjacency is matrix


def test_a_matrix_that_is_too_large_when_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "MOST", NODES**2 - 1)
    model = Graph(torch.sparse.mm, adjacency().to_sparse()).double()
    with pytest.raises(UnsupportedOperation, match=r"'adjacency' of shape \(6, 6\) .* smaller"):
        InfiniteKernel(model, inputs(), init=INIT)
