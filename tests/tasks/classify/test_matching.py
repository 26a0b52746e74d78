"""Matching of items and texts, the estimator of scikit-learn, and the temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tasks.classify.oracles import draws, gaussian_classes, log_joint, vector_model
from undiffuse.models.model import Model
from undiffuse.spec import DataSpec
from undiffuse.tasks.classify import classify, error_table, fit_temperature, match_texts
from undiffuse.tasks.classify.temperature import negative_log_likelihood

MEANS = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, -1.0, 0], [0, 0, 0, 2.0]])


def labelled(count: int = 3) -> tuple[Model, Tensor, Tensor]:
    mixture = gaussian_classes([0.4] * count, dims=12, spread=0.5)
    x, labels = draws(mixture, 20)
    names = tuple("abcdef"[:count])
    return Model(mixture, DataSpec(kind="vector", shape=(12,), classes=names)), x.float(), labels


def test_a_matrix_holds_what_each_text_takes_off_the_error() -> None:
    """All pairs have the same times and noise; the contrast is the error without a text, minus that with it."""
    model = vector_model()
    found = match_texts(model, MEANS + 0.01, MEANS, condition="where", times=6, antithetic=True)
    assert found.scores.shape == (4, 4)
    table = error_table(model, MEANS + 0.01, MEANS, condition="where", times=6, antithetic=True, contrast=True)
    assert table.null is not None
    exact = (table.null.double()[:, None] - table.errors.double()).mean(-1)
    torch.testing.assert_close(found.scores, exact)
    assert found.best_text.tolist() == found.best_item.tolist() == [0, 1, 2, 3]
    scores = found.pairs()
    assert [scores[name].hits for name in ("text", "image", "group")] == [2, 2, 2]
    turned = match_texts(model, MEANS[[1, 0, 2, 3]], MEANS, condition="where", times=6)
    assert (turned.pairs()["group"].value, turned.pairs()["group"].low) == (
        0.5,
        pytest.approx(0.5 - 1.96 * 0.125**0.5, abs=1e-3),
    )
    plain = match_texts(model, MEANS, MEANS, condition="where", times=6, contrast=False)
    assert torch.equal(plain.best_text, torch.arange(4))
    with pytest.raises(ValueError, match="contrast=True"):
        plain.pairs()
    with pytest.raises(ValueError, match="4 items and 3 texts"):
        match_texts(model, MEANS, MEANS[:3], condition="where", times=2).pairs()


def test_items_are_compared_by_contrast_alone() -> None:
    """An item far from every text has a large error under all of them: without contrast it never wins its text."""
    model = vector_model()
    x = torch.stack([MEANS[0] * 3, MEANS[1]])
    table = match_texts(model, x, MEANS[:1], condition="where", times=8, antithetic=True)
    assert table.best_item.tolist() == [0]  # 3 m_0 is likelier under m_0 than without it; m_1 is less likely
    assert int(table.table.scores().argmax(0)) == 1  # by the plain error the other item wins


def test_probabilities_are_fitted_by_one_number() -> None:
    """Against a search on a grid, with Platt's targets; scores made 7 times as sure need 7 times the temperature."""
    model, x, labels = labelled()
    found = classify(model, x, times=4, keep=1, weight=[7.0] * 4)
    once = classify(model, x, times=4, keep=1)
    temperature = fit_temperature(found, labels)
    assert temperature == pytest.approx(7 * fit_temperature(once, labels), rel=1e-3)
    doubt = 1 / (len(x) + 2)

    def loss(value: float) -> float:
        log_p = found.class_logits(value).log_softmax(1)
        return -float(((1 - doubt) * log_p.gather(1, labels[:, None])[:, 0] + doubt * log_p.mean(1)).mean())

    assert all(loss(temperature) <= loss(temperature * factor) for factor in (0.5, 0.99, 1.01, 2.0))
    exact = -float(found.probabilities(2.0).gather(1, labels[:, None]).log().mean())
    assert negative_log_likelihood(found, labels, 2.0) == pytest.approx(exact)
    right = fit_temperature(found, found.label)
    assert math.isfinite(right) and 1e-3 < right < temperature
    with pytest.raises(ValueError, match="give one each"):
        fit_temperature(found, labels[:5])
    with pytest.raises(ValueError, match="outside 0 to 2"):
        fit_temperature(found, labels + 1)


@pytest.mark.slow
def test_an_estimator_that_learns_a_temperature_alone() -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone

    from undiffuse.tasks.classify import DiffusionClassifier

    model, x, labels = labelled()
    names = np.array(model.spec.classes)[labels.numpy()]
    learned = DiffusionClassifier(model, times=6, keep=1, options={"seed": 3}).fit(x.numpy(), names)
    direct = classify(model, x, times=6, keep=1, seed=3)
    assert learned.predict(x.numpy()).tolist() == direct.names
    np.testing.assert_allclose(learned.predict_proba(x.flatten(1).numpy()), direct.probabilities().numpy())
    assert learned.score(x.numpy(), names) == direct.accuracy(labels).value > 0.8
    honest = clone(learned).set_params(temperature="fit").fit(x.numpy(), names)
    assert honest.model is model and honest.temperature_ == pytest.approx(fit_temperature(direct, labels))
    two = DiffusionClassifier(model, times=2, keep=1).fit(x.numpy(), np.where(labels.numpy() == 0, 2, 0))
    assert two.classes_.tolist() == [0, 2] and two.predict_proba(x.numpy()).shape == (60, 2)
    assert set(two.predict(x.numpy())) == {0, 2}
    with pytest.raises(ValueError, match="0 to 2"):
        DiffusionClassifier(model, times=2, keep=1).fit(x.numpy(), labels.numpy() + 2)
    with pytest.raises(ValueError, match="or flattened rows"):
        DiffusionClassifier(model).fit(x[:, :5].numpy(), names)
    with pytest.raises(ValueError, match="'fit'"):
        DiffusionClassifier(model, temperature="auto").fit(x.numpy(), names)
    assert float((log_joint(model.denoiser, x.double()).argmax(1) == labels).double().mean()) > 0.8  # type: ignore[arg-type]
