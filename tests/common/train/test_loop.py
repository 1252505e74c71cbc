"""Epoch loop, resume after kill -9, records, packs from missing runs."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.methods.losses import softmax_cross_entropy
from common.methods.method import Method, Start
from common.metrics import summary
from common.plan import missing_runs
from common.store import files_by_key, load_records, record_files, save_record
from common.train.device import Device
from common.train.loop import train_pack
from common.train.packing import form_packs, together
from common.train.record import best_epoch
from common.train.state import Workspace
from common.train.work import LocalDevice, train
from tests.common.train.toys import METHODS, PROTOCOL, ROTATION, planned
from tests.records import make_record

CPU = Device("cpu", "float32", False)
ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import sys
from pathlib import Path
from common.data.sets import load
from common.train.state import Workspace
from common.train.loop import train_pack
from common.train.device import Device
from tests.common.train.toys import METHODS, PROTOCOL, planned
import dataclasses, torch
torch.set_num_threads(1)
folder, data = Path(sys.argv[1]), Path(sys.argv[2])
protocol = dataclasses.replace(PROTOCOL, epochs=8, decay_epochs=(6,))
members = [planned(m, folder, 1, protocol) for m in METHODS[:4]]
train_pack(members, load("digits", data), Device("cpu", "float32", False), Workspace(folder / "work", save_seconds=0.0),
           lambda p: print("epoch", p.epoch, flush=True))
"""


def start(folder: Path, data: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(data)], stdout=subprocess.PIPE, text=True,
                            cwd=ROOT, env=environment)


