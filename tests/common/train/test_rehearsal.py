"""The way of a pack over CUDA, rehearsed without a GPU: `stub_cuda` acts it, `fake_cuda` follows devices and types.

What passes here can still fail on a GPU. This cannot show: whether a capture succeeds with cuDNN's kernels, compiled ones and a
memory pool that several graphs share; real memory and real speed; a graph that reads an address which has been given to
something else; bfloat16 in CUDA's own kernels; a wait for the device inside a kernel's library.
"""

import dataclasses
import gc
import time
import weakref
from itertools import pairwise

import pytest
import torch

from common.data.feed import INDEX
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method
from common.plan import Run
from common.store import load_records
from common.train import resident as resident_module
from common.train.device import Device, use_device
from common.train.loop import train_epoch, train_pack
from common.train.packing import form_packs, together
from common.train.resident import ResidentSteps
from common.train.state import Workspace
from papers.catalog import PAPERS
from tests.common.train.fake_cuda import follow
from tests.common.train.kinds import DECOUPLED, FIRST_STAGES, META, SECOND_STAGES
from tests.common.train.stub_cuda import AFTERMATH, pretend_cuda
from tests.common.train.toys import METHODS, PROTOCOL, planned

HERE, THERE = Device("cpu", "float64", False), Device("cuda", "float64", False)
KINDS = [METHODS, *FIRST_STAGES, *SECOND_STAGES]


def names(methods) -> str:
    return "+".join(m.name for m in methods)


def members_of(methods, folder, seeds=(0,)) -> list:
    return [planned(m, folder, seed, m.protocol or PROTOCOL) for m in methods for seed in seeds]


def trained(members, digits, device: Device, epochs=(0, 2)) -> ResidentSteps:
    steps = ResidentSteps(members, digits, device)
    for epoch in epochs:
        if epoch < steps.pack.protocol.epochs:
            train_epoch(steps, epoch)
    steps.close()
    return steps


def assert_alike(found: ResidentSteps, wanted: ResidentSteps) -> None:
    mine, theirs = found.pack.state(), wanted.pack.state()
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------- every kind of method


@pytest.mark.parametrize("methods", KINDS, ids=names)
def test_a_captured_step_trains_as_the_cpu_does(methods, digits, tmp_path):
    """Each batch size and each phase is one graph, whose frozen operations give the CPU's weights, moments and statistics."""
    members = members_of(methods, tmp_path)
    with pretend_cuda() as stub:
        there = trained(members, digits, THERE)
    assert_alike(there, trained(members, digits, HERE))
    phases = 1 + (META in methods)
    assert stub.count("capture") == len(there._graphs) == phases * len(set(there.pack.batch_sizes))


@pytest.mark.parametrize("methods", KINDS, ids=names)
def test_forward_and_loss_stay_on_the_device(methods, digits, tmp_path):
    """In bfloat16, with float32 for features and losses."""
    steps = ResidentSteps(members_of(methods, tmp_path, (0, 3)), digits, Device("cpu", "float32", False))
    steps.begin_epoch(min(2, steps.pack.protocol.epochs - 1))
    features, losses = follow(steps)
    assert features.dtype == losses.dtype == torch.float32
    assert losses.shape == (steps.pack.runs,)


def test_every_method_of_every_paper_stays_on_the_device(digits, tmp_path):
    """Forward and loss of each kind that is planned on the small columns, first stages included."""
    found, folder = {}, tmp_path / "toy" / "results" / "quick"
    for paper in PAPERS:
        for column in (c for c in paper.columns["quick"] if c.dataset == "digits"):
            for method in paper.rows("quick", column):
                item = Run(paper.spec("quick", column, method, 0), method, folder / column.name)
                found |= {(str(m.method.describe()), m.method.shape): m for m in item.chain}
    assert len(found) > 100
    for members in form_packs(list(found.values()), lambda item: 64):
        steps = ResidentSteps(together(members), digits, Device("cpu", "float32", False))
        steps.begin_epoch(max(0, steps.pack.protocol.epochs - 1))
        _, losses = follow(steps)
        assert losses.shape == (len(members),)


def host_tensor(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context) * torch.ones(labels.shape[-1])


def asks(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context) * outputs.logits.max().item()


def branches(outputs, labels, context):
    values = softmax_cross_entropy(outputs, labels, context)
    return values if context.epoch >= 0 else 2 * values


def reads(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context) + float(context.counts.cpu()[0])


def masks(outputs, labels, context):
    values = softmax_cross_entropy(outputs, labels, context)
    return values + values[values > 0].mean()


def draws(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context) * torch.rand_like(outputs.logits[..., 0])


@pytest.mark.parametrize("loss", [host_tensor, asks, branches, reads, masks, draws])
def test_what_a_capture_refuses_is_refused_here(loss, digits, tmp_path):
    members = members_of([Method(loss.__name__, "written", loss)], tmp_path)
    with pretend_cuda(), pytest.raises(RuntimeError, match=AFTERMATH) as caught:
        trained(members, digits, THERE)
    assert "not permitted when stream is capturing" in str(caught.value.__context__)


