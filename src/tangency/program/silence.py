"""What `torch.export` prints of a module that it cannot record: the exception says it as well."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator

__all__ = ["failures_unprinted"]

_LOGGER = logging.getLogger("torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def failures_unprinted() -> Iterator[None]:
    """Keep the standard error stream for what succeeds; the half of a graph that a failure leaves,
    and the remark that goes with it, are dropped.
    """
    printed = io.StringIO()
    _LOGGER.addFilter(_is_of_use)
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        _LOGGER.removeFilter(_is_of_use)
    sys.stderr.write(printed.getvalue())


def _is_of_use(record: logging.LogRecord) -> bool:
    return "Unable to find user code" not in str(record.msg)
