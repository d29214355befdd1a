"""Plans in LeRobot's flow policies, beside the hook that they take the place of, written here from
its contract (LeRobot 0.6.1, policies/common/flow_matching.py): no LeRobot is needed.
"""

import copy
import pickle
import sys
import types
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.interop import lerobot

FLOW = fs.Model(None, schedule=fs.schedules.Flow(), prediction="flow", time=1)
EPS = np.finfo(np.float32).eps
WEIGHTS = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) / 3


def contract(denoise_fn, noise, num_steps, *, rtc_processor=None, rtc_enabled=False, **words):
    """The published hook: forward Euler from t = 1 to 0; `words` are RTC's, or hard_prefix's."""
    prefix, mask = words.pop("hard_prefix", None), words.pop("hard_prefix_mask", None)
    x, h = noise, -1.0 / num_steps
    for k in range(num_steps):
        time = 1.0 + k * h
        t = torch.full(x.shape[:1], time)
        if prefix is not None:
            x, t = torch.where(mask, prefix, x), torch.where(mask[..., 0], 0.0, t[:, None])
        ask = lambda x, t=t: denoise_fn(x, t)
        if rtc_enabled:
            asked = {"x_t": x, "time": time, "original_denoise_step_partial": ask}
            v = rtc_processor.denoise_step(**asked, **words)
        else:
            v = ask(x)
        x = x + h * v
        x = x if prefix is None else torch.where(mask, prefix, x)
        if rtc_processor is not None and rtc_processor.is_debug_enabled():
            rtc_processor.track(time=time, x_t=x, v_t=v)
    return x


class Guide:
    """A policy's RTC processor: its velocity is led towards what is left of the last chunk by a
    weight of the flow's time, through gradients.
    """

    def __init__(self, debug):
        self.debug, self.seen = debug, []

    def is_debug_enabled(self):
        return self.debug

    def track(self, **words):
        self.seen.append({k: v if k == "time" else v.clone() for k, v in words.items()})

    def denoise_step(self, *, x_t, time, original_denoise_step_partial, **words):
        left, delay = words["prev_chunk_left_over"], words["inference_delay"]
        assert words["execution_horizon"] == 4
        with torch.enable_grad():
            x = x_t.clone().requires_grad_(True)
            v = original_denoise_step_partial(x)
            error = (left - (x - time * v)).detach()
            (lead,) = torch.autograd.grad(x - time * v, x, error)
        return v - delay * time * lead


def velocity(x, t):
    """A network of an action chunk [B,T,6], told t [B] or [B,T]."""
    t = t.view(*t.shape, *[1] * (x.dim() - t.dim()))
    return torch.tanh(x @ WEIGHTS.to(x.dtype) + t.to(x.dtype)) * (1.3 - t).to(x.dtype) + 0.2 * x


