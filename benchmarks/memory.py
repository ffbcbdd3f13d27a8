"""Peak memory of our kernels beside the budget: ``python benchmarks/memory.py``.

Each kernel is the first of a fresh process, about five minutes in all. With ``--write`` the table
of RESULTS.md is made anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown import markdown_table
from memory_networks import POINTS, Point
from run import processor_name, usable_cores
from table import rewrite_section, section_around

from tangency.infinite.planning import MEMORY_BUDGET

HERE = Path(__file__).resolve().parent
PAGE = HERE / "RESULTS.md"
SECTION = "memory"
MEBIBYTE = 1 << 20


class PointError(Exception):
    """A point's process ended with an error; its own output says why."""


@dataclass(frozen=True)
class Peak:
    """A kernel measured."""

    point: Point
    seconds: float
    memory: int
    """Growth of the peak of resident memory from the finished kernel object on, in bytes."""


def measure(name: str) -> Peak:
    """Run one point in a process of its own."""
    print(name, file=sys.stderr, flush=True)
    command = [sys.executable, str(HERE / "memory_point.py"), name]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise PointError(f"{name} failed; its message stands above")
    measured = json.loads(done.stdout.splitlines()[-1])
    return Peak(POINTS[name], measured["seconds"], measured["memory"])


def render(peaks: Sequence[Peak]) -> str:
    """The table in Markdown."""
    header = "network|n|arguments|MiB|seconds|within the budget"
    rows = [
        [
            p.point.network,
            p.point.size,
            ", ".join(f"`{k}={v!r}`" for k, v in p.point.options.items()) or "none",
            f"{p.memory / MEBIBYTE:.0f}",
            f"{p.seconds:.1f}",
            "yes" if p.memory <= MEMORY_BUDGET else "**no**",
        ]
        for p in peaks
    ]
    return "\n\n".join(
        [
            f"Measured on {processor_name()}, {usable_cores()} cores, images of 32 x 32 pixels, "
            f"float32, NNGP and NTK; the budget is {MEMORY_BUDGET // MEBIBYTE} MiB. Other programs "
            "ran beside: the seconds say no more than the order.",
            markdown_table(header, rows),
        ]
    )


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("points", nargs="*", metavar="point", help=f"{', '.join(POINTS)} (all)")
    parser.add_argument("--write", action="store_true", help="also write RESULTS.md")
    options = parser.parse_args(arguments)
    for name in options.points:
        if name not in POINTS:
            parser.error(f"there is no point {name!r}; there are {', '.join(POINTS)}")
    if options.write and options.points:
        parser.error("--write needs every point: name none")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the points; the exit code is 1 where one fails or needs more than the budget."""
    options = read_options(arguments)
    if options.write:
        section_around(PAGE, SECTION)
    try:
        peaks = [measure(name) for name in options.points or POINTS]
    except PointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = render(peaks)
    print(text)
    if options.write:
        rewrite_section(PAGE, SECTION, text)
    return 0 if all(p.memory <= MEMORY_BUDGET for p in peaks) else 1


if __name__ == "__main__":
    sys.exit(main())
