"""Linear probes: which factor of a scene can be read off a latent by a straight line."""

import numpy as np

from .scenes import Scene


def linear_probe(train: np.ndarray, train_labels: list, test: np.ndarray, test_labels: list) -> tuple[float, float]:
    """Accuracy of a ridge classifier on frozen latents, and of always saying the commonest training label, in %.

    ``train`` (N, D), ``test`` (M, D); an item whose label is None is left out. The ridge is chosen by leave-one-out on
    the training items (scikit-learn's ``RidgeClassifierCV``).
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def known(z, labels):
        keep = [i for i, label in enumerate(labels) if label is not None]
        return z[keep], np.array([str(labels[i]) for i in keep])

    (z, y), (z_test, y_test) = known(train, train_labels), known(test, test_labels)
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-1, 4, 11))).fit(z, y)
    values, counts = np.unique(y, return_counts=True)
    chance = (y_test == values[counts.argmax()]).mean()
    return 100 * float(probe.score(z_test, y_test)), 100 * float(chance)


def factor_table(
    train: np.ndarray, train_scenes: list[Scene], test: np.ndarray, test_scenes: list[Scene]
) -> dict[str, dict]:
    """Probe every factor: ``{factor: {"accuracy": %, "chance": %}}`` for latents (N, D) and their scenes."""
    train_factors = [scene.factors() for scene in train_scenes]
    test_factors = [scene.factors() for scene in test_scenes]
    table = {}
    for name in train_factors[0]:
        labels = ([f[name] for f in factors] for factors in (train_factors, test_factors))
        accuracy, chance = linear_probe(train, next(labels), test, next(labels))
        table[name] = {"accuracy": accuracy, "chance": chance}
    return table
