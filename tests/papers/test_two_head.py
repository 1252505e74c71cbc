"""The two heads' rows, columns and parameters against the paper's printed tables and its text."""

from dataclasses import replace

import numpy as np
import pytest

from common.data.sets import SETS
from common.models.backbones import backbone
from common.models.sizes import NETWORKS
from common.plan import missing_runs, plan
from common.report.claims import load_claims
from common.report.compare import cells
from common.report.published import published
from common.report.results import Results
from common.train.clusters import cluster_counts
from papers.two_head.replicate import PAPER, PARAMS, adapter_channels

COLUMNS = {c.name: c for c in PAPER.columns["paper"] if c.name not in PAPER.large and not c.is_drawn}
IMAGENET = "imagenet-lt-resnext50"
PROTOCOL = PAPER.protocols["paper"]["written"]
SWITCHED = ("cifar100-lt-100", "cifar10-lt-100")


def listed(column: str, profile: str = "paper"):
    at = next(c for c in PAPER.columns[profile] if c.name == column)
    return PAPER.rows(profile, at)


def method(column: str, name: str, variant: str = ""):
    found = [m for m in listed(column) if (m.name, m.variant) == (name, variant)]
    assert len(found) == 1, (column, name, variant)
    return found[0]


def test_every_printed_number_has_a_method():
    frame = published(PAPER)
    assert len(frame) == 194
    assert sum(frame["column"] == IMAGENET) == 44
    for row in frame.itertuples():
        assert method(row.column, row.method).reading == "written"


def test_every_printed_number_gets_its_cell():
    found = cells(Results(PAPER, {}, "paper"))
    assert len(found) == 194
    assert {c.state for c in found if c.table != "3"} == {"no run yet"}


def test_the_setting_is_that_of_section_3_1():
    p = PROTOCOL
    assert (p.epochs, p.batch_size, p.momentum) == (200, 128, 0.9)
    assert [p.learning_rate(e) for e in (5, 119, 120, 160)] == pytest.approx([0.1, 0.1, 0.001, 0.00001])
    assert [p.learning_rate(e) for e in range(5)] == pytest.approx([0.14 / 3, 0.06, 0.22 / 3, 0.26 / 3, 0.1])  # BBN's warm-up


def test_columns_are_called_what_they_are():
    for profile in (PARAMS.paper, PARAMS.quick):
        assert all(name == column.name for name, column in profile.columns.items())
    assert set(PARAMS.stand_ins) == set(PARAMS.quick.columns)
    assert set(PARAMS.stand_ins.values()) <= set(PARAMS.paper.columns)


@pytest.mark.parametrize("name", sorted(PARAMS.channels.keys() - {"resnext50"}))
def test_channels_are_those_of_the_networks(name):
    assert backbone(name, 1, side=32).width == PARAMS.channels[name]


@pytest.mark.parametrize("column", COLUMNS)
def test_every_class_gets_channels_of_its_own(column):
    """Uneven groups where there are enough channels, else a trunk adapter with one channel a class."""
    full = method(column, "two-head-full")
    channels, classes = PARAMS.channels[COLUMNS[column].backbone], SETS[COLUMNS[column].dataset].classes
    assert (full.net.kind, full.head.groups) == ("shifted", "uneven")
    assert full.net.adapter == (0 if channels >= classes else classes)


def test_adapters_have_a_whole_number_of_channels_a_class():
    assert {name: adapter_channels(c) for name, c in COLUMNS.items()} == {
        **{f"cifar10-lt-{r}": 60 for r in (100, 50, 10)}, **{f"cifar100-lt-{r}": 100 for r in (100, 50, 10)},
        "cifar100-lt-100-resnet110": 100, "cifar100-lt-100-vgg16": 500, "cifar100-lt-100-mobilenetv2": 1200,
        **{f"tiny-imagenet-lt-{r}-resnet18": 400 for r in (100, 50, 10)}}


def test_the_four_rows_of_table_4_differ_by_the_heads_alone():
    ce, fbh, cdh, both = (method("cifar100-lt-50", name) for name in ("ce", "fbh", "cdh", "two-head"))
    assert [bool(m.head.groups) for m in (ce, fbh, cdh, both)] == [False, True, False, True]
    assert [bool(m.clusters) for m in (ce, fbh, cdh, both)] == [False, False, True, True]
    assert {m.clusters.pooling for m in (cdh, both)} == {"largest"}
    assert both.describe()["loss"] == {"function": "two_heads", "alpha": 0.5, "weight": 1.5}
    assert both.describe()["clusters"] == {"function": "cluster_numbers", "u": 10, "rounding": "nearest"}


