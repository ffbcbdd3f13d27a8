"""C functions that are written once for all layers that compute alike.

A network repeats itself: what differs between its layers is where numbers lie and some constants.
Pieces of code that differ in nothing else become one function, called with pointers and constants.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Call", "Functions", "Piece", "constant"]

_CONSTANT = re.compile(r"@(\d+)@")


def constant(index: int) -> str:
    """How a piece's text refers to its constant of this index."""
    return f"@{index}@"


@dataclass(frozen=True)
class Piece:
    """Code with open ends.

    Attributes:
        parameters: C declarations without names ("const double *restrict"); the text calls them
            p0, p1, ...
        text: statements, in which `constant(k)` stands for a constant.
        arguments: what the parameters are at this place.
        constants: C literals, with their types.
    """

    parameters: tuple[str, ...]
    text: str
    arguments: tuple[str, ...]
    constants: tuple[tuple[str, str], ...] = ()

    @property
    def form(self) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
        """What pieces that become one function have in common."""
        return self.parameters, self.text, tuple(kind for kind, _ in self.constants)


@dataclass(frozen=True)
class Call:
    """A call of the function that a piece becomes; it can be written when all pieces are known."""

    functions: Functions
    piece: Piece

    def __str__(self) -> str:
        return self.functions.call(self.piece)


class Functions:
    """All functions of one source."""

    def __init__(self) -> None:
        self._forms: dict[object, list[Piece]] = {}

    def add(self, piece: Piece) -> Call:
        """Note a piece; the result reads as its call."""
        self._forms.setdefault(piece.form, []).append(piece)
        return Call(self, piece)

    def _varying(self, piece: Piece) -> list[int]:
        """Constants that differ between the places."""
        alike = self._forms[piece.form]
        values = [{p.constants[k] for p in alike} for k in range(len(piece.constants))]
        return [k for k, found in enumerate(values) if len(found) > 1]

    def _name(self, piece: Piece) -> str:
        return f"piece{list(self._forms).index(piece.form)}"

    def call(self, piece: Piece) -> str:
        """The statement that calls a piece's function."""
        varying = (piece.constants[k][1] for k in self._varying(piece))
        return f"{self._name(piece)}({', '.join((*piece.arguments, *varying))});"

    def text(self) -> str:
        """All definitions."""
        return "\n\n".join(self._definition(alike[0]) for alike in self._forms.values())

    def _definition(self, piece: Piece) -> str:
        varying = self._varying(piece)
        parameters = [f"{kind} p{k}" for k, kind in enumerate(piece.parameters)]
        parameters += [f"const {piece.constants[k][0]} k{k}" for k in varying]

        def written(found: re.Match[str]) -> str:
            index = int(found[1])
            return f"k{index}" if index in varying else piece.constants[index][1]

        text = _CONSTANT.sub(written, piece.text)
        return (
            f"static __attribute__((noinline)) void {self._name(piece)}"
            f"({', '.join(parameters)})\n{{\n{text}\n}}"
        )
