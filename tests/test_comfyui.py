"""The ComfyUI node pack in a host of ours (tests/comfyui_host.py), against loops in float64 and
k-diffusion's samplers in the same host.
"""

import importlib.util
import math

import numpy as np
import pytest
import torch

import fastsample as fs
from tests import comfyui_host as host
from tests.comfyui_pack import KINDS, levels, loaded, network, noise, sampled  # noqa: F401
from tests.oracle import peers

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SOLVERS = ("euler", "heun", "dpmpp_2m")
PEER = importlib.util.find_spec("k_diffusion") is not None


def peer(name):
    return host.KSAMPLER(getattr(peers.k_diffusion(), f"sample_{name}"))


def looped(name, flow):
    """A sampler of the host: the formula, step by step, in float64."""

    def loop(model, x, sigmas, extra_args, callback=None, disable=None):
        s, ones, before = sigmas.double().tolist(), x.new_ones(len(x)), None
        ask = lambda x, s: model(x, s * ones, **extra_args)
        lam = lambda s: math.inf if not s else math.log((1 - s) / s if flow * s < 1 else 1e-300)
        lam = lam if flow else lambda s: -math.log(s) if s else math.inf
        for a, b in zip(s, s[1:], strict=False):
            x0 = ask(x, a)
            if name != "dpmpp_2m":
                d, to = (x - x0) / a, x + (b - a) * (x - x0) / a
                if name == "heun" and b:
                    d = (d + (to - ask(to, b)) / b) / 2
                x = x + (b - a) * d
                continue
            mean, keep, h = x0, 1 - b if flow else 1.0, lam(b) - lam(a)
            if before is not None and b and before[1] < 1e2:
                mean = x0 + h / before[1] / 2 * (x0 - before[0])
            x, before = b / a * x - keep * math.expm1(-h) * mean, (x0, h)
        return x

    return host.KSAMPLER(loop)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_on_the_hosts_sigmas(pack, kind, name):
    """From the model's largest sigma, exactly 1 for a flow, with guidance."""
    sigmas, (sampler,) = levels(kind), pack.run("Solver", solver=name)
    end = sampled(sampler, sigmas, kind)
    torch.testing.assert_close(end, sampled(looped(name, kind == "flow"), sigmas, kind), **CLOSE)
    assert kind != "flow" or sigmas[0] == 1.0
    if PEER:
        if (kind, name) == ("flow", "dpmpp_2m"):  # which steps in -ln sigma there
            (sampler,) = pack.run("Solver", solver=name, compat="comfyui")
            assert not torch.allclose(end, sampled(sampler, sigmas, kind), rtol=1e-3)
            end = sampled(sampler, sigmas, kind)
        torch.testing.assert_close(end, sampled(peer(name), sigmas, kind), **CLOSE)


def schedule(kind):
    sampling = KINDS[kind]()
    if kind == "flow":
        return fs.schedules.Flow(sampling.shift)
    return fs.schedules.EDM(float(sampling.sigma_min), float(sampling.sigma_max))