def test_ours_full_adds_mixup_and_deferred_weights_to_both_heads():
    full, both = (method("cifar10-lt-50", name) for name in ("two-head-full", "two-head"))
    assert (full.mixup, both.mixup) == (1.0, 0.0)
    counts = np.array([5000, 500, 50])
    assert full.weights(counts, 119).tolist() == [1, 1, 1]
    assert full.weights(counts, 120)[2] > 50 * full.weights(counts, 120)[0]
    plain = replace(full, name=both.name, mixup=0.0, weights=both.weights)
    assert plain.describe() == both.describe()


@pytest.mark.parametrize("name", ["cdh", "two-head", "two-head-full"])
def test_the_sum_of_probabilities_is_read_off_the_same_training(name):
    wanted = (f"{name}@written", f"{name}[mapping=sum]@written")
    items = plan(PAPER, "paper", columns=("cifar10-lt-100",), methods=wanted, seeds=1)
    assert [m.method.variant for m in items] == ["", "mapping=sum"]
    assert items[1].start.spec.key == items[0].spec.key
    assert items[1].spec.protocol.epochs == 0
    assert items[1].method.clusters.pooling == "sum"


def test_clusterings_of_features_start_from_cross_entropy_of_the_same_seed():
    wanted = ("two-head[clustering=kmeans]@written", "two-head[clustering=hierarchical]@written", "ce@written")
    items = plan(PAPER, "paper", columns=("cifar100-lt-100",), methods=wanted, seeds=2)
    ce = {m.spec.seed: m.spec.key for m in items if m.method.name == "ce"}
    divided = [m for m in items if m.method.name == "two-head"]
    assert len(divided) == 4
    assert all(m.start.spec.key == ce[m.spec.seed] and m.method.start.takes == "clusters" for m in divided)
    assert missing_runs(divided[:1], {})[0].spec.key == ce[0]  # the start first


def test_sweeps_and_switches_change_one_thing():
    names = [m.label for m in listed("cifar100-lt-100")]
    assert len(names) == len(set(names))
    base = method("cifar100-lt-100", "cdh").describe()
    for u in (2, 5, 15, 20, 30):
        other = method("cifar100-lt-100", "cdh", f"u={u}").describe()
        assert other.pop("clusters") == {**base["clusters"], "u": u}
        assert other == {k: v for k, v in base.items() if k != "clusters"}
    for column in SWITCHED:
        for name in ("ce", "two-head"):
            assert method(column, name, "recipe=weight-decay").protocol == replace(PROTOCOL, weight_decay=0.0005)
            assert method(column, name, "recipe=decay-factor").protocol == replace(PROTOCOL, decay_factor=0.1)
        assert method(column, "ce", "adapter=trunk").net.adapter == adapter_channels(COLUMNS[column])
    assert method("cifar100-lt-100", "two-head", "groups=cyclic").net.adapter == 0
    assert not [m for m in listed("cifar10-lt-50") if m.variant and m.variant != "mapping=sum"]


def test_rows_with_an_adapter_have_controls_with_one_in_every_column_of_table_4():
    """Where FBH has a trunk adapter, and on the columns of the switches, CE and CDH are trained with one as well."""
    for column in {row.column for row in published(PAPER).itertuples() if row.table == "4"} | set(SWITCHED):
        adapter = method(column, "fbh").net.adapter
        controls = [m for m in listed(column) if m.name in ("ce", "cdh") and m.variant == "adapter=trunk"]
        assert [m.name for m in controls] == (["ce", "cdh"] if adapter or column in SWITCHED else []), column
        assert {m.net.adapter for m in controls} <= {adapter or 60}
        for control in controls:
            assert replace(control, net=replace(control.net, adapter=0)).describe() == method(column, control.name).describe()
    with_controls = {c for c in COLUMNS if any(m.label == "cdh[adapter=trunk]@written" for m in listed(c))}
    assert with_controls == {"cifar100-lt-100", "cifar100-lt-50", "cifar100-lt-10", "cifar10-lt-100"}
    for column in PARAMS.quick.columns:
        names = [m.label for m in listed(column, "quick")]
        assert {"ce[adapter=trunk]@written", "cdh[adapter=trunk]@written"} <= set(names)
        assert len(names) == len(set(names))


