"""`tangency spectrum`: the modes of a kernel, and where the targets lie in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import Tensor

from tangency.analysis import Spectrum
from tangency.analysis import spectrum as spectrum_of
from tangency.cli import options
from tangency.cli.kernel import Kind, KindOption, compute
from tangency.cli.storage import check_suffix, load_kernel, save
from tangency.cli.terminal import console, reported

__all__ = ["EXAMPLES", "HELP", "command"]

HELP = (
    "The modes of a kernel: eigenvalues, learning times and the targets' power in each. Takes a "
    "file of `tangency kernel` (arrays kernel and targets), or a data set, whose kernel it "
    "computes first."
)
EXAMPLES = """\b
Examples:
  tangency spectrum digits.npz
  tangency spectrum wine --kind empirical --modes 20
  tangency spectrum digits --out spectrum.npz
"""


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="KERNEL_OR_DATA",
            help=f"A .npz or .safetensors file with a kernel, or: {options.DATA_HELP}",
        ),
    ],
    kind: KindOption = Kind.NTK,
    model: options.Model = None,
    width: options.Width = None,
    depth: options.Depth = None,
    activation: options.ActivationName = None,
    examples: options.Examples = None,
    seed: options.Seed = 0,
    task: options.Task = options.TaskName.AUTO,
    target: options.Target = None,
    modes: Annotated[int, typer.Option(min=1, help="How many to print.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Scales the learning times.")] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="Write all modes to a .npz or .safetensors file.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Print the spectrum, and write it where that is asked for."""
    with reported(debug):
        if out is not None:
            check_suffix(out)
        if not learning_rate > 0:
            raise typer.BadParameter("must be positive.", param_hint="--learning-rate")
        stored = load_kernel(Path(source)) if Path(source).is_file() else None
        if stored is None:
            data, family = options.data_and_family(
                source,
                model=model,
                width=width,
                depth=depth,
                activation=activation,
                examples=examples,
                seed=seed,
                task=task,
                target=target,
            )
            stored = compute(family, data, kind, seed)[0], data.y_train
        found = spectrum_of(*stored)
        _summarise(found, modes, learning_rate)
        if out is not None:
            save(out, _tensors(found, learning_rate))
            console().print(f"\nWritten to {out.resolve()}")


def _tensors(found: Spectrum, learning_rate: float) -> dict[str, Tensor]:
    optional = {"power": found.power, "cumulative_power": found.cumulative_power}
    return {
        "eigenvalues": found.eigenvalues,
        "modes": found.modes,
        "learning_times": found.learning_times(learning_rate),
        **{name: values for name, values in optional.items() if values is not None},
    }


def _summarise(found: Spectrum, modes: int, learning_rate: float) -> None:
    screen = console()
    screen.print(repr(found))
    screen.print()
    table = Table(box=None, pad_edge=False)
    for name in ("mode", "eigenvalue", "learning time"):
        table.add_column(name, justify="right")
    cumulative = found.cumulative_power
    if cumulative is not None:
        table.add_column("target power", justify="right")
        table.add_column("up to here", justify="right")
    times = found.learning_times(learning_rate)
    total = None if found.power is None else float(found.power.sum())
    for i in range(min(modes, len(times))):
        time = "never" if math.isinf(float(times[i])) else f"{float(times[i]):.4g}"
        cells = [str(i + 1), f"{float(found.eigenvalues[i]):.4g}", time]
        if found.power is not None and cumulative is not None:
            share = float(found.power[i]) / total if total else 0.0
            cells += [f"{share:.1%}", f"{float(cumulative[i]):.1%}"]
        table.add_row(*cells)
    screen.print(table)
