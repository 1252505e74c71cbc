"""Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment: chapter 5 of M. Li's thesis (CVPR 2022).

Claim: Gaussian noise that lowers each class's cosine, the more the rarer the class, keeps tail samples from saturating
the softmax early and spreads the embedding evenly (GCL); with a classifier re-trained on class-based effective number
sampling (CBEN) it has the highest accuracy of Table 5.2 in every column.

    python -m papers.gcl.replicate plan                            what would run, and for how long
    python -m papers.gcl.replicate train --column cifar10-lt-100   the published protocol on one column
    python -m papers.gcl.replicate table                           Tables 5.2, 5.4, 5.5, 5.6 beside the published numbers

Reading "written" is the text; "released" is github.com/Keke921/GCLLoss. README.md has every difference.

z~_j = cos theta_j: cosine between feature and class weight w_j; s: scale; n_j: training images of class j; eps: noise;
delta_j: cloud size of class j, how far noise can lower its cosine; beta_j, gamma_j: validity and sampling rate of CBEN.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.cli.main import main
from common.draws import with_draws
from common.methods.losses import cross_entropy, shift_target
from common.methods.method import COSINE, Context, Head, Method, Outputs, Start
from common.methods.one_stage import (
    arcface_row,
    bbn_row,
    ce_row,
    cosface_row,
    deconfound_tde_row,
    hybrid_sc_row,
    la_row,
    ldam_drw_row,
    mislas_row,
    mixup_crt_row,
    mixup_row,
)
from common.methods.sampling import class_balanced, effective_number_sampler, shuffled
from common.methods.two_stage import decoupling_row, disalign_row, lade_row, oltr_row
from common.paper import Figure, Profile, Table, load_paper, published_column
from common.report.figures import Panel, curves, embedding
from common.report.results import Results
from common.report.waterfall import TEXT_TO_CODE
from common.spec import Column, Protocol, Reading, load_yaml
from papers.gcl.text_to_code import steps

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
READINGS: tuple[Reading, ...] = ("written", "released")
LARGE_BOTH = ("ce", "mixup", "decoupling", "mixup-crt", "disalign", "mislas", "gcl")  # printed for every large set
TINY = 1e-12  # where all classes are of one size, every cloud is 0 / TINY


# ---------------------------------------------------------------- section 5.3.1: why, and section 5.3.2: the clouded logit


def gradient_on_target(difference: float) -> float:
    """Eq. (5.3): dL / dz_1 = -1 / (1 + e^(z_1 - z_2)), of two classes and a sample of class 1."""
    return -1 / (1 + math.exp(difference))


def elementwise(name: str, n):
    """log or sin of a tensor or of an array: the loss needs delta_j as one, the sampler as the other."""
    return getattr(n, name)() if hasattr(n, name) else getattr(np, name)(n)


def cloud_logarithm(n):
    """Eq. (5.9): delta_j = log n_max - log n_j. [classes]."""
    return elementwise("log", n.max()) - elementwise("log", n)


def cloud_power(n, *, exponent: float):
    """Table 5.4, power difference: delta_j = n_max^exponent - n_j^exponent. [classes]."""
    return n.max() ** exponent - n**exponent


def cloud_cosine(n):
    """Table 5.4, cosine: delta_j = cos(n_j / n_max * pi / 2). [classes].

    As sin((1 - n_j / n_max) * pi / 2), which is exactly 0 for the largest class in any precision.
    """
    return elementwise("sin", (1 - n / n.max()) * (math.pi / 2))


def cloud_size(n, size: Callable = cloud_logarithm):
    """Section 5.4.1: delta_j <- delta_j / delta_max, whichever form of Table 5.4 `size` is. [classes]."""
    delta = size(n)
    return delta / delta.max().clip(min=TINY)


def gcl_clouded(cosine: "Tensor", context: Context, *, cloud: float, sigma: float, size: Callable) -> "Tensor":
    """Eq. (5.11) before its scale: z~_j - delta_j |eps|, eps from N(0, sigma^2) clamped to [-1, 1] (section 5.4.1).

    eps is drawn anew for each sample and class (gap: Eq. 5.8 has eps_j, Eqs. 5.10 and 5.11 one eps).
    cloud: a factor on delta_j, 1 in the text.
    """
    epsilon = (sigma * context.noise).clamp(-1, 1)
    return cosine - cloud * cloud_size(context.counts, size) * epsilon.abs()


def gcl(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, cloud: float, sigma: float,
        size: Callable = cloud_logarithm) -> "Tensor":
    """Eq. (5.12): cross-entropy of the clouded cosine logits s (z~_j - delta_j |eps|)."""
    z = gcl_clouded(outputs.logits, context, cloud=cloud, sigma=sigma, size=size)
    return cross_entropy(s * z, labels)


def gcl_margin_focal(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, cloud: float, sigma: float, m: float,
                     gamma: float, size: Callable = cloud_logarithm) -> "Tensor":
    """The released loss of the second stage: Eq. (5.12) with a margin m on the target's cosine, times (1 - p_y)^gamma,
    through which no gradient flows."""
    z = gcl_clouded(outputs.logits, context, cloud=cloud, sigma=sigma, size=size)
    loss = cross_entropy(s * shift_target(z, labels, labels.new_full(labels.shape, m, dtype=z.dtype)), labels)
    return (1 - (-loss.detach()).exp()) ** gamma * loss


def gcl_blended_labels(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, cloud: float, sigma: float, m: float,
                       gamma: float) -> "Tensor":
    """The second stage of the released script for Places-LT, which blends labels as mixup does but not the images: half the
    loss of the image's own label, half that of another image's, as the mean over mixup's uniform share is."""
    numbers = {"s": s, "cloud": cloud, "sigma": sigma, "m": m, "gamma": gamma}
    other = context._replace(noise=context.noise.roll(1, -2))
    own = gcl_margin_focal(outputs, labels, context, **numbers)
    return (own + gcl_margin_focal(outputs, labels.roll(1, -1), other, **numbers)) / 2


