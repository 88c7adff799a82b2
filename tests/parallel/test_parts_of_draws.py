"""Dropout of parts of a batch: their masks, joined, are those that one process draws for the whole batch."""

import dataclasses
import math

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import Tensor, ops
from scratchvit.backend import array_module, asarray, asnumpy
from scratchvit.costs.counting import configured_shape
from scratchvit.errors import WrongValue
from scratchvit.models import create_model, model_config
from scratchvit.random import Draw, Generator, part_of_batch, recorded, replayed
from tests.support.seeds import moved, seeded

PARTS = [slice(0, 2), slice(2, 5), slice(5, 6)]
B = 6


def by_part(function, generator, *arrays):
    """function(*rows) for every part of a batch, with the same generator; joined."""
    state, results = generator.state_dict(), []
    for part in PARTS:
        generator.load_state_dict(state)
        with part_of_batch(part, B):
            results.append(function(*(array[part] for array in arrays)))
    return [np.concatenate(found) for found in zip(*results)]


@pytest.mark.parametrize("entries", [(), (7,), (3, 5, 5)], ids=str)
@pytest.mark.parametrize("pieces", [1, 4])
def test_masks_of_parts_make_one_mask(device, pieces, entries):
    generator = Generator(moved(3))
    expected = [asnumpy(generator.bernoulli(0.6, (B * pieces, *entries))) for _ in range(2)]
    generator = Generator(moved(3))
    found = by_part(
        lambda rows: [asnumpy(generator.bernoulli(0.6, (len(rows) * pieces, *entries))) for _ in range(2)],
        generator, np.empty(B),
    )
    assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))
    assert generator.draws == 2


def hashed(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor % 2**32
    return x ^ x >> 16


def kept(draw, position):
    """The entry at a position of up to 64 bits, by the integers of Python."""
    first, second = draw.keys
    key = second + (position >> 32) * 0x7FEB352D
    return hashed((hashed(position % 2**32 ^ first) + key) % 2**32) < draw.threshold


@pytest.mark.parametrize("first", [0, 5, 2**32 - 500, 2**32, 3 * 2**32 - 1, 2**45 + 2**32 - 900], ids=str)
def test_positions_have_64_bits(device, first):
    draw = dataclasses.replace(Generator(moved(1)).draw(0.3, (1000,)), first=first)
    expected = [kept(draw, first + position) for position in range(1000)]
    assert asnumpy(draw.array()).tolist() == expected
    some = array_module(draw.array()).asarray(np.array([3, 998, 499], np.uint32))      # of a block
    assert asnumpy(draw.at(some)).tolist() == [expected[place] for place in (3, 998, 499)]


def test_masks_beyond_2_to_the_32_are_others():
    keys = (int(key) for key in seeded(2).integers(0, 2**32, 2))
    draw = Draw(tuple(keys), 0.5, (200_000,))
    masks = [dataclasses.replace(draw, first=beyond * 2**32).array() for beyond in range(3)]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert abs((mask == other).mean() - 0.5) < 5 * 0.5 / math.sqrt(mask.size)


# Ops

rng = seeded(0)
X = rng.standard_normal((B, 5, 8)).astype(np.float32)
OPS = {
    "dropout": lambda x, generator: ops.dropout(x, 0.4, generator=generator),
    "drop_path": lambda x, generator: ops.drop_path(x, 0.4, generator=generator),
    "dropout of windows": lambda x, generator: ops.dropout(
        x.reshape((-1, 2, 4)), 0.4, generator=generator
    ).reshape(x.shape),
    "add_layer_norm": lambda x, generator: ops.add_layer_norm(x, x * 2, 8, p=0.4, generator=generator),
    "attention": lambda x, generator: _attention(x, generator, False),
    "attention in blocks": lambda x, generator: _attention(x, generator, True),
    "attention within windows": lambda x, generator: ops.attention(
        *[x.reshape((-1, 5, 2, 4)).permute((0, 2, 1, 3))] * 3, dropout=0.4, generator=generator
    ).permute((0, 2, 1, 3)).reshape(x.shape),
    "of a checkpoint": lambda x, generator: sv.checkpoint(
        lambda x: ops.dropout(ops.gelu(ops.dropout(x, 0.2, generator=generator)), 0.4, generator=generator), x
    ),
}


def _attention(x, generator, blocks):
    heads = [x.reshape((-1, 5, 2, 4)).transpose(1, 2)] * 3                  # (B, heads, N, d)
    return ops.attention(*heads, dropout=0.4, generator=generator, blocks=blocks).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "plain forms"])
@pytest.mark.parametrize("name", OPS)
def test_ops_of_parts_make_one_op(device, name, plain, request):
    generator = Generator(moved(5))

    def run(x):
        tensor = Tensor(asarray(x), requires_grad=True)
        y = OPS[name](tensor, generator)
        y.backward(asarray(np.cos(x)))
        return y.numpy(), asnumpy(tensor.grad)

    with sv.plain_forms(plain):
        expected = run(X)
        generator.load_state_dict({"seed": generator.seed, "draws": 0})
        for found, one in zip(by_part(run, generator, X), expected, strict=True):
            assert np.array_equal(found == 0, one == 0)
            np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-6)
        generator.load_state_dict({"seed": generator.seed, "draws": 0})
        without = run(X[2:5])[0]        # one process with these images would drop others
        assert not np.allclose(without, expected[0][2:5], atol=1e-3)


