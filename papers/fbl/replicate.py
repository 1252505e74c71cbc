"""Feature-Balanced Loss for Long-Tailed Visual Recognition: chapter 4 of M. Li's thesis (ICME 2022).

Claim: a stimulus lambda_j / |f| that is taken from every logit, strong for tail classes and growing over training,
makes the features of tail classes longer, and so lifts tail accuracy at little cost to the head; on CIFAR-10/100-LT this
beats LDAM-DRW, BBN and logit adjustment (Table 4.2), and among five curricula the parabolic one is best (Table 4.4).

    python -m papers.fbl.replicate plan                            what would run, and for how long
    python -m papers.fbl.replicate train --column cifar10-lt-100   the published protocol on one column
    python -m papers.fbl.replicate table                           Tables 4.2 to 4.7 beside the published numbers

Reading "written" is the text; "released" is github.com/juyongjiang/FBL. README.md has every difference.

z_j: logit of class j of a linear head; f: feature, the input of the head; y: label; n_j: training images of class j;
lambda_j: stimulus of class j; alpha(t): its strength in epoch t of T.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli.main import main
from common.data.large_sets import find_large
from common.draws import with_draws
from common.methods.losses import cross_entropy
from common.methods.method import Context, Method, Outputs
from common.methods.one_stage import bbn_row, ce_row, hybrid_sc_row, la_post_hoc_row, la_row, ldam_drw_row
from common.methods.path import path
from common.methods.two_stage import decoupling_row, disalign_row
from common.paper import Figure, Profile, Table, load_paper, published_column
from common.report.figures import feature_norms
from common.report.results import Results
from common.report.waterfall import TEXT_TO_CODE
from common.spec import Column, Protocol, Reading, load_yaml

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
EPS = 1e-12  # beside |f|, as in the released code: a feature of zeros must not give infinities; else below float32's resolution


# ---------------------------------------------------------------- section 4.3.3: the curricula, Eq. (4.7) and Table 4.4


def fbl_linear_decrease(t: "Tensor", *, T: float) -> "Tensor":
    """1 - t / T."""
    return 1 - t / T


def fbl_linear_increase(t: "Tensor", *, T: float) -> "Tensor":
    """t / T."""
    return t / T


def fbl_sine_increase(t: "Tensor", *, T: float) -> "Tensor":
    """sin(t / T * pi / 2)."""
    return (t / T * (math.pi / 2)).sin()


def fbl_cosine_increase(t: "Tensor", *, T: float) -> "Tensor":
    """1 - cos(t / T * pi / 2)."""
    return 1 - (t / T * (math.pi / 2)).cos()


def fbl_parabolic_increase(t: "Tensor", *, T: float) -> "Tensor":
    """Eq. (4.7): (t / T)^2."""
    return (t / T) ** 2


# ---------------------------------------------------------------- section 4.3.2: the feature-balanced loss


def fbl_stimulus(n: "Tensor") -> "Tensor":
    """Eq. (4.4): lambda_j = log n_max - log n_j; 0 for the largest class. [classes]."""
    return n.max().log() - n.log()


def fbl_balanced_logits(z: "Tensor", f: "Tensor", stimulus: "Tensor", alpha: "Tensor") -> "Tensor":
    """Eq. (4.6): z^b_j = z_j - alpha lambda_j / |f|. [..., batch, classes].

    The gradient reaches |f|: that is what makes the features of tail classes longer.
    """
    return z - alpha * stimulus / (f.norm(dim=-1, keepdim=True) + EPS)


def fbl(outputs: Outputs, labels: "Tensor", context: Context, *, strength: float, curriculum: Callable) -> "Tensor":
    """Eq. (4.8): cross-entropy of z^b, with alpha(t) = strength * curriculum(t), t from 1 to T (Algorithm 4.1, line 2).

    strength: the factor that Eq. (4.7), "proportional to", leaves open; see `strength`.
    """
    alpha = strength * curriculum(context.epoch + 1)
    return cross_entropy(fbl_balanced_logits(outputs.logits, outputs.features, fbl_stimulus(context.counts), alpha), labels)


def fbl_as_released(outputs: Outputs, labels: "Tensor", context: Context, *, strength: float,
                    curriculum: Callable) -> "Tensor":
    """The released loss: lambda is divided by its largest value, and t counts from 0."""
    stimulus = fbl_stimulus(context.counts)
    alpha = strength * curriculum(context.epoch)
    z = fbl_balanced_logits(outputs.logits, outputs.features, stimulus / stimulus.max().clamp(min=EPS), alpha)
    return cross_entropy(z, labels)


# ---------------------------------------------------------------- params.yaml


@dataclass(frozen=True)
class Baselines:
    scale: float
    largest_margin: float
    effective_number: float
    tau: float


@dataclass(frozen=True)
class Params:
    """strength, large_strength: alpha lambda_j of the smallest class where the curriculum is 1, on CIFAR and on the large sets.
    constant_from: the ratio whose alpha the variant `strength=constant` has at another one."""

    paper: Profile
    quick: Profile
    stand_ins: dict[str, str]
    early: dict[str, int]
    strength: float
    large_strength: float
    constant_from: int
    baselines: Baselines


PARAMS: Params = load_yaml(HERE / "params.yaml", Params)
LARGE = PARAMS.paper.large.columns


# ---------------------------------------------------------------- section 4.4: the rows of Tables 4.2 and 4.4 to 4.7

READINGS: tuple[Reading, ...] = ("written", "released")
LOSSES = {"written": fbl, "released": fbl_as_released}
ABLATION = {
    "fbl-linear-decrease": fbl_linear_decrease,
    "fbl-linear-increase": fbl_linear_increase,
    "fbl-sine-increase": fbl_sine_increase,
    "fbl-cosine-increase": fbl_cosine_increase,
}
NOT_PRINTED = {"cifar10-lt-50": ("la",), "cifar100-lt-50": ("la", "hybrid-sc")}  # Tables 4.2 and 4.7(a)


def early_epochs(column: Column) -> int:
    """By how many epochs the released parabola reaches its full strength before the end."""
    return PARAMS.early["quick" if column.name in PARAMS.quick.columns else "paper"]


def strength(column: Column, reading: Reading) -> float:
    """alpha where the curriculum is 1: the released constant, which multiplies lambda_j / lambda_max. In the text's notation
    (gap) it is divided by lambda_max = log(n_max / n_min), so that both readings are equally strong on every column."""
    if column.name in LARGE:
        sizes = find_large(column.dataset).train
        constant, ratio = PARAMS.large_strength, sizes.largest / sizes.smallest
    else:
        constant, ratio = PARAMS.strength, column.ratio
    return constant if reading == "released" else constant / math.log(ratio)


def fbl_row(column: Column, reading: Reading, protocol: Protocol) -> Method:
    """FBL with the parabola, which the released code divides by T - 10."""
    end = protocol.epochs - (early_epochs(column) if reading == "released" else 0)
    curriculum = partial(fbl_parabolic_increase, T=float(end))
    return Method("fbl", reading, partial(LOSSES[reading], strength=strength(column, reading), curriculum=curriculum))


def own_rows(column: Column, reading: Reading, protocol: Protocol) -> list[Method]:
    """FBL on every column; on CIFAR-10-LT the other curricula of Table 4.4 at ratio 100, all of them divided by T, and at ratio
    50 the text's loss with one alpha for all ratios."""
    row = fbl_row(column, reading, protocol)
    rows, loss = [row], partial(LOSSES[reading], strength=strength(column, reading))
    if published_column(PARAMS.stand_ins, column) == "cifar10-lt-50" and reading == "written":
        constant = PARAMS.strength / math.log(PARAMS.constant_from)
        rows.append(replace(row, loss=partial(row.loss, strength=constant), variant="strength=constant"))
    if published_column(PARAMS.stand_ins, column) == "cifar10-lt-100":
        rows += [Method(name, reading, partial(loss, curriculum=partial(curriculum, T=float(protocol.epochs))))
                 for name, curriculum in ABLATION.items()]
    return rows


