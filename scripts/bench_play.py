"""How long the page of `scratchvit play` takes, in CPU time: first paint, and an update of all attention maps.

    python scripts/bench_play.py
    python scripts/bench_play.py runs/NAME --updates 50

It prints the server's CPU time of an answer (drawing, model, attention, rollout, JSON), and in a headless Chromium, by
Playwright: the time until the first answer is on the page, and the CPU time of the page's own thread for each answer.
CPU time does not depend on what else the machine does; wall time, printed beside it, does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np

from scratchvit import loopback
from scratchvit.play import server
from scratchvit.play.classifier import ClassifierPage
from scratchvit.play.server import Question
from scratchvit.training.classification.classifier import open_classifier
from scratchvit.weights.pretrained import run_or_trained

# window.updated resolves when the page has drawn the next answer: its table is replaced in the midst of drawing it.
WATCH = """() => {
  window.updated = new Promise(done => {
    const watch = new MutationObserver(() => requestAnimationFrame(() => done(watch.disconnect())));
    watch.observe(document.querySelector("#answer tbody"), {childList: true});
  });
}"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
FIRST_ANSWER = "Math.max(...performance.getEntriesByType('resource').map(entry => entry.responseEnd))"


def zigzag(number: int) -> bytes:
    """A drawing of one stroke, another one for every number."""
    x = np.linspace(0.2, 0.8, 30)
    return json.dumps([np.stack([x, 0.5 + 0.3 * np.sin(9 * x + number)], axis=1).tolist()]).encode()


def measure_server(page: ClassifierPage, updates: int) -> tuple[float, float]:
    """(CPU milliseconds, wall milliseconds) of an answer to a drawing, as text; the median."""
    see, times = page.routes()["POST strokes"], []
    for number in range(updates):
        cpu, wall = time.process_time(), time.perf_counter()
        json.dumps(see(Question(zigzag(number))))
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = (1000 * float(np.median(column)) for column in zip(*times))
    return cpu, wall


def measure_browser(port: int, updates: int, program: str) -> dict[str, float]:
    """Milliseconds: until the first paint and the first answer (wall), and of the page's thread for an update (CPU)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator("#spoken", has_text="The answer is").wait_for()
        result = {"first paint": page.evaluate(FIRST_PAINT), "first answer": page.evaluate(FIRST_ANSWER)}
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def busy() -> float:
            found = {metric["name"]: metric["value"] for metric in devtools.send("Performance.getMetrics")["metrics"]}
            return 1000 * found["TaskDuration"]

        box = page.locator(".pad").bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        before = busy()
        for number in range(updates):
            page.evaluate(WATCH)
            page.mouse.move(box["x"] + 20 + 5 * (number % 40), box["y"] + 20 + 11 * (number % 20))
            page.evaluate("() => window.updated")
        result["update"] = (busy() - before) / updates
        browser.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("vit_digits"), metavar="RUN")
    parser.add_argument("--updates", type=int, default=30, metavar="N", help="answers that are measured (default: 30)")
    given = parser.parse_args()

    started = time.process_time()
    page = ClassifierPage(open_classifier(run_or_trained(given.run)), given.run.name)
    print(f"opening {given.run}: {1000 * (time.process_time() - started):.0f} ms of CPU time")
    cpu, wall = measure_server(page, given.updates)
    print(f"an answer of the server: {cpu:.1f} ms of CPU time, {wall:.1f} ms of wall time (medians)")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("no Chromium is installed: the page was not measured")
        return
    ready = threading.Event()
    with loopback.listen(0) as listening:
        running = server.server_of(page.routes(), ready.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        ready.wait()
        try:
            found = measure_browser(listening.getsockname()[1], given.updates, program)
        finally:
            running.should_exit = True
            thread.join()
    print(f"first paint: {found['first paint']:.0f} ms of wall time after the request; the first answer has come after "
          f"{found['first answer']:.0f} ms")
    print(f"an update of the page: {found['update']:.1f} ms of CPU time of its thread (mean)")


if __name__ == "__main__":
    main()
