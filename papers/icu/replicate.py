"""Intra-Class Uncertainty Loss Function for Classification (H. Zhu, S. Yu; CASIA).

Claim: a classifier of one Gaussian a class, whose log-determinant takes part in the decision, trained with the moments of
the batch as a regulariser and with two small margins, beats softmax, center loss, L-Softmax and L-GM on MNIST, CIFAR and
ImageNet (Table 1), and focal loss, mixup and class-balanced loss on long-tailed CIFAR (Table 2); either margin helps, and
both together most (Table 3).

    python -m papers.icu.replicate plan                               what would run, and for how long
    python -m papers.icu.replicate train --column mnist-6layercnn2d   the published protocol on one column
    python -m papers.icu.replicate table                              Tables 1 to 3 beside the published numbers

Reading "written" is the text; "released" is github.com/kratos236/ICU-loss, which has the long-tailed sets only. README.md has
every difference. The losses are in equations.py, Figure 2 in figure_2.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from common.cli.main import main
from common.data.sets import SETS
from common.draws import with_draws
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Head, Method, Net
from common.methods.one_stage import cb_focal_row, ce_row, focal_row, mixup_row
from common.methods.path import path
from common.methods.sampling import effective_number_weights
from common.paper import Figure, Profile, Table, load_paper, published_column
from common.report.waterfall import TEXT_TO_CODE
from common.spec import Column, Protocol, Reading, load_yaml
from papers.icu.equations import (
    icu,
    icu_as_first_released,
    icu_as_released,
    icu_center,
    icu_detached,
    icu_l_gm,
    icu_l_softmax,
    icu_multiplied,
    icu_multiplied_per_sample,
    icu_per_sample,
)
from papers.icu.figure_2 import figure_2

HERE = Path(__file__).resolve().parent
READINGS: tuple[Reading, ...] = ("written", "released")
GAUSSIAN, CENTRES, QUADRATIC = Head("gaussian"), Head("centres"), Head("quadratic")


# ---------------------------------------------------------------- params.yaml


@dataclass(frozen=True)
class Written:
    alpha: float
    gamma: float
    lambda_mu: float
    lambda_sigma: float


@dataclass(frozen=True)
class Released:
    """Of the later version; first_alpha is the earlier one's."""

    alpha: float
    beta: float
    first_alpha: float
    weight: float
    replicas: int


@dataclass(frozen=True)
class Center:
    rate: float
    weight: float


@dataclass(frozen=True)
class LSoftmax:
    m: int
    base: float
    least: float


@dataclass(frozen=True)
class LGM:
    """alpha is multiplied by `factor` every `every` epochs, up to `most`; weight: lambda; means, head_rate: see `Head`."""

    alpha: float
    factor: float
    every: float
    most: float
    weight: float
    means: Literal["normal", "msra", "xavier"]
    head_rate: float


@dataclass(frozen=True)
class Baselines:
    effective_number: float
    center: Center
    l_softmax: dict[str, LSoftmax]
    l_gm: dict[str, LGM]


@dataclass(frozen=True)
class Params:
    paper: Profile
    quick: Profile
    stand_ins: dict[str, str]
    written: Written
    released: Released
    baselines: Baselines


PARAMS: Params = load_yaml(HERE / "params.yaml", Params)
LARGE = PARAMS.paper.large.columns
printed_as = partial(published_column, PARAMS.stand_ins)  # the published column that a column is, or stands in for


# ---------------------------------------------------------------- section 3: ICU in two readings


def icu_row(reading: Reading, name: str = "icu", *, with_alpha: bool = True, with_gamma: bool = True) -> Method:
    """ICU with both, one or none of its margins.

    The released row is the later version, with its own defaults: alpha 0. Where Table 3 has alpha alone, it gets that of the
    earlier version, the only one that the code has. Its network is the two-branch ResNet-32, whose feature has 128 dimensions.
    """
    if reading == "written":
        p = PARAMS.written
        margins = {"alpha": p.alpha if with_alpha else 0.0, "gamma": p.gamma if with_gamma else 0.0}
        return Method(name, reading, partial(icu, **margins, lambda_mu=p.lambda_mu, lambda_sigma=p.lambda_sigma), GAUSSIAN)
    r = PARAMS.released
    alpha = (r.alpha if with_gamma else r.first_alpha) if with_alpha else 0.0
    loss = partial(icu_as_released, alpha=alpha, beta=r.beta if with_gamma else 0.0, weight=r.weight)
    return Method(name, reading, loss, QUADRATIC, net=Net("two-branch"))


