"""Every loss of every paper, behind its own head, where its quantities reach their ends: saturated and equal logits, features of
zeros, classes of one image and classes of one size. Value and gradient are finite, in both precisions."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from common.methods.method import Context, Method, Outputs
from common.models.heads import PackedHead
from common.store import canonical_json
from common.train.groups import Group, make_head, make_outputs
from common.train.pack import generator_for
from papers.catalog import PAPERS

WIDTH, BATCH = 24, 8
COUNTS = {"one image": (5000, 120, 1, 1), "all of one image": (1, 1, 1, 1), "all of one size": (500, 500, 500, 500)}
EPOCHS = (0.0, 199.0)


def rows() -> Iterator[tuple[str, Method]]:
    """Every row of every paper, and the stages before it."""
    for paper in PAPERS:
        for profile, columns in paper.columns.items():
            for column in columns:
                for row in paper.rows(profile, column):
                    for method in stages(row):
                        yield f"{paper.name} {method.label}", method


def losses() -> dict[str, Method]:
    """Each loss once, with what it needs of the network, by the first paper and label that has it."""
    found = {}
    for label, method in rows():
        said = method.describe()
        needs = [said[name] for name in ("loss", "head", "noise", "companions", "combine", "network")]
        found.setdefault(canonical_json([*needs, bool(method.clusters)]), (label, method))
    return dict(found.values())


def stages(method: Method) -> Iterator[Method]:
    yield method
    if method.first_stage:
        yield from stages(method.first_stage)


LOSSES = losses()


def place(method: Method, counts: tuple[int, ...], dtype: torch.dtype) -> tuple[Group, PackedHead, torch.Tensor, Context]:
    """A head for four classes, of a method that divides them for seven clusters, with labels and context."""
    parent = (0, 0, 0, 1, 1, 2, 3) if method.clusters else ()
    group = Group(0, 1, method, 4, parent)
    head = make_head(group, WIDTH, 9 if method.net.kind == "shifted" else 1, BATCH)
    head.initialise([generator_for(0, "head")])
    head = head.to(dtype)
    streams = method.streams.number
    labels = torch.arange(BATCH) % group.outputs
    labels = labels.expand(1, streams, BATCH) if streams > 1 else labels.expand(1, BATCH)
    noise = torch.linspace(0, 1, BATCH * 4, dtype=dtype).reshape(1, BATCH, 4) if method.noise else None
    context = Context(torch.tensor(counts, dtype=dtype), torch.zeros((), dtype=dtype), noise, head.parent if parent else None)
    return group, head, labels, context


def make_features(method: Method, value: float, dtype: torch.dtype) -> torch.Tensor:
    """[1, batch, width], or with streams: one direction a sample, of the length `value`."""
    streams, copies = method.streams.number, 9 if method.net.kind == "shifted" else 1
    wide = WIDTH // 2 if method.streams.combine else WIDTH
    drawn = torch.randn(BATCH, wide * copies, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shape = (1, streams, BATCH, wide * copies) if streams > 1 else (1, BATCH, wide * copies)
    return (value * drawn).to(dtype).expand(shape).clone().requires_grad_()


def assert_finite(value: torch.Tensor, leaves: dict[str, torch.Tensor], where: tuple) -> None:
    assert value.isfinite().all(), where
    value.sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is None or leaf.grad.isfinite().all(), (name, *where)
        leaf.grad = None


@pytest.mark.parametrize("label", LOSSES)
def test_loss_and_gradient_of_features_at_the_ends_are_finite(label):
    """From features of no length to very long ones, and with the classifier's weights all alike: equal logits."""
    method = LOSSES[label]
    for dtype in (torch.float32, torch.float64):
        for which, counts in COUNTS.items():
            _, head, labels, context = place(method, counts, dtype)
            for length in (0.0, 1.0, 300.0, "equal"):
                if length == "equal":
                    with torch.no_grad():
                        for name in {"weight", "kernel", "bias"} & dict(head.named_parameters()).keys():
                            getattr(head, name).fill_(0.5)
                for epoch in EPOCHS:
                    context.epoch.fill_(epoch)
                    features = make_features(method, 1.0 if length == "equal" else length, dtype)
                    value = method.loss(make_outputs(method, head, features, context), labels, context)
                    assert_finite(value, {"features": features, **dict(head.named_parameters())}, (which, length, epoch, dtype))


@pytest.mark.parametrize("label", LOSSES)
def test_loss_and_gradient_of_logits_at_the_ends_are_finite(label):
    """Logits apart from features: all equal, and certain of the right class and of a wrong one, to the last bit and beyond."""
    method = LOSSES[label]
    most = 1.0 if method.head.kind == "cosine" else 1000.0
    for dtype in (torch.float32, torch.float64):
        for which, counts in COUNTS.items():
            group, head, labels, context = place(method, counts, dtype)
            made = make_outputs(method, head, make_features(method, 1.0, dtype), context)
            parts = {name: t.detach() for name, t in made._asdict().items() if isinstance(t, torch.Tensor)}
            own = torch.nn.functional.one_hot(labels, group.outputs)[..., :made.logits.shape[-2], :].to(dtype)
            if own.shape != made.logits.shape:  # combined streams have logits of one
                own = own[:, 0]
            for size in (0.0, min(most, 30.0), most, -most):
                for rest in (0.0, -1.0) if method.head.kind == "cosine" else (0.0,):
                    z = (size * own + rest * (1 - own)).requires_grad_()
                    outputs = Outputs(**{**parts, "logits": z, "head": made.head})
                    assert_finite(method.loss(outputs, labels, context), {"logits": z}, (which, size, rest, dtype))


def test_class_weights_and_samplers_at_the_ends_are_finite():
    """What every row computes of class counts, in the first and the last epoch."""
    seen = set()
    for label, method in rows():
        said = method.describe()
        key = canonical_json([said["weights"], said["sampler"], said["adjust"]])
        if key in seen:
            continue
        seen.add(key)
        for which, counts in COUNTS.items():
            n = np.array(counts)
            for epoch in (0, 199):
                found = [method.weights(n, epoch), method.sampler(n, epoch), method.adjust(n) if method.adjust else None]
                assert all(np.isfinite(f).all() for f in found if f is not None), (label, which, epoch)
                assert all((f >= 0).all() and f.sum() > 0 for f in found[:2] if f is not None), (label, which, epoch)


def test_the_list_holds_every_loss():
    functions = {method.describe()["loss"]["function"] for _, method in rows()}
    assert {m.describe()["loss"]["function"] for m in LOSSES.values()} == functions
    assert functions > {"focal", "focal_detached", "sigmoid_focal", "arcface", "hybrid_contrastive", "meta_embedding", "icu",
                        "kps_ga", "fbl_as_released", "gcl", "mm_as_released", "two_heads"}
