"""A sample of the kill trials, spread over the commands: the whole is `make faults`."""

import json

import pytest

from tests.faults.trials import KINDS, Bench, spread

SAMPLE = {"train": 3, "campaign": 2, "merge": 2, "pack-records": 1, "export": 2, "report": 2, "prepare": 1,
          "prepare, a parcel": 2}


@pytest.mark.parametrize("kind", [k for k in KINDS if k.name in SAMPLE], ids=lambda k: k.name)
def test_a_kill_changes_nothing_that_the_next_start_leaves(kind, tmp_path):
    bench = Bench(kind, tmp_path).prepare()
    for trial in spread(list(bench.trials()), SAMPLE[kind.name]):
        entry = bench.attempt(trial)
        assert not entry["faults"], json.dumps(entry, indent=1)
