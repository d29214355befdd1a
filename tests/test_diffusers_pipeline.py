"""FsScheduler in a DDPMPipeline and in a pipeline's loop: the peers' pictures, the peers' noise,
half precision.
"""

import contextlib
import copy
import inspect
from unittest import mock

import numpy as np
import pytest
import torch

import fastsample
from fastsample import solvers
from fastsample.grids import trailing
from fastsample.interop.diffusers import runs
from fastsample.schedules import DiscreteVP
from tests.oracle import peers
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SDE = SD | {"algorithm_type": "sde-dpmsolver++"}
KARRAS_3 = {"solver_order": 3, "use_karras_sigmas": True}


@pytest.fixture(autouse=True)
def one_thread():
    """The U-Net's operators are so small that threads only wait for each other: 100 times slower on
    a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def in_double(*modules):
    """These modules read float64 where they say float32, or say nothing, as long as this lasts;
    what was compiled before is not found.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(runs, "_shared", {}))
        for module in modules:
            stack.enter_context(peers._replaced(module, **peers._in_double()))
        yield


@pytest.fixture(scope="module")
def unet():
    """A small U-Net with random float32 weights."""
    torch.manual_seed(5)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def pipeline(unet, scheduler, dtype):
    pipe = diffusers.DDPMPipeline(copy.deepcopy(unet).to(dtype), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe, steps=7):
    """The pipeline's last sample, before it clamps it; the noise it starts from is the same in
    every dtype.
    """
    last, step = [], pipe.scheduler.step
    takes = inspect.signature(step).parameters

    def kept(*args, **given):
        """The step; the pipeline hands a generator to schedulers that know none."""
        last.append(step(*args, **{n: v for n, v in given.items() if n in takes}))
        return last[-1]

    pipe.scheduler.step = kept
    noise = lambda size, dtype, **k: start(*size, dtype=dtype)
    with mock.patch("diffusers.pipelines.ddpm.pipeline_ddpm.randn_tensor", noise):
        pipe(batch_size=2, num_inference_steps=steps, output_type="pt")
    del pipe.scheduler.step
    return last[-1].prev_sample.double()


@pytest.mark.parametrize(
    ("module", "name", "config"),
    [
        ("dpmsolver_multistep", "DPMSolverMultistepScheduler", {}),
        ("unipc_multistep", "UniPCMultistepScheduler", {}),
        ("unipc_multistep", "UniPCMultistepScheduler", KARRAS_3),
    ],
)
def test_a_ddpm_pipeline_gives_the_peers_picture(module, name, config, unet, tmp_path):
    """compat, one U-Net, one noise: equal to DPM++2M and UniPC to float64, and in float32 no
    further from that than twice they are.
    """
    code = __import__(f"diffusers.schedulers.scheduling_{module}", fromlist=["x"])
    make = lambda: getattr(diffusers, name)(**config)
    make_ours = lambda: FsScheduler.from_config(make(), compat="diffusers")
    rounded = picture(pipeline(unet, make(), torch.float32))
    ours = picture(pipeline(unet, make_ours(), torch.float32))
    with in_double(code):
        exact = picture(pipeline(unet, make(), torch.float64))
        pipe = pipeline(unet, make_ours(), torch.float64)
        ours_exact = picture(pipe)
    rounding = (rounded - exact).abs().max()
    assert rounding < 1e-4 * exact.abs().max()  # one picture: the dtypes differ by rounding alone
    left = 2.0**-29 * rounding + np.finfo(float).eps * exact.abs().max()
    assert (ours_exact - exact).abs().max() <= 32 * left
    assert (ours - exact).abs().max() <= 2 * rounding  # the network's own rounding is in both
    pipe.save_pretrained(tmp_path)
    with in_double(code):
        again = diffusers.DDPMPipeline.from_pretrained(tmp_path, torch_dtype=torch.float64)
        again.set_progress_bar_config(disable=True)
        assert torch.equal(picture(again), ours_exact)
    assert type(again.scheduler) is FsScheduler
    said = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    assert all(again.scheduler.config[k] == v for k, v in said.items())


def test_a_plan_survives_save_and_load(unet, tmp_path):
    schedule = DiscreteVP.linear()
    plan = solvers.unipc(schedule, trailing(schedule, 6, rounded=True), prediction="eps")
    pipe = pipeline(unet, FsScheduler.from_plan(plan), torch.float32)
    first = picture(pipe, 6)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.plan.to_bytes() == plan.to_bytes()
    assert torch.equal(picture(again, 6), first)
    run = fastsample.Run(plan, latent=start(2, 3, 8, 8), start=1)
    with torch.no_grad():
        while not run.done:
            run.step(pipe.unet(run.model_input, run.t[0]).sample)
    assert torch.equal(run.x.double(), first)  # a Run in other clothes


