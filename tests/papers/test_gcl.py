"""GCL's rows, columns and parameters against the chapter's printed tables and its text."""

import math
from dataclasses import replace

import numpy as np
import pytest

from common.methods.sampling import class_balanced
from common.plan import plan
from common.report.claims import evaluate
from common.report.compare import cells
from common.report.published import published
from common.report.results import Results
from papers.gcl.replicate import PAPER, PARAMS, figure_5_3

COLUMNS = {c.name: c for c in PAPER.columns["paper"] if c.name not in PAPER.large and not c.is_drawn}
PROTOCOLS = PAPER.protocols["paper"]
ABLATION, READINGS = "cifar10-lt-100", ("written", "released")


def listed(column: str, profile: str = "paper"):
    at = next(c for c in PAPER.columns[profile] if c.name == column)
    return PAPER.rows(profile, at)


def method(name: str, reading: str, variant: str = "", column: str = ABLATION):
    found = [m for m in listed(column) if (m.name, m.reading, m.variant) == (name, reading, variant)]
    assert len(found) == 1
    return found[0]


def test_every_printed_number_on_cifar_has_a_method_in_both_readings():
    frame = published(PAPER)
    on_cifar = frame[frame["dataset"].isin(["cifar10", "cifar100"])]
    assert len(on_cifar) == 62
    assert set(on_cifar["table"]) == {t.number for t in PAPER.tables} - {"5.3", "5.7"}
    for row in on_cifar.itertuples():
        readings = {m.reading for m in listed(row.column) if m.name == row.method and not m.variant}
        assert readings == set(READINGS), (row.column, row.method)


def test_every_printed_number_gets_its_cells():
    found = [c for c in cells(Results(PAPER, {}, "paper")) if c.column in COLUMNS]
    assert {c.state for c in found} == {"no run yet"}
    assert len(found) == 2 * 62


def test_the_first_stage_is_table_5_1s_or_the_codes():
    written, released = (PROTOCOLS[r] for r in READINGS)
    assert (written.epochs, written.batch_size, written.momentum, written.weight_decay) == (200, 128, 0.9, 0.0002)
    assert (released.epochs, released.batch_size, released.momentum, released.weight_decay) == (200, 64, 0.9, 0.0002)
    epochs = (0, 4, 159, 160, 180)
    assert [written.learning_rate(e) for e in epochs] == pytest.approx([0.02, 0.1, 0.1, 0.001, 0.00001])
    assert [released.learning_rate(e) for e in epochs] == pytest.approx([0.02, 0.1, 0.1, 0.01, 0.001])


def test_second_stages_train_the_head_on_a_cosine():
    for profile in ("paper", "quick"):
        for name, protocol in PAPER.protocols[profile].items():
            first = name in (*READINGS, "deconfound")
            assert (protocol.trains, protocol.schedule) == (("all", "steps") if first else ("head", "cosine"))
    written, released = (PROTOCOLS[f"{r}-gcl"] for r in READINGS)
    assert (written.epochs, written.batch_size) == (10, 128)
    for e in (0, 3, 9):  # the authors' first script, Table 5.1's "decay ratio" 0.2 first
        assert written.learning_rate(e) == pytest.approx(0.2 * 0.1 * (0.1 * (1 + math.cos(math.pi * e / 10))))
    assert (released.epochs, released.batch_size) == (30, 64)
    for e in (0, 7, 29):  # lr * 0.1 * [0.1 * (1 + cos(pi e / 30))] with lr = 0.1, as the code computes it
        assert released.learning_rate(e) == pytest.approx(0.1 * 0.1 * (0.1 * (1 + math.cos(math.pi * e / 30))))


def test_columns_are_called_what_they_are():
    for profile in (PARAMS.paper, PARAMS.quick):
        assert all(name == column.name for name, column in profile.columns.items())
    assert set(PARAMS.stand_ins) == set(PARAMS.quick.columns)
    assert set(PARAMS.stand_ins.values()) <= set(PARAMS.paper.columns)
    assert {PARAMS.ablation, PARAMS.toy} <= set(PARAMS.paper.columns)


