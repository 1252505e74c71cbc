"""Runs on the miniature through the whole path: chains of stages, records, and what a user did wrong."""

import dataclasses
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.data.decoding import as_input
from common.data.lists import load_large
from common.errors import UserError
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Head, Method, Start
from common.methods.sampling import class_balanced
from common.models.imagenet import LargeNetwork
from common.plan import Run
from common.store import FIELDS, load_records
from common.train import distributed, torchrun
from common.train.distributed import Ranks
from common.train.sharded import ShardedSteps, check_method
from common.train.state import Workspace
from common.train.tally import Tally
from common.train.torchrun import LargeOptions, train_large
from tests.common.train.kinds import META
from tests.common.train.large_toys import CE, COLUMN, DEVICE, LONGER, PROTOCOL, SECOND, member, quiet
from tests.common.train.pair import OPTIONS
from tests.common.train.toys import ROTATION, broken

SHORT = dataclasses.replace(LONGER, epochs=1, decay_epochs=())
TESTED = SECOND.only_tested()


def run_of(method: Method, data, folder, protocol=PROTOCOL, **more) -> ShardedSteps:
    images = load_large(COLUMN.dataset, data)
    return ShardedSteps(member(method, folder, protocol), images, DEVICE, Ranks(), data, workers=0, **more)


def chain(folder) -> list[Run]:
    """A first stage, a second that learns factors on its head's logits, and one of no epochs."""
    first = dataclasses.replace(CE, protocol=SHORT)
    scaled = Method("lws", "written", softmax_cross_entropy, Head("linear", keep=True, rate=0.0, rescale="class"),
                    sampler=class_balanced, start=Start(first))
    tested = Method("again", "written", softmax_cross_entropy, Head("linear", keep=True), start=Start(first))
    return [member(scaled, folder, SECOND), member(tested, folder, TESTED)]


def test_second_stages_go_on_from_the_first(miniature, tmp_path):
    planned, told = chain(tmp_path), []
    assert train_large(planned, miniature, Workspace(tmp_path / "work", 1e9), OPTIONS, partial(watched, told))
    assert told == ["ce@written", "lws@written", "lws@written"], "epochs of the three stages: one, two, none"
    first, scaled, tested = (load_file(m.checkpoint) for m in (planned[0].start, *planned))
    same = [name for name in scaled if name in first and scaled[name].equal(first[name])]
    assert set(same) == set(first), "backbone, statistics, weight and bias are the first stage's"
    assert not torch.equal(scaled["head.scale"], torch.ones_like(scaled["head.scale"]))
    assert all(tested[name].equal(first[name]) for name in first)
    records = load_records(tmp_path)
    assert records[planned[1].spec.key]["accuracy"]["last"] == records[planned[0].start.spec.key]["accuracy"]["last"]


def watched(told: list, pack):
    return nullcontext(lambda progress: told.append(pack[0].method.label))


def test_a_record_says_what_any_table_needs(both, miniature):
    """The record of two processes, against the weights that they left."""
    planned = member(CE, both / "whole", LONGER)
    record = load_records(both / "whole")[planned.spec.key]
    assert set(record) == {*FIELDS, "top5"}
    images = load_large(COLUMN.dataset, miniature)
    steps = ShardedSteps(planned, images, dataclasses.replace(DEVICE, precision="float32"), Ranks(), miniature, workers=0)
    steps.pack.load_run_state(0, load_file(planned.checkpoint))
    tally, = steps.evaluate()
    assert record["accuracy"]["last"] == round(float(tally.accuracy()), 4)
    assert record["top5"]["last"] == round(float(tally.top5()), 4) >= record["accuracy"]["last"]
    assert record["per_class_accuracy"] == [round(20.0 * n, 4) for n in tally.hits[0].tolist()], "five test images a class"
    many = np.asarray(record["per_class_accuracy"])[images.counts > 100]
    assert record["groups"]["many"] == pytest.approx(many.mean(), abs=1e-3)
    assert record["counts"] == images.counts.tolist()
    assert record["confusion"] == []
    assert record["curves"]["tested"] == [15, 150], "every tenth test image before the rate decays"
    assert len(record["norms"]["feature"]) == 1
    made = record["made"]
    assert (made["processes"], made["images_a_pass"], made["batch_norm"], made["official"]) == (2, 62, "device", True)
    assert made["images_per_second"] == pytest.approx(2 * 868 / made["seconds"], rel=0.01)
    assert made["lists"] == images.digest


def test_counts_per_class_say_what_a_confusion_matrix_says():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(1, 400, 9, generator=generator), torch.randint(0, 9, (400,), generator=generator)
    features = torch.randn(1, 400, 5, generator=generator)
    small, large = (Tally(1, 9, 400, "cpu", large=large) for large in (False, True))
    for part in torch.arange(400).split(150):
        for tally in (small, large):
            tally.add(logits[:, part], features[:, part], labels[part], part)
    counts = np.array([500, 200, 101, 100, 50, 20, 19, 3, 1])
    expected = small.summary(0, counts)
    assert large.summary(0, counts) == expected | {"confusion": []}
    assert round(float(large.accuracy()), 4) == expected["accuracy"]
    torch.testing.assert_close(large.norms, small.norms)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(large.answered(), small.answered(), strict=True))
    places = (logits[0] > logits[0].gather(1, labels[:, None])).sum(1)  # how many are larger than the right one
    assert float(large.top5()) == pytest.approx(100 * (places < 5).double().mean().item())


