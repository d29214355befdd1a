"""A folder of diffusers on the command line and in Python: what its network is asked is what the
pipeline asks it, whose pictures the plan then makes; what is refused, before anything is loaded.
"""

import json
import os
import sys
from unittest import mock

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import cli
from tests import pipelines

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from fastsample.interop.diffusers.asked import asked  # noqa: E402
from fastsample.interop.diffusers.folder import Folder  # noqa: E402

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
MADE = (pipelines.unconditional, pipelines.stable_diffusion, pipelines.stable_diffusion_3)
MADE += (pipelines.flux,)
LATENT = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a pipeline of each kind."""
    root = tmp_path_factory.mktemp("pipelines")
    diffusers.utils.logging.disable_progress_bar()
    for make in MADE:
        make(root / make.__name__)
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in MADE:
        os.symlink(made / make.__name__, make.__name__)
    return tmp_path


def subject(*words):
    return cli.subject(cli.parser().parse_args(["optimize", *words]))


def plan(it, n=3):
    return fs.solvers.dpmpp_2m(it.model, fs.grids.uniform(it.model.schedule, n))


def run(it, z):
    """The samples of a plan, and the plan."""
    made = plan(it)
    return fs.Sampler(made, it.model)(noise=z, seed=1, **it.words(len(z))), made


def alike(a, b):
    """To the rounding of float32 in another batch size."""
    assert torch.allclose(a, b, 1e-4, 1e-4 * float(b.abs().max()))


def test_an_unconditional_network(made):
    pipe = Folder.read(made / "unconditional").load()
    it = asked(pipe, [{"num_inference_steps": 3}])
    assert it.shape == (3, 8, 8) and it.words(3) == {"cond": {}} and it.model.prediction == "eps"
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, made_plan = run(it, z)
    x = z.clone()
    pipe.scheduler = fs.FsScheduler.from_plan(made_plan, like=pipe.scheduler)
    ends = []
    with mock.patch("diffusers.pipelines.ddpm.pipeline_ddpm.randn_tensor", lambda *a, **k: x):
        step = pipe.scheduler.step
        kept = lambda out, t, x, generator=None: ends.append(step(out, t, x)) or ends[-1]
        pipe.scheduler.step = kept
        pipe(batch_size=2, num_inference_steps=3, output_type="pt")
    alike(ends[-1].prev_sample, ours)


@pytest.mark.parametrize(
    "name, guidance",
    [("stable_diffusion", 3.0), ("stable_diffusion", None), ("stable_diffusion_3", 3.0)],
)
def test_a_plan_makes_the_same_latents_in_its_pipeline(made, name, guidance):
    """With the pipeline's own prompt, encoders and guidance, sample by sample."""
    prompts = ["a cat", "a dog"]
    words = [f"--prompt={text}" for text in prompts]
    if guidance is not None:
        words += [f"--guidance={guidance}", "--negative-prompt=dog"]
    it = subject("--pipeline", str(made / name), *words)
    assert it.shape == (4, 8, 8) and len(it.words(3)["cond"]["encoder_hidden_states"]) == 3
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, made_plan = run(it, z)
    pipe = Folder.read(made / name).load()
    pipe.scheduler = fs.FsScheduler.from_plan(made_plan, like=pipe.scheduler)
    given = {"guidance_scale": guidance or 1.0, "num_inference_steps": 3, "output_type": "latent"}
    given |= {} if guidance is None else {"negative_prompt": ["dog"] * 2}
    alike(pipe(prompts, latents=z, **given).images, ours)


