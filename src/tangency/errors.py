"""The errors that Tangency raises; every one derives from `TangencyError`."""

from __future__ import annotations

__all__ = [
    "InvalidInput",
    "MissingDependency",
    "SingularKernel",
    "TangencyError",
    "UnsupportedOperation",
]


class TangencyError(Exception):
    """Base class of all errors that Tangency raises on purpose."""


class InvalidInput(TangencyError, ValueError):
    """Data, shapes or arguments that cannot be worked with; refused before any work."""


class UnsupportedOperation(TangencyError):
    """An operation of the module that has no rule.

    The message names the module path, the operation, the source line and what to do.
    """


class SingularKernel(TangencyError):
    """A kernel matrix that must be inverted is singular and no ridge was given."""


class MissingDependency(TangencyError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    @classmethod
    def for_extra(cls, package: str, extra: str) -> MissingDependency:
        """The error for `package`, which the optional extra `extra` installs."""
        return cls(f"{package} is not installed; install it with: pip install 'tangency[{extra}]'")