def chunk(batch=2, seed=0, dtype=torch.float32):
    return torch.randn(batch, 8, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plan_of(n, solver="dpmpp_2m", shift=1.0, **words):
    model = fs.Model(None, schedule=fs.schedules.Flow(shift), prediction="flow", time=1)
    return fs.solvers.SOLVERS[solver](model, fs.grids.uniform(model.schedule, n), **words)


def rtc(debug=True):
    words = {"prev_chunk_left_over": chunk(seed=5), "inference_delay": 2, "execution_horizon": 4}
    return {"rtc_processor": Guide(debug), "rtc_enabled": True, **words}


def prefix():
    mask = torch.zeros(2, 8, 1, dtype=torch.bool)
    mask[0, :3], mask[1, :1] = True, True
    return {"hard_prefix": chunk(seed=6), "hard_prefix_mask": mask}


@pytest.mark.parametrize("n", [1, 4, 10])
@pytest.mark.parametrize("words", [dict, rtc, prefix, lambda: rtc() | prefix()])
def test_without_a_plan_the_steps_are_lerobots_to_the_bit(n, words):
    theirs, ours, noise = words(), words(), chunk()
    with torch.no_grad():
        want = contract(velocity, noise, n, **theirs)
        for _ in range(2):  # a new run, and a kept one
            got = lerobot.euler_integrate(velocity, noise, n, **ours)
            assert torch.equal(got, want) and torch.equal(noise, chunk())
    guide = theirs.get("rtc_processor")
    if guide:
        for a, b in zip(2 * guide.seen, ours["rtc_processor"].seen, strict=True):
            assert a["time"] == b["time"]
            assert torch.equal(a["x_t"], b["x_t"]) and torch.equal(a["v_t"], b["v_t"])


def test_it_is_told_lerobots_times_for_any_number_of_steps():
    for n in (*range(1, 65), 1000):
        seen, theirs = [], []
        asked = lambda told, x, t: told.append(t) or torch.zeros_like(x)
        with torch.no_grad():
            contract(partial(asked, theirs), chunk()[:, :1], n)
            lerobot.euler_integrate(partial(asked, seen), chunk()[:, :1], n)
        assert torch.equal(torch.stack(seen), torch.stack(theirs))
        assert seen[0].dtype == torch.float32


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "unipc", "ipndm", "dpmpp_3s"])
def test_a_plan_ends_where_a_sampler_does(solver, tmp_path):
    plan = plan_of(5, solver, shift=3.0)
    plan.save(tmp_path / "a.fsplan")
    for run in (plan, fs.Plan.load(tmp_path / "a.fsplan")):
        want = fs.Sampler(run, velocity)(noise=chunk())
        with torch.no_grad():
            got = lerobot.integrator(run)(velocity, chunk(), run.nfe)
        assert torch.equal(got, want)


def test_the_amplitude_that_a_search_found_and_the_noise_of_a_plan_are_taken():
    plan, noise = plan_of(4), chunk()
    M = plan.M.copy()
    M[0, 0, 0] *= 1.25
    louder = plan.with_numbers(M=M)
    with torch.no_grad():
        got = lerobot.integrator(louder)(velocity, noise, 4)
        assert torch.equal(got, fs.Sampler(louder, velocity)(noise=noise))
        drawn = plan_of(4, "euler_ancestral")
        torch.manual_seed(3)
        got = lerobot.integrator(drawn)(velocity, noise, 4)
        torch.manual_seed(3)
        n = len({id_ for row in drawn.ids[1:-1].tolist() for id_ in row if id_ > 0})
        draws = [torch.randn_like(noise) for _ in range(n)]
        assert n > 1
        assert torch.equal(got, fs.Sampler(drawn, velocity)(noise=noise, noise_source=draws))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_rows_that_no_solver_of_ours_makes_are_run_too(mode):
    """A prediction kept as the second output, and one noise in every row."""
    plan, drawn = plan_of(4), plan_of(4, "euler_ancestral")
    second = replace(plan, M=plan.M[:, [0, 2, 1]], dst=plan.dst[:, ::-1])
    again = replace(drawn, ids=np.minimum(drawn.ids, 1))
    for one in (second, again):
        with mode():
            torch.manual_seed(3)
            got = lerobot.integrator(one)(velocity, chunk(), 4)
        torch.manual_seed(3)
        draws = {"noise_source": [torch.randn_like(chunk())]} if one is again else {}
        assert torch.equal(got, fs.Sampler(one, velocity)(noise=chunk(), **draws))


def test_a_chunk_of_another_dtype_is_stepped_in_its_state_and_given_back_as_it_came():
    plan = plan_of(5)
    with torch.no_grad():
        for dtype, state in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
            told = set()
            ask = lambda x, t, told=told: told.add((x.dtype, t.dtype)) or velocity(x, t)
            got = lerobot.integrator(plan)(ask, chunk(dtype=dtype), 5)
            own = lambda x, t: velocity(x, t.float())
            want = fs.Sampler(plan, own, model_dtype=dtype, state_dtype=state)(
                noise=chunk(dtype=dtype)
            )
            assert got.dtype == dtype and torch.equal(got, want.to(dtype))
            assert (dtype, torch.float32) in told


