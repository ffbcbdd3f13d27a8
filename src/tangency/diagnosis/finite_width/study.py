"""`width_study`: freshly drawn networks of several widths, and their limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tangency import examples
from tangency.diagnosis.finite_width.laws import interval, laws, power
from tangency.diagnosis.finite_width.result import PowerOfWidth, WidthStudy
from tangency.empirical import EmpiricalKernel
from tangency.errors import InvalidInput, TangencyError
from tangency.examples import Examples
from tangency.infinite import InfiniteKernel, Init

__all__ = ["width_study"]

EXAMPLES = 40
"""Most examples that kernels are compared on."""

RESAMPLES = 500
"""Of the networks of each width, for confidence intervals."""


def width_study(
    factory: Callable[[int], nn.Module],
    x: Examples,
    widths: Sequence[int],
    *,
    seeds: int | Iterable[int] = 8,
    init: Init | str = "module",
    infinite: bool | Literal["auto"] = "auto",
    on_width: Callable[[int], None] = lambda width: None,
) -> WidthStudy:
    """Empirical kernels of freshly drawn networks of several widths, against the infinite limit.

    The limit is that of the module at each width. With init="module" its scales are measured on
    the weights drawn, and averaged over the networks of a width; at small widths that has an error
    of its own, so pass the `Init` that the factory draws from where you know it.

    Args:
        factory: makes a fresh network of a hidden width, from the global random state, which is
            seeded for each network and put back after.
        x: examples; at most 40, spread evenly over them, are used.
        widths: ascending, at least two.
        seeds: how many networks of each width, or their seeds; at least two.
        init: as for `InfiniteKernel`.
        infinite: whether to compare with the infinite-width limit; "auto" does so if the module
            has one, and says why not in `reason`; True raises the reason.
        on_width: called before each width.

    Raises:
        InvalidInput: widths that do not ascend, fewer than two of them or of seeds, data or modules
            as `EmpiricalKernel` refuses them.
        UnsupportedOperation: with infinite=True, an operation without a rule.
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    _check(widths, seeds, infinite)
    examples.check(x, "x")
    n = examples.count(x)
    chosen = torch.linspace(0, n - 1, min(EXAMPLES, n)).round().long()
    probe = examples.take(x, chosen.to(examples.tensors(x)[0].device))
    kernels, limits, reason = [], [], None if infinite else "not asked for (infinite=False)"
    for width in widths:
        on_width(width)
        networks = [_drawn(factory, width, seed) for seed in seeds]
        kernels.append(_kernels(networks, probe))
        if reason is None:
            try:
                limits.append(_limit(networks, probe, init))
            except TangencyError as error:
                if infinite is True:
                    raise
                reason = str(error)
    found = torch.stack(kernels)
    limit = torch.stack(limits) if reason is None else None
    return _studied(torch.tensor(widths), found, limit, len(chosen), reason)


def _drawn(factory: Callable[[int], nn.Module], width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory(width)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"factory({width}) is a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _kernels(networks: list[nn.Module], x: Examples) -> Tensor:
    """(r, n, n); one module is loaded with each network in turn, and recorded only once."""
    first = networks[0]
    kernel = EmpiricalKernel(first)
    start = {name: value.clone() for name, value in first.state_dict().items()}
    found = [kernel.ntk(x)]
    for other in networks[1:]:
        first.load_state_dict(other.state_dict())
        found.append(kernel.ntk(x))
    first.load_state_dict(start)
    return torch.stack(found).cpu().double()


def _limit(networks: list[nn.Module], x: Examples, init: Init | str) -> Tensor:
    """(n, n)"""
    measured = networks if init == "module" else networks[:1]
    pairs = examples.take(x, slice(0, 2))
    found = [InfiniteKernel(model, pairs, init=init).ntk(x) for model in measured]
    if found[0].dim() != 2:
        raise InvalidInput("the outputs have position axes: there is no one kernel (n, n).")
    return torch.stack(found).cpu().double().mean(dim=0)


def _studied(
    widths: Tensor, kernels: Tensor, limits: Tensor | None, count: int, reason: str | None
) -> WidthStudy:
    """`kernels` (w, r, n, n), `limits` (w, n, n)."""
    centre = kernels.mean(dim=1) if limits is None else limits
    scale = centre.flatten(1).norm(dim=1)
    if bool((scale == 0).any()):
        raise InvalidInput("the kernel is zero: no parameter changes any output.")
    off = (kernels - centre[:, None]).flatten(2) / scale[:, None, None]
    coefficients, variance, bias = laws(widths, off, known=limits is not None)
    generator = torch.Generator().manual_seed(0)
    w, r = off.shape[:2]
    fits, powers = [], []
    for _ in range(RESAMPLES):
        picked = torch.randint(r, (w, r), generator=generator)
        again = off.gather(1, picked[:, :, None].expand_as(off))
        c, v, _ = laws(widths, again, known=limits is not None, parts=2)
        fits.append(c)
        powers.append(power(widths, v))
    resampled = torch.tensor(fits, dtype=torch.float64)
    variance_law = PowerOfWidth(
        coefficients[0],
        interval(resampled[:, 0]),
        power(widths, variance),
        interval(torch.tensor(powers, dtype=torch.float64)),
    )
    bias_law = None
    if limits is not None:
        # Where sampling noise has hidden a bias there is nothing to take the logarithm of.
        free = power(widths, bias) if bool((bias > 0).all()) else None
        bias_law = PowerOfWidth(coefficients[1], interval(resampled[:, 1]), free, None)
    return WidthStudy(
        widths=widths,
        errors=off.norm(dim=2),
        variance=variance,
        bias=bias,
        variance_law=variance_law,
        bias_law=bias_law,
        examples=count,
        reason=reason,
        resampled=resampled,
    )


def _check(widths: Sequence[int], seeds: list[int], infinite: object) -> None:
    proper = all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in widths)
    if len(widths) < 2 or not proper or sorted(set(widths)) != list(widths):
        raise InvalidInput(f"widths are {widths!r}: give at least two, positive and ascending.")
    if len(set(seeds)) < 2 or len(set(seeds)) != len(seeds):
        raise InvalidInput(f"seeds are {seeds}: a variance needs at least two, all different.")
    if infinite not in (True, False, "auto"):
        raise InvalidInput(f"infinite is {infinite!r}; use True, False or 'auto'.")
