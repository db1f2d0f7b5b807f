"""Probes: which factor of a scene can be read off a latent, by a straight line or by the nearest neighbours."""

from collections.abc import Callable

import numpy as np

from .errors import FuseMixLiteError
from .scenes import Scene


def linear_probe(train: np.ndarray, train_labels: list, test: np.ndarray, test_labels: list) -> tuple[float, float]:
    """Accuracy of a ridge classifier on frozen latents, and of always saying the commonest training label, in %.

    ``train`` (N, D), ``test`` (M, D); an item whose label is None is left out. The ridge is chosen by leave-one-out on
    the training items (scikit-learn's ``RidgeClassifierCV``).
    """
    from sklearn.linear_model import RidgeClassifierCV

    return _probe(RidgeClassifierCV(alphas=np.logspace(-1, 4, 11)), train, train_labels, test, test_labels)


def knn_probe(train: np.ndarray, train_labels: list, test: np.ndarray, test_labels: list, k: int = 10) -> tuple[float, float]:
    """Accuracy of the vote of the `k` nearest training items, and of always saying the commonest training label, in %.

    As `linear_probe`, but nothing is fitted: what counts is which items lie together. Dimensions are standardised with the
    training items' statistics; near means a large cosine; a vote weighs exp(cosine / 0.07), as DINO's k-NN classifier does.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018 (section 3.4).
    """
    from sklearn.neighbors import KNeighborsClassifier

    if k > sum(label is not None for label in train_labels):
        raise FuseMixLiteError(
            f"knn_probe: {k} neighbours of {len(train_labels)} items, fewer with a label: choose a smaller k"
        )
    votes = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07))
    return _probe(votes, train, train_labels, test, test_labels)


def _probe(classifier, train, train_labels, test, test_labels) -> tuple[float, float]:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def known(z, labels):
        keep = [i for i, label in enumerate(labels) if label is not None]
        return z[keep], np.array([str(labels[i]) for i in keep])

    (z, y), (z_test, y_test) = known(train, train_labels), known(test, test_labels)
    fitted = make_pipeline(StandardScaler(), classifier).fit(z, y)
    values, counts = np.unique(y, return_counts=True)
    chance = (y_test == values[counts.argmax()]).mean()
    return 100 * float(fitted.score(z_test, y_test)), 100 * float(chance)


def factor_table(
    train: np.ndarray,
    train_scenes: list[Scene],
    test: np.ndarray,
    test_scenes: list[Scene],
    probe: Callable[..., tuple[float, float]] = linear_probe,
) -> dict[str, dict]:
    """Probe every factor: ``{factor: {"accuracy": %, "chance": %}}`` for latents (N, D) and their scenes. ``probe`` is
    `linear_probe` or `knn_probe`."""
    train_factors = [scene.factors() for scene in train_scenes]
    test_factors = [scene.factors() for scene in test_scenes]
    table = {}
    for name in train_factors[0]:
        labels = ([f[name] for f in factors] for factors in (train_factors, test_factors))
        accuracy, chance = probe(train, next(labels), test, next(labels))
        table[name] = {"accuracy": accuracy, "chance": chance}
    return table