def test_packed_latents_and_a_scale_that_the_network_is_told(here):
    """Flux: no second branch; what belongs to no sample stays with the network."""
    words = ["--conditions", "random", "--guidance", "3.5", "--call", "height=16"]
    it = subject("--pipeline", "flux", *words, "--call", "width=16")
    told = it.words(1)
    assert (
        it.shape == (64, 16) and told.keys() == {"cond"} and float(told["cond"]["guidance"]) == 3.5
    )
    assert {"img_ids", "txt_ids"} <= it.model.fn.fixed.keys()
    assert it.model.time == 1000.0 and it.model.schedule.shift > 1.0
    z = torch.randn(1, *it.shape, generator=torch.Generator().manual_seed(0))
    ours, made_plan = run(it, z)
    pipe = Folder.read("flux").load()
    pipe.scheduler = fs.FsScheduler.from_plan(made_plan, like=pipe.scheduler)
    embeds = {"prompt_embeds": told["cond"]["encoder_hidden_states"]}
    embeds |= {"pooled_prompt_embeds": told["cond"]["pooled_projections"]}
    given = {**LATENT, "guidance_scale": 3.5, "height": 16, "width": 16, "latents": z}
    alike(pipe(**embeds, **given).images, ours)


def test_the_network_of_another_scheduler_is_the_same_model(made):
    """On sigma/alpha, and one that no plan reproduces: VP, as the network is trained."""
    pipe = Folder.read(made / "stable_diffusion").load()
    own = asked(pipe, [{"prompt": "a cat", **LATENT}])
    for kind in (diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler):
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        it = asked(pipe, [{"prompt": "a cat", **LATENT}])
        assert isinstance(pipe.scheduler, kind)  # it is put back
        assert it.model.to_json() == own.model.to_json()
        assert it.model.schedule.to_json() == own.model.schedule.to_json()
        assert torch.equal(it.cond["encoder_hidden_states"], own.cond["encoder_hidden_states"])


def test_a_shift_that_is_found_for_the_image_size(made):
    """exp(mu) of use_dynamic_shifting, mu as the pipeline computes it for its own size."""
    pipe = Folder.read(made / "stable_diffusion_3").load()
    assert asked(pipe, [{"prompt": "a cat", **LATENT}]).model.schedule == fs.schedules.Flow(3.0)
    words = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64}
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**words)
    it = asked(pipe, [{"prompt": "a cat", **LATENT}])
    assert it.model.schedule.shift == pytest.approx(np.exp(1.15))  # 8 x 8 patches: max_shift
    assert it.model.time == 1000.0
    z = torch.randn(1, 4, 8, 8)
    ours, made_plan = run(it, z)
    pipe.scheduler = fs.FsScheduler.from_plan(made_plan, like=pipe.scheduler)
    alike(pipe("a cat", latents=z, **LATENT).images, ours)


def test_conditions_of_a_file_and_random_ones(here):
    """prompt_embeds as the pipeline takes them: the prompt's own give the prompt's own condition;
    the folder then needs no encoder.
    """
    sd = Folder.read("stable_diffusion").load()
    cat, none = sd.encode_prompt("a cat", "cpu", 1, True)
    index = json.loads((here / "stable_diffusion/model_index.json").read_text())
    np.savez("c.npz", prompt_embeds=cat.detach(), negative_prompt_embeds=none.detach())
    by_file = subject("--pipeline", "stable_diffusion", "--conditions", "c.npz", "--guidance", "2")
    by_word = subject("--pipeline", "stable_diffusion", "--prompt", "a cat", "--guidance", "2")
    for branch in ("cond", "uncond"):
        a, b = (it.words(2)[branch]["encoder_hidden_states"] for it in (by_file, by_word))
        assert torch.equal(a, b)
    assert by_file.words(2)["guidance"] == 2.0 and index["text_encoder"][0]
    it = subject("--pipeline", "stable_diffusion_3", "--conditions", "random", "--guidance", "2")
    words = it.words(5)
    assert words["cond"]["encoder_hidden_states"].shape == (5, 77, 16)
    assert words["cond"]["pooled_projections"].shape == (5, 16)
    assert torch.equal(*words["cond"]["pooled_projections"][[0, 4]])  # four, in turn
    assert not torch.equal(*words["cond"]["pooled_projections"][[0, 1]])
    assert not words["uncond"]["pooled_projections"].any()