@pytest.mark.parametrize(("column", "moves"), [("cifar100-lt-100", True), ("cifar10-lt-100", False)])
def test_the_second_stage_of_ours_full_moves_statistics_where_mislass_does(column, moves):
    ours, theirs = method(column, "two-head-full", "reweight=stage2"), method(column, "mislas")
    assert ours.protocol == theirs.protocol
    assert ours.protocol.moving_statistics is moves


def test_clusters_fit_into_their_classes_in_every_column():
    from common.data.imbalance import class_counts

    for column in (*COLUMNS.values(), *PAPER.columns["quick"]):
        facts = SETS[column.dataset]
        counts = class_counts(column.imbalance, column.ratio, facts.train // facts.classes, facts.classes)
        for row in PAPER.methods(column, PAPER.protocols["paper"]):
            if row.clusters:
                assert cluster_counts(row, counts).min() == 1


def test_deferred_rows_begin_at_the_first_decay():
    """From 120 on the rates sum to 0.04; from 160, where LDAM's code has its first decay, to 0.0004: nothing would move."""
    assert sum(map(PROTOCOL.learning_rate, range(120, 200))) == pytest.approx(0.0404)
    counts = np.array([500, 5])
    for column in ("cifar100-lt-100", "tiny-imagenet-lt-10-resnet18", "digits-lt-20"):
        quick = column in PARAMS.quick.columns
        start = 12 if quick else 120
        found = {m.label: m for m in listed(column, "quick" if quick else "paper")}
        drs, drw, full = (found[f"{name}@written"] for name in ("drs", "ldam-drw", "two-head-full"))
        assert (drs.sampler(counts, start - 1), drs.sampler(counts, start).tolist()) == (None, [0.5, 0.5])
        for row in (drw, full):
            assert row.weights(counts, start - 1).tolist() == [1, 1]
            assert row.weights(counts, start)[1] > 1


def test_imagenet_lt_has_uneven_groups_and_its_own_deferral():
    assert PARAMS.channels["resnext50"] == NETWORKS["resnext50"].width
    counts = np.array([1280, 5])
    full = method(IMAGENET, "two-head-full")
    assert (full.net.kind, full.head.groups, full.net.adapter, full.mixup) == ("shifted", "uneven", 0, 0.2)
    assert full.weights(counts, 71).tolist() == [1, 1]
    assert full.weights(counts, 72)[1] > 1
    drs, drw = method(IMAGENET, "drs"), method(IMAGENET, "ldam-drw")
    assert (drs.sampler(counts, 71), drs.sampler(counts, 72).tolist()) == (None, [0.5, 0.5])
    assert (drw.weights(counts, 71).tolist(), drw.weights(counts, 72)[1] > 1) == ([1, 1], True)
    plain = replace(full, name="two-head", mixup=0.0, weights=method(IMAGENET, "two-head").weights)
    assert plain.describe() == method(IMAGENET, "two-head").describe()
    assert plain.describe() == method("cifar10-lt-50", "two-head").describe()
    lws = method(IMAGENET, "lws").protocol
    assert (lws.epochs, lws.batch_size, lws.weight_decay, lws.learning_rate(0)) == (5, 512, 0.0005, 0.2)


def test_claims_load():
    assert len(load_claims(PAPER)) >= 17


def test_rows_behind_an_adapter_are_compared_with_rows_behind_the_same():
    """Wherever a claim sets a row with an adapter against CE or CDH without one, it does so against them with one too."""
    adapted = {(c.name, m.name) for c in PAPER.columns["paper"] for m in PAPER.rows("paper", c)
               if m.net.adapter and not m.variant}
    assert {column.partition("-")[0] for column, _ in adapted} == {"cifar100"}
    checked = 0
    for claim in load_claims(PAPER):
        if claim.kind == "better" and any((column, claim.method) in adapted for column in claim.columns):
            for name in {"ce", "cdh"} & set(claim.than):
                assert f"{name}[adapter=trunk]" in claim.than, claim.id
                checked += 1
    assert checked == 5
    assert {claim.id for claim in load_claims(PAPER) if claim.ours} == {"mapping-decides", "summed-mapping-beats-ce"}
