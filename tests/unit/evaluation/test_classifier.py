import numpy as np
import pytest

from soundstage.core.errors import ConfigError
from soundstage.evaluation.classifier import LinearDiscriminant


def blobs(seed=0, count=60):
    """Three classes that differ only along the direction in which each is narrow."""
    rng = np.random.default_rng(seed)
    labels = [("low", "middle", "high")[index % 3] for index in range(count)]
    level = np.array([("low", "middle", "high").index(label) for label in labels])
    wide, narrow = 2 * rng.normal(size=count), 0.1 * rng.normal(size=count)
    return np.stack((wide + level, wide - level + narrow), 1), labels


def test_classes_apart_along_a_narrow_direction_are_told_apart():
    classifier = LinearDiscriminant.fit(*blobs())
    features, labels = blobs(seed=1)
    right = [classifier.classify(row) == label for row, label in zip(features, labels, strict=True)]
    assert np.mean(right) > 0.9


def test_scores_name_every_class():
    classifier = LinearDiscriminant.fit(*blobs())
    assert set(classifier.scores(np.zeros(2))) == {"low", "middle", "high"}


def test_same_examples_give_the_same_classifier():
    one, other = LinearDiscriminant.fit(*blobs()), LinearDiscriminant.fit(*blobs())
    assert (one.means == other.means).all()


def test_constant_feature_does_no_harm():
    features, labels = blobs()
    padded = np.concatenate((features, np.ones((len(features), 1))), 1)
    assert np.isfinite(LinearDiscriminant.fit(padded, labels).means).all()


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="1 classes"):
        LinearDiscriminant.fit(np.zeros((2, 2)), ["same", "same"])


def test_labels_must_match_examples():
    with pytest.raises(ConfigError, match="3 examples with 2 labels"):
        LinearDiscriminant.fit(np.zeros((3, 2)), ["a", "b"])
