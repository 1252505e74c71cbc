"""The benchmark measures what it says: the textbook network, the bytes of a step, and rows with their ratios."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cores, first_run, kernels, measuring, packs, paths
from benchmarks.textbook import PlainResNet, step_bytes
from common.campaign.priority import fit, offers
from common.cost import Costs, speed_of
from common.data.sets import SETS, Images
from common.metrics import EARLY_EVAL_STRIDE
from common.models.sizes import BACKBONES
from common.train.device import Device
from common.train.packing import form_packs, memory_limit
from common.train.resident import ResidentSteps

SCRIPT = Path(packs.__file__)


def test_the_textbook_network_is_a_pack_of_one():
    """Same weights, same outputs, in training and in testing."""
    facts, generator = SETS["cifar10"], np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 200)
    pixels = generator.integers(256, size=(len(labels), facts.side, facts.side, facts.channels), dtype=np.uint8)
    images = Images(pixels, labels, pixels[::20], labels[::20], tuple("0123456789"), np.arange(2000))
    steps = ResidentSteps(packs.members(1), images, Device("cpu", "float64", False))
    net = PlainResNet(BACKBONES["resnet32"].blocks, BACKBONES["resnet32"].width, facts.channels, facts.classes).double()
    head = {"fc.weight": steps.pack.heads[0].weight[0].T, "fc.bias": steps.pack.heads[0].bias[0, 0]}
    net.load_state_dict({**steps.pack.net.state_dict(), **head}, strict=False)  # all but the batch counters, which a pack has not
    steps.begin_epoch(0)
    images = steps.feed.batch(steps.pack.drawn[:, :, :4])
    for training in (True, False):
        net.train(training), steps.pack.net.train(training)
        torch.testing.assert_close(steps.pack.heads[0](steps.pack.net(images))[0], net(images), rtol=1e-9, atol=1e-10)


def test_bytes_of_a_step_by_hand():
    """One grey image of 4x4 pixels, widths 2, 4, 8, one block a stage.

    With I and E elements in and out: 5 E + 3 I a convolution (2 I the first one), E + 2 S an addition.
    """
    first = 5 * 32 + 2 * 16
    stage1 = 2 * (5 * 32 + 3 * 32) + (32 + 2 * 32)
    stage2 = (5 * 16 + 3 * 32) + (5 * 16 + 3 * 16) + (16 + 2 * 8)
    stage3 = (5 * 8 + 3 * 16) + (5 * 8 + 3 * 8) + (8 + 2 * 4)
    weights = 9 * (2 + 4 + 4 + 8 + 16 + 32 + 64) + 2 * (2 + 2 * 2 + 2 * 4 + 2 * 8) + (8 * 2 + 2)
    for item in (2, 4):
        expected = item * (first + stage1 + stage2 + stage3) + (1 + item) * 16 + 32 * weights
        assert step_bytes(PlainResNet(1, 2, 1, 2), (1, 1, 4, 4), item) == expected


def test_ratios_are_to_the_same_runs_recipe_and_eager_loop():
    rows = [packs.row(packs.RECIPE, 1, "float32", [20.0]), packs.row(packs.EAGER, 1, "float32", [9.0, 10.0, 12.0]),
            packs.row("pack of 4", 4, "bfloat16", [7.0], extra=1.0)]
    floors = {"float32": 1.0, "bfloat16": 0.5}
    assert packs.with_ratios(rows[:1], floors)[0]["times_eager"] is None
    recipe, eager, pack = packs.with_ratios(rows, floors)
    assert (recipe["times_recipe"], recipe["times_eager"], eager["times_recipe"]) == (1.0, 0.5, 2.0)
    assert (pack["ms_per_run"], pack["times_recipe"], pack["times_eager"], pack["floor_share"]) == (2.0, 10.0, 5.0, 0.25)


def test_members_are_grouped_and_share_seeds():
    found = [(m.method.name, m.spec.seed) for m in packs.members(5)]
    assert found == [("ce", 0), ("ce", 1), ("ce", 2), ("ldam-drw", 0), ("ldam-drw", 1)]


def test_the_smallest_benchmark_prints_ratios_and_stores_every_row(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(packs, "ROOT", tmp_path)  # no data there: random images
    monkeypatch.setattr(packs, "PROTOCOL", dataclasses.replace(packs.PROTOCOL, batch_size=4))
    monkeypatch.setitem(packs.EFFORTS, "cpu", dataclasses.replace(packs.EFFORTS["cpu"], tested=50, repeats=1))
    out = tmp_path / "cpu.json"
    assert packs.main(["--device", "cpu", "--runs", "1", "--steps", "1", "--out", str(out)]) == 0
    printed, stored = capsys.readouterr().out, json.loads(out.read_text())
    assert "random images" in printed
    assert [r["name"] for r in stored["rows"]] == ["common recipe", "plain eager", "pack of 1"]
    for r in stored["rows"]:
        assert r["times_recipe"] == pytest.approx(stored["rows"][0]["ms"] / r["ms"], abs=1e-3)
        assert f"{r['times_eager']:.2f}" in printed
        assert r["floor_share"] > 0
    assert stored["drift"] > 0
    share = stored["rows"][2]["evaluation"]
    assert share["stride"] == EARLY_EVAL_STRIDE
    assert share["protocol"] == pytest.approx((160 * share["strided"] + 40 * share["whole"]) / 200)
    assert packs.page(stored).splitlines()[-1] in printed


def test_bad_input_is_one_sentence_and_exit_code_2(capsys):
    for arguments in (["--runs", "one"], ["--runs", ""], ["--steps", "0"], ["--device", "cpu", "--data", "elsewhere.npz"]):
        assert packs.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    done = subprocess.run([sys.executable, SCRIPT, "--device", "toaster"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --device 'toaster' is not cpu or cuda.\n")


def test_the_readme_shows_the_stored_results():
    text = measuring.README.read_text()
    for file in measuring.RESULTS.glob("*.json"):
        assert packs.page(json.loads(file.read_text())).strip() in text, f"{file.name}: run python benchmarks/packs.py --readme"


def test_the_first_pack_on_a_gpu_has_the_first_seed_of_everything_first():
    """Each paper's own methods in both readings, cross-entropy and LDAM-DRW; 28 to 32 runs in the time that is left."""
    pack = first_run.best_runs("cifar10-lt-100", 32)
    assert len(pack) == 32
    names = {m.method.name for m in pack}
    assert names >= {"ce", "ldam-drw"}
    own = {name for paper in first_run.PAPERS for name in paper.own}
    assert all(name in own | {"ce", "ldam-drw"} for name in names)
    for name in names & own:
        readings = {m.method.reading for m in first_run.wanted(first_run.PAPERS, "paper", ["cifar10-lt-100"], 1)[0]
                    if m.method.name == name and not m.method.variant and m.spec.protocol == pack[0].spec.protocol}
        assert {m.method.reading for m in pack if m.method.name == name} >= readings
    seeds = [m.spec.seed for m in pack]
    assert seeds == sorted(seeds)
    assert len({m.method.label for m in pack if m.spec.seed == 0}) == len({m.method.label for m in pack})