# ---------------------------------------------------------------- section 5.3.3: class-based effective number sampling


def validity(n: np.ndarray, a: float, b: float, size: Callable = cloud_logarithm) -> np.ndarray:
    """Eq. (5.15): beta_j = b (delta_j - delta_min) / (delta_max - delta_min) + a. [classes]."""
    delta = cloud_size(n, size)
    return b * (delta - delta.min()) / (delta.max() - delta.min()).clip(min=TINY) + a


def gcl_cben(counts: np.ndarray, epoch: int, *, a: float, b: float, size: Callable = cloud_logarithm) -> np.ndarray:
    """Eqs. (5.13) and (5.14): gamma_j = (1 - beta_j) / (1 - beta_j^n_j), the probability of *a sample* of class j.

    "the sum of the sampling probability for all data needs to be 1": so a class of n_j samples has n_j gamma_j.
    """
    n = np.asarray(counts, float)
    beta = validity(n, a, b, size)
    gamma = (1 - beta) / (1 - beta**n)
    return n * gamma / (n * gamma).sum()


# ---------------------------------------------------------------- params.yaml


@dataclass(frozen=True)
class Setting:
    """A reading of the method. second_mixup, keep: of the second stage, whether it mixes, and keeps the classifier."""

    s: float
    cloud: float
    sigma: float
    mixup: float
    second_mixup: float
    a: float
    b: float
    keep: bool


@dataclass(frozen=True)
class SecondLoss:
    s: float
    m: float
    gamma: float


@dataclass(frozen=True)
class Switches:
    """rates: other starts of the written second stage's cosine."""

    cloud: float
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Places:
    """mixup: of the first stage. s: of the second."""

    cloud: float
    mixup: float
    s: float


@dataclass(frozen=True)
class Baselines:
    """not_printed: the rows that Table 5.2 does not have at some ratios."""

    effective_number: float
    moving_statistics: tuple[str, ...]
    tde_alpha: dict[str, float]
    not_printed: dict[int, tuple[str, ...]]


