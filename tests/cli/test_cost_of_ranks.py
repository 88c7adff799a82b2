"""`scratchvit cost --bandwidth … --latency …`: the table of several ranks, units, and options that do not fit."""

import argparse
import re

import pytest

from scratchvit.cli import _scaling, _units, main
from scratchvit.costs.counting import cost
from scratchvit.costs.scaling import Network, gradient_buckets, predict
from scratchvit.models import create_model

TINY = ["vit_tiny_patch16_224", "--img-size", "16", "--patch-size", "4", "--embed-dim", "32", "--depth", "3",
        "--num-heads", "2"]
NETWORK = ["--bandwidth", "25GB/s", "--latency", "2us"]


def rows_of(text):
    """{ranks: its cells}, with the heads under "ranks"."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.split("\n\n")[1].splitlines()]
    return {first: dict(zip(lines[0][1:], rest)) for first, *rest in lines}


def printed(capsys, *options):
    assert main(["cost", *TINY, *NETWORK, *options]) == 0
    return capsys.readouterr().out


def tiny():
    return create_model(TINY[0], img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2)


def test_the_table_is_what_is_predicted(capsys):
    text = printed(capsys, "--batch-size", "8", "--seconds", "3ms")
    rows = rows_of(text)
    assert list(rows) == ["ranks", "1", "2", "8", "64", "512", "4,096"]
    buckets, network = gradient_buckets(tiny()), Network(2e-6, 25e9)
    for ranks in (2, 4096):
        step = predict(buckets, ranks, 3e-3, network)
        assert rows[f"{ranks:,}"]["efficiency"] == f"{step.efficiency:.1%}"
        assert rows[f"{ranks:,}"]["sharded"] == f"{step.compute / step.sharded:.1%}"
        assert rows[f"{ranks:,}"]["ring"] == _scaling._seconds(step.ring)
    assert rows["1"]["efficiency"] == "100.0%" and rows["1"]["ring"] == "0"
    text = " ".join(text.split())
    assert "Assumed: 3 ms for 8 images, as given; a message of n bytes takes 2 µs + n / 25 GB/s" in text


def test_a_global_batch_is_divided(capsys):
    rows = rows_of(printed(capsys, "--global-batch", "65", "--flops", "1GFLOP/s", "--ranks", "1,2,64"))
    assert [rows[ranks]["images"] for ranks in ("1", "2", "64")] == ["65", "33", "2"]
    compute = 6 * cost(tiny()).macs / 1e9
    assert rows["2"]["compute"] == _scaling._seconds(33 * compute)
    step = predict(gradient_buckets(tiny()), 64, 2 * compute, Network(2e-6, 25e9))      # 63 ranks have an image, one 2
    assert rows["64"]["efficiency"] == f"{65 * compute / (64 * step.seconds):.1%}"


def test_a_small_global_batch_ends_the_default_table(capsys):
    assert list(rows_of(printed(capsys, "--global-batch", "64", "--seconds", "1s"))) == ["ranks", "1", "2", "8", "64"]


def test_the_speed_of_this_machine_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(_scaling, "product_speed", lambda device, seconds: 50e9)
    assert "a rank computes 50 GFLOP/s, measured here" in " ".join(printed(capsys, "--ranks", "2").split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ranks", "8"], "--ranks is about several ranks, .* give --bandwidth and --latency too"),
        (["--latency", "1us", "--ranks", "8"], "give --bandwidth too"),
        ([*NETWORK, "--ranks", "0"], "numbers of at least 1"),
        ([*NETWORK, "--seconds", "1s", "--flops", "1TFLOP/s"], "leave out one"),
        ([*NETWORK, "--global-batch", "4", "--ranks", "8"], "4 images are fewer than 8 ranks"),
        ([*NETWORK, "--batch-size", "4", "--accumulate", "5"], "cannot be cut into 5 parts"),
        (["--bandwidth", "100Gb/s"], "can mean bits or bytes: write Gbit/s or GB/s"),
        (["--bandwidth", "25GB"], "such as 25GB/s or 100Gbit/s, not '25GB': 'GB' is no unit of it"),
        (["--latency", "2"], "the unit is missing"),
        (["--latency", "0us"], "must be greater than 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, says, capsys):
    assert main(["cost", *TINY, *options]) == 2
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (_units.bandwidth, "25GB/s", 25e9), (_units.bandwidth, "100 Gbit/s", 12.5e9),
        (_units.bandwidth, "1GiB/s", 2**30), (_units.bandwidth, "1e9B/s", 1e9), (_units.bandwidth, "1.5kB/s", 1500),
        (_units.seconds, "2us", 2e-6), (_units.seconds, "2.5µs", 2.5e-6), (_units.seconds, ".3s", 0.3),
        (_units.seconds, "800ns", 8e-7), (_units.flops, "312TFLOP/s", 312e12), (_units.flops, "2PFLOP/s", 2e15),
    ],
)
def test_units(parse, text, value):
    assert parse(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "fast", "-2us", "2us3", "nan s", "1e400s", "2 2us"])
def test_what_is_no_time(text):
    with pytest.raises(argparse.ArgumentTypeError):
        _units.seconds(text)