def test_ten_minutes_on_an_h100_are_one_pack_of_28_runs_or_more(tmp_path):
    """By the speeds of the prototype: 485 s are left of 560 when the campaign begins."""
    folder = measuring.RESULTS / "prototypes"
    costs = Costs(replace(speed_of("NVIDIA H100 80GB HBM3", "bfloat16", {}, folder), compiled=True))
    chosen, worth = first_run.wanted(first_run.PAPERS, "paper", ["cifar10-lt-100"])
    form = partial(form_packs, limit=lambda m: memory_limit(m, "bfloat16", 79 * 2**30))
    found = fit(offers([m for m in chosen if not m.start], worth, form, costs), 485.0, costs)
    assert 28 <= len(found.pack) <= 32
    assert found.pack[0].spec.protocol.epochs == 200


def record_of(label: str, seed: int, last: float | None) -> dict:
    return {"label": f"cifar10-lt-100 {label}", "spec": {"seed": seed}, "accuracy": {"last": last, "best": last}}


@pytest.mark.parametrize(("values", "code", "said"), [
    ((71.0, 71.6), 0, "ends at 71.30 %, within 69 to 73: go on"), ((68.0, 68.5), 1, "STOP: cross-entropy ends at 68.25 %"),
    ((75.0,), 1, "STOP"), ((None,), 1, "no run of cross-entropy ended"), ((), 1, "no run of cross-entropy ended"),
])
def test_the_first_run_is_judged_by_cross_entropy(values, code, said):
    records = [record_of("ce@written", seed, value) for seed, value in enumerate(values)]
    found, sentence = first_run.judge("cifar10-lt-100", [*records, record_of("cebal@written", 0, 10.0)])
    assert (found, said in sentence) == (code, True), sentence


