"""All suites by name."""

from __future__ import annotations

from cases import Suite
from convolutional import CONVOLUTIONAL
from fully_connected import FULLY_CONNECTED

__all__ = ["SUITES"]

SUITES: dict[str, Suite] = {suite.name: suite for suite in (FULLY_CONNECTED, CONVOLUTIONAL)}