@dataclass(frozen=True)
class Params:
    paper: Profile
    quick: Profile
    stand_ins: dict[str, str]
    ablation: str
    toy: str
    exponents: dict[str, float]
    written: Setting
    released: Setting
    released_second: SecondLoss
    switches: Switches
    baselines: Baselines
    large_mixup: float
    released_places: Places


PARAMS: Params = load_yaml(HERE / "params.yaml", Params)
LARGE = PARAMS.paper.large.columns | PARAMS.quick.large.columns


def setting(reading: Reading) -> Setting:
    return PARAMS.written if reading == "written" else PARAMS.released


# ---------------------------------------------------------------- Algorithm 5.1: GCL with CBEN


def first_stage(reading: Reading, size: Callable = cloud_logarithm, cloud: float | None = None) -> Method:
    """Lines 2 to 7: all parameters on the long-tailed data. It is the row "w/o RT" of Table 5.6."""
    p = setting(reading)
    loss = partial(gcl, s=p.s, cloud=p.cloud if cloud is None else cloud, sigma=p.sigma, size=size)
    return Method("gcl-no-rt", reading, loss, COSINE, mixup=p.mixup, noise="normal")


def second_loss(reading: Reading, size: Callable, cloud: float) -> partial:
    """Line 11: Eq. (5.12) again; the released code has a margin, another scale and a focal factor."""
    p = setting(reading)
    if reading == "written":
        return partial(gcl, s=p.s, cloud=cloud, sigma=p.sigma, size=size)
    return partial(gcl_margin_focal, **vars(PARAMS.released_second), cloud=cloud, sigma=p.sigma, size=size)


def second_stage(name: str, reading: Reading, protocols: Mapping[str, Protocol], *, size: Callable = cloud_logarithm,
                 sampler: Callable | None = None, rescale: str = "", cloud: float | None = None, **changes) -> Method:
    """Lines 8 to 13: the classifier alone, on samples that `sampler` draws (CBEN where it is None); the backbone frozen.

    rescale: "class" is LWS, "tau" is tau-normalisation, on the first stage's classifier as it is; "" is cRT. The learned tau
    is a temperature too: with w / |w|^tau the logits are s |w_j|^(1 - tau) cos theta_j, so tau changes s as well.
    """
    p = setting(reading)
    head = Head("cosine", keep=True, rate=0.0, rescale=rescale) if rescale else Head("cosine", keep=p.keep)
    method = Method(
        name, reading, second_loss(reading, size, p.cloud if cloud is None else cloud), head,
        sampler=sampler or partial(gcl_cben, a=p.a, b=p.b, size=size),
        start=Start(replace(first_stage(reading, size, cloud), protocol=protocols[reading])),
        protocol=protocols[f"{reading}-gcl"], mixup=p.second_mixup, noise="normal",
    )
    return replace(method, **changes)


# ---------------------------------------------------------------- section 5.4: the rows of Tables 5.2, 5.4, 5.5 and 5.6


def with_moving_statistics(protocols: Mapping[str, Protocol], column: Column) -> Mapping[str, Protocol]:
    """MisLAS's second stage, and the released one after mixup, which is MisLAS's too, move the batch statistics on some sets."""
    moves = column.dataset in PARAMS.baselines.moving_statistics
    moving = ("written-mislas", "released-mislas", "released-crt")
    return protocols | {name: replace(protocols[name], moving_statistics=moves) for name in moving}


def baselines(column: Column, protocols: Mapping[str, Protocol], reading: Reading) -> list[Method]:
    """The other rows of Table 5.2, each under the setting of the text and under that of the code; De-confound-TDE, whose
    numbers are quoted, under its source's."""
    p, protocol, protocols = PARAMS.baselines, protocols[reading], with_moving_statistics(protocols, column)
    rows = [
        ce_row(reading),
        mixup_row(reading),
        ldam_drw_row(reading, protocol),
        deconfound_tde_row(reading, p.tde_alpha[column.dataset], protocols["deconfound"]),
        mixup_crt_row(reading, protocols),
        bbn_row(reading, protocol),
        hybrid_sc_row(reading, protocol),
        mislas_row(reading, column, protocols),
    ]
    return [row for row in rows if row.name not in p.not_printed.get(column.ratio, ())]


