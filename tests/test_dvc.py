"""DVC as its users know it: `repro` trains what a change concerns and nothing else, `status`, `metrics`, `plots` and `exp` say
something, weights and data go to a remote and come back. One small clone is trained once; every test works on a copy of it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from common.checkout import commit
from common.pipeline.plans import LOCK, followed, lock_entry, place, plan_bytes, write_made, write_plans, write_summary
from common.pipeline.stages import pipeline_files
from common.plan import plan
from common.spec import describe_function
from common.store import save_record
from papers.catalog import PAPERS
from tests.common.cli.test_main import make_small
from tests.records import make_record, toy_paper

pytest.importorskip("dvc")
ROOT = Path(__file__).resolve().parents[1]
PAPER = next(paper for paper in PAPERS if paper.name == "mm")
COLUMNS = ("digits-lt-20", "digits-step-20")
STAGES = {"prepare@digits", "mm-plan", *(f"mm-train@{name}" for name in COLUMNS), "mm-tables", "mm-figures"}
QUICK = "mm-tables mm-figures"
PARAMS, SCRIPT, TABLE = "papers/mm/params.yaml", "papers/mm/replicate.py", "papers/mm/tables/quick/table-1.md"

# Several commands in one process: DVC takes a second to import. Each is told by the line before it.
IN_ONE = """
import json, sys
from dvc.cli import main
for words in json.loads(sys.argv[1]):
    print("$ dvc", *words, flush=True)
    if code := main(words):
        sys.exit(code)
