"""The division of classes into clusters: at random, or by the features of a trained network.

The clusters are numbered through, those of class 0 first; each class has as many as `Clusters.numbers` says.
"""

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.methods.method import Method


def cluster_counts(method: Method, counts: np.ndarray) -> np.ndarray:
    """Clusters of each class, int64 [classes]; more clusters than images of a class is a UserError."""
    clusters = np.asarray(method.clusters.numbers(counts), dtype=np.int64)
    if (clusters < 1).any() or (clusters > counts).any():
        c = int(np.argmax((clusters < 1) | (clusters > counts)))
        raise UserError(f"{method.label} divides class {c}, which has {counts[c]} images, into {clusters[c]} clusters; take "
                        "fewer.")
    return clusters


def divide_randomly(labels: Tensor, each: np.ndarray, generator: torch.Generator) -> Tensor:
    """The cluster of every image, int64 [images]: each class shuffled and dealt out, so that sizes differ by one at most."""
    clusters, first = torch.empty_like(labels), 0
    for c, number in enumerate(each.tolist()):
        mine = (labels == c).nonzero()[:, 0]
        clusters[mine[torch.randperm(len(mine), generator=generator)]] = first + torch.arange(len(mine)) % number
        first += number
    return clusters


def divide_by_features(labels: Tensor, each: np.ndarray, features: Tensor, how: str, seed: int) -> Tensor:
    """The cluster of every image, int64 [images], by k-means (Lloyd, ten starts) or Ward's hierarchical clustering of
    features [images, width] within each class; clusters in the order of their first image."""
    from sklearn.cluster import AgglomerativeClustering, KMeans

    clusters, first = torch.empty_like(labels), 0
    for c, number in enumerate(each.tolist()):
        mine = (labels == c).nonzero()[:, 0]
        if number == 1:
            assigned = np.zeros(len(mine), dtype=np.int64)
        else:
            values = features[mine].double().numpy()
            model = (KMeans(number, n_init=10, random_state=seed) if how == "kmeans" else
                     AgglomerativeClustering(number, linkage="ward"))
            assigned = model.fit_predict(values)
        _, place, which = np.unique(assigned, return_index=True, return_inverse=True)
        clusters[mine] = first + torch.from_numpy(np.argsort(np.argsort(place))[which])
        first += number
    return clusters
