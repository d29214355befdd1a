"""Serve the embedded model on this machine, until interrupted.

python -m examples.ray_serve --plans FOLDER [--port 8000] [--replicas 1]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or Ray writes a token to the home folder
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # 5 s on a busy machine fail

try:
    import ray
    from ray import serve
except ImportError as error:
    said = "ray_serve: ray is not installed; pip install 'fastsample[serve]'"
    raise ImportError(said, name="ray") from error

import fastsample as fs  # noqa: E402

from .app import build  # noqa: E402


def write_plans(folder: Path) -> None:
    """Plans by hand for the embedded model, where the folder has none."""
    if any(folder.glob("*.fsplan")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = fs.models.fashion()
    for solver, steps in (("euler", 8), ("dpmpp_2m", 8), ("dpmpp_2m", 12), ("dpmpp_2m_sde", 12)):
        plan = fs.solvers.SOLVERS[solver](model, fs.grids.karras(model.schedule, steps))
        plan.save(folder / f"{solver}-{steps}.fsplan")
    print(f"wrote plans of the embedded model to {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="examples.ray_serve", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--plans", required=True, type=Path, help="folder of .fsplan files, watched"
    )
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (default 8000)")
    parser.add_argument(
        "--models",
        default="1x28x28=fastsample.models:fashion",
        help="SHAPE=module:function,... of what makes each model (default %(default)s)",
    )
    parser.add_argument("--replicas", default="1", help="of each shape's Engine (default 1)")
    parser.add_argument("--capacity", default="64", help="requests in flight in a replica")
    parser.add_argument("--waiting", default="256", help="requests that may wait in a replica")
    parser.add_argument("--cpus", default="1", help="that a replica takes (default 1)")
    given = vars(parser.parse_args())
    port, plans = given.pop("port"), given.pop("plans")
    write_plans(plans)
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    app = build(given | {"plans": str(plans.resolve())})
    serve.run(app, name="fastsample", blocking=True)


if __name__ == "__main__":
    main()
