"""What an Engine counts, against counts by hand, and Prometheus' text of it."""

import sys

import pytest
import torch
from company import SHAPE, plan
from test_engine_admission import Clock, submit

import fastsample as fs
from fastsample.runtime.meter import BOUNDS, Times, prometheus


def test_times():
    times = Times()
    assert (times.count, times.mean, times.percentile(50)) == (0, 0.0, 0.0)
    for seconds in [0.001] * 90 + [0.1] * 9 + [5000.0]:
        times.add(seconds)
    assert times.count == 100 and times.total == pytest.approx(0.09 + 0.9 + 5000)
    for share, seconds in ((1, 0.001), (50, 0.001), (90, 0.001), (91, 0.1), (99, 0.1)):
        assert seconds <= times.percentile(share) < seconds * 2**0.25
    assert times.percentile(99.5) == times.percentile(100) == float("inf")
    edge = Times()
    edge.add(BOUNDS[7])
    assert edge.percentile(0) == edge.percentile(100) == BOUNDS[7]
    with pytest.raises(ValueError, match="^Times.percentile: 101; 0 to 100"):
        times.percentile(101)


@pytest.fixture
def counted(monkeypatch):
    """An Engine of two places after requests of every end, on a clock of 1 s an evaluation."""
    clock = Clock(monkeypatch)

    def model(x, t, label):
        clock.now += 1.0
        return torch.where((label == 1).view(-1, 1, 1), torch.nan, x)

    engine, cond = fs.Engine(model, SHAPE, 2, waiting=3), lambda k: {"label": torch.tensor([k])}
    two = {"uncond": cond(0), "guidance": 2.0}
    tickets = [submit(engine, 2, k, cond=cond(k), **(two if k == 0 else {})) for k in range(2)]
    tickets += [submit(engine, 3, cond=cond(0)) for _ in range(2)]
    tickets += [submit(engine, 9, cond=cond(0), deadline=4.0)]
    for _ in range(2):
        with pytest.raises(fs.EngineFull):
            submit(engine, cond=cond(0))
    tickets[3].cancel()
    return engine, tickets


def test_counts_by_hand(counted):
    engine, (guided, bad, late, gone, hurried) = counted
    before = engine.metrics()
    assert (before.requests, before.waiting, before.running, before.ticks) == (5, 2, 2, 0)
    assert before.ended == {"result": 0, "cancelled": 1, "refused": 0, "failed": 0}
    engine.run()
    # Rows: the guided one and the bad one at their row 0, at row 1 (three rows of the batch), where
    # the bad one ends; the guided one's last beside the row 0 of the next (two rows); that one's
    # three evaluations, beside it the row 0 of the hurried one, which has 9 s left and then none.
    assert [t.state for t in (guided, bad, late, gone, hurried)] == [
        *("result", "failed", "result", "cancelled", "failed")
    ]
    metrics = engine.metrics()
    assert metrics.ended == {"result": 2, "cancelled": 1, "refused": 0, "failed": 2}
    assert (metrics.requests, metrics.refusals, metrics.waiting, metrics.running) == (5, 2, 0, 0)
    assert metrics.ticks == metrics.launches == metrics.step.count == 6
    assert metrics.rows == 3 + 2 + 3 and metrics.step.total == 5.0
    assert metrics.ticked == 2 + 2 + 2 + 3 and metrics.occupancy == 1.5
    assert metrics.queue_wait.count == 3 and metrics.queue_wait.total == 1.0
    assert metrics.request.count == 2 and metrics.request.total == 2.0 + 5.0
    assert before.ticks == before.step.count == 0  # what was read stays


def test_without_prometheus_client_there_is_a_sentence(counted, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError) as error:
        counted[0].metrics().prometheus()
    said = "Metrics.prometheus: it needs prometheus_client; pip install 'fastsample[serve]'"
    assert str(error.value) == said


@pytest.mark.slow
def test_prometheus_reads_its_text(counted):
    from prometheus_client.parser import text_string_to_metric_families

    engine, _ = counted
    other = fs.Engine(lambda x, t: x, SHAPE)
    other.submit(plan(n=1), seed=1)
    engine.run()
    text = prometheus({"one": engine.metrics(), "other": other.metrics()})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    one, label = engine.metrics(), ("engine", "one")
    for state, count in one.ended.items():
        assert values["fastsample_ended_total", label, ("state", state)] == count
    for word in ("requests", "refusals", "ticks", "ticked", "launches", "rows"):
        assert values[f"fastsample_{word}_total", label] == getattr(one, word)
    assert values["fastsample_running", ("engine", "other")] == 1
    assert families["fastsample_step_seconds"].type == "histogram"
    assert values["fastsample_step_seconds_count", label] == one.step.count == 6
    assert values["fastsample_step_seconds_sum", label] == 5.0
    below = [
        v
        for (name, *rest), v in values.items()
        if name == "fastsample_step_seconds_bucket" and label in rest
    ]
    assert below == sorted(below) and below[-1] == 6 and len(below) == 29
    assert engine.metrics().prometheus("one") in text or text.count("# TYPE") == 12
