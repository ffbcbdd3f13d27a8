"""Which path serves which parameter, and the two paths of a contraction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from empirical.cases import (
    CASES,
    Case,
    Lambda,
    case_of,
    linear,
    parameter,
    real,
    recorded,
    reference,
)
from tangency import EmpiricalKernel
from tangency.empirical import contraction, pairing, passage, preparation
from tangency.empirical.costs import Layout, Term, cheapest, costs
from tangency.empirical.engine import Engine
from tangency.empirical.function import trainable
from tangency.empirical.gradients import Factors
from tangency.empirical.preparation import prepare
from tangency.empirical.recording import Recording

KINDS = ("weight", "bias")
LAYOUTS: tuple[Layout, ...] = ("full", "trace", "diagonal")


def engine_of(name: str) -> Engine:
    model, recording = recorded(name)
    parameters = trainable(dict(model.named_parameters()))
    return prepare(model, parameters, case_of(name).data(4), None, recording)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sites_serve_all_parameters_but(case: Case) -> None:
    rest = {
        "positions scrambled into the batch's place": {"a.weight", "a.bias"},
        "parameter reached by another reference": {"weight"},
        "experts chosen by the data": {f"{layer}.{kind}" for layer in "abc" for kind in KINDS},
        "complex weights": {"weight"},
        "distances to prototypes": {"p"},
        **dict.fromkeys(("branch on data", "no_grad in forward", "custom backward"), None),
    }.get(case.name, set())
    engine = engine_of(case.name)
    everything = set(trainable(dict(engine.model.named_parameters())))
    assert set(engine.rest) == (everything if rest is None else rest)
    assert {group.name for group in engine.groups} == everything - set(engine.rest)


def test_norms_that_compute_in_float32() -> None:
    """Their rounding is the module's own, and refutes no path (T5, Llama and Mamba in float64)."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        h = m.a(x).float()
        return m.b((h * h.square().mean(-1, keepdim=True).rsqrt()).to(x.dtype) * m.scale)

    torch.manual_seed(0)
    model = Lambda(forward, a=linear(4, 64), scale=parameter(64), b=linear(64, 3)).double()
    kernel, x = EmpiricalKernel(model, output="full"), real(4)(20)
    assert not any("Jacobian" in p.path for p in kernel.plan(x).parameters)
    torch.testing.assert_close(kernel.ntk(x), reference(model, x, x)[1], rtol=1e-5, atol=1e-5)


def test_a_wrong_batching_rule_is_found_out() -> None:
    assert not engine_of("distances to prototypes").together
    assert engine_of("mlp").together


@pytest.mark.parametrize(
    ("name", "parameter", "rules"),
    [
        ("mlp", "0.weight", {"factors"}),
        ("grouped and dilated conv", "0.weight", {"factors"}),
        ("transposed conv", "0.weight", {"factors"}),
        ("tied embedding", "embedding.weight", {"rows", "factors"}),
        ("embedding bag, weighted sums", "e.weight", {"rows"}),
        ("embedding bag, largest", "e.weight", {"rows, entry by entry"}),
        ("layer norm over two dimensions", "1.weight", {"sum of products"}),
        ("layer norm over two dimensions", "1.bias", {"sum of cotangents"}),
        ("batch norm of images", "1.weight", {"sum of products"}),
        ("shifts and scales", "table", {"sum of cotangents", "sum of products"}),
        ("powers", "p", {"local derivative"}),
        ("slopes of negative values", "g.weight", {"sum of products"}),
        ("weight also penalised", "a.weight", {"factors", "sum of products"}),
    ],
)
def test_rules_of_a_parameter(name: str, parameter: str, rules: set[str]) -> None:
    (group,) = (g for g in engine_of(name).groups if g.name == parameter)
    assert {site.rule for site in group.sites} == rules


@pytest.mark.parametrize("name", ["custom backward", "branch on data", "no_grad in forward"])
def test_no_site_is_trusted(name: str) -> None:
    assert engine_of(name).groups == ()


def test_scrambled_batch_is_not_taken_for_a_batch() -> None:
    assert "a.weight" in engine_of("positions scrambled into the batch's place").rest


def test_loop_where_vmap_has_no_rule() -> None:
    assert not engine_of("branch on data").vmap
    assert engine_of("positions scrambled into the batch's place").vmap


def factors(n: int, groups: int, generator: torch.Generator) -> Factors:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return Factors(normal(2, n, groups, 3, 5), normal(2, n, 4, groups, 3, 6))


