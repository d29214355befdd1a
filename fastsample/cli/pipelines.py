"""A folder of diffusers as what a command works on: the network of its pipeline, asked as the
pipeline asks it, with conditions of its own prompts, of a file, or random ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .options import UNREADABLE

RANDOM = 4  # random conditions, which samples take in turn
LENGTH = 77  # tokens of a random one, where a config names no number
# where a network's config has the width of a token's embedding, what is projected first
WIDTHS = ("caption_channels", "cap_feat_dim", "text_embed_dim", "text_dim", "joint_attention_dim")
WIDTHS += ("cross_attention_dim",)
MASKS = ("prompt_attention_mask", "prompt_embeds_mask")  # of a call: all tokens count
# what the command itself says to the pipeline's call
OURS = {"prompt", "negative_prompt", "num_inference_steps", "output_type", "return_dict", "latents"}
OURS |= {"guidance_scale", "true_cfg_scale", "timesteps", "sigmas", "batch_size", "generator"}
# words of a call that change how guidance combines its branches
GUIDES = ("guidance_", "cfg_", "pag_", "skip_guidance", "skip_layer_guidance", "true_cfg")
WORDS = ("prompt", "negative_prompt", "conditions", "call")


def options(add: Callable) -> None:
    about = "a folder of a diffusers pipeline, as save_pretrained writes one: its network is asked"
    add("--pipeline", metavar="DIR", help=about)
    about = "pipeline: a prompt for its own encoders; may be given again, samples take them in turn"
    add("--prompt", action="append", metavar="TEXT", help=about)
    about = "pipeline: the prompt of guidance's other branch (default: an empty one)"
    add("--negative-prompt", metavar="TEXT", help=about)
    about = "pipeline: in place of a prompt arrays [n,*] by the names of its call's arguments, as "
    about += "prompt_embeds and negative_prompt_embeds, which samples take in turn; or random"
    add("--conditions", metavar="FILE.npz", help=about)
    about = "pipeline: a further argument of its call, as eta=0.5, its value as JSON has it or "
    about += "text; may be given again"
    add("--call", action="append", type=_word, metavar="NAME=VALUE", help=about)


def _word(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, as eta=0.5")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def asked(args: argparse.Namespace) -> tuple[Any, float | None]:
    """What `fastsample.interop.diffusers.asked` finds of the folder and the conditions that a
    command was given, and the scale that its two branches are combined with. What can be refused
    beforehand is refused before anything is loaded.
    """
    from ..interop.diffusers import asked
    from ..interop.diffusers.folder import Folder

    folder = Folder.read(args.pipeline)
    _check(args, folder)
    words = _words(args, folder)
    arrays = None if args.conditions in (None, "random") else _arrays(args, folder)
    _refuse_unsaid(args, folder, {*words, *(arrays or {})})
    pipe = folder.load(_weights(args), encoders=args.conditions is None)
    config = getattr(asked.network(pipe), "config", {})
    distilled = bool(config.get("guidance_embeds"))  # it is told the scale, and asked once
    if "guidance_scale" in folder.takes and (args.guidance is not None or not distilled):
        words["guidance_scale"] = args.guidance if distilled else 1.0
    calls, others = _calls(args, arrays, folder, pipe, config)
    guided = args.guidance is not None and not distilled
    if guided and not others:
        raise ValueError(
            f"--guidance {args.guidance:g}: {folder.kind.__name__} is told nothing that guides; "
            "--prompt, or --conditions with negative_ arrays, is accepted"
        )
    whole = lambda given: [{**words, **each} for each in given]
    found = asked.asked(pipe, whole(calls), whole(others) if guided else None)
    return found, args.guidance if guided else None


# -- before anything is loaded ---------------------------------------------------------------------
def _check(args: argparse.Namespace, folder: Any) -> None:
    """ValueError for conditions that the pipeline does not take, or none where it needs one."""
    name, takes = folder.kind.__name__, "prompt" in folder.takes
    if args.prompt and args.conditions:
        raise ValueError(f"--prompt beside --conditions {args.conditions}; one of them is accepted")
    if args.prompt and not (takes and folder.reads_prompts):
        why = "has no text encoder in its folder" if takes else "takes no prompt"
        raise ValueError(f"--prompt: {name} {why}; --conditions FILE.npz is accepted")
    if args.negative_prompt is not None and (args.guidance is None or not args.prompt):
        raise ValueError(
            "--negative-prompt is of guidance's other branch; --prompt and --guidance are needed"
        )
    if takes and not (args.prompt or args.conditions):
        raise ValueError(
            f"{args.pipeline}: {name} is told a prompt; --prompt TEXT, --conditions FILE.npz or "
            "--conditions random is needed"
        )
    if args.conditions == "random" and "prompt_embeds" not in folder.takes:
        raise ValueError(f"--conditions random: {name} takes no embeddings; none is accepted")


def _refuse_unsaid(args: argparse.Namespace, folder: Any, said: set[str]) -> None:
    """ValueError for an argument that the call has no default of, and nobody gave."""
    for name in folder.needs:
        if name not in {*said, *OURS}:
            raise ValueError(
                f"{args.pipeline}: {folder.kind.__name__}'s call needs {name}, "
                f"{folder.takes[name]}; --call {name}=VALUE, or an array {name} by --conditions "
                "FILE.npz, is accepted"
            )


def _words(args: argparse.Namespace, folder: Any) -> dict[str, Any]:
    """What every call is given."""
    own = {"num_inference_steps": 3, "output_type": "latent", "true_cfg_scale": 1.0}
    words = {name: value for name, value in own.items() if name in folder.takes}
    given: dict[str, Any] = {}
    for name, value in args.call or ():
        where, call = f"--call {name}={value}", f"{folder.kind.__name__}'s call"
        if name not in folder.takes or name in OURS:
            why = "what the command says itself" if name in OURS else f"no argument of {call}"
            raise ValueError(f"{where}: {name} is {why}; one as height is accepted")
        if name in given:
            raise ValueError(f"{where} beside {name}={given[name]}; one of them is accepted")
        if not folder.fits(name, value):
            raise ValueError(
                f"{where}: {call} takes {folder.takes[name]} there; such a value, where a command "
                "line can say it, or an array of it by --conditions FILE.npz, is accepted"
            )
        given[name] = folder.taken(name, value)
        own_too = name in folder.defaults and given[name] == folder.defaults[name]
        if name.startswith(GUIDES) and not own_too:
            raise ValueError(
                f"{where}: {name} is of guidance by the pipeline, and a plan adds its branches up "
                "by --guidance alone; it is accepted in the pipeline itself"
            )
    return words | given | _other_side(folder, given)


def _other_side(folder: Any, given: Mapping) -> dict[str, Any]:
    """Of a height or a width alone the other one, where the call has a number for it; ValueError
    where it has none.
    """
    sides = ("height", "width")
    said = [name for name in sides if name in given]
    if len(said) != 1 or not folder.takes.keys() >= {*sides}:
        return {}
    other = sides[said[0] == sides[0]]
    if isinstance(folder.defaults.get(other), int):
        return {other: folder.defaults[other]}
    raise ValueError(
        f"--call {said[0]}={given[said[0]]}: a size has two, and some pipelines look at "
        "neither where one is missing; height and width are accepted"
    )


def _weights(args: argparse.Namespace) -> Any:
    """The dtype that weights are loaded in: a --dtype, or float32; networks of diffusers make parts
    of their own in float32, so that none of 64 bits is asked.
    """
    import torch

    name, kinds = getattr(args, "dtype", None) or "float32", ("bfloat16", "float16", "float32")
    if name not in kinds:
        raise ValueError(f"--dtype {name} beside --pipeline; {', '.join(kinds)} is accepted")
    return getattr(torch, name)


def _arrays(args: argparse.Namespace, folder: Any) -> dict[str, Any]:
    """The arrays of --conditions, checked."""
    import numpy as np

    where = f"--conditions {args.conditions}"
    try:
        with np.load(args.conditions, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or "it holds no arrays by name"
        raise ValueError(f"{where}: {why}; a .npz file is accepted") from None
    for name, array in arrays.items():
        if name.removeprefix("negative_") not in folder.takes or name in OURS:
            raise ValueError(
                f"{where}: {name} is no argument of {folder.kind.__name__}'s call that a file can "
                "give; tensors, as prompt_embeds, are accepted"
            )
        if array.dtype.kind not in "fiu" or not array.ndim or not len(array):
            raise ValueError(
                f"{where}: {name} is {array.dtype} {list(array.shape)}; numbers [n,*] are accepted"
            )
    negative = {name for name in arrays if name.startswith("negative_")}
    lengths = {len(arrays[name]) for name in arrays.keys() - negative}
    if len(lengths) != 1 or {len(arrays[name]) for name in negative} - {*lengths, 1}:
        said = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise ValueError(f"{where}: lengths are {said or 'none'}; one length is accepted")
    if negative - {*folder.needs} and args.guidance is None:
        raise ValueError(f"{where}: {min(negative)} is of guidance; --guidance is needed")
    return arrays


# -- the calls -------------------------------------------------------------------------------------
def _calls(
    args: argparse.Namespace, arrays: Mapping | None, folder: Any, pipe: Any, config: Mapping
) -> tuple[list[dict], list[dict]]:
    """The calls, and those of guidance's other branch."""
    import torch

    if arrays is not None:
        return _of_arrays(arrays, folder.needs)
    zeros = lambda: _embeddings(folder, pipe, config, lambda *shape: torch.zeros(shape))
    if args.conditions == "random":
        generator = torch.Generator().manual_seed(args.seed)
        draw = lambda *shape: torch.randn(shape, generator=generator)
        return [_embeddings(folder, pipe, config, draw) for _ in range(RANDOM)], [zeros()]
    if not args.prompt:
        return [{}], []
    if args.negative_prompt is None and pipe.config.get("force_zeros_for_empty_prompt"):
        return [{"prompt": text} for text in args.prompt], [zeros()]
    return [{"prompt": text} for text in args.prompt], [{"prompt": args.negative_prompt or ""}]


