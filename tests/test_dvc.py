"""`dvc repro`: the quick profile, then nothing to do; one number changed re-runs just what depends on it."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.spec import describe_function
from papers.catalog import PAPERS
from tests.common.cli.test_main import make_small
from tests.test_structure import imports

pytest.importorskip("dvc")
MM = ("mm-tables", "mm-figures")


def sh(*words: str, cwd: Path) -> str:
    """Run with this environment's programs first on the PATH; returns what it printed."""
    import os

    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def dvc(*words: str, cwd: Path) -> str:
    return sh(sys.executable, "-m", "dvc", *words, cwd=cwd)


def ran(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A fresh checkout with a quick profile of seconds."""
    copy = make_small(tmp_path_factory.mktemp("dvc") / "repo")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "t"]):
        sh("git", *words, cwd=copy)
    return copy


def test_repro_from_a_fresh_clone_then_nothing_then_only_what_changed(clone):
    everything = {"prepare@digits", "mm-train@digits-lt-20", "mm-train@digits-step-20", "mm-tables", "mm-figures"}
    first = dvc("repro", *MM, cwd=clone)
    assert ran(first) == everything
    assert (clone / "papers/mm/tables/table-1.md").exists()
    assert "up to date" in dvc("repro", *MM, cwd=clone)

    params = clone / "papers" / "mm" / "params.yaml"
    text = params.read_text()
    line = "digits-step-20: {delta: 0.6, betas: [1.2, 1.3, 1.4], best: 1.3}"
    assert line in text
    params.write_text(text.replace(line, line.replace("1.4]", "1.45]")))
    second = dvc("repro", *MM, cwd=clone)
    assert ran(second) == {"mm-train@digits-step-20", "mm-tables", "mm-figures"}
    assert "Training 2 runs" in second  # the new beta in both readings, nothing else
    assert "up to date" in dvc("repro", *MM, cwd=clone)

    params.write_text(text)
    third = dvc("repro", *MM, cwd=clone)
    assert "Training" not in third  # the old records are still there, or DVC's own cache is


def test_a_record_that_comes_in_rebuilds_the_tables_and_trains_nothing(clone):
    dvc("repro", *MM, cwd=clone)
    place = clone / "papers/mm/results/paper/README.md"
    place.write_text(place.read_text() + "\n")
    again = dvc("repro", *MM, cwd=clone)
    assert ran(again) == {"mm-tables", "mm-figures"}


def test_tables_follow_every_parameter(clone):
    dvc("repro", *MM, cwd=clone)
    params = clone / "papers" / "mm" / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("digits-step-20: cifar10-step-100", "digits-step-20: cifar10-step-10"))
    assert {"mm-tables", "mm-figures"} <= ran(dvc("repro", *MM, cwd=clone))
    assert "in place of cifar10-step-10)" in (clone / "papers/mm/tables/table-1.md").read_text()
    params.write_text(text)


def test_after_make_clean_the_records_are_made_again(clone):
    dvc("repro", *MM, cwd=clone)
    sh("make", "clean", cwd=clone)
    assert "Training" in dvc("repro", *MM, cwd=clone)
    assert list(clone.glob("papers/mm/results/quick/*/*.json"))


def test_records_that_are_lost_are_made_again(clone):
    import shutil

    dvc("repro", *MM, cwd=clone)
    shutil.rmtree(clone / "papers/mm/results/quick")
    again = dvc("repro", *MM, cwd=clone)
    assert "mm-train@digits-lt-20" in ran(again)
    assert list(clone.glob("papers/mm/results/quick/digits-lt-20/*.json"))
    assert list(clone.glob("papers/mm/results/quick/digits-lt-20/*.predictions.npz"))
    assert "up to date" in dvc("repro", *MM, cwd=clone)


def test_a_changed_equation_trains_its_own_rows_again_and_its_words_none(clone):
    """The equation of the text's margin is in the rows of `mm`, `mm_ldam` and `mm_scaled_margin`, and in no other."""
    from papers.mm.replicate import PAPER

    dvc("repro", *MM, cwd=clone)
    script = clone / "papers" / "mm" / "replicate.py"
    text = script.read_text()
    equation = "(-(z_y - z_rival).clamp(min=0) - delta_plus).exp()"
    assert text.count(equation) == 1
    script.write_text(text.replace(equation, f"2 * {equation}"))
    again = dvc("repro", *MM, cwd=clone)
    columns = PAPER.columns["quick"]
    own = [len({PAPER.spec("quick", column, row, 0).key for row in PAPER.rows("quick", column)
                if describe_function(row.loss)["function"] in ("mm", "mm_ldam", "mm_scaled_margin")}) for column in columns]
    assert own[0] > own[1] > 0
    assert all(f"Training {number} runs" in again for number in own), again
    script.write_text(script.read_text().replace('"""Eq. (2):', '"""Equation (2) of the paper:'))
    words = dvc("repro", *MM, cwd=clone)
    assert "nothing to train" in words
    assert "Training" not in words
    script.write_text(text)
    dvc("repro", *MM, cwd=clone)


def test_merged_records_are_not_trained_again(clone):
    """What was trained elsewhere arrives by `merge`; DVC then has a stage to look at, which finds nothing to train."""
    dvc("repro", *MM, cwd=clone)
    sh(sys.executable, "-m", "papers", "pack-records", "records.tar", "--profile", "quick", cwd=clone)
    sh("make", "clean", cwd=clone)
    assert "papers/mm/summaries/digits-lt-20.csv" in dvc("status", *MM, cwd=clone)
    assert "Merged 51 new" in sh(sys.executable, "-m", "papers", "merge", "records.tar", cwd=clone)
    again = dvc("repro", *MM, cwd=clone)
    assert "Training" not in again
    assert "nothing to train" in again
    assert "up to date" in dvc("status", *MM, cwd=clone)
    table = (clone / "papers/mm/tables/table-1.md").read_text()
    sh(sys.executable, "-m", "papers", "table", "--profile", "quick", cwd=clone)
    assert (clone / "papers/mm/tables/table-1.md").read_text() == table
    assert "up to date" in dvc("status", *MM, cwd=clone)


def test_a_prepared_dataset_survives_dvc(clone, cifar10):
    import shutil

    shutil.copy(cifar10 / "cifar10.npz", clone / "data")
    dvc("repro", "data/dvc.yaml:prepare@cifar10", cwd=clone)
    assert (clone / "data" / "cifar10.npz").exists()


NOT_TRAINING = ("report", "cli", "console", "options", "doctor", "campaign", "worth", "export", "travel", "merging", "stale",
                "selection", "draws")


def code_of(root: Path, paper: str) -> set[str]:
    """The files of a paper, and the files and folders of `common`, that its trainings import."""
    waiting, seen = [*root.glob(f"papers/{paper}/*.py"), root / "common" / "train" / "loop.py"], set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for module in imports(path):
            parts = module.split(".")
            if parts[0] in ("common", "papers") and len(parts) > 1 and parts[1] not in NOT_TRAINING:
                waiting += [(root / Path(*parts)).with_suffix(".py"), root / Path(*parts[:-1]) / f"{parts[-1]}.py"]
    found = [path.relative_to(root).as_posix() for path in seen if path.name != "__init__.py"]
    return {name if name.startswith("papers") or name.count("/") == 1 else "/".join(name.split("/")[:2]) for name in found}


@pytest.mark.parametrize("name", [p.name for p in PAPERS])
def test_every_paper_has_its_stages_for_every_column(name):
    import yaml

    root, paper = Path(__file__).resolve().parents[1], next(p for p in PAPERS if p.name == name)
    quick = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert quick[f"{name}-train"]["foreach"] == [c.name for c in paper.columns["quick"] if c.name not in paper.large]
    for stage in ("tables", "figures"):
        summaries = {d for d in quick[f"{name}-{stage}"]["deps"] if "summaries" in d}
        assert summaries == {f"papers/{name}/summaries/{c.name}.csv" for c in paper.columns["quick"] if c.name not in paper.large}
        assert quick[f"{name}-{stage}"]["outs"] == [f"papers/{name}/{stage}"]
    needed = code_of(root, name)
    for stage in (quick[f"{name}-train"], yaml.safe_load((root / f"papers/{name}/dvc.yaml").read_text())["stages"]["train"]):
        assert needed <= set(stage["do"]["deps"]), f"{name}: a stage must depend on {sorted(needed - set(stage['do']['deps']))}"
    published = yaml.safe_load((root / f"papers/{name}/dvc.yaml").read_text())["stages"]["train"]
    columns = [c for c in paper.columns["paper"] if c.name not in paper.large and not c.is_drawn]
    assert published["foreach"] == {c.name: c.dataset for c in columns}


def test_the_paper_pipeline_has_a_stage_for_each_column_and_its_parameters():
    import yaml

    from papers.mm.replicate import PAPER, PARAMS

    root = Path(__file__).resolve().parents[1]
    stages = yaml.safe_load((root / "papers/mm/dvc.yaml").read_text())["stages"]["train"]
    assert stages["foreach"] == {c.name: c.dataset for c in PAPER.columns["paper"] if not c.is_drawn}
    quick = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["mm-train"]
    assert quick["foreach"] == [c.name for c in PAPER.columns["quick"]]
    for block in (stages["do"]["params"], quick["do"]["params"]):
        for key in block[0]["papers/mm/params.yaml"]:
            value = PARAMS
            for part in key.replace("${key}", "cifar10-lt-100").replace("${item}", "digits-lt-20").split("."):
                value = value[part] if isinstance(value, dict) or hasattr(value, "keys") else getattr(value, part)


def test_a_frozen_stage_has_no_outs():
    """One whose outs were replaced by hand takes them, and edited code beside them, into dvc.lock as if that had made them
    (DVC 3.67); without outs there is nothing to take."""
    import yaml

    root, frozen = Path(__file__).resolve().parents[1], 0
    for path in (root / "dvc.yaml", *root.glob("*/dvc.yaml"), *root.glob("papers/*/dvc.yaml")):
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            stage = stage.get("do", stage)
            kinds = {"outs", "metrics", "plots"} & set(stage)
            assert not (stage.get("frozen") and kinds), f"{path}: {name} is frozen and has {kinds}"
            frozen += bool(stage.get("frozen"))
    assert frozen == 5
