"""Key Point Sensitive Loss for Long-tailed Visual Recognition (M. Li, chapter 3 of the thesis).

Claim: a radius on every class's cosine that grows with the class, and a margin that shrinks with it, separate tail classes
and the points between two class anchors ("key points") better than an additive margin alone; a scale of each class's own in
the late epochs (gradient adjustment, GA) lowers the error further. KPS with GA has the lowest error of Table 3.2 in three of
its four columns.

    python -m papers.kps.replicate plan                            what would run, and for how long
    python -m papers.kps.replicate train --column cifar10-lt-100   the published protocol on one column
    python -m papers.kps.replicate table                           the tables beside the published numbers

Reading "written" is the text; "released" is github.com/Keke921/KPSLoss. README.md has every difference.

cos_j: cosine between feature and class anchor j; n_j: training images of class j; r_j: radius; m_j: margin; s: scale of the
first stage (s_base), s_j: scale of class j under GA; y: label; C: classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.cli.main import main
from common.data.large_sets import find_large
from common.data.sets import SETS
from common.draws import with_draws
from common.methods.losses import cross_entropy, ldam, ldam_margins, shift_target
from common.methods.method import COSINE, Context, Method, Outputs
from common.methods.one_stage import (
    LARGE_MIXUP,
    arcface_row,
    bbn_row,
    cb_focal_row,
    ce_row,
    cosface_row,
    equalization_row,
    focal_row,
    la_post_hoc_row,
    la_row,
    ldam_drw_row,
    meta_rows,
    mislas_row,
)
from common.methods.sampling import deferred, effective_number_weights, shuffled, uniform_weights
from common.methods.two_stage import decoupling_row, tau_norm_row
from common.paper import Figure, Profile, Table, load_paper, published_column
from common.report.figures import Panel, class_counts_figure, curves, embedding, per_class_error
from common.report.results import Results
from common.report.waterfall import TEXT_TO_CODE
from common.spec import Column, Protocol, Reading, load_yaml
from papers.kps.boundaries import AXES, DECISION, ONES, angle_boundary, boundary_lines, cosine_boundary
from papers.kps.text_to_code import steps

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
READINGS: tuple[Reading, ...] = ("written", "released")


# ---------------------------------------------------------------- section 3.5.2: the lists r, m and s from the class counts


def kps_radii(n: "Tensor", n_base: float) -> "Tensor":
    """Eq. (3.27): r'_i = log(n_i n_base / n_min), r_i = r'_i / r'_min; the smallest class has radius 1. [classes]."""
    r = (n * n_base / n.min()).log()
    return r / r.min()


def kps_mirrored_radii(n: "Tensor", n_base: float) -> "Tensor":
    """Eq. (3.28): m'_i = r_max + 1 - r_i; the largest class has 1. [classes]."""
    r = kps_radii(n, n_base)
    return r.max() + 1 - r


def kps_margins(n: "Tensor", n_base: float, m_max: float) -> "Tensor":
    """Eq. (3.29): m_i = m'_i m_max / m'_max; the smallest class has margin m_max. [classes]."""
    m = kps_mirrored_radii(n, n_base)
    return m * (m_max / m.max())


def kps_scales(n: "Tensor", n_base: float, s_base: float) -> "Tensor":
    """Eq. (3.30): s_i = s_base m'_i; the largest class keeps the scale of the first stage. [classes]."""
    return s_base * kps_mirrored_radii(n, n_base)


# ---------------------------------------------------------------- sections 3.4.2 and 3.4.3: the loss and gradient adjustment


def kps_scores(cos: "Tensor", y: "Tensor", r: "Tensor", m: "Tensor") -> "Tensor":
    """Eq. (3.21): r_j cos_j - m_j [j = y], from cosines [..., batch, classes] and lists r, m [classes]."""
    return shift_target(r * cos, y, m[y])


def kps(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, n_base: float, m_max: float) -> "Tensor":
    """Eq. (3.16): cross-entropy of s (r_j cos_j - m_j [j = y]). [..., batch]."""
    n = context.counts
    return cross_entropy(s * kps_scores(outputs.logits, labels, kps_radii(n, n_base), kps_margins(n, n_base, m_max)), labels)


