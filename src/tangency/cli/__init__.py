"""The command line: `tangency study`, `tangency kernel`, `tangency spectrum`."""

from tangency.cli.app import main

__all__ = ["main"]
