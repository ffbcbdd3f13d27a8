"""Whatever is rewritten in a graph computes what the module does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.program.test_recurrent import run
from torch import Tensor, nn

from tangency.program.operations import base_name
from tangency.program.trace import Trace, trace

Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A layer (n, 4, 3, 3) to width 6 with BatchNorm, and a function of its values."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.conv(x)))


def traced(function: Function) -> tuple[Trace, Net, Tensor]:
    model, x = Net(function).eval(), torch.randn(5, 4, 3, 3)
    return trace(model, x[:2]), model, x


def names(recorded: Trace) -> list[str]:
    return [base_name(node) for node in recorded.graph.nodes if node.op == "call_function"]


def viewed(h: Tensor) -> Tensor:
    """Writes into a view of what is read later."""
    h = h.clone()
    h[:, :2].mul_(3)
    return h


def kept(h: Tensor) -> Tensor:
    before = h + 1
    h.relu_()
    return before * h


def read_through_dropout(h: Tensor) -> Tensor:
    """Inactive dropout gives its argument itself."""
    same = F.dropout(h, 0.5, training=False)
    same.relu_()
    return same + h


def from_shape(h: Tensor) -> Tensor:
    ones = torch.ones_like(h) + torch.full_like(h, 2.0)
    return h * ones + h.new_zeros(h.shape) + h.new_ones(3)


PRODUCTS = [
    "nchw,nchw->nhw", "nchw,ncxy->nhwxy", "nchw,wk->nchk", "kw,nchw->nchk", "nchw,hwk->nck",
    "nchw,w->nch", "nchw->nwc", "nchw,nchw->n", "...hw,...hv->...wv", "nchw,nkhw->nckhw",
    "nchw,hv,wx->ncvx", "achw,kw", "nchh->nc", "nchw,kw->nk",
]  # fmt: skip


def product(equation: str) -> Function:
    sizes = {"h": 3, "w": 3, "k": 2, "v": 3, "x": 3, "c": 6}

    def function(h: Tensor) -> Tensor:
        labels = equation.split("->")[0].split(",")
        constants = [
            torch.linspace(-1, 1, 3 ** len(s) * 2)[: 3 ** len(s)].reshape((3,) * len(s))[
                tuple(slice(sizes[c]) for c in s)
            ]
            if not set(s) & set("an.")
            else h
            for s in labels
        ]
        if equation == "nchw,ncxy->nhwxy" or equation == "nchw,nkhw->nckhw":
            constants = [h, h.tanh()]
        return torch.einsum(equation, *constants)

    return function


SAME: dict[str, Function] = {
    "relu_": lambda h: h.relu_(),
    "residual": lambda h: F.hardtanh_(h.mul_(2.0).add_(h.relu()), 0.0, 6.0),
    "kept before": kept,
    "view": viewed,
    "through dropout": read_through_dropout,
    "shapes of values": from_shape,
    "glu": lambda h: F.glu(h, 1),
    "repeat": lambda h: h[0, 0].repeat(1, 1, 2, 1) + h.repeat(1, 2, 2, 1),
    "tile": lambda h: h.tile((2, 3)),
    "repeat_interleave": lambda h: h.repeat_interleave(2, -1),
    "rot90": lambda h: torch.cat([h.rot90(k, (2, 3)) for k in range(-1, 4)], 1),
    "flips": lambda h: h.mT.transpose(1, 3).fliplr(),
    "stacks": lambda h: torch.hstack([h, h]) + torch.dstack([h, h])[:, :1, :3],
    "normalize": lambda h: F.normalize(h, dim=1),
    "norm of all but the batch": lambda h: (
        h * torch.linalg.vector_norm(h, dim=(1, 2, 3))[:, None, None, None]
    ),
    "variance": lambda h: h.var((2, 3)) + h.var((2, 3), correction=0),
    "deviation": lambda h: (h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True),
    "addcmul": lambda h: torch.addcmul(h, h.tanh(), h, value=3).lerp(h.exp(), 0.2),
    "triangles": lambda h: h.tril() + h.triu(1) * 2,
    "expanded": lambda h: h * h.mean((2, 3), keepdim=True).expand_as(h),
    "sum with zeros": lambda h: h + torch.zeros_like(h) * h.exp(),
    "broadcast of zeros": lambda h: h[:, :1, :1] + torch.zeros(3, 1),
    **{f"einsum {equation}": product(equation) for equation in PRODUCTS},
}


@pytest.mark.parametrize("name", SAME)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    recorded, model, x = traced(SAME[name])
    torch.testing.assert_close(run(recorded, model, x), model(x))


def test_in_place_operations_leave_normalisation_whole() -> None:
    """Also where a decomposition takes it apart."""
    for function in (SAME["relu_"], SAME["residual"], SAME["view"], SAME["glu"]):
        found = names(traced(function)[0])
        assert found.count("batch_norm") == 1
        assert not any(name.endswith("_") or "native" in name for name in found)


def test_constants_shaped_like_a_value_do_not_depend_on_it() -> None:
    recorded, _, _ = traced(from_shape)
    for node in recorded.graph.nodes:
        if base_name(node) == "full":
            assert all(base_name(n) == "sym_size" for n in node.all_input_nodes)
    assert "ones_like" not in names(recorded)


def test_a_product_of_two_is_one_matmul() -> None:
    recorded, _, _ = traced(SAME["einsum nchw,wk->nchk"])
    assert names(recorded).count("matmul") == 1
    assert "einsum" not in names(recorded)


class Frozen(nn.Module):
    """Blocks without gradients, one inside the other, before a layer; the inner one given."""

    def __init__(self, inside: Function, outside: Function = torch.cos) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.inside, self.outside = inside, outside

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.outside(x)
            z = self.inside(y) + x.shape[0]
        return self.a(y) + z


def graded(y: Tensor) -> Tensor:
    with torch.enable_grad():
        return y.sin() * 2


def uncast(y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return y.exp()


@pytest.mark.parametrize("inside", [torch.sin, graded, uncast])
def test_blocks_without_gradients_on_data(inside: Function) -> None:
    model, x = Frozen(inside), torch.randn(5, 3)
    recorded = trace(model, x[:2])
    torch.testing.assert_close(run(recorded, model, x), model(x))
    assert not any(node.op == "get_attr" for node in recorded.graph.nodes)