def _of_arrays(arrays: Mapping, needs: Collection[str]) -> tuple[list[dict], list[dict]]:
    """A call for each row of the arrays: whole numbers [n] as a list of one, all else as a tensor
    [1,*]. A negative_ array is what the other branch is told, and goes into every call that cannot
    do without.
    """
    import torch

    def row(array: Any, k: int) -> Any:
        part = array[k % len(array)][None]
        whole = part.ndim == 1 and part.dtype.kind in "iu"
        return part.tolist() if whole else torch.from_numpy(part.astype("float32"))

    plain = {name: array for name, array in arrays.items() if not name.startswith("negative_")}
    other = {name: arrays.get(f"negative_{name}", array) for name, array in plain.items()}
    count, guided = len(next(iter(plain.values()))), len(plain) < len(arrays)
    both = {name: array for name, array in arrays.items() if name not in plain and name in needs}
    plain, other = plain | both, other | both
    rows = lambda found: [{name: row(a, k) for name, a in found.items()} for k in range(count)]
    return rows(plain), rows(other) if guided else []


def _embeddings(folder: Any, pipe: Any, config: Mapping, make: Callable) -> dict[str, Any]:
    """prompt_embeds, and pooled_prompt_embeds where the call takes it, as wide as the network's
    config says.
    """
    import torch

    wide = next((config[name] for name in WIDTHS if isinstance(config.get(name), int)), None)
    pooled = config.get("pooled_projection_dim")
    if config.get("addition_time_embed_dim"):  # with six numbers of sizes, of SDXL
        sizes = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - sizes
    needs = "pooled_prompt_embeds" in folder.takes
    if wide is None or (needs and pooled is None):
        raise ValueError(
            f"--conditions random: how wide the embeddings of {folder.kind.__name__} are is not "
            "known; --prompt or --conditions FILE.npz is accepted"
        )
    length = config.get("max_text_seq_length") or LENGTH
    found = {"prompt_embeds": make(1, length, wide)}
    found |= {"pooled_prompt_embeds": make(1, pooled)} if needs else {}
    masks = {name: torch.ones(1, length, dtype=torch.int64) for name in MASKS}
    masks = {name: mask for name, mask in masks.items() if name in folder.takes}
    return masks | {name: value.to(pipe.dtype) for name, value in found.items()}
