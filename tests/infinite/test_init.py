"""Scales of parameters: against torch's own initialisers, and what counts in the NTK."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tangency.errors import InvalidInput
from tangency.infinite import InfiniteKernel, Init, NotIidWarning
from tangency.infinite.init import measured_moment
from tangency.infinite.parameters import module_parameters
from tangency.program.sites import ParameterUse

IN, OUT = 700, 300


@contextmanager
def silent() -> Iterator[None]:
    """No `NotIidWarning` inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotIidWarning)
        yield


def drawn(initialise: Callable[[Tensor], object]) -> Tensor:
    """A large weight as torch draws it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weight = torch.empty(OUT, IN)
        initialise(weight)
    return weight


PRESETS: dict[str, tuple[Init, Callable[[Tensor], object]]] = {
    "he": (Init.he(), lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "he, uniform": (Init.he(), lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")),
    "lecun": (Init.lecun(), lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),
    "xavier": (Init.xavier(), nn.init.xavier_uniform_),
    "xavier, normal": (Init.xavier(), nn.init.xavier_normal_),
    "xavier, gain": (Init.xavier(5 / 3), lambda w: nn.init.xavier_normal_(w, gain=5 / 3)),
    "pytorch": (Init.pytorch_default(), lambda w: w.copy_(nn.Linear(IN, OUT).weight.detach())),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    """210,000 draws: the second moment is known to 0.3 % (one standard error of a Gaussian)."""
    init, initialise = PRESETS[name]
    moment = init.moment("w", "weight", IN, OUT)
    weight = drawn(initialise)
    assert moment == pytest.approx(IN * float(weight.double().square().mean()), rel=0.01)
    with silent():
        assert measured_moment("w", weight, "weight", IN) == pytest.approx(moment, rel=0.01)


def test_presets_of_biases() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bias = nn.Linear(16, 100_000).bias
    measured = float(bias.detach().double().square().mean())
    assert Init.pytorch_default().moment("b", "bias", 16, 9) == pytest.approx(measured, rel=0.02)
    for init in (Init.he(), Init.lecun(), Init.xavier()):
        assert init.moment("b", "bias", 16, 9) == 0.0
    for init in (Init.he(bias=0.3), Init.lecun(bias=0.3), Init.xavier(bias=0.3)):
        assert init.moment("b", "bias", 16, 9) == 0.3


def test_overrides() -> None:
    """The last pattern that matches counts; it may be a function of the fans."""
    init = Init(
        2.0,
        0.1,
        overrides={"*.weight": 3.0, "body.0.*": 4.0, "last.bias": lambda i, o: 10 * i + o},
    )
    assert init.moment("first", "weight", 5, 7) == 2.0
    assert init.moment("first", "bias", 5, 7) == 0.1
    assert init.moment("body.1.weight", "weight", 5, 7) == 3.0
    assert init.moment("body.0.weight", "weight", 5, 7) == 4.0
    assert init.moment("body.0.bias", "bias", 5, 7) == 4.0
    assert init.moment("last.bias", "bias", 5, 7) == 57.0


def mlp(seed: int = 0, width: int = 64, *, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, width, bias=bias), nn.ReLU(), nn.Linear(width, 1, bias=bias)
        )


def data(n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 6, generator=generator, dtype=torch.float64)


def test_overrides_reach_the_kernel() -> None:
    """For one linear layer, K = w2 x.x' / d + b2."""
    model, x = nn.Linear(6, 1), data()
    init = Init(1.0, overrides={"weight": 2.5, "b*": 0.7})
    nngp = InfiniteKernel(model, x.float(), init=init).nngp(x)
    torch.testing.assert_close(nngp, 2.5 * x @ x.T / 6 + 0.7)


@pytest.mark.parametrize("pattern", ["2.weigth", "*.scale", "WEIGHT", ""])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    with pytest.raises(InvalidInput, match=r"matches no parameter; there are \['0.weight'"):
        InfiniteKernel(mlp(), data(), init=Init(2.0, overrides={pattern: 1.0}))


