"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import math
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ..plan import Plan

# what np.load raises of a file that is none of its own, or cut short
UNREADABLE = (OSError, ValueError, EOFError, TypeError, MemoryError)
UNREADABLE += (zipfile.BadZipFile, zlib.error)


def count(text: str, low: int = 1) -> int:
    """A whole number from `low` up."""
    if not text.isdecimal() or not low <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low} to 1000000")
    return int(text)


def shape(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    return tuple(count(part.strip()) for part in text.split(","))


def seed(text: str) -> int:
    """A whole number of 63 bits, so that the seeds behind it are of 64."""
    try:
        found = int(text)
    except ValueError:
        found = 1 << 62
    if abs(found) >= 1 << 62:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number of under 2^62")
    return found


def finite(text: str) -> float:
    """A finite number."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a finite number")
    return found


def number(add: Callable, name: str, default: int, about: str, low: int = 1) -> None:
    """An option that takes a whole number from `low` up; its help ends with the default."""
    about = f"{about} (default: {default})"
    add(name, type=partial(count, low=low), default=default, help=about)


def progress_option(add: Callable) -> None:
    about = "progress bars, by tqdm (default: on a terminal, where it is installed)"
    add("--progress", action=argparse.BooleanOptionalAction, default=None, help=about)


def progress(args: argparse.Namespace) -> bool:
    """Are progress bars shown?"""
    if args.progress is None:
        return sys.stderr.isatty() and find_spec("tqdm") is not None
    return args.progress


def suffix(path: str) -> str:
    return Path(path).suffix.lower()


def load(path: str, data: bytes | None = None) -> Plan:
    """The plan of a .fsplan file, or of its bytes; ValueError, one sentence that names it."""
    try:
        return Plan.load(path) if data is None else Plan.from_bytes(data)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror or error}; the path of a .fsplan file is needed"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
