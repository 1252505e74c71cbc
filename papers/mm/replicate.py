"""Learning Imbalanced Datasets with Maximum Margin Loss (H. Kang, T. Vu, C. D. Yoo; KAIST).

Claim: a margin that shrinks exponentially with the gap between a sample's own logit and its strongest rival, larger
for misclassified samples than for correct ones, lowers the error on imbalanced CIFAR-10/100; with LDAM's class
margins and deferred re-weighting (MM-LDAM-DRW) it has the lowest error of Table 1 in every column.

    python -m papers.mm.replicate plan                            what would run, and for how long
    python -m papers.mm.replicate train --column cifar10-lt-100   the published protocol on one column
    python -m papers.mm.replicate table                           Tables 1 to 3 beside the published numbers

Reading "written" is the text; "released" is github.com/ihaeyong/Maximum-Margin-LDAM. README.md has every difference.

z_j: logit of class j, here the cosine between feature and class weight (section 3.1); y: label; n_j: training images
of class j; s: scale; delta+ / delta-: parameters of the hard positive / negative margin; beta: delta+ / delta-.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli.main import main
from common.data.sets import SETS
from common.draws import with_draws
from common.methods.losses import (
    cross_entropy,
    focal,
    hinge,
    largest_other,
    ldam,
    ldam_hinge,
    ldam_margins,
    shift_target,
    sigmoid_focal,
    softmax_cross_entropy,
    target,
    uniform_margin,
)
from common.methods.method import COSINE, Context, Head, Method, Outputs, Start
from common.methods.one_stage import ce_row
from common.methods.path import path
from common.methods.sampling import (
    class_balanced,
    deferred,
    effective_number_sampler,
    effective_number_weights,
    inverse_counts,
    inverse_weights,
    shuffled,
    uniform_weights,
)
from common.paper import Figure, Profile, Table, load_paper, published_column
from common.report.figures import per_class_error
from common.report.results import Results
from common.report.waterfall import TEXT_TO_CODE
from common.spec import Column, Protocol, load_yaml

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------- section 3.1: the maximum margin loss


def hard_positive_margin(z_y: "Tensor", z_rival: "Tensor", delta_plus: "Tensor | float") -> "Tensor":
    """Eq. (2): Delta+_y = exp(-max(z_y - max_{j != y} z_j, 0) - delta+). All [..., batch]."""
    return (-(z_y - z_rival).clamp(min=0) - delta_plus).exp()


def hard_negative_margin(z_y: "Tensor", z_rival: "Tensor", delta_minus: "Tensor | float") -> "Tensor":
    """Eq. (3): Delta-_y = exp(-max(max_{j != y} z_j - z_y, 0) - delta-). All [..., batch]."""
    return (-(z_rival - z_y).clamp(min=0) - delta_minus).exp()


def maximum_margin(z: "Tensor", y: "Tensor", delta_plus: "Tensor | float", delta_minus: "Tensor | float") -> "Tensor":
    """Eq. (1): Delta_y^MM is Delta+_y where f(x) = y and Delta-_y elsewhere. [..., batch, classes] -> [..., batch].

    A constant for the gradient, as a margin is (gap: the text does not say; the released code detaches it).
    """
    z_y, z_rival = target(z, y).detach(), largest_other(z, y).detach()
    correct = z_y >= z_rival
    return hard_positive_margin(z_y, z_rival, delta_plus).where(correct, hard_negative_margin(z_y, z_rival, delta_minus))


def mm(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, delta: float, beta: float) -> "Tensor":
    """Eq. (4) with Eq. (5): cross-entropy of s (z_j - Delta_y^MM [j = y]), delta- = delta and delta+ = delta- * beta.

    The margins are those of the unscaled cosines (gap: the text leaves open on which side of s they are taken).
    """
    margin = maximum_margin(outputs.logits, labels, delta * beta, delta)
    return cross_entropy(s * shift_target(outputs.logits, labels, margin), labels)


def mm_scaled_margin(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, delta: float, beta: float) -> "Tensor":
    """The other reading of section 3.1: z in Eqs. (1) to (4) is the scaled logit s cos throughout."""
    z = s * outputs.logits
    return cross_entropy(shift_target(z, labels, maximum_margin(z, labels, delta * beta, delta)), labels)


# ---------------------------------------------------------------- section 3.2: class-distribution-aware margins


def class_margins(n: "Tensor", largest: float) -> "Tensor":
    """gamma_j = C / n_j^(1/4) (text before Eq. 6), with C such that the smallest class has `largest`. [classes]."""
    return ldam_margins(n, largest)


def mm_ldam(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, delta: float, beta: float,
            largest: float) -> "Tensor":
    """Eq. (4) with delta+_j = (delta- - gamma_j) beta (Eq. 6) and delta-_j = delta- - gamma_j (Eq. 7), j = y."""
    delta_minus = delta - class_margins(context.counts, largest)[labels]
    margin = maximum_margin(outputs.logits, labels, delta_minus * beta, delta_minus)
    return cross_entropy(s * shift_target(outputs.logits, labels, margin), labels)


# ---------------------------------------------------------------- the released code's margins


def margin_as_released(x: "Tensor", y: "Tensor", delta_minus: "Tensor | float", beta: float) -> "Tensor":
    """The released Delta [..., batch] on cosines x: it reads every sample's "own" cosine from the class of the batch's
    first sample, lets the rival be at least 0 (the own entry is set to 0), and is 0 where the two are equal."""
    first = y[..., :1].unsqueeze(-1).expand(*y.shape, 1)
    p = x.gather(-1, first).squeeze(-1).detach()
    q = x.scatter(-1, y.unsqueeze(-1), 0.0).amax(-1).detach()
    correct, wrong = (-(p - q) - delta_minus * beta).exp(), (-(q - p) - delta_minus).exp()
    return correct.where(p > q, wrong).where(p != q, 0.0)


def mm_as_released(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, delta: float,
                   beta: float) -> "Tensor":
    """The released MM: `margin_as_released` on the target's cosine, then the scale."""
    margin = margin_as_released(outputs.logits, labels, delta, beta)
    return cross_entropy(s * shift_target(outputs.logits, labels, margin), labels)


