"""fastsample behind HTTP on Ray Serve: one Engine a replica, which takes requests between steps.

    POST /sample   {"plan": "dpmpp_2m-8", "label": 7, "seed": 1, "format": "png"} -> the image
    POST /stream   the same -> server-sent events: "row" as it goes on, "result" or "error"
    GET  /plans    the plans that there are
    GET  /metrics  the counts of every replica's Engine, as Prometheus' text

A `Front` checks each request and hands it to the `Denoiser` of its shape, whose Engine ticks in a
thread of its own. A request that a replica's death interrupts is begun again by the Front, with the
same seed, on another replica: no request that it has accepted is lost as long as the Front lives
and a replica comes up within RETRIES tries. What is lost are requests of a Front that dies itself,
whose clients see their connection end.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

import fastsample as fs
from fastsample.models.unet import NO_LABEL
from fastsample.runtime.meter import Metrics, prometheus
from fastsample.runtime.ticket import Ticket

from . import body as bodies
from .plans import Plans

DIED = RayActorError, ObjectLostError
RETRIES, PAUSE = 20, 0.5  # of a request whose replica died, and seconds between two
ANSWERED = 10.0  # seconds in which a replica that is alive tells its counts
NOT_FOUND, TOO_LARGE, UNPROCESSABLE, FAILED, FULL, LATE = 404, 413, 422, 500, 503, 504
USE = "POST /sample or /stream, GET /plans or /metrics"


class Refusal(NamedTuple):
    """An answer that is no sample: status, its sentence, and seconds after which to come again."""

    status: int
    sentence: str
    retry_after: float | None = None

    def response(self) -> Response:
        wait = self.retry_after
        headers = {} if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
        return JSONResponse({"error": self.sentence}, self.status, headers)


class Told:
    """A network, and how many batches it was asked whose rows stand at different times."""

    def __init__(self, network: Callable) -> None:
        self.network, self.mixed = network, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.mixed += bool((t != t[0]).any())
        return self.network(x, t, label=label)


@serve.deployment(max_ongoing_requests=1024, health_check_period_s=2, health_check_timeout_s=30)
class Denoiser:
    """One Engine for samples of one shape. model: "module:function" of no argument, which makes the
    fs.Model, told label [N]; waiting: requests beyond `capacity` that may wait.
    """

    def __init__(
        self, shape: list[int], model: str, plans: str, capacity: int = 64, waiting: int = 256
    ) -> None:
        torch.set_num_threads(1)
        module, made = model.split(":")
        model = getattr(importlib.import_module(module), made)()
        self._plans, self._told = Plans(plans), Told(model.fn)
        model = replace(model, fn=self._told, model_id=model.identity)
        self._engine = fs.Engine(model, shape, capacity, waiting=waiting).serve()
        self._name = "x".join(map(str, shape))
        with suppress(RayServeException):  # outside of Serve there is one alone
            self._name += f"/{serve.get_replica_context().replica_id.unique_id}"

    async def sample(self, body: bodies.Body) -> np.ndarray | Refusal:
        """The sample, float32 of the shape."""
        ticket = self._submit(body)
        return ticket if isinstance(ticket, Refusal) else await _result(ticket)

    async def stream(self, body: bodies.Body) -> AsyncIterator[object]:
        """[row, rows] every `every` rows, then the sample; or a Refusal."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue()
        hear = lambda ticket: loop.call_soon_threadsafe(told.put_nowait, ticket.row)
        ticket = self._submit(body, hear)
        if isinstance(ticket, Refusal):
            yield ticket
            return
        rows = ticket.row + ticket.left
        result = asyncio.ensure_future(_result(ticket))
        result.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (row := await told.get()) is not None:
                yield [row, rows]
            yield await result
        finally:
            result.cancel()  # where the client is gone, and the request with it

    async def metrics(self) -> tuple[Metrics, int, int, str]:
        """What its Engine counts, the batches whose rows stood at different times, the number of
        its process, and its name, "1x28x28/<replica>".
        """
        return self._engine.metrics(), self._told.mixed, os.getpid(), self._name

    def check_health(self) -> None:
        """RuntimeError where the thread that ticks is gone: Serve then replaces the replica."""
        if not self._engine.serving:
            raise RuntimeError("Denoiser: the thread that ticks its Engine is dead")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close(drain=False)

    def _submit(self, body: bodies.Body, callback: Callable | None = None) -> Ticket | Refusal:
        label = torch.tensor([body.label])
        words = {"cond": {"label": label}, "seed": body.seed, "deadline": body.deadline}
        if body.guidance is not None:
            none = torch.full_like(label, NO_LABEL)
            words |= {"uncond": {"label": none}, "guidance": body.guidance}
        try:
            plan = self._plans.get(body.plan)
            return self._engine.submit(plan, **words, callback=callback, every=body.every)
        except fs.EngineFull as error:
            return Refusal(FULL, str(error), error.retry_after)
        except (ValueError, TypeError) as error:
            return Refusal(UNPROCESSABLE, str(error))
        except RuntimeError as error:  # it is closed
            return Refusal(FULL, str(error), 1.0)


