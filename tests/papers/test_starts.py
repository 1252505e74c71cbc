"""Where every run of every paper starts: each parameter and buffer comes from the run's own generators, whatever the global one
says and whichever runs stand beside it in a pack."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from common.data.feed import generator_for
from common.data.imbalance import class_counts
from common.data.large_sets import LARGE
from common.data.sets import SETS, load
from common.data.sources import prepare
from common.models.backbones import backbone
from common.models.imagenet import LargeNetwork, draw_weights
from common.models.resnet import initialise
from common.plan import Run
from common.spec import Column
from common.train.device import Device
from common.train.groups import Group, group_runs, make_head
from common.train.pack import take_run
from common.train.resident import ResidentSteps
from papers.catalog import PAPERS

IMAGES = 30  # of a training set, where only its size matters
CLASSES = 100  # the most of a large set, whose heads would take seconds to draw


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """So that a weight that nobody draws is seen, and not taken for one that is zero by chance."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@cache
def wanted() -> list[Run]:
    """A run of seed 0 of every method of every column, and those that it starts from."""
    items = [Run(paper.spec(profile, column, method, 0), method, paper.results(profile) / column.name)
             for paper in PAPERS for profile in ("quick", "paper") for column in paper.columns[profile]
             for method in paper.rows(profile, column)]
    return [link for item in items for link in item.chain]


def counts_of(column: Column) -> np.ndarray:
    """Training images of each class."""
    if column.dataset in LARGE:
        facts = LARGE[column.dataset]
        return np.linspace(facts.train.largest, facts.train.smallest, min(facts.classes, CLASSES)).astype(int)
    facts = SETS[column.dataset]
    if column.imbalance == "counts":
        return np.array(column.counts)
    if column.imbalance == "none":
        return np.full(facts.classes, facts.train // facts.classes)
    return class_counts(column.imbalance, column.ratio, facts.train // facts.classes, facts.classes)


Kind = tuple[str, str, int, int, int]  # name, network, adapter, channels and side of the images


def kind_of(item: Run) -> Kind:
    method, column = item.method, item.spec.column
    facts = SETS.get(column.dataset)
    images = (3, LARGE[column.dataset].side) if facts is None else (facts.channels, facts.side)
    return column.backbone, method.net.kind, method.net.adapter, *images


def is_large(item: Run) -> bool:
    return item.spec.column.dataset in LARGE


@cache
def shape_of(kind: Kind, large: bool) -> tuple[int, int]:
    """Width and copies of the features."""
    name, network, adapter, channels, side = kind
    with torch.device("meta"):
        net = LargeNetwork(name, network, adapter) if large else backbone(name, 1, channels, network, side, adapter)
    return net.width, net.copies


def heads() -> Iterator[tuple[Run, Group, int, int]]:
    """Every head once: a run that has it, its group of two runs, width and copies of the features."""
    seen = set()
    for item in wanted():
        pair = [item, replace(item, spec=replace(item.spec, seed=1))]
        group = group_runs(pair, counts_of(item.spec.column))[0]
        shape = shape_of(kind_of(item), is_large(item))
        if (said := (group.method.head, group.classes, group.parent, *shape)) not in seen:
            seen.add(said)
            yield item, group, *shape


def check(start: Callable[[tuple[int, ...]], dict[str, Tensor]], packed: bool = True) -> None:
    """start(seeds) -> the state of runs with these seeds in one pack, as `Pack.state` names it."""
    found = []
    for disturbed, seeds in ((1, (0, 1)), (2, (0, 1)), (3, (1,))) if packed else ((1, (0,)), (2, (0,))):
        torch.manual_seed(disturbed)
        found.append(start(seeds))
    first, again, *alone = found
    for name, tensor in first.items():
        assert tensor.isfinite().all(), f"{name} is not drawn"
        assert torch.equal(tensor, again[name]), f"{name} depends on the global generator"
    if alone:
        mine, single = take_run(first, 1, [(0, 2)]), take_run(alone[0], 0, [(0, 1)])
        assert mine.keys() == single.keys()
        assert all(torch.equal(mine[name], single[name]) for name in mine), "a run depends on its pack"


@pytest.mark.parametrize("kind", sorted({kind_of(item) for item in wanted() if not is_large(item)}), ids=str)
def test_a_backbone_starts_with_the_runs_own_weights(kind):
    name, network, adapter, channels, side = kind

    def start(seeds):
        net = backbone(name, len(seeds), channels, network, side, adapter)
        initialise(net, [generator_for(seed, "backbone") for seed in seeds])
        return {f"backbone.{n}": t for n, t in net.state_dict().items()}

    check(start)


@pytest.mark.parametrize("kind", sorted({kind_of(item)[:3] for item in wanted() if is_large(item)}), ids=str)
def test_a_large_backbone_starts_with_the_runs_own_weights(kind):
    def start(seeds):
        with torch.device("meta"):
            net = LargeNetwork(*kind)
        net.to_empty(device="cpu")
        draw_weights([net], generator_for(seeds[0], "backbone"))
        return net.state_dict()

    check(start, packed=False)


def test_every_head_starts_with_the_runs_own_weights():
    kinds = set()
    for item, group, width, copies in heads():
        kinds.add(item.method.head.kind)

        def start(seeds, group=group, width=width, copies=copies):
            head = make_head(replace(group, stop=group.first + len(seeds)), width, copies, IMAGES)
            head.initialise([generator_for(seed, "head") for seed in seeds])
            return {f"heads.0.{n}": t.detach() for n, t in head.state_dict().items()}

        check(start)
    assert kinds == {"linear", "cosine", "causal", "gaussian", "centres", "quadratic", "memory"}


def test_a_whole_pack_starts_as_its_runs_do_alone(tmp_path):
    """All that a pack holds, clusters and moments too: of every kind of run of the quick profile."""
    prepare("digits", tmp_path)
    images, seen = load("digits", tmp_path), set()
    for item in wanted():
        method, column = item.method, item.spec.column
        said = kind_of(item), method.head, method.clusters and method.clusters.by, method.task, item.spec.protocol.optimiser
        if column.dataset != "digits" or said in seen:
            continue
        seen.add(said)

        def start(seeds, item=item):
            members = [replace(item, spec=replace(item.spec, seed=seed)) for seed in seeds]
            steps = ResidentSteps(members, images, Device("cpu", "float32", False))
            return {name: tensor.clone() for name, tensor in steps.pack.state().items()}

        check(start)
    assert len(seen) > 20