def kps_own_scale(s_list: "Tensor", y: "Tensor", epoch: "Tensor", s: float, start: int) -> "Tensor":
    """Algorithm 3.1: one scale s for all before `start`, then s_y of the sample's own class. [..., batch, 1]."""
    return s_list[y].where(epoch >= start, s).unsqueeze(-1)


def kps_ga(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, n_base: float, m_max: float,
           start: int) -> "Tensor":
    """Algorithm 3.1: Eq. (3.16), and from epoch `start` on Eq. (3.26), whose exponents all carry s_y. [..., batch]."""
    n = context.counts
    scores = kps_scores(outputs.logits, labels, kps_radii(n, n_base), kps_margins(n, n_base, m_max))
    return cross_entropy(kps_own_scale(kps_scales(n, n_base, s), labels, context.epoch, s, start) * scores, labels)


# ---------------------------------------------------------------- the released code's lists


def kps_flipped_radii(n: "Tensor", n_base: float) -> "Tensor":
    """The released m': the list r backwards, in the order of the classes. It is Eq. (3.28) in reverse order of size only
    where the classes are sorted by size, as in the long-tailed sets; elsewhere it is another class's radius. [classes]."""
    return kps_radii(n, n_base).flip(-1)


def kps_flipped_margins(n: "Tensor", n_base: float, m_max: float) -> "Tensor":
    """The released margins: the flipped radii, scaled so that the largest is m_max. [classes]."""
    m = kps_flipped_radii(n, n_base)
    return m * (m_max / m.max())


def kps_as_released(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, n_base: float,
                    m_max: float) -> "Tensor":
    """Eq. (3.16) with the released margins."""
    n = context.counts
    scores = kps_scores(outputs.logits, labels, kps_radii(n, n_base), kps_flipped_margins(n, n_base, m_max))
    return cross_entropy(s * scores, labels)


def kps_ga_as_released(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, n_base: float, m_max: float,
                       s_max: float, start: int) -> "Tensor":
    """Algorithm 3.1 with the released margins and scales: the flipped radii times s, held between s and s_max."""
    n = context.counts
    scores = kps_scores(outputs.logits, labels, kps_radii(n, n_base), kps_flipped_margins(n, n_base, m_max))
    s_list = (s * kps_flipped_radii(n, n_base)).clamp(s, s_max)
    return cross_entropy(kps_own_scale(s_list, labels, context.epoch, s, start) * scores, labels)


def kps_ga_flipped_margins(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, n_base: float, m_max: float,
                           start: int) -> "Tensor":
    """Between text and code: Algorithm 3.1 with the released margins and the scales of Eq. (3.30)."""
    n = context.counts
    scores = kps_scores(outputs.logits, labels, kps_radii(n, n_base), kps_flipped_margins(n, n_base, m_max))
    return cross_entropy(kps_own_scale(kps_scales(n, n_base, s), labels, context.epoch, s, start) * scores, labels)


# ---------------------------------------------------------------- params.yaml


@dataclass(frozen=True)
class Setting:
    """What decides the lists of a reading. s_max: the most that a class's scale may be; the text sets no limit."""

    n_base: float
    m_max: float
    s_base: float
    s_max: float | None


@dataclass(frozen=True)
class Toy:
    s: float
    largest_margin: float


@dataclass(frozen=True)
class Params:
    paper: Profile
    quick: Profile
    stand_ins: dict[str, str]
    written: Setting
    released: Setting
    ga_start: float
    effective_number: float
    mixup_alpha: float
    toy: Toy
    drawn_counts: tuple[int, ...]
    large_m_max: dict[str, float]
    large_rare: float


PARAMS: Params = load_yaml(HERE / "params.yaml", Params)
LARGE = PARAMS.paper.large.columns


# ---------------------------------------------------------------- section 3.5: the rows of Tables 3.2 and 3.4 to 3.6


def ga_epoch(protocol: Protocol) -> int:
    """I_0 of Algorithm 3.1, in epochs."""
    return round(PARAMS.ga_start * protocol.epochs)


