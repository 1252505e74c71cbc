"""What runs cost, and the estimate of `plan`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.cost import (
    READY,
    Costs,
    Speed,
    clock,
    epoch_work,
    expected_seconds,
    seconds_per_work,
    speed_of,
    speeds,
    training_images,
    whole_work,
    work,
)
from common.methods.method import Method, Streams
from common.models.sizes import multiplications
from common.spec import Column, Protocol
from common.train.packing import memory_limit, run_bytes
from tests.common.train.toys import planned
from tests.records import some_loss

PROTOCOL = Protocol(200, 128, 0.1, 0.9, 0.0002, 5, (160, 180), 0.01, False)
LT = Column("cifar10", "lt", 100, "resnet32")


def record(device: str, seconds: float, column: Column = LT, runs: int = 1, precision: str = "float32") -> dict:
    import dataclasses

    spec = json.loads(json.dumps({"column": dataclasses.asdict(column), "protocol": dataclasses.asdict(PROTOCOL),
                                  "method": {"companions": []}}))
    return {"spec": spec, "made": {"device": device, "precision": precision, "runs_in_pack": runs, "seconds": seconds}}


def run_of(column: Column = LT, protocol: Protocol = PROTOCOL, **more):
    return planned(Method("some", "written", some_loss, **more), Path("/nowhere"), protocol=protocol, column=column)


def test_training_images_are_the_literatures():
    assert training_images(LT) == 12_406
    assert training_images(Column("cifar100", "lt", 100, "resnet32")) == 10_847
    assert training_images(Column("mnist", "none", 1, "resnet32")) == 60_000


def test_resnet32_costs_the_known_69_million():
    assert multiplications("resnet32", 32, 3) == pytest.approx(69e6, rel=0.01)


def test_a_device_that_took_t_for_one_run_takes_t_again_and_more_for_more(tmp_path):
    known = speeds([record("a", 20.0), record("a", 30.0), record("a", 22.0)], tmp_path)
    assert expected_seconds(LT, PROTOCOL, 1, known["a, float32"]) == pytest.approx(22.0)
    assert expected_seconds(LT, PROTOCOL, 3, known["a, float32"]) == pytest.approx(66.0)
    deeper = Column("cifar10", "lt", 100, "resnet110")
    assert work(deeper, PROTOCOL) > 3 * work(LT, PROTOCOL)
    assert expected_seconds(deeper, PROTOCOL, 1, known["a, float32"]) is None


def test_a_pack_costs_what_its_size_is_known_to_cost(tmp_path):
    """32 runs took 10 s each, 8 took 16 s each: 200 s or 6.67 s of fixed cost and 8 s a run, so 16 take 12 s each."""
    known = speeds([record("a", 16.0, runs=8), record("a", 10.0, runs=32)], tmp_path)["a, float32"]
    for runs, each in ((8, 16.0), (32, 10.0), (16, 12.0), (64, 10.0), (4, 32.0)):
        assert expected_seconds(LT, PROTOCOL, runs, known) == pytest.approx(runs * each)


def test_another_precision_is_another_place(tmp_path):
    known = speeds([record("a", 20.0), record("a", 5.0, precision="bfloat16")], tmp_path)
    assert expected_seconds(LT, PROTOCOL, 1, known["a, bfloat16"]) == pytest.approx(5.0)


def test_a_benchmark_stands_in_until_there_are_records(tmp_path):
    rows = [{"name": "plain eager", "ms_per_run": 1.0}, {"name": "pack of 4", "runs": 4, "ms_per_run": 2.0}]
    result = {"device": "b", "precision": "bfloat16", "batch": 128, "rows": rows}
    (tmp_path / "b.json").write_text(json.dumps(result))
    steps, tests = 200 * 12_406 / 128, whole_work(LT, PROTOCOL) / work(LT, PROTOCOL)
    assert 1.05 < tests < 1.1
    measured = [record("b", 5.0, runs=4, precision="bfloat16")]
    place = "b, bfloat16"
    assert expected_seconds(LT, PROTOCOL, 4, speeds([], tmp_path)[place]) == pytest.approx(4 * steps * 2e-3 * tests)
    assert expected_seconds(LT, PROTOCOL, 4, speeds(measured, tmp_path)[place]) == pytest.approx(20.0)


def test_epochs_that_a_campaign_timed_come_before_records(tmp_path):
    rows = [{"name": "epochs", "backbone": "resnet32", "runs": 4, "seconds_per_work": 2.0, "ready_seconds": 30.0,
             "ready_expected": READY.first / 2}]
    (tmp_path / "b.json").write_text(json.dumps({"device": "b", "precision": "bfloat16", "compiled": True, "rows": rows}))
    found = speeds([record("b", 5.0, runs=4, precision="bfloat16")], tmp_path)["b, bfloat16"]
    assert found.each == {"resnet32": {4: 2.0}}
    assert found.compiled
    assert found.slower == pytest.approx(60 / READY.first)


def test_long_runs_say_more_about_a_device_than_short_ones():
    """Two runs of one epoch, mostly overhead, and one of 200 epochs."""
    short = [record("a", 9.0), record("a", 9.5)]
    for r in short:
        r["spec"]["protocol"] = {**r["spec"]["protocol"], "epochs": 1, "warmup_epochs": 0, "decay_epochs": []}
    known = speeds([*short, record("a", 100.0)])["a, float32"]
    assert expected_seconds(LT, PROTOCOL, 1, known) == pytest.approx(100.0)


def test_a_card_that_was_never_measured_is_as_fast_as_the_prototype_of_its_kind(tmp_path):
    lent = {"device": "big card", "cards": ["big card", "bigger card"], "precision": "bfloat16", "batch": 128,
            "rows": [{"name": "pack of 1", "runs": 1, "ms_per_run": 4.0}, {"name": "pack of 8", "runs": 8, "ms_per_run": 1.0}]}
    (tmp_path / "lent.json").write_text(json.dumps(lent))
    found = speed_of("bigger card 80GB", "bfloat16", {}, tmp_path)
    each = found.each["resnet32"]
    assert each[1] == pytest.approx(4 * each[8])
    assert found.prototype == {"resnet32"}
    for other in (("bigger card", "float32"), ("small card", "bfloat16")):
        assert speed_of(*other, {}, tmp_path) == Speed()
    mine = Speed({"resnet32": {8: 3 * each[8]}}, True)
    measured = speed_of("big card", "bfloat16", {"big card, bfloat16": mine}, tmp_path)
    assert measured.each["resnet32"] == {8: pytest.approx(3 * each[8]), 1: pytest.approx(3 * each[1])}
    assert not measured.prototype


def test_the_stored_prototype_is_read_and_flagged():
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "prototypes"
    known = speed_of("NVIDIA H100 80GB HBM3", "bfloat16", {}, folder)
    unit = whole_work(LT, PROTOCOL) / (200 * 12_406 / 128)  # of a step
    assert seconds_per_work(known.each["resnet32"], 32) * unit == pytest.approx(0.71e-3 * 1.075, rel=0.01)
    assert known.prototype == {"resnet32"}
    assert all("prototype" in json.loads(path.read_text()) for path in folder.glob("*.json"))


def test_a_pack_costs_its_compilation_too_until_its_size_was_compiled():
    pack = [run_of()] * 8
    speed = Speed({"resnet32": {8: 1.0}}, compiled=True)
    trained = 8 * whole_work(LT, PROTOCOL) + 8 * READY.ends
    costs = Costs(speed)
    assert costs.of(pack) == pytest.approx(READY.first + trained)
    assert costs.after(pack[:4]).of(pack) == pytest.approx(READY.other_size + trained)
    assert costs.after(pack).of(pack) == pytest.approx(READY.other_method + trained)
    assert Costs(replace(speed, slower=2.0)).of(pack) == pytest.approx(2 * READY.first + trained)
    assert Costs(replace(speed, compiled=False)).of(pack) == pytest.approx(trained)
    assert Costs(Speed()).of(pack) is None


def test_watched_epochs_cost_a_tenth_of_the_test():
    whole, watched = epoch_work(LT, PROTOCOL), epoch_work(LT, PROTOCOL, watched=True)
    tested = 10_000 * multiplications("resnet32", 32, 3) / 1e12
    assert whole - watched == pytest.approx(0.9 * tested)
    assert whole_work(LT, PROTOCOL) == pytest.approx(160 * watched + 40 * whole)
    assert whole_work(LT, replace(PROTOCOL, epochs=0, warmup_epochs=0, decay_epochs=())) == pytest.approx(tested)


def test_the_memory_of_a_pack():
    """ResNet-18 on images of 64 pixels was seen to take 1.8 GiB a run; more streams and float32 take more."""
    tiny = run_of(Column("tiny-imagenet", "lt", 100, "resnet18"))
    assert run_bytes(tiny, "bfloat16") / 2**30 == pytest.approx(1.8, rel=0.1)
    assert [memory_limit(tiny, "bfloat16", gib * 2**30) for gib in (139, 79, 40, 3, 1)] == [32, 32, 16, 1, 1]
    assert memory_limit(tiny, "float32", 79 * 2**30) == 16
    streams = run_of(tiny.spec.column, streams=Streams((some_loss,)))
    assert memory_limit(streams, "bfloat16", 79 * 2**30) == 16
    assert memory_limit(run_of(), "bfloat16", 79 * 2**30) == 32


def test_more_streams_cost_more_and_a_frozen_backbone_less():
    assert work(LT, PROTOCOL, 2) == 2 * work(LT, PROTOCOL)
    assert 3 * work(LT, replace(PROTOCOL, trains="head")) == pytest.approx(work(LT, PROTOCOL))
    assert training_images(Column("cifar10", "counts", 1, "resnet32", counts=(5000, 500, 1000))) == 6500


def test_clock():
    assert [clock(s) for s in (40, 600, 9000, 400_000)] == ["40 s", "10 min", "2.5 h", "4.6 days"]
