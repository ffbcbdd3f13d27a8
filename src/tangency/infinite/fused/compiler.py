"""Compiles C text and loads it; what was compiled once is found again on disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["CompilerMissing", "compiled", "find_compiler"]

FLAGS = (
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp-simd",
    "-shared",
    "-fPIC",
)
"""Vectorise, contract a * b + c; nothing that lets numbers be infinite or reorders sums."""

PLAIN = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp-simd", "-shared", "-fPIC")
"""For compilers that do not know all of `FLAGS`."""


class CompilerMissing(Exception):
    """There is no C compiler, or it fails; the message says which."""


@cache
def find_compiler() -> str:
    """The path of a C compiler: `$CC`, cc, gcc or clang.

    Raises:
        CompilerMissing: none is on the path.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    raise CompilerMissing("no C compiler (cc, gcc or clang) is on the path")


@cache
def compiled(source: str) -> ctypes.CDLL:
    """The loaded library of a C text, from the cache in memory or on disk.

    Raises:
        CompilerMissing: no compiler, or none that compiles the text.
    """
    compiler = find_compiler()
    errors = ""
    for flags in (FLAGS, PLAIN):
        library = _folder() / f"{_key(source, compiler, flags)}.so"
        if not library.exists():
            errors = _compile(source, compiler, flags, library)
        if library.exists():
            return ctypes.CDLL(str(library))
    first = errors.strip().splitlines()[0] if errors.strip() else "no message"
    raise CompilerMissing(f"{compiler} does not compile the kernel: {first}")


def _compile(source: str, compiler: str, flags: tuple[str, ...], library: Path) -> str:
    """Compile into the cache, atomically; the compiler's messages."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        text, made = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        text.write_text(source)
        command = [compiler, *flags, "-o", str(made), str(text), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            os.replace(made, library)
        return done.stderr


def _folder() -> Path:
    """The user's folder of compiled kernels, readable by the user alone."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tangency" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder
    except OSError:
        return _temporary()


@cache
def _temporary() -> Path:
    """Where no folder of the user can be written: one that lasts as long as the process."""
    return Path(tempfile.mkdtemp(prefix="tangency-"))


def _key(source: str, compiler: str, flags: tuple[str, ...]) -> str:
    """What the compiled code depends on: text, compiler, flags and, for them, the processor."""
    parts = (source, _version(compiler), *flags, platform.machine(), _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@cache
def _processor() -> str:
    """What instructions the processor knows, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