def test_a_pattern_may_name_any_of_the_names_of_a_tied_weight() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    Init(2.0, overrides={"2.weight": 1.0}).check_overrides(model)


@pytest.mark.parametrize("moment", [-1e-9, math.nan, math.inf, -math.inf])
def test_impossible_moments(moment: float) -> None:
    for make in (
        lambda m: Init(m),
        lambda m: Init(1.0, m),
        lambda m: Init(1.0, overrides={"a": m}),
    ):
        with pytest.raises(InvalidInput, match="a second moment is at least 0"):
            make(moment)
    Init(0.0, 0.0)


def test_unusable_arguments() -> None:
    with pytest.raises(InvalidInput, match="init is 'he'; use \"module\" or an Init"):
        InfiniteKernel(mlp(), data(), init="he")
    with pytest.raises(InvalidInput, match="parametrization is 'mup'"):
        InfiniteKernel(mlp(), data(), parametrization="mup")  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [2, 8, 64])
def test_fresh_networks_draw_no_warning(width: int) -> None:
    """Of any size, at many seeds, with torch's biases or zeros."""
    with silent(), torch.random.fork_rng():
        for seed in range(60):
            torch.manual_seed(seed)
            layers = [nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 1)]
            layers[1].reset_parameters()
            nn.init.orthogonal_(layers[0].weight)
            nn.init.zeros_(layers[2].bias)
            for layer in layers:
                measured_moment("weight", layer.weight, "weight", layer.in_features)
                measured_moment("bias", layer.bias, "bias", layer.in_features)


def trained() -> nn.Sequential:
    """Trained until it has found the two features that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))
        )
        x = torch.randn(256, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(model(x)[:, 0], 3 * x[:, 0] + x[:, 1]).backward()
        optimizer.step()
    return model


def warned_about(model: nn.Sequential) -> set[str]:
    """Names of the parameters that a measured kernel warns about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        InfiniteKernel(model, torch.randn(2, model[0].in_features))
    assert all(issubclass(w.category, NotIidWarning) for w in caught)
    return {str(w.message).split("the parameter ")[1].split(" ")[0] for w in caught}


def test_a_trained_network_is_warned_about_by_name() -> None:
    model = trained()
    assert "2.weight" in warned_about(model)
    for layer in (model[0], model[2], model[4]):
        layer.reset_parameters()
    assert warned_about(model) == set()


def test_constants_and_low_rank() -> None:
    model = mlp()
    nn.init.constant_(model[0].bias, 0.01)
    assert warned_about(model) == {"0.bias"}
    nn.init.zeros_(model[0].bias)
    assert warned_about(model) == set()
    with torch.no_grad():
        model[0].weight.copy_(torch.outer(torch.randn(64), torch.randn(6)))
    assert warned_about(model) == {"0.weight"}
    nn.init.constant_(model[2].weight, 1.0)
    assert warned_about(model) == {"0.weight", "2.weight"}


def test_prescribed_moments_draw_no_warning() -> None:
    with silent():
        InfiniteKernel(trained(), torch.randn(2, 32), init=Init.he())


def test_the_warning_points_at_the_callers_line() -> None:
    model = mlp()
    nn.init.constant_(model[0].bias, 1.0)
    with pytest.warns(NotIidWarning) as caught:
        InfiniteKernel(model, data().float())
    assert caught[0].filename == __file__


def test_non_finite_parameters_are_refused() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 3] = torch.nan
    with pytest.raises(InvalidInput, match=r"parameter 2\.weight holds NaN"):
        InfiniteKernel(model, data().float())


def test_measured_moments_are_the_modules_own() -> None:
    """A kernel of the module's second moments, put in by hand."""
    model = mlp(width=10).double()
    x = data()
    moments = {
        name: float(p.detach().square().mean()) * (p.shape[1] if p.dim() == 2 else 1)
        for name, p in model.named_parameters()
    }
    by_hand = InfiniteKernel(model, x, init=Init(1.0, overrides=moments)).pair(x)
    measured = InfiniteKernel(model, x).pair(x)
    torch.testing.assert_close(measured.nngp, by_hand.nngp)
    torch.testing.assert_close(measured.ntk, by_hand.ntk)


