"""HTML and SVG in which no string can be anything but text: what is not Markup is escaped."""

from __future__ import annotations

import html
from typing import Any

from .text import printable

VOID = {"meta", "img"}  # elements without an end


class Markup(str):
    """Text that is markup already; `tag` and `join` alone make it."""

    __slots__ = ()


def tag(name: str, /, *inside: Any, **attributes: Any) -> Markup:
    """The element `name` around `inside`, each Markup or text to escape.

    attributes: a trailing _ is dropped, others become -; None leaves one out, True makes it bare.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None:
            words.append(f'{key}="{_text(value)}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in VOID else f"{start}{join(*inside)}</{name}>")


def join(*inside: Any) -> Markup:
    """One after the other, each Markup or text to escape."""
    return Markup("".join(part if isinstance(part, Markup) else _text(part) for part in inside))


def _text(value: Any) -> str:
    text = str(value)  # nearly all of it is printable, and to look at every character takes long
    return html.escape(text if text.isprintable() else printable(text))
