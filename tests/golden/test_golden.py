"""The engine computes what it computed when its version was last raised; `golden.py` beside this file says how that is seen."""

import json

import pytest

from common.methods.digest import ENGINE
from tests.golden.golden import FILE, golden_runs

REMEDY = (
    "The engine computes other numbers than those in tests/golden/golden.json. If that is a fault, mend it. If it is meant, "
    "raise ENGINE in common/methods/digest.py, so that older records count as stale, and renew the file: "
    "python -m tests.golden.golden"
)


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(FILE.read_text())


def test_the_file_is_of_this_engine(golden):
    assert golden["engine"] == ENGINE, f"tests/golden/golden.json is of engine {golden['engine']}, the code is {ENGINE}. {REMEDY}"


def test_every_kind_of_method_computes_the_golden_numbers(golden):
    found = golden_runs()
    assert set(found) == set(golden) - {"engine"}, (
        "The kinds of methods have changed: renew the file with python -m tests.golden.golden, and see in its difference that no "
        "kind which was there before has other numbers.")
    differing = [name for name, numbers in found.items() if not alike(numbers, golden[name])]
    assert not differing, f"{REMEDY}. Different: {', '.join(differing[:5])} and {max(len(differing) - 5, 0)} more."


def alike(mine, theirs) -> bool:
    """Equal but for rounding, which differs between processors; a lost value is lost in both."""
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(alike(value, theirs[key]) for key, value in mine.items())
    if isinstance(mine, list):
        return len(mine) == len(theirs) and all(map(alike, mine, theirs))
    return mine is theirs if None in (mine, theirs) else mine == pytest.approx(theirs, rel=1e-6, abs=1e-8)