def own_rows(protocols: Mapping[str, Protocol], reading: Reading) -> list[Method]:
    """GCL of Table 5.2: with CBEN in the text, with class balance in the README of the code, where CBEN is an option."""
    cben = second_stage("gcl", reading, protocols)
    if reading == "written":
        return [cben]
    return [replace(cben, sampler=class_balanced), replace(cben, variant="sampler=cben")]


def ablations(protocols: Mapping[str, Protocol], reading: Reading) -> list[Method]:
    """Tables 5.4 (cloud sizes), 5.5 (samplers) and 5.6 (re-training); `gcl-cben` is a row of all three."""
    sizes = {"gcl-cloud-cosine": cloud_cosine,
             **{name: partial(cloud_power, exponent=value) for name, value in PARAMS.exponents.items()}}
    effective = partial(effective_number_sampler, beta=PARAMS.baselines.effective_number)
    samplers = {"gcl-instance-balance": shuffled, "gcl-class-balance": class_balanced, "gcl-effective-number": effective}
    rescaled = {"gcl-lws": "class", "gcl-tau": "tau"}
    return [
        second_stage("gcl-cben", reading, protocols),
        *(second_stage(name, reading, protocols, size=size) for name, size in sizes.items()),
        *(second_stage(name, reading, protocols, sampler=sampler) for name, sampler in samplers.items()),
        first_stage(reading),
        *(second_stage(name, reading, protocols, rescale=kind) for name, kind in rescaled.items()),
    ]


def switches(protocols: Mapping[str, Protocol]) -> list[Method]:
    """One difference between the readings, or one gap filled otherwise, at a time; the chapter prints no such rows."""
    w, r, s = PARAMS.written, PARAMS.released, PARAMS.switches
    plain = partial(gcl, s=r.s, cloud=r.cloud, sigma=r.sigma)
    crt = mixup_crt_row("written", protocols)
    return [
        second_stage("gcl", "written", protocols, cloud=s.cloud, variant=f"cloud={s.cloud}"),
        second_stage("gcl", "written", protocols, head=Head("cosine", keep=not w.keep), variant="classifier=kept"),
        second_stage("gcl", "released", protocols, sampler=class_balanced, loss=plain, variant="loss=equation"),
        *(replace(row, protocol=replace(row.protocol, rate=rate), variant=f"rate={rate}")
          for row in (second_stage("gcl", "written", protocols), crt) for rate in s.rates),
        replace(crt, protocol=replace(crt.protocol, moving_statistics=True), variant="statistics=moving"),
    ]


