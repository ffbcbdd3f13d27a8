"""Kernel matrices, put together tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from tangency import examples, tiles
from tangency.empirical.costs import Layout
from tangency.empirical.features import Features, joined
from tangency.empirical.schedule import Schedule
from tangency.empirical.subject import Prepared
from tangency.examples import Examples

__all__ = ["Blocks", "assemble", "assemble_diagonal"]

Blocks: TypeAlias = Callable[[Features, Features, Layout], Mapping[str, Tensor]]
"""Kernels of two sets of examples, (b, rows, columns, *outputs), by name."""


def assemble(
    prepared: Prepared, blocks: Blocks, schedule: Schedule, label: str
) -> dict[str, Tensor]:
    """The matrices (n1, n2, *outputs) of all blocks; symmetric without `x2`."""
    symmetric = prepared.x2 is None
    columns_of = prepared.x1 if symmetric else prepared.x2
    kernels: dict[str, Tensor] = {}

    kept: dict[bool, Features] = {}

    def features(of_rows: bool, part: slice) -> Features:
        x = prepared.x1 if of_rows else columns_of
        if not schedule.whole:
            return _features(prepared, x, part, schedule)
        if of_rows not in kept:
            everything = slice(0, examples.count(x))
            kept[of_rows] = _features(prepared, x, everything, schedule)
        return kept[of_rows].part(part)

    steps = sum(_pairs(tile) for tile in schedule.tiles())
    mine: Features | None = None
    yours: Features | None = None
    with tiles.progress(label, steps) as advance:
        for rows in schedule.row_blocks():
            mine = yours = None  # before the next ones are there
            mine = features(True, rows)
            met = [rows] if symmetric else []
            for columns in [*met, *schedule.column_blocks(rows)]:
                own = symmetric and columns is rows
                yours = None
                yours = mine if own else features(symmetric, columns)
                tile = tiles.Tile(rows, columns)
                for name, values in blocks(mine, yours, prepared.layout).items():
                    if name not in kernels:
                        shape = (schedule.n1, schedule.n2, *values.shape[3:])
                        kernels[name] = prepared.cotangents.new_empty(shape)
                    given = values[0].to(kernels[name].dtype)
                    tiles.fill(kernels[name], tile, given, symmetric=symmetric)
                advance(_pairs(tile))
    return kernels


def assemble_diagonal(prepared: Prepared, blocks: Blocks, schedule: Schedule) -> dict[str, Tensor]:
    """The kernels of each example of `x1` with itself, (n, *outputs)."""
    parts: dict[str, list[Tensor]] = {}
    with tiles.progress("empirical kernel, diagonal", schedule.n1) as advance:
        for rows in schedule.row_blocks():
            features = _features(prepared, prepared.x1, rows, schedule).one_by_one()
            for name, values in blocks(features, features, prepared.layout).items():
                given = values[:, 0, 0].to(prepared.cotangents.dtype)
                parts.setdefault(name, []).append(given)
            del features  # before the next ones are there
            advance(rows.stop - rows.start)
    return {name: torch.cat(found) for name, found in parts.items()}


def _features(prepared: Prepared, x: Examples, part: slice, schedule: Schedule) -> Features:
    """Features of a block, in passages of so many examples as memory allows."""
    parts = (
        (
            slice(batch.start - part.start, batch.stop - part.start),
            prepared.engine.features(
                examples.take(x, batch), prepared.cotangents, schedule.written_out
            ),
        )
        for batch in schedule.batches(part)
    )
    return joined(parts, part.stop - part.start)


def _pairs(tile: tiles.Tile) -> int:
    rows, columns = tile.shape
    return rows * columns
