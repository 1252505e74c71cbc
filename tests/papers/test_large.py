"""The columns of large sets of all papers: a row for every printed number, the settings that the texts print, the pipelines."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from common.data.large_sets import LARGE
from common.models.sizes import NETWORKS
from common.plan import plan
from common.report.published import published
from common.train.sharded import check_method
from papers.catalog import PAPERS

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {paper.name: paper for paper in PAPERS if paper.large}
PRINTED = {"icu": 8, "kps": 36, "fbl": 19, "gcl": 62, "two_head": 44}
LEFT_OUT = {("kps", "inaturalist2018-resnet50", "meta-ce")}  # ten held-out images a class, where classes have two
COLUMNS = [(name, column) for name, paper in BY_NAME.items() for column in paper.large if not column.startswith("miniature")]


def column_of(name: str, column: str):
    return next(c for c in BY_NAME[name].columns["paper"] if c.name == column)


def rows(name: str, column: str) -> list:
    return list(BY_NAME[name].rows("paper", column_of(name, column)))


def chain(method) -> list:
    """A row and the stages that it starts from."""
    return [method, *(chain(method.first_stage) if method.first_stage else [])]


def test_every_printed_number_on_a_large_set_has_its_row_and_every_row_a_number():
    assert sum(PRINTED.values()) == 169
    assert BY_NAME.keys() == PRINTED.keys()
    for name, paper in BY_NAME.items():
        frame = published(paper)
        frame = frame[frame["dataset"].isin(LARGE)]
        assert len(frame) == PRINTED[name]
        mine = [column for owner, column in COLUMNS if owner == name]
        assert set(frame["column"]) == set(mine)
        for column in mine:
            printed = set(frame[frame["column"] == column]["method"])
            left_out = {method for p, c, method in LEFT_OUT if (p, c) == (name, column)}
            assert {m.name for m in rows(name, column)} | left_out == printed, (name, column)


def test_columns_are_of_known_sets_and_networks_and_the_quick_profile_has_drawn_images_alone():
    for name, paper in BY_NAME.items():
        mine = [c for profile in ("paper", "quick") for c in paper.columns[profile] if c.dataset in LARGE]
        assert [c.name for c in mine] == list(paper.large), name
        assert all(c.backbone in NETWORKS and c.ratio == 1 for c in mine)
        assert {c.dataset for c in paper.columns["quick"] if c.dataset in LARGE} <= {"miniature"}


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_the_engine_takes_every_row_and_no_row_keeps_features(name, column):
    labels = [m.label for m in rows(name, column)]
    assert len(labels) == len(set(labels))
    for planned in plan(BY_NAME[name], "paper", columns=(column,), seeds=1):
        assert not planned.method.keep_features
        while planned:
            check_method(planned)
            planned = planned.start


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_stages_have_the_settings_of_their_column(name, column):
    """A first stage has that of its reading and trains more than a head; a row that starts from one has another."""
    settings = BY_NAME[name].large[column]
    for row in rows(name, column):
        first, own = settings[row.reading], row.protocol or settings[row.reading]
        assert (own == first) == (row.first_stage is None), row.label
        if row.first_stage:
            assert own in settings.values()
            assert own.trains == ("all" if row.name == "oltr" and column != "places-lt-resnet152" else "head")
            assert (row.first_stage.protocol, row.first_stage.reading) == (first, row.reading)
            assert not own.pretrained
    for reading in {row.reading for row in rows(name, column)}:
        assert settings[reading].pretrained == (column == "places-lt-resnet152")
        assert settings[reading].trains == ("last" if (column, reading) == ("places-lt-resnet152", "released") else "all")
        assert settings[reading].crop == ("resize-crop" if name == "kps" else "random-resized")
        assert settings[reading].jitter == 0


# Tables 3.1, 4.1 and 5.1, section 4.1 of ICU, FBL's and GCL's codes: epochs, batch, weight decay, rates by epoch
FIRST_STAGES = {
    ("icu", "imagenet-resnet101", "written"): (100, 256, 5e-4, {0: 0.01, 49: 0.01, 50: 0.001, 74: 0.001, 75: 0.0001}),
    ("kps", "imagenet-lt-resnet50", "written"): (180, 128, 1e-4, {0: 0.1, 119: 0.1, 120: 0.01, 160: 0.001}),
    ("kps", "imagenet-lt-resnext50", "written"): (180, 128, 1e-4, {0: 0.1, 119: 0.1, 120: 0.01, 160: 0.001}),
    ("kps", "inaturalist2018-resnet50", "written"): (180, 512, 1e-4, {0: 0.2, 119: 0.2, 120: 0.02, 160: 0.002}),
    ("fbl", "imagenet-lt-resnet50", "written"): (200, 512, 2e-4, {0: 0.04, 4: 0.2, 159: 0.2, 160: 0.002, 180: 2e-5}),
    ("fbl", "imagenet-lt-resnet50", "released"): (200, 512, 2e-4, {0: 0.04, 4: 0.2, 119: 0.2, 120: 0.02, 160: 0.002}),
    ("fbl", "inaturalist2018-resnet50", "written"): (180, 512, 1e-4, {0: 0.04, 4: 0.2, 119: 0.2, 120: 0.02, 160: 0.002}),
    ("fbl", "inaturalist2018-resnet50", "released"): (200, 512, 2e-4, {0: 0.04, 4: 0.2, 119: 0.2, 120: 0.02, 160: 0.002}),
    ("fbl", "places-lt-resnet152", "written"): (90, 512, 5e-4, {0: 0.04, 4: 0.2, 59: 0.2, 60: 0.02, 80: 0.002}),
    ("fbl", "places-lt-resnet152", "released"): (200, 512, 2e-4, {0: 0.04, 4: 0.2, 59: 0.2, 60: 0.02, 80: 0.002}),
    ("gcl", "imagenet-lt-resnet50", "written"): (200, 256, 2e-4, {0: 0.02, 4: 0.1, 159: 0.1, 160: 0.001, 180: 1e-5}),
    ("gcl", "inaturalist2018-resnet50", "written"): (180, 256, 1e-4, {0: 0.02, 4: 0.1, 119: 0.1, 120: 0.01, 160: 0.001}),
    ("gcl", "places-lt-resnet152", "written"): (90, 512, 5e-4, {0: 0.04, 4: 0.2, 59: 0.2, 60: 0.02, 80: 0.002}),
    ("gcl", "places-lt-resnet152", "released"): (90, 512, 5e-4, {0: 0.04, 4: 0.2, 59: 0.2, 60: 0.02, 80: 0.002}),
    ("two_head", "imagenet-lt-resnext50", "written"): (90, 512, 5e-4, {0: 0.2, 30: 0.15, 45: 0.1, 60: 0.05}),  # a cosine
}


def test_first_stages_are_those_of_the_texts_and_the_codes():
    for (name, column, reading), (epochs, batch, decay, rates) in FIRST_STAGES.items():
        p = BY_NAME[name].large[column][reading]
        assert (p.epochs, p.batch_size, p.momentum, p.weight_decay, p.optimiser) == (epochs, batch, 0.9, decay, "sgd")
        assert {e: p.learning_rate(e) for e in rates} == pytest.approx(rates), (name, column, reading)
    readings = {(name, column, m.reading) for name, column in COLUMNS for m in rows(name, column)}
    assert readings == FIRST_STAGES.keys()


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_mixup_has_the_alpha_of_large_sets_wherever_it_is(name, column):
    mixing = {m.name for m in rows(name, column) if any(stage.mixup for stage in chain(m))}
    assert mixing <= {"mixup", "kps-mixup", "mixup-crt", "mislas", "mislas-kps", "gcl", "two-head-full"}
    assert {stage.mixup for m in rows(name, column) for stage in chain(m)} <= {0.0, 0.2}
    for m in rows(name, column):
        if m.name in mixing:  # in the first stage, or in the only one
            assert [stage.mixup for stage in chain(m)] == ([0.0, 0.2] if m.first_stage else [0.2]), m.label


def test_large_columns_are_planned_only_where_they_are_named_and_a_set_names_all_of_its():
    for paper in BY_NAME.values():
        assert not {item.spec.column.name for item in plan(paper, "paper", seeds=1)} & paper.large.keys()
    kps = {item.spec.column.name for item in plan(BY_NAME["kps"], "paper", columns=("imagenet-lt",), seeds=1)}
    assert kps == {"imagenet-lt-resnet50", "imagenet-lt-resnext50"}


def test_plan_says_where_the_hours_of_a_large_column_are_beside_those_of_small_ones():
    def said(*columns: str) -> str:
        named = [word for column in columns for word in ("--column", column)]
        done = subprocess.run([sys.executable, "-m", "papers", "plan", "--profile", "paper", *named], cwd=ROOT,
                              capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        return " ".join(done.stdout.split())

    large, both = said("imagenet-lt-resnet50"), said("imagenet-lt-resnet50", "cifar10-lt-100")
    for text in (large, both):
        assert re.search(r"\d+ of them are of large sets, whose GPU-hours `table` writes into tables/<profile>/large.md", text)
    assert "Expected: " not in large
    assert "unknown" not in large
    assert re.search(r"Expected: [\d.]+ \w+ on |the time is unknown", both)


# ---------------------------------------------------------------- pipelines


@pytest.mark.parametrize("name", BY_NAME)
def test_the_pipeline_has_a_frozen_stage_for_each_large_column(name):
    paper = BY_NAME[name]
    stages = yaml.safe_load((paper.folder / "dvc.yaml").read_text())["stages"]
    large, small = stages["train-large"], stages["train"]["do"]
    assert large["foreach"] == {c: column_of(name, c).dataset for owner, c in COLUMNS if owner == name}
    stage = large["do"]
    assert (stage["frozen"], stage["wdir"], "outs" in stage) == (True, small["wdir"], False)
    assert shlex.split(stage["cmd"])[:5] == ["torchrun", "--standalone", "--nproc-per-node=gpu", "-m", f"papers.{name}.replicate"]
    assert shlex.split(stage["cmd"])[5:9] == ["train", "--profile", "paper", "--column"]
    assert stage["deps"] == ["data/${item}.npz", f"papers/{name}/plans/paper/${{key}}.csv"]


def test_dvc_reads_them():
    pytest.importorskip("dvc")
    for name in BY_NAME:
        words = (sys.executable, "-m", "dvc", "stage", "list", "--name-only", f"papers/{name}/dvc.yaml")
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
                              env={"DVC_NO_ANALYTICS": "1", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())})
        assert done.returncode == 0, done.stderr
        found = {line.rpartition(":")[2] for line in done.stdout.split()}
        assert {f"train-large@{column}" for owner, column in COLUMNS if owner == name} <= found


@pytest.mark.parametrize("name", BY_NAME)
def test_the_readme_says_how_a_large_column_is_trained(name):
    text = (BY_NAME[name].folder / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(".venv/bin/torchrun ")]
    assert lines, "no torchrun command"
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[words.index("-m") + 1:][:2] == [f"papers.{name}.replicate", "train"]
        assert plan(BY_NAME[name], "paper", columns=(words[words.index("--column") + 1],), seeds=1)
