"""What the checks before training say of losses that are right, strange or wrong."""

import inspect
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from common.guests.judge import judge
from common.methods.losses import cross_entropy, equalization, lade, logit_adjusted, shift_target, softmax_cross_entropy, target
from common.methods.method import COSINE, Method
from common.methods.one_stage import bbn_row, ce_row, ldam_drw_row
from common.spec import Protocol

PROTOCOL = Protocol(4, 32, 0.1, 0.9, 0.0002, 1, (2, 3), 0.1, False)
COUNTS = np.array([50, 20, 5, 3])


def findings(loss, **more) -> list:
    return judge(Method("mine", "written", loss, **more), Path(inspect.getsourcefile(judge)), COUNTS, PROTOCOL)


def mean(outputs, labels, context):
    return cross_entropy(outputs.logits, labels).mean()


def infinite(outputs, labels, context):
    return cross_entropy(outputs.logits, labels) + (labels - labels).double().log()


def late(outputs, labels, context):
    return cross_entropy(outputs.logits, labels) / (3 - context.epoch)


def detached(outputs, labels, context):
    return cross_entropy(outputs.logits.detach(), labels)


def flat(outputs, labels, context):
    return cross_entropy(outputs.logits * 0, labels)


def turned(outputs, labels, context):
    return -cross_entropy(outputs.logits, labels)


def own_noise(outputs, labels, context):
    return cross_entropy(outputs.logits + torch.rand_like(outputs.logits), labels)


def first_axis(outputs, labels, context):
    return cross_entropy(outputs.logits - outputs.logits.mean(0), labels)


def in_place(outputs, labels, context):
    outputs.features.mul_(2)
    return cross_entropy(outputs.logits, labels)


def sorted_classes(outputs, labels, context):
    return cross_entropy(outputs.logits + torch.arange(4) / 10, labels)


def naive(outputs, labels, context):
    return -target(outputs.logits.softmax(-1), labels).log()


def rooted(outputs, labels, context):
    margin = (target(outputs.logits, labels).detach() - target(outputs.logits, labels)).abs().sqrt()
    return cross_entropy(shift_target(outputs.logits, labels, margin), labels)


def raising(outputs, labels, context):
    return outputs.logit


@pytest.mark.parametrize(("loss", "sign", "said"), [
    (mean, "bad", "one value for each sample"), (infinite, "bad", "not finite on ordinary outputs"),
    (late, "bad", "not finite on ordinary outputs"), (detached, "bad", "no gradient reaches the network"),
    (flat, "bad", "gradient is 0 everywhere"), (turned, "note", "pushes the logit of the true class down"),
    (own_noise, "bad", "read context.noise"), (first_axis, "bad", "mixes the runs"), (in_place, "bad", "in place"),
    (sorted_classes, "note", "order in which the classes are listed"), (naive, "note", "a logit 120 below the others"),
    (rooted, "bad", "gradient is not finite"), (raising, "bad", "AttributeError"), (raising, "bad", "did you mean 'logits'"),
])
def test_what_is_wrong_is_said(loss, sign, said):
    found = [finding for finding in findings(loss) if finding.sign == sign]
    assert any(said in finding.text for finding in found), found


@pytest.mark.parametrize(("loss", "more", "notes"), [
    (softmax_cross_entropy, {}, []), (partial(logit_adjusted, tau=1.0), {}, []),
    (partial(equalization, rate=0.9, threshold=0.1), {"noise": "uniform"}, []),
    (partial(lade, alpha=0.1, strength=0.1), {}, ["rest of the batch"]),
])
def test_what_is_right_is_not_refused(loss, more, notes):
    found = findings(loss, **more)
    assert len(found) == 8
    assert not [finding for finding in found if finding.sign == "bad"]
    said = [finding.text for finding in found if finding.sign == "note"]
    assert len(said) == len(notes)
    assert all(part in text for part, text in zip(notes, said, strict=True))


def test_the_usual_rows_pass_and_others_are_left_to_their_first_batch():
    path = Path(inspect.getsourcefile(judge))
    for row in (ce_row("written"), ldam_drw_row("written", PROTOCOL)):
        assert {finding.sign for finding in judge(row, path, COUNTS, PROTOCOL)} == {"ok"}
    assert [f.sign for f in judge(bbn_row("written", PROTOCOL), path, COUNTS, PROTOCOL)] == ["note"]


def test_weights_are_checked_before_the_loss():
    def short(counts, epoch):
        return np.ones(2)

    found = findings(softmax_cross_entropy, weights=short, head=COSINE)
    assert [finding.sign for finding in found] == ["bad"]
    assert "weights gives 2 numbers in epoch 0; 4 numbers are needed" in found[0].text
