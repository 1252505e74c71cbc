"""The ICU paper's rows, columns and parameters against its printed tables and its text, and its Figure 2."""

import base64
from collections import Counter

import numpy as np
import pytest

from common.methods.path import is_step
from common.plan import plan
from common.report.claims import evaluate
from common.report.compare import cells
from common.report.published import published
from common.report.results import Results
from papers.icu.figure_2 import COLUMN, ROWS, figure_2
from papers.icu.replicate import PAPER, PARAMS, READINGS
from tests.records import make_record

COLUMNS = {c.name: c for c in PAPER.columns["paper"] if c.name not in PAPER.large and not c.is_drawn}
PROTOCOLS = PAPER.protocols["paper"]
LONG_TAILED = [name for name, column in COLUMNS.items() if column.imbalance == "lt"]
BALANCED = ["mnist-6layercnn2d", "mnist-6layercnn100d", "cifar10-resnet18", "cifar100-vgg13"]
NOT_PRINTED = {"mnist-6layercnn2dprelu": {"ce", "l-gm", "icu"}, "mnist-6layercnn100dprelu": {"ce", "l-gm", "icu"},
               "cifar100-vgg13bn": {"ce", "icu"}}


def rows(column: str) -> dict:
    listed = PAPER.rows("paper", next(c for c in PAPER.columns["paper"] if c.name == column))
    found = {m.label: m for m in listed}
    assert len(found) == len(listed), "two rows of one label"
    return found


# ---------------------------------------------------------------- tables


def test_every_printed_number_has_a_row_or_says_what_it_needs():
    frame = published(PAPER)
    assert len(frame) == 70
    states = Counter((cell.table, cell.state.partition(";")[0]) for cell in cells(Results(PAPER, {}, "paper")))
    assert states == {
        ("1", "no run yet"): 20, ("2", "no run yet"): 30 + 6, ("3", "no run yet"): 10 + 4,  # ICU has both readings on long tails
        ("1", "not run: needs imagenet"): 8,
        ("text", "not run: no such method here"): 2}


def test_rows_are_printed_but_for_the_switches_and_the_other_networks():
    frame = published(PAPER)
    for column in COLUMNS:
        printed = set(frame[(frame["column"] == column) & (frame["table"] != "text")]["method"])
        assert {m.name for m in rows(column).values()} == (printed or NOT_PRINTED[column])


def test_columns_are_called_what_they_are():
    for profile in (PARAMS.paper, PARAMS.quick):
        assert all(name == column.name for name, column in profile.columns.items())
    assert set(COLUMNS) == {*BALANCED, *LONG_TAILED, *NOT_PRINTED}
    assert set(PARAMS.stand_ins) == set(PARAMS.quick.columns)
    assert set(PARAMS.stand_ins.values()) <= set(COLUMNS)
    assert set(PARAMS.baselines.l_softmax) == set(BALANCED)


# ---------------------------------------------------------------- settings


