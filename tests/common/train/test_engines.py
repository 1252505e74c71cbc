"""Several devices, several machines: a worker that is killed costs the epochs since its last save, and nothing else."""

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.losses import softmax_cross_entropy
from common.method import Method, missing_runs
from common.store import load_records, record_files
from common.train.loop import Workspace
from common.train.pack import Device
from common.train.processes import Processes
from common.train.work import Here, conduct, in_order
from tests.common.train.toys import METHODS, PROTOCOL, ROTATION, planned

CPU = Device("cpu", "float32", False)
LONGER = dataclasses.replace(PROTOCOL, epochs=8, decay_epochs=(6,))
SECOND = Method("second", "written", softmax_cross_entropy, starts_from=ROTATION)


class Watch:
    """What the observers of all packs were told: [epochs of a begun pack] in the order of their beginnings."""

    def __init__(self, react=lambda epochs: None):
        self.packs, self.epochs, self.react = [], [], react

    @contextmanager
    def __call__(self, pack):
        mine = []
        self.packs.append([m.label for m in pack])
        self.epochs.append(mine)

        def observe(progress):
            mine.append(progress.epoch)
            self.react(mine)

        yield observe


def go(folder: Path, engine, watch: Watch, methods=METHODS[:2], deadline=float("inf"), limit=2):
    """Train two seeds of each method, in packs of `limit`, saving at every epoch."""
    wanted = [planned(m, folder, seed, LONGER) for m in methods for seed in range(2)]
    work = Workspace(folder / "work", 0.0, deadline)
    ended = conduct(wanted, in_order(work, limit), root=folder, work=work, engine=engine, observer=watch)
    return wanted, ended


def same_weights(wanted, twins) -> bool:
    return all(torch.equal(tensor, load_file(twin.checkpoint)[name]) for member, twin in zip(wanted, twins, strict=True)
               for name, tensor in load_file(member.checkpoint).items())


@pytest.fixture(scope="module")
def whole(digits_folder, tmp_path_factory):
    """The same packs, trained in this process without a disturbance."""
    return go(tmp_path_factory.mktemp("whole"), Here(CPU, digits_folder), Watch())[0]


@pytest.fixture
def two(digits_folder):
    engine = Processes([CPU, CPU], digits_folder)
    yield engine
    engine.close()


def test_a_killed_process_gives_its_pack_back_and_the_weights_are_those_of_an_undisturbed_run(two, whole, tmp_path):
    def kill(epochs):
        if epochs is watch.epochs[0] and epochs[-1] == 3:  # the pack at the first place
            os.kill(two._workers[0][0].pid, signal.SIGKILL)

    watch = Watch(kill)
    wanted, ended = go(tmp_path, two, watch)
    assert sorted(t.result for t in ended) == ["done", "done", "lost"]
    again = max(watch.epochs, key=lambda epochs: epochs[0])
    assert again[0] in (3, 4, 5)
    assert again[-1] == LONGER.epochs
    assert same_weights(wanted, whole)
    assert not list((tmp_path / "work" / "resume").glob("*.pt"))


def test_a_run_waits_for_the_one_it_starts_from(two, tmp_path):
    """Two places, but the second stage of a run begins only when the first has ended."""
    watch = Watch()
    wanted, ended = go(tmp_path, two, watch, [SECOND, METHODS[0]], limit=2)
    assert [t.result for t in ended] == ["done"] * 3
    order = [pack[0].split()[1] for pack in watch.packs]
    assert order.index("rotation@written") < order.index("second@written")
    assert missing_runs(wanted, record_files(tmp_path)) == []


def test_a_deadline_pauses_every_place_and_the_next_call_goes_on(two, tmp_path):
    _, ended = go(tmp_path, two, Watch(), deadline=0.0)
    assert ended == []
    _, ended = go(tmp_path, two, Watch(), deadline=time.monotonic() + 0.3)
    assert {t.result for t in ended} == {"paused"}
    watch = Watch()
    wanted, _ = go(tmp_path, two, watch)
    assert missing_runs(wanted, record_files(tmp_path)) == []
    assert min(epochs[0] for epochs in watch.epochs) == 2


def fatal(outputs, labels, context):
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(outputs, labels, context):
    raise UserError("This loss says what is wrong.")


def test_a_pack_that_kills_every_worker_ends_with_a_sentence(two, tmp_path):
    with pytest.raises(UserError, match="3 workers in a row were lost, the last with digits-lt-20 fatal@written"):
        go(tmp_path, two, Watch(), [Method("fatal", "written", fatal)])


def test_an_error_in_a_worker_is_the_parents(two, tmp_path):
    with pytest.raises(UserError, match="says what is wrong"):
        go(tmp_path, two, Watch(), [Method("wrong", "written", wrong)])


def test_closing_leaves_no_process(digits_folder, tmp_path):
    engine = Processes([CPU, CPU], digits_folder)
    go(tmp_path, engine, Watch(), METHODS[:1], limit=1)
    pids = [process.pid for process, _ in engine._workers.values()]
    assert len(pids) == 2
    engine.close()
    assert not {child.pid for child in multiprocessing.active_children()} & set(pids)


@pytest.fixture(scope="module")
def machines():
    """A Ray cluster of a head, which trains nothing, and two machines of one core (all of them this one)."""
    pytest.importorskip("ray", reason="Ray is an optional extra")
    from ray.cluster_utils import Cluster as Machines

    memory = {"object_store_memory": 200 * 2**20}
    cluster = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    yield cluster, nodes
    cluster.shutdown()


def test_a_lost_machine_costs_the_epochs_since_the_last_save(machines, whole, digits_folder, tmp_path, monkeypatch):
    from common.train.cluster import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster, nodes = machines
    engine = Cluster(cluster.address, tmp_path, digits_folder, ("cpu", None, None))
    try:
        assert engine.places == 2
        assert engine.describe()["precision"] == "float32"
        assert engine.probe([planned(METHODS[0], tmp_path)])["seconds_per_work"] > 0

        def kill(epochs):
            if epochs[-1] >= 3 and len(nodes) == 2:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        watch = Watch(kill)
        wanted, ended = go(tmp_path, engine, watch, METHODS[:2])
        assert sorted(t.result for t in ended) == ["done", "done", "lost"]
        assert max(epochs[0] for epochs in watch.epochs) > 1, "the lost pack began again from its first epoch"
        assert same_weights(wanted, whole)
        assert all(r["made"]["commit"] != "unknown" for r in load_records(tmp_path).values())
        second, ended = go(tmp_path, engine, Watch(), [SECOND])
        assert [t.result for t in ended] == ["done", "done"]
        assert missing_runs(second, record_files(tmp_path)) == []
        with pytest.raises(UserError, match="says what is wrong"):
            go(tmp_path, engine, Watch(), [Method("wrong", "written", wrong)])
    finally:
        engine.close()


def test_a_cluster_that_does_not_answer_and_a_missing_ray_are_said(tmp_path, monkeypatch):
    from common.train.cluster import Cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install '\.\[cluster\]'"):
        Cluster("auto", tmp_path, tmp_path, (None, None, None))
