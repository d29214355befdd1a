"""The pipelines of the flow families with random weights: FsScheduler in place of the scheduler
they are published with keeps the pixels. With -s every case prints its largest relative difference.
"""

import copy
import functools
import inspect

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle.pipelines import start

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")  # the pipelines import it, for encoders that are not run here
diffusers.utils.logging.set_verbosity_error()
families = pytest.importorskip("tests.families")
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
EPS = float(np.finfo(np.float32).eps)
MATCH = families.MATCH


@pytest.fixture(autouse=True)
def one_thread():
    """The operators are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipes():
    """Every family's pipeline, made once."""
    return {}


def pipe_of(pipes, family):
    if family not in pipes:
        pipes[family] = families.made(family)
    return pipes[family]


def apart(a, b):
    return float((a - b).abs().max() / a.abs().max())


def nudged(scheduler):
    """The scheduler with labels and levels one float32 rounding lower."""
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def lower(*args, **given):
        set_timesteps(*args, **given)
        for name in ("timesteps", "sigmas"):
            value = getattr(scheduler, name)
            if value.is_floating_point():
                setattr(scheduler, name, torch.nextafter(value, torch.zeros(())))

    scheduler.set_timesteps = lower
    return scheduler


def cases():
    for family, published in families.PUBLISHED.items():
        for k, (model, source, config) in enumerate(published):
            mark = [pytest.mark.slow] if k else []
            yield pytest.param(family, source, config, marks=mark, id=f"{family}-{model}")


@pytest.mark.parametrize(("family", "source", "config"), list(cases()))
def test_a_family_keeps_its_pixels(family, source, config, pipes, request):
    """FlowMatchEuler with compat bit for bit, or to 16 float32 roundings a step where the step
    draws, as multistep solvers are. Exact: as far as one rounding of labels and levels takes the
    picture; further only where README says so.
    """
    (pipe, arguments), steps = pipe_of(pipes, family), 5

    def run(scheduler, steps=steps):
        pipe.scheduler = scheduler
        return families.latents(pipe, arguments, steps)

    peer = lambda: getattr(diffusers, source)(**config)
    compat, exact = (FsScheduler.from_config(peer(), compat=c) for c in ("auto", None))
    theirs, again, lower, kept, free = map(run, (peer(), peer(), nudged(peer()), compat, exact))
    assert compat.config.compat == "diffusers" and theirs.isfinite().all()
    off, off_exact, twice = (apart(theirs, end) for end in (kept, free, again))
    name = request.node.callspec.id
    print(f"\n{name}: {source} {off:.1e}, exact {off_exact:.1e}, run to run {twice:.1e}")
    assert apart(theirs, run(compat, steps - 1)) > 1e-3  # the scheduler matters
    draws = config.get("stochastic_sampling", False)
    if source == MATCH and not draws or family == "LTX Condition":
        assert torch.equal(theirs, kept)
    assert off <= 16 * steps * EPS
    if source != MATCH:  # labels with their fraction, a first step from sigma 1 itself
        assert EPS < off_exact < 0.05
    elif draws and family == "LTX Condition":  # where diffusers takes the output's sign for another
        assert off_exact > 0.1
    else:
        assert off_exact <= 16 * steps * EPS + 4 * apart(theirs, lower)


# -- what people do with a pipeline ----------------------------------------------------------------
@pytest.fixture
def both(pipes):
    """Latents of SD3 with its own scheduler and with ours in its place, from one call each."""
    pipe, arguments = pipe_of(pipes, "SD3")

    def ends(pipe=pipe, steps=6, **given):
        found = []
        for scheduler in (peer := diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), of(peer)):
            pipe.scheduler = scheduler
            found.append(families.latents(pipe, arguments | given, steps))
        assert type(pipe.scheduler) is FsScheduler
        return found

    return ends


def of(peer, **given):
    return FsScheduler.from_config(peer, **given)


def test_a_callback_edits_and_interrupts(both):
    def edit(pipe, i, t, tensors):
        return {"latents": tensors["latents"] * 0.98 + 0.01 * i}

    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 2
        return tensors

    plain = both()
    for callback in (edit, stop):
        theirs, ours = both(callback_on_step_end=callback)
        assert torch.equal(theirs, ours) and apart(theirs, plain[0]) > 0.01


