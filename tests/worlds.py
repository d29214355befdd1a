"""What the tests of several processes share: a small model whose bits depend on how many samples it
is asked together, and worlds of processes in which a function runs.
"""

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing

import fastsample as fs
from fastsample import metrics
from fastsample.models import analytic
from fastsample.plan.file import to_bytes

D, LIMIT = 6, 100  # seconds, after which a world hangs
LAW = analytic.GaussianMixture(
    np.random.default_rng(0).standard_normal((3, D)), np.ones(3) / 3, 0.3
)
SCHEDULE = fs.schedules.EDM()
BASE = LAW.model(SCHEDULE, "x0")
EVERY = metrics.by_hand
ASKED = []  # rows of every call of `net` in this process


def net():
    """A small MLP beside the mixture's own x0, whose last bits the size of the batch moves, as it
    does those of a large network by the kernel that its library chooses.
    """
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=draw) / 16 for shape in ((D + 1, 128), (128, D)))

    def ask(x, t):
        ASKED.append(len(x))
        level = t[:, None].log()
        wide = torch.cat([x / (1 + t[:, None] ** 2).sqrt(), level], 1)
        return BASE(x, t) + (0.3 + len(x) * 2.0**-22) * torch.tanh(wide @ a) @ b

    return ask


def model(fn=None):
    return fs.Model(fn or net(), SCHEDULE, "x0", model_id="mixture and net")


def few_by_hand(subject, nfe, solver=None):
    """The first plans made by hand, which are enough."""
    return EVERY(subject, nfe, "euler")[:6]


def found(search):
    """All that is to be the same: plans with their notes, evaluations, errors, rungs."""
    rungs = [(r.name, r.psnr, r.pooled, r.nfe) for r in getattr(search, "rungs", ())]
    plans = {m: (to_bytes(plan), json.dumps(plan.note)) for m, plan in search.plans.items()}
    return plans, search.nfe, dict(search.error), rungs, to_bytes(search.teacher)


def _process(rank, size, folder, work, given):
    torch.set_num_threads(1)
    metrics.by_hand = few_by_hand
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    try:
        said = work(rank, *given)
    except KeyboardInterrupt as error:  # which the parent would take for its own
        raise AssertionError("interrupted") from error
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(said))
    distributed.destroy_process_group()


def world(size, folder, work, *given):
    """What work(rank, *given) returns in each of so many processes; fails where one of them does,
    or takes too long. They are forks, each of one thread, which need not import anything.
    """
    folder.mkdir()
    words = (size, str(folder), work, given)
    context = multiprocessing.start_processes(
        _process, words, nprocs=size, join=False, start_method="fork"
    )
    late = threading.Timer(LIMIT, lambda: [one.kill() for one in context.processes])
    late.start()
    try:
        while not context.join():
            pass
    finally:
        late.cancel()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]
