"""Every loss of every paper, behind its own head, where its quantities reach their ends: saturated and equal logits, features of
zeros, classes of one image and classes of one size. Value and gradient are finite, in both precisions."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from common.method import Context, Method, Outputs
from common.models.heads import PackedHead
from common.store import canonical_json
from common.train.groups import Group, make_head, make_outputs
from common.train.pack import stream
from papers.catalog import PAPERS

WIDTH, BATCH = 24, 8
COUNTS = {"one image": (5000, 120, 1, 1), "all of one image": (1, 1, 1, 1), "all of one size": (500, 500, 500, 500)}
EPOCHS = (0.0, 199.0)


def losses() -> dict[str, Method]:
    """Each loss once, with what it needs of the network, by paper and label; first stages too."""
    found = {}
    for paper in PAPERS:
        for profile, columns in paper.columns.items():
            for column in columns:
                for row in paper.rows(profile, column):
                    for method in stages(row):
                        said = method.describe()
                        needs = [said[name] for name in ("loss", "head", "noise", "companions", "combine", "network")]
                        key = canonical_json([*needs, bool(method.clusters)])
                        found.setdefault(key, (f"{paper.name} {method.label}", method))
    return dict(found.values())


def stages(method: Method) -> Iterator[Method]:
    yield method
    if method.starts_from:
        yield from stages(method.starts_from)


LOSSES = losses()


def place(method: Method, counts: tuple[int, ...], dtype: torch.dtype) -> tuple[Group, PackedHead, torch.Tensor, Context]:
    """A head for four classes, of a method that divides them for seven clusters, with labels and context."""
    parent = (0, 0, 0, 1, 1, 2, 3) if method.clusters else ()
    group = Group(0, 1, method, 4, parent)
    head = make_head(group, WIDTH, 9 if method.network == "shifted" else 1, BATCH)
    head.initialise([stream(0, "head")])
    head = head.to(dtype)
    streams = 1 + len(method.companions)
    labels = torch.arange(BATCH) % group.outputs
    labels = labels.expand(1, streams, BATCH) if streams > 1 else labels.expand(1, BATCH)
    noise = torch.linspace(0, 1, BATCH * 4, dtype=dtype).reshape(1, BATCH, 4) if method.noise else None
    context = Context(torch.tensor(counts, dtype=dtype), torch.zeros((), dtype=dtype), noise, head.parent if parent else None)
    return group, head, labels, context


def make_features(method: Method, value: float, dtype: torch.dtype) -> torch.Tensor:
    """[1, batch, width], or with streams: one direction a sample, of the length `value`."""
    streams, copies = 1 + len(method.companions), 9 if method.network == "shifted" else 1
    wide = WIDTH // 2 if method.combine else WIDTH
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


def test_the_list_holds_every_loss():
    """A loss of any row, by its function's name."""
    functions = {m.describe()["loss"]["function"] for p in PAPERS for profile, columns in p.columns.items()
                 for c in columns for row in p.rows(profile, c) for m in stages(row)}
    assert {m.describe()["loss"]["function"] for m in LOSSES.values()} == functions
    assert len(functions) >= 30
    assert np.isin(["focal", "icu", "kps_ga", "fbl_as_released", "gcl_margin_focal", "mm_as_released", "two_heads"],
                   sorted(functions)).all()
