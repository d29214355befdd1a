"""The options that a diffusers class has, and what a config says to them. No diffusers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping

from ...plan.given import plain
from .sources import GRID_OF, OURS, SHIFTED_BY, SOURCES, find


def defaults(library: object, source: str) -> dict:
    """The arguments of a class of `library` (diffusers) and their defaults; ValueError for a class
    that is not reproduced.
    """
    find(source)
    arguments = parameters(getattr(library, source)).items()
    return {name: p.default for name, p in arguments if p.default is not p.empty}


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """What a class reads from its config: its own arguments, and those of the class that lays out
    its grid.
    """
    library = sys.modules[kind.__module__.partition(".")[0]]
    grid = getattr(library, GRID_OF.get(kind.__name__, ("",))[0], None)
    found = [inspect.signature(each.__init__).parameters for each in (grid, kind) if each]
    return {name: p for each in found for name, p in each.items()}


def instance(kind: type, words: Mapping) -> object:
    """A scheduler of the class with these options."""
    if kind.__name__ not in GRID_OF:
        return kind(**words)
    known = parameters(kind)
    own = named(kind.__name__, known)
    return kind.from_config({k: v for k, v in words.items() if k in own or v != known[k].default})


def named(source: str, usual: Iterable[str], own: Iterable[str] | None = None) -> list[str]:
    """Of all that a class reads (usual), what stands in every config of it; of our own options."""
    names = GRID_OF[source][1] if source in GRID_OF else usual
    return [name for name in names if own is None or name in own]


def own_config(config: dict, usual: dict) -> dict:
    """What an FsScheduler's config and its source's (with these defaults) both say, so that
    pipelines and other classes read no more there.

    _use_default_values, as diffusers has it: what nobody gave, and what another class has a default
    of its own for.
    """
    unset = config.get("_use_default_values", ())
    kept = {k: v for k, v in config.items() if k in usual or k in OURS or (k == "moved" and v)}
    kept |= {k: _number(k, kept[k], usual[k]) for k in kept.keys() & usual.keys()}
    own = named(config["source"], usual)
    kept = {k: v for k, v in kept.items() if k in own or k not in usual or v != usual[k]}
    kept |= {k: config[k] for k, v in SHIFTED_BY.items() if config.get(k, v) != v}
    unset = [k for k in unset if k in own and config[k] == usual[k]]
    return kept | ({"_use_default_values": unset} if unset else {})


def _number(key: str, value: object, usual: object) -> object:
    """An option whose default (usual) is a number, or that may be one in place of None, as Python's
    own; any other as it is. ValueError for what is no number there.
    """
    value = plain(value)
    counted = isinstance(usual, (int, float)) and not isinstance(usual, bool)
    if not counted and key not in ("sigma_min", "sigma_max", "shift_terminal"):
        return value
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise ValueError(f"FsScheduler: {key} = {value!r:.60}; a number is accepted")


def said(config: dict, source: str, usual: dict, own: Iterable[str], moved: bool) -> dict:
    """What a config says to the source. moved: it is another class's, and says nothing where nobody
    gave it anything.

    ValueError for an option of the source that is not among our own and not at its default (usual).
    """
    left_out = OURS | set(config.get("_use_default_values", ()) if moved else ())
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in left_out}
    for key in usual.keys() - own:
        if given.get(key, usual[key]) != usual[key]:
            raise ValueError(
                f"FsScheduler: {key} = {given[key]!r} of {source} is not known here; "
                f"{usual[key]!r} is accepted"
            )
    return given


def class_of(library: object, config: dict, source: str | None) -> str | None:
    """The class whose arguments a config has: one that was made here, and not loaded, does not
    write its name into it. A dict that no scheduler wrote, which says what nobody gave, may have a
    part of them: it is in the words of the source, where it can be. source: None where nothing
    else says it; ValueError where the arguments do not. Otherwise None, or of several classes with
    one set of arguments one that is reproduced.
    """
    keys, found = {k for k in config if not k.startswith("_")}, []
    some = len(keys) == len(config) > 0
    if some and keys <= _arguments(getattr(library, source or "", None)):
        return source
    for name in (n for n in dir(library) if n.endswith("Scheduler")):
        known = _arguments(getattr(library, name))
        found += [name] * (keys <= known if some and not source else keys == known)
    # a Parallel one is the same scheduler, with one method more
    found = [n for n in found if "Parallel" not in n or n.replace("Parallel", "") not in found]
    if not source and len(found) != 1:
        raise ValueError(
            f"FsScheduler.from_config: the config names no class and fits "
            f"{', '.join(found[:4]) or 'none'}{', ..' * (len(found) > 4)}; the scheduler itself, "
            "or source=, is accepted"
        )
    return next((name for name in found if name in SOURCES), *found[:1] or [None])


def _arguments(made: object) -> set[str]:
    """What a scheduler's class is made with; nothing of what is none."""
    if not (isinstance(made, type) and hasattr(made, "config_name")):
        return set()
    return {*inspect.signature(made.__init__).parameters} - {"self", "kwargs"}
