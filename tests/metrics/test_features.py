from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from undiffuse.metrics import ClassifierFeatures, PCAFeatures, SupportVectorClassifier, label_agreement


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, held_out = order[400:], order[:400]
    return x[train], y[train], x[held_out], y[held_out]


def test_the_judge_of_digits_is_nearly_always_right_on_held_out_digits(digits):
    x, y, unseen, labels = digits
    found = label_agreement(SupportVectorClassifier().fit(x, y), unseen.reshape(-1, 1, 8, 8), labels)
    assert found.share >= 0.98 and found.n == 400


def test_agreement_is_the_share_of_labels_met(digits):
    x, y, unseen, labels = digits
    classifier = SupportVectorClassifier().fit(x, y)
    wrong = np.where(np.arange(len(labels)) < 100, (labels + 1) % 10, classifier.predict(unseen))
    assert label_agreement(classifier, unseen, wrong).share <= 0.76
    assert label_agreement(classifier, unseen, classifier.predict(unseen)).share == 1.0


def test_classifier_features_are_reproducible_and_explain_the_prediction(digits):
    x, y, unseen, labels = digits
    first, second = (ClassifierFeatures(epochs=15).fit(x, y) for _ in range(2))
    features = first.features(unseen)
    assert features.shape == (400, 48) and features.dtype == np.float64 and features.min() >= 0
    np.testing.assert_array_equal(features, second.features(unseen))
    network = first._network
    logits = features @ network.coefs_[-1] + network.intercepts_[-1]
    np.testing.assert_array_equal(network.classes_[logits.argmax(axis=1)], first.predict(unseen))
    assert first.predict_proba(unseen).sum(axis=1) == pytest.approx(1.0)
    assert label_agreement(first, unseen, labels).share > 0.9


def test_features_hardly_move_under_noise_that_the_eye_does_not_see(digits):
    x, y, unseen, _ = digits
    extractor = ClassifierFeatures(epochs=15).fit(x, y)
    clean = extractor.features(unseen)
    noisy = extractor.features(unseen + np.random.default_rng(0).normal(scale=16 / 255, size=unseen.shape))
    assert np.abs(noisy - clean).mean() < 0.05 * clean.std()


def test_pca_features_keep_distances_when_all_components_are_kept():
    x = np.random.default_rng(0).normal(size=(50, 2, 3))
    features = PCAFeatures().fit(x).features(x)
    assert features.shape == (50, 6)
    flat = x.reshape(50, 6)
    np.testing.assert_allclose(
        np.linalg.norm(features[0] - features, axis=1), np.linalg.norm(flat[0] - flat, axis=1), atol=1e-12
    )


def test_wide_items_are_projected_before_they_are_classified():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    x = rng.normal(size=(300, 1, 20, 20)) + 3.0 * labels[:, None, None, None]
    for classifier in (SupportVectorClassifier().fit(x, labels), ClassifierFeatures(epochs=10).fit(x, labels)):
        assert (classifier.predict(x) == labels).mean() > 0.99


@pytest.mark.parametrize("labels", [None, np.zeros(10), np.arange(9)])
def test_classifiers_refuse_labels_that_teach_nothing(labels):
    for judge in (ClassifierFeatures(), SupportVectorClassifier()):
        with pytest.raises(ValueError, match="label"):
            judge.fit(np.random.default_rng(0).normal(size=(10, 3)), labels)


def test_asking_before_fitting_says_what_to_do():
    for call in (PCAFeatures().features, ClassifierFeatures().features, SupportVectorClassifier().predict):
        with pytest.raises(ValueError, match="call fit"):
            call(np.zeros((2, 3)))
