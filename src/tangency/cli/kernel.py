"""`tangency kernel`: a kernel over a data set, into a file."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import Tensor

from tangency.cli import options
from tangency.cli.storage import check_suffix, save
from tangency.cli.terminal import console, reported
from tangency.datasets import Dataset
from tangency.empirical import EmpiricalKernel
from tangency.infinite import InfiniteKernel
from tangency.study import Family

__all__ = ["EXAMPLES", "HELP", "Kind", "command", "compute"]

HELP = (
    "Compute a kernel of a network over the training examples of a data set, and between its test "
    "and training examples. The file holds kernel (n, n), kernel_test_train (m, n), targets "
    "(n, out) and targets_test (m, out)."
)
EXAMPLES = """\b
Examples:
  tangency kernel digits --out digits.npz
  tangency kernel wine --kind nngp --activation erf --out wine.safetensors
  tangency kernel data.npz --kind empirical --model mypackage.models:make_network
"""


class Kind(str, Enum):
    """Which kernel."""

    NTK = "ntk"
    NNGP = "nngp"
    EMPIRICAL = "empirical"


KindOption = Annotated[
    Kind,
    typer.Option(
        help="ntk and nngp: of the infinitely wide network; empirical: the NTK of one network as "
        "it is drawn, mean over outputs."
    ),
]


def command(
    dataset: options.Data,
    kind: KindOption = Kind.NTK,
    model: options.Model = None,
    width: options.Width = None,
    depth: options.Depth = None,
    activation: options.ActivationName = None,
    examples: options.Examples = None,
    seed: options.Seed = 0,
    task: options.Task = options.TaskName.AUTO,
    target: options.Target = None,
    out: Annotated[Path, typer.Option(help="A .npz or .safetensors file.")] = Path("kernel.npz"),
    debug: options.Debug = False,
) -> None:
    """Compute the kernel, write it and say what it looks like."""
    with reported(debug):
        check_suffix(out)
        data, family = options.data_and_family(
            dataset,
            model=model,
            width=width,
            depth=depth,
            activation=activation,
            examples=examples,
            seed=seed,
            task=task,
            target=target,
        )
        kernel, cross = compute(family, data, kind, seed)
        save(
            out,
            {
                "kernel": kernel,
                "kernel_test_train": cross,
                "targets": data.y_train,
                "targets_test": data.y_test,
            },
        )
        _summarise(kernel, cross, f"{kind.value} of a {family.name} on {data.name}", out)


def compute(family: Family, data: Dataset, kind: Kind, seed: int) -> tuple[Tensor, Tensor]:
    """The kernel over the training examples, (n, n), and between test and training, (m, n).

    Raises:
        InvalidInput: the network does not run on the data.
        UnsupportedOperation: an infinite-width kernel of a network that has none.
    """
    network = family.network_for(data.x_train, data.out, seed)
    if kind is Kind.EMPIRICAL:
        empirical = EmpiricalKernel(network)
        return empirical.ntk(data.x_train), empirical.ntk(data.x_test, data.x_train)
    infinite = InfiniteKernel(network, data.x_train[:2], init=family.init)
    train, cross = infinite.pair(data.x_train), infinite.pair(data.x_test, data.x_train)
    return (train.ntk, cross.ntk) if kind is Kind.NTK else (train.nngp, cross.nngp)


def _summarise(kernel: Tensor, cross: Tensor, title: str, path: Path) -> None:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("array", "shape", "smallest", "mean", "largest"):
        table.add_column(name, justify="left" if name == "array" else "right")
    rows = {"kernel": kernel, "its diagonal": kernel.diagonal(), "kernel_test_train": cross}
    for name, values in rows.items():
        numbers = (values.min(), values.mean(), values.max())
        table.add_row(name, str(tuple(values.shape)), *(f"{float(v):.4g}" for v in numbers))
    screen = console()
    screen.print(table)
    screen.print(f"\nWritten to {path.resolve()}")
