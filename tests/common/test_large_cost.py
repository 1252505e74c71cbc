"""What a run needs: hours by hand, the best evidence first; and heads and losses of thousands of classes within their memory."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.cost import ASSUMED, Throughput, basis, gpu_hours, head_bytes, hours, measured, not_run, training_equivalents
from common.data.feed import generator_for
from common.methods.method import Context, Start
from common.metrics import EARLY_EVAL_STRIDE
from common.paper import Paper
from common.spec import Column, LargeProtocol
from common.train.groups import group_runs, make_head, make_outputs
from tests.common.train.large_toys import member, row

COLUMN = Column("imagenet-lt", "lt", 1, "resnet50")
PROTOCOL = LargeProtocol(epochs=180, batch_size=512, rate=0.2, momentum=0.9, weight_decay=0.0001, warmup_epochs=0,
                         decay_epochs=(120, 160), decay_factor=0.1, drop_last=False)


def test_hours_by_hand():
    """180 epochs of 115,846 images; 50,000 test images in the last 60 epochs and a tenth of them before, a third of the work."""
    images = 180 * 115_846 + 50_000 * (60 + 120 / EARLY_EVAL_STRIDE) / 3
    assert training_equivalents(COLUMN, PROTOCOL) == pytest.approx(images)
    assert gpu_hours(COLUMN, PROTOCOL, Throughput("H", "resnet50", 2000.0, "")) == pytest.approx(images / 2000 / 3600)
    deep = dataclasses.replace(COLUMN, backbone="resnet152")
    assert gpu_hours(deep, PROTOCOL, Throughput("H", "resnet50", 2000.0, "")) == pytest.approx(
        images / 2000 / 3600 * 11_511_578_624 / 4_087_136_256)
    second = dataclasses.replace(PROTOCOL, epochs=10, trains="head", schedule="cosine", decay_epochs=())
    assert training_equivalents(COLUMN, second, streams=2) == pytest.approx((10 * 115_846 * 2 + 10 * 50_000) / 3)
    assert training_equivalents(COLUMN, second.only_tested()) == pytest.approx(50_000 / 3)


def record(kind: str, speed: float, finished: str) -> dict:
    return {"spec": {"column": {"backbone": "resnet50"}},
            "made": {"device": f"{kind} card", "device_type": kind, "images_per_second": speed, "finished": finished}}


def test_the_last_run_on_a_gpu_is_the_best_evidence(tmp_path):
    (tmp_path / "large").mkdir()
    stored = {"device": "bench card", "device_type": "cuda", "backbone": "resnet50", "finished": "2026-01-03",
              "rows": [{"name": "ours, synthetic", "images_per_second": 9.0}, {"name": "ours, JPEG", "images_per_second": 700.0}]}
    (tmp_path / "large" / "a.json").write_text(json.dumps(stored))
    (tmp_path / "large" / "b.json").write_text(json.dumps(stored | {"device_type": "cpu", "device": "desk"}))
    small = {"spec": {"column": {"backbone": "resnet32"}}, "made": {"device_type": "cuda"}}
    runs = [record("cuda", 500.0, "2026-01-01"), record("cpu", 5.0, "2026-01-04"), record("cuda", 600.0, "2026-01-02"), small]
    speeds = measured(runs, tmp_path)
    assert [s.images_per_second for s in speeds] == [600.0, 500.0, 700.0]
    assert basis(speeds) == Throughput("cuda card", "resnet50", 600.0, "2026-01-02")
    assert measured([], tmp_path / "nowhere") == []


def test_a_cell_of_a_large_column_says_what_it_needs_with_all_stages(tmp_path):
    """Worked by hand: the first stage's hours, and a tenth of the classifier's passes on top."""
    first = dataclasses.replace(row("gcl", "ce@written"), protocol=PROTOCOL)
    second = dataclasses.replace(PROTOCOL, epochs=10, trains="head", schedule="cosine", decay_epochs=())
    retrained = dataclasses.replace(first, name="crt", start=Start(first), protocol=second)
    both = (training_equivalents(COLUMN, PROTOCOL) + training_equivalents(COLUMN, second)) / ASSUMED / 3600
    paper = Paper("toy", "Toy", tmp_path, {"paper": (COLUMN,)}, {"paper": {}}, {"paper": 1}, lambda column, protocols: (),
                  large={COLUMN.name: {"written": PROTOCOL}})
    assert hours(paper, COLUMN, retrained, []) == pytest.approx(both)
    assert not_run(paper, COLUMN, retrained, []) == f"not run: needs imagenet-lt; about {both:.2g} GPU-hours a run"
    assert hours(paper, COLUMN, retrained, [Throughput("H", "resnet50", 2 * ASSUMED, "")]) == pytest.approx(both / 2)


class Memory(TorchDispatchMode):
    """The most bytes alive at once, and the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                held = StorageWeakRef(tensor.untyped_storage())
                self.alive[held.cdata] = held, tensor.untyped_storage().nbytes()
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // 4)
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


LABELS = [("kps", "ce@written"), ("kps", "kps@written"), ("kps", "arcface@written"), ("kps", "equalization@written"),
          ("kps", "ldam-drw@released"), ("kps", "cb-focal@written"), ("kps", "mislas-kps@released"), ("kps", "bbn@written"),
          ("fbl", "fbl@released"), ("fbl", "la@written"), ("fbl", "hybrid-sc@written"), ("gcl", "gcl@released"),
          ("gcl", "deconfound-tde@written"), ("icu", "icu@written"), ("icu", "icu@released"), ("two_head", "cdh@written")]


@pytest.mark.parametrize(("batch", "width"), [(48, 8), (8, 48)])
@pytest.mark.parametrize(("paper", "label"), LABELS)
def test_no_loss_needs_more_than_is_stated(paper, label, batch, width, tmp_path):
    """One step of head and loss with many classes: its peak, and no tensor of [batch, classes, classes]."""
    classes, method = 300, row(paper, label)
    counts = np.maximum(1200 * 0.01 ** (np.arange(classes) / classes), 1).astype(np.int64)
    group, = group_runs([member(method, tmp_path, PROTOCOL)], counts)
    head = make_head(group, width, 1, int(counts.sum()))
    head.initialise([generator_for(0, "head")])
    streams, outputs = method.streams.number, group.outputs
    axes, wide = (1, streams, batch) if streams > 1 else (1, batch), width // 2 if method.net.kind == "bilateral" else width
    features = torch.randn(*axes, wide, requires_grad=True)
    labels = torch.randint(0, outputs, axes)
    noise = torch.randn(1, batch, outputs) if method.noise else None
    context = Context(torch.tensor(counts, dtype=torch.float32), torch.tensor(100.0), noise,
                      head.parent if group.parent else None)
    with Memory() as memory:
        method.loss(make_outputs(method, head, features, context), labels, context).sum().backward()
    kept = 3 * sum(p.numel() for p in head.parameters())  # the weights, and the two averages of Adam
    assert memory.peak + 4 * kept <= head_bytes(streams * batch, width, outputs)
    assert memory.largest <= outputs * max(streams * batch, width) + outputs


def test_the_largest_head_is_as_the_text_says():
    assert head_bytes(512, 2048, 8142) == pytest.approx(1.5e9, rel=0.03)
