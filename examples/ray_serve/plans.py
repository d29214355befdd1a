"""Plans by name, from a folder that is watched."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import fastsample as fs

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Plans:
    """The .fsplan files of a folder. A file that changed is read again by the next who asks; those
    who run keep the plan that they began with.

    most_evaluations, most_rows: of a plan; one with more is refused. most_bytes: of a file.
    """

    def __init__(
        self,
        folder: str,
        most_evaluations: int = 200,
        most_rows: int = 1000,
        most_bytes: int = 1 << 20,
    ) -> None:
        self.folder, self._most = Path(folder), (most_evaluations, most_rows, most_bytes)
        self._held: dict[str, tuple] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Of the files that are there now, in order."""
        found = (path.stem for path in self.folder.glob("*.fsplan"))
        return sorted(name for name in found if NAME.fullmatch(name))

    def get(self, name: object) -> fs.Plan:
        """The plan of this name as its file is now; of a file that is no plan, as it is while
        somebody writes it, the one that stood there before. ValueError, one sentence.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"plan: {name!r:.80}; a name of 1 to 64 letters, digits, '.', '_' and '-' is "
                "accepted"
            )
        path = self.folder / f"{name}.fsplan"
        with self._lock:
            try:
                stat = path.stat()
            except OSError:
                self._held.pop(name, None)
                known = ", ".join(self.names()[:20]) or "none"
                raise ValueError(f"plan: there is no {name!r}; {known} are accepted") from None
            version = stat.st_mtime_ns, stat.st_size, stat.st_ino
            held = self._held.get(name)
            if held is None or held[0] != version:
                try:
                    held = version, self._read(name, path, stat.st_size)
                except ValueError:
                    if held is None:
                        raise
                self._held[name] = held
            return held[1]

    def _read(self, name: str, path: Path, size: int) -> fs.Plan:
        evaluations, rows, most = self._most
        if size > most:
            raise ValueError(f"plan: {name!r} has {size} bytes; {most} at most are accepted")
        try:
            plan = fs.Plan.load(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"plan: {name!r}: {error}") from None
        if plan.nfe > evaluations or plan.rows > rows:
            raise ValueError(
                f"plan: {name!r} has {plan.nfe} evaluations in {plan.rows} rows; {evaluations} in "
                f"{rows} at most are accepted"
            )
        return plan