def mm_ldam_as_released(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, delta: float, beta: float,
                        largest: float) -> "Tensor":
    """The released MM-LDAM: delta- less the class margin of the sample's own class."""
    delta_minus = delta - class_margins(context.counts, largest)[labels]
    margin = margin_as_released(outputs.logits, labels, delta_minus, beta)
    return cross_entropy(s * shift_target(outputs.logits, labels, margin), labels)


# ---------------------------------------------------------------- between the text's margins and the code's


def margin_between(x: "Tensor", y: "Tensor", delta_plus: float, delta_minus: float, own: str) -> "Tensor":
    """`maximum_margin` with the released rival (the own entry is set to 0, so it is at least 0) and, where own is "first", the
    released own cosine (of the class of the batch's first sample); equality still counts as correct. [..., batch]."""
    whose = y if own == "label" else y[..., :1].expand_as(y)
    p, q = target(x, whose).detach(), x.scatter(-1, y.unsqueeze(-1), 0.0).amax(-1).detach()
    return hard_positive_margin(p, q, delta_plus).where(p >= q, hard_negative_margin(p, q, delta_minus))


def mm_between(outputs: Outputs, labels: "Tensor", context: Context, *, s: float, delta: float, beta: float,
               own: str) -> "Tensor":
    """Eq. (4) with `margin_between`."""
    margin = margin_between(outputs.logits, labels, delta * beta, delta, own)
    return cross_entropy(s * shift_target(outputs.logits, labels, margin), labels)


# ---------------------------------------------------------------- params.yaml


@dataclass(frozen=True)
class Grid:
    """A column of Table 2 or 3: delta-, the betas tried, the one in bold."""

    delta: float
    betas: tuple[float, ...]
    best: float


@dataclass(frozen=True)
class Setting:
    s: float
    delta: float
    beta: float


@dataclass(frozen=True)
class Written:
    scale: float
    largest_margin: float


@dataclass(frozen=True)
class Released:
    largest_margin: float
    settings: dict[str, dict[str, Setting]]


@dataclass(frozen=True)
class Baselines:
    focal_gamma: float
    effective_number: float
    scale: float
    largest_margin: float
    uniform_margin: float


@dataclass(frozen=True)
class Params:
    paper: Profile
    quick: Profile
    stand_ins: dict[str, str]
    grids: dict[str, Grid]
    written: Written
    released: Released
    baselines: Baselines


PARAMS: Params = load_yaml(HERE / "params.yaml", Params)


# ---------------------------------------------------------------- section 4: the rows of Tables 1, 2 and 3