def planned(pack, kind, name, steps=6, **words):
    """A plan of the folder and what the Plan node makes of it."""
    model = fs.interop.k_model(network, schedule(kind))
    plan = fs.solvers.SOLVERS[name](model, fs.grids.fine(model.schedule, steps), **words)
    plan.save(pack.folder / f"{kind}-{name}.fsplan")
    return plan, *pack.run("Plan", plan=f"{kind}-{name}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_plan_on_its_own_sigmas(pack, kind, name):
    """A tail of them, with an image, too. The noise is the plan's own, which the host has scaled by
    sqrt(1 + sigma²).
    """
    plan, sampler, sigmas, about = planned(pack, kind, name)
    assert sigmas.dtype == torch.float32 and len(sigmas) == 7 and sigmas[-1] == 0.0
    assert name in about and (kind == "flow") == (sigmas[0] == 1.0)
    loop, z = looped(name, kind == "flow"), noise()
    top = float(sigmas[0])
    started = z if kind == "flow" else z * top / math.hypot(1.0, top)
    torch.testing.assert_close(
        sampled(sampler, sigmas, kind, z), sampled(loop, sigmas, kind, started), **CLOSE
    )
    image, tail = noise(5), sigmas[3:]
    ends = [sampled(each, tail, kind, z, image) for each in (sampler, loop)]
    torch.testing.assert_close(*ends, **CLOSE)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_the_host_gets_what_the_sampler_gets(pack, kind):
    """Within float64's rounding: one plan, one noise, with an amplitude that was found."""
    plan, *_ = planned(pack, kind, "dpmpp_2m")
    table = plan.M.copy()
    table[0, 0, 0] *= 1.03
    plan = plan.with_numbers(M=table)
    plan.save(pack.folder / "louder.fsplan")
    sampler, sigmas, _ = pack.run("Plan", plan="louder")
    guider = host.Guider(network, KINDS[kind]())
    guider.inner_model = guider.model
    denoise = lambda x, s: guider(x, s, model_options={"transformer_options": {}})
    model = fs.interop.k_model(denoise, schedule(kind))
    expected = fs.Sampler(plan, model)(noise=noise())
    for latent in (None, noise(5)):  # an image is nothing to a whole plan
        end = sampled(sampler, sigmas, kind, latent=latent)
        torch.testing.assert_close(end, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_masks_keep_the_latent(pack, kind):
    """As the peer has it; to the bit where nothing is denoised, rows that were found too."""
    z, image, mask = noise(), noise(7), (noise(8, (2, 1, 4, 4)) > 0).double()
    mask[0, 0, 0, :2] = 0.5
    plan, sampler, sigmas, _ = planned(pack, kind, "euler")
    found = fs.optimize.fit(
        fs.interop.k_model(lambda x, s: x / (1 + s.view(-1, 1) ** 2), schedule(kind)),
        [8, 4], 3, seed=0, beam=1, teacher=20, progress=False,
    ).plan  # fmt: skip
    found.save(pack.folder / "found.fsplan")
    for each, at in ((sampler, sigmas), pack.run("Plan", plan="found")[:2]):
        end = sampled(each, at, kind, z, image, mask)
        kept = (mask == 0).expand_as(end)
        assert torch.equal(end[kept], image[kept]) and not torch.equal(end, image)
    loop = looped("euler", kind == "flow")
    ends = [
        sampled(each, sigmas[3:], kind, z, image, mask)
        for each in (sampler, loop, pack.run("Solver", solver="euler")[0])
    ]
    torch.testing.assert_close(ends[0], ends[1], **CLOSE)
    torch.testing.assert_close(ends[2], ends[1], **CLOSE)


def test_a_mask_that_moves_keeps_nothing_to_the_end(pack):
    """What differential diffusion makes of it at each step is the host's: the numbers of its own
    sampler come out.
    """
    z, image, mask = noise(), noise(7), (noise(8, (2, 1, 4, 4)) > 0).double()
    moved = lambda s, mask: torch.where(s.view(-1, 1, 1, 1) < 0.5, 1.0, mask)
    for kind in ("eps", "flow"):
        _, sampler, sigmas, _ = planned(pack, kind, "euler")
        words = {"z": z, "latent": image, "mask": mask, "options": {"denoise_mask_function": moved}}
        ours, theirs = (
            sampled(each, sigmas[2:], kind, **words)
            for each in (sampler, looped("euler", kind == "flow"))
        )
        torch.testing.assert_close(ours, theirs, **CLOSE)
        kept = (mask == 0).expand_as(image)
        assert (theirs - image)[kept].abs().min() > 1e-3


def wrapping(sampler, hands_on):
    """A SAMPLER that changes what the model is told, and calls another one with its own model, as
    nodes do that bring out detail: of the host's it hands on these attributes alone.
    """

    def wrapped(model, x, sigmas, **words):
        def lying(x, sigma, **extra_args):
            return model(x, 0.98 * sigma, **extra_args)

        vars(lying).update({name: getattr(model, name) for name in hands_on})
        return sampler.function(lying, x, sigmas, **words, **sampler.options)

    return host.KSAMPLER(wrapped)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_another_sampler_may_wrap_it(pack, kind):
    _, plan, sigmas, _ = planned(pack, kind, "euler")
    (solver,), loop = pack.run("Solver", solver="euler"), looped("euler", kind == "flow")
    z, image, mask = noise(), noise(7), (noise(8, (2, 1, 4, 4)) > 0).double()
    wrapped = [wrapping(each, ["inner_model"]) for each in (plan, solver, loop)]
    for words in ({}, {"latent": image, "mask": mask}):
        ends = [sampled(each, sigmas[2:], kind, z, **words) for each in wrapped]
        torch.testing.assert_close(ends[0], ends[2], **CLOSE)
        torch.testing.assert_close(ends[1], ends[2], **CLOSE)
    kept = wrapping(plan, ["inner_model", "latent_image"])
    ends = [sampled(each, sigmas, kind, z) for each in (wrapped[0], kept)]
    assert torch.equal(*ends), "from noise alone nothing is asked of the latent"
    for each in (plan, solver):
        with pytest.raises(ValueError, match=r"called by another one.*\(function\).*inner_model"):
            sampled(wrapping(each, []), sigmas, kind, z)


def test_callbacks_bars_and_seeds(pack, capsys):
    """A callback is told step, x0, x and how many steps; noises are those of the seed, whatever the
    batch.
    """
    seen, sigmas = [], levels("eps")
    heun, noisy = (pack.run("Solver", solver=name)[0] for name in ("heun", "euler_ancestral"))
    sampled(heun, sigmas, callback=lambda *told: seen.append(told))
    assert [told[0] for told in seen] == list(range(6)) and {told[3] for told in seen} == {6}
    assert all(told[1].shape == told[2].shape == (2, 3, 4, 4) for told in seen)
    assert capsys.readouterr().err == ""
    both = sampled(noisy, sigmas)
    assert torch.equal(both, sampled(noisy, sigmas))
    assert torch.equal(both[:1], sampled(noisy, sigmas, z=noise()[:1]))
    assert not torch.allclose(both, sampled(noisy, sigmas, seed=4))
    last = sampled(noisy, sigmas, seed=2**64 - 1)  # the host's largest: the next sample has seed 0
    assert torch.equal(last[1:], sampled(noisy, sigmas, z=noise()[1:], seed=0))
    sampled(heun, sigmas, disable_pbar=False)
    assert "6/6" in capsys.readouterr().err


def test_options_are_the_solvers(pack):
    sigmas = levels("eps")
    still = sampled(pack.run("Solver", solver="euler_ancestral", eta=0.0)[0], sigmas)
    torch.testing.assert_close(still, sampled(pack.run("Solver", solver="euler")[0], sigmas))
    first = sampled(pack.run("Solver", solver="unipc", order=1)[0], sigmas)
    assert not torch.allclose(first, sampled(pack.run("Solver", solver="unipc")[0], sigmas))
    with pytest.raises(ValueError, match=r"eta = 0.5 for the solver euler, which has none; .*dpm"):
        pack.run("Solver", solver="euler", eta=0.5)
    with pytest.raises(ValueError, match="order"):
        pack.run("Solver", solver="unipc", order=9)
    with pytest.raises(host.Refused, match="solver = 'ddim9'"):
        pack.run("Solver", solver="ddim9")


def test_every_solver_that_is_offered_runs(pack):
    offered = pack.sampling.solver_names()
    assert len(offered) > 35 and not any("cfgpp" in name for name in offered)
    for name in offered:
        (sampler,) = pack.run("Solver", solver=name)
        kinds = ("flow",) if name == "flow_sde" else ("eps", "flow")
        for kind in kinds:
            assert sampled(sampler, levels(kind, 4), kind).isfinite().all(), (name, kind)


def test_noise_that_is_larger_than_the_data(pack, monkeypatch):
    """The same numbers as in the host's own state, which is that of noise eight times as large;
    noises that are drawn are as large.
    """
    monkeypatch.setitem(KINDS, "loud", host.Loud)
    z, image, mask = noise(), noise(7), (noise(8, (2, 1, 4, 4)) > 0).double()
    _, plan, whole, _ = planned(pack, "flow", "dpmpp_2m")
    (solver,), loop, seen = pack.run("Solver", solver="dpmpp_2m"), looped("dpmpp_2m", True), []
    for sigmas, words in ((whole, {}), (whole[3:], {"latent": image, "mask": mask})):
        told = [[], [], []]
        ends = [
            sampled(each, sigmas, "loud", z, callback=lambda *v, to=to: to.append(v), **words)
            for each, to in zip((plan, solver, loop), told, strict=True)
        ]
        torch.testing.assert_close(ends[0], ends[2], **CLOSE)
        torch.testing.assert_close(ends[1], ends[2], **CLOSE)
        seen += [v[1] for v in told[0]]
    assert len(seen) == 9 and seen[0].std() > 3
    drawn = lambda kind: sampled(
        pack.run("Solver", solver="flow_sde")[0], levels("flow")[:2], kind, z * 0, z * 0
    )
    monkeypatch.setattr("tests.comfyui_pack.network", lambda x, t: 0 * x)
    torch.testing.assert_close(drawn("loud"), 8 * drawn("flow"))


def test_audio_and_video_come_packed(pack):
    """One clock for both; elementwise, each is its own run."""
    (sampler,), sigmas = pack.run("Solver", solver="dpmpp_2m"), levels("flow")
    parts = [noise(1, (2, 4, 2, 3)), noise(2, (2, 5))]
    latent = host.NestedTensor(torch.zeros_like(z) for z in parts)
    for end, z in zip(
        sampled(sampler, sigmas, "flow", host.NestedTensor(parts), latent).unbind(),
        parts,
        strict=True,
    ):
        assert torch.equal(end, sampled(sampler, sigmas, "flow", z))
    with pytest.raises(ValueError, match="several tensors .* arrived unpacked"):
        pack.sampling.kind_of(host.CONST(), latent)


# -- refusals --------------------------------------------------------------------------------------


def test_other_sigmas_are_refused_or_rebuilt(pack):
    plan, sampler, sigmas, _ = planned(pack, "eps", "dpmpp_2m")
    other = levels("eps", 4)
    with pytest.raises(
        ValueError,
        match="the plan eps-dpmpp_2m does not run on the SIGMAS .* the plan runs on",
    ):
        sampled(sampler, other)
    again, *_ = pack.run("Plan", plan="eps-dpmpp_2m", other_sigmas="rebuild")
    (solver,) = pack.run("Solver", solver="dpmpp_2m")
    for at in (other, other[1:], sigmas[:4]):  # the last stops on the way
        torch.testing.assert_close(sampled(again, at), sampled(solver, at), **CLOSE)
    with pytest.raises(ValueError, match="is for x0 .* and the model connected is one of .*Flux"):
        sampled(sampler, sigmas, "flow")
    assert torch.equal(sampled(sampler, sigmas[:1], z=noise() * 0), noise() * 0)
    with pytest.raises(ValueError, match="noise connected is not of unit variance .*; RandomNoise"):
        sampled(sampler, sigmas, z=noise() * 0)


def test_a_plan_above_the_models_largest_sigma_is_refused(pack):
    """80, of another family, where the model's network knows up to 14.6; and no rounded list."""
    for first, fits in ((80.0, False), (14.615, True), (15.0, False)):
        grid = fs.grids.from_sigmas(fs.schedules.EDM(), [first, 4.0, 1.0, 0.0])
        plan = fs.solvers.dpmpp_2m(fs.schedules.EDM(), grid, prediction="x0")
        plan.save(pack.folder / "hot.fsplan")
        sampler, sigmas, _ = pack.run("Plan", plan="hot")
        assert sampled(sampler, sigmas[1:], latent=noise(5)).isfinite().all()
        if fits:
            assert sampled(sampler, sigmas).isfinite().all()
            continue
        said = rf"plan hot begin at {first:g}, and the model connected knows noise up to 14.6"
        with pytest.raises(ValueError, match=said):
            sampled(sampler, sigmas)


def test_every_input_and_output_says_what_it_is(pack):
    for name in ("Plan", "Solver", "Calibrate"):
        schema = pack.node(name).define_schema()
        for each in (*schema.inputs, *schema.outputs):
            assert each.tooltip and each.tooltip.endswith("."), (name, each)


def test_a_plan_that_no_sampler_can_run_is_refused_before_the_workflow_runs(pack):
    edm = fs.schedules.EDM()
    plan = fs.solvers.euler(edm, fs.grids.karras(edm, 3), prediction="x0")
    fs.guidance.guided(plan, 2).save(pack.folder / "two.fsplan")
    with pytest.raises(host.Refused, match="the plan two is none for a SAMPLER .*several branches"):
        pack.run("Plan", plan="two")


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".", "..", "a" * 65, "ä", "x\n"])
def test_names_that_lead_elsewhere(pack, name):
    for node in ("Plan", "Calibrate"):
        validate = pack.node(node).validate_inputs
        assert "the plan's name is" in validate(name)
    with pytest.raises(ValueError, match="the plan's name is"):
        pack.store.load(name)


