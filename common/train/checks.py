"""What a method's parts have to be, asked before the first step; a failure is one sentence that names the row and the way out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.methods.method import Method
from common.plan import Run
from common.spec import Protocol


def check_members(members: Sequence[Run], counts: np.ndarray) -> None:
    """The parts of every method among runs of one protocol. counts: training images of each class."""
    for method in dict.fromkeys(m.method for m in members):
        check_parts(method, counts, members[0].spec.protocol)


def check_parts(method: Method, counts: np.ndarray, protocol: Protocol) -> None:
    """Class weights, samplers and the adjustment, in the first epoch, after each decay and in the last: one finite number a
    class, none below 0. counts: training images of each class."""
    classes = len(counts)
    for epoch in sorted({0, *protocol.decay_epochs, max(protocol.epochs - 1, 0)}):
        if method.task == "classes":
            _check_vector(method, "weights", method.weights(counts, epoch), classes, epoch)
        for sampler in (method.sampler, *method.streams.samplers):
            order = sampler(counts, epoch)
            if isinstance(order, str) and order not in ("again", "held out"):
                raise UserError(f"{method.label}: its sampler says {order!r}; it returns None for every image once, or a "
                                "probability for each class.")
            if order is not None and not isinstance(order, str):
                _check_vector(method, "sampler", order, classes, epoch)
                if abs(float(np.sum(order)) - 1) > 1e-6:
                    raise UserError(f"{method.label}: the probabilities of its sampler add up to {np.sum(order):g} in epoch "
                                    f"{epoch}; divide them by their sum.")
    if method.adjust is not None:
        _check_vector(method, "adjust", method.adjust(counts), classes, 0, least=-np.inf)


def _check_vector(method: Method, part: str, values: object, classes: int, epoch: int, least: float = 0.0) -> None:
    array = np.asarray(values)
    if array.shape != (classes,) or array.dtype.kind not in "iuf":
        raise UserError(f"{method.label}: {part} gives {_words(array)} in epoch {epoch}; {classes} numbers are needed, one for "
                        "each class.")
    if not np.isfinite(array).all() or (array < least).any() or (least == 0 and array.sum() == 0):
        raise UserError(f"{method.label}: {part} gives numbers that are not finite, below 0 or all 0 in epoch {epoch}.")


def _words(array: np.ndarray) -> str:
    if array.dtype.kind not in "iuf":
        return f"something of type {array.dtype}"
    return f"{array.size} numbers" if array.ndim == 1 else f"an array of shape {array.shape}"


def per_sample(losses: Tensor, labels: Tensor, method: Method) -> Tensor:
    """What a loss returned, if it is one value for each label [runs, batch]; a mean over the batch would take no weights."""
    if not isinstance(losses, torch.Tensor) or losses.shape != labels.shape:
        shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise UserError(f"{method.label}: its loss returns {shape} for labels of shape {tuple(labels.shape)}; it has to "
                        "return one value for each sample, without a mean or a sum over the batch.")
    return losses