def test_a_checkpoint_draws_again_what_it_drew_for_its_part():
    """Also if backward() is called when the part has been left."""
    generator = Generator(moved(5))
    x = Tensor(X[2:5], requires_grad=True)
    with part_of_batch(slice(2, 5), B):
        y = OPS["of a checkpoint"](x, generator)
    y.backward(np.ones_like(X[2:5]))
    assert np.array_equal(x.grad == 0, y.numpy() == 0)


def test_recorded_draws_are_those_of_their_part():
    generator = Generator(moved(0))
    with part_of_batch(slice(2, 5), B), recorded() as record:
        first = generator.bernoulli(0.5, (3, 100))
    with part_of_batch(slice(0, 3), B), replayed(record):
        again = generator.bernoulli(0.5, (3, 100))
    assert np.array_equal(first, again) and generator.draws == 1


# What is refused, and what is nested


def test_a_part_of_a_part():
    expected = Generator(moved(4)).bernoulli(0.5, (B, 50))
    for outer, inner in ((slice(1, 5), slice(2, 4)), (slice(0, B), slice(3, 5)), (slice(2, 6), slice(0, 4))):
        generator = Generator(moved(4))
        rows = range(B)[outer][inner]
        with part_of_batch(outer, B), part_of_batch(inner, outer.stop - outer.start):
            found = generator.bernoulli(0.5, (len(rows), 50))
        assert np.array_equal(found, expected[rows.start : rows.stop])
    assert np.array_equal(Generator(moved(4)).bernoulli(0.5, (B, 50)), expected)


@pytest.mark.parametrize("part", [slice(2, 2), slice(3, 7), slice(-1, 2), slice(4, 2)], ids=str)
def test_parts_that_cannot_be(part):
    with pytest.raises(WrongValue, match="must be a row or more of 6 images"), part_of_batch(part, B):
        pass


def test_a_part_of_a_part_has_its_number_of_images():
    outer = part_of_batch(slice(0, 4), B)
    with outer, pytest.raises(WrongValue, match="must be a row or more of 4 images"), part_of_batch(slice(0, 2), B):
        pass


def test_a_mask_that_does_not_begin_with_images_is_refused():
    with part_of_batch(slice(0, 4), B), pytest.raises(WrongValue, match=r"shape \(7, 8\) is drawn for 4 images"):
        Generator(0).bernoulli(0.5, (7, 8))
    assert Generator(0).bernoulli(0.5, (7, 8)).shape == (7, 8)


def test_an_image_has_the_generator_on_the_host_that_it_has_in_the_whole_batch():
    generator, states = Generator(moved(0)), []

    def numbers(count):
        return [[rng.random(4).tolist() for rng in generator.of_images(count)] for _ in range(2)]

    expected = numbers(B)
    found = [[], []]
    for part in PARTS:
        generator.load_state_dict({"seed": moved(0), "draws": 0})
        with part_of_batch(part, B):
            for joined, drawn in zip(found, numbers(part.stop - part.start)):
                joined += drawn
        states.append(generator.draws)
    assert found == expected and len({str(each) for draw in expected for each in draw}) == 2 * B
    assert states == [2] * len(PARTS)


# Models: everything that they drop belongs to an image

MODELS = {
    "vit_tiny_patch16_224": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "igpt_tiny": {"img_size": 6, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {
        "img_size": 40, "patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2),
    },
    "swinv2_tiny_window8_256": {
        "img_size": 40, "patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2),
    },
    "mvit_v1_b_image": {"img_size": 32, "embed_dim": 12, "depths": (1, 2)},
    "mvitv2_tiny": {"img_size": 32, "embed_dim": 12, "depths": (1, 2)},
    "resnetv2_50x1_bit": {"img_size": 32, "layers": (1, 2)},
    "detr_tiny": {"img_size": 32, "enc_layers": 1, "dec_layers": 2, "frozen_bn": True},
    "dab_detr_tiny": {"img_size": 32, "enc_layers": 1, "dec_layers": 2, "frozen_bn": True, "query_groups": 3},
}


ANSWERS = "pred_logits", "pred_boxes"


@pytest.mark.parametrize("name", MODELS)
def test_models_drop_the_same_of_parts(name):
    rates = {field.name: 0.3 for field in dataclasses.fields(model_config(name)) if "drop" in field.name}
    assert rates
    model = create_model(name, seed=moved(0), **{**rates, **MODELS[name]})
    for parameter in model.parameters():        # of which some begin at 0
        parameter.overwrite(parameter.numpy() + seeded(parameter.size).normal(0, 0.05, parameter.shape))
    generator = Generator(moved(1))
    model.set_generator(generator)
    x = seeded(1).standard_normal((B, *configured_shape(model)), dtype=np.float32)

    def run(x):
        answers = model.train()(x)
        return [y.numpy() for y in ([answers] if isinstance(answers, Tensor) else map(answers.get, ANSWERS))]

    expected = run(x)
    generator.load_state_dict({"seed": generator.seed, "draws": 0})
    for found, one in zip(by_part(run, generator, x), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5)
    assert not np.allclose(run(x)[0], expected[0], atol=1e-3)        # something is dropped
