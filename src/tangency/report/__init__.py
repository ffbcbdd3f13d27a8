"""The report: a study as one HTML page that needs no network."""

from tangency.report.page import render, write

__all__ = ["render", "write"]