def test_a_run_that_leaves_the_finite_range_ends_with_a_record(miniature, tmp_path):
    planned = member(Method("broken", "written", broken), tmp_path, LONGER)
    assert train_large([planned], miniature, Workspace(tmp_path / "work", 1e9), OPTIONS, quiet)
    record = load_records(tmp_path)[planned.spec.key]
    assert (record["status"], record["made"]["diverged_in_epoch"], record["curves"]["train_loss"][1]) == ("diverged", 1, None)
    assert not planned.checkpoint.exists()


def test_the_last_block_is_drawn_anew_and_trained_alone(miniature, tmp_path):
    (tmp_path / "weights").mkdir()
    trained = LargeNetwork("resnet10w8")
    state = trained.trunk.state_dict() | {f"layer4.0.{k}": v for k, v in trained.branches[0].state_dict().items()}
    save_file(state, tmp_path / "weights" / "resnet10w8.safetensors")
    last = dataclasses.replace(LONGER, trains="last", pretrained=True)
    planned = member(CE, tmp_path, last)
    steps = ShardedSteps(planned, load_large(COLUMN.dataset, miniature), DEVICE, Ranks(), tmp_path, workers=0)
    assert steps.weights_from.startswith("resnet10w8.safetensors ")
    before = {name: tensor.clone() for name, tensor in steps.pack.net.state_dict().items()}
    same = {name for name in before if before[name].equal(trained.state_dict()[name].double())}
    assert {n for n in before if n.startswith("trunk.")} <= same
    assert "branches.0.conv1.weight" not in same
    steps.get_ready()
    steps.begin_epoch(0)
    for batch in steps.train_batches(0, 5):
        steps.train_batch(0, batch)
    changed = {name for name, tensor in steps.pack.net.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {n for n in before if n.startswith("branches.")}, "statistics of the trunk stay, too"


def test_a_share_in_several_passes_has_the_gradient_of_the_whole(miniature, tmp_path):
    """With frozen statistics nothing depends on how the share is cut; each image is seen by one pass."""
    found = []
    for per_device in (None, 10):
        steps = run_of(CE, miniature, tmp_path, per_device=per_device)
        steps.begin_epoch(0)
        steps.pack.net.eval()
        steps.train_batch(0, next(steps.train_batches(0)))
        found.append(steps.pack.run_state(0))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-9, atol=1e-12)


def test_a_share_in_several_passes_leaves_its_statistics_once(miniature, tmp_path):
    """As if each half of the batch had gone through the network once."""
    steps, plain = (run_of(CE, miniature, tmp_path, per_device=17) for _ in range(2))
    for each in (steps, plain):
        each.begin_epoch(0)
    batch = next(steps.train_batches(0))
    with torch.no_grad():
        for part in (slice(0, 16), slice(16, 33)):
            plain.pack.net(as_input(batch.images[0, part], plain.facts, torch.device("cpu"), torch.float64))
    steps.train_batch(0, batch)
    for (name, found), expected in zip(steps.pack.net.named_buffers(), plain.pack.net.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize(("method", "what"), [(ROTATION, "a task other than the classes"), (META, "held-out images")])
def test_what_only_the_small_sets_have_is_refused(method, what, tmp_path):
    with pytest.raises(UserError, match=f"has {what}, which is built for the small sets only"):
        check_method(member(method, tmp_path))


def test_what_a_user_did_wrong_is_one_sentence(miniature, tmp_path, monkeypatch):
    planned, work = member(CE, tmp_path, LONGER), Workspace(tmp_path / "work", 1e9)
    with pytest.raises(UserError, match=r"miniature\.npz is not here; it needs .*; make it with: "):
        train_large([planned], tmp_path / "empty", work, OPTIONS, quiet)
    with pytest.raises(UserError, match="'toaster' is not a device; use cpu, cuda or cuda:N"):
        train_large([planned], miniature, work, LargeOptions(device="toaster"), quiet)
    with pytest.raises(UserError, match="cuda:5 was asked for, but"):
        train_large([planned], miniature, work, LargeOptions(device="cuda:5"), quiet)
    with pytest.raises(UserError, match="--device cuda:1 is one GPU, but torchrun started 4 processes"):
        torchrun.local_device(LargeOptions(device="cuda:1"), Ranks(1, 4, 1))
    pretrained = member(CE, tmp_path, dataclasses.replace(LONGER, pretrained=True))
    monkeypatch.setattr("common.train.sharded.load_imagenet", no_weights)
    with pytest.raises(UserError, match="no weights"):
        train_large([pretrained], miniature, work, OPTIONS, quiet)
    assert not list(tmp_path.rglob("*.json"))


def no_weights(*_):
    raise UserError("no weights")


def test_a_refusal_on_one_process_ends_all(monkeypatch):
    """One speaks, the others leave quietly; none waits for ever."""
    def gather(found, mine):
        found[:] = [None, "no data"]

    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    with pytest.raises(SystemExit) as ended:
        distributed.on_all_ranks(Ranks(0, 2), lambda: None)
    assert ended.value.code == 2

    def refuse():
        raise UserError("no data")

    with pytest.raises(UserError, match="no data"):
        distributed.on_all_ranks(Ranks(1, 2), refuse)
