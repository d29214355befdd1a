"""A folder that `save_pretrained` of a diffusers pipeline wrote: what it says before anything is
loaded, and the pipeline of it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

INDEX = "model_index.json"
# components that turn prompts and images into conditions, or judge pictures
ENCODERS = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor", "safety_checker")
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
            index = json.loads(Path(path, INDEX).read_text("utf-8"))
        except OSError as error:
            raise ValueError(
                f"{path}: {INDEX}: {error.strerror or error}; a folder that save_pretrained of a "
                "diffusers pipeline wrote is needed"
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{path}: {INDEX} is no sound JSON ({error}); one that diffusers wrote is needed"
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
    def takes(self) -> list[str]:
        """The arguments of the pipeline's call."""
        return [*inspect.signature(self.kind.__call__).parameters][1:]

    def holds(self, part: str) -> bool:
        """Is there a component whose name begins so?"""
        entries = [v for name, v in self.index.items() if name.startswith(part)]
        return any(isinstance(v, list) and v[:1] != [None] for v in entries)

    def load(self, dtype: torch.dtype = torch.float32, *, encoders: bool = True) -> Any:
        """The pipeline, from this folder alone; without its encoders where conditions come from
        elsewhere.
        """
        parts = inspect.signature(self.kind.__init__).parameters
        left = [name for name in parts if name.startswith(ENCODERS) and not encoders]
        left += [name for name, entry in self.index.items() if entry == [None, None]]
        words = {DTYPE: dtype, "local_files_only": True, **dict.fromkeys(left)}
        diffusers.utils.logging.disable_progress_bar()
        try:
            pipe = self.kind.from_pretrained(str(self.path), **words)
        except (KeyError, AssertionError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.path}: diffusers cannot load it ({why})") from error
        pipe.set_progress_bar_config(disable=True)
        return pipe