def contribution(names: set[str], parametrization: str, w2: float, b2: float) -> Tensor:
    """The NTK with only the named parameters trained."""
    model, x = mlp(), data()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    kernel = InfiniteKernel(model, x, init=Init(w2, b2), parametrization=parametrization)  # type: ignore[arg-type]
    return kernel.ntk(x)


def test_frozen_parameters_do_not_count() -> None:
    """The NTK is a sum over parameters: first layer by hand (Cho and Saul's angles)."""
    w2, b2 = 1.7, 0.2
    x = data()
    names = {name for name, _ in mlp().named_parameters()}
    parts = {name: contribution({name}, "standard", w2, b2) for name in names}
    everything = contribution(names, "standard", w2, b2)
    torch.testing.assert_close(sum(parts.values()), everything)
    assert float(contribution(set(), "standard", w2, b2).abs().max()) == 0
    first = w2 * x @ x.T / 6 + b2
    sd = first.diagonal().sqrt()
    theta = torch.arccos((first / torch.outer(sd, sd)).clamp(-1, 1))
    slopes = (math.pi - theta) / (2 * math.pi)
    kappa = torch.outer(sd, sd) / (2 * math.pi) * (theta.sin() + (math.pi - theta) * theta.cos())
    exact = {
        "0.weight": w2 * slopes * (x @ x.T),
        "0.bias": w2 * slopes,
        "2.weight": 64 * kappa,
        "2.bias": torch.ones_like(kappa),
    }
    for name in names:
        torch.testing.assert_close(parts[name], exact[name], rtol=1e-6, atol=1e-6)


def test_the_two_parametrisations() -> None:
    """Theta_ntk = sum (W_l + B_l) becomes sum (fan_in / w2) W_l + B_l / b2; the NNGP is one."""
    w2, b2 = 1.7, 0.2
    fans = {"0": 6, "2": 64}
    for name, _ in mlp().named_parameters():
        layer, role = name.split(".")
        factor = fans[layer] / w2 if role == "weight" else 1 / b2
        standard = contribution({name}, "standard", w2, b2)
        torch.testing.assert_close(standard, factor * contribution({name}, "ntk", w2, b2))
    x = data()
    kernels = [
        InfiniteKernel(mlp(), x, init=Init(w2, b2), parametrization=p).nngp(x)
        for p in ("standard", "ntk")
    ]
    assert torch.equal(*kernels)


def test_the_ntk_parametrisation_with_closed_values() -> None:
    """L linear layers without bias have Theta = L K (FORMULAS, identity of zero depth)."""
    x = data()
    for depth in (1, 3):
        model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(depth)))
        kernel = InfiniteKernel(model, x, init=Init(1.3), parametrization="ntk").pair(x)
        torch.testing.assert_close(kernel.nngp, 1.3**depth * x @ x.T / 6)
        torch.testing.assert_close(kernel.ntk, depth * kernel.nngp)


def test_a_factor_in_front_of_a_weight() -> None:
    """2 W has four times the second moment; its gradient has two factors of 2 as well."""
    scales = module_parameters(mlp(), Init(1.5, 0.3), "standard")
    plain = scales.weight(ParameterUse("0.weight"), 6, 64)
    twice = scales.weight(ParameterUse("0.weight", 2.0), 6, 64)
    assert (plain.forward, plain.gradient) == (1.5, 6.0)
    assert (twice.forward, twice.gradient) == (6.0, 24.0)
    bias = scales.bias(ParameterUse("0.bias", 2.0), 6, 64)
    assert (bias.forward, bias.gradient) == (1.2, 4.0)
    ntk = module_parameters(mlp(), Init(1.5, 0.3), "ntk")
    assert ntk.weight(ParameterUse("0.weight", 2.0), 6, 64).gradient == 6.0