def text_to_code(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """From the written FBL to the released one, on CIFAR-10-LT at ratio 100."""
    if column.name != "cifar10-lt-100":
        return []
    written, released = (fbl_row(column, reading, protocols[reading]) for reading in READINGS)
    return path(
        written,
        ("batch", {"protocol": protocols["released"]}),
        ("parabola", {"loss": partial(written.loss, curriculum=released.loss.keywords["curriculum"])}),
        ("epoch", {"loss": released.loss}),
    )


def baselines(column: Column, reading: Reading, protocol: Protocol) -> list[Method]:
    """The rows of others, under the setting of this reading, where the paper prints a number of theirs."""
    p = PARAMS.baselines
    rows = [
        ce_row(reading),
        ldam_drw_row(reading, protocol, s=p.scale, largest=p.largest_margin, beta=p.effective_number),
        bbn_row(reading, protocol),
        la_row(reading, p.tau),
        la_post_hoc_row(reading, protocol, p.tau),
        hybrid_sc_row(reading, protocol),
    ]
    return [row for row in rows if row.name not in NOT_PRINTED.get(published_column(PARAMS.stand_ins, column), ())]


def large_rows(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """Tables 4.3 and 4.7b."""
    rows = []
    for reading in READINGS:
        protocol, p = protocols[reading], PARAMS.baselines
        drw = ldam_drw_row(reading, protocol, s=p.scale, largest=p.largest_margin, beta=p.effective_number)
        rows += [ce_row(reading), drw, decoupling_row(reading, protocols), la_row(reading, p.tau),
                 disalign_row(reading, protocols), fbl_row(column, reading, protocol)]
    left_out = ("ldam-drw", "la") if column.dataset == "places-lt" else ()  # not printed
    return [replace(row, keep_features=False) for row in rows if row.name not in left_out]


def methods(column: Column, protocols: Mapping[str, Protocol]) -> tuple[Method, ...]:
    """Everything that is trained on a column: all rows in both readings, as the settings differ."""
    if column.name in LARGE:
        return tuple(large_rows(column, protocols))
    rows = [row for reading in READINGS
            for row in (*baselines(column, reading, protocols[reading]), *own_rows(column, reading, protocols[reading]))]
    return (*rows, *text_to_code(column, protocols))


# ---------------------------------------------------------------- Figures 4.2 and 4.3


def figure_norms(results: Results, *, dataset: str, classes: tuple[int, ...], reading: Reading):
    """Feature norms of CE and FBL on the test set at ratios 100 and 50: head and tail classes over epochs, all at the end."""
    columns = tuple(f"{dataset}-lt-{ratio}" for ratio in (100, 50))
    return feature_norms(results, columns, (f"ce@{reading}", f"fbl@{reading}"), classes)


def norm_figure(number: str, dataset: str, classes: tuple[int, ...], reading: Reading) -> Figure:
    """The figure as the authors' code draws it has the paper's number; the one of the text's setting says so."""
    name = number if reading == "released" else f"{number}-{reading}"
    caption = f"Feature norms on {dataset} at ratios 100 and 50, {reading}"
    return Figure(name, caption, partial(figure_norms, dataset=dataset, classes=classes, reading=reading))


PAPER = with_draws(load_paper(
    HERE, PARAMS,
    title="Feature-Balanced Loss for Long-Tailed Visual Recognition",
    methods=methods,
    own=("fbl",),
    main=("4.2",),
    tables=(
        Table("4.2", "Comparison on CIFAR-10/100-LT"),
        Table("4.3", "Comparison on ImageNet-LT, iNaturalist 2018 and Places-LT"),
        Table("4.4", "Learning strategies alpha(t) on CIFAR-10-LT at ratio 100"),
        Table("4.5", "Accuracy per class on CIFAR-10-LT"),
        Table("4.6", "Accuracy per class on CIFAR-100-LT"),
        Table("4.7a", "Two-stage methods on CIFAR-10/100-LT"),
        Table("4.7b", "Two-stage methods on the large datasets"),
    ),
    figures=(*(norm_figure(number, dataset, classes, reading) for reading in reversed(READINGS)
               for number, dataset, classes in (("4.2", "cifar10", (0, 1, 8, 9)), ("4.3", "cifar100", (9, 19, 79, 89)))),
             TEXT_TO_CODE),
))

if __name__ == "__main__":
    main(PAPER)
