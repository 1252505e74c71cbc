"""The benchmark of the large path measures what it says: the same network and the same files for both, rows with ratios."""

import dataclasses
import json
from contextlib import nullcontext

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from benchmarks import large
from common.cost import measured
from common.data.decoding import as_input, synthetic
from common.data.large_sets import LARGE
from common.models.sizes import NETWORKS
from common.train.device import Device

CPU = Device("cpu", "float32", False)
TINY = large.Effort("resnet10w8", batch=6, steps=2, repeats=3, warm=1, workers=0)


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setitem(LARGE, "imagenet", dataclasses.replace(LARGE["imagenet"], side=64))
    monkeypatch.setattr(large, "FILES", 12)


def test_our_step_is_that_of_timms_loop(tmp_path):
    """The same weights and pixels give the same weights after a step."""
    large.write_files(tmp_path)
    run = large.our_run(tmp_path, TINY, dataclasses.replace(CPU, precision="float64"))
    net = timm.create_model("resnet18", num_classes=1000, **NETWORKS["resnet10w8"].changes).double()
    trunk, last = run.pack.net.trunk.state_dict(), run.pack.net.branches[0].state_dict()
    head = {"fc.weight": run.pack.heads[0].weight[0].T, "fc.bias": run.pack.heads[0].bias[0, 0]}
    net.load_state_dict({**trunk, **{f"layer4.0.{k}": v for k, v in last.items()}, **head}, strict=False)
    batch = next(synthetic(run.facts, run.pack.size, run.spans(), 1, False))
    pixels = as_input(batch.images[0], run.facts, torch.device("cpu"), torch.float64)
    labels = run.pack.labels[run.pack.epoch_drawn.images[0, 0, :TINY.batch]]
    optimiser = create_optimizer_v2(net, opt="momentum", lr=0.01, momentum=0.9, weight_decay=0.0001,
                                    filter_bias_and_bn=False)
    run.train_batch(0, batch)
    large.timm_step(net, optimiser, nullcontext, torch.device("cpu"), iter([(pixels, labels)]))
    torch.testing.assert_close(run.pack.net.trunk.conv1.weight, net.conv1.weight)
    torch.testing.assert_close(run.pack.net.branches[0].bn2.weight, net.layer4[0].bn2.weight)
    torch.testing.assert_close(run.pack.heads[0].weight[0].T, net.fc.weight)


def test_both_read_the_same_files(tmp_path):
    large.write_files(tmp_path)
    images, _ = next(large.timm_loader(tmp_path, TINY, CPU))
    assert images.shape == (6, 3, 64, 64)
    assert abs(images.mean()) < 1 < images.abs().max(), "normalised"
    run = large.our_run(tmp_path, TINY, CPU)
    assert next(run.train_batches(0)).images.shape == (1, 6, 64, 64, 3)
    assert len(run.pack.batch_sizes) == large.batches_wanted(TINY) == 7


def test_ratios_are_to_timm_on_the_same_input():
    rows = [large.row("timm", "synthetic", TINY, [0.5, 1.0, 2.0]), large.row("ours", "synthetic", TINY, [0.5, 0.5, 0.5]),
            large.row("timm", "JPEG", TINY, [3.0])]
    timm_synthetic, ours, timm_jpeg = large.with_ratios(rows)
    assert (timm_synthetic["images_per_second"], timm_synthetic["low"], timm_synthetic["high"]) == (6.0, 3.0, 12.0)
    assert (ours["images_per_second"], ours["times_timm"]) == (12.0, 2.0)
    assert "times_timm" not in timm_synthetic | timm_jpeg


def test_the_smallest_benchmark_prints_and_stores_every_row(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(large.EFFORTS, "cpu", dataclasses.replace(TINY, repeats=1))
    out = tmp_path / "large" / "cpu.json"
    assert large.main(["--device", "cpu", "--steps", "1", "--batch", "4", "--out", str(out)]) == 0
    printed, stored = capsys.readouterr().out, json.loads(out.read_text())
    assert [r["name"] for r in stored["rows"]] == ["timm, synthetic", "ours, synthetic", "timm, JPEG", "ours, JPEG"]
    assert stored["rows"][3]["times_timm"] == pytest.approx(
        stored["rows"][3]["images_per_second"] / stored["rows"][2]["images_per_second"], rel=0.01)
    assert (stored["batch"], stored["backbone"], stored["side"], stored["precision"]) == (4, "resnet10w8", 64, "float32")
    assert large.page(stored).splitlines()[-1] in printed
    assert measured([], tmp_path) == [], "no GPU was measured"
    out.write_text(json.dumps(stored | {"device_type": "cuda"}))
    assert measured([], tmp_path)[0].images_per_second == stored["rows"][3]["images_per_second"]


def test_bad_input_is_one_sentence_and_exit_code_2(capsys):
    for arguments in (["--batch", "0"], ["--workers", "many"], ["--device", "toaster"]):
        assert large.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
