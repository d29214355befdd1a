"""A saved plan run by C programs, one request at a time and many: bit for bit the plan in NumPy and
in Python.
"""

import re
import subprocess

import numpy as np
import pytest
import torch
from c import build, rows
from c.plans import plans

import fastsample as fs

pytestmark = pytest.mark.slow  # builds libfastsample
B, D, SEED = 2, 1031, 7  # not a multiple of a block, nor of four


@pytest.fixture(scope="module")
def made():
    return build.installed()


@pytest.fixture(scope="module")
def plan_files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("plans"), plans()
    for name, plan in found.items():
        plan.save(folder / f"{name}.fsplan")
    return {name: (plan, folder / f"{name}.fsplan") for name, plan in found.items()}


def model(x, branch):
    return (np.float32(0.3) + np.float32(0.1) * np.float32(branch)) * x - np.float32(0.1)


def emulated(plan, first_seed):
    """x after every row, [R, B, D]: the plan in NumPy float32."""
    F, I = plan.table(np.float32)  # noqa: E741
    dims, states = (plan.S, plan.G, plan.L, plan.K, plan.E), np.empty((plan.rows, B, D), np.float32)
    scale = np.arange(plan.K, dtype=np.float32) + 2
    for b in range(B):
        x = rows.normals(first_seed + b, 0, D)
        slots = [np.zeros(D, np.float32)] * plan.S
        given = None
        for i in range(plan.rows):
            f = [
                model(given, g) if plan.call[i] >= 0 else np.full(D, np.nan, np.float32)
                for g in range(plan.G)
            ]
            draw = lambda k, i=i, b=b: rows.normals(first_seed + b, int(np.uint32(I[i, 7 + k])), D)
            x, written, given, _, _ = rows.one_row(dims, F[i], I[i], x, slots, f, draw, scale=scale)
            slots = [written.get(s, slot) for s, slot in enumerate(slots)]
            states[i, b] = x
    return states


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "guided"])
def test_a_saved_plan_runs_in_c_bit_for_bit(made, plan_files, name, tmp_path):
    plan, path = plan_files[name]
    build.run(made[1] / "plan_run", path, tmp_path / "states.bin", B, D, SEED)
    got = np.fromfile(tmp_path / "states.bin", np.float32).reshape(plan.rows, B, D)
    want = emulated(plan, SEED)
    assert got.tobytes() == want.tobytes() and np.isfinite(got).all() and np.ptp(got[-1]) > 0


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "guided"])
def test_the_same_run_in_python_has_the_same_bits(plan_files, name, backend):
    plan, want = plan_files[name][0], emulated(plan_files[name][0], SEED)
    run = fs.Run(plan, shape=(B, D), seed=SEED, guidance=[2.0] if plan.K else None, backend=backend)
    while not run.done:
        assert run.x.numpy().tobytes() == want[run.row - 1].tobytes()
        outputs = [torch.from_numpy(model(run.model_input.numpy(), g)) for g in range(plan.G)]
        run.step(outputs[0] if plan.G == 1 else outputs)
    assert run.x.numpy().tobytes() == want[-1].tobytes()


def test_plans_in_one_table_of_a_cpp_program_run_bit_for_bit(made, plan_files, tmp_path):
    names = ["unipc", "dpmpp_2m", "dpmpp_2m_sde", "guided"]
    paths = [plan_files[name][1] for name in names]
    build.run(made[1] / "raii", tmp_path / "states.bin", D, SEED, *paths)
    got = np.fromfile(tmp_path / "states.bin", np.float32).reshape(len(names), D)
    for k, name in enumerate(names):
        assert got[k].tobytes() == emulated(plan_files[name][0], SEED)[-1, 0].tobytes()


def test_the_example_server_serves_each_request_as_if_alone(made, plan_files, tmp_path):
    plan, path = plan_files["dpmpp_2m_sde"]
    printed = build.run(made[1] / "server", path, 7, 3, D, tmp_path / "served.bin").splitlines()
    served = np.fromfile(
        tmp_path / "served.bin", np.dtype([("number", np.int32), ("x", np.float32, D)])
    )
    assert sorted(served["number"]) == list(range(7)) and len(printed) == 7
    # no two side by side: rows were mixed
    assert len({tuple(re.findall(r"tick (\d+)", line)) for line in printed}) == 7
    for request in served:
        build.run(made[1] / "plan_run", path, tmp_path / "alone.bin", 1, D, request["number"])
        assert (
            np.fromfile(tmp_path / "alone.bin", np.float32)[-D:].tobytes() == request["x"].tobytes()
        )


def test_the_example_server_refuses_a_plan_that_starts_from_an_image(made, plan_files, tmp_path):
    path = tmp_path / "image.fsplan"
    plan_files["dpmpp_2m"][0].remake(start=2).save(path)
    done = subprocess.run(
        [made[1] / "server", path, "1", "1", "4", tmp_path / "served.bin"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"server: {path} starts from an image; a plan made without start= is accepted\n",
    )


@pytest.mark.parametrize("arguments", [[], ["no.fsplan", "states.bin", "1", "4", "0"]])
def test_the_c_program_says_what_is_wrong(made, arguments, tmp_path):
    done = subprocess.run(
        [made[1] / "plan_run", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0 and re.search("usage|cannot be opened", done.stderr)
