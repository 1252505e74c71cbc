"""Losses against independent implementations, where those compute the same: pytorch-metric-learning."""

import math

import pytest
import torch

from common.methods import losses
from common.methods.method import Outputs
from tests.loss_checks import context

library = pytest.importorskip("pytorch_metric_learning.losses")
EACH = pytest.importorskip("pytorch_metric_learning.reducers").DoNothingReducer


def random_case(classes=5, batch=64, width=8, seed=0):
    """Features, class weights [width, classes] and labels; some targets lie beyond ArcFace's pi."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(width, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    features[0] = -3 * weights[:, labels[0]] + 0.1 * features[0]
    return features, weights, labels


def cosines(features, weights):
    return torch.nn.functional.normalize(features, dim=-1) @ torch.nn.functional.normalize(weights, dim=0)


@pytest.mark.parametrize("seed", range(3))
def test_cosface_is_the_librarys(seed):
    features, weights, labels = random_case(seed=seed)
    theirs = library.CosFaceLoss(5, 8, margin=0.35, scale=30, reducer=EACH())
    theirs.W.data = weights
    z = cosines(features, weights)
    ours = losses.uniform_margin(Outputs(z, features), labels, context((1,) * 5), s=30.0, m=0.35)
    torch.testing.assert_close(theirs(features, labels)["loss"]["losses"], ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_arcface_is_the_librarys_and_so_is_its_gradient(seed):
    features, weights, labels = random_case(seed=seed)
    assert (losses.target(cosines(features, weights), labels) < -math.cos(0.5)).any()  # the branch beyond pi is taken
    theirs = library.ArcFaceLoss(5, 8, margin=math.degrees(0.5), scale=30, reducer=EACH())
    theirs.W.data = weights
    mine, other = (features.clone().requires_grad_() for _ in range(2))
    ours = losses.arcface(Outputs(cosines(mine, weights), mine), labels, context((1,) * 5), s=30.0, m=0.5)
    wanted = theirs(other, labels)["loss"]["losses"]
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    ours.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_supervised_contrast_is_the_librarys(temperature):
    features, _, labels = random_case()
    theirs = library.SupConLoss(temperature=temperature, reducer=EACH())
    ours = losses.supervised_contrast(features, labels, temperature)
    torch.testing.assert_close(theirs(features, labels)["loss"]["losses"], ours, rtol=1e-7, atol=1e-7)
