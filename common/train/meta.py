"""Sample weights that are learned on held-out images (Jamal et al., 2020): one virtual step, one gradient through it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.data.feed import INDEX, Drawn
from common.train.groups import make_outputs

if TYPE_CHECKING:
    from common.train.pack import Pack


class Whole(nn.Module):
    """Backbone and heads of a pack as one module: images and labels [runs, batch] -> per-sample losses [runs, batch]."""

    def __init__(self, pack: "Pack"):
        super().__init__()
        self.net, self.heads, self._pack = pack.net, pack.heads, [pack]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        pack = self._pack[0]
        with pack.autocast():
            features = self.net(images)
        features, losses = features.to(pack.device.dtype), []
        for group, head in zip(pack.groups, self.heads, strict=True):
            part = slice(group.first, group.stop)
            outputs = make_outputs(group.method, head, features[part], pack.context)
            losses.append(group.method.loss(outputs, labels[part], pack.context))
        return torch.cat(losses)


def learn_weights(pack: "Pack", drawn: Drawn) -> Tensor:
    """w_i - meta_rate * dL_held / d eps_i at eps = 0, [runs, batch], where L_held is the mean loss of the held-out batch
    after a virtual step at the present rate on sum_i (w_i + eps_i) l_i. The network's own statistics are left alone."""
    whole = Whole(pack)
    parameters = dict(whole.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    labels, held = (pack.feed.labels[rows[INDEX]] for rows in (drawn.images, drawn.others[0]))
    weights = torch.cat([w[labels[g.first:g.stop]] for g, w in zip(pack.groups, pack.weights, strict=True)])
    eps = torch.zeros_like(weights, requires_grad=True)
    losses = functional_call(whole, {**parameters, **buffers}, (pack.feed.batch(drawn.images), labels))
    gradients = torch.autograd.grad(((weights + eps) * losses).sum(), list(parameters.values()), create_graph=True)
    virtual = {name: p - pack.rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    held_losses = functional_call(whole, {**virtual, **buffers}, (pack.feed.batch(drawn.others[0]), held))
    slope, = torch.autograd.grad(held_losses.mean(-1).sum(), eps)
    return (weights - pack.shape.meta_rate * slope).detach()