CODE = {"function": "gcl_cben", "a": 0.9999, "b": 0.00001, "size": {"function": "cloud_logarithm"}}
TEXT = {**CODE, "a": 0.999, "b": 0.0009}
# name: the sampler in both readings (None: CBEN with that reading's range), rescale, cloud
ROWS = {
    "gcl-cben": (None, "", "cloud_logarithm"),
    "gcl-cloud-cosine": (None, "", "cloud_cosine"),
    "gcl-cloud-power-1-3": (None, "", "cloud_power"),
    "gcl-cloud-power-1-4": (None, "", "cloud_power"),
    "gcl-instance-balance": ({"function": "shuffled"}, "", "cloud_logarithm"),
    "gcl-class-balance": ({"function": "class_balanced"}, "", "cloud_logarithm"),
    "gcl-effective-number": ({"function": "effective_number_sampler", "beta": 0.9999}, "", "cloud_logarithm"),
    "gcl-lws": (None, "class", "cloud_logarithm"),
    "gcl-tau": (None, "tau", "cloud_logarithm"),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", ROWS)
def test_the_rows_of_tables_5_4_to_5_6(name, reading):
    sampler, rescale, size = ROWS[name]
    row = method(name, reading)
    said, released = row.describe(), reading == "released"
    form = {"function": size}
    if size == "cloud_power":
        form["exponent"] = {"3": 1 / 3, "4": 0.25}[name[-1]]
    first = {"function": "gcl", "s": 30.0, "cloud": 0.5 if released else 1.0, "sigma": 1 / 3, "size": form}
    second = {"function": "gcl_margin_focal", "s": 20.0, "cloud": 0.5, "sigma": 1 / 3, "m": 0.1, "gamma": 1.0, "size": form}
    assert said["loss"] == (second if released else first)
    assert said["sampler"] == (sampler or {**(CODE if released else TEXT), "size": form})
    assert (row.head.kind, row.head.rescale) == ("cosine", rescale)
    assert (row.head.keep, row.head.rate) == ((True, 0.0) if rescale else (released, 1.0))
    assert (row.mixup, row.noise, said["weights"]) == (1.0 if released else 0.0, "normal", {"function": "uniform_weights"})
    assert row.protocol == PROTOCOLS[f"{reading}-gcl"]
    assert row.first_stage.describe()["loss"] == first
    assert row.first_stage.protocol == PROTOCOLS[reading]
    assert (row.first_stage.mixup, row.first_stage.sampler(np.ones(3), 0), row.first_stage.head.keep) == (1.0, None, False)


@pytest.mark.parametrize("reading", READINGS)
def test_the_row_without_re_training_is_the_first_stage_of_the_others_and_trained_once(reading):
    def only(name):
        (item,) = plan(PAPER, "paper", columns=(ABLATION,), methods=(f"{name}@{reading}",), seeds=1)
        return item

    first = only("gcl-no-rt").spec.key
    for name in ("gcl", "gcl-cben", "gcl-tau", "gcl-class-balance"):
        assert only(name).start.spec.key == first, name


def test_the_samplers_of_the_readings_by_hand():
    counts = np.array([50, 5000, 232])  # not sorted by size
    p = method("gcl", "written").sampler(counts, 3)
    assert p[1] / p[0] == pytest.approx(5.02, abs=0.01)
    q = method("gcl-cben", "released").sampler(counts, 3)
    assert q[1] / q[0] == pytest.approx(1.27, abs=0.01)


def test_table_5_2_has_the_texts_cben_and_the_codes_class_balance_with_cben_as_its_variant_on_every_column():
    for column in COLUMNS:
        if column == PARAMS.toy:
            continue
        row, text = method("gcl", "released", "", column), method("gcl", "written", "", column)
        assert row.sampler is class_balanced
        assert text.describe()["sampler"] == TEXT
        cben = method("gcl", "released", "sampler=cben", column)
        assert {k for k, v in cben.describe().items() if v != row.describe()[k]} == {"sampler"}
        assert cben.describe()["sampler"] == CODE
    assert method("gcl", "released").describe() == method("gcl-class-balance", "released").describe()
    assert method("gcl", "written").describe() == method("gcl-cben", "written").describe()
    assert method("gcl", "released", "sampler=cben").describe() == method("gcl-cben", "released").describe()


def test_a_switch_departs_in_one_thing_only():
    def differences(reading, variant):
        base, other = (method("gcl", reading, v).describe() for v in ("", variant))
        return {k for k in base if base[k] != other[k]}

    assert differences("written", "cloud=0.5") == {"loss", "starts_from"}
    assert differences("written", "classifier=kept") == {"head"}
    assert differences("released", "loss=equation") == {"loss"}
    half = method("gcl", "written", "cloud=0.5").describe()
    assert half["loss"]["cloud"] == half["starts_from"]["loss"]["cloud"] == 0.5


def test_the_second_stage_of_the_text_has_switches_of_its_setting_alone():
    for name in ("gcl", "mixup-crt"):
        row = method(name, "written")
        for rate in (0.01, 0.02, 0.2):
            switched = method(name, "written", f"rate={rate}")
            assert switched.protocol == replace(row.protocol, rate=rate)
            assert switched.describe() == row.describe()
    moving, row = method("mixup-crt", "written", "statistics=moving"), method("mixup-crt", "written")
    assert moving.protocol == replace(row.protocol, moving_statistics=True)
    assert moving.describe() == row.describe()


def test_statistics_move_on_cifar100_only_and_where_the_second_stage_is_mislas():
    for name, reading in (("mislas", "written"), ("mislas", "released"), ("mixup-crt", "released")):
        assert method(name, reading, column="cifar100-lt-50").protocol.moving_statistics, name
        assert not method(name, reading, column="cifar10-lt-50").protocol.moving_statistics, name
    for name, reading in (("mixup-crt", "written"), ("gcl", "written"), ("gcl", "released")):
        assert not method(name, reading, column="cifar100-lt-50").protocol.moving_statistics, name
    assert not any(p.moving_statistics for p in PROTOCOLS.values())


def test_deconfound_tde_has_its_sources_network_and_setting_and_is_trained_once():
    for column, alpha in ((ABLATION, 1.0), ("cifar100-lt-100", 1.5)):
        written, released = (method("deconfound-tde", reading, column=column) for reading in READINGS)
        assert (written.head.kind, written.head.alpha, written.net.kind) == ("causal", alpha, "two-branch")
        assert written.describe() == released.describe()
        setting = written.protocol
        assert setting == released.protocol
        assert (setting.epochs, setting.batch_size, setting.weight_decay, setting.drop_last) == (200, 256, 0.0005, True)
        shares = [setting.learning_rate(e) / 0.2 for e in (0, 1, 2, 3, 4, 118, 119, 158, 159)]
        assert shares == pytest.approx([0.467, 0.6, 0.733, 0.867, 1, 1, 0.01, 0.01, 0.0001], abs=5e-4)


def test_nothing_is_trained_at_ratio_200_that_table_5_2_does_not_print_there():
    frame = published(PAPER)
    for column in COLUMNS:
        printed = set(frame[(frame["table"] == "5.2") & (frame["column"] == column)]["method"])
        if column not in (PARAMS.toy, ABLATION):
            assert {m.name for m in listed(column)} == printed, column


def test_what_is_trained_where():
    names = {column: {m.name for m in listed(column)} for column in COLUMNS}
    assert names[PARAMS.toy] == {"ce"}
    assert all(len(names[c]) == (19 if c == ABLATION else 7 if c.endswith("-200") else 9) for c in COLUMNS if c != PARAMS.toy)
    quick = {c.name: {m.name for m in listed(c.name, "quick")} for c in PAPER.columns["quick"] if c.name not in PAPER.large}
    assert quick == {"digits-lt-20": names[ABLATION], "digits-100-40-20-10": {"ce"}}
    for column in COLUMNS:
        labels = [m.label for m in listed(column)]
        assert len(labels) == len(set(labels))


def test_features_are_kept_where_a_figure_shows_them():
    kept = {m.label for m in listed(ABLATION) if m.keep_features}
    assert kept == {f"{name}@{reading}" for name in ("ce", "gcl") for reading in READINGS}
    assert {m.label for m in listed(PARAMS.toy) if m.keep_features} == {"ce@written"}
    assert {m.name for m in listed("cifar100-lt-50") if m.keep_features} == {"ce"}


def test_figures_without_records_say_what_is_missing_and_figure_5_3_needs_none():
    for figure in PAPER.figures:
        drawn = figure.draw(Results(PAPER, {}, "paper"))
        assert isinstance(drawn, str) == (figure.number != "5.3"), figure.number
    data = figure_5_3(Results(PAPER, {}, "paper")).data
    assert "-0.5" in {str(v) for v in data.to_numpy().ravel()}


def test_what_the_printed_numbers_say_of_the_claims():
    printed = {o.claim.id: o.printed for o in evaluate(Results(PAPER, {}, "paper"))}
    assert {name: verdict for name, verdict in printed.items() if verdict.startswith("fails")} == {
        "mislas-second-best-among-quoted": "fails (1 of 4 columns)", "head-decreases-least": "fails (1 of 1 columns)"}
    assert {name for name, verdict in printed.items() if verdict == "not printed"} == {"better-on-tail-classes"}


@pytest.mark.parametrize(("column", "epochs", "batch", "rate"), [  # Table 5.1, "Re-balancing Classifier"
    ("imagenet-lt-resnet50", 10, 256, 0.002), ("inaturalist2018-resnet50", 30, 256, 0.002),
    ("places-lt-resnet152", 30, 512, 0.004)])
def test_gcl_on_large_sets_has_both_stages_of_the_text(column, epochs, batch, rate):
    row, small = method("gcl", "written", column=column), method("gcl", "written")
    assert {key for key, value in row.describe().items() if value != small.describe()[key]} == {"starts_from"}
    assert {key for key, value in row.first_stage.describe().items() if value != small.first_stage.describe()[key]} == {"mixup"}
    second = row.protocol
    assert (second.epochs, second.batch_size, second.schedule, second.moving_statistics) == (epochs, batch, "cosine", False)
    assert [second.learning_rate(e) for e in (0, epochs // 2)] == pytest.approx([rate, rate / 2])
    assert method("mixup-crt", "written", column=column).protocol == second
    mislas = method("mislas", "written", column=column)
    assert (mislas.protocol.epochs, mislas.protocol.batch_size, mislas.protocol.moving_statistics) == (10, 256, True)
    assert mislas.loss.keywords == ({"head": 0.4, "tail": 0.1} if "places" in column else {"head": 0.3, "tail": 0.0})


def test_the_released_stages_on_places_lt_are_the_scripts():
    column = "places-lt-resnet152"
    row, text = method("gcl", "released", column=column), method("gcl", "written", column=column)
    form = {"function": "cloud_logarithm"}
    assert row.first_stage.describe()["loss"] == {"function": "gcl", "s": 30.0, "cloud": 1.0, "sigma": 1 / 3, "size": form}
    assert row.first_stage.describe() == text.first_stage.describe()  # but for the setting, which trains the last block alone
    assert (row.first_stage.protocol.trains, text.first_stage.protocol.trains) == ("last", "all")
    assert row.describe()["loss"] == {
        "function": "gcl_blended_labels", "s": 15.0, "cloud": 1.0, "sigma": 1 / 3, "m": 0.1, "gamma": 1.0}
    assert (row.sampler, row.head.keep, row.mixup, row.noise) == (class_balanced, True, 0.0, "normal")
    for e in (0, 7, 29):  # lr * 0.1 * [0.1 * (1 + cos(pi e / 30))] with lr = 0.1, as the script computes it
        assert row.protocol.learning_rate(e) == pytest.approx(0.1 * 0.1 * (0.1 * (1 + math.cos(math.pi * e / 30))))
    assert (row.protocol.epochs, row.protocol.batch_size, row.protocol.weight_decay) == (30, 512, 0.0005)
    assert [m.label for m in listed(column) if m.reading == "released"] == ["ce@released", "gcl@released"]


def test_claims_on_large_sets_are_not_run():
    verdicts = {o.verdict for o in evaluate(Results(PAPER, {}, "paper")) if "5.3" in o.claim.tables or "5.7" in o.claim.tables}
    assert all(v.startswith("not run") for v in verdicts), verdicts