def plain_loss(reading: Reading, setting: Setting) -> partial:
    """KPS without GA, with the lists of a reading and the numbers of a setting."""
    loss = kps if reading == "written" else kps_as_released
    return partial(loss, s=setting.s_base, n_base=setting.n_base, m_max=setting.m_max)


def ga_loss(reading: Reading, setting: Setting, start: int) -> partial:
    """KPS with GA from epoch `start` on."""
    numbers = {"s": setting.s_base, "n_base": setting.n_base, "m_max": setting.m_max, "start": start}
    if reading == "written":
        return partial(kps_ga, **numbers)
    return partial(kps_ga_as_released, **numbers, s_max=setting.s_max)


def own_rows(column: Column, reading: Reading, protocols: Mapping[str, Protocol]) -> list[Method]:
    """KPS in the forms of Tables 3.4 and 3.5, MiSLAS, and MiSLAS with KPS in its second stage.

    The backbone of the latter is MiSLAS's own first stage. Its second stage keeps MiSLAS's sampler and schedule; a cosine
    head, drawn anew, and the KPS loss replace the kept linear head, its learned factors and label-aware smoothing (gap).
    GA holds from its first epoch: there is nothing left to converge.
    """
    setting, protocol = getattr(PARAMS, reading), protocols[reading]
    ga, plain = ga_loss(reading, setting, ga_epoch(protocol)), plain_loss(reading, setting)
    drw = partial(deferred, before=uniform_weights, start=protocol.first_decay,
                  then=partial(effective_number_weights, beta=PARAMS.effective_number))
    # MiSLAS's configurations let the running statistics follow the second stage on CIFAR-100, not on CIFAR-10.
    second = replace(protocols[f"{reading}-mislas"], moving_statistics=column.dataset == "cifar100")
    mislas = mislas_row(reading, column, {**protocols, f"{reading}-mislas": second})
    return [
        Method("kps", reading, ga, COSINE),
        Method("kps-no-ga", reading, plain, COSINE),
        Method("kps-drw", reading, plain, COSINE, drw),
        Method("kps-mixup", reading, ga, COSINE, mixup=PARAMS.mixup_alpha),
        mislas,
        replace(mislas, name="mislas-kps", loss=ga_loss(reading, setting, 0), head=COSINE),
    ]


def baselines(column: Column, reading: Reading, protocol: Protocol) -> list[Method]:
    """The quoted rows of Table 3.2; the equalized and the logit-adjusted loss are printed for ratio 100 only.

    The released code puts every loss but cross-entropy on the cosine head, so its focal loss sees unscaled cosines.
    """
    focal = focal_row(reading)
    rows = [
        ce_row(reading),
        replace(focal, head=COSINE) if reading == "released" else focal,
        cosface_row(reading),
        arcface_row(reading),
        ldam_drw_row(reading, protocol),
        cb_focal_row(reading, SETS[column.dataset].classes),
        bbn_row(reading, protocol),
        *meta_rows(reading, protocol),
    ]
    if published_column(PARAMS.stand_ins, column).endswith("-100"):
        rows += [equalization_row(reading), la_row(reading)]
    return rows


def toy_rows(protocol: Protocol) -> list[Method]:
    """Section 3.5.5.1: the four losses of Figures 3.5 and 3.6 on three classes."""
    rows = [
        ce_row("written"),
        focal_row("written"),
        Method("ldam", "written", partial(ldam, s=PARAMS.toy.s, largest=PARAMS.toy.largest_margin), COSINE),
        Method("kps", "written", ga_loss("written", PARAMS.written, ga_epoch(protocol)), COSINE),
    ]
    return [replace(row, protocol=protocol, keep_features=True) for row in rows]


