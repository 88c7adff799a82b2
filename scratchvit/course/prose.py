"""The text of a chapter in one language: sections with an identifier, in which computed numbers are filled in.

    ## [memory]
    ### How much memory
    For images of [[side]]×[[side]] pixels, one matrix has [[entries]] entries, $N^2 = R^4$.

`## [id]` on a line of its own begins a section. `[[name]]` stands for a value; `[[name:.1f]]` gives it a format of
Python. A figure's section begins with a line `alt: …`, the description for readers who do not see it. The section
`words` holds the labels of controls and axes, one on a line: `patch: side of a patch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError, WrongValue

WORDS = "words"             # the section with the labels

_BEGIN = re.compile(r"^## \[([a-z0-9-]+)\]\s*$", re.MULTILINE)
_PLACE = re.compile(r"\[\[([a-z]\w*)(?::([^\]]+))?\]\]")


@dataclass(frozen=True)
class Prose:
    """The sections of a file of text: {identifier: text}."""

    path: Path
    sections: dict[str, str]

    def section(self, name: str, **values: Any) -> str:
        """The text of a section with the values filled in: integers as 38,416, floats with four digits.

        Raises ScratchvitError if there is no such section, or if a value is missing or not used.
        """
        wanted = self.names(name)
        if wanted != values.keys():
            missing, unused = sorted(wanted - values.keys()), sorted(values.keys() - wanted)
            raise WrongValue(
                f"{self.path.name}: section [{name}] and the values for it differ: "
                f"missing: {', '.join(missing) or 'none'}; not used: {', '.join(unused) or 'none'}"
            )
        return _PLACE.sub(lambda place: shown(values[place[1]], place[2]), self.sections[name])

    def names(self, name: str) -> set[str]:
        """The names of the values of a section. Raises ScratchvitError if there is no such section."""
        if name not in self.sections:
            raise WrongValue(f"{self.path.name}: there is no section [{name}]; there are {', '.join(self.sections)}")
        return {place for place, _ in places(self.sections[name])}

    def figure(self, name: str, **values: Any) -> tuple[str, str]:
        """The description of a figure and its caption. Raises ScratchvitError as `section`, or if it has no `alt:`."""
        first, _, caption = self.section(name, **values).partition("\n")
        if not first.startswith("alt: "):
            raise WrongValue(f"{self.path.name}: section [{name}] of a figure must begin with a line `alt: …`")
        return first.removeprefix("alt: ").strip(), caption.strip()

    def words(self) -> dict[str, str]:
        """The labels of the section `words`; none if there is no such section."""
        lines = self.sections.get(WORDS, "").splitlines()
        return {key.strip(): label.strip() for key, _, label in (line.partition(":") for line in lines if line)}

    def title(self) -> str:
        """The first heading of the first level, which is the title of the chapter."""
        found = re.search(r"^# (.+)$", "\n".join(self.sections.values()), re.MULTILINE)
        if found is None:
            raise ScratchvitError(f"{self.path.name}: there is no title, a line `# …`")
        return found[1].strip()


def read_prose(path: Path) -> Prose:
    """Read a file of text. Raises ScratchvitError if it is missing, or if a section has no name of its own."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ScratchvitError(f"{path} cannot be read ({error.strerror})") from error
    before, *parts = _BEGIN.split(text)
    if before.strip():
        raise ScratchvitError(f"{path.name}: the text begins before the first section, `## [id]`")
    names = parts[::2]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ScratchvitError(f"{path.name}: more than one section is called {', '.join(twice)}")
    return Prose(path, {name: body.strip() for name, body in zip(names, parts[1::2])})


def places(text: str) -> Iterable[tuple[str, str]]:
    """The places of a text that are filled in: (name, format) of each; an empty format is the default."""
    return _PLACE.findall(text)


def shown(value: Any, form: str | None = None) -> str:
    """A value as it stands in a text."""
    if form:
        return format(value, form)
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