@pytest.mark.parametrize("make", [lambda: plan_of(4), lambda: plan_of(3, "heun"), lambda: None])
def test_gradients_reach_noise_and_network_as_through_their_loop(make):
    plan = make()
    n = 4 if plan is None else plan.nfe
    noise, weights = chunk().double().requires_grad_(), WEIGHTS.double().requires_grad_()
    net = lambda x, t: torch.tanh(x @ weights + t.view(-1, 1, 1).double()) - 0.3 * x
    loop = contract if plan is None else sampled(plan)
    ends = [hook(net, noise, n) for hook in (lerobot.integrator(plan), loop)]
    assert torch.equal(*ends)
    ours, theirs = (torch.autograd.grad(x.square().sum(), [noise, weights]) for x in ends)
    for a, b in zip(ours, theirs, strict=True):
        assert a.abs().max() > 0 and torch.allclose(a, b, 1e-12)


@torch.no_grad()
def test_a_velocity_with_a_graph_is_taken_where_no_gradient_is_recorded():
    """As guidance makes it that differentiates the network, whose weights take gradients."""
    weights = WEIGHTS.clone().requires_grad_()
    net = torch.enable_grad()(lambda x, t: x @ weights)
    assert net(chunk(), None).requires_grad
    got = lerobot.euler_integrate(net, chunk(), 3)
    assert torch.equal(got, contract(net, chunk(), 3)) and not got.requires_grad


def sampled(plan):
    """The Sampler of a plan as the hook is called, which tells a network float32 times."""
    told = lambda net: lambda x, t: net(x, t.float())
    return lambda net, noise, n: fs.Sampler(plan, told(net), differentiable=True)(noise=noise)


def test_a_hook_for_a_plan_goes_into_one_graph_of_torch_compile():
    plan = plan_of(3, "dpmpp_2m")
    hook, words, nfe = lerobot.integrator(plan), prefix(), plan.nfe
    with torch.no_grad():
        want = hook(velocity, chunk(), nfe, **words)
        whole = torch.compile(
            lambda noise: hook(velocity, noise, nfe, **words), fullgraph=True, backend="eager"
        )
        assert torch.equal(whole(chunk()), want)
        assert torch.equal(
            whole(chunk(3, seed=9)[:2]), hook(velocity, chunk(3, 9)[:2], nfe, **words)
        )


@pytest.fixture
def policy():
    """A policy's module as LeRobot has it: the hook imported into it, called from a method."""
    common, module = types.ModuleType("common.flow"), types.ModuleType("policies.pi.modeling")

    def hook(denoise_fn, noise, num_steps, *, rtc_processor=None, rtc_enabled=False):
        return contract(denoise_fn, noise, num_steps)

    hook.__module__ = "common.flow"
    common.euler_integrate = module.euler_integrate = hook
    code = "def act(observation, noise, n):\n    cache = observation * 2\n"
    code += "    return euler_integrate(lambda x, t: velocity(x, t) + cache, noise, n)"
    module.velocity = velocity
    exec(code, module.__dict__)
    return common, module


@torch.no_grad()
def test_install_reaches_every_call_of_a_policys_module_and_can_be_undone(policy):
    _, module = policy
    plain, plan = module.act(0.1, chunk(), 5), plan_of(5)
    undo = lerobot.install(module, plan)
    asked = lambda x, t: velocity(x, t) + 0.2
    assert torch.equal(module.act(0.1, chunk(), 5), fs.Sampler(plan, asked)(noise=chunk()))
    with pytest.raises(ValueError, match="num_steps is 10 and the plan has 5 evaluations"):
        module.act(0.1, chunk(), 10)
    undo()
    assert torch.equal(module.act(0.1, chunk(), 5), plain)


