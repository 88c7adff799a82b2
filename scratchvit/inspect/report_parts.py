"""What a page is made of: elements whose text escapes itself, pictures and plots inside the page, tables."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree.ElementTree import Element, fromstring, tostring

import numpy as np
from PIL import Image

from scratchvit.data.images import to_picture
from scratchvit.inspect.figures import GRID, INK, TRAIN, VALIDATION

PIXELS_UP_TO = 64       # sides of pictures that are shown pixel by pixel; of larger ones, a thumbnail
THUMBNAIL = 192

_COLOURS = {TRAIN: "var(--train)", VALIDATION: "var(--validation)", INK: "var(--faint)", GRID: "var(--line)"}
_SVG = "{http://www.w3.org/2000/svg}"


def element(tag: str, *content: Element | str | None, **attributes: Any) -> Element:
    """<tag attributes>content</tag>. Text is text, whatever is in it: it is escaped when the page is written.

    An attribute may end in "_", for Python's own words: class_. One that is None is left out, and so is such content.
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
    """Elements as text, one after the other."""
    return "\n".join(tostring(made, encoding="unicode", method="html") for made in elements)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], class_: str | None = None) -> Element:
    """A table that scrolls within itself where the page is narrow. The first cell of a row is its heading."""
    body = [element("tr", element("th", row[0]), *(element("td", cell) for cell in row[1:])) for row in rows]
    heading = element("tr", *(element("th", word) for word in head))
    made = element("table", element("thead", heading), element("tbody", *body), class_=class_)
    return element("div", made, class_="scroll")


def picture(pixels: np.ndarray, description: str, title: str | None = None) -> Element:
    """uint8 (H, W, 1 or 3) as an <img> that holds the picture itself: all its pixels, or a thumbnail of many."""
    image, small = to_picture(pixels), max(pixels.shape[:2]) <= PIXELS_UP_TO
    if not small:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    source = data_uri(image, "png" if small else "jpeg")
    width, height = image.size
    return element(
        "img", src=source, alt=description, title=title, width=width, height=height, class_="pixels" if small else None
    )


def data_uri(image: Image.Image, format: str) -> str:
    """A picture as an address that is the picture."""
    file = io.BytesIO()
    image.save(file, format=format, **({"quality": 85} if format == "jpeg" else {"optimize": True}))
    return f"data:image/{format};base64,{base64.b64encode(file.getvalue()).decode()}"


def inline_svg(svg: str, description: str) -> Element:
    """Matplotlib's SVG as an element of the page, in the page's colours, which change with light and dark.

    What a page has no use for goes: sizes, metadata, styles that would hold for the whole page, and names that several
    plots share.
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