def drw(protocol: Protocol, then) -> partial:
    """Algorithm 1: all weights 1 before the learning rate is annealed (T_0), `then` from it on."""
    return partial(deferred, before=uniform_weights, then=then, start=protocol.first_decay)


def drw_as_written(protocol: Protocol) -> dict[str, Any]:
    """Algorithm 1 with the re-weighting of section 4 (2): from T_0 on "the inverse of the sample size of its class",
    re-normalised "to make the weights 1 on average in the mini-batch"."""
    return {"head": COSINE, "weights": drw(protocol, inverse_weights)}


def drw_of_algorithm_1(protocol: Protocol) -> dict[str, Any]:
    """Algorithm 1, line 9, to the letter: (1 / m) sum of L / n_y from T_0 on."""
    return {"head": COSINE, "weights": drw(protocol, inverse_counts), "reduction": "batch"}


def drw_as_released(protocol: Protocol) -> dict[str, Any]:
    """The inverse effective number from T_0 on, divided by the batch's sum of weights."""
    then = partial(effective_number_weights, beta=PARAMS.baselines.effective_number)
    return {"head": COSINE, "weights": drw(protocol, then)}


def drs(protocol: Protocol) -> partial:
    """Deferred re-sampling: every image once an epoch before T_0, every class equally often from it on."""
    return partial(deferred, before=shuffled, then=class_balanced, start=protocol.first_decay)


def baselines(column: Column, protocol: Protocol) -> list[Method]:
    """The quoted rows of Table 1. LDAM without re-weighting is trained with both scales, the text's s = 10 and its own code's
    s = 30; LDAM-DRW with its own code's, and with both readings of DRW."""
    p, w = PARAMS.baselines, PARAMS.written
    effective = partial(effective_number_weights, beta=p.effective_number)
    ldam_10, ldam_30 = (partial(ldam, s=s, largest=p.largest_margin) for s in (w.scale, p.scale))
    prior = Head("linear", bias=-math.log(SETS[column.dataset].classes - 1), decay_bias=False)
    rotation = Method("ssp-rotation", "written", softmax_cross_entropy, task="rotation")
    as_released = {"loss": ldam_30, **drw_as_released(protocol)}
    rows = [
        ce_row("written"),
        Method("focal", "written", partial(focal, gamma=p.focal_gamma)),
        Method("ldam", "written", ldam_10, COSINE),
        Method("ldam", "released", ldam_30, COSINE),
        Method("cb-rs", "written", softmax_cross_entropy,
               sampler=partial(effective_number_sampler, beta=p.effective_number)),
        Method("cb-rw", "written", softmax_cross_entropy, weights=effective),
        Method("cb-focal", "written", partial(sigmoid_focal, gamma=p.focal_gamma), prior, effective, reduction="batch"),
        Method("hg-drs", "written", partial(hinge, s=p.scale, m=p.uniform_margin), COSINE, sampler=drs(protocol)),
        Method("ldam-hg-drs", "written", partial(ldam_hinge, s=p.scale, largest=p.largest_margin), COSINE,
               sampler=drs(protocol)),
        Method("m-drw", "written", partial(uniform_margin, s=p.scale, m=p.uniform_margin), **drw_as_released(protocol)),
        Method("ldam-drw", "written", ldam_30, **drw_as_written(protocol)),
        Method("ldam-drw", "released", **as_released),
        Method("ldam-drw-ssp", "written", **as_released, start=Start(rotation)),
    ]
    not_printed = ("hg-drs", "ldam-hg-drs") if column.dataset == "cifar100" else ()
    return [r for r in rows if r.name not in not_printed]


