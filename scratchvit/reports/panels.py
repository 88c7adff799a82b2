"""Drawings with captions in the report of a detector, as elements of the page that fit its width."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from scratchvit.inspect.detection import Matching
from scratchvit.inspect.detection_pictures import Panel, cost_rows, matching_panel, object_colours
from scratchvit.inspect.figures import image_of
from scratchvit.reports.page import data_uri, element, key, table

INCHES = 2.2            # width of a drawing without words, at 150 pixels per inch
MATCHING_INCHES = 4.0   # shown at least 22 rem wide, so that LABEL points of the words in it are 12 pixels or more


def groups(rows: Sequence[Sequence[Panel]]) -> Element:
    """Rows of panels, each a group. Groups stand side by side as far as the page is wide enough."""
    made = [element("div", *(_figure(panel, "jpeg") for panel in row), class_="group") for row in rows]
    return element("div", *made, class_="groups", style=f"--count: {max(map(len, rows))}")


def squares(panels: Sequence[Panel], colours: Sequence[tuple[str, str]]) -> list[Element]:
    """Panels side by side, and what their colours mean, (words, colour)."""
    return [key(colours), element("div", *(_figure(panel, "png") for panel in panels), class_="squares")]


def matchings(pictures: Sequence, found: Sequence[Matching], classes: Sequence[str]) -> Element:
    """Each picture with its objects and the matched queries, and a table of the costs, in which a dot has the colour
    of the object.
    """
    parts = []
    for number, (picture, matching) in enumerate(zip(pictures, found, strict=True), 1):
        head, *rows = cost_rows(matching, classes)
        costs = table(head, rows) if rows else element("p", "no objects", class_="faint")
        for row, colour in zip(costs.iterfind(".//tbody/tr/th"), object_colours(matching)):
            row.set("class", "name key")
            row.set("style", f"--dot: {colour}")
        drawn = _image(matching_panel(picture, matching), f"matching in picture {number}", "jpeg", MATCHING_INCHES)
        parts.append(element("div", element("figure", drawn), costs))
    return element("div", *parts, class_="matchings")


def _figure(panel: Panel, format: str) -> Element:
    caption = element("figcaption", panel.titled(), class_="wrong" if panel.weak else None)
    return element("figure", _image(panel, panel.titled(), format, INCHES), caption)


def _image(panel: Panel, description: str, format: str, inches: float) -> Element:
    image = image_of(panel.draw, (inches, inches * panel.ratio))
    image = image.convert("RGB") if format == "jpeg" else image
    width, height = image.size
    return element("img", src=data_uri(image, format), alt=description, width=width, height=height)
