"""A weight for every position: locally connected layers (`einsum("npk,pko->npo", patches, W)`)."""

from __future__ import annotations

from typing import cast

from torch import fx

from tangency.infinite.lowering import Lowering
from tangency.infinite.rules.affine import weight_input
from tangency.infinite.values.unshared import Unshared
from tangency.infinite.values.value import Value
from tangency.infinite.values.weight import Weight
from tangency.program.axes import resolve

__all__ = ["unshared"]


def unshared(lowering: Lowering, node: fx.Node, start: int, length: int) -> Value:
    """W_p u_p with a weight W_p of its own at every position p: covariance at equal p only.

    (Novak et al. 2019, "Bayesian deep convolutional networks with many channels are Gaussian
    processes", section 5.1: after a flatten it is that of the shared weight.)
    """
    site = lowering.program.sites[node]
    assert site.weight is not None
    if site.weight.block is not None:
        raise lowering.unsupported(node, "uses a part of a weight that differs over positions")
    parameter = cast(fx.Node, node.args[1])
    rows, columns = parameter.meta["val"].shape[-2:]
    axes = tuple(a for dim in lowering.program.axes[parameter][:-2] for a in resolve(dim))
    weight = Weight(
        lowering.program.atoms(node, "position"),
        (site.weight.name, "unshared", start, length),
        lowering.parameters.weight(site.weight, int(rows), int(columns)),
        weight_input(lowering, node, site.input),
    )
    return Unshared(weight, axes)
