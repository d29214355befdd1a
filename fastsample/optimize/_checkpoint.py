"""What a long search has finished, in a folder: `search.json` says what was asked and what each
finished part found, and names the .npz beside it that holds the arrays of all parts.

Both are written whole, the .npz first and under a name of its own, so that a search that is killed
at any moment finds one of the two states. Nothing in them is code: strict JSON, and arrays without
pickles, each of bounded size.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import folder_for, make_folder, write_whole
from ..plan.note import load_note
from ._fingerprint import Sketch, apart

STATE = "search.json"
MOST_TEXT, MOST_ARRAYS = 64 << 20, 4 << 30  # bytes
BEFORE, SHOWN = 24, 80  # characters of a refusal: before the first that differs, and in all


class Checkpoint:
    """The finished parts of one search. folder: None keeps them in memory alone.

    asked: JSON that says which search it is; another one's folder is refused, so that nothing of it
    is lost. sketched: `sketches` of its conditions, which may differ by rounding. writes: False for
    all but one of several processes.
    """

    def __init__(
        self,
        where: str,
        folder: Any,
        asked: Mapping[str, Any],
        sketched: Mapping[str, Sketch] | None = None,
    ):
        self._where, self._asked = where, json.loads(json.dumps(asked))
        self._sketched = dict(sketched or {})
        self._folder = None if folder is None else folder_for(folder, f"{where}: checkpoint")
        self.writes = True
        self.done: dict[str, Any] = {}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        if self._folder is not None:
            self._read()

    def part(self, name: str, make: Callable[[], tuple[Any, Mapping[str, np.ndarray]]]) -> Any:
        """What part `name` found, as JSON: that of before, or what `make` finds now, with its
        arrays.
        """
        if name not in self.done:
            self.keep(name, *make())
        return self.done[name]

    def keep(self, name: str, said: Any, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Part `name` has found this; written before anything else is begun."""
        self.done[name] = json.loads(json.dumps(said))
        self.arrays[name] = dict(arrays or {})
        if self._folder is not None and self.writes:
            self._write()

    def _write(self) -> None:
        make_folder(self._folder)
        data = io.BytesIO()
        flat = {f"{n}/{k}": v for n, part in self.arrays.items() for k, v in part.items()}
        np.savez(data, **flat)
        name = f"search-{hashlib.sha256(data.getbuffer()).hexdigest()[:16]}.npz"
        write_whole(self._folder / name, data.getvalue())
        said = {"asked": self._asked, "arrays": name, "done": self.done}
        said["sketched"] = {where: [one.size, one.rows] for where, one in self._sketched.items()}
        write_whole(self._folder / STATE, json.dumps(said, sort_keys=True, indent=1).encode())
        for old in self._folder.glob("search-*.npz"):
            if old.name != name:
                old.unlink()

    def _read(self) -> None:
        path = self._folder / STATE
        if not path.exists():
            return
        if path.stat().st_size > MOST_TEXT:
            self._refuse(f"is larger than {MOST_TEXT} bytes")
        said = load_note(path.read_bytes(), str(path))
        asked, done = (said.get(name) for name in ("asked", "done"))
        parts = done.values() if isinstance(done, dict) else [done]
        spent = all(isinstance(one, dict) and {"rows", "seconds"} <= one.keys() for one in parts)
        if not (isinstance(asked, dict) and spent):
            self._refuse("holds no search")
        for name, ours in self._asked.items():
            if asked.get(name) != ours:
                self._other(name, asked.get(name), ours)
        self._compare(said.get("sketched"))
        self.done = done
        self.arrays = {name: {} for name in self.done}
        for name, value in self._loaded(self._folder / Path(str(said.get("arrays"))).name).items():
            part, _, own = name.partition("/")
            self.arrays.setdefault(part, {})[own] = value

    def _compare(self, sketched: Any) -> None:
        """Refuse conditions that differ by more than rounding."""
        for name, ours in self._sketched.items():
            theirs = sketched.get(name) if isinstance(sketched, dict) else None
            rows = apart(theirs, ours)
            if rows is not None:
                self._other(f"conditions{name}", *rows)

    def _other(self, name: str, theirs: Any, ours: Any) -> None:
        """Refuse another search's folder, with a few words before what differs."""
        ordered = lambda told: repr(json.loads(json.dumps(told, sort_keys=True)))
        there, here = ordered(theirs), ordered(ours)
        first = len(os.path.commonprefix([there, here]))
        begin = max(there.rfind(" ", 0, max(first - BEFORE, 0)) + 1, first - 2 * BEFORE, 0)
        there, here = (f"{'...' * (begin > 0)}{one[begin:][:SHOWN]}" for one in (there, here))
        raise ValueError(
            f"{self._where}: the checkpoint {self._folder} is of another search: {name} is {there} "
            f"there and {here} here; another folder, or the same arguments, is accepted"
        )

    def _loaded(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with zipfile.ZipFile(path) as held:
                if sum(one.file_size for one in held.infolist()) > MOST_ARRAYS:
                    self._refuse(f"holds arrays of more than {MOST_ARRAYS} bytes")
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            self._refuse(f"cannot be read ({error})")

    def _refuse(self, why: str) -> None:
        raise ValueError(
            f"{self._where}: the checkpoint {self._folder} {why}; a folder that a search has "
            "written, or a new one, is accepted"
        )
