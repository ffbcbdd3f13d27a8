"""Pieces of Markdown that all tables are made of."""

from __future__ import annotations

from collections.abc import Sequence

from measurement import Timing

__all__ = ["markdown_table", "met", "reached", "seconds"]


def markdown_table(header: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table from a header with bars and rows of cells."""
    names = header.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def seconds(timing: Timing) -> str:
    """Best, median and first call of one timing."""
    return f"{timing.best_s:.3f} ({timing.median_s:.3f}) [{timing.first_call_s:.1f}]"


def reached(fulfilled: bool) -> str:
    """Whether a target is reached, in a word."""
    return "reached" if fulfilled else "not reached"


def met(limit: float | None, value: float, unit: str = "") -> str:
    """Whether a value is at most its limit, in words; ``none`` where no limit was set."""
    return "none" if limit is None else f"{limit:g}{unit}: {reached(value <= limit)}"
