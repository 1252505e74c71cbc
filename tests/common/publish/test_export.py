"""`export`: weights with their spec, and model cards as the Hub's own library reads them."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, eval_result_entries_to_yaml, parse_eval_result_entries
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from common.cli.main import COMMANDS
from common.cli.options import parser
from common.errors import UserError
from common.paper import Paper
from common.plan import Run, plan
from common.publish.export import eval_results, export_runs, find_checkpoint, model_card, to_bytes
from common.store import read_weights_metadata, save_record, weights_metadata
from tests.records import make_record, toy_paper

TENSORS = {"backbone.conv.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "head.weight": np.ones((1, 4, 10), np.float32),
           "backbone.steps": np.array(7, dtype=np.int64)}


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "papers" / "toy")


def runs(paper: Paper, *methods: str, seeds: int = 1) -> list[Run]:
    return plan(paper, "paper", columns=("cifar10-lt-100",), methods=methods, seeds=seeds)


def finish(item: Run, accuracy: float | None = 70.0, key: str = "", **changes) -> dict:
    """Leave what a finished run leaves: a record, and a checkpoint unless it diverged."""
    record = make_record(item, accuracy, **changes)
    save_record(item.folder, record)
    if accuracy is not None:
        item.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_file(TENSORS, item.checkpoint, weights_metadata(key=key or item.spec.key, label=item.method.label))
    return record


def test_weights_come_with_their_spec(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "own@released")
    record = finish(item)
    said: list[str] = []
    [folder] = export_runs([item], tmp_path / "out", tmp_path, said.append)
    assert folder == tmp_path / "out" / f"cifar10-lt-100-own@released-s0-{item.identity}"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".eval_results", "README.md", "config.json", "model.safetensors", "record.json"]
    found = load_file(folder / "model.safetensors")
    assert all(np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())
    assert set(found) == set(TENSORS)
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert list(metadata) == ["run"]
    assert json.loads(metadata["run"]) == {"key": item.spec.key, "label": "own@released", "spec": item.spec.as_json(),
                                           "record": record["digest"]}
    assert said == []


def test_the_card_is_what_the_hub_reads(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "ce")
    record = finish(item, 71.25, groups={"many": 80.0, "medium": None, "few": 60.5}, calibration={"ece": 12.345, "bins": []})
    [folder] = export_runs([item], tmp_path / "out", tmp_path, print)
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "cifar10-lt-100 ce@written seed 0"
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["uoft-cs/cifar10"])
    found = {one.metric_name: (one.metric_type, one.metric_value) for one in card.data.eval_results}
    assert found == {"Top-1 accuracy, last epoch, percent": ("accuracy", 71.25),
                     "Top-1 accuracy, many (over 100 training images), percent": ("accuracy", 80.0),
                     "Top-1 accuracy, few (under 20 training images), percent": ("accuracy", 60.5),
                     "Expected calibration error, percent": ("ece", 12.345)}
    one = card.data.eval_results[0]
    assert (one.task_type, one.dataset_type, one.dataset_name, one.dataset_config, one.dataset_split) == (
        "image-classification", "uoft-cs/cifar10", "cifar10-lt-100", "cifar10-lt-100", "test")
    assert f"| run | {record['key']} |" in card.text
    assert f"{sum(record['counts'])} in 10 classes, 100 in the largest and 1 in the smallest" in card.text
    assert "71.50 % in epoch 3" in card.text  # the best epoch, apart from the results


def test_the_headline_is_where_the_hub_looks_for_results(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "ce")
    finish(item, 71.25)
    [folder] = export_runs([item], tmp_path / "out", tmp_path, print)
    [path] = folder.glob(".eval_results/*.yaml")
    written = yaml.safe_load(path.read_text())
    [entry] = parse_eval_result_entries(written)
    assert (path.name, entry.dataset_id, entry.task_id, entry.value) == (
        "cifar10-lt-100.yaml", "uoft-cs/cifar10", "cifar10-lt-100", 71.25)
    assert entry.date == "2026-01-01T00:00:00+00:00"
    assert "ce@written, seed 0" in entry.notes
    assert eval_result_entries_to_yaml([entry]) == written


def test_a_dataset_that_the_hub_does_not_have_gets_no_leaderboard(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "ce")
    digits = replace(item, spec=replace(item.spec, column=replace(item.spec.column, dataset="digits", subset="hash")))
    assert eval_results(digits, make_record(digits, 70.0)) == []
    assert ModelCard(model_card(digits, make_record(digits, 70.0))).data.datasets is None


def test_a_folder_says_what_an_image_and_a_class_is(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "ce")
    record = finish(item)
    [folder] = export_runs([item], tmp_path / "out", tmp_path, print)
    config = json.loads((folder / "config.json").read_text())
    assert (config["shape"], config["classes"][:2], len(config["classes"])) == ([3, 32, 32], ["airplane", "automobile"], 10)
    assert (config["mean"], config["std"]) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    assert json.loads((folder / "record.json").read_text()) == record


def test_results_of_two_columns_stay_apart_in_one_card(paper: Paper, tmp_path: Path) -> None:
    """Somebody puts our results side by side in a card of their own, and huggingface_hub writes and reads it."""
    accuracy = {"cifar10-lt-100": 70.0, "cifar10-step-100": 60.0}
    results = []
    for name, value in accuracy.items():
        [item] = plan(paper, "paper", columns=(name,), methods=("ce",), seeds=1)
        results += ModelCard(model_card(item, make_record(item, value))).data.eval_results
    data = ModelCardData(model_name="both", eval_results=results)
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data.eval_results
    found = {one.dataset_name: one.metric_value for one in again if one.metric_name.startswith("Top-1 accuracy, last epoch")}
    assert found == accuracy
    assert len(again) == len(results)


@pytest.mark.parametrize("seen", [
    np.arange(6, dtype=np.float32).reshape(2, 3).T, np.arange(10, dtype=np.int64)[::3], np.arange(6.0)[::-1],
    np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)), np.broadcast_to(np.float32(3), (2, 2)), np.array(7)])
def test_arrays_come_back_as_they_were_seen_however_they_lie(seen, tmp_path: Path) -> None:
    """safetensors 0.8 alone writes the memory of the first five."""
    (tmp_path / "w").write_bytes(to_bytes({"x": seen}))
    found = load_file(tmp_path / "w")["x"]
    assert found.shape == seen.shape
    assert found.dtype == seen.dtype
    assert np.array_equal(found, seen)


def test_equal_weights_are_equal_files(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "own@released")
    finish(item)
    saved = {item.checkpoint.read_bytes()}
    for i in range(20):  # with five entries of metadata nearly every one would differ
        [folder] = export_runs([item], tmp_path / str(i), tmp_path, print)
        saved.add((folder / "model.safetensors").read_bytes())
        save_file(TENSORS, item.checkpoint, weights_metadata(label=item.method.label, key=item.spec.key))
        saved.add(item.checkpoint.read_bytes())
    assert len(saved) == 2


@pytest.mark.parametrize("metadata", [None, {}, {"run": "no json"}, {"run": "7"}, {"key": "0123"}])
def test_a_file_without_our_metadata_is_of_no_run(metadata) -> None:
    assert read_weights_metadata(metadata) == {}


def test_the_command_of_the_card_makes_that_run(paper: Paper) -> None:
    item = runs(paper, "own[beta=1.1;delta=2.0]@written", seeds=2)[1]
    card = model_card(item, make_record(item, 70.0))
    [command] = [line for line in card.splitlines() if line.startswith("python -m ")]
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "papers.toy.replicate", "train"]
    options = parser([paper], COMMANDS).parse_args(words[3:])
    again = plan(paper, options.profile, columns=tuple(options.column), methods=tuple(options.method), seeds=options.seeds)
    assert item.spec.key in {one.spec.key for one in again}


def test_what_a_record_says_cannot_break_the_card(paper: Paper) -> None:
    [item] = runs(paper, "ce")
    card = model_card(item, make_record(item, 70.0, made={"device": "</td>|<script>x</script>\n---\n# title"}))
    assert "<script>" not in card
    assert "\n# title" not in card
    assert "&lt;script&gt;" in card
    renamed = replace(item, method=replace(item.method, name="<script>|: own\n# title"))
    named = model_card(renamed, make_record(item, 70.0))
    assert "<script>" not in named.split("---\n", 2)[2].split("```")[0]
    assert "\n# title" not in named.split("---\n", 2)[2].split("```")[0]
    assert ModelCard(named).data.model_name == "cifar10-lt-100 <script>|: own\n# title@written seed 0"


def test_what_cannot_be_exported_is_named_and_left_out(paper: Paper, tmp_path: Path) -> None:
    ce, own, rival, never = (runs(paper, name)[0] for name in ("ce", "own@written", "rival", "own@released"))
    for item, accuracy in ((ce, 70.0), (own, 71.0), (rival, None)):
        finish(item, accuracy)
    own.checkpoint.unlink()
    said: list[str] = []
    assert len(export_runs([never, ce, own, rival], tmp_path / "out", tmp_path, said.append)) == 1
    assert said == [
        f"Skipped: cifar10-lt-100 own@written seed 0 ({own.spec.key}) has a record but no checkpoint here: weights stay on the "
        "machine that trained them.",
        f"Skipped: cifar10-lt-100 rival@written seed 0 ({rival.spec.key}) diverged, so it has no weights.",
        "Not trained yet, so skipped: 1 of the 4 selected runs, first cifar10-lt-100 own@released seed 0."]
    with pytest.raises(UserError, match="Nothing could be exported"):
        export_runs([own, rival, never], tmp_path / "none", tmp_path, said.append)
    assert not (tmp_path / "none").exists()


def test_weights_are_found_with_the_paper_that_trained_them(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "ce")
    finish(item)
    other = replace(item, folder=tmp_path / "papers" / "other" / "results" / "paper" / "cifar10-lt-100")
    assert find_checkpoint(other) == item.checkpoint
    assert len(export_runs([other], tmp_path / "out", tmp_path, print)) == 1


def test_a_checkpoint_that_is_not_the_runs_is_refused(paper: Paper, tmp_path: Path) -> None:
    [item] = runs(paper, "ce")
    finish(item, key="0" * 16)
    with pytest.raises(UserError, match="holds the weights of run 0000000000000000"):
        export_runs([item], tmp_path / "out", tmp_path, print)
    item.checkpoint.write_bytes(b"no weights")
    with pytest.raises(UserError, match="is damaged"):
        export_runs([item], tmp_path / "out", tmp_path, print)
    assert not (tmp_path / "out").exists()


def test_no_torch_is_needed(paper: Paper) -> None:
    code = "import sys; import common.publish.export; sys.exit(any(m in sys.modules for m in ('torch', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3]).returncode == 0
