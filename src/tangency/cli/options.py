"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from tangency.datasets import BUNDLED, FILE_HELP, Dataset, TaskChoice, load
from tangency.study import ACTIVATIONS, Family, imported, perceptrons

__all__ = [
    "Activation",
    "Data",
    "Debug",
    "Depth",
    "Examples",
    "Model",
    "Seed",
    "Target",
    "Task",
    "TaskName",
    "Width",
    "data_and_family",
]

DATA_HELP = f"{', '.join(BUNDLED)}, or a .csv or .npz file. {FILE_HELP}"


class TaskName(str, Enum):
    """What a file's targets are."""

    AUTO = "auto"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


Activation = Enum("Activation", {name: name for name in ACTIVATIONS}, type=str)  # type: ignore[misc]

Data: TypeAlias = Annotated[str, typer.Argument(metavar="DATASET_OR_FILE", help=DATA_HELP)]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FACTORY",
        help="Your own network: FACTORY(in_features, out_features[, width]) returns a "
        "torch.nn.Module. MODULE is also looked for in the current folder. Without it, a "
        "multilayer perceptron.",
    ),
]
Width: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Units of a hidden layer (512 by default).")
]
Depth: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Hidden layers of the perceptron (2 by default).")
]
ActivationName: TypeAlias = Annotated[
    Activation | None, typer.Option(help="Of the perceptron (relu by default).")
]
Examples: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=2, help="To train on: by default 500, or 70 % of the rows where there are fewer."
    ),
]
Seed: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Of the split and of the network's random start.")
]
Task: TypeAlias = Annotated[TaskName, typer.Option(help="What the targets of a file are.")]
Target: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The target of a .csv file; the last column by default."),
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


def data_and_family(
    source: str,
    *,
    model: str | None,
    width: int | None,
    depth: int | None,
    activation: Activation | None,
    examples: int | None,
    seed: int,
    task: TaskName,
    target: str | None,
) -> tuple[Dataset, Family]:
    """The data set and the networks that the options describe.

    Raises:
        typer.BadParameter: options that do not go together, an unknown data set, or a model that
            is not MODULE:FACTORY.
        InvalidInput: a malformed file, or a model that cannot be imported.
    """
    if source not in BUNDLED and not Path(source).is_file():
        raise typer.BadParameter(
            f"'{source}' is neither a file nor one of {', '.join(BUNDLED)}.",
            param_hint="DATASET_OR_FILE",
        )
    if model is not None:
        if depth is not None or activation is not None:
            raise typer.BadParameter(
                "--depth and --activation describe the perceptron, not your own model.",
                param_hint="--model",
            )
        module, colon, factory = model.partition(":")
        if not (module and colon and factory):
            raise typer.BadParameter(
                f"'{model}' is not MODULE:FACTORY, as in mypackage.models:make_network.",
                param_hint="--model",
            )
    choice: TaskChoice = task.value
    data = load(source, examples=examples, seed=seed, task=choice, target=target)
    if model is None:
        name = "relu" if activation is None else str(activation.value)
        perceptron = perceptrons(
            data.features, data.out, width=width or 512, depth=depth or 2, activation=name
        )
        return data, perceptron
    if str(Path.cwd()) not in sys.path:
        # As `python -m` does: a model in the current folder can be imported.
        sys.path.insert(0, str(Path.cwd()))
    return data, imported(model, data.features, data.out, width=width)