async def _result(ticket: Ticket) -> np.ndarray | Refusal:
    try:
        return (await ticket)[0].numpy()
    except fs.DeadlineExceeded as error:
        return Refusal(LATE, str(error))
    except Exception as error:
        return Refusal(FAILED, f"{type(error).__name__}: {error}"[:500])


@serve.deployment(max_ongoing_requests=4096)
class Front:
    """Checks requests and hands them to the Denoiser of their shape. engines: by "1x28x28"."""

    def __init__(self, plans: str, engines: dict[str, DeploymentHandle]) -> None:
        self._plans = Plans(plans)
        self._engines = {tuple(map(int, k.split("x"))): engines[k] for k in engines}

    async def __call__(self, request: Request) -> Response:
        where = request.method, request.url.path.rstrip("/")
        if where == ("GET", "/plans"):
            return JSONResponse({"plans": self._plans.names()})
        if where == ("GET", "/metrics"):
            return PlainTextResponse(await self._metrics())
        if where not in (("POST", "/sample"), ("POST", "/stream")):
            return Refusal(NOT_FOUND, f"{' '.join(where)}: {USE} is accepted").response()
        body = await self._read(request)
        if isinstance(body, Refusal):
            return body.response()
        if where[1] == "/stream":
            return StreamingResponse(self._events(body), media_type="text/event-stream")
        answer = await self._asked(body)
        if isinstance(answer, Refusal):
            return answer.response()
        return Response(encoded(answer, body.format), media_type=bodies.FORMATS[body.format])

    async def _read(self, request: Request) -> bodies.Body | Refusal:
        """The body, checked; no more of it is taken than MOST_BYTES."""
        text = bytearray()
        async for part in request.stream():
            text += part
            if len(text) > bodies.MOST_BYTES:
                said = f"body: more than {bodies.MOST_BYTES} bytes; a JSON object of less is"
                return Refusal(TOO_LARGE, f"{said} accepted")
        try:
            body = bodies.read(bytes(text), (*self._engines,))
            self._plans.get(body.plan)
        except ValueError as error:
            return Refusal(UNPROCESSABLE, str(error))
        return body

    async def _asked(self, body: bodies.Body) -> np.ndarray | Refusal:
        """The answer of the Denoiser, asked again where its replica died."""
        ends = _end(body)
        for _ in range(RETRIES):
            try:
                return await self._engines[body.shape].sample.remote(_left(body, ends))
            except DIED:
                if late := _late("sample", ends):
                    return late
                await asyncio.sleep(PAUSE)
        return Refusal(FULL, "sample: its replicas died; a request later is accepted", 10.0)

    async def _events(self, body: bodies.Body) -> AsyncIterator[str]:
        """Server-sent events; "again" where its replica died and the run begins anew."""
        ends, engine = _end(body), self._engines[body.shape].options(stream=True)
        for _ in range(RETRIES):
            asked = engine.stream.remote(_left(body, ends))
            try:
                async for told in asked:
                    yield _event(told, body.format)
                return
            except DIED:
                if late := _late("stream", ends):
                    yield _event(late, "")
                    return
                yield "event: again\ndata: {}\n\n"
                await asyncio.sleep(PAUSE)
            finally:
                asked.cancel()
        yield _event(Refusal(FULL, "stream: its replicas died; a request later is accepted"), "")

    async def _metrics(self) -> str:
        """Of every replica that answers."""
        asked = [handle.broadcast("metrics") for handle in self._engines.values()]
        words = {"timeout_s": ANSWERED, "return_exceptions": True}
        told = (each.results_async(**words) for each in asked)
        found = await asyncio.gather(*told, return_exceptions=True)
        each = [one for replicas in found if isinstance(replicas, list) for one in replicas]
        alive = [one for one in each if not isinstance(one, Exception)]
        return prometheus({name: metrics for metrics, _, _, name in alive})


