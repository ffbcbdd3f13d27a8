"""Kernel matrices, put together tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from tangency import examples, tiles
from tangency.empirical.costs import Layout
from tangency.empirical.engine import Engine
from tangency.empirical.features import Features, joined
from tangency.empirical.schedule import Schedule
from tangency.examples import Examples

__all__ = ["Blocks", "assemble", "assemble_diagonal"]

Blocks: TypeAlias = Callable[[Features, Features, Layout], Mapping[str, Tensor]]
"""Kernels of two sets of examples, (b, rows, columns, *outputs), by name."""


def assemble(
    engine: Engine,
    x1: Examples,
    x2: Examples | None,
    cotangents: Tensor,
    layout: Layout,
    blocks: Blocks,
    schedule: Schedule,
    label: str,
) -> dict[str, Tensor]:
    """The matrices (n1, n2, *outputs) of all blocks; symmetric without `x2`."""
    columns_of = x1 if x2 is None else x2
    symmetric = x2 is None
    kernels: dict[str, Tensor] = {}

    kept: dict[bool, Features] = {}

    def features(of_rows: bool, part: slice) -> Features:
        x = x1 if of_rows else columns_of
        if not schedule.whole:
            return _features(engine, x, part, cotangents, schedule)
        if of_rows not in kept:
            everything = slice(0, examples.count(x))
            kept[of_rows] = _features(engine, x, everything, cotangents, schedule)
        return kept[of_rows].part(part)

    steps = sum(_pairs(tile) for tile in schedule.tiles())
    with tiles.progress(label, steps) as advance:
        for rows in schedule.row_blocks():
            mine = features(True, rows)
            met = [rows] if symmetric else []
            for columns in [*met, *schedule.column_blocks(rows)]:
                own = symmetric and columns is rows
                yours = mine if own else features(symmetric, columns)
                tile = tiles.Tile(rows, columns)
                for name, values in blocks(mine, yours, layout).items():
                    if name not in kernels:
                        shape = (schedule.n1, schedule.n2, *values.shape[3:])
                        kernels[name] = cotangents.new_empty(shape)
                    given = values[0].to(cotangents.dtype)
                    tiles.fill(kernels[name], tile, given, symmetric=symmetric)
                advance(_pairs(tile))
    return kernels


def assemble_diagonal(
    engine: Engine,
    x: Examples,
    cotangents: Tensor,
    layout: Layout,
    blocks: Blocks,
    schedule: Schedule,
) -> dict[str, Tensor]:
    """The kernels of each example with itself, (n, *outputs)."""
    parts: dict[str, list[Tensor]] = {}
    with tiles.progress("empirical kernel, diagonal", schedule.n1) as advance:
        for rows in schedule.row_blocks():
            features = _features(engine, x, rows, cotangents, schedule).one_by_one()
            for name, values in blocks(features, features, layout).items():
                parts.setdefault(name, []).append(values[:, 0, 0].to(cotangents.dtype))
            advance(rows.stop - rows.start)
    return {name: torch.cat(found) for name, found in parts.items()}


def _features(
    engine: Engine, x: Examples, part: slice, cotangents: Tensor, schedule: Schedule
) -> Features:
    """Features of a block, in passages of so many examples as memory allows."""
    parts = (
        (
            slice(batch.start - part.start, batch.stop - part.start),
            engine.features(examples.take(x, batch), cotangents, schedule.written_out),
        )
        for batch in schedule.batches(part)
    )
    return joined(parts, part.stop - part.start)


def _pairs(tile: tiles.Tile) -> int:
    rows, columns = tile.shape
    return rows * columns