def test_protocols_are_section_4_1s_and_the_configurations():
    for name, batch in (("mnist", 128), ("cifar10", 256)):
        p = PROTOCOLS[name]
        assert (p.optimiser, p.batch_size, p.rate, p.weight_decay, p.schedule) == ("adam", batch, 0.01, 0.001, "cosine")
    net = PROTOCOLS["cifar100"]
    assert (net.optimiser, net.batch_size, net.weight_decay, net.momentum) == ("nesterov", 128, 0.0005, 0.9)
    assert [net.learning_rate(e) for e in (0, 152, 153, 229, 230)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert [round(i * 128 / 50_000) for i in (120_000, 60_000)] == [net.epochs, net.decay_epochs[0] + 1]  # of 390.6 steps
    for name, batch, rate, early in (("written", 64, 0.02, 0), ("released", 64, 0.02, 1), ("base-repository", 256, 0.2, 1)):
        p = PROTOCOLS[name]
        assert (p.optimiser, p.epochs, p.batch_size, p.weight_decay, p.drop_last) == ("sgd", 200, batch, 0.0005, True)
        assert [round(p.learning_rate(e) / rate, 3) for e in range(6)] == [0.467, 0.6, 0.733, 0.867, 1, 1]
        around = [epoch - early for epoch in (119, 120, 159, 160)]
        assert [p.learning_rate(e) / rate for e in around] == pytest.approx([1, 0.01, 0.01, 0.0001])


def test_every_balanced_row_has_the_setting_of_its_set():
    for column in (*BALANCED, *NOT_PRINTED):
        wanted = PROTOCOLS[column.partition("-")[0]]
        for label, method in rows(column).items():
            decoupled = "optimiser=adamw" in label
            assert method.reading == "written"
            assert (method.protocol == wanted) != decoupled
            assert not decoupled or (method.protocol.optimiser, method.protocol.epochs) == ("adamw", wanted.epochs)
    for column in LONG_TAILED:
        assert {m.protocol for m in rows(column).values() if not is_step(m)} <= {None, PROTOCOLS["base-repository"]}


MARGINS = {"lambda_mu": 0.1, "lambda_sigma": 0.1, "dimensions": "mean"}
OWN = {  # loss and head, by hand from the text and from what the released code does
    "icu@written": ({"function": "icu", "alpha": 0.0001, "gamma": 0.001, **MARGINS}, "gaussian"),
    "icu-no-margin@written": ({"function": "icu", "alpha": 0.0, "gamma": 0.0, **MARGINS}, "gaussian"),
    "icu-alpha@written": ({"function": "icu", "alpha": 0.0001, "gamma": 0.0, **MARGINS}, "gaussian"),
    "icu-gamma@written": ({"function": "icu", "alpha": 0.0, "gamma": 0.001, **MARGINS}, "gaussian"),
    "icu@released": ({"function": "icu_as_released", "alpha": 0.0, "beta": 0.0001, "weight": 0.1}, "quadratic"),
    "icu-no-margin@released": ({"function": "icu_as_released", "alpha": 0.0, "beta": 0.0, "weight": 0.1}, "quadratic"),
    "icu-alpha@released": ({"function": "icu_as_released", "alpha": 0.001, "beta": 0.0, "weight": 0.1}, "quadratic"),
    "icu-gamma@released": ({"function": "icu_as_released", "alpha": 0.0, "beta": 0.0001, "weight": 0.1}, "quadratic"),
}


def test_own_rows_are_what_the_readme_says():
    found = {label: m for label, m in rows("cifar100-lt-10").items() if label.startswith("icu")}
    assert found.keys() == OWN.keys()
    for label, (loss, head) in OWN.items():
        said = found[label].describe()
        assert (said["loss"], said["head"]["kind"], said["head"]["means"]) == (loss, head, "normal"), label
        assert said["network"] == ("plain" if label.endswith("written") else "two-branch")
        assert (said["weights"], said["sampler"]) == ({"function": "uniform_weights"}, {"function": "shuffled"})
    on_vgg = rows("cifar100-vgg13")
    for label in OWN:
        assert not label.endswith("written") or on_vgg[label].describe() == found[label].describe()


L_GM = {  # loss and head, by hand from the files of its code
    "mnist": ({"alpha": 0.001, "factor": 3.0, "every": 1.0667, "most": 0.1, "weight": 0.001}, {"means": "xavier", "rate": 3.0}),
    "cifar100": ({"alpha": 0.1, "factor": 2.0, "every": 12.8, "most": 0.3, "weight": 0.1}, {"means": "msra", "rate": 2.0}),
    "others": ({"alpha": 0.1, "factor": 1.0, "every": 1.0, "most": 0.1, "weight": 0.1}, {"means": "msra", "rate": 1.0}),
}


def test_the_other_rows_are_what_the_readme_says():
    balanced = {c: {m.label: m.describe() for m in PAPER.methods(COLUMNS[c], PROTOCOLS)} for c in BALANCED}
    for column, found in balanced.items():
        assert found["center@written"]["loss"] == {"function": "icu_center", "weight": 0.003}
        assert found["center@written"]["head"]["centres"] == 0.5
        m, least = (2, 0.0) if column == "mnist-6layercnn2d" else (4, 5.0)
        epochs = PROTOCOLS[column.partition("-")[0]].epochs
        assert found["l-softmax@written"]["loss"] == {
            "function": "icu_l_softmax", "m": m, "base": 1000.0, "least": least, "epochs": epochs}
        assert found["l-softmax@written"]["head"]["biased"] is False
        (loss, head), said = L_GM.get(column.partition("-")[0], L_GM["others"]), found["l-gm@written"]
        assert said["loss"] == {"function": "icu_l_gm", **loss}
        assert {name: said["head"][name] for name in ("kind", "means", "rate")} == {"kind": "centres", **head}
    found = {label: m.describe() for label, m in rows("cifar10-lt-50").items()}
    assert set(found) == {"l-gm@written", "focal@written", "mixup@written", "cb@written", "cb[base=ce]@written",
                          *(f"icu@{reading}" for reading in READINGS)}
    assert found["mixup@written"]["mixup"] == 1.0
    assert found["cb@written"]["loss"] == {"function": "sigmoid_focal", "gamma": 1.0}
    effective = {"function": "effective_number_weights", "beta": 0.9999}
    assert found["cb@written"]["weights"] == found["cb[base=ce]@written"]["weights"] == effective
    assert found["cb[base=ce]@written"]["loss"] == {"function": "softmax_cross_entropy"}


def test_the_rows_of_imagenet_are_those_of_the_long_tailed_sets_where_these_have_them():
    found = {label: m.describe() for label, m in rows("imagenet-resnet101").items()}
    assert list(found) == ["ce@written", "center@written", "l-gm@written", "icu@written"]
    small = {label: m.describe() for label, m in rows("cifar100-lt-10").items()}
    assert all(found[label] == small[label] for label in ("ce@written", "l-gm@written", "icu@written"))
    assert found["center@written"] == rows("cifar10-resnet18")["center@written"].describe()
    assert {m.protocol for m in rows("imagenet-resnet101").values()} == {None}


def differences(column: str, variant: str, reading: str = "written") -> set[str]:
    found = rows(column)
    one, other = found[f"icu@{reading}"], found[f"icu[{variant}]@{reading}"]
    keys = {k for k, v in one.describe().items() if v != other.describe()[k]}
    return keys | ({"protocol"} if one.protocol != other.protocol else set())


def test_a_switch_departs_in_one_thing():
    for column in ("mnist-6layercnn2d", "cifar10-lt-100"):
        for variant in ("gamma=multiply", "regulariser=per-sample", "regulariser=sum", "regulariser=detached"):
            if column != "cifar10-lt-100" and variant in ("regulariser=sum", "regulariser=detached"):
                assert f"icu[{variant}]@written" not in rows(column)
                continue
            assert differences(column, variant) == {"loss"}
            plain, other = (rows(column)[f"icu{v}@written"].describe()["loss"] for v in ("", f"[{variant}]"))
            kind = "dimensions" if variant == "regulariser=sum" else "function"
            assert {k for k in plain if plain[k] != other.get(k, "mean")} == {kind}
    for column in ("mnist-6layercnn2d", "cifar10-resnet18"):
        assert differences(column, "optimiser=adamw") == {"protocol"}
    for reading in READINGS:
        assert differences("cifar10-lt-100", "setting=base-repository", reading) == {"protocol"}
    assert differences("cifar10-lt-100", "commit=254170f", "released") == {"loss", "head"}
    assert differences("cifar10-lt-100", "regulariser=four-replicas", "released") == {"loss"}
    replicas = rows("cifar10-lt-100")["icu[regulariser=four-replicas]@released"]
    assert replicas.describe()["loss"]["weight"] == pytest.approx(4 * 0.1)


def test_plans_are_of_this_size_and_train_a_run_once():
    sizes = {name: len(plan(PAPER, "paper", columns=(name,))) for name in COLUMNS}
    assert sizes == {
        "mnist-6layercnn2d": 27, "mnist-6layercnn100d": 15, "cifar10-resnet18": 21, "cifar100-vgg13": 27, "cifar100-lt-100": 21,
        "cifar100-lt-50": 21, "cifar100-lt-10": 39, "cifar10-lt-100": 60, "cifar10-lt-50": 21, "cifar10-lt-10": 21,
        "mnist-6layercnn2dprelu": 9, "mnist-6layercnn100dprelu": 9, "cifar100-vgg13bn": 6}
    gamma_alone, default = (rows("cifar100-lt-10")[f"{name}@released"] for name in ("icu-gamma", "icu"))
    assert gamma_alone.describe() == default.describe()


# ---------------------------------------------------------------- claims


def test_what_the_printed_numbers_say_of_the_claims():
    """CB loss is ahead on CIFAR-10-LT 100 and 50; everything else is borne out."""
    printed = {o.claim.id: o.printed for o in evaluate(Results(PAPER, {}, "paper"))}
    assert len(printed) == 13
    assert {name: verdict for name, verdict in printed.items() if verdict != "holds"} == {
        "long-tailed-beats-re-balancing": "fails (2 of 6 columns)", "long-tailed-minority": "not printed"}


# ---------------------------------------------------------------- Figure 2


def stored(values: np.ndarray, labels: list[int]) -> dict:
    return {"labels": labels, "values": base64.b64encode(values.astype("<f2").tobytes()).decode()}


def figure_records(change=lambda name, x: x) -> dict:
    """Runs of the four losses whose features of class k lie around (k, -k), as the engine stores them."""
    records = {}
    for planned in plan(PAPER, "paper", columns=(COLUMN,), methods=tuple(f"{name}@written" for _, name in ROWS), seeds=1):
        method = planned.method
        if method.variant:
            continue
        labels = [k for k in range(10) for _ in range(4)]
        x = np.array([[k + i / 4, -k] for k in range(10) for i in range(4)], float)
        means = np.array([[float(k), -float(k)] for k in range(10)]).T.tolist()
        head = {"weight": means} | {"ce": {"bias": [[0.0] * 10]}, "center": {"bias": [[0.0] * 10], "centres": means},
                                    "icu": {"log_variances": np.log([[4.0] * 10, [0.25] * 10]).tolist()}}.get(method.name, {})
        features = {split: stored(change(method.name, x), labels) for split in ("train", "test")}
        records[planned.spec.key] = make_record(planned, 98.0) | {"features": features, "head": head}
    return records


def test_figure_2_has_eight_panels_with_means_and_deviations():
    records = figure_records()
    assert len(records) == len(ROWS) == 4
    drawing = figure_2(Results(PAPER, records, "paper"))
    data = drawing.data
    panels = data.drop_duplicates("panel")
    assert list(zip(panels["panel"], panels["method"], panels["split"], strict=True)) == [
        (letter, name, split) for letter, (split, name) in zip("abcdefgh", [
            (split, name) for split in ("train", "test") for _, name in ROWS], strict=True)]
    points = data[data["kind"] == "feature"]
    assert (points.groupby("panel").size() == 40).all()
    assert points[points["panel"] == "h"].iloc[5][["class", "x", "y"]].tolist() == [1, 1.25, -1]
    centres = data[data["kind"] == "centre"].drop_duplicates(["method", "sd_x", "sd_y"])
    assert list(zip(centres["method"], centres["sd_x"], centres["sd_y"], strict=True)) == [
        ("center", 0, 0), ("l-gm", 1, 1), ("icu", pytest.approx(2), pytest.approx(0.5))]
    ours = data[(data["kind"] == "centre") & (data["class"] == 7)]
    assert (ours["x"] == 7).all()
    assert (ours["y"] == -7).all()
    titles = [at.get_title(loc="left") for at in drawing.figure.axes or drawing.figure.subfigs[0].axes]
    assert titles[0].startswith("(a) softmax, train")
    assert titles[7].startswith("(h) ICU, test")


def test_figure_2_says_what_is_missing():
    assert "no run of ce@written" in figure_2(Results(PAPER, {}, "paper"))
    records = {key: {k: v for k, v in record.items() if k != "features"} for key, record in figure_records().items()}
    assert "has kept its features" in figure_2(Results(PAPER, records, "paper"))
    wild = figure_records(lambda name, x: x + (np.inf if name == "icu" else 0))
    assert "features of icu on the training images are not finite" in figure_2(Results(PAPER, wild, "paper"))


def test_only_the_four_losses_of_figure_2_keep_their_features():
    kept = {(c, m.label) for c in COLUMNS for m in rows(c).values() if m.keep_features}
    assert kept == {(COLUMN, f"{name}@written") for _, name in ROWS}
    quick = [m.label for c in PAPER.columns["quick"] for m in PAPER.methods(c, PAPER.protocols["quick"]) if m.keep_features]
    assert sorted(quick) == sorted(f"{name}@written" for _, name in ROWS)


# ---------------------------------------------------------------- pipeline
