"""The rows of other people's methods that two or more papers compare with, as `Method`s.

reading: whose setting trains the row, the text's or the released code's; the method is the same in both, but for `focal`.
protocol: the first stage's setting of that reading. protocols: the paper's mapping, which holds it under the reading and
a second stage's under "<reading>-crt" and "<reading>-mislas" (they train the head alone). Where a method's own code
fixes a number, that number is the default here; a first stage has the paper's setting, not that code's.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from common.methods.losses import (
    arcface,
    bilateral,
    cumulative,
    equalization,
    focal,
    focal_detached,
    hybrid_contrastive,
    label_aware_smoothing,
    ldam,
    logit_adjusted,
    sigmoid_focal,
    softmax_cross_entropy,
    uniform_margin,
)
from common.methods.method import COSINE, Head, Meta, Method, Net, Start, Streams
from common.methods.sampling import (
    again,
    class_balanced,
    deferred,
    effective_number_weights,
    held_out,
    reversed_frequency,
    shuffled,
    uniform_weights,
)
from common.spec import Column, Protocol, Reading

# MiSLAS: smoothing of the largest and the smallest class, and the classifier's learning rate relative to that of the
# class factors, by data set and ratio; its configuration files have no others.
SMOOTHING: dict[tuple[str, int], tuple[float, float, float]] = {
    ("cifar10", 100): (0.3, 0.0, 0.5),
    ("cifar10", 50): (0.2, 0.0, 0.2),
    ("cifar10", 10): (0.1, 0.0, 0.2),
    ("cifar100", 100): (0.4, 0.1, 0.2),
    ("cifar100", 50): (0.3, 0.0, 0.1),
    ("cifar100", 10): (0.2, 0.0, 0.1),
    ("imagenet-lt", 1): (0.3, 0.0, 0.05),
    ("inaturalist2018", 1): (0.3, 0.0, 0.05),
    ("places-lt", 1): (0.4, 0.1, 0.05),
}


LARGE_MIXUP = 0.2  # alpha of mixup on the large sets, in MiSLAS's code


# ---------------------------------------------------------------- losses on one stream


def ce_row(reading: Reading) -> Method:
    """Softmax cross-entropy; it keeps its features, as more than one figure shows them."""
    return Method("ce", reading, softmax_cross_entropy, keep_features=True)


def focal_row(reading: Reading, gamma: float = 1.0) -> Method:
    """Focal loss in the softmax form of the LDAM code; the released codes that took it over detach the factor."""
    return Method("focal", reading, partial(focal_detached if reading == "released" else focal, gamma=gamma))


def cosface_row(reading: Reading, s: float = 30.0, m: float = 0.35) -> Method:
    """CosFace (Wang et al., 2018): one margin on the cosine; s of LDAM, m of the library (the tables give neither)."""
    return Method("cosface", reading, partial(uniform_margin, s=s, m=m), COSINE)


def arcface_row(reading: Reading, s: float = 30.0, m: float = 0.5) -> Method:
    """ArcFace (Deng et al., 2019): one margin on the angle; s of LDAM, m of the library (the tables give neither)."""
    return Method("arcface", reading, partial(arcface, s=s, m=m), COSINE)


def ldam_row(reading: Reading, s: float = 30.0, largest: float = 0.5) -> Method:
    """LDAM (Cao et al., 2019), as its code has it."""
    return Method("ldam", reading, partial(ldam, s=s, largest=largest), COSINE)


def ldam_drw_row(reading: Reading, protocol: Protocol, s: float = 30.0, largest: float = 0.5, beta: float = 0.9999,
                 start: int | None = None) -> Method:
    """LDAM with deferred re-weighting (Cao et al., 2019), as its code has it: effective number, weighted mean; from epoch
    `start` on, or from the first decay."""
    return Method("ldam-drw", reading, partial(ldam, s=s, largest=largest), COSINE, _deferred_weights(protocol, beta, start))


def drs_row(reading: Reading, start: int) -> Method:
    """Cross-entropy with deferred re-sampling: every image once an epoch, from epoch `start` on every class equally often
    (the LDAM code has no working one; this is that of a later collection of recipes)."""
    return Method("drs", reading, softmax_cross_entropy,
                  sampler=partial(deferred, before=shuffled, then=class_balanced, start=start))


def cb_rw_row(reading: Reading, beta: float = 0.9999) -> Method:
    """Cross-entropy with class weights by effective number (Cui et al., 2019), a weighted mean as in the LDAM code."""
    return Method("cb-rw", reading, softmax_cross_entropy, weights=partial(effective_number_weights, beta=beta))


def cb_focal_row(reading: Reading, classes: int, gamma: float = 1.0, beta: float = 0.9999) -> Method:
    """Class-balanced focal loss (Cui et al., 2019): a sigmoid a class, whose bias starts at the prior 1 / classes and does
    not decay; weights by effective number, divided by the batch size."""
    prior = Head("linear", bias=-math.log(classes - 1), decay_bias=False)
    weights = partial(effective_number_weights, beta=beta)
    return Method("cb-focal", reading, partial(sigmoid_focal, gamma=gamma), prior, weights, reduction="batch")


def equalization_row(reading: Reading, rate: float = 0.9, threshold: float = 0.005) -> Method:
    """Equalization loss (Tan et al., 2020), softmax form."""
    return Method("equalization", reading, partial(equalization, rate=rate, threshold=threshold), noise="uniform")


def prior_adjustment(counts: np.ndarray, tau: float) -> np.ndarray:
    """-log(pi_c^tau + 1e-12), pi the class frequencies: what post-hoc logit adjustment adds to the logits. [classes]."""
    prior = np.asarray(counts, float) / np.sum(counts)
    return -np.log(prior ** tau + 1e-12)


def la_row(reading: Reading, tau: float = 1.0) -> Method:
    """Logit adjustment (Menon et al., 2021) in the loss."""
    return Method("la", reading, partial(logit_adjusted, tau=tau))


def la_post_hoc_row(reading: Reading, protocol: Protocol, tau: float = 1.0) -> Method:
    """Logit adjustment post hoc: the network of the row `ce` in `protocol`, tested once more with adjusted logits."""
    return Method("la", reading, softmax_cross_entropy, Head("linear", keep=True), adjust=partial(prior_adjustment, tau=tau),
                  start=Start(replace(ce_row(reading), protocol=protocol)), variant="mode=posthoc",
                  protocol=protocol.only_tested())


def deconfound_tde_row(reading: Reading, alpha: float, protocol: Protocol) -> Method:
    """De-confound-TDE (Tang et al., 2020): cross-entropy on the causal head, `alpha` of the mean feature's direction taken
    away at test time; its code has 1.0 on CIFAR-10 and 1.5 on CIFAR-100.

    Its network has two last blocks, which see the same image and whose features stand side by side. protocol: the setting
    of its code, whatever that of the reading is.
    """
    return Method("deconfound-tde", reading, softmax_cross_entropy, Head("causal", alpha=alpha), net=Net("two-branch"),
                  protocol=protocol)


def mixup_row(reading: Reading, alpha: float = 1.0) -> Method:
    """mixup (Zhang et al., 2018) with cross-entropy."""
    return Method("mixup", reading, softmax_cross_entropy, mixup=alpha)


# ---------------------------------------------------------------- several streams


def bbn_row(reading: Reading, protocol: Protocol) -> Method:
    """BBN (Zhou et al., 2020): a branch on shuffled and a branch on reversely sampled images, from the first to the second.

    Its code divides the epoch by the number of epochs, but by 100 where that is 90 and by 200 where it is 180.
    """
    parts = {"epochs": {90: 100, 180: 200}.get(protocol.epochs, protocol.epochs)}
    return Method("bbn", reading, partial(bilateral, **parts), net=Net("bilateral"),
                  streams=Streams((reversed_frequency,), partial(cumulative, **parts)))


def meta_rows(reading: Reading, protocol: Protocol, s: float = 30.0, largest: float = 0.5, gamma: float = 1.0,
              beta: float = 0.9999) -> list[Method]:
    """Meta-learning of sample weights as domain adaptation (Jamal et al., 2020), from the first decay on: ten held-out images a
    class, steps of 0.01 from the effective-number weights. Its released script has cross-entropy only; LDAM and focal
    loss are put in its place."""
    meta = {"weights": _deferred_weights(protocol, beta), "reduction": "batch", "streams": Streams((held_out,)),
            "meta": Meta(held_out=10, rate=0.01)}
    return [
        Method("meta-ldam", reading, partial(ldam, s=s, largest=largest), COSINE, **meta),
        Method("meta-focal", reading, partial(focal, gamma=gamma), **meta),
    ]


def hybrid_sc_row(reading: Reading, protocol: Protocol, temperature: float = 0.1) -> Method:
    """Hybrid-SC (Wang et al., 2021): contrast of two views of the shuffled images, cross-entropy on class-balanced ones.
    Settings from memory of the literature; see `hybrid_contrastive`."""
    loss = partial(hybrid_contrastive, temperature=temperature, epochs=protocol.epochs)
    return Method("hybrid-sc", reading, loss, Head("linear", project=128), streams=Streams((again, class_balanced)),
                  last=True)


# ---------------------------------------------------------------- two stages


def mixup_crt_row(reading: Reading, protocols: Mapping[str, Protocol], alpha: float = 1.0) -> Method:
    """mixup, then a classifier drawn anew on class-balanced batches without mixup (Kang et al., 2020)."""
    return Method("mixup-crt", reading, softmax_cross_entropy, sampler=class_balanced,
                  start=Start(_mixup_stage(reading, protocols, alpha)), protocol=protocols[f"{reading}-crt"])


def mislas_row(reading: Reading, column: Column, protocols: Mapping[str, Protocol], alpha: float = 1.0) -> Method:
    """MiSLAS (Zhong et al., 2021): mixup, then the same classifier and a factor a class on class-balanced batches, with
    label-aware smoothing and without mixup."""
    head, tail, rate = smoothing(column)
    return Method("mislas", reading, partial(label_aware_smoothing, head=head, tail=tail),
                  Head("linear", keep=True, rate=rate, rescale="class"), sampler=class_balanced,
                  start=Start(_mixup_stage(reading, protocols, alpha)), protocol=protocols[f"{reading}-mislas"])


def smoothing(column: Column) -> tuple[float, float, float]:
    """The entry of SMOOTHING for a column. Ratio 200 has none and takes that of ratio 100; Tiny-ImageNet takes that of
    ImageNet-LT, and the digits of the quick profile that of CIFAR-10 with ratio 100."""
    if column.dataset == "tiny-imagenet":
        return SMOOTHING["imagenet-lt", 1]
    return SMOOTHING.get((column.dataset, min(column.ratio, 100)), SMOOTHING["cifar10", 100])


def _mixup_stage(reading: Reading, protocols: Mapping[str, Protocol], alpha: float) -> Method:
    """The row `mixup`, which a second stage starts from, with its own setting beside it."""
    return replace(mixup_row(reading, alpha), protocol=protocols[reading])


def _deferred_weights(protocol: Protocol, beta: float, start: int | None = None) -> partial:
    """Weight 1 until epoch `start`, or until the first decay of the learning rate; the inverse effective number from it on."""
    then = partial(effective_number_weights, beta=beta)
    return partial(deferred, before=uniform_weights, then=then, start=protocol.first_decay if start is None else start)