def test_plans_that_are_missing_broken_or_links(pack):
    with pytest.raises(host.Refused, match="there is no plan 'none'; one of none yet, or a file"):
        pack.run("Plan", plan="none")
    (pack.folder / "broken.fsplan").write_bytes(b"not a plan")
    with pytest.raises(host.Refused, match="the file of the plan broken cannot be read"):
        pack.run("Plan", plan="broken")
    (pack.folder / "out.fsplan").symlink_to("/etc/hostname")
    with pytest.raises(host.Refused, match="a link out of the pack's folder"):
        pack.run("Plan", plan="out")
    plan, *_ = planned(pack, "eps", "euler")
    node = pack.node("Plan")
    assert node.define_schema().inputs[0].options == ["broken", "eps-euler", "out"]
    before = node.fingerprint_inputs("eps-euler", "refuse")
    plan.with_note(more=1).save(pack.folder / "eps-euler.fsplan")
    assert before != node.fingerprint_inputs("eps-euler", "refuse")


def test_a_state_that_nobody_knows(pack):
    uneven = torch.linspace(1.0, 2.0, 4)
    for made, said in (
        (lambda s, noise, latent: s * noise + latent / 4, "0.5 noise . 0.25 latent"),
        (lambda s, noise, latent: noise + latent, "1 noise . 1 latent"),
        (lambda s, noise, latent: s * noise + (1 - s * s) * latent, "0.5 noise . 0.75 latent"),
        (lambda s, noise, latent: s * uneven * noise + (1 - s) * latent, "nan noise . 0.5 latent"),
    ):
        with pytest.raises(ValueError, match=f"Other makes {said} at sigma = 0.5; a model of x0"):
            pack.sampling.kind_of(host.Other(made), noise())
    with pytest.raises(ValueError, match="solver euler does not run on the SIGMAS .* that fall"):
        sampled(pack.run("Solver", solver="euler")[0], levels("eps").flip(0))
    with pytest.raises(ValueError, match="connected holds NaN or Inf, .*SplitSigmas at step 0"):
        sampled(pack.run("Solver", solver="euler")[0], levels("eps"), z=noise() * np.nan)