def large_rows(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """Table 3.3 and the columns of large sets in Tables 3.5 and 3.6: the text's setting alone.

    Without meta-learning: it holds out ten images of each class, and classes of iNaturalist 2018 have as few as two.
    """
    protocol, classes, natural = protocols["written"], find_large(column.dataset).classes, column.dataset == "inaturalist2018"
    decoupled = (tau_norm_row if natural else decoupling_row)("written", protocols)  # the variant whose number is printed
    ga = ga_loss("written", replace(PARAMS.written, m_max=PARAMS.large_m_max[column.dataset]), ga_epoch(protocol))
    mislas = mislas_row("written", column, protocols, LARGE_MIXUP)
    own = Method("kps", "written", ga, COSINE)
    rows = [
        ce_row("written"), focal_row("written"), cosface_row("written"), arcface_row("written"),
        ldam_drw_row("written", protocol), cb_focal_row("written", classes),
        equalization_row("written", threshold=PARAMS.large_rare / classes), la_row("written"), bbn_row("written", protocol),
        replace(decoupled, name="decoupling"), own, replace(own, name="kps-mixup", mixup=LARGE_MIXUP),
        mislas, replace(mislas, name="mislas-kps", loss=partial(ga.func, **{**ga.keywords, "start": 0}), head=COSINE),
    ]
    if column.backbone == "resnext50":
        rows = [row for row in rows if row.name in ("ce", "cosface", "arcface", "equalization", "decoupling", "kps")]
    not_printed = () if natural else ("cb-focal",)
    return [replace(row, keep_features=False) for row in rows if row.name not in not_printed]


def switches(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """One difference at a time, on one column; the thesis prints no such rows."""
    if published_column(PARAMS.stand_ins, column) != "cifar10-lt-100":
        return []
    rows = [la_post_hoc_row(reading, protocols[reading]) for reading in READINGS]
    for reading, other in (READINGS, READINGS[::-1]):
        m_max = getattr(PARAMS, other).m_max
        changed = ga_loss(reading, replace(getattr(PARAMS, reading), m_max=m_max), ga_epoch(protocols[reading]))
        rows.append(Method("kps", reading, changed, COSINE, variant=f"m_max={m_max}"))
    late = ga_loss("written", PARAMS.written, protocols["written"].first_decay)
    mislas_kps = own_rows(column, "written", protocols)[-1]
    return [*rows, Method("kps", "written", late, COSINE, variant="start=decay"),
            replace(focal_row("released"), variant="head=linear"),
            replace(mislas_kps, sampler=shuffled, variant="sampler=instance")]


def methods(column: Column, protocols: Mapping[str, Protocol]) -> tuple[Method, ...]:
    """Everything that is trained on a column. Text and code differ in the decay, so the quoted rows have both readings too."""
    if column.name in LARGE:
        return tuple(large_rows(column, protocols))
    if column.imbalance == "counts":
        return tuple(toy_rows(protocols["toy"]))
    rows = [row for reading in READINGS
            for row in (*baselines(column, reading, protocols[reading]), *own_rows(column, reading, protocols))]
    if column.name == "cifar10-lt-100":
        written, released = (own_rows(column, reading, protocols)[0] for reading in READINGS)
        rows += steps(written, replace(released, protocol=protocols["released"]), kps_ga_flipped_margins)
    return (*rows, *switches(column, protocols))


# ---------------------------------------------------------------- Figures 2.1 and 3.2 to 3.8


class Counts(np.ndarray):
    """Class counts with a logarithm, as tensors have one: to import torch takes longer than to draw all figures."""

    def log(self) -> np.ndarray:
        return np.log(self)


def two_class_lists() -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """Radii and margins of KPS, and margins of LDAM, for a head and a tail class of the sizes in params.yaml."""
    n, p = np.array(PARAMS.drawn_counts, dtype=float).view(Counts), PARAMS.written
    lists = (kps_radii(n, p.n_base), kps_margins(n, p.n_base, p.m_max), ldam_margins(n, PARAMS.toy.largest_margin))
    return tuple(tuple(values.tolist()) for values in lists)


def figure_2_1(results: Results):
    """Section 2.2.1: images per class of the long-tailed CIFAR sets."""
    sets = [(dataset, ratio) for dataset in ("cifar10", "cifar100") for ratio in (50, 100, 200)]
    return class_counts_figure([Column(dataset, "lt", ratio, "resnet32") for dataset, ratio in sets])


def figure_3_2(results: Results):
    """Without a margin the class boundaries are the decision boundary; LDAM shifts them by one amount everywhere."""
    _, _, m_ldam = two_class_lists()
    return curves("Class boundaries of softmax and LDAM", (
        Panel("softmax cross-entropy", *AXES, (DECISION,)),
        Panel("LDAM", *AXES, (DECISION, *boundary_lines(cosine_boundary, ONES, m_ldam))),
    ))


def figure_3_3(results: Results):
    """LDAM, KPS, and both."""
    r, m, m_ldam = two_class_lists()
    of_ldam, of_kps = boundary_lines(cosine_boundary, ONES, m_ldam, "LDAM, "), boundary_lines(cosine_boundary, r, m, "KPS, ")
    panels = (("LDAM", of_ldam), ("KPS", of_kps), ("both", [*of_ldam, *of_kps]))
    return curves("Margins of LDAM and of KPS between two classes",
                  tuple(Panel(title, *AXES, (DECISION, *lines)) for title, lines in panels))


def figure_3_4(results: Results):
    """Eq. (3.20) with the radii and margins on the angle, and on the cosine."""
    r, m, _ = two_class_lists()
    return curves("Angle penalty and cosine penalty", (
        Panel("angle penalty", *AXES, (DECISION, *boundary_lines(angle_boundary, r, m))),
        Panel("cosine penalty", *AXES, (DECISION, *boundary_lines(cosine_boundary, r, m))),
    ))


def feature_figure(*names: str) -> Callable:
    """Features of the training images of the three classes, projected onto their two principal axes."""
    toy = next(name for name, column in PARAMS.paper.columns.items() if column.imbalance == "counts")
    return partial(embedding, panels=tuple((name, toy, f"{name}@written", "train") for name in names), method="pca")


def error_figure(column: str, names: tuple[str, ...], readings: tuple[Reading, ...], groups: int | None = None) -> Callable:
    """Test error per class, or per group of classes, of some methods."""
    labels = tuple(f"{name}@{reading}" for name in names for reading in readings)
    return partial(per_class_error, published_column=column, labels=labels, groups=groups)


STRATEGIES = ("kps-no-ga", "kps-drw", "kps")
TECHNIQUES = ("ce", "focal", "cosface", "arcface", "ldam-drw", "kps")
FIGURES = (
    Figure("2.1", "Training images per class of the long-tailed CIFAR sets", figure_2_1),
    Figure("3.2", "Class boundaries of softmax cross-entropy and of LDAM", figure_3_2),
    Figure("3.3", "Margins of LDAM and of KPS between two classes", figure_3_3),
    Figure("3.4", "Angle penalty and cosine penalty", figure_3_4),
    Figure("3.5", "Features of CE and of focal loss on three classes", feature_figure("ce", "focal")),
    Figure("3.6", "Features of LDAM and of KPS on three classes", feature_figure("ldam", "kps")),
    Figure("3.7a", "Error per class of the optimisation strategies", error_figure("cifar10-lt-100", STRATEGIES, READINGS)),
    Figure("3.7b", "Error per group of ten classes of the optimisation strategies",
           error_figure("cifar100-lt-100", STRATEGIES, READINGS, 10)),
    Figure("3.8a", "Error per class of six methods, as written", error_figure("cifar10-lt-100", TECHNIQUES, ("written",))),
    Figure("3.8b", "Error per group of ten classes of six methods, as written",
           error_figure("cifar100-lt-100", TECHNIQUES, ("written",), 10)),
)

PAPER = with_draws(load_paper(
    HERE, PARAMS,
    title="Key Point Sensitive Loss for Long-tailed Visual Recognition",
    methods=methods,
    own=("kps", "kps-no-ga", "kps-drw", "kps-mixup", "mislas-kps"),
    main=("3.2",),
    tables=(
        Table("3.2", "Top-1 test errors of ResNet-32 on long-tailed CIFAR-10 and CIFAR-100"),
        Table("3.3", "Top-1 test errors on ImageNet-LT and iNaturalist 2018"),
        Table("3.4", "Optimisation strategies for KPS: none, deferred re-weighting, gradient adjustment"),
        Table("3.5", "KPS combined with mixup"),
        Table("3.6", "KPS combined with MiSLAS"),
    ),
    figures=(*FIGURES, TEXT_TO_CODE),
))

if __name__ == "__main__":
    main(PAPER)