@torch.no_grad()
def test_what_a_policy_asked_is_a_model_to_search(policy):
    _, module = policy
    with lerobot.recorded(module) as seen:
        ends = [module.act(0.05 * k, chunk(1, seed=k), 20) for k in range(6)]
        both = torch.tensor([0.5, -0.4]).view(2, 1, 1)  # two observations in one call
        ends += [module.act(both, chunk(2, seed=9), 20)]
    assert torch.equal(ends[0], contract(velocity, chunk(1, seed=0), 20))  # it went on as before
    again = fs.Sampler(plan_of(20, "euler"), seen.model)(noise=seen.noise, cond=seen.cond)
    assert len(again) == 8 and (again - torch.cat(ends)).abs().max() <= 100 * EPS
    search = fs.optimize.oss(seen.model, seen.noise, budget=3, cond=seen.cond, grid=12)
    lerobot.install(module, search.plans[3])
    got = module.act(0.05, chunk(1, seed=1), 3)
    want = fs.Sampler(search.plans[3], seen.model)(
        noise=seen.noise[1:2], cond={"sample": torch.tensor([1])}
    )
    assert (got - want).abs().max() <= 100 * EPS


def test_what_cannot_be_reached_or_run_is_refused_in_a_sentence(policy):
    common, module = policy
    hook, x = lerobot.euler_integrate, chunk()
    with pytest.raises(ValueError, match="defines euler_integrate, and policies call it by their"):
        lerobot.install(common, None)
    with pytest.raises(TypeError, match="no euler_integrate; the module of a policy"):
        lerobot.install(types.ModuleType("lerobot_0_4"), None)
    module.euler_integrate = lambda denoise_fn, noise, num_steps, *, staircase=None: noise
    with pytest.raises(ValueError, match="takes staircase, which no plan does"):
        lerobot.install(module, None)
    with pytest.raises(ValueError, match="the policy was not asked"), lerobot.recorded(module) as s:
        s.noise  # noqa: B018
    for other in (x[:1, :4], x[:1].double()):
        seen = lerobot.Recorded()
        [seen.add(velocity, noise) for noise in (x, other)]
        with pytest.raises(ValueError, match=r"noise torch.float32 \[2, 8, 6\] .* another with"):
            seen.noise  # noqa: B018
    for bad in (0, -1, 2.5, "ten"):
        with pytest.raises(ValueError, match="a whole number of at least 1 is accepted"):
            hook(velocity, x, bad)
    with pytest.raises(TypeError, match="noise is a list; a dense tensor"):
        hook(velocity, [[0.5]], 1)
    with pytest.raises(ValueError, match="rtc_enabled without rtc_processor"):
        hook(velocity, x, 4, rtc_enabled=True)
    with pytest.raises(ValueError, match="hard_prefix or hard_prefix_mask"):
        hook(velocity, x, 4, hard_prefix=x)
    mask = torch.zeros(*x.shape[:2], 1, dtype=torch.bool)
    masks = [mask[..., 0], mask.float(), mask.expand(x.shape), mask.to("meta")]
    others = [x[:, :1, :2], x[0], x.int(), [0.5]]
    for actions, bad in [*((x, m) for m in masks), *((a, mask) for a in others)]:
        with pytest.raises(ValueError, match=r"hard_prefix is .* bool \[B, T, 1\], there are acc"):
            hook(velocity, x, 4, hard_prefix=actions, hard_prefix_mask=bad)
    with torch.no_grad():
        whole = hook(velocity, x, 4)
        assert torch.equal(hook(lambda x, t: (velocity(x, t),), x, 4), whole)
    for grad in (torch.no_grad, torch.enable_grad):
        refuse_answers_and_noise(grad)
    with torch.no_grad(), pytest.raises(FloatingPointError, match="not finite|non-finite"):
        hook(lambda x, t: x / 0.0, x, 4)
    with torch.no_grad(), pytest.raises(ValueError, match="integrate: noise holds NaN or Inf in"):
        hook(velocity, x / 0.0, 4)


