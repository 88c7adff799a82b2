"""Chapter 9: what is claimed of Swin V2 and MViTv2 holds for our code."""

import numpy as np
import pytest

from scratchvit.course import successors


@pytest.mark.parametrize(("queries", "keys"), [(4, 2), (3, 3), (5, 1), (2, 4)])
def test_appended_positions_are_those_of_every_pair(queries, keys):
    by_pairs, product = successors.two_ways(queries, keys)
    assert by_pairs.shape == (queries**2, keys**2)
    np.testing.assert_allclose(product, by_pairs, rtol=1e-5, atol=1e-5)


def test_a_cosine_does_not_depend_on_a_keys_length():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal(8).astype(np.float32), rng.standard_normal((5, 8)).astype(np.float32)
    longer = k * np.array([1, 1, 6, 1, 1], np.float32)[:, None]
    scores = k @ q / np.sqrt(np.float32(8))
    np.testing.assert_allclose(
        successors.probabilities(q, k, cosine=False), np.exp(scores) / np.exp(scores).sum(), rtol=1e-5
    )
    before, after = (successors.probabilities(q, keys, cosine=True) for keys in (k, longer))
    np.testing.assert_allclose(after, before, rtol=1e-4)
    assert abs(successors.probabilities(q, longer, False) - successors.probabilities(q, k, False)).max() > 0.05


def test_a_norm_after_the_branch_takes_factors_out_of_it():
    images = np.random.default_rng(0).standard_normal((2, 1, 16, 16)).astype(np.float32)
    small, large = (successors.amplitudes(False, scale, 1.0, images)[-1] for scale in (1.0, 3.0))
    assert large > 5 * small
    small, large = (successors.amplitudes(True, scale, 1.0, images)[-1] for scale in (1.0, 3.0))
    assert large == pytest.approx(small, rel=0.05)
    identity = successors.amplitudes(True, 1.0, 0.0, images)
    assert identity[-1] == identity[0] and len(identity) == successors.DEPTH + 1


def test_G_learns_a_table_and_knows_other_windows():
    offsets = np.arange(-3, 4)
    table = (0.3 * np.cos(offsets)[:, None] * np.cos(offsets))[None].astype(np.float32)
    imitation = successors.imitation(table)
    assert abs(successors.at_window(imitation, 4, 4) - table).mean() < 0.3 * table.std()
    assert successors.at_window(imitation, 6, 4).shape == (1, 11, 11)


def test_extrapolation_is_the_papers():
    linear, log = successors.extrapolation(8, 16)       # §3.3: "1.14×" and "0.33×"
    assert (round(linear, 2), round(log, 2)) == (1.14, 0.33)
    assert {"Swin", "Swin V2", "MViT", "MViTv2"} <= {row["model"] for row in successors.measured_models()}
