"""Tracks: one call of a model denoises several tensors, each by a plan of its own."""

import copy
import inspect

import diffusers
import numpy as np
import pytest
import torch
from cases import same
from choosing import unit
from tracked import (
    DATA,
    SHIFTS,
    SIZES,
    alike,
    apart,
    by_hand,
    coupled,
    noises,
    plan_of,
    plans,
    velocity,
)

import fastsample as fs
from fastsample import grids, schedules, solvers
from fastsample.model import Model

OWN, Z = plans(), noises()


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_both_land_on_their_exact_flows(solver, order):
    """That of N(mean, std²) takes z to mean + std z; the error falls with the solver's order."""
    z, far = noises(torch.float64), []
    for n in (128, 256):
        x = fs.Sampler(plans(solver=solver, n=n), apart)(noise=z)
        exact = {k: DATA[k][0] + DATA[k][1] * z[k] for k in z}
        far.append({k: float((x[k] - exact[k]).abs().max()) for k in x})
    for name in SHIFTS:
        assert np.log2(far[0][name] / far[1][name]) > order - 0.15, far


def test_data_at_one_point_is_reached_exactly():
    """Flows to a point are straight, so each is exact in any number of steps."""
    points = {"video": 0.5, "audio": -1.0}

    def straight(x, t):
        return {k: (v - points[k]) / t[k].view(-1, *[1] * (v.dim() - 1)) for k, v in x.items()}

    for n in (1, 2, 5):
        x = fs.Sampler(plans(solver="euler", n=n), straight)(noise=noises(torch.float64))
        for name, point in points.items():
            torch.testing.assert_close(x[name], torch.full_like(x[name], point), rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", ["euler", "unipc", "heun", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_each_is_its_own_run_to_the_bit_where_the_model_does_not_couple_them(solver):
    own, z = plans(solver=solver), noises()
    x = fs.Sampler(own, apart)(noise=z, seed=7)
    run = fs.Run(own, noise=z, seed=7)
    while not run.done:
        run.step(apart(run.model_input, run.t))
    assert alike(run.x, x)
    for k, name in enumerate(own):
        one = lambda x, t, name=name: velocity(name, x, t)
        alone = fs.Sampler(own[name], one)(noise=z[name], seed=7, stage=k * 2**24)
        assert same(x[name], alone)
        assert k or same(alone, fs.Sampler(own[name], one)(noise=z[name], seed=7))


def test_a_coupled_model_is_told_both():
    own, z = plans(), noises()
    x = fs.Sampler(own, coupled)(noise=z)
    assert alike(x, by_hand(own, coupled, z)) and not alike(x, fs.Sampler(own, apart)(noise=z))


def test_one_seed_draws_other_noise_in_every_track():
    plan = plan_of("audio", "dpmpp_2m_sde")
    three = {name: plan for name in "abc"}
    still = lambda x, t: {k: torch.zeros_like(v) for k, v in x.items()}
    x = fs.Sampler(three, still)(shape={name: (2, 64) for name in three}, seed=5)
    for one, other in ("ab", "bc", "ac"):
        assert abs(float(torch.corrcoef(torch.stack([x[one][0], x[other][0]]))[0, 1])) < 0.5
    run = fs.Run(three, shape={name: (2, 64) for name in three}, seed=5)
    assert [int(v[0]) for v in run.stages.values()] == [0, 2**24, 2**25]
    assert all(v.tolist() == [5, 6] for v in run.seeds.values())
    # a track behind it changes no other's noise
    two = fs.Run({k: three[k] for k in "ab"}, shape={k: (2, 64) for k in "ab"}, seed=5)
    assert same(two.x["b"], run.x["b"])
    told = fs.Run(three, shape={k: (2, 64) for k in three}, seed=5, stage={"a": 9, "b": 9})
    assert same(told.x["a"], told.x["b"]) and [int(v[0]) for v in told.stages.values()] == [9, 9, 0]
    again = fs.Run(three, shape={k: (2, 64) for k in three}, seed=5, stage=3)
    assert [int(v[0]) for v in again.stages.values()] == [3, 2**24 + 3, 2**25 + 3]


def test_a_track_that_ends_early_stays_and_one_that_begins_late_waits():
    """Video runs 3 calls down to sigma .6 and stays there; audio waits, then runs 8."""
    schedule = schedules.Flow(shift=SHIFTS["video"])
    model = Model(None, schedule, prediction="flow", time=1)
    video = solvers.unipc(model, grids.from_sigmas(schedule, [1.0, 0.9, 0.75, 0.6]))
    audio, told = plan_of("audio"), []
    own = {"video": solvers.held(video, after=8), "audio": solvers.held(audio, before=3)}
    watched = lambda x, t: told.append({k: float(v[0]) for k, v in t.items()}) or coupled(x, t)
    z = noises()
    x, states = fs.Sampler(own, watched)(noise=z, trajectory=True)
    sigma = audio.sigma[1:-1].tolist()
    assert [t["video"] for t in told] == pytest.approx([1.0, 0.9, 0.75] + [0.6] * 8)
    assert [t["audio"] for t in told] == pytest.approx([1.0] * 3 + sigma)
    assert all(same(states["video"][k], x["video"]) for k in range(3, 12))
    assert all(same(states["audio"][k], z["audio"]) for k in range(4))
    # by hand: one after the other
    runs = {"video": fs.Run(video, noise=z["video"]), "audio": fs.Run(audio, noise=z["audio"])}
    for step in range(11):
        end = torch.full((2,), 0.6)
        t = {k: run.t if not run.done else end for k, run in runs.items()}
        f = coupled({k: run.model_input for k, run in runs.items()}, t)
        runs["audio" if step > 2 else "video"].step(f["audio" if step > 2 else "video"])
    assert alike(x, {k: run.x for k, run in runs.items()})


def test_experts_of_tracks_are_asked_together():
    edge = {name: solvers.experts(plan_of(name, "euler", 4), level=5.0) for name in SHIFTS}
    with pytest.raises(ValueError, match=r"track 'video' asks the models \[0, 0.*same one"):
        fs.Sampler(edge, [coupled, apart])
    both = {name: solvers.experts(plan_of(name, "euler", 4), 0.0 + s) for name, s in
            (("video", 0.93), ("audio", 0.8))}  # fmt: skip
    assert both["video"].call.tolist() == both["audio"].call.tolist() == [-1, 0, 0, 1, 1, -1]
    z = noises()
    one = lambda x, t: (coupled if t["audio"][0] >= 0.8 else apart)(x, t)
    want = fs.Sampler(plans(solver="euler", n=4), one)(noise=z)
    assert alike(fs.Sampler(both, [coupled, apart])(noise=z), want)


@pytest.mark.parametrize("batched", [True, False])
def test_guidance_of_each_track(batched):
    own, z, calls = plans(), noises(), []
    words = {"cond": {"gain": torch.tensor([1.0, 0.5])}, "uncond": {"gain": torch.zeros(2)}}
    model = lambda x, t, gain: calls.append(len(gain)) or coupled(x, t, gain)
    guided = {"noise": z, "guidance": {"video": 5.0, "audio": 2.0}, "batched_guidance": batched}
    x = fs.Sampler(own, model)(**guided, **words)
    assert calls == ([4] * 8 if batched else [2] * 16)
    scale = {"video": 5.0, "audio": 2.0}

    def both(x, t):
        f, free = coupled(x, t, **words["cond"]), coupled(x, t, **words["uncond"])
        return {k: free[k] + scale[k] * (f[k] - free[k]) for k in f}

    want = fs.Sampler(own, both)(noise=z)
    for name in x:
        torch.testing.assert_close(x[name], want[name], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Sampler: track 'audio': .*without guidance"):
        fs.Sampler(own, model)(noise=z, guidance={"video": 5.0}, **words)


def test_images_begin_at_a_strength_or_a_level_of_their_own():
    own, image = plans(solver="dpmpp_2m_sde"), noises()
    x = fs.Sampler(own, apart)(latent=image, strength=0.5, seed=3)
    for k, name in enumerate(own):
        one = lambda x, t, name=name: velocity(name, x, t)
        words = {"strength": 0.5, "seed": 3, "stage": 1 + k * 2**24}
        assert same(x[name], fs.Sampler(own[name], one)(latent=image[name], **words))
    run = fs.Run(own, latent=image, level={"video": 2.0, "audio": 1.0}, seed=3)
    assert run.runs["video"].plan.sigma[1] == pytest.approx(2 / 3)
    mixed = {"video": plan_of("video").remake(start=0), "audio": plan_of("audio")}
    run = fs.Run(mixed, latent={"video": image["video"]}, noise={"audio": image["audio"]}, seed=1)
    assert [int(v[0]) for v in run.stages.values()] == [1, 2**24]
    with pytest.raises(ValueError, match="asks the model 6 times and 'audio' 4"):
        fs.Sampler(own, apart)(latent=image, strength={"video": 0.75, "audio": 0.5})


def test_callback_progress_trajectory_and_out():
    own, z, seen = plans(), noises(), []

    def callback(step, x, x0):
        seen.append((step, {k: v.clone() for k, v in x0.items()}))
        return {"audio": torch.zeros_like(x["audio"])} if step == 6 else None

    out = {"video": torch.empty(SIZES["video"])}
    x, states = fs.Sampler(own, apart)(
        noise=z, callback=callback, trajectory=True, progress=True, out=out
    )
    assert [step for step, _ in seen] == list(range(8)) and x["video"] is out["video"]
    assert same(x["video"], fs.Sampler(own, apart)(noise=z)["video"])
    assert {k: v.shape[0] for k, v in states.items()} == {"video": 9, "audio": 9}
    assert not states["audio"][7].any() and same(states["audio"][8], x["audio"])
    with pytest.raises(TypeError, match="callback returned a Select"):
        fs.Sampler(own, apart)(noise=z, callback=lambda *_: fs.Select([0]))
    said = []
    fs.Sampler(own, apart, prepare=said.append)(noise=z)
    assert {k: len(v) for k, v in said[0].items()} == {"video": 8, "audio": 8}


def test_a_mask_of_one_track_and_noise_of_the_callers():
    own, z = plans(solver="dpmpp_2m_sde"), noises()
    own["audio"] = plan_of("audio", "dpmpp_2m_sde", inpaint=True)
    mask, known = (unit(2, 7, seed=1) > 0).float(), unit(2, 7, seed=2)
    words = {"mask": {"audio": mask}, "known": {"audio": known}, "seed": 1}
    source = {"video": lambda row, id_: unit(*SIZES["video"], seed=100 * id_)}
    x = fs.Sampler(own, apart)(noise=z, noise_source=source, **words)
    masked = {"mask": mask, "known": known, "seed": 1, "stage": 2**24}
    audio = lambda x, t: velocity("audio", x, t)
    assert same(x["audio"], fs.Sampler(own["audio"], audio)(noise=z["audio"], **masked))
    torch.testing.assert_close(x["audio"][mask > 0], known[mask > 0])
    one = lambda x, t: velocity("video", x, t)
    alone = fs.Sampler(own["video"], one)(noise=z["video"], noise_source=source["video"])
    assert same(x["video"], alone)


def test_a_bad_answer_leaves_every_track_where_it_was():
    run = fs.Run(plans(), noise=noises(), seed=1)
    run.step(apart(run.model_input, run.t))
    before, f = {k: v.clone() for k, v in run.x.items()}, apart(run.model_input, run.t)
    for bad, kind, sentence in (
        (f | {"audio": f["audio"][:1]}, ValueError, r"track 'audio': .*returned \[1, 7\]"),
        (f | {"audio": f["audio"][:, :3]}, ValueError, r"track 'audio': .*returned \[2, 3\]"),
        ({"video": f["video"]}, TypeError, "a dict of 'video'; a dict of the tracks 'video', 'au"),
        (f["video"], TypeError, "a Tensor; a dict of the tracks"),
        (f | {"audio": f["audio"].double()}, TypeError, "track 'audio': .*returned torch.float64"),
    ):
        with pytest.raises(kind, match=sentence):
            run.step(bad)
        assert alike(run.x, before) and run.call == 0
    with pytest.raises(ValueError, match="Run.x: track 'audio'"):
        run.x = {"video": f["video"], "audio": f["audio"][:1]}
    assert alike(run.x, before)
    twin = copy.deepcopy(run)
    while not run.done:
        run.step(apart(run.model_input, run.t))
    with pytest.raises(IndexError, match="all rows of video, audio have run"):
        run.step(f)
    assert alike(twin.x, before) and run.call == -1 and not any(map(len, run.calls.values()))


def test_a_model_that_writes_into_a_state_or_returns_nan_is_refused():
    def writes(x, t):
        x["audio"].mul_(2)
        return apart(x, t)

    with pytest.raises(ValueError, match="the model changed its input in place at row 1"):
        fs.Sampler(plans(), writes)(noise=noises())
    bad = lambda x, t: apart(x, t) | {"audio": torch.full_like(x["audio"], torch.nan)}
    with pytest.raises(FloatingPointError, match="Sampler: 'audio'"):
        fs.Sampler(plans(), bad)(noise=noises())


def test_a_plan_alone_makes_what_it_made():
    sampler = fs.Sampler(plan_of("audio"), lambda x, t: x)
    assert type(sampler) is fs.Sampler and type(copy.copy(sampler)) is fs.Sampler
    assert type(fs.Run(plan_of("audio"), noise=Z["audio"])) is fs.Run
    assert [*inspect.signature(fs.Sampler).parameters][:3] == ["plan", "model", "mode"]
    assert [*inspect.signature(fs.Run).parameters][:2] == ["plan", "noise"]
    assert type(fs.Run(plan=OWN, noise=Z)).__name__ == "TrackRun"


@pytest.mark.slow
def test_a_compiled_model_gives_the_same(monkeypatch):
    """Through dynamo, whose graphs are then run as they are."""
    whole = lambda model: compile_(model, backend="eager", fullgraph=True)
    compile_, want = torch.compile, fs.Sampler(OWN, coupled)(noise=Z)
    monkeypatch.setattr(torch, "compile", whole)
    assert alike(fs.Sampler(OWN, coupled, mode="compile-model")(noise=Z), want)


@pytest.mark.parametrize("solver", ["unipc", "dpmpp_2m_sde"])
def test_idle_runs_begin_again(solver):
    own = plans(solver=solver)
    kept = fs.Sampler(own, coupled)
    for seed in (1, 2, 1):
        z = {k: unit(*size, seed=seed) for k, size in SIZES.items()}
        assert alike(kept(noise=z, seed=seed), fs.Sampler(own, coupled)(noise=z, seed=seed))
    runs = [len(each._spares._idle) for each in kept._samplers.values()]
    assert runs == [1, 1]
    # a run whose model raised is not kept, nor one that a call gave more than noise
    broken = fs.Sampler(own, lambda x, t: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken(noise=z)
    assert not any(each._spares._idle for each in broken._samplers.values())
    other = fs.Sampler(own, coupled)
    told = {"noise": z, "seed": 1, "stage": {"video": 5}}
    assert not alike(other(**told), other(noise=z, seed=1)) or solver == "unipc"
    assert alike(other(**told), fs.Sampler(own, coupled)(**told))
    told = {"noise": z, "seed": 1, "noise_scale": {"video": 0.5}}
    if solver != "unipc":
        assert not alike(other(**told), other(noise=z, seed=1))
        assert alike(other(**told), fs.Sampler(own, coupled)(**told))


def test_two_of_diffusers_schedulers_side_by_side_are_two_tracks():
    z, peers = noises(), {}
    for name, shift in SHIFTS.items():
        peers[name] = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        peers[name].set_timesteps(sigmas=np.linspace(1.0, 0.0, 9)[:-1].tolist())
    x, size = dict(z), 0.0
    for step in range(8):
        t = {k: peer.timesteps[step].expand(2) / 1000 for k, peer in peers.items()}
        f = coupled(x, t)
        x = {k: peer.step(f[k], peer.timesteps[step], x[k])[0] for k, peer in peers.items()}
        size = max([size, *(float(v.abs().max()) for v in (*f.values(), *x.values()))])
    ours = fs.Sampler(plans(solver="euler"), coupled)(noise=z)
    # each step rounds sigma, the velocity and x, and the velocities of later ones carry that on
    near = 8 * 4 * torch.finfo(torch.float32).eps * size
    for name in SHIFTS:
        torch.testing.assert_close(ours[name], x[name], rtol=0, atol=near)
