"""Progress bars: on a terminal only, hidden when that is asked for, and times in words."""

import io

import numpy as np
import pytest

from scratchvit import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


BATCHES = [(np.zeros((2, 3)), 0), (np.zeros((3, 3)), 1)]


@pytest.mark.parametrize(("stream", "drawn"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(monkeypatch, stream, drawn):
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress.over(BATCHES, 5, "validation")) == BATCHES
    assert ("validation" in stream.getvalue()) == drawn and ("\r" in stream.getvalue()) == drawn


def test_a_hidden_bar_counts_nothing_and_changes_nothing(monkeypatch):
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    with progress.hidden():
        assert list(progress.over(BATCHES, 5, "validation")) == BATCHES
    assert not stream.getvalue()
    with progress.bar(3, "after"):
        pass
    assert "after" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [
    (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (190, "3 min 10 s"), (3599.7, "1 h 0 min"),
    (7500, "2 h 5 min"), (100_000, "27 h 46 min"),
])
def test_a_duration_in_words(seconds, text):
    assert progress.duration(seconds) == text
