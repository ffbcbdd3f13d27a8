"""What of a graph a value depends on, and what depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

__all__ = ["ancestors", "descendants"]


def ancestors(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is computed from."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            stack.extend(current.all_input_nodes)
    return found


def descendants(
    graph: fx.Graph, sources: Iterable[fx.Node], *, without: Callable[[fx.Node], bool] | None = None
) -> set[fx.Node]:
    """The `sources` and all that is computed from them; nothing through the nodes `without`."""
    found = set(sources)
    for node in graph.nodes:
        if found.isdisjoint(node.all_input_nodes) or (without is not None and without(node)):
            continue
        found.add(node)
    return found
