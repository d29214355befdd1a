"""The folder of plans: a workflow keeps a plan's name, and its file is looked for here alone."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from fastsample import Plan
from fastsample.files import make_folder, write_whole

FOLDER = Path(__file__).parent / "plans"
SEARCHES = ".searches"  # where unfinished and finished searches are kept, by the plan's name
ANSWERS = "answers.npy"  # of the model that a search asks, in its folder
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def checked(name: object) -> str:
    """The name of a plan; ValueError, one sentence, for what could lead out of the folder."""
    if not isinstance(name, str) or NAME.fullmatch(name) is None or not name.strip("."):
        raise ValueError(
            f"fastsample: the plan's name is {name!r:.80}; 1 to 64 letters, digits, '.', '_' and "
            "'-', the name of a file in the pack's folder plans, are accepted"
        )
    return name


def path_of(name: object) -> Path:
    """The plan's file, there or not; ValueError for a name that leads out of the folder."""
    path = FOLDER / f"{checked(name)}.fsplan"
    if path.resolve().parent != FOLDER.resolve():
        raise ValueError(
            f"fastsample: the plan {name} is a link out of the pack's folder plans; a file there "
            "is accepted"
        )
    return path


def names() -> list[str]:
    """The plans at hand."""
    found = sorted(path.stem for path in FOLDER.glob("*.fsplan") if path.is_file())
    return [name for name in found if NAME.fullmatch(name) and name.strip(".")]


def load(name: object) -> Plan:
    """The plan of this name; ValueError, one sentence, where there is none."""
    path = path_of(name)
    if not path.is_file():
        raise ValueError(
            f"fastsample: there is no plan {name!r}; one of {', '.join(names()) or 'none yet'}, or "
            "a file put into the pack's folder plans, is accepted"
        )
    try:
        return Plan.load(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"fastsample: the file of the plan {name} cannot be read ({error}); a whole .fsplan "
            "file in the pack's folder plans is accepted"
        ) from None


def place_for(name: object) -> tuple[Path, Path]:
    """Where a search for a plan of this name keeps the plan, and what it has finished. ValueError
    where the name is a plan's that no search of this name made: it would be lost.
    """
    path, kept = path_of(name), FOLDER / SEARCHES / checked(name)
    if path.exists() and not kept.exists():
        raise ValueError(
            f"fastsample: the plan {name!r} is there already and was not searched here; another "
            "name is accepted"
        )
    return path, kept


def save(plan: Plan, path: Path) -> None:
    """Write the plan, whole or not at all."""
    make_folder(path.parent)
    plan.save(path)


def answers(folder: Path) -> np.ndarray | None:
    """What the model of the search in this folder answered; None where none has finished a part."""
    try:
        return np.load(folder / ANSWERS, allow_pickle=False) if _begun(folder) else None
    except (OSError, ValueError):
        return None


def keep_answers(folder: Path, found: np.ndarray) -> None:
    """Keep them before a search begins, so that they are there however it ends."""
    if np.isfinite(found).all() and answers(folder) is None:
        data = io.BytesIO()
        np.save(data, found)
        make_folder(folder)
        write_whole(folder / ANSWERS, data.getvalue())


def forget(folder: Path) -> None:
    """Leave nothing of a search that has finished no part."""
    if not _begun(folder):
        (folder / ANSWERS).unlink(missing_ok=True)
        with suppress(OSError):  # not there, or somebody's
            folder.rmdir()


def _begun(folder: Path) -> bool:
    return (folder / "search.json").exists()
