"""Several devices, several machines: a worker that is killed costs the epochs since its last save, and nothing else."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.methods.losses import ldam, softmax_cross_entropy
from common.methods.method import Method, Net, Start
from common.plan import missing_runs
from common.store import load_records, record_files, save_record
from common.train.device import Device
from common.train.processes import Processes
from common.train.state import Workspace
from common.train.work import LocalDevice, Outcome, in_order, run_schedule, train, way
from tests.common.train.toys import METHODS, PROTOCOL, ROTATION, planned
from tests.records import make_record

ROOT = Path(__file__).resolve().parents[3]
CPU = Device("cpu", "float32", False)
LONGER = dataclasses.replace(PROTOCOL, epochs=8, decay_epochs=(6,))
SECOND = Method("second", "written", softmax_cross_entropy, start=Start(ROTATION))


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
            return self.react(mine)

        yield observe


def go(folder: Path, engine, watch: Watch, methods=METHODS[:2], deadline=float("inf"), limit=2):
    """Train two seeds of each method, in packs of `limit`, saving at every epoch."""
    wanted = [planned(m, folder, seed, LONGER) for m in methods for seed in range(2)]
    work = Workspace(folder / "work", 0.0, deadline)
    ended = run_schedule(wanted, in_order(work, lambda item: limit), root=folder, work=work, engine=engine, observer=watch)
    return wanted, ended


def same_weights(wanted, twins) -> bool:
    return all(torch.equal(tensor, load_file(twin.checkpoint)[name]) for member, twin in zip(wanted, twins, strict=True)
               for name, tensor in load_file(member.checkpoint).items())


@pytest.fixture(scope="module")
def whole(digits_folder, tmp_path_factory):
    """The same packs, trained in this process without a disturbance."""
    return go(tmp_path_factory.mktemp("whole"), LocalDevice(CPU, digits_folder), Watch())[0]


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


LONG = """
import dataclasses, sys
from contextlib import nullcontext
from pathlib import Path
from common.train.state import Workspace
from common.train.device import Device
from common.train.processes import Processes
from tests.common.train.toys import METHODS, PROTOCOL, planned
if __name__ == "__main__":
    folder, data = Path(sys.argv[1]), Path(sys.argv[2])
    engine = Processes([Device("cpu", "float32", False)], data)
    run = planned(METHODS[0], folder, 0, dataclasses.replace(PROTOCOL, epochs=100_000, decay_epochs=()))
    engine.begin(0, [run], Workspace(folder / "work", 0.0), lambda p: print(engine._workers[0][0].pid, flush=True))
    engine.wait()
