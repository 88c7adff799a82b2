"""A real browser that opens a page from its file, without a window, and tells what it sees."""

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.support.processes import SECONDS

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCHEMES = {"dark": 0, "light": 1}       # of Chromium's preferredColorScheme

# The page is looked at in frames as wide as a phone and as a desktop; a window of Chromium's is at least 500 wide.
_LOOK = """<!DOCTYPE html><meta charset="utf-8"><script>
// The visible texts: element, size in pixels on the screen (a plot is scaled), and the rectangle of each line.
function textsOf(page, view) {
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT), texts = [];
  while (walker.nextNode()) {
    const text = walker.currentNode, element = text.parentElement, range = page.createRange();
    range.selectNodeContents(text);
    const lines = text.data.trim() ? [...range.getClientRects()].filter(line => line.width && line.height) : [];
    const matrix = element instanceof view.SVGGraphicsElement ? element.getScreenCTM() : {a: 1, b: 0};
    const size = parseFloat(view.getComputedStyle(element).fontSize) * Math.hypot(matrix.a, matrix.b);
    if (lines.length) texts.push({element, size, lines, words: text.data.trim()});
  }
  return texts;
}
// Whether a part of a text is outside the page or an element that clips it; what can be scrolled to is not.
function isCut({element, lines}, page, view) {
  let around = element;
  while (around !== page.body && view.getComputedStyle(around).overflowX === "visible") around = around.parentElement;
  if (["auto", "scroll"].includes(view.getComputedStyle(around).overflowX)) return false;
  const box = around.getBoundingClientRect();
  return lines.some(line => line.left < box.left - 1 || line.right > box.right + 1
    || line.top < box.top - 1 || line.bottom > box.bottom + 1);
}
function overlaps(texts) {
  const lines = texts.flatMap(text => text.lines.map(line => [line, text]));
  const found = [];
  for (const [i, [a, first]] of lines.entries()) for (const [b, second] of lines.slice(i + 1))
    if (first !== second && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > Math.min(a.height, b.height) / 2)
      found.push([first.words, second.words]);
  return found;
}
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const view = frame.contentWindow, style = view.getComputedStyle(page.body), texts = textsOf(page, view);
  return {
    title: page.title, text: page.body.innerText,
    images: [...page.images].map(i => [i.alt, i.complete ? i.naturalWidth : 0]),
    scales: [...page.images].map(i => [i.alt, i.getBoundingClientRect().width / i.naturalWidth]),
    plots: [...page.querySelectorAll("svg")].map(s => s.getBoundingClientRect().width),
    scripts: page.scripts.length,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    width: root.clientWidth, content: root.scrollWidth,
    colours: [style.color, style.backgroundColor],
    smallest: Math.min(...texts.map(text => text.size)),
    cut: texts.filter(text => isCut(text, page, view)).map(text => text.words), overlaps: overlaps(texts),
    // What has to be scrolled to the side, apart from what is opened first.
    scrolled: [...page.querySelectorAll(".scroll")]
      .filter(e => e.scrollWidth > e.clientWidth + 1 && !e.closest("details")).map(e => e.firstElementChild.className),
    // How much of the page's width each section's content takes.
    reach: Object.fromEntries([...page.querySelectorAll("section")].map(section => [
      section.querySelector("h2").innerText,
      Math.max(...[...section.querySelectorAll("img, svg, table, pre")].map(e => e.getBoundingClientRect().right), 0)
        / root.clientWidth,
    ])),
  };
}
addEventListener("load", () => {
  const seen = document.createElement("pre");
  seen.id = "seen";
  seen.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
  document.body.replaceChildren(seen);
});
</script><body>FRAMES</body>"""


def look_at(page, folder, widths=(400, 1200), scheme="light"):
    """What is seen of the file `page` at each width, a dictionary of `look` above, with the console's lines in each.

    Skips the test where there is no Chromium. The files that it needs come to lie in `folder`.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    source = html.escape(page.resolve().as_uri())
    frames = "".join(f'<iframe src="{source}" style="width: {width}px; height: 800px"></iframe>' for width in widths)
    wrapper = folder / "frames.html"
    wrapper.write_text(_LOOK.replace("FRAMES", frames), encoding="utf-8")
    done = subprocess.run(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-extensions",
            "--allow-file-access-from-files",       # so that the outer page may look into its frames
            "--enable-logging=stderr", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--user-data-dir={folder / 'profile'}", "--dump-dom", wrapper.resolve().as_uri(),
        ],
        capture_output=True, text=True, encoding="utf-8", timeout=SECONDS,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser saw nothing:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    console = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
    return [seen | {"console": console} for seen in json.loads(html.unescape(found.group(1)))]


def contrast(colours):
    """How far two colours `rgb(r, g, b)` are apart, from 1 to 21 (WCAG 2.2, contrast ratio)."""
    luminances = []
    for colour in colours:
        channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    darker, lighter = sorted(luminances)
    return (lighter + 0.05) / (darker + 0.05)


def assert_readable(seen):
    """Nothing on the page is cut, overlaps or is too small to read, and neither the page nor a table of it needs
    scrolling to the side, apart from wide confusion matrices and rows of augmented pictures.
    """
    assert seen["content"] <= seen["width"] and set(seen["scrolled"]) <= {"confusion", "draws"}
    assert seen["smallest"] >= 12
    assert seen["cut"] == [] and seen["overlaps"] == []