def test_the_call_takes_further_words(here):
    it = subject(
        *("--pipeline", "stable_diffusion", "--prompt", "a cat"),
        *("--call", "height=32", "--call", "width=16"),
    )
    scale = Folder.read("stable_diffusion").load().vae_scale_factor
    assert it.shape == (4, 32 // scale, 16 // scale)


def test_optimize_and_sample(here, capsys, monkeypatch):
    """The whole command, of a network that says one number everywhere, whose teacher is soon
    settled; its note's command makes it again, each prompt in it.
    """
    load = Folder.load

    def easy(folder, *given, **words):
        pipe = load(folder, *given, **words)
        torch.nn.init.zeros_(pipe.unet.conv_out.weight)
        return pipe

    monkeypatch.setattr(Folder, "load", easy)
    words = ["--pipeline", "stable_diffusion", "--prompt", "a cat", "--prompt", "a dog"]
    search = [
        *(
            "--budget",
            "1",
            "--teacher",
            "3",
            "--samples",
            "2",
            "--held-out",
            "0",
            "--grid",
            "uniform",
        ),
        *words,
    ]
    assert cli.main(["optimize", *search, "--call", "eta=0.0", "--out", "plans"]) == 0
    said = capsys.readouterr().out
    assert "FsScheduler.from_plan(fastsample.Plan.load('plans/plan-1.fsplan'), like=own)" in said
    command = fs.Plan.load("plans/plan-1.fsplan").note["found"]["command"]
    assert "--prompt 'a cat' --prompt 'a dog'" in command and "--call eta=0.0" in command
    run = ["sample", "plans/plan-1.fsplan", "--samples", "3", "--out", "z.npy", *words[:4]]
    assert cli.main(run) == 0
    assert np.load("z.npy").shape == (3, 4, 8, 8)


# -- what is refused -------------------------------------------------------------------------------
SD = "--pipeline stable_diffusion"
BAD = [
    ("--pipeline absent --prompt cat", "absent: model_index.json: No such file"),
    ("--pipeline odd --prompt cat", "odd/model_index.json: no sound JSON"),
    ("--pipeline alien --prompt cat", "names the class 'AlienPipeline', which diffusers"),
    ("--pipeline coded --prompt cat", "names the class ['pipeline', 'Mine']"),
    (SD, "StableDiffusionPipeline is told a prompt; --prompt TEXT"),
    (f"{SD} --prompt cat --model mine:make", "--model beside --pipeline"),
    (f"{SD} --prompt cat --shape 4,8,8", "--shape beside --pipeline"),
    (f"{SD} --prompt cat --dtype float64", "--dtype float64 beside --pipeline; bfloat16"),
    (f"{SD} --prompt cat --label 1", "--label beside --pipeline"),
    (f"{SD} --prompt cat --conditions random", "--prompt beside --conditions random"),
    (f"{SD} --prompt cat --negative-prompt dog", "--prompt and --guidance are needed"),
    (f"{SD} --prompt cat --call heihgt=8", "no argument of StableDiffusionPipeline's call"),
    (f"{SD} --prompt cat --call latents=8", "latents is what the command says itself"),
    (f"{SD} --prompt cat --call height", "'height' is not NAME=VALUE"),
    (f"{SD} --prompt cat --call height=8", "height=8: a size has two"),
    (f"{SD} --prompt cat --call height=8 --call height=9", "height=9 beside height=8"),
    (
        f"{SD} --prompt cat --call height=tall",
        "height=tall: StableDiffusionPipeline's call takes int",
    ),
    (
        f"{SD} --prompt cat --call height=true",
        "height=True: StableDiffusionPipeline's call takes int",
    ),
    (
        f"{SD} --prompt cat --call height=8.5",
        "height=8.5: StableDiffusionPipeline's call takes int",
    ),
    (f"{SD} --prompt cat --call eta=[1]", "eta=[1]: StableDiffusionPipeline's call takes float"),
    (
        f"{SD} --prompt cat --call cross_attention_kwargs=3",
        "call takes dict[str, typing.Any] | None",
    ),
    (f"{SD} --prompt cat --call ip_adapter_image=a.png", "an array of it by --conditions FILE.npz"),
    (f"{SD} --prompt cat --call callback_on_step_end=f", "takes Union[Callable"),
    (f"{SD} --prompt cat --call guidance_rescale=0.5", "guidance_rescale is of guidance by the"),
    (f"{SD} --prompt cat --call kwargs=1", "kwargs is no argument of"),
    (f"{SD} --prompt cat --guidance nan", "'nan' is not a finite number"),
    (f"{SD} --prompt cat --device nosuch", "--device nosuch: "),
    (f"{SD} --prompt cat --device meta", "--device meta: it holds no numbers"),
    (f"{SD} --prompt cat --dtype int32", "--dtype int32: one of float32, float16, bfloat16"),
    (f"{SD} --conditions absent.npz", "--conditions absent.npz: No such file"),
    (f"{SD} --conditions odd/model_index.json", "it holds no arrays by name"),
    (f"{SD} --conditions cut.npz", "it holds no arrays by name"),
    (f"{SD} --conditions n.npy", "it holds no arrays by name"),
    (f"{SD} --conditions other.npz", "clip is no argument of StableDiffusionPipeline's call"),
    (f"{SD} --conditions words.npz", "prompt_embeds is <U3"),
    (f"{SD} --conditions two.npz", "negative_prompt_embeds 2; one length is accepted"),
    (f"{SD} --conditions guided.npz", "negative_prompt_embeds is of guidance"),
    ("--pipeline unconditional --prompt cat", "DDPMPipeline takes no prompt"),
    ("--pipeline unconditional --conditions random", "DDPMPipeline takes no embeddings"),
    ("--pipeline bare --prompt cat", "has no text encoder in its folder"),
    ("--prompt cat", "--prompt belongs to --pipeline"),
    ("--call height=8", "--call belongs to --pipeline"),
    ("--conditions random", "--conditions belongs to --pipeline"),
]


@pytest.mark.parametrize("line, words", BAD, ids=[line for line, _ in BAD])
def test_it_is_refused_in_one_sentence_before_anything_is_loaded(
    here, capsys, monkeypatch, line, words
):
    never = mock.Mock(side_effect=AssertionError("loaded"))
    monkeypatch.setattr(Folder, "load", never)
    indices = {"odd": "{", "alien": {"_class_name": "AlienPipeline"}}
    indices["coded"] = {"_class_name": ["pipeline", "Mine"]}
    none = [None, None]
    indices["bare"] = {"_class_name": "StableDiffusionPipeline", "text_encoder": none}
    for name, index in indices.items():
        (here / name).mkdir()
        text = index if isinstance(index, str) else json.dumps(index)
        (here / name / "model_index.json").write_text(text)
    one, two = np.zeros((1, 7, 8)), np.zeros((2, 7, 8))
    np.save("n.npy", one)
    (here / "cut.npz").write_bytes(b"PK\x03\x04, and no more")
    np.savez("other.npz", clip=one)
    np.savez("words.npz", prompt_embeds=np.array(["cat"]))
    np.savez("two.npz", prompt_embeds=np.zeros((3, 7, 8)), negative_prompt_embeds=two)
    np.savez("guided.npz", prompt_embeds=one, negative_prompt_embeds=one)
    before = sorted(os.listdir())
    try:
        code = cli.main(["optimize", *line.split(), "--budget", "1"])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and words in said, said
    assert said.startswith("fastsample optimize: ") and not never.called
    assert sorted(os.listdir()) == before


def test_without_diffusers_it_says_what_to_install(here, capsys, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("fastsample.interop.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert cli.main(["optimize", "--pipeline", "stable_diffusion", "--prompt", "cat"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'fastsample[diffusers]'" in said


def test_nothing_to_guide_by(here, capsys):
    assert cli.main(["optimize", "--pipeline", "unconditional", "--guidance", "2"]) == 2
    assert "DDPMPipeline is told nothing that guides" in capsys.readouterr().err


class Other:
    """A pipeline that asks in a way of its own: `change` is made of what it would give."""

    def __init__(self, pipe, change, steps=3, batch=1):
        self.unet, self.scheduler, self.change = pipe.unet, pipe.scheduler, change
        self.steps, self.batch = steps, batch
        self.components = {"unet": pipe.unet, "scheduler": pipe.scheduler}

    def __call__(self):
        self.scheduler.set_timesteps(self.steps)
        t = self.scheduler.timesteps[0]
        x, time, out, times = torch.randn(self.batch, 3, 8, 8), t, lambda f: f, 1
        x_in, time, out, times = self.change(x, time, out, times)
        for _ in range(times):
            f = self.unet(x_in, time, return_dict=False)[0]
        self.scheduler.step(out(f), t, x)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x, t, f, n: (torch.cat([x, x]), t, f, n), "[2, 3, 8, 8] for a sample of [1, 3"),
        (lambda x, t, f, n: (2 * x, t, f, n), "something else than the scaled sample"),
        (lambda x, t, f, n: (x, t / 2, f, n), "tells its network [333.0] at timestep 666"),
        (lambda x, t, f, n: (x, t, lambda f: f / 2, n), "makes something else of its network's"),
        (lambda x, t, f, n: (x, t, f, 2), "asked its network 2 times before"),
    ],
)
def test_a_pipeline_that_asks_in_another_way_is_refused(made, change, words):
    pipe = Folder.read(made / "unconditional").load()
    with pytest.raises(ValueError, match="asked: Other") as error:
        asked(Other(pipe, change), [{}])
    assert words in str(error.value)


