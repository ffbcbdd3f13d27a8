"""Is the chosen path of a contraction the fast one? ``python benchmarks/paths.py``.

Every path of a contraction is forced on a grid of sizes and timed beside the others; the one that
`tangency.empirical.costs` chooses should take at most 1.3 times of the fastest. With ``--write``
the table of the worst cases goes into RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal
from unittest import mock

import torch
from markdown import markdown_table
from run import OUTPUTS, RESULTS, describe_setting, say
from table import rewrite_section, section_around
from torch import Tensor

from tangency.empirical import contraction
from tangency.empirical.costs import Layout, Path, cheapest, costs, term
from tangency.empirical.gradients import Factors, Gradients, Rows
from tangency.empirical.windows import Windows
from tangency.program.geometry import ConvGeometry

Kind = Literal["linear", "conv", "grouped conv", "embedding"]

SECTION = "paths"
TARGET = 1.3
LONG = 1.5e8
"""Predicted multiply-adds of the cheapest path beyond which a size is left out; a path that is
predicted to take eight times the cheapest is taken as slower."""
ROUNDS = 5
INFINITY = float("inf")
PATHS: tuple[Path, ...] = ("gram", "cotangents", "gradients")
SHOWN = 8
KERNEL = 3
GROUPS = 4


@dataclass(frozen=True)
class Size:
    """One point of the grid.

    Attributes:
        kind: of layer.
        n: examples.
        positions: places at which the parameter meets an example (of a convolution: pixels).
        inputs: features or channels that come in, rows of a table.
        width: features or channels that go out.
        out: outputs of the network.
        layout: of the kernel.
        symmetric: the kernel of one set of examples, whose gradients are made once.
    """

    kind: Kind
    n: int
    positions: int
    inputs: int
    width: int
    out: int
    layout: Layout
    symmetric: bool


@dataclass(frozen=True)
class Found:
    """The paths of one size: seconds, the least of `ROUNDS`, and costs in multiply-adds."""

    size: Size
    seconds: dict[str, float]
    predicted: dict[str, float]
    chosen: str

    @property
    def regret(self) -> float:
        """Time of the chosen path divided by that of the fastest one."""
        return self.seconds[self.chosen] / min(self.seconds.values())


def grid() -> Iterator[Size]:
    """All sizes."""
    places: dict[Kind, tuple[int, ...]] = {
        "linear": (1, 16, 64, 256),
        "conv": (16, 64, 256, 1024),
        "grouped conv": (16, 256),
        "embedding": (1, 16, 64, 256),
    }
    widths = ((16, 16), (64, 64), (64, 512), (512, 64), (512, 512))
    tables = ((100, 64), (1000, 64), (1000, 256), (10000, 64))
    forms: tuple[tuple[int, Layout], ...] = ((1, "trace"), (10, "trace"), (10, "full"))
    for kind, positions in places.items():
        shapes = tables if kind == "embedding" else widths
        for p, n, (a, b), (out, layout) in itertools.product(positions, (4, 32), shapes, forms):
            for symmetric in (True, False):
                yield Size(kind, n, p, a, b, out, layout, symmetric)


def gradients(size: Size, seed: int = 0, device: str = "cpu") -> Factors | Rows:
    """Random gradients of a size, float32."""
    generator = None if device == "meta" else torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    n, p, out, width = size.n, size.positions, size.out, size.width
    if size.kind == "embedding":
        indices = torch.randint(size.inputs, (1, n, 1, p), device=device, generator=generator)
        return Rows(indices, normal(1, n, out, 1, p, width), size.inputs)
    if size.kind == "linear":
        return Factors(normal(1, n, 1, p, size.inputs), normal(1, n, out, 1, p, width))
    groups = GROUPS if size.kind == "grouped conv" else 1
    side = round(p**0.5)
    ones = (1, 1)
    geometry = ConvGeometry((KERNEL, KERNEL), ones, ones, ones, ones, groups, False, (0, 0))
    return Factors(
        normal(1, n, 1, size.inputs, side, side),
        normal(1, n, out, groups, p, width // groups),
        windows=Windows(geometry),
    )


def forced(path: Path, rows: Gradients, columns: Gradients, layout: Layout) -> Tensor:
    """The product as the engine computes it, by this path."""
    left = [rows]
    with mock.patch.object(contraction, "cheapest", return_value=path):
        return contraction.product(left, left if columns is rows else [columns], layout)


def measure(size: Size) -> Found | None:
    """Time the paths in turn; None for a size that is left out."""
    sizes = term(gradients(size, device="meta"))
    tile = (sizes, size.n, size.n, size.out, size.layout)
    predicted = costs(*tile, same=size.symmetric)
    chosen = cheapest(*tile, same=size.symmetric)
    if predicted[chosen] > LONG:
        return None
    rows = gradients(size)
    columns = rows if size.symmetric else gradients(size, seed=1)
    near = [path for path in PATHS if predicted.get(path, INFINITY) <= 8 * predicted[chosen]]
    seconds = dict.fromkeys(near, INFINITY)
    for _, path in itertools.product(range(ROUNDS + 1), near):  # the first one warms up
        start = time.perf_counter()
        forced(path, rows, columns, size.layout)
        seconds[path] = min(seconds[path], time.perf_counter() - start)
    return Found(size, seconds, dict(predicted), chosen)


def _grow() -> None:
    """Let go of 31 MiB once: the C library then keeps freed memory of this size, as in a process
    that has done work like this before. Else a path may pay for fresh memory or not, by chance.
    """
    torch.empty(31 * 2**18).fill_(0.0)


def render(results: Sequence[Found], setting: dict[str, str]) -> str:
    """How often the choice is right, and the worst cases."""
    kinds = dict.fromkeys(r.size.kind for r in results)
    of_kind = {kind: [r for r in results if r.size.kind == kind] for kind in kinds}
    summary = [
        [
            kind,
            str(len(found)),
            str(sum(len(r.seconds) > 1 for r in found)),
            str(sum(r.regret > TARGET for r in found)),
            f"{max(r.regret for r in found):.2f}",
        ]
        for kind, found in of_kind.items()
    ]
    worst = sorted(results, key=lambda r: -r.regret)[:SHOWN]
    rows = [
        [
            r.size.kind,
            *(str(v) for v in (r.size.n, r.size.positions, r.size.inputs, r.size.width)),
            f"{r.size.out}, {r.size.layout}",
            "one set" if r.size.symmetric else "two sets",
            r.chosen,
            *(f"{1e3 * r.seconds[p]:.2f}" if p in r.seconds else "" for p in PATHS),
            f"{r.regret:.2f}",
        ]
        for r in worst
    ]
    return "\n\n".join(
        [
            "\n".join(f"- {name}: {value}" for name, value in setting.items()),
            f"Time of the chosen path by that of the fastest one; target {TARGET:g} everywhere.",
            markdown_table(
                "layer|sizes|both paths measured|beyond the target|largest ratio", summary
            ),
            "The worst, in milliseconds:",
            markdown_table(
                "layer|n|positions|in|width|outputs|examples|chosen|gram|cotangents|gradients|ratio",
                rows,
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the grid; the exit code is 1 where a choice misses the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="also write RESULTS.md")
    options = parser.parse_args(arguments)
    setting = describe_setting(1, ROUNDS)
    setting["repetitions"] = f"the paths in turn, least of {ROUNDS}"
    if options.write:
        section_around(RESULTS, SECTION)
    _grow()
    found = [measure(size) for size in grid()]
    results = [result for result in found if result is not None]
    text = render(results, setting)
    print(text)
    OUTPUTS.mkdir(exist_ok=True)
    path = OUTPUTS / f"{SECTION}.json"
    path.write_text(json.dumps([asdict(r) for r in results]))
    say(f"saved {path}")
    if options.write:
        rewrite_section(RESULTS, SECTION, text)
    return 0 if all(r.regret <= TARGET for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