"""


def test_a_process_ends_with_its_parent_so_that_nobody_trains_a_pack_beside_the_next_command(digits_folder, tmp_path):
    script = tmp_path / "long.py"
    script.write_text(LONG)
    parent = subprocess.Popen([sys.executable, script, tmp_path, digits_folder], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
    worker = Path(f"/proc/{int(parent.stdout.readline())}")
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not worker.exists() or "(zombie)" in (worker / "status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the worker still trains")


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


def breaks(outputs, labels, context):
    raise RuntimeError("This loss breaks.")


FATAL, BREAKS, WRONG = (Method(f.__name__, "written", f) for f in (fatal, breaks, wrong))
OTHERS = [Method(f"other-{s}", "written", partial(ldam, s=s, largest=0.5)) for s in (1.0, 2.0)]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "work" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bad", [FATAL, BREAKS, WRONG], ids=lambda m: m.name)
def test_a_bad_run_is_set_aside_and_its_neighbours_are_trained(bad, two, tmp_path):
    """It kills its workers, raises, or is refused, beside two sound runs in one pack: they end in other packs."""
    wanted, ended = go(tmp_path, two, Watch(), [OTHERS[0], bad], limit=4)
    assert sorted(m.label for m in missing_runs(wanted, record_files(tmp_path))) == [
        f"digits-lt-20 {bad.name}@written seed {seed}" for seed in range(2)]
    aside = [t for t in ended if t.result == "set aside"]
    assert sorted(t.pack[0].label for t in aside) == sorted(m.label for m in wanted if m.method is bad)
    assert all(len(t.pack) == 1 for t in aside)
    if bad is BREAKS:
        assert all("Traceback" in t.why and t.why.endswith("RuntimeError: This loss breaks.\n") for t in aside)
        logged = [entry for entry in log_of(tmp_path) if entry.get("result") == "set aside"]
        assert [entry["why"] for entry in logged] == [t.why for t in aside]


def test_a_device_that_fails_whatever_it_gets_ends_the_work_with_a_sentence(digits_folder, tmp_path):
    methods = [Method(f"bad-{i}", "written", partial(breaks_by, part=float(i))) for i in range(8)]
    with pytest.raises(UserError, match=r"12 packs in a row failed.*This loss breaks"):
        go(tmp_path, LocalDevice(CPU, digits_folder), Watch(), methods, limit=1)


def breaks_by(outputs, labels, context, *, part: float):
    breaks(outputs, labels, context)


def test_a_sentence_of_a_worker_sets_runs_aside(two, tmp_path):
    """The pack of two is tried twice, then each run alone."""
    _, ended = go(tmp_path, two, Watch(), [Method("wrong", "written", wrong)])
    said = "This loss says what is wrong."
    assert [(t.result, len(t.pack), t.why) for t in ended] == [("failed", 2, said)] * 2 + [("set aside", 1, said)] * 2


def test_train_says_what_it_set_aside_when_the_others_have_ended(digits_folder, tmp_path):
    planned_runs = [planned(m, tmp_path, 0, LONGER) for m in (METHODS[0], BREAKS)]
    work = Workspace(tmp_path / "work", 30.0)
    with pytest.raises(UserError, match=r"1 runs failed and were set aside, the first digits-lt-20 breaks@written seed 0: Run"):
        train(planned_runs, root=tmp_path, work=work, engine=LocalDevice(CPU, digits_folder), limit=lambda m: 4, observer=Watch())
    assert [m.label for m in missing_runs(planned_runs, record_files(tmp_path))] == [planned_runs[1].label]


def test_the_ways_of_a_device_end_with_plain_steps():
    cuda = Device("cuda:0", "bfloat16", True)
    ways = [way(cuda, steps) for steps in range(4)]
    assert [(d.compile, d.graph, last) for d, last in ways] == [
        (True, True, False), (False, True, False), (False, False, True), (False, False, True)]
    assert way(CPU, 0) == (CPU, True)
    assert way(dataclasses.replace(cuda, graph=False), 1) == (Device("cuda:0", "bfloat16", False, False), True)


class Fragile:
    """An engine that leaves records without training. Its compiler and captures fail, or it holds `too_many` runs at most of
    networks with an adapter. seen: (adapter, runs, steps plainer) of every pack."""

    places = 1

    def __init__(self, too_many=0):
        self.seen, self.too_many = [], too_many

    def begin(self, place, pack, work, observe, plainer=0):
        adapter = pack[0].method.net.adapter
        self.seen.append((adapter, len(pack), plainer))
        self.outcome = Outcome("done")
        if self.too_many and adapter and len(pack) > self.too_many:
            self.outcome = Outcome("too large")
        elif not self.too_many and plainer < 2:
            self.outcome = Outcome("failed", "Traceback: no kernel\n", plainest=False)
        else:
            for member in pack:
                save_record(member.folder, make_record(member, 50.0))

    def wait(self):
        return 0, self.outcome


def test_what_fails_compiled_is_tried_one_step_plainer_until_it_trains(tmp_path):
    engine = Fragile()
    wanted, ended = go(tmp_path, engine, Watch(), METHODS[:1], limit=2)
    assert engine.seen == [(0, 2, 0), (0, 2, 1), (0, 2, 2)]
    assert [t.result for t in ended] == ["failed", "failed", "done"]
    assert missing_runs(wanted, record_files(tmp_path)) == []


def test_records_of_other_code_do_not_begin_a_pack_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Fragile, "wait", lambda self: [p.unlink() for p in record_files(tmp_path).values()] and (0, self.outcome))
    _, ended = go(tmp_path, Fragile(too_many=9), Watch(), METHODS[:1], limit=2)
    assert [(t.result, t.why) for t in ended] == [
        ("set aside", "Its records are of other code than what is here: every machine needs the same checkout.")]


def test_a_shortage_of_memory_halves_the_packs_of_its_network_only(tmp_path):
    engine = Fragile(too_many=2)
    wide = [Method(f"wide-{s}", "written", partial(ldam, s=s, largest=0.5), net=Net(adapter=8)) for s in (1.0, 2.0)]
    wanted, _ = go(tmp_path, engine, Watch(), [*wide, *OTHERS], limit=4)
    assert engine.seen == [(8, 4, 0), (8, 2, 0), (8, 2, 0), (0, 4, 0)]
    assert missing_runs(wanted, record_files(tmp_path)) == []


def test_an_observer_can_stop_a_pack_which_leaves_nothing_behind(digits_folder, tmp_path):
    stopped = []

    def stop_the_first(epochs):
        if not stopped and epochs[-1] == 3:
            return stopped.append(True) is None
        return False

    wanted, ended = go(tmp_path, LocalDevice(CPU, digits_folder), Watch(stop_the_first), METHODS[:1], limit=2)
    assert [t.result for t in ended] == ["slow", "done"]
    assert missing_runs(wanted, record_files(tmp_path)) == []


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
    engine = Cluster(cluster.address, tmp_path, digits_folder, ("cpu", None, None, True))
    try:
        assert engine.places == 2
        assert engine.describe() | {"device": ""} == {"device": "", "precision": "float32", "compiled": False, "memory": 0}

        def kill(epochs):
            if epochs[-1] >= 3 and len(nodes) == 2:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        watch = Watch(kill)
        wanted, ended = go(tmp_path, engine, watch, METHODS[:2])
        assert sorted(t.result for t in ended) == ["done", "done", "lost"]
        again = next(i for i, pack in enumerate(watch.packs) if pack in watch.packs[:i])  # the pack of the machine that went
        before, after = watch.epochs[watch.packs.index(watch.packs[again])], watch.epochs[again]
        assert not before or not after or after[0] > 1, "the lost pack began again from its first epoch"
        assert same_weights(wanted, whole)
        assert all(r["made"]["commit"] != "unknown" for r in load_records(tmp_path).values())
        second, ended = go(tmp_path, engine, Watch(), [SECOND])
        assert [t.result for t in ended] == ["done", "done"]
        assert missing_runs(second, record_files(tmp_path)) == []
        _, ended = go(tmp_path, engine, Watch(), [Method("wrong", "written", wrong)])
        assert {t.why for t in ended} == {"This loss says what is wrong."}
    finally:
        engine.close()


def refused_by_ray(*_, **__):
    """What ray.init() of 2.60 ends with where the cluster has a token and this machine has not said that it uses one."""
    import ray

    try:
        raise ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken")
    except ray.exceptions.AuthenticationError:
        try:
            raise RuntimeError("Failed to connect to GCS")
        except RuntimeError as error:
            raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.1:6379") from error


@pytest.mark.parametrize("ends", [refused_by_ray, "AuthenticationError"])
def test_a_cluster_that_asks_for_a_token_says_so(ends, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from common.train.cluster import Cluster

    def refuse(*_, **__):
        raise ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken")

    monkeypatch.setattr(ray, "init", ends if callable(ends) else refuse)
    with pytest.raises(UserError, match=r"The Ray cluster at 'auto' asks for a token: set RAY_AUTH_MODE=token") as error:
        Cluster("auto", tmp_path, tmp_path, (None, None, None, True))
    assert "\n" not in str(error.value)


def test_a_cluster_that_does_not_answer_and_a_missing_ray_are_said(tmp_path, monkeypatch):
    from common.train.cluster import Cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install '\.\[cluster\]'"):
        Cluster("auto", tmp_path, tmp_path, (None, None, None, True))
