"""A whole sampler as one exported program: the definition, in torch's operators alone."""

import pytest
import torch
from torch import nn

import fastsample as fs

FLOW, D = fs.schedules.Flow(), 4


class Net(nn.Module):
    """A network that is told a label [B,4], a weight that belongs to no sample, and a word."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.outer = nn.Linear(D, 8), nn.Linear(8, D)

    def forward(self, x, t, label=None, weight=1.0, word="up"):
        h = torch.tanh(self.inner(x) + t[:, None])
        h = h if label is None else h + label.repeat(1, 2)
        return weight * self.outer(h if word == "up" else -h)


def unit(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sampler_of(solver, steps=2, **options):
    model = fs.Model(Net().eval().requires_grad_(False), FLOW, "flow")
    grid = fs.grids.uniform(FLOW, steps)
    return fs.Sampler(getattr(fs.solvers, solver)(model, grid, **options), model)


def operators(program):
    """Names of what the program calls, by whose they are."""
    nodes = [
        n for m in program.graph_module.modules() for n in getattr(m, "graph", program.graph).nodes
    ]
    called = [n.target for n in nodes if n.op == "call_function"]
    return {getattr(target, "namespace", target.__module__) for target in called}


@pytest.mark.parametrize(
    ("solver", "options", "drawn"), [("unipc", {}, 0), ("dpmpp_sde", {"eta": 0.5}, 1)]
)
def test_a_program_is_the_sampler(solver, options, drawn):
    """Of any batch, one included, with the noises that the plan draws as an input."""
    sampler = sampler_of(solver, **options)
    program = fs.export(sampler, noise=unit(3, D))
    assert operators(program) <= {"aten", "_operator"}
    for batch in (5, 1, 3):
        z, draws = unit(batch, D, seed=1), unit(drawn, batch, D, seed=2)
        given = {"draws": draws} if drawn else {}
        own = sampler(noise=z, noise_source=list(draws) if drawn else None)
        assert torch.equal(program.module()(noise=z, **given), own)
    if drawn:
        with pytest.raises(
            ValueError, match=rf"^export: draws is \[2, 3, 4\]; \[{drawn}, 3, 4\] is"
        ):
            fs.export(sampler, noise=unit(3, D), draws=unit(2, 3, D))


@pytest.mark.parametrize("guidance", [2.0, torch.tensor([1.0, 2.0, 3.0])])
def test_conditions_and_guidance(guidance):
    """Tensors are inputs, of cond and then of uncond; numbers, words and what is shared stay."""
    sampler, z = sampler_of("dpmpp_2m"), unit(3, D)
    word = {"weight": fs.shared(torch.full((D,), 0.5)), "word": "down"}
    cond, uncond = {"label": unit(3, D, seed=1)} | word, {"label": torch.zeros(3, D)} | word
    call = {"cond": cond, "uncond": uncond, "guidance": guidance}
    program = fs.export(sampler, noise=z, **call)
    kinds = [spec for spec in program.graph_signature.user_inputs if isinstance(spec, str)]
    assert kinds[:3] == ["noise", "told_0", "told_1"]
    assert len(kinds) == 3 + isinstance(guidance, torch.Tensor)
    cond["label"], own = unit(3, D, seed=4), {}
    if isinstance(guidance, torch.Tensor):
        call["guidance"] = own["guidance"] = guidance + 1
    got = program.module()(noise=z, told=[cond["label"], uncond["label"]], **own)
    assert torch.equal(got, sampler(noise=z, **call))


def test_one_tensor_in_two_places():
    """Each place is an input of its own; a condition may be None."""
    sampler, z, label = sampler_of("euler"), unit(3, D), unit(3, D, seed=1)
    tell = lambda cond, uncond: {
        "cond": {"label": cond, "word": None},
        "uncond": {"label": uncond, "word": None},
        "guidance": 2.0,
    }
    program = fs.export(sampler, noise=z, **tell(label, label))
    other = unit(3, D, seed=2)
    own = sampler(noise=z, **tell(label, other))
    assert torch.equal(program.module()(noise=z, told=[label, other]), own)


def test_from_an_image():
    """The noise that it is noised with is the first of the draws."""
    sampler, image = sampler_of("euler_ancestral", 4), unit(3, D, seed=5)
    program = fs.export(sampler, latent=image, strength=0.5)
    draws = unit(2, 3, D, seed=6)
    own = sampler(latent=image, noise_source=list(draws), strength=0.5)
    assert torch.equal(program.module()(latent=image, draws=draws), own)


@pytest.mark.parametrize(
    ("solver", "drawn", "alike"), [("dpmpp_2m", 0, False), ("euler_ancestral", 1, True)]
)
def test_with_a_mask_and_a_known_image(solver, drawn, alike):
    """Inputs, of each sample or one for all; the known image is noised with the noise given."""
    sampler, n = sampler_of(solver, inpaint=True), 1 if alike else 5
    example = {"mask": torch.ones(min(n, 3), D), "known": unit(min(n, 3), D)}
    program = fs.export(sampler, noise=unit(3, D), **example)
    z, draws = unit(5, D, seed=1), unit(drawn, 5, D, seed=2)
    given = {"mask": (unit(n, D, seed=3) > 0).float(), "known": unit(n, D, seed=4)}
    own = sampler(noise=z, noise_source=list(draws) if drawn else None, **given)
    given |= {"draws": draws} if drawn else {}
    assert torch.equal(program.module()(noise=z, **given), own)
    assert not torch.equal(program.module()(noise=z, **given | {"mask": given["mask"] * 0}), own)


def test_two_models_and_weights_of_both():
    high, low = (fs.Model(Net(k).requires_grad_(False), FLOW, "flow") for k in range(2))
    plan = fs.solvers.dpmpp_2m(high, fs.grids.uniform(FLOW, 2))
    sampler = fs.Sampler(fs.solvers.experts(plan, boundary=0.6), [high, low])
    program, z = fs.export(sampler, noise=unit(2, D)), unit(4, D, seed=1)
    assert len(program.state_dict) == 8
    assert torch.equal(program.module()(noise=z), sampler(noise=z))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "noise is a NoneType, latent a NoneType; one tensor of 2 samples or more is accepted"),
        ({"noise": unit(2, D), "latent": unit(2, D)}, "noise is a Tensor, latent a Tensor; one"),
        ({"noise": unit(1, D)}, "a batch of 1 with dynamic_batch=True; one tensor of 2 samples"),
        ({"noise": unit(2, D), "strength": 0.5}, r"strength=0\.5 without an image; latent= is"),
        (
            {"noise": unit(2, D), "draws": unit(1, 2, D)},
            r"draws is \[1, 2, 4\]; \[0, 2, 4\] is acc",
        ),
        ({"noise": unit(2, D), "cond": {"label": unit(3, D)}}, r"cond\[\"label\"\]"),
        ({"noise": unit(2, D), "mask": unit(2, D)}, "mask is given without known; inpainting"),
        (
            {"noise": unit(2, D), "mask": unit(1, D) * 0, "known": unit(2, D)},
            "mask and known are given and no row of this plan blends a known image; plan.remake",
        ),
    ],
)
def test_what_does_not_fit(given, sentence):
    with pytest.raises(ValueError, match=f"^export: .*{sentence}|^export: {sentence}"):
        fs.export(sampler_of("dpmpp_2m"), **given)


def test_one_sample_alone():
    sampler, z = sampler_of("euler"), unit(1, D)
    program = fs.export(sampler, noise=z, dynamic_batch=False)
    assert torch.equal(program.module()(noise=z), sampler(noise=z))


@pytest.mark.slow
def test_a_program_compiled_ahead_of_time(tmp_path):
    """Its .pt2, loaded again: a network's compiled kernels round on their own."""
    sampler, z = sampler_of("dpmpp_2m_sde", 3), unit(3, D, seed=1)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            fs.export(sampler, noise=unit(2, D)), package_path=str(tmp_path / "sampler.pt2")
        )
    draws = unit(2, 3, D, seed=2)
    got = torch._inductor.aoti_load_package(path)(noise=z, draws=draws)
    own = sampler(noise=z, noise_source=list(draws))
    assert (got - own).abs().max() <= 1e-6 * own.abs().max()
