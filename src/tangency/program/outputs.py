"""Which tensor of what a module returns the kernel is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from tangency.errors import InvalidInput

__all__ = ["Output", "listed", "select_output"]

Output: TypeAlias = "int | str | Callable[[Any], Tensor] | None"
"""A place in a tuple, a key or attribute, or a function of what the module returns."""


def select_output(returned: object, output: Output) -> Tensor:
    """The tensor that `output` names of what a module returned.

    Raises:
        InvalidInput: it is no tensor, or nothing of that name was returned; the message lists
            what there is.
    """
    chosen = _chosen(returned, output)
    if isinstance(chosen, Tensor):
        return chosen
    if output is None:
        reason = "the module returns something other than one tensor, which a kernel needs"
    else:
        reason = f"output={output!r} is a {type(chosen).__name__}, not a tensor"
    raise InvalidInput(f"{reason}. {listed(returned)}{_ADVICE}")


_ADVICE = (
    "choose one with output=: a place in a tuple (0), a key or attribute ('logits'), or a function "
    "of what the module returns (lambda out: out[0][:, 0])."
)


def _chosen(returned: Any, output: Output) -> object:
    if output is None:
        return returned
    if callable(output):
        return output(returned)
    try:
        if isinstance(output, int) or isinstance(returned, Mapping):
            return returned[output]
        return getattr(returned, output)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InvalidInput(f"there is no output {output!r}. {listed(returned)}") from error


def listed(returned: object) -> str:
    """What a module returned, in words."""
    if isinstance(returned, Mapping):
        entries = [f"{key!r}: {_described(value)}" for key, value in returned.items()]
    elif isinstance(returned, Sequence) and not isinstance(returned, str):
        entries = [f"{k}: {_described(value)}" for k, value in enumerate(returned)]
    else:
        return f"It returned {_described(returned)}; "
    return f"It returned {type(returned).__name__} of {', '.join(entries)}; "


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    sizes = (str(s) if isinstance(s, int) else "n" for s in value.shape)
    return f"({', '.join(sizes)})"
