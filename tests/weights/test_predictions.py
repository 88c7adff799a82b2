"""What a model says of each image of a split, and what is counted from it."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.data import ArrayDataset, Loader, Normalize
from scratchvit.models import create_model
from scratchvit.training import Meter, Predictions, evaluate, predict
from scratchvit.training.classification.evaluate import class_scores
from tests.support.data_samples import random_images
from tests.support.margins import agree
from tests.support.seeds import seeded


def test_predictions_are_the_answers_in_order_and_measured_as_by_evaluate(device):
    model = create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2,
                         num_classes=5)
    dataset = ArrayDataset(random_images(23), np.arange(23) % 5, "abcde")

    def batches():
        return Loader(dataset, 6, Normalize((0.5,) * 3, (0.2,) * 3))

    said = predict(model, batches())
    logits = np.concatenate([model.eval()(sv.Tensor(images)).numpy() for images, *_ in batches()]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(said.labels, dataset.labels)
    np.testing.assert_array_equal(said.predicted, logits.argmax(axis=1))
    agree(lambda: predict(model, batches()).probability, probabilities.max(axis=1), "probability")
    assert all(type(array) is np.ndarray for array in (said.labels, said.predicted, said.probability))
    assert said.probability.dtype == np.float32
    assert said.meter == evaluate(model, batches())
    assert said.meter.accuracy == np.mean(said.predicted == said.labels)


@pytest.mark.parametrize("wrong", [5, -1])
def test_labels_of_other_classes_are_refused(wrong, device):
    """On the GPU as well, where the loss alone would be NaN: the labels are on the host."""
    model = create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2,
                         num_classes=5)
    batch = random_images(2).transpose(0, 3, 1, 2).astype(np.float32), np.array([0, wrong])
    with pytest.raises(sv.ScratchvitError, match=f"label {wrong} of the data is not one of the model's 5 classes"):
        evaluate(model, [batch])


def test_confusion_scores_and_mistakes_by_hand():
    said = Predictions(
        Meter(), np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 1]), np.float32([0.9, 0.4, 0.8, 0.5, 0.8, 0.3])
    )
    counts = said.confusion(4)
    assert counts.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    scores = class_scores(counts)
    np.testing.assert_allclose(scores["precision"], [1 / 2, 1 / 4, np.nan, np.nan], rtol=1e-14)
    np.testing.assert_allclose(scores["recall"], [1 / 3, 1 / 2, 0, np.nan], rtol=1e-14)
    np.testing.assert_allclose(scores["F1"], [2 / 5, 1 / 3, 0, np.nan], rtol=1e-14)
    assert said.confident_mistakes(10).tolist() == [2, 4, 1, 5]         # of equals, the first
    assert said.confident_mistakes(2).tolist() == [2, 4]


def test_scores_equal_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = seeded(0)
    labels, predicted = rng.integers(0, 6, (2, 200))
    said = Predictions(Meter(), labels, predicted, np.ones(200, np.float32))
    np.testing.assert_array_equal(said.confusion(6), metrics.confusion_matrix(labels, predicted))
    expected = metrics.precision_recall_fscore_support(labels, predicted)
    for found, value in zip(class_scores(said.confusion(6)).values(), expected):
        np.testing.assert_allclose(found, value, rtol=1e-14)
