"""macOS on Apple silicon and Windows, as far as Linux can play them: no binary, no triton, none of
the modules and names that only Unix or Linux has, text in the code page of Windows. Everything runs
on the backend `reference`, with the bits it has here, and says so nowhere but in `doctor`.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"FASTSAMPLE_BACKEND": "", "PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}

# what is not there: modules, and names of os and signal
UNIX = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"]
LINUX_OS = "sched_getaffinity sched_setaffinity O_DIRECT O_TMPFILE posix_fadvise memfd_create"
UNIX_OS = "O_DIRECTORY O_NOFOLLOW O_CLOEXEC fork register_at_fork getuid geteuid getgid chown"
UNIX_OS += " fchmod fchown lchown mkfifo getpgid setsid killpg getloadavg sysconf statvfs uname"

PLAYED = """
import os, platform, signal, sys, warnings
import torch, numpy
from diffusers import EulerDiscreteScheduler  # theirs to care for
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

system, names, gone = {system!r}, {names!r}, {gone!r}
class Elsewhere(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in gone else super().find_spec(name, path, target)
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Elsewhere]
for name in gone:
    sys.modules.pop(name, None)
for name in names:
    if hasattr(os, name):
        delattr(os, name)
if system == "win32":
    for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGCHLD"):
        vars(signal).pop(name, None)
sys.platform = system
warnings.simplefilter("ignore")
warnings.filterwarnings("error", module="fastsample|__main__")
"""

LOADED = """
import sys, numpy, torch
import fastsample as fs
from diffusers import EulerDiscreteScheduler
from fastsample.cli import main
"""

USED = """
folder = sys.argv[1]
schedule = fs.schedules.EDM()
model = fs.Model(lambda x, t: x / (1 + t.view(-1, 1) ** 2), schedule, "x0")
plan = fs.solvers.dpmpp_2m_sde(model, fs.grids.karras(schedule, 6))
for _ in range(2):  # a new file, and in place of an old one
    plan.save(folder + "/a.fsplan")
assert fs.Plan.load(folder + "/a.fsplan") == plan
z = torch.randn(3, 70, generator=torch.Generator().manual_seed(2))
ends = [fs.Sampler(plan, model)(noise=z, seed=7)]

from fastsample.interop.k_diffusion import k_sample
denoise = lambda x, sigma: model(x, sigma)
ends.append(k_sample(plan, denoise, z * plan.init_scale, seed=7, disable=True))

engine = fs.Engine(model, (70,))
tickets = [engine.submit(plan, noise=z[b : b + 1], seed=7 + b) for b in range(3)]
engine.run()
ends.append(torch.cat([ticket.result() for ticket in tickets]))

from fastsample.interop.diffusers import FsScheduler
config = EulerDiscreteScheduler().config
scheduler = FsScheduler.from_config(config, source="EulerDiscreteScheduler")
scheduler.set_timesteps(5)
x = z.view(3, 1, 7, 10) * scheduler.init_noise_sigma
for t in scheduler.timesteps:
    f = 0.1 * scheduler.scale_model_input(x, t)
    x = scheduler.step(f, t, x).prev_sample
ends.append(x)

found = fs.optimize.oss(model, z, 3, teacher=12)
found.plan.save(folder + "/found.fsplan")
torch.save([*ends, torch.as_tensor(found.plan.table(numpy.float64)[0])], folder + "/ends.pt")
assert main(["doctor"]) == 0
assert main(["show", folder + "/a.fsplan"]) == 0
try:
    fs.Sampler(plan, model, backend="native")(noise=z)
except RuntimeError as error:
    print(error)
"""


def played(system, code, *arguments):
    """The code, run as on `system`."""
    gone, names = ["triton", "fastsample._C"], LINUX_OS.split()
    if system == "win32":
        gone, names = [*gone, *UNIX], [*names, *UNIX_OS.split()]
    code = PLAYED.format(system=system, names=names, gone=gone) + LOADED + code
    environment = os.environ | SETTINGS
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The ends of the same code, run as it is."""
    folder = str(tmp_path_factory.mktemp("here"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", folder])
        begin = (
            "import sys, numpy, torch; import fastsample as fs; from fastsample.cli import main\n"
        )
        exec(begin + "from diffusers import EulerDiscreteScheduler\n" + USED, {})
    return torch.load(folder + "/ends.pt")


@pytest.mark.parametrize("system", [pytest.param("darwin", marks=pytest.mark.slow), "win32"])
def test_all_doors_run_there_with_the_bits_of_here(system, here, tmp_path):
    done = played(system, USED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    # the folder, as of an unpacked sdist, may bear the name
    assert "fastsample" not in done.stderr.replace(str(ROOT), ""), "said outside of doctor"
    there = torch.load(tmp_path / "ends.pt")
    assert len(there) == 5 and all(end.isfinite().all() for end in there)
    assert all(torch.equal(a, b) for a, b in zip(here[:4], there[:4], strict=True))
    torch.testing.assert_close(there[4], here[4], rtol=1e-6, atol=1e-9)
    lines = done.stdout.splitlines()
    (code,) = [line for line in lines if line.startswith("native code")]
    assert "missing: fastsample._C is not built" in code and "reinstall" in code
    kernels = [line for line in lines if ", cpu, float" in line]
    assert "cannot be used: fastsample._C is not built" in lines[-1] and "always can" in lines[-1]
    assert len(kernels) == 8 and all("reference" in line.split("(")[0] for line in kernels)


@pytest.mark.parametrize("wish", ["auto", "off", "on"])
def test_an_install_on_windows_builds_nothing(wish, monkeypatch, capsys):
    """A compiler may well be there; the native code is none for it."""
    said = []
    monkeypatch.setattr(setuptools, "setup", lambda **words: said.append(words))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("FASTSAMPLE_NATIVE", wish)
    monkeypatch.setenv("FASTSAMPLE_CUDA", "auto")
    run = lambda: runpy.run_path(str(ROOT / "setup.py"))
    if wish == "on":
        with pytest.raises(SystemExit, match="^FASTSAMPLE_NATIVE=on: it is written for Linux and"):
            run()
        return
    run()
    assert said[0]["ext_modules"] == [] and "built without _C" in capsys.readouterr().err
