"""Sample weights that are learned on held-out images (Jamal et al., 2020): one virtual step, one slope along its gradient."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from common.methods.method import Context
from common.train.groups import Group, make_outputs

Batch = tuple[Tensor, Tensor]  # network input, and labels [runs, batch]


class Whole(nn.Module):
    """Backbone and heads of a pack as one module: images and labels [runs, batch] -> per-sample losses [runs, batch].

    autocast: the context of a forward pass; dtype: of the weights.
    """

    def __init__(self, net: nn.Module, heads: nn.ModuleList, groups: Sequence[Group], context: Context,
                 autocast: Callable[[], AbstractContextManager], dtype: torch.dtype):
        super().__init__()
        self.net, self.heads = net, heads
        self.groups, self.context, self.autocast, self.dtype = groups, context, autocast, dtype

    def forward(self, images: Tensor, labels: Tensor, autocast: bool = True) -> Tensor:
        with self.autocast() if autocast else nullcontext():
            features = self.net(images if autocast else images.to(self.dtype))
        features, losses = features.to(self.dtype), []
        for group, head in zip(self.groups, self.heads, strict=True):
            part = slice(group.first, group.stop)
            outputs = make_outputs(group.method, head, features[part], self.context)
            losses.append(group.method.loss(outputs, labels[part], self.context))
        return torch.cat(losses)


def learn_weights(whole: Whole, weights: Tensor, trained: Batch, held_out: Batch, rate: Tensor, meta_rate: float) -> Tensor:
    """w_i - meta_rate * dL_held / d eps_i at eps = 0, [runs, batch], where L_held is the mean loss of the held-out batch
    after a virtual step at the present rate on sum_i (w_i + eps_i) l_i. The network's own statistics are left alone.

    weights: the w_i, [runs, batch]. The virtual weights are linear in eps, so dL_held / d eps_i = -rate * <grad l_i, grad
    L_held at the virtual weights>: the slope of l_i along one direction, which forward-mode differentiation gives for all
    samples and runs at once.
    """
    parameters = dict(whole.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    losses = functional_call(whole, {**parameters, **buffers}, trained)
    gradients = torch.autograd.grad((weights * losses).sum(), list(parameters.values()))
    virtual = {name: (p - rate * g).detach().requires_grad_()
               for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    held_losses = functional_call(whole, {**virtual, **buffers}, held_out)
    direction = torch.autograd.grad(held_losses.mean(-1).sum(), list(virtual.values()))
    slopes = slopes_along(whole, dict(zip(virtual, direction, strict=True)), parameters, buffers, *trained)
    return weights + meta_rate * rate * slopes


def slopes_along(whole: Whole, direction: dict[str, Tensor], parameters: dict[str, Tensor], buffers: dict[str, Tensor],
                 images: Tensor, labels: Tensor) -> Tensor:
    """<grad l_i, direction> of every sample's loss at the parameters, [runs, batch].

    Without autocast: the slope of a batch normalisation is float32 where its value is bfloat16, and a convolution wants one
    type.
    """
    def losses(moved: dict[str, Tensor]) -> Tensor:
        return functional_call(whole, {**moved, **buffers}, (images, labels), {"autocast": False})

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 makes its rules of forward mode with what it deprecates
        return jvp(losses, ({name: p.detach() for name, p in parameters.items()},), (direction,))[1]
