"""A report as a browser reads it."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

SCRIPT = "<script>alert(1)</script>"


EVIL = ("<img src=x onerror=alert(1)>", "&amp;\"'><b>", "${body} $title")


class Page(HTMLParser):
    """A report, parsed: its elements, texts and table cells."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.rows = [], "", []
        self._cell = False
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th") or (self._cell and tag == "span")

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, text):
        self.text += text
        if self._cell:
            self.rows[-1][-1] += text

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def pictures(self, of_class=None):
        chosen = [a for a in self.of("img") if of_class is None or a.get("class") == of_class]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1])))) for a in chosen]


def assert_self_contained(page):
    """Nothing is fetched, nothing is run."""
    assert {"script", "iframe", "object", "embed", "base", "form"}.isdisjoint(tag for tag, _ in page.elements)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", page.source)
