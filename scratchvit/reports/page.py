"""The building blocks of reports: HTML elements with escaped text, embedded pictures and plots, tables, header and
footer, settings and curves, and writing the page.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import html
import io
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring, tostring

import numpy as np
from PIL import Image

from scratchvit.data.images import to_picture
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, write_atomically
from scratchvit.inspect.figures import GRID, INK, TRAIN, VALIDATION, Lines, curve_svg
from scratchvit.models import model_config

PIXELS_UP_TO = 64       # sides of pictures that are shown pixel by pixel; of larger ones, a thumbnail
THUMBNAIL = 192

_COLOURS = {TRAIN: "var(--train)", VALIDATION: "var(--validation)", INK: "var(--faint)", GRID: "var(--line)"}
SPLITS = (("training", _COLOURS[TRAIN]), ("validation", _COLOURS[VALIDATION]))      # entries of a legend
_SVG = "{http://www.w3.org/2000/svg}"


def element(tag: str, *content: Element | str | None, **attributes: Any) -> Element:
    """An element <tag attributes>content</tag>. Text is escaped when the page is written.

    Names of attributes can end in "_", for Python keywords: class_. Attributes and content that are None are left out.
    """
    made = Element(tag, {name.rstrip("_"): str(value) for name, value in attributes.items() if value is not None})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif part is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + part
        elif part is not None:
            made.text = (made.text or "") + part
    return made


def to_html(elements: Iterable[Element]) -> str:
    """The HTML source of several elements."""
    return "\n".join(tostring(made, encoding="unicode", method="html") for made in elements)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> Element:
    """A table, which scrolls horizontally on narrow pages. The first cell of a row is its heading.

    names: the number of first columns with names, which are flush left and may be broken into lines; numbers are not.
    """
    def cells(row: Sequence[str], tag: str) -> Iterable[Element]:
        return (
            element("th" if i == 0 else tag, cell, class_="name" if i < names else None) for i, cell in enumerate(row)
        )

    body = [element("tr", *cells(row, "td")) for row in rows]
    made = element("table", element("thead", element("tr", *cells(head, "th"))), element("tbody", *body))
    return element("div", made, class_="scroll")


def picture(pixels: np.ndarray, description: str, title: str | None = None) -> Element:
    """An <img> with an embedded picture, uint8 (H, W, 1 or 3); large pictures are reduced to a thumbnail."""
    image, small = to_picture(pixels), max(pixels.shape[:2]) <= PIXELS_UP_TO
    if not small:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    source = data_uri(image, "png" if small else "jpeg")
    width, height = image.size
    return element(
        "img", src=source, alt=description, title=title, width=width, height=height, class_="pixels" if small else None
    )


def data_uri(image: Image.Image, format: str) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    image.save(file, format=format, **({"quality": 85} if format == "jpeg" else {"optimize": True}))
    return f"data:image/{format};base64,{base64.b64encode(file.getvalue()).decode()}"


def inline_svg(svg: str, description: str) -> Element:
    """An SVG of Matplotlib as an element of the page, with the page's colours, which depend on light or dark mode.

    Removed are sizes, metadata, styles that would affect the whole page, and ids that would occur in several plots.
    """
    root = fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (_SVG + "metadata", _SVG + "style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    for part in root.iter():
        part.tag = part.tag.removeprefix(_SVG)
        attributes = {re.sub(r"^\{.*\}", "", name): value for name, value in part.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        if "style" in attributes:
            attributes["style"] = re.sub(
                "|".join(_COLOURS), lambda found: _COLOURS[found.group()], attributes["style"]
            )
        part.attrib.clear()
        part.attrib.update(attributes)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": description})
    return root


# --- parts of every report ------------------------------------------------------------------------------------------


def write_page(path: str | Path, title: str, sections: Iterable[Element | None]) -> None:
    """Write a page from the template report.html. Sections that are None are left out.

    Raises ScratchvitError if the file cannot be written.
    """
    template = string.Template(resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    page = template.substitute(
        title=html.escape(title), body=to_html(section for section in sections if section is not None)
    )
    write_atomically(Path(path), page.encode("utf-8", "replace"))      # a file name may contain surrogates


def section(title: str, present: Any, build: Callable[[], Sequence[Element]]) -> Element | None:
    """A heading with the content that `build` returns or, if it raises ScratchvitError, with the error message."""
    if not present:
        return None
    try:
        content = build()
    except ScratchvitError as error:
        content = [element("p", str(error), class_="faint")]
    return element("section", element("h2", title), *content)


def header(title: str, lead: str, facts: Sequence[tuple[str, str]], stress: bool) -> Element:
    """The top of the page, with facts (name, value) as tiles; stress: whether the first one is emphasised."""
    tiles = [
        element("div", element("dt", name), element("dd", value), class_="first" if i == 0 and stress else None)
        for i, (name, value) in enumerate(facts)
    ]
    lines = element("h1", title), element("p", lead, class_="faint"), element("dl", *tiles, class_="tiles")
    return element("header", *lines)


def footer(folder: Path, versions: Mapping[str, str]) -> Element:
    trained = ", ".join(f"{name} {version}" for name, version in versions.items())
    written = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return element("footer", f"{folder.resolve().name}, trained with {trained}; report of {written}.")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def key(entries: Sequence[tuple[str, str]]) -> Element:
    """A legend: (name, colour in CSS) of each entry."""
    return element("p", *(element("span", name, class_="key", style=f"--dot: {colour}") for name, colour in entries))


def curves(
    rows: Sequence[Mapping[str, float]], plots: Mapping[str, Lines], entries: Sequence[tuple[str, str]] = SPLITS
) -> list[Element]:
    """Plots side by side, below a legend with these entries; without Matplotlib, a note.

    A plot of several lines that have no entry gets a legend of its own.
    """
    try:
        figures = [
            element("figure", element("figcaption", what, _own_key(lines, entries)),
                    inline_svg(curve_svg(rows, what, lines), _last(rows, what, lines)))
            for what, lines in plots.items()
        ]
    except ScratchvitError as error:
        return [element("p", str(error), class_="faint")]
    return [key(entries), element("div", *figures, class_="curves")]


def _own_key(lines: Lines, entries: Sequence[tuple[str, str]]) -> Element | None:
    own = [(name, colour) for _, colour, name in lines if name not in dict(entries)]
    return key(own) if len(own) > 1 else None


def _last(rows: Sequence[Mapping[str, float]], what: str, lines: Lines) -> str:
    """An alternative text for a plot, for screen readers."""
    ends = ", ".join(f"{name} {rows[-1][column]:.4g}" for column, _, name in lines)
    return f"{what} over {counted(len(rows), 'epoch')}, at the end: {ends}"


def numbers(rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> Element:
    """Columns of metrics.csv as a collapsible table; the first is the epoch."""
    cells = [[f"{row['epoch']:.0f}", *(f"{row[name]:.4g}" for name in columns[1:])] for row in rows]
    head = [name.replace("_", " ") for name in columns]
    return element("details", element("summary", "the numbers"), table(head, cells))


def next_steps(commands: Mapping[str, str]) -> list[Element]:
    """Command lines about the run, {what it does: command line}."""
    steps = [
        element("div", element("dt", what), element("dd", element("pre", line))) for what, line in commands.items()
    ]
    return [element("dl", *steps, class_="steps")]


def configuration(config: Any, model: Any) -> list[Element]:
    """The settings of a run, and the configuration of its model."""
    sizes = vars(model or model_config(config.model, **config.model_args))
    fields = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(config) if f.name != "model_args"}
    return [
        element("p", "● differs from the default.", class_="faint"),
        _settings({name: getattr(config, name) for name in fields}, vars(type(config)()), fields),
        element("h3", f"The model, {config.model}"),
        element("p", "● differs from the paper.", class_="faint"),
        _settings(sizes, vars(model_config(config.model)), {}),
    ]


def _settings(values: Mapping[str, Any], defaults: Mapping[str, Any], about: Mapping[str, str]) -> Element:
    rows = [
        element(
            "tr", element("th", name), element("td", str(value)), element("td", about[name]) if about else None,
            class_="changed" if value != defaults[name] else None,
        )
        for name, value in values.items()
    ]
    return element("div", element("table", element("tbody", *rows), class_="settings"), class_="scroll")
