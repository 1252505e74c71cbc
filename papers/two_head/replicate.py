"""Improving Class Balancing at Both Feature Extractor and Classifier Head (Chen, Lu, Wang and Zheng).

Claim: an auxiliary head that gives each class a group of channels of its own (FBH) makes the feature extractor fair to
rare classes, and a classifier that divides large classes into clusters (CDH) has no bias towards them; together they beat
single-strategy baselines, and with mixup and re-weighting (Ours-Full) the state of the art (Tables 1, 2, 3).

    python -m papers.two_head.replicate plan                             what would run, and for how long
    python -m papers.two_head.replicate train --column cifar100-lt-100   the published protocol on one column
    python -m papers.two_head.replicate table                            Tables 1 to 5 beside the published numbers

No code was released, so "written" is the only reading. README.md lists every gap of the text and how it is filled here.

F_i: maps of image i with D channels; C: classes; z_i: output of FBH; n_c: training images of class c; u_c: clusters of
class c, u of the largest; K: all clusters; q_ik, p_ik: soft label and probability of cluster k.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli.main import main
from common.data.large_sets import LARGE as LARGE_SETS
from common.data.sets import SETS
from common.draws import with_draws
from common.methods.losses import cross_entropy
from common.methods.method import Clusters, Context, Head, Method, Net, Outputs, Start
from common.methods.one_stage import (
    LARGE_MIXUP,
    bbn_row,
    cb_focal_row,
    cb_rw_row,
    ce_row,
    drs_row,
    focal_row,
    hybrid_sc_row,
    ldam_drw_row,
    ldam_row,
    mislas_row,
    mixup_row,
)
from common.methods.sampling import deferred, effective_number_weights, uniform_weights
from common.methods.two_stage import lws_row, oltr_row
from common.paper import Figure, Profile, Table, load_paper, published_column
from common.report.figures import Panel, curves, find_methods
from common.report.results import Results
from common.report.sweep import Point, Sweep, sweep_figure
from common.spec import Column, Protocol, load_yaml

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
READING = "written"


# ---------------------------------------------------------------- section 2.1: feature balancing


def feature_loss(z: "Tensor", y: "Tensor") -> "Tensor":
    """Eq. (2): L_1 = l_CE(g(z_i), y_i). [..., batch, classes], [..., batch] -> [..., batch].

    Eq. (1), z_ic = GAP(F_ic * K_c), is `common.models.heads.BalancedHead`: the mean of a convolution is linear in the means
    of its input and of the input's shifts, so the group convolution is a masked product with those.
    """
    return cross_entropy(z, y)


def feature_balanced(outputs: Outputs, labels: "Tensor", context: Context, *, weight: float) -> "Tensor":
    """Table 4, second row: cross-entropy of the usual classifier + lambda L_1, lambda = `weight`."""
    return cross_entropy(outputs.logits, labels) + weight * feature_loss(outputs.balanced, labels)


# ---------------------------------------------------------------- section 2.2: class division


def cluster_numbers(counts: np.ndarray, *, u: int, rounding: str) -> np.ndarray:
    """Eq. (3): u_c = 1 + round((n_c - n_1) / (n_C - n_1) * (u - 1)), n_1 the smallest and n_C the largest class. [classes].

    rounding: "nearest" (a half goes up), as the text says, or "ceiling", as the brackets do. In whole numbers, so exact.
    """
    n = np.asarray(counts, np.int64)
    above, span = (n - n.min()) * (u - 1), max(int(n.max() - n.min()), 1)
    return 1 + (-(-above // span) if rounding == "ceiling" else (2 * above + span) // (2 * span))


def soft_labels(k: "Tensor", parent: "Tensor", alpha: float, dtype: Any) -> "Tensor":
    """q_ik of section 2.2: alpha on the image's own cluster, (1 - alpha) / (u_c - 1) on the others of its class; 1 on the
    only cluster of a class. k: cluster of each image [..., batch]; parent: class of each cluster [K] -> [..., batch, K]."""
    siblings = (parent[k].unsqueeze(-1) == parent).to(dtype)
    u_c = siblings.sum(-1, keepdim=True)
    own = alpha + (1 - alpha) * (u_c == 1).to(dtype)
    return (siblings * (1 - alpha) / (u_c - 1).clamp(min=1)).scatter(-1, k.unsqueeze(-1), own)


def division_loss(logits: "Tensor", k: "Tensor", parent: "Tensor", alpha: float) -> "Tensor":
    """Eq. (4): L_2 = -sum_k q_ik log p_ik. [..., batch, K], [..., batch] -> [..., batch]."""
    return -(soft_labels(k, parent, alpha, logits.dtype) * logits.log_softmax(-1)).sum(-1)


def class_divided(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float) -> "Tensor":
    """Table 4, third row: L_2 alone. labels: clusters."""
    return division_loss(outputs.logits, labels, context.parent, alpha)


def two_heads(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, weight: float) -> "Tensor":
    """Section 2.2: L = L_2 + lambda L_1, lambda = `weight`. labels: clusters."""
    l_1 = feature_loss(outputs.balanced, context.parent[labels])
    return division_loss(outputs.logits, labels, context.parent, alpha) + weight * l_1


def cluster_weights(counts: np.ndarray, epoch: int, *, beta: float, u: int, rounding: str) -> np.ndarray:
    """Effective-number weights of clusters, whose sizes are n_c / u_c; those of one class have the same. [classes]."""
    return effective_number_weights(counts / cluster_numbers(counts, u=u, rounding=rounding), epoch, beta)


# ---------------------------------------------------------------- params.yaml


@dataclass(frozen=True)
class Setting:
    u: int
    alpha: float
    weight: float
    rounding: str
    mixup: float
    beta: float


@dataclass(frozen=True)
class Tried:
    u: tuple[int, ...]
    weight: tuple[float, ...]
    alpha: tuple[float, ...]


@dataclass(frozen=True)
class Switches:
    weight_decay: float
    decay_factor: float


@dataclass(frozen=True)
class Baselines:
    scale: float
    largest_margin: float
    effective_number: float
    moving_statistics: tuple[str, ...]


@dataclass(frozen=True)
class Params:
    paper: Profile
    quick: Profile
    stand_ins: dict[str, str]
    switched: tuple[str, ...]
    sweeps: str
    channels: dict[str, int]
    written: Setting
    sweep: Tried
    switches: Switches
    baselines: Baselines
    large_deferred: int


PARAMS: Params = load_yaml(HERE / "params.yaml", Params)
LARGE = PARAMS.paper.large.columns
DEFAULT = PARAMS.written


# ---------------------------------------------------------------- the paper's own rows


def classes_of(column: Column) -> int:
    return (LARGE_SETS if column.dataset in LARGE_SETS else SETS)[column.dataset].classes


def adapter_channels(column: Column) -> int:
    """D' = C max(1, floor(D / C)): what a trunk adapter must have, so that D' / C is a whole number."""
    classes = classes_of(column)
    return classes * max(1, PARAMS.channels[column.backbone] // classes)


def balancing(column: Column) -> dict[str, Any]:
    """FBH where D / C is no whole number: uneven groups, or with fewer channels than classes a trunk adapter of C channels."""
    fits = PARAMS.channels[column.backbone] >= classes_of(column)
    return {"head": Head("linear", groups="uneven"), "net": Net("shifted", 0 if fits else adapter_channels(column))}


def division(u: int = DEFAULT.u, rounding: str = DEFAULT.rounding) -> Clusters:
    return Clusters(partial(cluster_numbers, u=u, rounding=rounding))


def fbh(column: Column) -> Method:
    return Method("fbh", READING, partial(feature_balanced, weight=DEFAULT.weight), **balancing(column))


def cdh(alpha: float = DEFAULT.alpha, **divided) -> Method:
    return Method("cdh", READING, partial(class_divided, alpha=alpha), clusters=division(**divided))


def two_head(column: Column, weight: float = DEFAULT.weight) -> Method:
    """Ours: both heads."""
    loss = partial(two_heads, alpha=DEFAULT.alpha, weight=weight)
    return Method("two-head", READING, loss, clusters=division(), **balancing(column))


def two_head_full(column: Column, start: int) -> Method:
    """Ours-Full: mixup, and from epoch `start` on class weights by effective number, on both losses."""
    then = partial(effective_number_weights, beta=DEFAULT.beta)
    return replace(two_head(column), name="two-head-full", mixup=DEFAULT.mixup,
                   weights=partial(deferred, before=uniform_weights, then=then, start=start))


def summed(method: Method, protocol: Protocol) -> Method:
    """The same trained network with the other way from clusters to classes: probabilities are summed. It is only tested."""
    return replace(method, variant="mapping=sum", clusters=replace(method.clusters, pooling="sum"),
                   head=replace(method.head, keep=True), start=Start(replace(method, protocol=protocol)),
                   protocol=protocol.only_tested())


# ---------------------------------------------------------------- section 3: which rows a column has


SINGLE_ROWS = ("ce", "mixup", "drs", "ldam-drw", "mislas", "two-head-full")  # Table 5
NOT_PRINTED = {"tiny-imagenet": ("cb-rw", "cb-focal", "hybrid-sc")}  # Table 2


def second_setting(column: Column, protocols: Mapping[str, Protocol]) -> Protocol:
    """That of MiSLAS's second stage, which on some sets moves the batch statistics of its backbone."""
    return replace(protocols[f"{READING}-mislas"], moving_statistics=column.dataset in PARAMS.baselines.moving_statistics)