"""


def sh(*words: str, cwd: Path) -> str:
    """Run with this environment's programs first on the PATH; returns what it printed."""
    who = {f"GIT_{role}_{part}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
                          env=os.environ | path | who, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout
    return done.stdout


def dvc(cwd: Path, *commands: str) -> list[str]:
    """What each command of DVC printed."""
    said = sh(sys.executable, "-u", "-c", IN_ONE, json.dumps([shlex.split(command) for command in commands]), cwd=cwd)
    return re.split(r"^\$ dvc .*\n", said, flags=re.MULTILINE)[1:]


def papers_command(cwd: Path, *words: str, module: str = "papers") -> str:
    return sh(sys.executable, "-m", module, *words, cwd=cwd)


def commit_all(clone: Path) -> None:
    sh("git", "add", "-A", cwd=clone)
    sh("git", "commit", "-qm", "t", cwd=clone)


def replace_in(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in pairs:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    path.write_text(text)


def ran(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A clone whose quick profile of the first paper, of seconds, was made by DVC; nobody changes it."""
    copy = make_small(tmp_path_factory.mktemp("dvc") / "made")
    (copy / LOCK).write_text("schema: '2.0'\nstages: {}\n")
    sh("git", "init", "-q", cwd=copy)
    commit_all(copy)
    first, again = dvc(copy, f"repro {QUICK}", f"repro {QUICK}")
    assert ran(first) == STAGES
    assert ran(again) == set()
    assert (copy / TABLE).exists()
    assert sh("git", "status", "--porcelain", cwd=copy) == " M dvc.lock\n"  # no file that git does not know
    commit_all(copy)
    return copy


@pytest.fixture
def clone(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "clone", symlinks=True))


def words_of(path: Path) -> list[str]:
    """The comments of a file, in their order."""
    return [" ".join(line.split("#", 1)[1].split()) for line in path.read_text().splitlines() if "#" in line]


def test_an_experiment_trains_what_its_number_concerns_and_shows_it_in_a_few_columns(clone, made):
    """The parameters keep their comments and order. Not more than that: DVC writes its own line breaks."""
    run, table, difference, numbers = dvc(
        clone, f"exp run mm-tables -S {PARAMS}:grids.digits-step-20.best=1.35", "exp show --only-changed --csv",
        "metrics diff --md", "params diff --md")
    assert ran(run) == {"mm-plan", "mm-train@digits-step-20", "mm-tables"}
    assert "Training 3 runs" in run  # one row in both readings and one in its own: nothing else has this number
    names = next(line for line in table.splitlines() if line.startswith("Experiment,")).split(",")
    assert len(names) <= 12, names
    shown = {name.rpartition(":")[2] for name in names}  # DVC puts the file before a name that several files have
    assert {"grids.digits-step-20.best", "accuracy_of_own"} <= shown
    assert re.search(r"scores/quick/metrics.json \| +accuracy_of_own", difference)
    assert re.search(r"best \| +1.3 +\| +1.35", numbers)
    assert sh("git", "status", "--porcelain", cwd=clone).splitlines() == [" M dvc.lock", f" M {PARAMS}"]
    assert words_of(clone / PARAMS) == words_of(made / PARAMS)
    old, new = (yaml.safe_load((copy / PARAMS).read_text()) for copy in (made, clone))
    assert list(flat(new)) == list(flat(old))
    assert {name: value for name, value in flat(new).items() if value != flat(old)[name]} == {"grids.digits-step-20.best": 1.35}


def flat(content: Mapping, before: str = "") -> dict:
    return {name: leaf for key, value in content.items() for name, leaf in (
        flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}).items()}


def test_metrics_and_plots_say_something(clone):
    numbers, drawn = dvc(clone, "metrics show --json", "plots show")
    found = json.loads(next(line for line in numbers.splitlines() if line.startswith("{")))[""]["data"]
    quick, published = (found[f"papers/mm/scores/{profile}/metrics.json"]["data"] for profile in ("quick", "paper"))
    assert 40 < quick["runs"] <= 51  # no table has a cell for the others
    assert 0 < quick["accuracy_of_own"] < 100
    assert sum(published["cells"].values()) > quick["cells"]["run"] > 0
    page = Path(drawn.strip().splitlines()[-1].removeprefix("file://")).read_text()
    assert '"method": "mm-drw@released"' in page
    assert '"verdict": "run"' in page
    assert sh("git", "status", "--porcelain", cwd=clone) == ""


def test_a_record_that_comes_in_and_another_stand_in_rebuild_tables_and_train_nothing(clone):
    readme = clone / "papers/mm/results/paper/README.md"
    readme.write_text(readme.read_text() + "\n")
    assert ran(dvc(clone, "repro mm-figures")[0]) == {"mm-figures"}
    replace_in(clone / PARAMS, ("digits-step-20: cifar10-step-100", "digits-step-20: cifar10-step-10"))
    assert ran(dvc(clone, "repro mm-tables")[0]) == {"mm-plan", "mm-tables"}
    assert "in place of cifar10-step-10)" in (clone / TABLE).read_text()


def test_a_changed_equation_trains_its_own_rows_again_and_its_words_none(clone, made):
    """The equation of the text's margin is in the rows of `mm`, `mm_ldam` and `mm_scaled_margin`, and in no other."""
    equation = "(-(z_y - z_rival).clamp(min=0) - delta_plus).exp()"
    replace_in(clone / SCRIPT, (equation, f"2 * {equation}"))
    again, = dvc(clone, "repro mm-train@digits-step-20")
    for column in PAPER.columns["quick"]:
        own = {row.label: PAPER.spec("quick", column, row, 0).key for row in PAPER.rows("quick", column)
               if describe_function(row.loss)["function"] in ("mm", "mm_ldam", "mm_scaled_margin")}
        old, new = (set((copy / f"papers/mm/plans/quick/{column.name}.csv").read_text().splitlines()) for copy in (made, clone))
        rows = {line.split(",")[0] for line in new - old}
        assert rows
        assert {own[row] for row in rows} == set(own.values())
    assert f"Training {len(rows)} runs" in again, again
    replace_in(clone / SCRIPT, ('"""Eq. (2):', '"""Equation (2) of the paper:'))
    assert ran(dvc(clone, "repro mm-train@digits-step-20")[0]) == {"mm-plan"}  # the plans are the same


def test_lost_records_are_made_again_and_merged_ones_are_not(clone):
    """What was trained elsewhere arrives by `merge`; DVC then has a stage to look at, which finds nothing to train."""
    table = (clone / TABLE).read_text()
    papers_command(clone, "pack-records", "records.tar", "--profile", "quick")
    lost = sorted(clone.glob("papers/mm/results/quick/digits-step-20/*-ce@*.json"))
    assert len(lost) == 1
    lost[0].unlink()
    assert "Training 1 runs" in dvc(clone, "repro mm-train@digits-step-20")[0]
    sh("make", "clean", cwd=clone)
    assert re.search(r"deleted: +papers/mm/summaries/quick", dvc(clone, f"status {QUICK}")[0])
    assert "Merged 51 new" in papers_command(clone, "merge", "records.tar")
    again, = dvc(clone, f"repro {QUICK}")
    papers_command(clone, "table", "--profile", "paper", module="papers.mm.replicate")  # goes beside the quick profile's
    state, = dvc(clone, f"status {QUICK}")
    assert "Training" not in again
    assert "nothing to train" in again
    assert "up to date" in state
    assert (clone / TABLE).read_text() == table


def test_a_prepared_dataset_survives_dvc(clone, cifar10):
    shutil.copy(cifar10 / "cifar10.npz", clone / "data")
    assert ran(dvc(clone, "repro data/dvc.yaml:prepare@cifar10")[0]) <= {"data/dvc.yaml:prepare@cifar10"}
    assert (clone / "data" / "cifar10.npz").exists()
    assert sh("git", "status", "--porcelain", cwd=clone) == ""  # the lock had the very bytes


def test_weights_data_tables_and_figures_go_to_a_remote_and_come_back(clone, tmp_path):
    """A published column, on the digits: what DVC trains it locks as `pipeline` does, and another clone has all of it."""
    head, tail = (clone / PARAMS).read_text().split("quick:", 1)
    for old, new in (("seeds: 3", "seeds: 1"), ("epochs: 200", "epochs: 2"), ("warmup_epochs: 5", "warmup_epochs: 1"),
                     ("[160, 180]", "[1]"), ("batch_size: 128", "batch_size: 32"),
                     ("    cifar10-lt-100:", "    digits-step-20: {dataset: digits, imbalance: step, ratio: 20, "
                                             "backbone: resnet8, subset: hash}\n    cifar10-lt-100:")):
        assert head.count(old) == 1, old
        head = head.replace(old, new)
    (clone / PARAMS).write_text(f"{head}quick:{tail}")
    papers_command(clone, "pipeline")
    commit_all(clone)
    trained, = dvc(clone, "repro papers/mm/dvc.yaml:train@digits-step-20")
    assert "Training" in trained
    record = next(clone.glob("papers/mm/results/paper/digits-step-20/*.json"))
    assert json.loads(record.read_text())["made"]["commit"] == commit(clone).removesuffix("-dirty")
    lock = yaml.safe_load((clone / "papers/mm/dvc.lock").read_text())
    papers_command(clone, "pipeline")
    assert yaml.safe_load((clone / "papers/mm/dvc.lock").read_text()) == lock
    assert list(lock["stages"]) == ["train@digits-step-20"]

    weights = "papers/mm/checkpoints/paper/digits-step-20"
    dvc(clone, f"remote add -d store {tmp_path / 'store'}", f"add {weights}", f"repro {QUICK}",
        "repro -s papers/mm/dvc.yaml:tables", "push")
    assert (clone / f"{weights}.dvc").exists()
    commit_all(clone)
    other = tmp_path / "other"
    sh("git", "clone", "-q", clone, other, cwd=tmp_path)
    made = (f"prepare@digits {QUICK} mm-train mm-plan papers/mm/dvc.yaml:train@digits-step-20 papers/mm/dvc.yaml:tables "
            f"{weights}.dvc")
    before, _, after, rest = dvc(
        other, "status papers/mm/dvc.yaml", "pull --allow-missing", f"status {made}", "status papers/mm/dvc.yaml")
    assert "train@cifar10-lt-100:" in before
    assert "train@digits-step-20" not in before + rest
    assert "up to date" in after
    assert "train@cifar10-lt-100:" in rest
    for name in (weights, "data/digits.npz", "papers/mm/tables/paper", "papers/mm/figures/quick"):
        here, there = (sorted(p for p in (copy / name, *(copy / name).glob("*")) if p.is_file()) for copy in (clone, other))
        assert [p.read_bytes() for p in there] == [p.read_bytes() for p in here] != [], name
    assert sh("git", "status", "--porcelain", cwd=other) == ""


# ---------------------------------------------------------------- what is generated


def test_what_dvc_follows_is_what_the_papers_say():
    """Else: `python -m papers pipeline`."""
    for path, text in pipeline_files(PAPERS).items():
        assert path.read_text() == text, f"{path} is out of date: run `python -m papers pipeline`"
    for paper in PAPERS:
        names = {column.name for column in followed(paper, "paper")}
        plans = {file.stem: file.read_bytes() for file in (paper.folder / "plans" / "paper").glob("*.csv")}
        assert plans == {name: plan_bytes(plan(paper, "paper", columns=(name,))) for name in names}, (
            f"the plans of {paper.name} are out of date: run `python -m papers pipeline`")


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_every_column_has_its_stage_and_every_parameter_is_followed(paper):
    quick = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    published = yaml.safe_load((paper.folder / "dvc.yaml").read_text())["stages"]
    for profile, stage in (("quick", quick[f"{paper.name}-train"]), ("paper", published["train"])):
        assert stage["foreach"] == [c.name for c in followed(paper, profile) if c.name not in paper.large]
        assert f"papers/{paper.name}/plans/{profile}/${{item}}.csv" in stage["do"]["deps"]
    assert published.get("train-large", {}).get("foreach", {}) == {
        c.name: c.dataset for c in paper.columns["paper"] if c.name in paper.large}
    planned = quick[f"{paper.name}-plan"]
    assert planned["params"] == [{f"papers/{paper.name}/params.yaml": None}]
    assert {"common", *(f"papers/{paper.name}/{p.name}" for p in paper.folder.glob("[!_]*.py"))} == set(planned["deps"])


def test_a_frozen_stage_has_no_outs():
    """One whose outs were replaced by hand takes them, and edited code beside them, into dvc.lock as if that had made them
    (DVC 3.67); without outs there is nothing to take."""
    frozen = 0
    for path in (ROOT / "dvc.yaml", *ROOT.glob("*/dvc.yaml"), *ROOT.glob("papers/*/dvc.yaml")):
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            stage = stage.get("do", stage)
            kinds = {"outs", "metrics", "plots"} & set(stage)
            assert not (stage.get("frozen") and kinds), f"{path}: {name} is frozen and has {kinds}"
            frozen += bool(stage.get("frozen"))
    assert frozen == 5


def test_the_lock_is_true_for_the_columns_whose_runs_are_all_here_and_for_no_other(tmp_path):
    paper = toy_paper(tmp_path / "papers" / "toy")
    write_plans(paper, "paper")
    assert write_made(paper) == []
    first, second = (plan(paper, "paper", columns=(column.name,)) for column in paper.columns["paper"])
    for item in (*first, *second[1:]):
        save_record(item.folder, make_record(item, 70.0))
    assert write_made(paper) == ["cifar10-lt-100"]
    lock = yaml.safe_load((paper.folder / LOCK).read_text())
    lock["stages"]["tables"] = {"cmd": "made by DVC"}
    (paper.folder / LOCK).write_text(yaml.safe_dump(lock))
    save_record(second[0].folder, make_record(second[0], 70.0))
    next(first[0].folder.glob(f"*-{first[0].spec.key}-*.json")).unlink()
    assert write_made(paper) == ["cifar10-step-100"]
    lock = yaml.safe_load((paper.folder / LOCK).read_text())
    assert list(lock["stages"]) == ["train@cifar10-step-100", "tables"]
    assert lock["stages"]["train@cifar10-step-100"] == lock_entry(paper, "cifar10-step-100")
    assert not place(paper, "summaries", "paper", "cifar10-lt-100").exists()


def test_the_locks_here_are_true(tmp_path):
    """Else: `make report`, or `python -m papers pipeline`."""
    for paper in PAPERS:
        for name, entry in (yaml.safe_load((paper.folder / LOCK).read_text())["stages"] or {}).items():
            if name.startswith("train@"):
                column = name.partition("@")[2]
                assert entry == lock_entry(paper, column), f"{paper.folder / LOCK}: {name}"
                write_summary(tmp_path / "now.csv", plan(paper, "paper", columns=(column,)))
                assert place(paper, "summaries", "paper", column).read_bytes() == (tmp_path / "now.csv").read_bytes()
