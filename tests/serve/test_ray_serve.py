"""The served example on a real cluster on loopback, and in one process. In an environment of its
own (`make test-serve`): Ray is half a gigabyte.
"""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import time

import numpy as np
import pytest
import torch

import fastsample as fs

pytest.importorskip("ray", reason="make test-serve has an environment with Ray")
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
# a proxy that is not up after so long is killed, and the cluster with it: 5 s on its own
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "120"

import httpx  # noqa: E402
import ray  # noqa: E402
from PIL import Image  # noqa: E402
from ray import serve  # noqa: E402
from ray.exceptions import RayActorError  # noqa: E402

from examples.ray_serve import app  # noqa: E402
from examples.ray_serve import body as bodies  # noqa: E402
from examples.ray_serve.app import build  # noqa: E402
from tests.serve import toy  # noqa: E402

MODELS = {"1x28x28": "fastsample.models:fashion", "1x4x4": "tests.serve.toy:model"}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("plans"), fs.models.fashion()
    for solver, steps in (("euler", 3), ("dpmpp_2m", 4), ("dpmpp_2m_sde", 6), ("dpmpp_2m", 60)):
        plan = fs.solvers.SOLVERS[solver](model, fs.grids.karras(model.schedule, steps))
        plan.save(folder / f"{solver}-{steps}.fsplan")
    other = fs.Model(None, model.schedule, "edm")
    fs.solvers.euler(other, fs.grids.karras(model.schedule, 3)).save(folder / "edm-3.fsplan")
    for steps in (3, 60):
        toy.plan(steps).save(folder / f"toy-{steps}.fsplan")
    return folder


