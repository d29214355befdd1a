"""Folders of diffusers that are not whole: each is told in one sentence that says which file, what
it lacks and how it is mended, before anything is loaded.
"""

import json
import shutil
import typing
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastsample import cli
from tests import pipelines

diffusers = pytest.importorskip("diffusers")
from fastsample.interop.diffusers import whole  # noqa: E402
from fastsample.interop.diffusers.asked import asked  # noqa: E402
from fastsample.interop.diffusers.folder import Folder  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "whole"
    pipelines.unconditional(folder)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A pipeline of one's own to break."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "a")
    return tmp_path / "a"


def edited(path, **words):
    path.write_text(json.dumps({**json.loads(path.read_text()), **words}))


def renamed(path, name):
    path.rename(path.with_name(name))


def sharded(folder):
    """Weights in two files of which one is there."""
    renamed(folder / WEIGHTS, "a-00001-of-00002.safetensors")
    names = {"w": "a-00001-of-00002.safetensors", "b": "a-00002-of-00002.safetensors"}
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))


BROKEN = {
    "no index": (lambda d: (d / "model_index.json").unlink(), "model_index.json: No such file"),
    "pointer": (lambda d: (d / WEIGHTS).write_bytes(POINTER), f"a/{WEIGHTS}: a pointer of Git LFS"),
    "pointer to a config": (
        lambda d: (d / "unet/config.json").write_bytes(POINTER),
        "a/unet/config.json: a pointer of Git LFS",
    ),
    "pointer to the index": (
        lambda d: (d / "model_index.json").write_bytes(POINTER),
        "a/model_index.json: a pointer of Git LFS and not the file itself; `git lfs pull`",
    ),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "a/unet: no weights in it, *.safetensors or"),
    "no config": (lambda d: (d / "unet/config.json").unlink(), "a/unet: no config.json in it"),
    "no network": (lambda d: shutil.rmtree(d / "unet"), "a/unet: no such folder, and the index"),
    "no scheduler": (lambda d: shutil.rmtree(d / "scheduler"), "a/scheduler: no such folder"),
    "cut": (
        lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-1]),
        "so it was cut short; fetched again",
    ),
    "cut in the header": (lambda d: (d / WEIGHTS).write_bytes(bytes([9] + [0] * 7)), "cut short"),
    "a page": (lambda d: (d / WEIGHTS).write_text("<html></html>"), "no file of safetensors"),
    "empty": (lambda d: (d / WEIGHTS).write_bytes(b""), "0 bytes of 8, so it was cut short"),
    "a part": (sharded, "a-00002-of-00002.safetensors: no such file, and diffusion_pytorch"),
    "no JSON": (lambda d: (d / "unet/config.json").write_text("{"), "config.json: no sound JSON ("),
    "no class": (
        lambda d: edited(d / "model_index.json", unet=["diffusers", "Mine"]),
        "says that unet is a 'Mine', which diffusers",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_not_whole_is_told_before_anything_is_loaded(here, capsys, name):
    breaks, words = BROKEN[name]
    breaks(here)
    never = mock.Mock(side_effect=AssertionError("loaded"))
    with mock.patch.object(diffusers.DDPMPipeline, "from_pretrained", never):
        assert cli.main(["optimize", "--pipeline", "a", "--budget", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said and said.startswith("fastsample optimize: a")
    assert not never.called


LOADED = {
    "a library": lambda d: edited(d / "model_index.json", unet=["mylib", "UNet"]),
    "other shapes": lambda d: edited(d / "unet/config.json", block_out_channels=[4, 8]),
    "a schedule": lambda d: edited(d / "scheduler/scheduler_config.json", beta_schedule="none"),
}


@pytest.mark.parametrize("name", LOADED)
def test_what_diffusers_alone_can_tell_is_one_sentence_of_ours_around_its_own(here, capsys, name):
    LOADED[name](here)
    assert cli.main(["optimize", "--pipeline", "a", "--budget", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a: diffusers 0." in said and "cannot load it (" in said


def test_weights_of_a_variant_alone_are_loaded(here):
    renamed(here / WEIGHTS, "diffusion_pytorch_model.fp16.safetensors")
    own = Folder.read("a").load().unet
    renamed(here / "unet/diffusion_pytorch_model.fp16.safetensors", WEIGHTS.partition("/")[2])
    for a, b in zip(own.parameters(), Folder.read("a").load().unet.parameters(), strict=True):
        assert torch.equal(a, b)


OURS, THEIRS = "diffusion_pytorch_model", "model"


@pytest.mark.parametrize(
    "pointer, stands, found",
    [
        (f"{OURS}.bin", f"{OURS}.safetensors", None),
        (f"{OURS}.safetensors", f"{OURS}.fp16.safetensors", "fp16"),
        (f"{OURS}.fp16.safetensors", f"{OURS}.safetensors", None),
        ("flax_model.msgpack", f"{OURS}.safetensors", None),
        ("model.onnx", f"{OURS}.safetensors", None),
        (f"{OURS}.safetensors", "diffusion_pytorch_model.bin", ...),
    ],
)
def test_a_pointer_in_place_of_what_nobody_opens_is_left(here, pointer, stands, found):
    """As `git lfs pull --include` leaves it."""
    renamed(here / WEIGHTS, stands)
    (here / "unet" / pointer).write_bytes(POINTER)
    if found is ...:
        with pytest.raises(ValueError, match=f"{pointer}: a pointer of Git LFS"):
            whole.variant(here / "unet", True)
    else:
        assert whole.variant(here / "unet", True) == found
        assert Folder.read("a").load().unet.training is False


def test_a_call_that_fails_is_one_sentence(here):
    pipe = Folder.read("a").load()
    with pytest.raises(ValueError, match=r"cannot be called with batch_size \(.+Error: ") as error:
        asked(pipe, [{"batch_size": "two"}])
    assert error.value.__cause__ is not None
    assert not [hook for hook in pipe.unet._forward_hooks.values()]


@pytest.mark.parametrize(
    "index, stands, opened",
    [
        (f"{OURS}.bin.index.json", f"{OURS}.safetensors", False),
        (f"{OURS}.safetensors.index.json", f"{OURS}.safetensors", True),
        (f"{OURS}.safetensors.index.json", f"{OURS}.fp16.safetensors", False),
        (f"{OURS}.safetensors.index.fp16.json", f"{OURS}.fp16.safetensors", True),
        (f"{OURS}.safetensors.fp16.index.json", f"{OURS}.fp16.safetensors", True),
        (f"{THEIRS}.safetensors.index.json", f"{THEIRS}.safetensors", False),
        ("pytorch_model.bin.index.json", f"{THEIRS}.safetensors", False),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", False),
        (f"{THEIRS}.safetensors.index.json", "pytorch_model.bin", True),
        ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", True),
    ],
)
def test_the_index_that_is_opened_is_held_to_its_files_alone(here, index, stands, opened):
    """As `hf download --exclude "*.bin"` leaves the index of what it left out."""
    (here / "unet" / index).write_text(json.dumps({"weight_map": {"w": "absent.bin"}}))
    renamed(here / WEIGHTS, stands)
    if opened:
        with pytest.raises(ValueError, match=f"absent.bin: no such file, and {index} names it"):
            whole.variant(here / "unet", True)
    else:
        assert whole.variant(here / "unet", True) == ("fp16" if ".fp16." in stands else None)
        if stands.startswith(OURS):
            assert Folder.read("a").load().unet.training is False


def test_metadata_with_any_key_is_no_tensor(here):
    save_file(load_file(here / WEIGHTS), here / WEIGHTS, {"format": "pt", "dtype": "float32"})
    assert whole.variant(here / "unet", True) is None


def test_a_list_of_the_pipelines_own_is_no_component(here):
    """As text_encoder_select_layers of Krea 2, which encoders=False leaves as it is."""
    own = {"_class_name": "Krea2Pipeline", "text_encoder_select_layers": [2, 5]}
    own |= {"text_encoder": [None, None], "tokenizer": ["transformers", "Qwen2Tokenizer"]}
    (here / "model_index.json").write_text(
        json.dumps({**own, "unet": ["diffusers", "UNet2DModel"]})
    )
    folder = Folder.read("a")
    assert folder.parts == ["tokenizer", "unet"] and not folder.reads_prompts
    with mock.patch.object(diffusers.Krea2Pipeline, "from_pretrained") as load:
        folder.load(encoders=False)
    assert {name for name, word in load.call_args.kwargs.items() if word is None} == {
        *("text_encoder", "tokenizer"),
    }


class Called:
    """A pipeline whose call is annotated in ways of its own."""

    def __call__(self, size: tuple[int, int] | None, ends: tuple[float, ...], any: typing.Any):
        pass


def test_a_list_is_a_tuple_where_the_call_takes_one_and_anything_is_any():
    folder = Folder(None, Called, {})
    assert folder.fits("size", [8, 8]) and folder.taken("size", [8, 8]) == (8, 8)
    assert folder.fits("size", None) and folder.taken("size", None) is None
    assert not (folder.fits("size", [8]) or folder.fits("size", [8, "a"]) or folder.fits("size", 8))
    assert folder.fits("ends", [1, 2.0, 3]) and folder.taken("ends", [1, 2, 3]) == (1, 2, 3)
    assert all(folder.fits("any", value) for value in ([1], "a", None, True, {}))
    assert folder.taken("any", [1, [2]]) == [1, [2]]


@pytest.mark.parametrize("text", ["math.nosuch", "Nosuch", "no such"])
def test_an_annotation_that_is_none_takes_anything(text):
    class Odd:
        def __call__(self, x):
            pass

    Odd.__call__.__annotations__["x"] = text
    assert Folder(None, Odd, {}).fits("x", [1]) and Folder(None, Odd, {}).taken("x", [1]) == [1]
