"""Classifiers on the features of the M runs of one method, packed: a batched product over the leading run axis."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """Features [runs, batch, width] -> logits w_c . f + b_c [runs, batch, classes].

    Weights kaiming_normal (fan-in, gain sqrt 2); bias uniform(+-1 / sqrt(width)), or the constant `bias`.
    """

    def __init__(self, runs: int, width: int, classes: int, bias: float | None = None):
        super().__init__()
        self.initial_bias = bias
        self.weight = nn.Parameter(torch.empty(runs, width, classes))
        self.bias = nn.Parameter(torch.empty(runs, 1, classes))

    @torch.no_grad()
    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        width = self.weight.shape[1]
        for weight, bias, generator in zip(self.weight, self.bias, generators, strict=True):
            weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / width))
            if self.initial_bias is None:
                bias.copy_((torch.rand(bias.shape, generator=generator) * 2 - 1) / math.sqrt(width))
            else:
                bias.fill_(self.initial_bias)

    def forward(self, features: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, features, self.weight)


class CosineHead(nn.Module):
    """Features [runs, batch, width] -> cosines of the angles to the class weights [runs, batch, classes], unscaled.

    Weights uniform(-1, 1), then unit columns; no bias (the "normed" head of the LDAM code).
    """

    def __init__(self, runs: int, width: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(runs, width, classes))

    @torch.no_grad()
    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        for weight, generator in zip(self.weight, generators, strict=True):
            drawn = torch.rand(weight.shape, generator=generator) * 2 - 1
            weight.copy_(F.normalize(drawn, dim=0))

    def forward(self, features: Tensor) -> Tensor:
        return torch.bmm(F.normalize(features, dim=-1), F.normalize(self.weight, dim=1))