def table_3_rows(reading: Reading) -> list[Method]:
    """Section 4.4: ICU without margins and with either one; the row with both is `icu_row`."""
    return [
        icu_row(reading, "icu-no-margin", with_alpha=False, with_gamma=False),
        icu_row(reading, "icu-alpha", with_gamma=False),
        icu_row(reading, "icu-gamma", with_alpha=False),
    ]


# ---------------------------------------------------------------- section 4.2: the rows of Table 1


def setting(column: Column) -> str:
    """The name of a balanced column's protocol: its dataset, or that of the column in whose place it stands."""
    return printed_as(column).partition("-")[0]


def l_gm_row(dataset: str) -> Method:
    """L-GM with unit covariances (Eqs. 4 and 5), as its code's files have it for MNIST and CIFAR-100."""
    p = PARAMS.baselines.l_gm.get(dataset, PARAMS.baselines.l_gm["others"])
    loss = partial(icu_l_gm, alpha=p.alpha, factor=p.factor, every=p.every, most=p.most, weight=p.weight)
    return Method("l-gm", "written", loss, Head("centres", rate=p.head_rate, means=p.means))


def softmax_row() -> Method:
    """Cross-entropy. Features of CIFAR-100 are too many for a record that no figure reads."""
    return replace(ce_row("written"), keep_features=False)


def center_row() -> Method:
    p = PARAMS.baselines.center
    return Method("center", "written", partial(icu_center, weight=p.weight), Head("linear", centres=p.rate))


def l_softmax_row(column: Column, protocol: Protocol) -> Method:
    p = PARAMS.baselines.l_softmax[printed_as(column)]
    loss = partial(icu_l_softmax, **vars(p), epochs=protocol.epochs)
    return Method("l-softmax", "written", loss, Head("linear", biased=False))


def balanced_rows(column: Column, protocol: Protocol) -> list[Method]:
    """Table 1, and Table 3 on CIFAR-100. The columns that are not printed, of other networks, have some rows only."""
    ce, l_gm, own = softmax_row(), l_gm_row(setting(column)), icu_row("written")
    if column.backbone == "vgg13bn":
        return [ce, own]
    if column.backbone.endswith("prelu"):
        return [ce, l_gm, own]
    rows = [ce, center_row(), l_softmax_row(column, protocol), l_gm, own]
    if printed_as(column) == "mnist-6layercnn2d":
        rows = [row if row.name == "l-softmax" else replace(row, keep_features=True) for row in rows]  # Figure 2
    return rows + (table_3_rows("written") if printed_as(column) == "cifar100-vgg13" else [])


# ---------------------------------------------------------------- section 4.3: the rows of Table 2


def long_tailed_rows(column: Column) -> list[Method]:
    """Table 2, and Table 3 on CIFAR-100-LT 10. The rows of others have one reading.

    The numbers printed for "CB Loss" are those of class-balanced focal loss elsewhere, so that is the row.
    """
    beta = PARAMS.baselines.effective_number
    weights = partial(effective_number_weights, beta=beta)
    rows = [
        l_gm_row("others"),
        focal_row("written"),
        mixup_row("written"),
        replace(cb_focal_row("written", SETS[column.dataset].classes, beta=beta), name="cb"),
        Method("cb", "written", softmax_cross_entropy, weights=weights, variant="base=ce"),
        *(icu_row(reading) for reading in READINGS),
    ]
    if printed_as(column) == "cifar100-lt-10":
        rows += [softmax_row(), *(row for reading in READINGS for row in table_3_rows(reading))]
    return rows


# ---------------------------------------------------------------- one difference at a time; the paper prints no such rows


FORMS = {
    "gamma=multiply": icu_multiplied,  # (1 + gamma) ln|Sigma| in Eq. (18)
    "regulariser=per-sample": icu_per_sample,  # the released code's in the place of Eq. (14)
    "regulariser=sum": partial(icu, dimensions="sum"),  # |.|^2 of Eq. (14) summed over the dimensions
    "regulariser=detached": icu_detached,  # no gradient of Eq. (14) to the features
}


