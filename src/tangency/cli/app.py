"""The application: its commands and its entry point."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from tangency.cli import kernel, spectrum, study
from tangency.cli.terminal import complain

__all__ = ["app", "main"]

app = typer.Typer(
    name="tangency",
    help="The neural tangent kernel for PyTorch: what a network learns, when, and how far the "
    "theory holds for it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("study", help=study.HELP, epilog=study.EXAMPLES)(study.command)
app.command("kernel", help=kernel.HELP, epilog=kernel.EXAMPLES)(kernel.command)
app.command("spectrum", help=spectrum.HELP, epilog=spectrum.EXAMPLES)(spectrum.command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if all went well, 1 on failure, 2 on bad usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=given or ["--help"], prog_name="tangency", standalone_mode=False)
    except Exception as error:
        # Whether the usage errors are click's or typer's own depends on the version of typer.
        if not hasattr(error, "format_message"):
            raise
        complain("error", f"{error.format_message()} (--help shows the usage)")
        code = getattr(error, "exit_code", 2)
    sys.exit(code if isinstance(code, int) else 0)
