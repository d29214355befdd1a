"""tools/upstream_suite.py on a small folder of tests: what runs, with which class, what is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TESTS = """
import tempfile
import unittest

from diffusers import CogVideoXDPMScheduler, DDIMScheduler, EulerDiscreteScheduler

from .test_schedulers import Common

class EulerTest(Common):
    scheduler_classes = (EulerDiscreteScheduler,)

    def test_made(self):
        made = self.scheduler_classes[0](1100, beta_schedule="scaled_linear")
        assert type(made).__name__ == "FsScheduler" and self.is_euler(self.scheduler_classes[0])
        said = made.config
        words = said["source"], said["num_train_timesteps"], said["beta_schedule"]
        assert words == ("EulerDiscreteScheduler", 1100, "scaled_linear")
        assert said["compat"] == None and "beta_start" in said["_use_default_values"]

    def test_moved(self):
        moved = DDIMScheduler.from_config(CogVideoXDPMScheduler().config)
        assert moved.config["source"] == "DDIMScheduler"
        with tempfile.TemporaryDirectory() as folder:
            EulerDiscreteScheduler(beta_end=0.012).save_pretrained(folder)
            assert EulerDiscreteScheduler.from_pretrained(folder).config["beta_end"] == 0.012

    def test_unknown_word(self):
        EulerDiscreteScheduler(no_such_word=1)

    def test_betas(self):
        EulerDiscreteScheduler(beta_end=2.0)

    @unittest.skip("no reason")
    def test_left_out(self):
        pass

class OtherTest(Common):
    scheduler_classes = (CogVideoXDPMScheduler,)

    def test_fails(self):
        assert False
"""
COMMON = """
import unittest

from diffusers import EulerDiscreteScheduler

class Common(unittest.TestCase):
    def is_euler(self, found):
        return found in (EulerDiscreteScheduler,)

    def test_inherited(self):
        pass
"""


def run(*arguments):
    command = [sys.executable, ROOT / "tools" / "upstream_suite.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_our_class_in_place_of_theirs(tmp_path):
    folder = tmp_path / "tests" / "schedulers"
    folder.mkdir(parents=True)
    for where in (folder, folder.parent):
        (where / "__init__.py").touch()
    (folder / "test_schedulers.py").write_text(COMMON)
    (folder / "test_scheduler_euler.py").write_text(TESTS)
    (folder / "test_scheduler_broken.py").write_text("import no_such_module\n")
    done = run(tmp_path, "--compat", "none")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[:6] == [
        "compat = none",
        "| class | passed | failed | skipped |",
        "|---|---|---|---|",
        "| EulerTest | 3 | 2 | 1 |",
        "| test_scheduler_broken | 0 | 1 | 0 |",
        "| all | 3 | 3 | 1 |",
    ]
    failures = done.stdout.splitlines()[6:]
    broken, error, betas, refused, reason, unknown, said = failures
    assert broken.endswith("test_scheduler_broken.py") and "'no_such_module'" in error
    assert betas.endswith("::test_betas") and "beta_end = 2" in refused
    assert reason.strip().startswith("asks for a beta of 2, which is refused")
    assert unknown.endswith("::test_unknown_word")  # which nobody has a reason for
    assert said.strip() == "TypeError: got an unexpected keyword argument 'no_such_word'"


def test_a_folder_without_such_tests(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        done = run(folder)
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.strip().splitlines()[-1] == (
            f"upstream_suite.py: error: {folder} has no test_sched*.py; a checkout of diffusers, "
            "its tests folder or tests/schedulers is accepted"
        )
