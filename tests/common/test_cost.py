"""What runs cost, and the estimate of `plan`."""

import json
from dataclasses import replace

import pytest

from common.cost import clock, expected_seconds, speeds, training_images, work
from common.models.sizes import multiplications
from common.spec import Column, Protocol

PROTOCOL = Protocol(200, 128, 0.1, 0.9, 0.0002, 5, (160, 180), 0.01, False)
LT = Column("cifar10", "lt", 100, "resnet32")


def record(device: str, seconds: float, column: Column = LT, runs: int = 1, precision: str = "float32") -> dict:
    import dataclasses

    spec = json.loads(json.dumps({"column": dataclasses.asdict(column), "protocol": dataclasses.asdict(PROTOCOL),
                                  "method": {"companions": []}}))
    return {"spec": spec, "made": {"device": device, "precision": precision, "runs_in_pack": runs, "seconds": seconds}}


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
    steps = 200 * 12_406 / 128
    measured = [record("b", 5.0, runs=4, precision="bfloat16")]
    place = "b, bfloat16"
    assert expected_seconds(LT, PROTOCOL, 4, speeds([], tmp_path)[place]) == pytest.approx(4 * steps * 2e-3)
    assert expected_seconds(LT, PROTOCOL, 4, speeds(measured, tmp_path)[place]) == pytest.approx(20.0)


def test_more_streams_cost_more_and_a_frozen_backbone_less():
    assert work(LT, PROTOCOL, 2) == 2 * work(LT, PROTOCOL)
    assert 3 * work(LT, replace(PROTOCOL, trains="head")) == pytest.approx(work(LT, PROTOCOL))
    assert training_images(Column("cifar10", "counts", 1, "resnet32", counts=(5000, 500, 1000))) == 6500


def test_clock():
    assert [clock(s) for s in (40, 600, 9000, 400_000)] == ["40 s", "10 min", "2.5 h", "4.6 days"]