def refuse_answers_and_noise(mode):
    """In a sentence of the hook's own words, with gradients and without."""
    x, hook = chunk(), lerobot.euler_integrate
    answers = [None, x[:, :1], x.double(), x.int(), x.to("meta"), x.to_sparse()]
    processor = Guide(False)
    processor.denoise_step = lambda **words: x[:1]
    with mode():
        for answer in answers:
            with pytest.raises(TypeError, match="denoise_fn returned .* like its x_t is accepted"):
                hook(lambda x, t, answer=answer: answer, x, 4)
        with pytest.raises(TypeError, match="float32 .* for an x_t of torch.bfloat16"):
            hook(lambda _, t: x, x.bfloat16(), 4)
        with pytest.raises(TypeError, match="rtc_processor.denoise_step returned .*1, 8, 6"):
            hook(velocity, x, 4, rtc_processor=processor, rtc_enabled=True)
        with pytest.raises(TypeError, match="rtc_processor is a object; an object with is_debug"):
            hook(velocity, x, 4, rtc_processor=object())
        with pytest.raises(TypeError, match="denoise_fn is a NoneType; a callable"):
            hook(None, x, 4)
        for noise in (x.int(), x.to(torch.complex64), torch.tensor(1.0), x.to_sparse()):
            with pytest.raises(TypeError, match="noise is .*; a dense tensor"):
                hook(velocity, noise, 4)
        for steps in (10, 5.0, None, True, torch.tensor([5, 5])):
            with pytest.raises(ValueError, match="num_steps is .* and the plan has 5 evaluations"):
                lerobot.integrator(plan_of(5))(velocity, x, steps)


@torch.no_grad()
def test_a_hook_is_pickled_and_copied_by_its_plan():
    """As a policy is that holds one, for the processes of a data loader or a simulator."""
    assert pickle.loads(pickle.dumps(lerobot.euler_integrate)) is lerobot.euler_integrate
    assert copy.deepcopy(lerobot.integrator()) is lerobot.euler_integrate
    hook = lerobot.integrator(plan_of(5))
    want = hook(velocity, chunk(), 5)  # it holds an idle run from here on
    for other in (pickle.loads(pickle.dumps(hook)), copy.deepcopy(hook)):
        assert torch.equal(other(velocity, chunk(), 5), want)


@torch.no_grad()
def test_a_prefix_of_another_dtype_leaves_the_actions_theirs():
    words = prefix()
    words["hard_prefix"] = words["hard_prefix"].bfloat16()
    got = lerobot.euler_integrate(velocity, chunk(), 4, **words)
    words["hard_prefix"] = words["hard_prefix"].float()
    assert torch.equal(got, lerobot.euler_integrate(velocity, chunk(), 4, **words))
    half = lerobot.euler_integrate(velocity, chunk(dtype=torch.bfloat16), 4, **words)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "plan, said",
    [
        (lambda: "mine.fsplan", "plan is a str"),
        (lambda: fs.guidance.guided(plan_of(3), 2), "asks several branches or models"),
        (lambda: plan_of(6, start=2), "begins from an image"),
        (
            lambda: fs.solvers.ddim(
                fs.Model(None, fs.schedules.VP(), "flow", time=1),
                fs.grids.uniform(fs.schedules.VP(), 4),
            ),
            "made for schedule",
        ),
        (
            lambda: fs.solvers.euler(
                fs.Model(None, FLOW.schedule, "flow", time=1000), fs.grids.uniform(FLOW.schedule, 4)
            ),
            "made for time = 1000",
        ),
        (
            lambda: fs.solvers.euler(
                fs.Model(None, FLOW.schedule, "x0", time=1), fs.grids.uniform(FLOW.schedule, 4)
            ),
            "made for prediction = 'x0'",
        ),
    ],
)
def test_a_plan_for_something_else_than_such_a_velocity_is_refused(plan, said):
    with pytest.raises((TypeError, ValueError), match=said):
        lerobot.integrator(plan())


def test_lerobot_is_never_imported():
    assert "lerobot" not in sys.modules