@pytest.mark.parametrize("loss", [host_tensor, asks, branches, reads, masks])
def test_what_leaves_the_device_is_seen_by_the_watch(loss, digits, tmp_path):
    steps = ResidentSteps(members_of([Method(loss.__name__, "written", loss)], tmp_path), digits, HERE)
    steps.begin_epoch(0)
    with pytest.raises(Exception, match=r"host|two devices|_local_scalar_dense|nonzero|index"):
        follow(steps)


SEEN: list[int] = []


def counting(outputs, labels, context):
    return softmax_cross_entropy(outputs, labels, context) * 0 + SEEN.pop(0)


def test_a_number_that_python_reads_is_frozen_in_a_graph(digits, tmp_path):
    """So a loss must take the epoch from its tensor: the stub's replay is no second call of the step."""
    SEEN[:] = range(1, 1000)
    with pretend_cuda():
        steps = trained(members_of([Method("counting", "written", counting)], tmp_path), digits, THERE, (0,))
    assert steps.pack.loss_sum.item() == 50 * 9 * 5 + 14 * 10  # the fifth call is the first graph's, the tenth the second one's


# ---------------------------------------------------------------- getting ready


def test_a_device_without_a_number_gets_one():
    with pretend_cuda() as stub:
        with pytest.raises(ValueError, match="index"):
            torch.cuda.set_device(torch.device("cuda"))
        assert use_device(THERE) == use_device(Device("cuda:0", "float64", False)) == torch.device("cuda", 0)
    assert stub.calls == ["set_device 0", "set_device 0"]


@pytest.mark.parametrize(("precision", "tf32"), [("bfloat16", True), ("float32", False), ("float64", False)])
def test_a_pack_sets_cudnn_as_its_device_wants(precision, tf32, digits, tmp_path):
    """Also in a worker of one of several GPUs, which chooses no device."""
    with pretend_cuda():
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, not tf32
        ResidentSteps(members_of(METHODS[:1], tmp_path), digits, Device("cuda:0", precision, False))
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == (True, tf32)


def test_adam_without_its_capturable_form_is_refused(digits, tmp_path):
    members = members_of([DECOUPLED], tmp_path)
    with pretend_cuda():
        steps = ResidentSteps(members, digits, THERE)
        assert all(c.dtype == torch.float32 and c.item() == 0 for c in steps.pack.counters())
        for group in steps.pack.optimiser.param_groups:
            group["capturable"] = False
        with pytest.raises(RuntimeError, match=AFTERMATH) as caught:
            train_epoch(steps, 0)
        steps.close()
    assert "capturable is False" in str(caught.value.__context__)


def test_rubbish_is_collected_before_a_capture_and_not_in_it(digits, tmp_path):
    class Knot:
        def __init__(self):
            self.me = self

    with pretend_cuda() as stub:
        steps = ResidentSteps(members_of(METHODS[:1], tmp_path), digits, THERE)
        gc.disable()
        knot = Knot()
        gone = weakref.finalize(knot, lambda: stub.note("freed"))
        del knot
        train_epoch(steps, 0)
        gc.enable()
        steps.close()
    assert not gone.alive
    assert stub.calls.index("freed") < stub.calls.index("capture")
    assert all(before == "gc" for before, call in pairwise(c for c in stub.calls if c != "freed") if call == "capture")


def test_the_draws_come_from_page_locked_memory_by_turns_and_are_those_of_the_cpu(digits, tmp_path):
    members = members_of(FIRST_STAGES[0], tmp_path, (0, 1))
    with pretend_cuda() as stub:
        steps, addresses = ResidentSteps(members, digits, THERE), []
        plain = ResidentSteps(members, digits, HERE)
        for epoch in range(3):
            taken = steps.ahead.take(epoch)
            steps.ahead.begin(epoch + 1)
            addresses.append(taken.images.data_ptr())
            assert {t.data_ptr() for t in taken.tensors() if t.numel()} <= stub.pinned
            for mine, its in zip(taken.tensors(), plain.draw(epoch).tensors(), strict=True):
                assert torch.equal(mine, its.to(mine.dtype))
        steps.close()
    assert addresses[0] == addresses[2] != addresses[1]


def test_an_error_in_the_thread_of_draws_is_the_packs(digits, tmp_path):
    with pretend_cuda():
        steps = ResidentSteps(members_of(METHODS[:1], tmp_path), digits, THERE)
        train_epoch(steps, 0)
        steps.ahead.begin(99)
        steps.ahead._draw = lambda epoch: 1 / 0
        steps.ahead.begin(1)
        with pytest.raises(ZeroDivisionError):
            train_epoch(steps, 1)
        steps.close()


