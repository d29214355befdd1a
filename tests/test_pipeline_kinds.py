"""fastsample optimize --pipeline on pipelines that ask their networks in ways of their own."""

from unittest import mock

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import cli
from tests import pipelines

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from fastsample.interop.diffusers.folder import Folder  # noqa: E402

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def subject(folder, *words):
    return cli.subject(cli.parser().parse_args(["optimize", "--pipeline", str(folder), *words]))


def samples(it, z, n=3):
    plan = fs.solvers.dpmpp_2m(it.model, fs.grids.uniform(it.model.schedule, n))
    return plan, fs.Sampler(plan, it.model)(noise=z, **it.words(len(z)))


def test_sdxl_makes_the_same_latents_in_its_pipeline(tmp_path):
    """With sizes and a pooled embedding beside the prompt, with guidance."""
    pipelines.stable_diffusion_xl(tmp_path / "xl")
    words = ["--prompt=a cat", "--prompt=a dog", "--guidance=3", "--negative-prompt=dog"]
    it = subject(tmp_path / "xl", *words)
    told = it.words(3)["cond"]["added_cond_kwargs"]
    assert told["text_embeds"].shape == (3, 8) and told["time_ids"].shape == (3, 6)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plan, ours = samples(it, z)
    pipe = Folder.read(tmp_path / "xl").load()
    pipe.scheduler = fs.FsScheduler.from_plan(plan, like=pipe.scheduler)
    given = {"guidance_scale": 3.0, "num_inference_steps": 3, "output_type": "latent"}
    theirs = pipe(["a cat", "a dog"], latents=z, negative_prompt=["dog"] * 2, **given).images
    assert torch.allclose(theirs, ours, 1e-4, 1e-4 * float(ours.abs().max()))
    random = subject(tmp_path / "xl", "--conditions=random", "--guidance=3").words(2)["cond"]
    assert random["added_cond_kwargs"]["text_embeds"].shape == (2, 8)


def test_class_labels_come_of_a_file_or_a_word(tmp_path, capsys):
    pipelines.class_labels(tmp_path / "dit")
    np.savez(tmp_path / "c.npz", class_labels=np.array([1, 2, 3]))
    it = subject(tmp_path / "dit", "--conditions", str(tmp_path / "c.npz"))
    assert it.words(4)["cond"]["class_labels"].tolist() == [1, 2, 3, 1]
    assert samples(it, torch.randn(4, 4, 8, 8))[1].shape == (4, 4, 8, 8)  # of 8 channels, 4
    it = subject(tmp_path / "dit", "--call", "class_labels=[7]")
    assert it.words(2)["cond"]["class_labels"].tolist() == [7, 7]
    assert cli.main(["optimize", "--pipeline", str(tmp_path / "dit")]) == 2
    assert (
        "DiTPipeline's call needs class_labels, list[int]; --call class" in capsys.readouterr().err
    )


def test_random_conditions_have_the_width_that_is_projected_and_a_mask(tmp_path):
    pipelines.projected_captions(tmp_path / "pix")
    it = subject(tmp_path / "pix", "--conditions=random", "--call=use_resolution_binning=false",
                 "--call=height=8", "--call=width=8")  # fmt: skip
    told = it.words(2)["cond"]
    assert told["encoder_hidden_states"].shape == (2, 77, 12)
    assert told["encoder_attention_mask"].shape == (2, 77) and it.shape == (4, 8, 8)


def test_a_call_that_needs_a_negative_array_gets_it(tmp_path):
    """And a network that is told None of a word it has no default of."""
    pipelines.image_embeddings(tmp_path / "k")
    arrays = {"image_embeds": np.ones((2, 8)), "negative_image_embeds": np.zeros((1, 8))}
    np.savez(tmp_path / "k.npz", **arrays)
    words = ["--conditions", str(tmp_path / "k.npz"), "--call=height=64", "--call=width=64"]
    plain, guided = subject(tmp_path / "k", *words), subject(tmp_path / "k", *words, "--guidance=2")
    assert plain.words(2).keys() == {"cond"}
    z = torch.randn(2, *plain.shape)
    a, b = (samples(it, z)[1] for it in (plain, guided))
    assert a.isfinite().all() and not torch.allclose(a, b)
    none = guided.words(1)["uncond"]["added_cond_kwargs"]["image_embeds"]
    assert not none.any() and plain.words(1)["cond"]["added_cond_kwargs"]["image_embeds"].all()


TALL = "--call=height=8"


def test_one_side_of_a_size_leaves_the_other_at_its_default(tmp_path):
    pipelines.image_embeddings(tmp_path / "k")
    np.savez(
        tmp_path / "k.npz", image_embeds=np.ones((1, 8)), negative_image_embeds=np.ones((1, 8))
    )
    words = ["--conditions", str(tmp_path / "k.npz")]
    with mock.patch("fastsample.interop.diffusers.asked.asked") as asked:
        for size in (["--call=height=64"], ["--call=width=64"], ["--call=width=64", TALL], []):
            subject(tmp_path / "k", *words, *size)
    told = [call.args[1][0] for call in asked.call_args_list]
    sizes = [(each.get("height"), each.get("width")) for each in told]
    assert sizes == [(64, 512), (512, 64), (8, 64), (None, None)]


def test_words_that_guide_are_taken_at_their_default(tmp_path):
    """And SDXL's sizes, which it adds up as tuples."""
    pipelines.stable_diffusion_xl(tmp_path / "xl")
    words = ["--prompt=a cat", "--call=guidance_rescale=0.0", "--call=target_size=[16, 24]"]
    it = subject(tmp_path / "xl", *words)
    assert it.words(1)["cond"]["added_cond_kwargs"]["time_ids"][0, -2:].tolist() == [16, 24]
    with pytest.raises(ValueError, match="guidance_rescale is of guidance by the pipeline"):
        subject(tmp_path / "xl", "--prompt=a cat", "--call=guidance_rescale=0.5")
