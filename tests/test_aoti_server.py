"""A real network from C++: examples/aoti_server.cpp over what examples/aoti_export.py writes."""

import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from c import build

import fastsample as fs

pytestmark = pytest.mark.slow  # compiles with Inductor, builds against torch's C++ library
SHAPE = (1, 28, 28)
# plan, seed, label; 10 is none
REQUESTS = (
    ("dpmpp_2m", 1, 2),
    ("guided", 2, 5),
    ("dpmpp_2m", 2**64 - 1, 10),
    ("guided", 4, 0),
    ("guided", 1, 2),
    ("dpmpp_2m", 6, 7),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here and in the program: the network's operators are so small that threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def program():
    """As an outside project builds it, by find_package of both."""
    words = f"-DCMAKE_PREFIX_PATH={build.installed()[0]};{torch.utils.cmake_prefix_path}"
    return build.cmake("examples", "aoti-server", words) / "aoti_server"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of net.pt2 and of plans."""
    folder = tmp_path_factory.mktemp("aoti")
    with pytest.MonkeyPatch.context() as patch:
        words = [build.ROOT / "examples/aoti_export.py", folder / "net.pt2", folder]
        patch.setattr(sys, "argv", [*map(str, words)])
        runpy.run_path(sys.argv[0], run_name="__main__")
    return folder


def told(plan, seed, label):
    """What aoti_server tells a request, as words of Sampler and of Engine.submit."""
    words = {"seed": seed, "cond": {"label": torch.tensor([label])}}
    if plan.G == 2:
        words |= {"uncond": {"label": torch.tensor([10])}, "guidance": 2.0}
    return words


def test_samples_are_those_of_python(program, exported, tmp_path):
    """The bits of the Python Engine where it asks the same net.pt2 for the same batches, and a
    Sampler's over the network itself within 1e-5 of the range: 1.1e-6 were measured.
    """
    out = tmp_path / "samples.f32"
    words = [(exported / f"{name}.fsplan", seed, label) for name, seed, label in REQUESTS]
    said = build.run(program, exported / "net.pt2", out, *(word for each in words for word in each))
    assert said == "6 requests in 12 ticks, 11 calls of the network with 42 rows\n"
    samples = torch.from_numpy(np.fromfile(out, np.float32).reshape(len(REQUESTS), *SHAPE))

    package = torch._inductor.aoti_load_package(str(exported / "net.pt2"))
    engine = fs.Engine(lambda x, t, label: package(x, t, label), SHAPE)
    model, tickets, own = fs.models.fashion(), [], []
    for path, seed, label in words:
        plan = fs.Plan.load(path)
        words = told(plan, seed, label)
        own.append(fs.Sampler(plan, model)(shape=(1, *SHAPE), **words))
        tickets.append(engine.submit(plan, **words))
        engine.tick()
    engine.run()
    assert torch.equal(samples, torch.cat([ticket.result() for ticket in tickets]))
    own = torch.cat(own)
    assert (samples - own).abs().max() <= 1e-5 * (own.max() - own.min())


def strange_plans(folder):
    """Paths of plans that the program does not take, by what is wrong."""
    model = fs.models.fashion()
    plan = fs.solvers.euler(model, fs.grids.karras(model.schedule, 2))
    two_times = fs.Model(None, fs.schedules.Flow(), prediction="flow", time=(1, 1))
    strange = {
        "two models": fs.solvers.experts(plan, level=1.0),
        "an image": plan.remake(start=1),
        "two times": fs.solvers.euler(two_times, fs.grids.uniform(two_times.schedule, 2)),
        "three branches": fs.guidance.guided(plan, branches=3),
    }
    for name, each in strange.items():
        each.save(folder / f"{name}.fsplan")
    return {name: folder / f"{name}.fsplan" for name in strange}


def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(program, exported, tmp_path):
    net, plan, out = exported / "net.pt2", exported / "guided.fsplan", tmp_path / "samples.f32"
    strange, none = strange_plans(tmp_path), tmp_path / "none"
    cases = [
        ((net, out, plan, 1), "4 arguments; <net.pt2> <samples.f32> "),
        ((net, out, plan, "7x", 2), 'a seed is "7x"; 0 to 18446744073709551615 is accepted'),
        ((net, out, plan, 1, 11), 'a label is "11"; 0 to 10 is accepted'),
        ((net, out, none, 1, 2), f"fs_plan_load: {none} cannot be opened; "),
        ((net, out, net, 1, 2), f"fs_plan_load: {net}: plan: "),
        ((none, out, plan, 1, 2), f"{none}: "),
        ((plan, out, plan, 1, 2), f"{plan}: "),
        ((net, none / "out", plan, 1, 2), f"cannot write {none / 'out'}"),
        ((net, out, strange["two models"], 1, 2), "Engine.submit: the plan asks model 1 of 1; "),
        ((net, out, strange["an image"], 1, 2), "Engine.submit: the plan begins from an image; "),
        ((net, out, strange["two times"], 1, 2), f"{strange['two times']} tells 2 time(s) to 1 "),
        ((net, out, strange["three branches"], 1, 2), f"{strange['three branches']} tells 1 time"),
    ]
    for words, sentence in cases:
        command = [str(word) for word in (program, *words)]
        done = subprocess.run(command, capture_output=True, text=True, env=build.environment())
        assert done.returncode == 1 and re.fullmatch("aoti_server: .+\n", done.stderr), words
        assert done.stderr.removeprefix("aoti_server: ").startswith(sentence), done.stderr
        assert not out.exists()