def by_einsum(rows: Factors, columns: Factors, layout: Layout) -> Tensor:
    j1, j2 = (torch.einsum("biogpw,bigpd->biogwd", f.cotangents, f.inputs) for f in (rows, columns))
    full = torch.einsum("biogwd,bjqgwd->bijoq", j1, j2)
    each = full.diagonal(dim1=-2, dim2=-1)
    return {"full": full, "diagonal": each, "trace": each.sum(-1)}[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("working_set", [1, 3000, 2**25])
@pytest.mark.parametrize("symmetric", [True, False])
def test_all_contractions(
    layout: Layout,
    groups: int,
    working_set: int,
    symmetric: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contraction, "WORKING_SET", working_set)
    monkeypatch.setattr(contraction, "WRITTEN", working_set)
    monkeypatch.setattr(pairing, "WORKING_SET", working_set)
    monkeypatch.setattr(pairing, "CACHED", working_set)
    monkeypatch.setattr(pairing, "_LARGE", 0)
    monkeypatch.setattr(contraction, "_BAND", 2)
    generator = torch.Generator().manual_seed(0)
    rows = factors(5, groups, generator)
    columns = rows if symmetric else factors(2, groups, generator)
    expected = by_einsum(rows, columns, layout)
    paths = [contraction.by_gram, contraction.by_gradients]
    if layout == "full":
        paths.append(contraction.by_cotangents)
    for path in [*paths, contraction.of_factors]:
        found = path(rows, columns, layout)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_terms_of_one_set_meet_in_both_orders(layout: Layout) -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [factors(3, 1, generator), factors(3, 1, generator)]
    expected = sum(by_einsum(u, v, layout) for u in terms for v in terms)
    torch.testing.assert_close(contraction.product(terms, terms, layout), expected)
    torch.testing.assert_close(contraction.product(terms, list(terms), layout), expected)


@pytest.mark.parametrize("name", ["conv2d", "tied embedding", "shifts and scales", "weight norm"])
@pytest.mark.parametrize("together", [1, 1200, 2**25])
def test_cotangents_one_by_one_and_together(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many outputs go backward in one pass."""
    kernel, x = EmpiricalKernel(case_of(name).model(), output="full"), case_of(name).data(3)
    monkeypatch.setattr(passage, "TOGETHER", together)
    found = kernel.ntk(x)
    expected = reference(kernel.model, x, x)[1]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_an_operation_without_a_rule_for_several_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object) -> object:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(torch.func, "vmap", refuse)
    kernel, x = EmpiricalKernel(case_of("conv2d").model(), output="full"), case_of("conv2d").data(3)
    torch.testing.assert_close(kernel.ntk(x), reference(kernel.model, x, x)[1])


def matrix(positions: int, inputs: int, width: int) -> Term:
    fixed, each = 4 * positions * inputs, 4 * positions * width
    return Term("factors", positions, inputs, width, 1, inputs * width, fixed, each)


def test_the_cheaper_path() -> None:
    """One position: the factors are smaller; many positions of a small layer: the gradients are."""
    assert cheapest(matrix(1, 2048, 2048), 16, 16, 8, "trace") == "gram"
    assert cheapest(matrix(1024, 8, 8), 16, 16, 1, "trace") == "gradients"
    assert cheapest(matrix(64, 2304, 256), 16, 16, 10, "full", same=True) == "cotangents"
    term = matrix(1, 100, 100)
    assert costs(term, 2, 3, 4, "full")["gram"] > costs(term, 2, 3, 4, "trace")["gram"]


def test_a_graph_is_recorded_once_and_again_when_the_module_changes() -> None:
    model, x = case_of("mlp").model(), real(4)(3)
    recording = Recording(model)
    first = recording.get(x)
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert recording.get(real(4)(7)) is first
    model[1].inplace = True
    assert recording.get(x) is not first


class Listed(nn.Module):
    """Reads a list that changes without a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scales = nn.Linear(4, 2).double(), [1.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).tanh() * self.scales[0]


def test_paths_are_confirmed_once_and_after_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    real_prepare = preparation.prepare
    monkeypatch.setattr(
        preparation, "prepare", lambda *args: calls.append(args) or real_prepare(*args)
    )
    model, x = Listed(), real(4)(5)
    kernel = EmpiricalKernel(model)

    def as_new() -> bool:
        return bool(torch.allclose(kernel.ntk(x), EmpiricalKernel(model).ntk(x), rtol=1e-12))

    first = kernel.ntk(x)
    torch.testing.assert_close(kernel.ntk(x[:3]), first[:3, :3])
    assert len(calls) == 1
    with torch.no_grad():
        model.a.weight.mul_(2)
    assert as_new()
    assert len(calls) == 3  # the kernel's, and that of the new one
    model.scales[0] = 3.0
    assert as_new()
    model.a.bias.requires_grad_(False)
    assert as_new()
    handle = model.a.register_forward_hook(lambda module, args, output: 2 * output)
    assert as_new()
    handle.remove()
    assert as_new()
    assert len(calls) == 11