def test_the_summary_has_at_most_forty_lines(monkeypatch, capsys, tmp_path):
    records = {i: record_of(f"method-{i}@written", 0, 50.0) | {"made": {"finished": "2030"}} for i in range(60)}
    records[99] = record_of("ce@written", 0, 71.0) | {"made": {"finished": "2030"}}
    monkeypatch.setattr(first_run, "load_records", lambda root: records)
    monkeypatch.setattr(first_run, "ROOT", tmp_path)
    assert first_run.summary("cifar10-lt-100", None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == first_run.LINES
    assert lines[-1].endswith("go on.")
    assert any(line.startswith("and ") and line.endswith(" more methods.") for line in lines)


def test_a_failing_check_stops_the_first_run_with_its_reason(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "COLUMN": "digits-lt-21", "RUNS": "2"}
    done = subprocess.run(["bash", str(SCRIPT.parent / "gpu_first_run.sh"), "", str(tmp_path)], capture_output=True, text=True,
                          env=environment, timeout=120)
    assert done.returncode == 1
    assert "STOP after" in done.stdout
    assert "== campaign" not in done.stdout
    assert "STOP after" in (tmp_path / "log.txt").read_text()


def test_kernels_are_told_with_their_bytes(tmp_path):
    """A step on the CPU: 31 convolutions forward, each with its gradient, and the bytes of the first by hand."""
    result = kernels.profile_steps(Device("cpu", "float32", False), 2, 4)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["aten::convolution_backward"]["calls"] == 31
    assert rows["aten::convolution_backward"]["bytes"] > rows["aten::native_batch_norm"]["bytes"] > 0
    assert sum(row["ms"] for row in rows.values()) < 1.2 * result["step_ms"]
    text = kernels.page(result)
    assert "aten::convolution_backward | 31 |" in text
    assert f"{len(rows) - kernels.SHOWN} others" in text
    image, weight = [4, 6, 32, 32], [32, 3, 3, 3]
    assert kernels.result_bytes("aten::cudnn_convolution", [image, weight], ["float", "float"], [None, None, [1, 1], [1, 1]]) == (
        4 * 4 * 32 * 32 * 32)
    half = kernels.result_bytes("aten::cudnn_convolution", [image, weight], ["c10::BFloat16"] * 2, [None, None, [2, 2], [1, 1]])
    assert half == 2 * 4 * 32 * 16 * 16


def test_the_readme_shows_the_stored_kernels():
    text = measuring.README.read_text()
    for file in kernels.RESULTS.glob("*.json"):
        page = kernels.page(json.loads(file.read_text())).strip()
        assert page in text, f"{file.name}: run python benchmarks/kernels.py --readme"


def test_the_table_of_cores_compares_ways_under_the_same_load(monkeypatch):
    """Median, lowest and highest of the rounds, and the ratio to the first way where as many cores are taken."""
    rates = {("one process, torch's operations", 0): [100, 300, 200], ("one process, torch's operations", 1): [10, 30, 20],
             ("one process, C++ step", 0): [400, 500, 600], ("one process, C++ step", 1): [50, 60, 40],
             ("a process a core, C++ step", 0): [500, 600, 400], ("a process a core, C++ step", 1): [300, 100, 200]}
    monkeypatch.setattr(cores, "images_a_second", lambda way, busy, seconds: float(rates[way.name, busy].pop()))
    rows = {(row["name"], row["busy"]): row for row in cores.measure(2, 1.0, 3)}
    assert [(row["images"], row["ratio"]) for row in rows.values()] == [
        (200, 1), (500, 2.5), (500, 2.5), (20, 1), (50, 2.5), (200, 10)]
    last = rows["a process a core, C++ step", 1]
    assert (last["processes"], last["threads"], last["low"], last["high"]) == (2, 1, 100, 300)


def test_two_paths_are_compared_seed_by_seed(monkeypatch):
    """The difference is that of equal seeds: a large spread between seeds, which both paths share, is no part of its error."""
    losses = {("native", 0): 1.0, ("eager", 0): 1.1, ("native", 1): 2.0, ("eager", 1): 2.3}
    monkeypatch.setattr(paths, "train", lambda seed, path, images, epochs: (
        [losses[path, seed]] * epochs, [10 * losses[path, seed]] * epochs))
    first, second = paths.measure(2, 2, None)
    assert (first["epoch"], second["epoch"], first["native"]["loss"]) == (1, 2, [1.0, 2.0])
    assert paths.difference(first, "loss") == pytest.approx((-0.2, 0.1))
    assert paths.difference(first, "accuracy") == pytest.approx((-2.0, 1.0))
    gains = {"A net": {"pairs": 7, "ratio": 2.456, "low": 2.3, "high": 2.5}}
    result = {"device": "d", "torch": "2", "data": "real", "seeds": 2, "commit": "c", "rows": [first], "gains": gains,
              "gains_commit": "d"}
    assert "Steps by turns, commit d:" in paths.page(result)  # another code may have been timed than was trained
    assert "| A net | 2.46 (2.30 to 2.50) |" in paths.page(result)
    assert "| 1 | 1.5000 | 1.7000 | -0.2000 ± 0.1000 | 15.00 | 17.00 | -2.00 ± 1.00 |" in paths.page(result)
    text = measuring.README.read_text()
    for file in paths.FOLDER.glob("*.json"):
        assert paths.page(json.loads(file.read_text())).strip() in text, f"{file.name}: run python benchmarks/paths.py --readme"