def baselines(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    p, protocol = PARAMS.baselines, protocols[READING]
    margins = {"s": p.scale, "largest": p.largest_margin}
    return [
        ce_row(READING), focal_row(READING), mixup_row(READING),
        cb_rw_row(READING, beta=p.effective_number),
        ldam_row(READING, **margins),
        cb_focal_row(READING, SETS[column.dataset].classes, beta=p.effective_number),
        drs_row(READING, protocol.first_decay),
        ldam_drw_row(READING, protocol, **margins, beta=p.effective_number),
        bbn_row(READING, protocol),
        mislas_row(READING, column, {**protocols, f"{READING}-mislas": second_setting(column, protocols)}),
        hybrid_sc_row(READING, protocol),
    ]


def sweeps(column: Column) -> list[Method]:
    """Figure 4 and section 3.3: u of CDH alone, the clustering of both heads, and what the text leaves out, lambda and alpha."""
    tried, features_of = PARAMS.sweep, Start(ce_row(READING), takes="clusters")
    return [
        *(replace(cdh(u=u), variant=f"u={u}") for u in tried.u),
        *(replace(two_head(column), variant=f"clustering={how}", clusters=replace(division(), by=how), start=features_of)
          for how in ("kmeans", "hierarchical")),
        *(replace(two_head(column, weight), variant=f"lambda={weight}") for weight in tried.weight),
        *(replace(cdh(alpha), variant=f"alpha={alpha}") for alpha in tried.alpha),
    ]


def with_adapter(method: Method, column: Column) -> Method:
    return replace(method, net=replace(method.net, adapter=adapter_channels(column)), variant="adapter=trunk")


def controls(column: Column) -> list[Method]:
    """CE and the class-division head behind the trunk adapter: what rows with FBH must be compared with where they have one."""
    return [with_adapter(method, column) for method in (replace(ce_row(READING), keep_features=False), cdh())]


def switches(column: Column, protocol: Protocol) -> list[Method]:
    """Every gap of the text filled the other way, one at a time."""
    s, start, both = PARAMS.switches, protocol.first_decay, two_head(column)
    full = two_head_full(column, start)
    weights = partial(cluster_weights, beta=DEFAULT.beta, u=DEFAULT.u, rounding=DEFAULT.rounding)
    recipes = {"weight-decay": replace(protocol, weight_decay=s.weight_decay),
               "decay-factor": replace(protocol, decay_factor=s.decay_factor)}
    rows = [
        replace(cdh(rounding="ceiling"), variant="rounding=ceiling"),
        replace(both, net=replace(both.net, kind="plain"), variant="kernel=1x1"),
        replace(full, weights=partial(effective_number_weights, beta=DEFAULT.beta), variant="reweight=always"),
        replace(full, weights=partial(deferred, before=uniform_weights, then=weights, start=start), variant="reweight=clusters"),
        *(replace(method, protocol=recipe, variant=f"recipe={name}")
          for name, recipe in recipes.items() for method in (ce_row(READING), both)),
    ]
    if both.net.adapter:  # fewer channels than classes: classes may share channels instead
        shared = {"net": Net("shifted"), "head": Head("linear", groups="cyclic"), "variant": "groups=cyclic"}
        return [*rows, *(replace(method, **shared) for method in (fbh(column), both))]
    dropped = {"head": Head("linear", groups="drop"), "variant": "groups=drop"}
    pair = (fbh(column), both)
    return [*rows, *(replace(m, **dropped) for m in pair), *(with_adapter(m, column) for m in pair)]


def large_rows(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """Table 3: ImageNet-LT."""
    p, start, protocol = PARAMS.baselines, PARAMS.large_deferred, protocols[READING]
    margins = {"s": p.scale, "largest": p.largest_margin}
    rows = [
        ce_row(READING), focal_row(READING), mixup_row(READING, LARGE_MIXUP), ldam_row(READING, **margins),
        oltr_row(READING, column, protocols), two_head(column), drs_row(READING, start),
        ldam_drw_row(READING, protocol, **margins, beta=p.effective_number, start=start), lws_row(READING, protocols),
        mislas_row(READING, column, protocols, LARGE_MIXUP), replace(two_head_full(column, start), mixup=LARGE_MIXUP),
    ]
    return [replace(row, keep_features=False) for row in rows]


def second_stage(column: Column, protocols: Mapping[str, Protocol]) -> Method:
    """Ours-Full with its re-weighting in a second stage, as MiSLAS has its re-balancing: the heads alone, from the weights
    and clusters of both heads trained with mixup."""
    first = replace(two_head(column), mixup=DEFAULT.mixup, protocol=protocols[READING], variant=f"mixup={DEFAULT.mixup:g}")
    return replace(first, name="two-head-full", variant="reweight=stage2", mixup=0.0, head=replace(first.head, keep=True),
                   weights=partial(effective_number_weights, beta=DEFAULT.beta), start=Start(first),
                   protocol=second_setting(column, protocols))


def methods(column: Column, protocols: Mapping[str, Protocol]) -> tuple[Method, ...]:
    """Everything that is trained on a column: Tables 1, 2 and 4, or Table 5; on some the sweeps and the switches too."""
    if column.name in LARGE:
        return tuple(large_rows(column, protocols))
    protocol, name = protocols[READING], published_column(PARAMS.stand_ins, column)
    full = two_head_full(column, protocol.first_decay)
    others = baselines(column, protocols)
    if column.backbone not in ("resnet32", "resnet8", "resnet18"):
        return tuple(m for m in (*others, full) if m.name in SINGLE_ROWS)
    left_out = NOT_PRINTED.get(column.dataset, ())
    own = [fbh(column), cdh(), two_head(column), full]
    rows = [m for m in others if m.name not in left_out] + own + [summed(m, protocol) for m in own[1:]]
    rows += controls(column) if full.net.adapter or name in PARAMS.switched else []
    rows += sweeps(column) if name == PARAMS.sweeps else []
    rows += [*switches(column, protocol), second_stage(column, protocols)] if name in PARAMS.switched else []
    return tuple(rows)


# ---------------------------------------------------------------- Figures 3 and 4


def figure_3(results: Results):
    """Training images, recall and classifier norm of each class: CE and both heads. A class of several clusters has the mean
    of their norms (gap: the figure does not say)."""
    runs = find_methods(results, PARAMS.sweeps, ("ce@written", "two-head@written"))
    if isinstance(runs, str):
        return runs
    (ce, ours), words, source = runs
    counts = ce.done[0]["counts"]
    order = sorted(range(len(counts)), key=lambda c: -counts[c])

    def mean(arm, read) -> list[float]:
        return [float(np.mean([read(record)[c] for record in arm.done])) for c in order]

    x = list(range(1, len(counts) + 1))
    recalls = [(arm.method.name, x, mean(arm, lambda r: r["per_class_accuracy"])) for arm in (ce, ours)]
    norms = [(arm.method.name, x, mean(arm, lambda r: r["norms"]["classifier"])) for arm in (ce, ours)]
    where = "class, largest first"
    panels = (Panel("", where, "training images", (("images", x, [counts[c] for c in order]),)),
              Panel("", where, "recall (%)", tuple(recalls)),
              Panel("", where, "norm of the classifier, CE", (norms[0],)),
              Panel("", where, "norm of the classifier, both heads", (norms[1],)))
    return curves(f"CE and both heads on {words}", panels, source=source, across=2)


def figure_4(results: Results):
    """Accuracy of CDH alone over u, and of both heads over the clustering."""
    us = sorted({DEFAULT.u, *PARAMS.sweep.u})
    left = [Point(str(u), "cdh@written" if u == DEFAULT.u else f"cdh[u={u}]@written") for u in us]
    right = [Point("random", "two-head@written"), *(Point(how, f"two-head[clustering={how}]@written")
                                                    for how in ("kmeans", "hierarchical"))]
    panels = (Sweep("class-division head alone", "cluster number u", left), Sweep("both heads", "clustering", right))
    return sweep_figure(results, PARAMS.sweeps, panels)


PAPER = with_draws(load_paper(
    HERE, PARAMS,
    title="Improving Class Balancing at Both Feature Extractor and Classifier Head",
    methods=methods,
    own=("two-head", "two-head-full", "fbh", "cdh"),
    main=("1", "4"),
    tables=(
        Table("1", "Top-1 accuracy of ResNet-32 on long-tailed CIFAR-10 and CIFAR-100"),
        Table("2", "Top-1 accuracy of ResNet-18 on long-tailed Tiny-ImageNet"),
        Table("3", "Top-1 accuracy of ResNeXt-50 on ImageNet-LT"),
        Table("4", "The two heads alone and together, on CIFAR-100 and Tiny-ImageNet"),
        Table("5", "Top-1 accuracy of other backbones on CIFAR-100 with ratio 100"),
    ),
    figures=(
        Figure("3", "Training images, recall and classifier norm of each class", figure_3),
        Figure("4", "Accuracy over the number of clusters and over the clustering", figure_4),
    ),
))

if __name__ == "__main__":
    main(PAPER)