def test_what_is_left_over_of_a_test_set_is_not_compiled(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(resident_module, "TEST_BATCH", 100)
    with pretend_cuda():
        steps, sizes = ResidentSteps(members_of(METHODS[:1], tmp_path), digits, dataclasses.replace(THERE, compile=True)), []
        compiled, steps._forward = steps._forward, lambda images: (sizes.append(len(images)), compiled(images))[1]
        for stride in (1, 10):
            tally, = steps.evaluate(stride)
            assert tally.confusion.sum() == 360 / stride
        steps.close()
    assert sizes == [100, 100, 100]


# ---------------------------------------------------------------- when it goes wrong


def causes(error: BaseException | None) -> list[BaseException]:
    return [] if error is None else [error, *causes(error.__context__)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("cuDNN")], ids=["memory", "capture"])
def test_a_failed_capture_says_why_and_leaves_the_way_free(error, digits, tmp_path):
    """The cause is in the error's context, the stream is the one before, and plain steps train as the CPU does."""
    members = members_of(METHODS[:2], tmp_path)
    with pretend_cuda() as stub:
        stub.capture_error, stream = error, stub.stream
        with pytest.raises(RuntimeError) as caught:
            train_pack(members, digits, THERE, Workspace(tmp_path / "work", None))
        assert error in causes(caught.value)
        assert stub.stream is stream
        plainer = trained(members, digits, dataclasses.replace(THERE, graph=False), (0,))
        assert stub.count("replay") == 0
    assert_alike(plainer, trained(members, digits, HERE, (0,)))


def test_the_three_ways_to_step_are_one_training(digits, tmp_path):
    """Compiled and captured, captured, plain: each can take the place of the one before."""
    members = members_of(METHODS[:2], tmp_path)
    wanted = trained(members, digits, HERE, (0,))
    for compiled, graph in ((True, True), (False, True), (False, False)):
        with pretend_cuda() as stub:
            assert_alike(trained(members, digits, Device("cuda", "float64", compiled, graph), (0,)), wanted)
        assert (stub.count("compile"), stub.count("capture")) == (3 * compiled, 2 * graph)
    with pretend_cuda() as stub:
        stub.compile_error = RuntimeError("no compiler")
        with pytest.raises(RuntimeError, match="no compiler"):
            trained(members, digits, Device("cuda", "float64", True))


def test_a_pack_pauses_at_its_deadline_and_goes_on(digits, tmp_path):
    """After each epoch, with Adam's counts on the device, in another way to step: the record is that of one go."""
    members = {way: members_of([DECOUPLED], tmp_path / way) for way in ("whole", "parts")}
    with pretend_cuda() as stub:
        assert train_pack(members["whole"], digits, THERE, Workspace(tmp_path / "w", None))
        calls = 1
        while not train_pack(members["parts"], digits, dataclasses.replace(THERE, graph=calls != 2),
                             Workspace(tmp_path / "p", None, deadline=0.0)):
            calls += 1
        assert calls == PROTOCOL.epochs
        assert stub.stream.name == "default"
    whole, parts = load_records(tmp_path / "whole"), load_records(tmp_path / "parts")
    for key in whole:
        assert whole[key]["curves"]["train_loss"] == pytest.approx(parts[key]["curves"]["train_loss"], rel=1e-5)
        assert whole[key]["made"]["graph"] is True
        assert whole[key]["made"]["device"] == "a pretended GPU"


def test_states_are_saved_every_five_minutes_and_once_just_before_a_deadline():
    now = time.monotonic()
    work = Workspace(None, None, deadline=now + 1000)
    assert [work.must_save(True, now, now + s) for s in (31, 299, 301)] == [False, False, True]
    assert [work.must_save(False, now, now + s) for s in (29, 31)] == [False, True]
    assert [work.must_save(True, now + 900, now + s) for s in (969, 971)] == [False, True]
    assert not work.must_save(True, now + 971, now + 990)
    assert Workspace(None, 5.0).must_save(True, now, now + 6)


def test_the_step_sees_the_images_of_its_own_batch(digits, tmp_path):
    """A graph reads its own copy of the draws, which each replay fills anew."""
    members = members_of(METHODS[:1], tmp_path)
    with pretend_cuda():
        steps = ResidentSteps(members, digits, THERE)
        seen, loss = torch.zeros(steps.feed.size, dtype=torch.int64), steps._criterion

        def watched(features, drawn, learned=None):
            seen.scatter_add_(0, drawn.images[INDEX, 0], torch.ones_like(drawn.images[INDEX, 0]))
            return loss(features, drawn, learned)

        steps._criterion = steps.pack.losses = watched
        before = []
        for batch in (steps.begin_epoch(0), *steps.batches())[1:]:
            before.append(seen.clone())
            steps.train_batch(0, batch)
        steps.close()
    assert ((seen - before[1]) > 0).sum() > 400
