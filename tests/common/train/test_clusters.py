"""The division of classes into clusters, on points whose clusters are known."""

import numpy as np
import pytest
import torch

from common.train.clusters import divide_by_features, divide_randomly


@pytest.mark.parametrize("how", ["kmeans", "hierarchical"])
def test_blobs_are_found_and_numbered_by_their_first_image(how):
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0] * 12 + [1] * 5 + [2] * 8)
    blob = torch.cat([torch.tensor([1, 0, 2] * 4), torch.zeros(5, dtype=torch.int64), torch.tensor([1, 1, 0, 0] * 2)])
    features = 20.0 * torch.stack([blob, -blob, labels], 1) + torch.randn(25, 3, generator=generator)
    found = divide_by_features(labels, np.array([3, 1, 2]), features, how, seed=0)
    assert found.tolist() == [0, 1, 2] * 4 + [3] * 5 + [4, 4, 5, 5] * 2


def test_random_clusters_are_even_and_numbered_through():
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 0])
    found = divide_randomly(labels, np.array([3, 2, 1]), torch.Generator().manual_seed(0))
    assert sorted(torch.bincount(found, minlength=6).tolist()[:3]) == [2, 2, 3]
    assert sorted(torch.bincount(found, minlength=6).tolist()[3:5]) == [1, 2]
    assert found[3] == 5
    again = divide_randomly(labels, np.array([3, 2, 1]), torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
