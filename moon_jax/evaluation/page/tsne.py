"""t-SNE in numpy: exact, from the principal components, without randomness."""

import numpy as np
from jaxtyping import Float

_EARLY, _STEPS, _EXAGGERATION = 120, 400, 12.0


def principal_components(x: Float[np.ndarray, "n d"], count: int = 2) -> Float[np.ndarray, "n k"]:
    """Returns the coordinates along the `count` directions of largest variance; the largest loading is positive."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    directions = directions[:count]
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    out = x @ directions.T
    return np.pad(out, ((0, 0), (0, count - out.shape[1])))


def tsne(x: Float[np.ndarray, "n d"], perplexity: float = 20.0) -> Float[np.ndarray, "n 2"]:
    """Returns places in the plane whose neighbourhoods are those of x (van der Maaten and Hinton, 2008).

    Gradient descent with momentum and gains; the first steps exaggerate the attraction. The time grows with the square
    of n: a few seconds for 600 points.

    Args:
        x: points, at least 5.
        perplexity: effective number of neighbours; lowered where there are too few points.
    """
    n = len(x)
    p = _affinities(x, min(perplexity, (n - 1) / 3)).astype(np.float32)
    y = principal_components(x)
    y = (y / max(float(y[:, 0].std()), 1e-12) * 1e-4).astype(np.float32)
    rate = max(n / _EXAGGERATION / 4, 50.0)  # as scikit-learn: the exaggerated attraction must not overshoot
    velocity, gains = np.zeros_like(y), np.ones_like(y)
    for step in range(_STEPS):
        early = step < _EARLY
        gradient = _gradient(p * (_EXAGGERATION if early else 1.0), y)
        gains = np.where(gradient * velocity < 0, gains + 0.2, gains * 0.8).clip(0.01)
        velocity = ((0.5 if early else 0.8) * velocity - rate * gains * gradient).astype(np.float32)
        y = y + velocity
    return (y - y.mean(0)).astype(np.float64)


def squared_distances(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Returns the squared Euclidean distance between all points."""
    norms = (x * x).sum(1)
    return np.maximum(norms[:, None] + norms[None, :] - 2 * x @ x.T, 0.0)


def _affinities(x: Float[np.ndarray, "n d"], perplexity: float) -> Float[np.ndarray, "n n"]:
    """Returns symmetric probabilities that sum to 1; the width at each point is found by bisection."""
    distances = squared_distances(x.astype(np.float64))
    np.fill_diagonal(distances, np.inf)
    distances -= distances.min(1, keepdims=True)  # the nearest neighbour always has a weight
    low, high = np.full(len(x), -40.0), np.full(len(x), 40.0)  # of the logarithm of the precision
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-distances * np.exp(middle)[:, None])
        weights /= weights.sum(1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(1)
        too_wide = entropy > np.log(perplexity)
        low, high = np.where(too_wide, middle, low), np.where(too_wide, high, middle)
    return np.maximum((weights + weights.T) / (2 * len(x)), 1e-12)


def _gradient(p: Float[np.ndarray, "n n"], y: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    near = np.ones((len(y), len(y)), y.dtype)
    for axis in y.T:
        near += (axis[:, None] - axis[None, :]) ** 2
    np.reciprocal(near, out=near)
    np.fill_diagonal(near, 0.0)
    pull = (p - near / near.sum()) * near
    return 4.0 * (pull.sum(1)[:, None] * y - pull @ y)