@pytest.mark.parametrize("kill_after", [1, 5])
def test_kill_minus_9_and_start_again_gives_the_same_bits(digits_folder, tmp_path, kill_after):
    whole = start(tmp_path / "whole", digits_folder)
    assert whole.wait(120) == 0
    victim = start(tmp_path / "killed", digits_folder)
    for line in victim.stdout:
        if line.strip() == f"epoch {kill_after}":
            time.sleep(0.05)  # into the next epoch, or into the save
            victim.send_signal(signal.SIGKILL)
            break
    assert victim.wait(60) == -signal.SIGKILL
    assert not list((tmp_path / "killed").rglob("*.json"))
    again = start(tmp_path / "killed", digits_folder)
    epochs = [line.strip() for line in again.stdout]
    assert again.wait(120) == 0
    assert epochs[0] in (f"epoch {kill_after}", f"epoch {kill_after + 1}", f"epoch {kill_after + 2}")
    files = sorted((tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        twin = load_file(tmp_path / "killed" / file.relative_to(tmp_path / "whole"))
        assert all(torch.equal(tensor, twin[name]) for name, tensor in load_file(file).items())
        assert (tmp_path / "killed" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    mine, theirs = (load_records(tmp_path / name) for name in ("whole", "killed"))
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert {k: v for k, v in mine[key].items() if k not in ("made", "digest")} == {
            k: v for k, v in theirs[key].items() if k not in ("made", "digest")}


def test_a_record_holds_what_the_run_did(digits, tmp_path):
    members = [planned(METHODS[1], tmp_path), planned(METHODS[4], tmp_path)]
    seen = []
    assert train_pack(members, digits, CPU, Workspace(tmp_path / "work", 30.0), seen.append)
    record, rotation = (load_records(tmp_path)[m.spec.key] for m in members)
    assert [p.epoch for p in seen] == [1, 2, 3]
    assert record["status"] == "done"
    assert record["label"] == "digits-lt-20 ldam-drw@written"
    assert sum(record["counts"]) == 464
    assert record["curves"]["tested"] == [36, 36, 360]
    right, total = sum(record["confusion"][c][c] for c in range(10)), sum(map(sum, record["confusion"]))
    assert record["accuracy"]["last"] == pytest.approx(100 * right / total, abs=1e-3)
    assert record["accuracy"]["best"] == record["accuracy"]["last"] == record["curves"]["test_accuracy"][-1]
    assert len(record["norms"]["classifier"]) == 10
    assert record["norms"]["feature_epochs"] == [0, 1, 2]
    assert record["made"]["precision"] == "float32"
    assert record["made"]["runs_in_pack"] == 2
    assert len(rotation["confusion"]) == 4
    weights = load_file(members[0].checkpoint)
    assert weights["head.weight"].shape == (1, 32, 10)
    log = [json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in log] == [1, 2, 3]


def infinite_from(outputs, labels, context, *, last: int):
    """Cross-entropy before epoch `last`, then infinite."""
    return softmax_cross_entropy(outputs, labels, context) / (last - context.epoch).clamp(min=0)


def test_a_diverged_run_leaves_a_record_that_says_when(digits, tmp_path):
    bad = Method("bad", "written", partial(infinite_from, last=2))
    members = [planned(METHODS[0], tmp_path), planned(bad, tmp_path)]
    assert train_pack(members, digits, CPU, Workspace(tmp_path / "work", 30.0))
    sound, bad = (load_records(tmp_path)[m.spec.key] for m in members)
    assert sound["status"] == "done"
    assert bad["status"] == "diverged"
    assert bad["made"]["diverged_in_epoch"] == 2
    assert bad["accuracy"] == {"last": None, "best": None, "best_epoch": None}


def test_the_second_stage_starts_from_the_first_ones_backbone(digits, digits_folder, tmp_path):
    second = Method("second", "written", softmax_cross_entropy, start=Start(ROTATION))
    wanted = [planned(second, tmp_path)]
    missing = missing_runs(wanted, {})
    assert [m.method.name for m in missing] == ["rotation", "second"]
    with pytest.raises(UserError, match="train that first"):
        train_pack(wanted, digits, CPU, Workspace(tmp_path / "work", 30.0))
    begun = []

    def observer(pack):
        begun.append([m.method.name for m in pack])
        return nullcontext(lambda progress: None)

    assert train(wanted, root=tmp_path, work=Workspace(tmp_path / "work", 30.0), engine=LocalDevice(CPU, digits_folder),
                 limit=lambda m: 8, observer=observer)
    assert begun == [["rotation"], ["second"]]
    assert missing_runs(wanted, record_files(tmp_path)) == []
    from common.train.resident import ResidentSteps
    from common.train.start import load_start

    steps = ResidentSteps(wanted, digits, CPU)
    before = steps.pack.heads[0].weight.clone()
    load_start(steps)
    first = load_file(wanted[0].start.checkpoint)
    assert all(torch.equal(steps.pack.run_state(0)[n], t) for n, t in first.items() if n.startswith("backbone."))
    assert torch.equal(steps.pack.heads[0].weight, before)


def test_a_pause_goes_on_with_the_same_pack_and_a_damaged_state_is_said(digits_folder, tmp_path):
    wanted = [planned(METHODS[0], tmp_path, seed) for seed in range(3)]

    def go(**changes):
        arguments = {"root": tmp_path, "engine": LocalDevice(CPU, digits_folder), "limit": lambda m: 8,
                     "work": Workspace(tmp_path / "work", 0.0), "observer": lambda pack: nullcontext(epochs.append)}
        return train(wanted, **{**arguments, **changes})

    epochs = []
    first = Workspace(tmp_path / "work", 0.0, deadline=time.monotonic() + 0.2)
    assert not go(work=first)
    states = list((tmp_path / "work" / "resume").glob("*.pt"))
    assert len(states) == 1
    with pytest.raises(UserError, match="begun in float32"):
        go(engine=LocalDevice(Device("cpu", "float64", False), digits_folder))
    content = states[0].read_bytes()
    states[0].write_bytes(content[:1000])
    with pytest.raises(UserError, match="damaged"):
        go()
    torch.save({"keys": []}, states[0])
    with pytest.raises(UserError, match="another version"):
        go()
    states[0].write_bytes(content)
    older = torch.load(states[0], weights_only=True)
    for name in ("batch", "images", "loss_sum"):
        del older[name]
    torch.save(older, states[0])  # written before positions within an epoch were: those of an epoch's end
    done = len(epochs)
    assert go(limit=lambda m: 1)  # the pack of three goes on as it was formed
    assert [e.epoch for e in epochs] == list(range(1, PROTOCOL.epochs + 1))
    assert done < PROTOCOL.epochs
    assert not states[0].exists()
    assert all(r["made"]["runs_in_pack"] == 3 for r in load_records(tmp_path).values())


def go_on(wanted, folder, data, limit=8) -> list:
    """Train what is missing; returns [runs of the pack, epoch] of every epoch."""
    seen = []
    train(wanted, root=folder, engine=LocalDevice(CPU, data), limit=lambda m: limit, work=Workspace(folder / "work", 0.0),
          observer=lambda pack: nullcontext(lambda p: seen.append([len(pack), p.epoch])))
    return seen


def test_a_kill_between_two_records_of_a_pack_costs_no_epoch(digits_folder, tmp_path, monkeypatch):
    """The runs that have no record yet go on from the pack's last state, and the state is gone when all have theirs."""
    import common.train.record as record

    wanted = [planned(METHODS[0], tmp_path, seed) for seed in range(3)]
    save, saved = record.save_record, []

    def killed_after_one(folder, content):
        if saved:
            raise SystemExit("killed")
        saved.append(save(folder, content))

    monkeypatch.setattr(record, "save_record", killed_after_one)
    with pytest.raises(SystemExit):
        go_on(wanted, tmp_path, digits_folder)
    monkeypatch.setattr(record, "save_record", save)
    states = list((tmp_path / "work" / "resume").glob("*.pt"))
    assert len(states) == 1
    assert go_on(wanted, tmp_path, digits_folder) == [[3, 3]]  # as it was formed: the bits depend on the size
    assert len(load_records(tmp_path)) == 3
    assert not list((tmp_path / "work" / "resume").glob("*.pt"))


def test_a_smaller_selection_goes_on_from_the_larger_packs_state_and_leaves_it_to_the_others(digits, digits_folder, tmp_path):
    wanted = [planned(m, tmp_path, seed) for m in METHODS[:2] for seed in range(2)]
    members = sorted(wanted, key=lambda m: (m.method.name, m.spec.seed))
    paused = Workspace(tmp_path / "work", 0.0, deadline=0.0)
    assert not train_pack(members, digits, CPU, paused)
    assert go_on([members[3]], tmp_path, digits_folder) == [[1, 2], [1, 3]]
    assert go_on(wanted, tmp_path, digits_folder) == [[4, 2], [4, 3]]
    whole = [dataclasses.replace(m, folder=Path(str(m.folder).replace(str(tmp_path), str(tmp_path / "whole")))) for m in members]
    assert train_pack(whole, digits, CPU, Workspace(tmp_path / "w2", 30.0))
    for member, twin in zip(members, whole, strict=True):
        mine, theirs = load_file(member.checkpoint), load_file(twin.checkpoint)
        assert all(torch.allclose(mine[n], theirs[n], rtol=1e-3, atol=1e-4) for n in mine)


def test_a_start_that_is_trained_again_for_its_weights_resumes_and_keeps_its_record(digits_folder, tmp_path):
    """After a merge the record of a first stage is here and its weights are not."""
    second = planned(Method("second", "written", softmax_cross_entropy, start=Start(ROTATION)), tmp_path)
    first = second.start
    go_on([second], tmp_path, digits_folder)
    record = files_by_key(tmp_path)[first.spec.key].read_bytes()
    first.checkpoint.unlink()
    files_by_key(tmp_path)[second.spec.key].unlink()
    late = Workspace(tmp_path / "work", 0.0, deadline=time.monotonic() + 0.01)
    arguments = {"root": tmp_path, "engine": LocalDevice(CPU, digits_folder), "limit": lambda m: 8,
                 "observer": lambda pack: nullcontext(print)}
    while not (tmp_path / "work" / "resume").exists() or not list((tmp_path / "work" / "resume").glob("*.pt")):
        assert not train([second], work=late, **arguments)
        late = Workspace(tmp_path / "work", 0.0, deadline=time.monotonic() + 0.2)
    assert go_on([second], tmp_path, digits_folder)[0][1] > 1
    assert files_by_key(tmp_path)[first.spec.key].read_bytes() == record
    assert second.identity in record_files(tmp_path)


def test_a_diverged_start_ends_the_run_that_needs_it_and_nothing_else(digits_folder, tmp_path):
    bad = Method("bad-start", "written", partial(infinite_from, last=1), task="rotation")
    wanted = [planned(Method("after-bad", "written", softmax_cross_entropy, start=Start(bad)), tmp_path),
              planned(Method("after-good", "written", softmax_cross_entropy, start=Start(ROTATION)), tmp_path)]
    go_on(wanted, tmp_path, digits_folder)
    records = load_records(tmp_path)
    assert [records[m.spec.key]["status"] for m in wanted] == ["diverged", "done"]
    assert records[wanted[0].spec.key]["made"]["diverged_in_epoch"] == 0
    assert go_on(wanted, tmp_path, digits_folder) == []


def test_a_pack_of_diverged_runs_only_ends_early(digits_folder, tmp_path):
    bad = Method("nothing", "written", partial(infinite_from, last=1))
    assert go_on([planned(bad, tmp_path)], tmp_path, digits_folder) == [[1, 1], [1, 2]]


def test_weights_spoiled_by_the_very_last_step_make_a_diverged_record_and_cost_no_neighbour(digits, tmp_path):
    import common.train.loop as loop

    members = [planned(METHODS[0], tmp_path, seed) for seed in range(2)]
    evaluate = loop.evaluation_stride

    def spoil(pack, epoch):
        if epoch == 2:
            pack.run_state(1)["head.weight"].fill_(float("nan"))
        return evaluate(pack, epoch)

    loop.evaluation_stride = spoil
    try:
        assert train_pack(members, digits, CPU, Workspace(tmp_path / "work", 30.0))
    finally:
        loop.evaluation_stride = evaluate
    records = load_records(tmp_path)
    assert [records[m.spec.key]["status"] for m in members] == ["done", "diverged"]
    assert records[members[1].spec.key]["made"]["diverged_in_epoch"] == 2


def test_a_smaller_pack_gives_the_same_results(digits, tmp_path):
    """Results do not depend on the pack: run by run and side by side agree in accuracy."""
    together, alone = ([planned(METHODS[0], tmp_path / name, seed) for seed in range(2)] for name in ("a", "b"))
    train_pack(together, digits, Device("cpu", "float64", False), Workspace(tmp_path / "wa", 30.0))
    for member in alone:
        train_pack([member], digits, Device("cpu", "float64", False), Workspace(tmp_path / "wb", 30.0))
    a, b = load_records(tmp_path / "a"), load_records(tmp_path / "b")
    assert {k: r["confusion"] for k, r in a.items()} == {k: r["confusion"] for k, r in b.items()}


def test_packs_hold_one_column_and_protocol_and_put_equal_methods_together(tmp_path):
    other = dataclasses.replace(PROTOCOL, epochs=9)
    runs = [planned(m, tmp_path, s, p) for s in range(3) for m in METHODS for p in (PROTOCOL, other)]
    packs = [together(pack) for pack in form_packs(runs, lambda m: 8)]
    assert sorted(len(p) for p in packs) == [7, 7, 8, 8]
    for pack in packs:
        assert len({m.spec.protocol for m in pack}) == 1
        names = [m.method.name for m in pack]
        assert sum(a != b for a, b in pairwise(names)) == len(set(names)) - 1


def test_a_pack_that_does_not_fit_is_split_and_one_that_cannot_be_is_said(digits_folder, tmp_path, monkeypatch):
    """Also where the allocator's error arrives inside another one, as from a capture that it ended."""
    sizes = []

    def small_memory(pack, images, device, work, observe):
        sizes.append(len(pack))
        if len(pack) > room:
            try:
                raise torch.OutOfMemoryError("too much")
            except RuntimeError:
                raise RuntimeError("capture failed")  # noqa: B904
        for member in pack:
            save_record(member.folder, make_record(member, 50.0))
        return True

    def go():
        return train([planned(METHODS[0], tmp_path, seed) for seed in range(5)], root=tmp_path,
                     engine=LocalDevice(CPU, digits_folder),
                     limit=lambda m: 8, work=Workspace(tmp_path / "work", 30.0), observer=lambda pack: nullcontext(print))

    monkeypatch.setattr("common.train.work.train_pack", small_memory)
    room = 2
    assert go()
    assert sizes == [5, 4, 2, 2, 1]
    room = 0
    for file in record_files(tmp_path).values():
        file.unlink()
    with pytest.raises(UserError, match="does not fit"):
        go()


def test_best_epoch_counts_only_epochs_that_saw_the_whole_test_set():
    assert best_epoch([99.0, 50.0, 60.0, 60.0], [72, 360, 360, 360]) == 2


def test_groups_are_many_medium_few_as_the_literature_has_them():
    import numpy as np

    confusion = np.diag([10, 8, 6, 4, 2])
    confusion[:, 0] += [0, 2, 4, 6, 8]
    parts = summary(confusion, np.array([[50.0, 40.0, 30.0]]), np.array([101, 100, 20, 19, 1]))
    assert parts["groups"] == {"many": 100.0, "medium": 70.0, "few": 30.0}
    assert parts["accuracy"] == 60.0
    assert parts["calibration"]["ece"] == 20.0


def test_lookup_is_by_key_under_all_papers(digits, tmp_path):
    member = planned(METHODS[0], tmp_path)
    train_pack([member], digits, CPU, Workspace(tmp_path / "work", 30.0))
    elsewhere = tmp_path / "another-paper" / "results" / "paper" / "digits-lt-20"
    elsewhere.mkdir(parents=True)
    file = files_by_key(tmp_path)[member.spec.key]
    file.rename(elsewhere / file.name)
    assert missing_runs([member], record_files(tmp_path)) == []