def own_rows(column: Column, protocol: Protocol) -> list[Method]:
    """MM, MM-DRW and MM-LDAM-DRW of Table 1, and the grid of Table 2 or 3, in both readings.

    MM and MM-LDAM-DRW take the delta- and beta in bold of their column, as MM-DRW does.
    """
    w, r, grid = PARAMS.written, PARAMS.released, PARAMS.grids[column.name]
    best = {"s": w.scale, "delta": grid.delta, "beta": grid.best}
    inverse, effective = drw_as_written(protocol), drw_as_released(protocol)
    theirs = {name: vars(setting) for name, setting in r.settings[column.name].items()}
    rows = [
        Method("mm", "written", partial(mm, **best), COSINE),
        Method("mm", "released", partial(mm_as_released, **theirs["mm"]), COSINE),
        Method("mm-drw", "written", partial(mm, **best), **inverse),
        Method("mm-drw", "released", partial(mm_as_released, **theirs["mm-drw"]), **effective),
        Method("mm-ldam-drw", "written", partial(mm_ldam, **best, largest=w.largest_margin), **inverse),
        Method("mm-ldam-drw", "released",
               partial(mm_ldam_as_released, **theirs["mm-ldam-drw"], largest=r.largest_margin), **effective),
    ]
    for beta in grid.betas:
        variant, point = f"beta={beta};delta={grid.delta}", {"delta": grid.delta, "beta": beta}
        rows.append(Method("mm-drw", "written", partial(mm, s=w.scale, **point), **inverse, variant=variant))
        loss = partial(mm_as_released, s=theirs["mm-drw"]["s"], **point)
        rows.append(Method("mm-drw", "released", loss, **effective, variant=variant))
    return rows


def switches(column: Column, protocol: Protocol) -> list[Method]:
    """One difference between the readings at a time, for MM-DRW on one column; the paper prints no such rows."""
    if published_column(PARAMS.stand_ins, column) != "cifar10-lt-100":
        return []
    w, grid, theirs = PARAMS.written, PARAMS.grids[column.name], vars(PARAMS.released.settings[column.name]["mm-drw"])
    best, drw_written = {"s": w.scale, "delta": grid.delta, "beta": grid.best}, drw_as_written(protocol)
    return [
        Method("mm-drw", "written", partial(mm_scaled_margin, **best), **drw_written, variant="margin=scaled"),
        Method("mm-drw", "written", partial(mm, **best), **drw_of_algorithm_1(protocol), variant="weights=algorithm-1"),
        Method("mm-drw", "released", partial(mm, **theirs), **drw_as_released(protocol), variant="margin=equations"),
    ]


def text_to_code(column: Column, protocol: Protocol) -> list[Method]:
    """From the written MM-DRW to the released one. Text and code agree on delta- and beta of this row and column."""
    if column.name != "cifar10-lt-100":
        return []
    grid, theirs = PARAMS.grids[column.name], vars(PARAMS.released.settings[column.name]["mm-drw"])
    best = {"s": PARAMS.written.scale, "delta": grid.delta, "beta": grid.best}
    return path(
        Method("mm-drw", "written", partial(mm, **best), **drw_as_written(protocol)),
        ("scale", {"loss": partial(mm, **theirs)}),
        ("weights", {"weights": drw_as_released(protocol)["weights"]}),
        ("rival", {"loss": partial(mm_between, **theirs, own="label")}),
        ("own-logit", {"loss": partial(mm_between, **theirs, own="first")}),
        ("equality", {"loss": partial(mm_as_released, **theirs)}),
    )


def methods(column: Column, protocols: Mapping[str, Protocol]) -> tuple[Method, ...]:
    """Everything that is trained on a column: the rows of Table 1, the grid of Table 2 or 3, the switches, and the way from the
    text to the code. Text and code agree on the setting."""
    protocol = protocols["written"]
    return (*baselines(column, protocol), *own_rows(column, protocol), *switches(column, protocol),
            *text_to_code(column, protocol))


# ---------------------------------------------------------------- Figure 3


def figure_3(results: Results):
    """Per-class error of CB-RW and MM-DRW under step imbalance (ratio 100 in the paper)."""
    published = "cifar10-step-100"
    column = published if results.profile == "paper" else next((q for q, p in PARAMS.stand_ins.items() if p == published), None)
    if column is None:
        return f"no quick column stands in for {published}"
    return per_class_error(results, column, ("cb-rw", "mm-drw"))


PAPER = with_draws(load_paper(
    HERE, PARAMS,
    title="Learning Imbalanced Datasets with Maximum Margin Loss",
    methods=methods,
    own=("mm", "mm-drw", "mm-ldam-drw"),
    main=("1",),
    tables=(
        Table("1", "Top-1 validation errors of ResNet-32 on imbalanced CIFAR-10 and CIFAR-100"),
        Table("2", "Hyper-parameters beta / delta- of MM-DRW on CIFAR-10"),
        Table("3", "Hyper-parameters beta / delta- of MM-DRW on CIFAR-100"),
    ),
    figures=(Figure("3", "Per-class top-1 error under step imbalance", figure_3), TEXT_TO_CODE),
))

if __name__ == "__main__":
    main(PAPER)
