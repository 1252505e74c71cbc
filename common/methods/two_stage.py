"""The rows of other people's methods that only the tables of the large sets print, as `Method`s; the rest is in
`common.methods.one_stage`, whose words hold here too.

Most are second stages after cross-entropy in the setting of `protocols[reading]`, in a setting of their own:
"<reading>-lws", "<reading>-tau", "<reading>-disalign" and "<reading>-oltr" (which alone may train the backbone again).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from common.methods.losses import lade, meta_embedding, softmax_cross_entropy
from common.methods.method import Head, Method, Start
from common.methods.one_stage import ce_row
from common.methods.sampling import class_balanced
from common.spec import Column, LargeColumns, LargeProtocol, Protocol, Reading

# LADE: weight and strength of its regulariser, by data set; its configuration files have no others.
REGULARISER: dict[str, tuple[float, float]] = {
    "cifar100": (0.1, 0.01),
    "imagenet-lt": (0.05, 0.5),
    "inaturalist2018": (0.05, 0.5),
    "places-lt": (0.005, 0.1),
}


SECOND = LargeProtocol(epochs=10, batch_size=512, rate=0.2, momentum=0.9, weight_decay=0.0005, warmup_epochs=0, decay_epochs=(),
                       decay_factor=1.0, drop_last=False, schedule="cosine", trains="head", moving_statistics=True)


def second_settings(dataset: str, reading: Reading) -> dict[str, LargeProtocol]:
    """The settings of second stages on a large set, under "<reading>-<name>": their own authors' numbers (Kang et al. for crt,
    lws and, without numbers of its own, tau; DisAlign; OLTR; MiSLAS)."""
    kang = replace(SECOND, epochs=30, weight_decay=0.0001) if dataset == "inaturalist2018" else SECOND
    kang = replace(kang, rate=0.1, batch_size=256) if dataset == "places-lt" else kang
    zhong = replace(SECOND, rate=0.1, batch_size=256, weight_decay=0.0001 if dataset == "inaturalist2018" else 0.0005)
    steps = {"rate": 0.01, "schedule": "steps", "decay_factor": 0.1}
    if dataset == "places-lt":
        oltr = replace(SECOND, epochs=30, batch_size=128, decay_epochs=(10, 20), **steps)
    else:
        oltr = replace(SECOND, epochs=60, batch_size=256, decay_epochs=(20, 40), trains="all", moving_statistics=False, **steps)
    settings = {"crt": kang, "lws": replace(kang, epochs=5), "tau": replace(kang, epochs=5),
                "disalign": replace(zhong, moving_statistics=False, weight_decay=0.0005), "mislas": zhong, "oltr": oltr}
    return {f"{reading}-{name}": setting for name, setting in settings.items()}


def with_second_settings(large: LargeColumns) -> dict[str, dict[str, LargeProtocol]]:
    """The settings of each large column, with those of other people's second stages beside its own."""
    protocols = {}
    for name, own in large.protocols.items():
        dataset = large.columns[name].dataset
        others = [second_settings(dataset, reading) for reading in ("written", "released") if reading in own]
        protocols[name] = {key: value for settings in (*others, own) for key, value in settings.items()}
    return protocols


# ---------------------------------------------------------------- one stage


def lade_row(reading: Reading, column: Column) -> Method:
    """LADE (Hong et al., 2021) for a balanced test set: the logits are tested as they are. A data set without numbers takes
    those of CIFAR-100."""
    alpha, strength = REGULARISER.get(column.dataset, REGULARISER["cifar100"])
    return Method("lade", reading, partial(lade, alpha=alpha, strength=strength))


# ---------------------------------------------------------------- the classifier alone (Kang et al., 2020)


def lws_row(reading: Reading, protocols: Mapping[str, Protocol]) -> Method:
    """LWS: the classifier as it is, bias included, and a learned factor on the logit of each class; class-balanced batches."""
    return _after_ce("lws", reading, protocols, "lws", _kept("class"), sampler=class_balanced)


def tau_norm_row(reading: Reading, protocols: Mapping[str, Protocol]) -> Method:
    """tau-normalisation: w / |w|^tau, without the bias. The code scans tau on validation images; here nothing is held out
    from training, so tau is learned on class-balanced batches from 0 on. What is learned is a temperature too, as a power
    of the norms scales all logits."""
    return _after_ce("tau-norm", reading, protocols, "tau", _kept("tau"), sampler=class_balanced)


def decoupling_row(reading: Reading, protocols: Mapping[str, Protocol]) -> Method:
    """The row "Decoupling" of tables that do not say which variant it is. What they print is LWS's, so this is LWS (but for
    30.70 on iNaturalist 2018, which is tau-normalisation's)."""
    return replace(lws_row(reading, protocols), name="decoupling")


# ---------------------------------------------------------------- other second stages


def inverse_power_weights(counts: np.ndarray, epoch: int, *, exponent: float) -> np.ndarray:
    """w_c = (1 / pi_c)^exponent, pi the class frequencies, scaled to sum to the number of classes ("generalised
    re-weighting", Zhang et al., 2021)."""
    n = np.asarray(counts, float)
    weights = (n.sum() / n) ** exponent
    return weights * (len(n) / weights.sum())


def disalign_row(reading: Reading, protocols: Mapping[str, Protocol], exponent: float = 1.2) -> Method:
    """DisAlign (Zhang et al., 2021): the classifier as it is, its logits aligned by class and by the sample's confidence;
    every image once an epoch, class weights and a weighted mean."""
    return _after_ce("disalign", reading, protocols, "disalign", _kept("align"),
                     weights=partial(inverse_power_weights, exponent=exponent))


def oltr_row(reading: Reading, column: Column, protocols: Mapping[str, Protocol], s: float = 16.0) -> Method:
    """OLTR (Liu et al., 2019): a memory of class centroids, class-balanced batches; without its modulated attention and its
    layer of 512 features (`common.models.memory`).

    The head's rate is ten times that of backbone and centroids; on Places-LT, where the code freezes the backbone, all that
    is trained has one rate.
    """
    rate = 1.0 if column.dataset == "places-lt" else 10.0
    return _after_ce("oltr", reading, protocols, "oltr", Head("memory", rate=rate), partial(meta_embedding, s=s),
                     sampler=class_balanced)


def _kept(rescale: str) -> Head:
    """The first stage's classifier, frozen, and what is learned on its logits."""
    return Head("linear", keep=True, rate=0.0, rescale=rescale)


def _after_ce(name: str, reading: Reading, protocols: Mapping[str, Protocol], setting: str, head: Head,
              loss=softmax_cross_entropy, **more) -> Method:
    """A second stage in "<reading>-<setting>" after the row `ce`."""
    return Method(name, reading, loss, head, start=Start(replace(ce_row(reading), protocol=protocols[reading])),
                  protocol=protocols[f"{reading}-{setting}"], **more)
