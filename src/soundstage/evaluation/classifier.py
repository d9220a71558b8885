"""A small classifier that is fitted at once and the same every time: linear discriminant analysis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from soundstage.core.errors import ConfigError

Features = Float[np.ndarray, "n d"]
FeatureRow = Float[np.ndarray, " d"]

SHRINKAGE = 0.05  # towards equal variances; keeps the covariance invertible


@dataclass(frozen=True, kw_only=True)
class LinearDiscriminant:
    """Classes with a common covariance: the nearest mean in the space where that is a sphere.

    Source: Fisher 1936; shrinkage as in Friedman 1989, "Regularized discriminant analysis".
    """

    labels: tuple[str, ...]
    centre: NDArray[np.float64]  # (d,)
    whitening: NDArray[np.float64]  # (d, d)
    means: NDArray[np.float64]  # (labels, d), whitened

    @classmethod
    def fit(cls, features: Features, labels: Sequence[str]) -> "LinearDiscriminant":
        """Fit to labelled examples.

        Raises:
            ConfigError: The numbers differ, or there are fewer than two classes.
        """
        names = tuple(sorted(set(labels)))
        if len(labels) != len(features) or len(names) < 2:
            raise ConfigError(f"{len(features)} examples with {len(labels)} labels of {len(names)} classes")
        x = features.astype(np.float64)
        index = np.array([names.index(label) for label in labels])
        centre = x.mean(0)
        scale = x.std(0) + 1e-6
        means = np.stack([x[index == number].mean(0) for number in range(len(names))])
        within = (x - means[index]) / scale
        covariance = within.T @ within / len(x)
        dimension = covariance.shape[0]
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.eye(dimension) * np.trace(
            covariance
        ) / dimension
        values, vectors = np.linalg.eigh(covariance)
        whitening = (vectors / np.sqrt(np.maximum(values, 1e-9))).T / scale
        return cls(labels=names, centre=centre, whitening=whitening, means=(means - centre) @ whitening.T)

    def scores(self, row: FeatureRow) -> dict[str, float]:
        """Give each class its log-likelihood up to a constant."""
        place = self.whitening @ (row.astype(np.float64) - self.centre)
        distances = np.square(self.means - place).sum(1)
        return {label: -float(distance) / 2 for label, distance in zip(self.labels, distances, strict=True)}

    def classify(self, row: FeatureRow) -> str:
        """Name the most likely class."""
        scores = self.scores(row)
        return max(scores, key=lambda label: scores[label])
