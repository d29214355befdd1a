"""The embedded network for programs without Python, and two plans for it: what aoti_server.cpp
loads.

    python examples/aoti_export.py net.pt2 plans

net.pt2 is the network as the Model calls it: x [B,1,28,28], t [B] and label int64 [B] of any batch
B to its prediction [B,1,28,28]. It is compiled ahead of time, for this machine's processor, this
version of torch and as many threads as torch has here. The plans are plans/dpmpp_2m.fsplan, and
plans/guided.fsplan, which draws noise and reads two branches.
"""

import sys
from pathlib import Path

import torch

import fastsample as fs


def main(package: str, folder: str) -> None:
    model = fs.models.fashion()
    example = torch.zeros(2, 1, 28, 28), torch.ones(2), torch.zeros(2, dtype=torch.int64)
    any_batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(model.fn, example, dynamic_shapes=(any_batch,) * 3)
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    six, four = (fs.grids.karras(model.schedule, steps) for steps in (6, 4))
    Path(folder).mkdir(parents=True, exist_ok=True)
    fs.solvers.dpmpp_2m(model, six).save(Path(folder) / "dpmpp_2m.fsplan")
    guided = fs.guidance.guided(fs.solvers.euler_ancestral(model, four))
    guided.save(Path(folder) / "guided.fsplan")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"aoti_export: {len(sys.argv) - 1} arguments; <net.pt2> <plans> is accepted")
    main(*sys.argv[1:])
