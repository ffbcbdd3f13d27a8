"""What commands say on the terminal: errors in one line, stages with their times, numbers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from tangency.errors import TangencyError

__all__ = ["Stages", "complain", "console", "reported"]


def console(*, error: bool = False) -> Console:
    """Standard output (or error); made when needed, so that redirection is seen."""
    return Console(stderr=error, highlight=False, soft_wrap=True)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn errors into one line on standard error and exit code 1, warnings into one line each.

    With `debug` errors pass through with their trace.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        except (typer.Exit, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            complain("interrupted", "stopped")
            raise typer.Exit(130) from None
        except TangencyError as error:
            if debug:
                raise
            complain("error", str(error))
            raise typer.Exit(1) from None
        except Exception as error:
            if debug:
                raise
            complain("error", f"{type(error).__name__}: {error} (--debug shows where)")
            raise typer.Exit(1) from None
        finally:
            for text in dict.fromkeys(
                str(w.message) for w in caught if "tangency" in type(w.message).__module__
            ):
                complain("note", text)


def complain(kind: str, message: str) -> None:
    """One line on standard error; `kind` is "error", "note" or the like."""
    line = " ".join(message.split())
    colour = "red" if kind == "error" else "yellow"
    screen = console(error=True)
    screen.print(f"{kind}: ", style=f"bold {colour}", end="")
    screen.print(line, markup=False)


class Stages:
    """The stages of long work as they begin and end, on a terminal; silence elsewhere."""

    def __init__(self) -> None:
        self._console = console(error=True)
        self._began: float | None = None

    def begin(self, stage: str) -> None:
        """End the stage before, if any, and begin one."""
        self.end()
        if self._console.is_terminal:
            self._console.print(f"[dim]{stage} ...[/dim]")
        self._began = time.perf_counter()

    def end(self) -> None:
        """End the stage in progress."""
        if self._began is not None and self._console.is_terminal:
            self._console.print(f"[dim]  {time.perf_counter() - self._began:.1f} s[/dim]")
        self._began = None