def test_a_pipeline_is_copied_and_made_into_another(both, pipes):
    """A deep copy runs on its own; from_pipe takes the scheduler along, for images too."""
    pipe, arguments = pipe_of(pipes, "SD3")
    theirs, ours = both()
    twin = copy.deepcopy(pipe)
    assert twin.scheduler is not pipe.scheduler
    assert torch.equal(families.latents(twin, arguments, 6), ours)
    other = diffusers.StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    image = start(1, 3, 64, 64).sigmoid()
    for strength in (0.3, 0.6, 1.0):
        a, b = both(other, 10, image=image, strength=strength)
        assert torch.equal(a, b) and apart(a, theirs) > 0.01


PICTURE, HOLE = start(1, 3, 64, 64).sigmoid(), (start(1, 1, 64, 64) > 0).float()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "words"),
    [
        ("Flux", "FluxImg2ImgPipeline", {"image": PICTURE, "strength": 0.6}),
        ("Flux", "FluxInpaintPipeline", {"image": PICTURE, "mask_image": HOLE, "strength": 0.6}),
        ("LTX Condition", "LTXImageToVideoPipeline", {"image": PICTURE}),
    ],
)
def test_images_are_the_start(family, kind, words, pipes):
    """Noise added at a begin index, at every step (inpainting), and to all but the first frame."""
    pipe, arguments = pipe_of(pipes, family)
    _, source, config = families.PUBLISHED[family][0]
    ends = []
    for scheduler in (peer := getattr(diffusers, source)(**config), of(peer)):
        pipe.scheduler = scheduler
        other = getattr(diffusers, kind).from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        taken = inspect.signature(other.__call__).parameters
        given = {k: v for k, v in (arguments | words).items() if k in taken}
        ends.append(families.latents(other, given, 10))
    assert torch.equal(*ends)


@pytest.mark.slow
@pytest.mark.parametrize("family", families.PUBLISHED)
def test_half_precision_ends_in_the_peers_dtype(family):
    """bfloat16 weights: as close as that rounds, for the state stays in float32 here."""
    pipe, arguments = families.made(family)
    pipe.to(torch.bfloat16)
    half = lambda v: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v
    for name in [name for name in arguments if name.endswith("embeds")]:
        value = arguments[name]
        arguments[name] = [*map(half, value)] if isinstance(value, list) else half(value)
    _, source, config = families.PUBLISHED[family][0]
    ends = []
    for scheduler in (peer := getattr(diffusers, source)(**config), of(peer)):
        pipe.scheduler = scheduler
        ends.append(families.latents(pipe, arguments, 5))
    assert ends[0].dtype == ends[1].dtype
    assert apart(*(end.double() for end in ends)) <= 5 * 2.0**-8


def test_low_rank_weights_are_the_networks_own_affair(both, pipes):
    """Fused by hand, W + BA, as peft would: other pixels, and the same with either scheduler."""
    pipe, _ = pipe_of(pipes, "SD3")
    plain = both()[0]
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    low_rank = start(weight.shape[0], 2, seed=1) @ start(2, weight.shape[1], seed=2)
    before = weight.detach().clone()
    with torch.no_grad():
        weight += low_rank
        theirs, ours = both()
        weight.copy_(before)
    assert torch.equal(theirs, ours) and apart(theirs, plain) > 1e-3
    assert torch.equal(both()[1], plain)


@pytest.mark.parametrize("road", ["model", "group"])
def test_offloaded_weights_change_no_pixel(road, both):
    pytest.importorskip("accelerate")  # which both roads ask for
    pipe, _ = families.made("SD3")
    plain = both(pipe)[0]
    if road == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        there = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
        pipe.enable_group_offload(offload_type="leaf_level", **there)
    for _ in range(2):
        theirs, ours = both(pipe)
        assert torch.equal(theirs, ours) and torch.equal(ours, plain)


@pytest.mark.parametrize("source", [families.UNIPC, families.DPM])
def test_a_compatible_class_is_taken_by_its_config(source, pipes):
    """pipe.scheduler.compatibles is the source's own list, and one of them made from our config
    runs as made from the source's.
    """
    pipe, arguments = pipe_of(pipes, "Wan")
    peer = getattr(diffusers, source)(**families.FLOW, flow_shift=3.0)
    assert set(of(peer).compatibles) == set(peer.compatibles)
    match = of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert match.compatibles == [diffusers.FlowMatchEulerDiscreteScheduler]
    other = next(c for c in of(peer).compatibles if c.__name__ in (families.UNIPC, families.DPM))
    ends = []
    for config in (peer.config, of(peer).config):
        pipe.scheduler = other.from_config(config)
        ends.append(families.latents(pipe, arguments))
    assert torch.equal(*ends)