def _end(body: bodies.Body) -> float | None:
    return None if body.deadline is None else monotonic() + body.deadline


def _left(body: bodies.Body, ends: float | None) -> bodies.Body:
    """The body with what is left of its deadline."""
    return body if ends is None else replace(body, deadline=max(0.0, ends - monotonic()))


def _late(where: str, ends: float | None) -> Refusal | None:
    """Of one whose replica died: nobody is asked again for it once its deadline has come."""
    if ends is None or monotonic() < ends:
        return None
    return Refusal(
        LATE, f"{where}: its replica died and its deadline has passed; a later one is accepted"
    )


def _event(told: object, form: str) -> str:
    if isinstance(told, Refusal):
        name, data = "error", {"status": told.status, "error": told.sentence}
    elif isinstance(told, list):
        name, data = "row", dict(zip(("row", "rows"), told, strict=True))
    else:
        sample = base64.b64encode(encoded(told, form)).decode()
        name, data = "result", {"format": form, "base64": sample}
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def encoded(sample: np.ndarray, form: str) -> bytes:
    """A sample [C,H,W] in [-1,1]: an .npz of it as it is, "sample", or a PNG of its first channel,
    rounded to 0..255.
    """
    file = io.BytesIO()
    if form == "npz":
        np.savez(file, sample=sample)
    else:
        grey = np.rint((sample[0].clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
        Image.fromarray(grey).save(file, "png")
    return file.getvalue()


def build(args: dict[str, str]) -> serve.Application:
    """The application for `serve run` and config files. args, all of them text: plans, the folder
    (needed); models, "SHAPE=module:function,..." (see Denoiser); replicas of each; capacity and
    waiting of each Engine; cpus that a replica takes.
    """
    words = {"models": "1x28x28=fastsample.models:fashion", "replicas": "1", "capacity": "64"}
    words |= {"waiting": "256", "cpus": "1"}
    if unknown := sorted(args.keys() - words.keys() - {"plans"}) or "plans" not in args:
        raise ValueError(
            f"build: {unknown if unknown is not True else 'no plans='}; plans= (a folder), "
            f"{', '.join(words)} are accepted"
        )
    words |= args
    options = {"num_replicas": int(words["replicas"])}
    options["ray_actor_options"] = {"num_cpus": float(words["cpus"])}
    room = int(words["capacity"]), int(words["waiting"])
    engines = {
        shape: Denoiser.options(name=f"Denoiser_{shape}", **options).bind(
            [*map(int, shape.split("x"))], model, words["plans"], *room
        )
        for shape, model in (each.split("=") for each in words["models"].split(","))
    }
    return Front.options(ray_actor_options={"num_cpus": 0}).bind(words["plans"], engines)
