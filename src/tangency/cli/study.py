"""`tangency study`: one network on one data set, from its kernel to its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tangency.cli import options
from tangency.cli.terminal import Stages, console, reported
from tangency.report.page import check_available, write
from tangency.report.words import headline, number
from tangency.study import Study
from tangency.study import study as run_study

__all__ = ["EXAMPLES", "HELP", "command"]

HELP = (
    "Study a network on a data set: its kernel at finite and infinite width, what it learns when, "
    "what training was predicted to do and what it did. Prints a summary and writes a report."
)
EXAMPLES = """\b
Examples:
  tangency study digits
  tangency study wine --depth 3 --activation gelu --out wine.html
  tangency study measurements.csv --target yield --task regression
  tangency study digits --model mypackage.models:make_network --steps 1000
"""


def command(
    dataset: options.Data,
    model: options.Model = None,
    width: options.Width = None,
    depth: options.Depth = None,
    activation: options.ActivationName = None,
    examples: options.Examples = None,
    steps: Annotated[int, typer.Option(min=1, help="Of gradient descent.")] = 300,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of gradient descent; by default half of the largest stable one."),
    ] = None,
    seed: options.Seed = 0,
    task: options.Task = options.TaskName.AUTO,
    target: options.Target = None,
    out: Annotated[Path, typer.Option(help="The report, one HTML file.")] = Path("report.html"),
    debug: options.Debug = False,
) -> None:
    """Run the study, print its summary and write its report."""
    with reported(debug):
        check_available()
        if not out.resolve().parent.is_dir() or out.is_dir():
            raise typer.BadParameter(f"cannot write to '{out}'.", param_hint="--out")
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
        stages = Stages()
        found = run_study(
            data,
            family,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
            on_stage=stages.begin,
        )
        stages.begin("report")
        path = write(found, out)
        stages.end()
        _summarise(found, path)


def _summarise(study: Study, path: Path) -> None:
    screen = console()
    check, data = study.check, study.data
    screen.print()
    screen.print(f"[bold]{study.network}[/bold] on [bold]{data.name}[/bold]")
    screen.print(
        f"{study.parameters:,} parameters, {len(data.x_train)} training and "
        f"{len(data.x_test)} test examples"
    )
    screen.print(f"\n[bold]{check.regime}[/bold]: {headline(study)}\n")
    losses = Table(box=None, pad_edge=False, title="Training", title_justify="left")
    for name in ("loss", "start", "end", "end, predicted", "end, infinite width"):
        losses.add_column(name, justify="left" if name == "loss" else "right")
    series = (
        ("training", check.loss, check.loss_empirical, check.loss_infinite),
        ("test", check.test_loss, check.test_loss_empirical, check.test_loss_infinite),
    )
    for name, actual, empirical, infinite in series:
        if actual is not None and empirical is not None:
            limit = "-" if infinite is None else number(float(infinite[-1]))
            cells = (actual[0], actual[-1], empirical[-1])
            losses.add_row(name, *(number(float(c)) for c in cells), limit)
    screen.print(losses)
    screen.print(
        f"{int(check.steps[-1]):,} steps with learning rate {number(check.learning_rate)} "
        f"(stable below {number(check.max_learning_rate)})\n"
    )
    scores = Table(box=None, pad_edge=False, title="Test", title_justify="left")
    scores.add_column("answers by")
    scores.add_column("accuracy" if data.classes else "R²", justify="right")
    if not data.classes:
        scores.add_column("error", justify="right")
    for score in study.scores:
        if score.accuracy is not None:
            scores.add_row(score.name, f"{score.accuracy:.1%}")
        else:
            scores.add_row(score.name, f"{score.value:.3f}", number(score.rmse or 0.0))
    screen.print(scores)
    if study.convergence is None:
        reason = (study.convergence_reason or "").rstrip(".")
        screen.print(f"\nNo convergence with width: {reason}.", markup=False)
    else:
        screen.print(
            f"\nDistance from infinite width: {float(study.convergence.mean[0]):.0%} at width "
            f"{int(study.convergence.widths[0])}, {float(study.convergence.mean[-1]):.0%} at "
            f"{int(study.convergence.widths[-1])} "
            f"(falls as width to the power {study.convergence.slope:.2f}; theory: -0.5)"
        )
    screen.print(f"\nReport: {path}  [dim]({study.seconds:.0f} s)[/dim]", soft_wrap=True)