def icu_switches(*variants: str) -> list[Method]:
    """Other readings of the text's loss."""
    return [Method("icu", "written", partial(FORMS[v], **vars(PARAMS.written)), GAUSSIAN, variant=v) for v in variants]


def balanced_switches(column: Column, protocol: Protocol) -> list[Method]:
    """Decoupled weight decay where the text has Adam; other readings of the loss."""
    decoupled = replace(protocol, optimiser="adamw")
    adamw = [replace(row, variant="optimiser=adamw", protocol=decoupled) for row in (softmax_row(), icu_row("written"))]
    return {
        "mnist-6layercnn2d": [*icu_switches("gamma=multiply", "regulariser=per-sample"), *adamw],
        "cifar10-resnet18": adamw,
        "cifar100-vgg13": icu_switches("regulariser=per-sample"),
    }.get(printed_as(column), [])


def long_tailed_switches(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """Other readings of the text's loss. Of the code: its earlier version, and the regulariser of its four replicas. Of both: the
    setting of the repository that they start from."""
    if printed_as(column) != "cifar10-lt-100":
        return []
    r, released = PARAMS.released, icu_row("released")
    first = partial(icu_as_first_released, alpha=r.first_alpha, weight=r.weight)
    summed = partial(icu_as_released, alpha=r.alpha, beta=r.beta, weight=r.replicas * r.weight)
    base = {"variant": "setting=base-repository", "protocol": protocols["base-repository"]}
    return [
        *icu_switches(*FORMS),
        replace(released, loss=first, head=CENTRES, variant="commit=254170f"),
        replace(released, loss=summed, variant="regulariser=four-replicas"),
        *(replace(icu_row(reading), **base) for reading in READINGS),
    ]


def text_to_code(column: Column, protocols: Mapping[str, Protocol]) -> list[Method]:
    """From the written ICU to the released one. The released head comes as a whole: its squares, its quarter of the
    log-determinant and its 1 / sigma are one classifier."""
    if column.name != "cifar10-lt-100":
        return []
    r, w, released = PARAMS.released, PARAMS.written, icu_row("released")
    margins = {"alpha": r.alpha, "gamma": r.beta, "lambda_mu": w.lambda_mu, "lambda_sigma": w.lambda_sigma}
    return path(
        icu_row("written"),
        ("decay", {"protocol": protocols["released"]}),
        ("network", {"net": released.net}),
        ("margins", {"loss": partial(icu, **margins)}),
        ("gamma", {"loss": partial(icu_multiplied, **margins)}),
        ("regulariser", {"loss": partial(icu_multiplied_per_sample, **margins)}),
        ("classifier", {"loss": released.loss, "head": released.head}),
    )


def methods(column: Column, protocols: Mapping[str, Protocol]) -> tuple[Method, ...]:
    """Everything that is trained on a column. The balanced sets have the text's reading only: the released code lacks them."""
    if column.name in LARGE:  # Table 1
        return softmax_row(), center_row(), l_gm_row("others"), icu_row("written")
    if column.imbalance == "none":
        protocol = protocols[setting(column)]
        rows = balanced_rows(column, protocol) + balanced_switches(column, protocol)
        return tuple(replace(row, protocol=row.protocol or protocol) for row in rows)
    return (*long_tailed_rows(column), *long_tailed_switches(column, protocols), *text_to_code(column, protocols))


PAPER = with_draws(load_paper(
    HERE, PARAMS,
    title="Intra-Class Uncertainty Loss Function for Classification",
    methods=methods,
    own=("icu",),
    main=("1", "2"),
    tables=(
        Table("1", "Top-1 accuracies on MNIST, CIFAR-10, CIFAR-100 and ImageNet"),
        Table("2", "Top-1 accuracies of ResNet-32 on long-tailed CIFAR-10 and CIFAR-100"),
        Table("3", "ICU with and without its margins on CIFAR-100 and long-tailed CIFAR-100"),
    ),
    figures=(Figure("2", "Two-dimensional features of MNIST under four losses, training and test images", figure_2),
             TEXT_TO_CODE),
    notes=dict.fromkeys(("mnist-6layercnn2d", "mnist-6layercnn100d", "cifar10-resnet18"), "epochs and schedule chosen here"),
))

if __name__ == "__main__":
    main(PAPER)
