"""Files that appear whole or not at all: written under another name beside, then renamed."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

NEEDED = "a file name in a folder that exists is accepted"


def write_whole(path: Any, data: bytes) -> None:
    """Write `data` to the file `path` whole or not at all; whatever goes wrong, Ctrl-C included,
    the old file stays and nothing else does.

    path: str, bytes or os.PathLike. A symbolic link stays, and the file it leads to is replaced, or
    made where its folder exists. A new file has the mode that open() gives (0666 less the umask, or
    the folder's default ACL). An old one keeps its mode, and its owner and group as far as this
    user may set them; it is a new inode: other hard links keep the old data, extended attributes
    go. Raises TypeError, ValueError or OSError, one sentence.
    """
    target, old = place(path)
    folder = os.path.dirname(target)
    # The file's own name may be as long as a name can be.
    temporary = os.path.join(folder, f".fastsample-{os.urandom(8).hex()}")
    # The kernel takes the umask off; to read and set it would be every thread's business.
    mode = 0o666 if old is None else 0o600
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if old is not None:
            _keep(temporary, old)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        where = f"save: {os.fsdecode(path)} could not be written in the folder {folder}"
        raise type(error)(
            f"{where} ({error.strerror or error}); a folder that can be written, with room, is "
            "accepted"
        ) from None


def place(path: Any) -> tuple[str, os.stat_result | None]:
    """Where write_whole would write, links followed, and the status of the file there, None for a
    new one. Nothing is touched.

    Raises as write_whole does, for all that can be known beforehand.
    """
    name = named(path, "save")
    try:
        old = os.stat(name)
    except FileNotFoundError:
        old = None
    except OSError as error:
        raise type(error)(f"save: {name} leads to no file ({error.strerror}); {NEEDED}") from None
    try:
        target = os.path.realpath(name)
    except FileNotFoundError:
        gone = f"save: {name} lies in a working folder that is gone; {NEEDED}"
        raise FileNotFoundError(gone) from None
    folder = os.path.basename(name) in ("", ".", "..") or (old and stat.S_ISDIR(old.st_mode))
    if folder or not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"save: {name} is a folder, or lies in none; {NEEDED}")
    if old is None and not os.access(os.path.dirname(target), os.W_OK | os.X_OK):
        raise PermissionError(f"save: {name} lies in a folder that cannot be written; {NEEDED}")
    if old and not stat.S_ISREG(old.st_mode):
        raise FileExistsError(
            f"save: {name} is no regular file ({stat.filemode(old.st_mode)}); a file, or a new "
            "name, is accepted"
        )
    if old and not os.access(target, os.W_OK):
        raise PermissionError(
            f"save: {name} is protected from writing ({stat.filemode(old.st_mode)}); another name "
            "is accepted"
        )
    return target, old


def named(path: Any, where: str) -> str:
    """The path as text; TypeError for what is none, ValueError for a name that no file has."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(
            f"{where}: the path is {path!r:.80}, a {type(path).__name__}; a str, bytes or "
            "os.PathLike is accepted"
        )
    name = os.fsdecode(path)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: the path is {ascii(name)}; a name that the file system can write is accepted"
        ) from None
    if not name or "\0" in name:
        raise ValueError(
            f"{where}: the path is {name!r}; a name, without a null character, is accepted"
        )
    return name


def folder_for(path: Any, where: str) -> Path:
    """The path, once a folder can be written or made there as far as that is known without touching
    anything; ValueError, which begins with `where`, if not: before the work that fills it.
    """
    folder = Path(named(path, where))
    # it, or the nearest above it that is there
    there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{where} {folder}: {there} is no folder that can be written; the name of a folder, "
            "new or writable, is needed"
        )
    return folder


def make_folder(path: Any) -> Path:
    """The folder, made with those above it where it is not there. Raises OSError, one sentence,
    where something else is in the way.
    """
    folder = Path(named(path, "save"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"save: the folder {folder} cannot be made ({error.strerror}); the name of a folder is "
            "accepted"
        ) from None
    return folder


def _keep(name: str, old: os.stat_result) -> None:
    """Owner and group of the old file, then its mode: a change of owner takes bits off."""
    for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
        with suppress(OSError, AttributeError):  # only root gives files away; Windows has no owners
            os.chown(name, owner, group)
    os.chmod(name, stat.S_IMODE(old.st_mode))