def test_another_sign_or_time_is_followed(made):
    pipe = Folder.read(made / "unconditional").load()
    plain = asked(Other(pipe, lambda *given: given), [{}]).model.fn
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([400.0, 600.0])
    minus = asked(Other(pipe, lambda x, t, f, n: (x, t, lambda f: -f, n)), [{}]).model.fn
    assert torch.equal(minus(x, t), -plain(x, t))
    share = asked(Other(pipe, lambda x, t, f, n: (x, t / 1000, f, n)), [{}]).model.fn
    assert torch.equal(share(x, t), pipe.unet(x, t / 1000).sample)
    rising = asked(Other(pipe, lambda x, t, f, n: (x, 1 - t / 1000, f, n)), [{}]).model.fn
    assert torch.equal(rising(x, t), pipe.unet(x, 1 - t / 1000).sample)


def test_a_batch_of_its_own_and_a_time_that_means_two_things_are_refused(made):
    pipe = Folder.read(made / "unconditional").load()
    with pytest.raises(ValueError, match=r"gives its network \[2, 3, 8, 8\]"):
        asked(Other(pipe, lambda *given: given, batch=2), [{}])
    with pytest.raises(
        ValueError, match=r"tells its network \[0.5\] at timestep 500; one alone of"
    ):
        asked(Other(pipe, lambda x, t, f, n: (x, t / 1000, f, n), steps=2), [{}])


class Learned(torch.nn.Module):
    """Predicts a variance beside the noise, as networks of DDPM's successors do."""

    def forward(self, sample, timestep, return_dict=True):
        return (torch.cat([2 * sample, 9 + 0 * sample], 1),)


def test_of_a_learned_variance_the_prediction_is_taken(made):
    pipe = Folder.read(made / "unconditional").load()
    pipe.unet = Learned()
    fn = asked(Other(pipe, lambda x, t, f, n: (x, t, lambda f: f[:, :3], n)), [{}]).model.fn
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fn(x, torch.ones(2)), 2 * x)