def test_exact_and_compat_differ_by_what_compat_rounds():
    def ends(peer, steps):
        schedulers = (FsScheduler.from_config(peer, compat=c) for c in (None, "diffusers"))
        return (loop(scheduler, start(2, 3, 4, 4), steps) for scheduler in schedulers)

    a, b = ends(diffusers.DPMSolverMultistepScheduler(**SD), 8)
    assert 0 < (a - b).abs().max() < 2e-6 * b.abs().max()  # float32 sigmas
    a, b = ends(diffusers.DPMSolverMultistepScheduler(solver_order=3, **SD), 12)
    assert (a - b).abs().max() > 1e-4 * b.abs().max()  # the third-order term at its whole weight


@pytest.mark.parametrize(
    ("module", "name", "config", "given"),
    [
        ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", SD, {}),
        ("lcm", "LCMScheduler", {}, {}),
        ("ddpm", "DDPMScheduler", {}, {}),
        ("ddpm", "DDPMScheduler", SD | {"clip_sample": False}, {}),
        ("ddim", "DDIMScheduler", {}, {}),
        ("ddim", "DDIMScheduler", SD, {"eta": 0.6}),
        ("dpmsolver_multistep", "DPMSolverMultistepScheduler", SDE, {}),
    ],
)
def test_noise_and_clipping_are_the_peers(module, name, config, given):
    """Same generator, same picture in float64: one draw a step, from the generator or torch's own;
    x0 clipped where the config says so.

    Bound: 64 roundings a step, through what the loop makes of a small change of its start.
    """
    code = __import__(f"diffusers.schedulers.scheduling_{module}", fromlist=["x"])
    seeded = lambda: torch.Generator().manual_seed(1)
    with in_double(code, fastsample.interop.diffusers.scheduler):
        peer, x = getattr(diffusers, name)(**config), start(2, 3, 4, 4, dtype=torch.float64)
        ours = FsScheduler.from_config(peer, compat="diffusers")
        runs = [(peer, x), (ours, x), (peer, x * (1 + 1e-7))]
        a, b, moved = (loop(s, z, generator=seeded(), **given) for s, z in runs)
        torch.manual_seed(1)
        free = loop(ours, x, **given)
    growth = max(1.0, (moved - a).abs().max() / 1e-7)
    assert (a - b).abs().max() <= 64 * 8 * np.finfo(float).eps * growth
    assert torch.equal(free, b)


def test_half_precision_keeps_the_state_in_float32():
    """A bf16 pipeline: the state that bf16 samples stand for is not rounded at every step, so most
    of diffusers' error is not there.
    """
    peer = diffusers.EulerDiscreteScheduler(**SD)
    half = lambda x, t: (0.5 * x.float()).bfloat16()
    x = start(1, 4, 32, 32, dtype=torch.bfloat16) * 14
    exact = loop(FsScheduler.from_config(peer, compat=None), x.double(), 50, lambda x, t: 0.5 * x)
    runs = [loop(s, x, 50, half) for s in (FsScheduler.from_config(peer, compat=None), peer)]
    ours, theirs = ((v.double() - exact).square().mean().sqrt() for v in runs)
    assert runs[0].dtype == torch.bfloat16 and ours < theirs / 3


@pytest.mark.parametrize("inference", [False, True])
def test_an_edited_sample_is_the_new_state(inference):
    """The tensor handed back unwritten stands for its float32 state; a copy of it, or one that was
    written to, stands for itself.
    """
    peer = diffusers.EulerDiscreteScheduler(**SD)
    x = start(1, 4, 32, 32, dtype=torch.bfloat16) * 14
    f = start(1, 4, 32, 32, dtype=torch.bfloat16, seed=1)

    def second(edit):
        scheduler = FsScheduler.from_config(peer)
        scheduler.set_timesteps(4)
        given = scheduler.step(f, scheduler.timesteps[0], x).prev_sample
        return scheduler.step(f, scheduler.timesteps[1], edit(given)).prev_sample, given

    with torch.inference_mode(inference):
        kept, given = second(lambda v: v)
        fresh = FsScheduler.from_config(peer)
        fresh.set_timesteps(4)
        fresh.set_begin_index(1)
        from_sample = fresh.step(f, fresh.timesteps[1], given).prev_sample
        assert not torch.equal(kept, from_sample)
        for edit in (torch.clone, lambda v: v.mul_(1.0)):
            assert torch.equal(second(edit)[0], from_sample)
