"""The rules for sites, by operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from torch import Tensor, fx

from tangency.empirical.gradients import Explicit, Gradients
from tangency.empirical.passage import Order, Passage
from tangency.program.operations import base_name

__all__ = ["Gradient", "Site", "bias_site", "ruled_site", "site_rule"]

Gradient: TypeAlias = Callable[[Passage, Order], Gradients]
"""The per-example gradients at a site, of what passed there: one problem, b = 1."""


@dataclass(frozen=True)
class Site:
    """One use of a tensor of parameters together with data.

    Attributes:
        node: the call.
        rule: what serves it, for people.
        reads: the call's arguments that its gradients depend on.
        gradient: the gradients with respect to the tensor of parameters.
    """

    node: fx.Node
    rule: str
    reads: tuple[fx.Node, ...]
    gradient: Gradient


Rule: TypeAlias = Callable[[fx.Node, fx.Node], "Site | None"]
"""The site of a call (first) for a tensor of parameters (second); None if the rule does not know
this use."""

_RULES: dict[str, Rule] = {}

R = TypeVar("R", bound=Rule)


def site_rule(*operations: str) -> Callable[[R], R]:
    """Register a rule for operations (base names, `linear` for `aten.linear.default`)."""

    def register(rule: R) -> R:
        for name in operations:
            _RULES[name] = rule
        return rule

    return register


def ruled_site(node: fx.Node, parameter: fx.Node) -> Site | None:
    """The site by the rule of its operation, if there is one that serves this use."""
    rule = _RULES.get(base_name(node))
    return None if rule is None else rule(node, parameter)


def bias_site(node: fx.Node, channel: int) -> Site:
    """A vector added along dimension `channel` of the result: cotangents summed over all others."""

    def gradient(passage: Passage, order: Order) -> Gradients:
        cotangents = passage.cotangents_of(node, order)
        channels = cotangents.movedim(2 + channel, 2)
        summed: Tensor = channels.flatten(3).sum(-1) if channels.dim() > 3 else channels
        return Explicit(summed[None])

    return Site(node, "sum of cotangents", (), gradient)