def large_rows(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """Tables 5.3 and 5.7, in the text's setting; on Places-LT the code's own two stages beside it."""
    protocol, alpha = protocols["written"], PARAMS.large_mixup
    own = second_stage("gcl", "written", protocols)
    rows = [
        ce_row("written"), mixup_row("written", alpha), ldam_drw_row("written", protocol), la_row("written"),
        oltr_row("written", column, protocols), decoupling_row("written", protocols), disalign_row("written", protocols),
        mixup_crt_row("written", protocols, alpha), mislas_row("written", column, protocols, alpha),
        replace(own, start=Start(replace(own.first_stage, mixup=alpha))),
        cosface_row("written"), arcface_row("written"), lade_row("written", column),
    ]
    printed = {"places-lt": (*LARGE_BOTH, "oltr"), "inaturalist2018": (*LARGE_BOTH, "ldam-drw", "la")}.get(column.dataset)
    rows = [row for row in rows if printed is None or row.name in printed]
    if "released" in protocols:
        rows += [ce_row("released"), released_places(protocols)]
    return [replace(row, keep_features=False) for row in rows]


def released_places(protocols: Mapping[str, Protocol]) -> Method:
    """The code's two stages on Places-LT: the classifier goes on, on class-balanced images that are not mixed."""
    p, r = PARAMS.released_places, PARAMS.released_second
    loss = partial(gcl_blended_labels, s=p.s, cloud=p.cloud, sigma=PARAMS.released.sigma, m=r.m, gamma=r.gamma)
    row = second_stage("gcl", "released", protocols, cloud=p.cloud, sampler=class_balanced, loss=loss, mixup=0.0)
    return replace(row, start=Start(replace(row.first_stage, mixup=p.mixup)))


def methods(column: Column, protocols: Mapping[str, Protocol]) -> tuple[Method, ...]:
    """Everything that is trained on a column: Table 5.2 on all, Tables 5.4 to 5.6 on one, CE alone on Figure 5.1's."""
    if column.name in LARGE:
        return tuple(large_rows(column, protocols))
    if published_column(PARAMS.stand_ins, column) == PARAMS.toy:
        return (ce_row("written"),)
    ablation = published_column(PARAMS.stand_ins, column) == PARAMS.ablation
    rows = []
    for reading in READINGS:
        rows += [*baselines(column, protocols, reading), *own_rows(protocols, reading)]
        rows += ablations(protocols, reading) if ablation else []
    rows += switches(protocols) if ablation else []
    if column.name == PARAMS.ablation:
        rows += steps(*(own_rows(protocols, reading)[0] for reading in READINGS))
    shown = ("ce", "gcl") if ablation else ()  # Figure 5.4
    return tuple(replace(m, keep_features=m.keep_features or (m.name in shown and not m.variant)) for m in rows)


# ---------------------------------------------------------------- Figures 5.1, 5.3 and 5.4


def figure_5_1(results: Results):
    """t-SNE of the embedding that cross-entropy learns from four classes (gap: of which images; here of both splits)."""
    panels = [(f"CE, {split} set", PARAMS.toy, "ce@written", split) for split in ("train", "test")]
    return embedding(results, panels)


def figure_5_3(results: Results):
    """Eq. (5.3) over the logit difference z_1 - z_2."""
    x = [i / 10 for i in range(-60, 61)]
    line = ("Eq. (5.3)", x, [gradient_on_target(v) for v in x])
    panel = Panel("", "logit difference z_1 - z_2", "gradient on z_1", (line,))
    return curves("Gradient on the target's logit in binary classification", (panel,))


def figure_5_4(results: Results, *, reading: Reading):
    """t-SNE of CE's and GCL's embeddings: (a) of the training images, (b) of the test images."""
    rows = [(f"({letter}) {name.upper()}, {split} set", PARAMS.ablation, f"{name}@{reading}", split)
            for letter, split in (("a", "train"), ("b", "test")) for name in ("ce", "gcl")]
    return embedding(results, rows)


PAPER = with_draws(load_paper(
    HERE, PARAMS,
    title="Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment",
    methods=methods,
    own=("gcl", "gcl-no-rt"),
    main=("5.2",),
    tables=(
        Table("5.2", "Top-1 accuracy of ResNet-32 on CIFAR-10-LT and CIFAR-100-LT"),
        Table("5.3", "Top-1 accuracy on ImageNet-LT, iNaturalist 2018 and Places-LT"),
        Table("5.4", "Cloud size adjustment strategies, on CIFAR-10-LT with ratio 100"),
        Table("5.5", "Re-sampling strategies of the second stage, on CIFAR-10-LT with ratio 100"),
        Table("5.6", "Re-training strategies of the second stage, on CIFAR-10-LT with ratio 100"),
        Table("5.7", "Top-1 accuracy on head, middle and tail classes of ImageNet-LT"),
    ),
    figures=(
        Figure("5.1", "t-SNE of the distorted embedding space", figure_5_1),
        Figure("5.3", "The gradient on the target's logit vanishes early", figure_5_3),
        Figure("5.4", "t-SNE of the embeddings of CE and GCL, as written", partial(figure_5_4, reading="written")),
        Figure("5.4-released", "t-SNE of the embeddings of CE and GCL, as released", partial(figure_5_4, reading="released")),
        TEXT_TO_CODE,
    ),
))

if __name__ == "__main__":
    main(PAPER)