@pytest.fixture(scope="module")
def url(plans):
    """A cluster on loopback with two shapes, and what stands in front of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = {"_node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, **words)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    given = {"plans": str(plans), "cpus": "0.25", "capacity": "16"}
    models = ",".join(f"{shape}={model}" for shape, model in MODELS.items())
    app = build(given | {"models": models, "replicas": "2"})
    serve.run(app, name="fastsample")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def client(url):
    return httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)


def own(plans, bodies):
    """What fs.Sampler makes of these bodies, by plan in one batch."""
    ends = {}
    for name in {body["plan"] for body in bodies}:
        mine = [body for body in bodies if body["plan"] == name]
        model = toy.model() if name.startswith("toy") else fs.models.fashion()
        sampler = fs.Sampler(fs.Plan.load(plans / f"{name}.fsplan"), model)
        x = sampler(
            shape=(len(mine), *mine[0].get("shape", (1, 28, 28))),
            seed=[body["seed"] for body in mine],
            cond={"label": torch.tensor([body["label"] for body in mine])},
        )
        ends |= {body["seed"]: sample for body, sample in zip(mine, x, strict=True)}
    return [ends[body["seed"]] for body in bodies]


def sample_of(answer):
    assert answer.status_code == 200, answer.text
    with np.load(io.BytesIO(answer.content)) as file:
        return torch.from_numpy(file["sample"])


def close(answers, ends):
    return all(
        torch.allclose(sample_of(a), x, atol=1e-5) for a, x in zip(answers, ends, strict=True)
    )


def counts(shape="1x28x28"):
    """Of one replica: its metrics, mixed batches, the number of its process and its name."""
    handle = serve.get_deployment_handle(f"Denoiser_{shape}", "fastsample")
    return handle.metrics.remote().result()


def mixed(n, **words):
    names = "euler-3", "dpmpp_2m-4", "dpmpp_2m_sde-6"
    made = [{"plan": names[k % 3], "seed": 100 + k, "label": k % 10} for k in range(n)]
    return [body | {"format": "npz"} | words for body in made]


async def posted(url, bodies, where="/sample"):
    async with client(url) as http:
        return await asyncio.gather(*(http.post(where, json=body) for body in bodies))


def test_64_requests_at_once_and_a_bad_one_among_them(url, plans):
    bodies = mixed(64)
    bad = {"plan": "dpmpp_2m-4", "seed": -1}
    answers = asyncio.run(posted(url, [*bodies[:40], bad, *bodies[40:]]))
    refused = answers.pop(40)
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("body: seed = -1; a whole number from 0 to")
    assert close(answers, own(plans, bodies))
    assert any(counts()[1] > 0 for _ in range(8))  # batches whose rows stood at different times


def test_each_shape_has_an_engine(url, plans):
    bodies = mixed(4, shape=[1, 4, 4], plan="toy-3")
    assert close(asyncio.run(posted(url, bodies)), own(plans, bodies))
    (answer,) = asyncio.run(posted(url, [{"plan": "euler-3", "seed": 5}]))
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (28, 28)


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"{}", 422, "body: plan is missing"),
        (b'{"plan": "../euler-3"}', 422, "plan: '../euler-3'; a name of 1 to 64 letters"),
        (b'{"plan": "none"}', 422, "plan: there is no 'none'; dpmpp_2m-4, dpmpp_2m-60, dpmpp_2m_"),
        (
            b'{"plan": "edm-3"}',
            422,
            "Engine.submit: the plan was made for prediction = 'edm' and the model's is 'x0'",
        ),
        (b'{"plan": "euler-3", "deadline": 0}', 504, "Ticket.result: the request is at row 0 of"),
        (b" " * 5000, 413, "body: more than 4096 bytes"),
    ],
)
def test_a_bad_request_has_a_sentence(url, content, status, sentence):
    answer = httpx.post(f"{url}/sample", content=content, trust_env=False, timeout=60)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(sentence)


def test_what_else_there_is(url):
    get = lambda where: httpx.get(f"{url}{where}", trust_env=False, timeout=60)
    assert "dpmpp_2m_sde-6" in get("/plans").json()["plans"]
    told = {counts(shape)[3] for shape in MODELS for _ in range(8)}
    found = re.findall('^fastsample_requests_total{engine="(.*)"}', get("/metrics").text, re.M)
    assert len(found) == 4 and told <= {*found} and len({*found}) == 4  # of two shapes two each
    assert {name.split("/")[0] for name in found} == {*MODELS}
    answer = get("/sample")
    assert answer.status_code == 404 and "POST /sample or /stream" in answer.json()["error"]


async def events_of(url, body, most=None):
    """(name, data) of a stream, up to `most` of them."""
    found = []
    async with client(url) as http, http.stream("POST", "/stream", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                found.append(value)
            elif key == "data":
                found[-1] = found[-1], json.loads(value)
                if len(found) == most:
                    break
    return found


def test_a_stream_tells_how_far_it_is(url, plans):
    (body,) = mixed(1)
    *rows, (name, data) = asyncio.run(events_of(url, body))
    assert [(n, d["row"]) for n, d in rows] == [("row", k) for k in range(1, 4)]
    assert {d["rows"] for _, d in rows} == {4} and name == "result"
    with np.load(io.BytesIO(base64.b64decode(data["base64"]))) as file:
        assert torch.allclose(torch.from_numpy(file["sample"]), own(plans, [body])[0], atol=1e-5)
    ((name, data),) = asyncio.run(events_of(url, body | {"deadline": 0}))
    assert name == "error" and data["status"] == 504


@pytest.mark.parametrize("where", ["/stream", "/sample"])
def test_a_client_that_goes_away_is_cancelled(url, where):
    body = {"plan": "toy-60", "seed": 1, "shape": [1, 4, 4]}
    before = dict.fromkeys(range(2), 0)
    for metrics, _, process, _ in (counts("1x4x4") for _ in range(8)):
        before[process] = metrics.ended["cancelled"]
    if where == "/stream":
        assert asyncio.run(events_of(url, body, most=2))[-1][0] == "row"
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}{where}", json=body, timeout=0.5, trust_env=False)
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        metrics, _, process, _ = counts("1x4x4")
        if metrics.ended["cancelled"] > before[process]:
            return
        time.sleep(0.1)
    pytest.fail("it ran on")


def test_a_replica_that_is_killed_loses_no_request(url, plans):
    """It is killed once it is seen to run some; they begin again on another."""
    words = {"shape": [1, 4, 4], "format": "npz"}
    bodies = [words | {"plan": "toy-60", "seed": k, "label": k % 10} for k in range(16)]
    handle = serve.get_deployment_handle("Denoiser_1x4x4", "fastsample")

    async def killed():
        answers = asyncio.ensure_future(posted(url, bodies))
        while True:
            metrics, _, process, _ = await handle.metrics.remote()
            if metrics.running > 2:
                break
            await asyncio.sleep(0.02)
        os.kill(process, signal.SIGKILL)
        assert not answers.done()
        return await answers

    assert close(asyncio.run(killed()), own(plans, bodies))


def test_in_one_process(plans):
    """The deployments without a cluster: a full Engine says when to come again, and one whose
    thread is dead is no healthy one.
    """
    from examples.ray_serve.app import Denoiser

    own = Denoiser.func_or_class([1, 4, 4], MODELS["1x4x4"], str(plans), capacity=1, waiting=0)
    body = bodies.read(b'{"plan": "toy-60", "seed": 1}', ((1, 4, 4),))

    async def two():
        first = asyncio.ensure_future(own.sample(body))
        await asyncio.sleep(0.05)
        full = await own.sample(body)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return full

    full = asyncio.run(two())
    assert full.status == 503 and full.retry_after > 0 and "Engine.submit" in full.sentence
    own.check_health()
    own._engine.close(drain=False)
    with pytest.raises(RuntimeError, match="the thread that ticks its Engine is dead"):
        own.check_health()
    closed = asyncio.run(own.sample(body))
    assert closed.status == 503


class Dying:
    """A handle whose replicas die `times` times, some time after they are asked, then answer."""

    def __init__(self, times, lives=0.0):
        self.times, self.lives, self.deadlines = times, lives, []
        self.sample = self.stream = self

    def options(self, **words):
        return self

    def cancel(self):
        pass

    def remote(self, body):
        self.deadlines.append(body.deadline)
        return self

    async def answer(self):
        await asyncio.sleep(self.lives)
        if len(self.deadlines) <= self.times:
            raise RayActorError()
        return np.zeros((1, 4, 4), np.float32)

    def __await__(self):
        return self.answer().__await__()

    async def __aiter__(self):
        yield await self.answer()


@pytest.fixture
def front(plans, monkeypatch):
    """(a Front of this handle, the body of a request) without a cluster, which waits a little."""
    monkeypatch.setattr(app, "PAUSE", 0.05)
    told = lambda **words: json.dumps({"plan": "toy-3", "shape": [1, 4, 4], "seed": 1} | words)
    read = lambda **words: bodies.read(told(**words).encode(), ((1, 4, 4),))
    return lambda handle: app.Front.func_or_class(str(plans), {"1x4x4": handle}), read


async def every(events):
    return [event async for event in events]


def test_a_request_that_is_tried_again_has_what_is_left_of_its_deadline(front):
    made, read = front
    for ask in (lambda own, body: own._asked(body), lambda own, body: every(own._events(body))):
        dying = Dying(times=3, lives=0.02)
        asyncio.run(ask(made(dying), read(deadline=60)))
        first, *again = dying.deadlines
        assert 59 < first <= 60 and len(again) == 3
        gone = [first - left for left in again]
        assert gone == sorted(gone) and gone[0] >= 0.07 and gone[2] >= 0.21 and gone[2] < 30
        dying = Dying(times=2)
        asyncio.run(ask(made(dying), read()))
        assert dying.deadlines == [None] * 3


def test_a_request_whose_deadline_passes_while_its_replicas_die_is_not_tried_again(front):
    made, read = front
    dying = Dying(times=99, lives=0.02)
    late = asyncio.run(made(dying)._asked(read(deadline=0.1)))
    assert late.status == 504 and "sample: its replica died and its deadline has" in late.sentence
    assert 2 <= len(dying.deadlines) < 5 and min(dying.deadlines) >= 0
    *again, last = asyncio.run(every(made(Dying(times=99))._events(read(deadline=0.1))))
    assert "event: error" in last and "504" in last and {e.split()[1] for e in again} == {"again"}
    full = asyncio.run(made(Dying(times=99))._asked(read()))
    assert full.status == 503 and full.retry_after == 10.0


def test_arguments_of_the_application():
    with pytest.raises(ValueError, match="^build: no plans=; plans= .a folder., models, replicas"):
        build({})
    with pytest.raises(ValueError, match=r"^build: \['n'\]; plans= "):
        build({"plans": "p", "n": "1"})
