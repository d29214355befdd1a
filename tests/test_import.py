"""`import fastsample` stays light: the parts that need torch or a plotting library load when first
used.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "scipy", "triton", "diffusers", "matplotlib", "safetensors", "tqdm")


def loaded_after(code):
    """Names of HEAVY in sys.modules of a fresh interpreter that has run the code."""
    report = f"; import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", code + report]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


def test_import_loads_nothing_heavy():
    assert loaded_after("import fastsample") == []


def test_making_a_plan_loads_nothing_heavy():
    make = "s = fs.schedules.Flow(shift=3.0); g = fs.grids.uniform(s, 4); "
    make += "fs.solvers.dpmpp_2m(s, g, prediction='flow').describe()"
    assert loaded_after(f"import fastsample as fs; {make}") == []


def test_a_plan_is_read_without_torch(tmp_path):
    path = str(tmp_path / "a.fsplan")
    make = "s = fs.schedules.EDM(); g = fs.grids.karras(s, 4); "
    make += f"fs.solvers.euler(s, g, prediction='edm').save({path!r})"
    assert loaded_after(f"import fastsample as fs; {make}") == []
    assert loaded_after(f"import fastsample as fs; print(fs.Plan.load({path!r}).nfe)") == ["4"]


def test_the_torch_parts_load_on_first_use():
    assert "torch" in loaded_after("import fastsample as fs; fs.Run")


def test_a_plan_is_made_and_read_from_a_zip(tmp_path):
    """Of Python's files and the table beside them, as an application in one file has them."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as whole:
        for path in (*ROOT.glob("fastsample/**/*.py"), *ROOT.glob("fastsample/plan/*.json")):
            whole.write(path, path.relative_to(ROOT))
    code = """
import fastsample as fs
s = fs.schedules.VP()
plan = fs.solvers.dpmpp_3m(s, fs.grids.karras(s, 6), prediction="eps")
print(fs.__file__, plan.describe()[:14], len(plan._repr_html_()) > 4000)
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "all.zip")}
    words = {"capture_output": True, "text": True, "env": env, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-c", code], **words)
    inside = tmp_path / "all.zip" / "fastsample/__init__.py"
    assert (done.stdout, done.stderr) == (f"{inside} Plan  dpmpp_3m True\n", "")
