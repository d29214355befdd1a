"""Are the files of a pipeline's folder whole? They are looked at before anything of them is loaded.
Imports no diffusers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs."  # what git leaves in place of a large file
WEIGHTS = (".safetensors", ".bin")
JSON = ("config.json", ".index.json")  # ends of names
READ = (".json", ".txt", ".model")  # configs, indices, and what a tokenizer is made of
TENSORS = ".safetensors"
HEADER = 100_000_000  # bytes of the longest header that safetensors reads
AGAIN = "fetched again, as by `hf download NAME --local-dir DIR`,"


def variant(folder: Path, network: bool) -> str | None:
    """Of a component's folder, the variant of its weights, as fp16 of `model.fp16.safetensors`,
    where it has those alone, or pointers of Git LFS in place of the others; network: does the
    component have weights?

    ValueError, one sentence, for a folder that is not there or holds too little, and for a file to
    be opened that is no more than a pointer, is cut short or is no JSON.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder, and the index of the pipeline names it; {AGAIN} it is "
            "accepted"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.name.endswith(WEIGHTS)]
    lost = {path for path in weights if _is_pointer(path)}
    for path in files:
        if path.name.endswith(READ):
            _refuse_pointer(path)
        if path.name.endswith(JSON):
            read_json(path)
        if path.name.endswith(TENSORS) and path not in lost:
            _refuse_cut(path)
    if not network:
        return None
    # a download may leave out what nobody opens: .bin beside .safetensors, all of a variant
    kinds = sorted({_variant(path.name) for path in weights}, key=lambda kind: kind or "")
    opened = {kind: _preferred(weights, kind) for kind in kinds}
    one = next((kind for kind in kinds if not lost & opened[kind]), kinds[0] if kinds else None)
    for path in sorted(opened.get(one, ())):
        _refuse_pointer(path)
    _refuse_missing(folder, {path.name for path in files}, one)
    return one


def read_json(path: Path) -> Any:
    """What a JSON file holds; ValueError, one sentence, for one that is none."""
    _refuse_pointer(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no sound JSON ({error}); {AGAIN} it is accepted") from None


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _refuse_pointer(path: Path) -> None:
    if _is_pointer(path):
        raise ValueError(
            f"{path}: a pointer of Git LFS and not the file itself; `git lfs pull` in its folder "
            "fetches what is accepted"
        )


def _refuse_cut(path: Path) -> None:
    """A file of safetensors: the length of a header in 8 bytes, the header in JSON, the data, which
    ends where the header says.
    """
    size, end = path.stat().st_size, 8
    with path.open("rb") as file:
        end += int.from_bytes(file.read(8), "little")
        try:
            if end > HEADER:
                raise ValueError
            header = json.loads(file.read(end - 8)) if end <= size else {}
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end += max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}: no file of safetensors; {AGAIN} it is accepted") from None
    if end != size:
        raise ValueError(
            f"{path}: {size} bytes of {end}, so it was cut short; {AGAIN} it is accepted"
        )


def _refuse_missing(folder: Path, names: set[str], variant: str | None) -> None:
    """No config, no weights, or an index that names files of weights which are not there."""
    if "config.json" not in names:
        raise ValueError(f"{folder}: no config.json in it; {AGAIN} it is accepted")
    index = _opened(names, variant)
    if index is not None:
        named = read_json(folder / index)
        parts = named.get("weight_map") if isinstance(named, dict) else None
        absent = sorted({*(parts or {}).values()} - names)
        if absent:
            raise ValueError(
                f"{folder / absent[0]}: no such file, and {index} names it; {AGAIN} it is accepted"
            )
    if not any(name.endswith(WEIGHTS) for name in names):
        raise ValueError(
            f"{folder}: no weights in it, {' or '.join(f'*{end}' for end in WEIGHTS)}; {AGAIN} it "
            "is accepted"
        )


def _opened(names: set[str], variant: str | None) -> str | None:
    """The index of a network's folder that loading it opens, if any: diffusers looks for one of
    .safetensors before whole weights and opens none of .bin, transformers looks for whole ones
    first. What is left out of a download may leave its index behind.
    """
    end, own = f".{variant}" if variant else "", "diffusion_pytorch_model"
    order = [f"{own}.safetensors.index{end}.json", f"{own}.safetensors{end}.index.json"]
    order += [f"{own}{end}.safetensors", f"{own}{end}.bin"]
    order += [f"model{end}.safetensors", f"model.safetensors.index{end}.json"]
    order += [f"pytorch_model{end}.bin", f"pytorch_model.bin.index{end}.json"]
    first = next((name for name in order if name in names), "")
    return first if first.endswith(".json") else None


def _variant(name: str) -> str | None:
    """fp16 of model.fp16.safetensors and of model.fp16-00001-of-00002.safetensors."""
    parts = name.split(".")
    return parts[-2].partition("-")[0] if len(parts) > 2 else None


def _preferred(weights: list[Path], kind: str | None) -> set[Path]:
    """Of the weights those of a variant, .safetensors before others."""
    own = {path for path in weights if _variant(path.name) == kind}
    return {path for path in own if path.name.endswith(TENSORS)} or own
