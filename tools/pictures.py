"""Pictures of pages in headless Chromium, light and dark, wide and narrow, to look at.

python tools/pictures.py [page.html ...]: without a page, that of a small search for the embedded
model is made, and those of DOCS are asked of a server over build/site, where `make docs` has put
them. Everything goes to build/pictures. Chromium is spoken to by its DevTools protocol through a
pipe. Exits with a sentence where there is no Chromium, where a page is wider than the window, and
where Chromium has anything to say of a page, as of what its policy forbids.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread

from fastsample import cli, optimize, report

BUILD = Path(__file__).resolve().parents[1] / "build"
OUT, SITE = BUILD / "pictures", BUILD / "site"
DOCS = ("index", "which_plan", "calibrate", "solvers", "gallery", "measured", "hosts/index")
DOCS += ("api/sampler", "api/plan", "source/examples/server.c")
WIDTHS = (1280, 360)
BUDGETS = (3, 4, 6)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


class Chromium:
    """A headless Chromium with one tab."""

    def __init__(self, program: str, folder: str) -> None:
        (to, self.write), (self.read, back) = os.pipe(), os.pipe()
        words = [program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        # It reads from descriptor 3 and writes to 4.
        moved = lambda: (os.dup2(to, 3), os.dup2(back, 4))
        self.process = subprocess.Popen(words, preexec_fn=moved, pass_fds=(3, 4), **quiet)
        os.close(to)
        os.close(back)
        self.asked, self.left, self.session, self.said = 0, b"", {}, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **words: object) -> dict:
        """The answer to a command; what Chromium says meanwhile is kept."""
        self.asked += 1
        command = {"id": self.asked, "method": method, "params": words, **self.session}
        os.write(self.write, json.dumps(command).encode() + b"\0")
        answer = self.until(lambda message: message.get("id") == self.asked)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def until(self, wanted) -> dict:
        while True:
            while b"\0" not in self.left:
                data = os.read(self.read, 1 << 20)
                if not data:
                    raise RuntimeError("Chromium ended without an answer")
                self.left += data
            text, self.left = self.left.split(b"\0", 1)
            message = json.loads(text)
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.said.append(json.dumps(message["params"]))
            if wanted(message):
                return message

    def picture(self, address: str, width: int, scheme: str) -> tuple[bytes, int]:
        """A PNG of the whole page in a window of this width, and the page's own width."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self("Emulation.setEmulatedMedia", features=[feature])
        self("Page.navigate", url=address)
        self.until(lambda message: message.get("method") == "Page.loadEventFired")
        box = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": box["height"], "scale": 1}
        shot = self("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"]), box["width"]

    def close(self) -> None:
        self.session = {}
        self("Browser.close")
        self.process.wait(30)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


def small_search() -> optimize.Search:
    """A climb on a few noises of the embedded model."""
    it, noises = cli.embedded(), 48
    given = {"held_out": it.noise(8, cli.UNSEEN), "teacher": 20, **it.words(noises)}
    own = {"beam": 1, "iterations": 2, "batch": 8}
    search = optimize.search(it.model, it.noise(noises, 0), BUDGETS, **own, **given)
    return search.commanded("python tools/pictures.py")


def main(pages: list[str]) -> None:
    program = shutil.which("chromium")
    if program is None:
        sys.exit("pictures: chromium was not found; apt-get install chromium is what Debian needs")
    OUT.mkdir(parents=True, exist_ok=True)
    chosen = {Path(page).stem: Path(page).resolve().as_uri() for page in pages}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE))
    Thread(target=server.serve_forever, daemon=True).start()
    if not pages:
        report.page(small_search(), OUT / "page.html")
        chosen["page"] = (OUT / "page.html").as_uri()
        at = f"http://127.0.0.1:{server.server_port}"
        chosen |= {page.replace("/", "-"): f"{at}/{page}.html" for page in DOCS}
    faults = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        chromium = Chromium(program, folder)
        for (name, address), scheme, width in product(chosen.items(), ("light", "dark"), WIDTHS):
            png, wide = chromium.picture(address, width, scheme)
            (OUT / f"{name}-{scheme}-{width}.png").write_bytes(png)
            if wide > width:
                faults.append(f"{name}, {scheme}: {wide} pixels wide in a window of {width}")
        chromium.close()
        faults += chromium.said
    server.shutdown()
    if faults:
        sys.exit("pictures: " + "; ".join(faults))
    print(f"pictures: {len(chosen)} pages, each four times, in {OUT}; look at them")


if __name__ == "__main__":
    main(sys.argv[1:])
