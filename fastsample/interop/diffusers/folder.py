"""A folder that `save_pretrained` of a diffusers pipeline wrote: what it says before anything is
loaded, and the pipeline of it.
"""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from . import whole

INDEX = "model_index.json"
# components that turn prompts and images into conditions, or judge pictures
TEXTS = ("text_encoder", "bert")
ENCODERS = (*TEXTS, "tokenizer", "image_encoder", "feature_extractor", "safety_checker")
# the keyword's name, which changed
NEW = tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42)
DTYPE = "dtype" if NEW else "torch_dtype"


@dataclass(frozen=True)
class Folder:
    """kind: the pipeline's class; index: the folder's model_index.json."""

    path: Path
    kind: type
    index: Mapping

    @classmethod
    def read(cls, path: str | Path) -> Folder:
        """ValueError, one sentence, for a folder that names no pipeline of this diffusers."""
        try:
            index = whole.read_json(Path(path, INDEX))
        except OSError as error:
            raise ValueError(
                f"{path}: {INDEX}: {error.strerror or error}; a folder that save_pretrained of a "
                "diffusers pipeline wrote, or `hf download NAME --local-dir DIR`, is needed"
            ) from None
        name = index.get("_class_name") if isinstance(index, dict) else None
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
            raise ValueError(
                f"{path}: {INDEX} names the class {name!r:.60}, which diffusers "
                f"{diffusers.__version__} has not; one of its pipelines is accepted"
            )
        return cls(Path(path), kind, index)

    @cached_property
    def takes(self) -> dict[str, str]:
        """The arguments of the pipeline's call, and what each is annotated as."""
        named = lambda kind: kind if isinstance(kind, str) else inspect.formatannotation(kind)
        return {name: named(word.annotation) for name, word in self._call.items()}

    @cached_property
    def _call(self) -> dict[str, inspect.Parameter]:
        words = [*inspect.signature(self.kind.__call__).parameters.values()][1:]
        return {w.name: w for w in words if w.kind not in (w.VAR_POSITIONAL, w.VAR_KEYWORD)}

    @property
    def needs(self) -> list[str]:
        """Those without a default."""
        return [name for name, word in self._call.items() if word.default is word.empty]

    @property
    def defaults(self) -> dict[str, Any]:
        """Those that have one, and which."""
        return {n: w.default for n, w in self._call.items() if w.default is not w.empty}

    @cached_property
    def _kinds(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.kind.__call__)
        except Exception:  # text that names what is not there, or is no annotation: any of them
            return {}

    def fits(self, name: str, value: object) -> bool:
        """Is a value that JSON can say one of what an argument of the call is annotated as?"""
        return _is(value, self._kinds.get(name, Any))

    def taken(self, name: str, value: object) -> Any:
        """A value that fits, as the call takes it: a tuple where JSON has a list."""
        return _taken(value, self._kinds.get(name, Any))

    @property
    def reads_prompts(self) -> bool:
        """Is there a component that encodes text?"""
        return any(name.startswith(TEXTS) for name in self.parts)

    @property
    def parts(self) -> list[str]:
        """The components that are there."""
        return [name for name, entry in self.index.items() if _is(entry, tuple[str, str])]

    def load(self, dtype: torch.dtype = torch.float32, *, encoders: bool = True) -> Any:
        """The pipeline, from this folder alone; without its encoders where conditions come from
        elsewhere. ValueError, one sentence, for a folder that is not whole, before anything of it
        is loaded, and for one that diffusers cannot load.
        """
        parts = inspect.signature(self.kind.__init__).parameters
        left = [name for name in parts if name.startswith(ENCODERS) and not encoders]
        # a name there may be of a number or a list of the pipeline's own, which is no component
        left = [name for name in left if name in self.parts or name not in self.index]
        left += [name for name, entry in self.index.items() if entry == [None, None]]
        words = {DTYPE: dtype, "local_files_only": True, **dict.fromkeys(left)}
        for name in self.parts:
            if name not in left:
                has = whole.variant(self.path / name, self._has_weights(name))
                words |= {"variant": has} if has else {}
        try:
            with _silent():
                pipe = self.kind.from_pretrained(str(self.path), **words)
        except Exception as error:
            raise ValueError(
                f"{self.path}: diffusers {diffusers.__version__} cannot load it "
                f"({said(error)}); a folder that it wrote, of classes that it has, is accepted"
            ) from error
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _has_weights(self, name: str) -> bool:
        """Is a component a network? ValueError for a class that its library has not."""
        library, kind = self.index[name][:2]
        if library not in ("diffusers", "transformers"):
            return False
        theirs = importlib.import_module(library)
        found = getattr(theirs, kind, None)
        if found is None:
            raise ValueError(
                f"{self.path}: {INDEX} says that {name} is a {kind!r:.60}, which {library} "
                f"{theirs.__version__} has not; a class that it has is accepted"
            )
        return isinstance(found, type) and issubclass(found, torch.nn.Module)


def said(error: BaseException) -> str:
    """A foreign error in one line: its name, and its first 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


@contextmanager
def _silent() -> Iterator[None]:
    """No progress bars of diffusers and of transformers, which loads the encoders."""
    diffusers.utils.logging.disable_progress_bar()
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _is(value: object, kind: object) -> bool:
    """Is a value of JSON one of this annotation? A tensor, an image or a callable is none; a list
    is a tuple.
    """
    if kind is Any:  # a class since Python 3.11, of which nothing is an instance
        return True
    kinds = typing.get_args(kind)
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, each) for each in kinds)
    if origin is typing.Literal:
        return value in kinds
    if isinstance(value, bool) or not isinstance(origin, type):
        return kind is bool or (value is None and kind is None)
    if origin is float:
        return isinstance(value, (int, float))
    if isinstance(value, list) and (origin is tuple or issubclass(list, origin)):
        each = _each(len(value), origin, kinds)
        return len(each) == len(value) and all(map(_is, value, each))
    return isinstance(value, origin)


def _each(n: int, origin: object, kinds: tuple) -> tuple:
    """The annotations of n members: of a tuple of several its own, else one for all."""
    fixed = origin is tuple and len(kinds) > 1 and kinds[-1] is not Ellipsis
    return kinds if fixed else (kinds[:1] or (Any,)) * n


def _taken(value: object, kind: object) -> Any:
    """A value of JSON that is one of this annotation, with tuples where it says so."""
    kinds = typing.get_args(kind)
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return _taken(value, next(each for each in kinds if _is(value, each)))
    if not isinstance(value, list):
        return value
    made = [*map(_taken, value, _each(len(value), origin, kinds))]
    return tuple(made) if origin is tuple else made
