"""`fastsample show solvers`: what it says of the registry, by other means, and its sentences."""

import inspect
import sys

import interpreter
import numpy as np
import pytest
import test_weak_order as weak
from oracle import orders

from fastsample import cli, solvers
from fastsample.report import registry
from fastsample.schedules import EDM
from fastsample.solvers import SOLVERS


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_3m", "unipc", "rk", "ipndm"])
def test_orders_are_those_of_the_interpreter(name):
    """The same three runs by the oracle's interpreter and denoiser."""

    def end(n):
        plan = SOLVERS[name](EDM(), orders.grid(EDM(), n), prediction="x0")
        model = lambda x, t, row, call: [orders.denoise(x, plan.alpha[row], plan.sigma[row])]
        return interpreter.run(plan, orders.STARTS, model, first=1)

    ends = [end(n) for n in (64, 128, 256)]
    apart = [np.abs(a - b).max() for a, b in zip(ends, ends[1:], strict=False)]
    assert registry.order(name) == f"{np.log2(apart[0] / apart[1]):.1f}"


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "seeds_3"])
def test_weak_orders_are_those_of_the_interpreter(name):
    errors = [weak.errors(name, {}, EDM(), n)[1] for n in (64, 128)]
    assert registry.order(name) == f"{np.log2(errors[0] / errors[1]):.1f} w"


def test_renoising_solvers_have_no_order():
    """They forget x: their end is that of the last step alone."""
    assert registry.order("lcm") == registry.order("tcd") == "-"


@pytest.mark.parametrize("name", [*SOLVERS])
def test_evaluations_and_what_is_kept(name):
    """At another number of steps, and on another schedule's own."""
    law, plan = registry._evaluations(name), registry._plan(name, 21, 0.0)
    times, _, off = law.replace(" ", "").partition("n")
    assert plan.nfe == int(times or 1) * 21 + int(off or 0)


def test_the_table_has_every_solver_and_what_its_maker_says(capsys):
    assert cli.main(["show", "solvers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["solver", "tier", "order"]
    shown = {line.split()[0]: line for line in lines[2 : 2 + len(SOLVERS)]}
    assert list(shown) == [*SOLVERS]
    for name, maker in SOLVERS.items():
        assert shown[name].split()[1] == maker.tier
        assert all(words in shown[name] for words in maker.elsewhere.values())


def test_a_terminal_breaks_no_line_of_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(registry, "SOLVERS", {name: SOLVERS[name] for name in ("euler", "stork")})
    assert cli.main(["show", "solvers"]) == 0
    whole = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["show", "solvers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 80 < len(whole[2]) and lines[2] == f"{whole[2][:77]}..."
    assert lines[3] == whole[3]


def test_one_solver_shows_its_options_and_docstring(capsys):
    assert cli.main(["show", "solvers", "dpmpp_sde"]) == 0
    said = capsys.readouterr().out
    maker = SOLVERS["dpmpp_sde"]
    assert inspect.getdoc(maker) in said and "sample_dpmpp_sde" in said and "  2n - 1\n" in said
    for name, parameter in inspect.signature(maker).parameters.items():
        shown = f"{name}={parameter.default!r}" in said
        assert shown == (parameter.kind is parameter.KEYWORD_ONLY)


def test_a_solver_of_ones_own_stands_there(capsys, monkeypatch):
    monkeypatch.setattr(solvers, "SOLVERS", SOLVERS)
    own = lambda model, grid, **words: solvers.heun(model, grid, **words)
    monkeypatch.setitem(SOLVERS, "own", own)
    assert cli.main(["show", "solvers", "own"]) == 0
    said = capsys.readouterr().out
    assert "order        2.0" in said and "tier         -" in said and "says nothing" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["solvers", "dpmpp_2"], "dpmpp_2: no solver; one of dpmpp_2s, dpmpp_2m, dpm_2"),
        (["solvers", "\x1b"], "\\x1b: no solver; one of ddim, euler"),
        (["solvers", "--json"], "--json belongs to a plan"),
        (["solvers", "heun", "--picture", "a.png"], "--picture belongs to a plan"),
        (["a.fsplan", "heun"], "a.fsplan: No such file"),
    ],
)
def test_bad_words_are_one_sentence(capsys, words, said):
    assert cli.main(["show", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastsample show: {said}") and error.count("\n") == 1
