"""Where two methods differ: what the page's script counts and tests equals what Python does, on planted differences."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from common.paper import Paper
from common.report.boards import entrants
from common.report.page import page as pages
from common.report.page.pairs import pair_data
from common.report.paired import Hits, compare
from common.report.results import results_of
from tests.common.report.test_page import read
from tests.records import made_hits, toy_paper, toy_records

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="the page's script is run by node, which is not on the PATH")
SCRIPT = Path(pages.__file__).with_name("paired.js")
COLUMN = "cifar10-lt-100"
ERRORS = {"own@written": (20.0, 20.4, 20.2, 20.3), "rival": (22.0, 22.5, 22.2), "ce": (20.2, 20.3, 20.3), "own@released": (25.0,)}


def javascript(body: str, value: object) -> object:
    """What the body of an asynchronous function returns that knows the page's `paired` and `value`."""
    code = (f"{SCRIPT.read_text()}\n(async (value) => {{ {body} }})(JSON.parse(require('fs').readFileSync(0)))"
            ".then((found) => console.log(JSON.stringify(found)));")
    done = subprocess.run([NODE, "-e", code], input=json.dumps(value), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "papers" / "toy")


@pytest.fixture
def records(paper: Paper) -> dict:
    return toy_records(paper, ERRORS)


@pytest.fixture
def hits(records: dict) -> dict[str, Hits]:
    return made_hits(records)


def column_of(paper: Paper, records: dict, hits: dict[str, Hits]) -> dict:
    columns = pair_data(entrants(results_of([paper], records, "paper")), hits, "all")["columns"]
    [found] = [one for one in columns if one["name"] == COLUMN]
    return found


def runs_of(records: dict, label: str) -> list[dict]:
    found = [record for record in records.values() if record["label"] == f"{COLUMN} {label}"]
    return sorted(found, key=lambda record: record["spec"]["seed"])


def place(column: dict, label: str) -> int:
    return next(i for i, (name, _) in enumerate(column["methods"]) if name.startswith(f"{label} "))


COMPARE = """
const meeting = paired.meeting(value.column, value.first, value.second);
return {meeting, ...paired.compare(value.column, await paired.inflate(value.column.bits), meeting)};"""


def compared(column: dict, first: str, second: str, runs: tuple = (None, None)) -> dict:
    one, other = ({"method": place(column, label), "run": run} for label, run in zip((first, second), runs, strict=True))
    return javascript(COMPARE, {"column": column, "first": one, "second": other})


@needs_node
def test_student_s_distribution_is_that_of_scipy() -> None:
    cases = [(t, v) for v in (1, 1.5, 2, 4.7, 10, 33.3, 200, 1e4, 1e6) for t in (-2.5, 0, 1e-6, 0.3, 1.7, 1.9, 2.5, 12)]
    found = javascript("return value.map(([t, v]) => [paired.upper(t, v), paired.quantile(0.025, v)]);", cases)
    for (t, v), (tail, reach) in zip(cases, found, strict=True):
        assert tail == pytest.approx(stdtr(v, -t), rel=1e-9)
        assert reach == pytest.approx(stdtrit(v, 0.975), rel=1e-9)


@needs_node
@pytest.mark.parametrize(("first", "second"), [("own@written", "rival@written"), ("rival@written", "own@written"),
                                               ("ce@written", "own@written")])
def test_the_page_computes_the_test_of_python(paper: Paper, records: dict, hits: dict, first: str, second: str) -> None:
    """own leads by two points, ce and own are alike; seed 3 of own has no partner."""
    found = compared(column_of(paper, records, hits), first, second)
    python = compare(runs_of(records, first), runs_of(records, second), hits)
    assert (found["seeds"], found["images"], found["first"], found["second"]) == (3, 1000, python.wins, python.losses)
    for name, value in (("low", python.low), ("high", python.high), ("p", python.p), ("either", python.p_either)):
        assert found["test"][name] == pytest.approx(value, rel=1e-9)
    planted = {"ce@written": 0.0, "own@written": 2.0, "rival@written": -2.0}[first]
    assert python.difference == pytest.approx(planted, abs=0.1)
    assert (python.p_either < 0.05) == (planted != 0)


@needs_node
@pytest.mark.parametrize("d", [
    np.zeros((3, 20), int), np.ones((2, 20), int), np.tile([1, -1, 0, 0], (3, 5)), np.array([[1] * 9 + [0], [-1] * 9 + [0]]),
], ids=["no difference", "no spread", "seeds alike", "seeds apart"])
def test_the_edges_of_the_test_are_those_of_python(d: np.ndarray) -> None:
    labels = np.zeros(d.shape[1], int)
    runs = {name: [{"key": f"{name}{i}", "spec": {"seed": i}} for i in range(len(d))] for name in "ab"}
    found = compare(*runs.values(), {f"{name}{i}": Hits(labels, row == sign) for name, sign in (("a", 1), ("b", -1))
                                     for i, row in enumerate(d)})
    value = {"bySeed": d.sum(1).tolist(), "net": d.sum(0).tolist(), "wins": int((d > 0).sum()), "losses": int((d < 0).sum())}
    page = javascript("return paired.test(value.bySeed, value.net, value.wins, value.losses);", value)
    assert page == pytest.approx({"low": found.low, "high": found.high, "p": found.p, "either": found.p_either}, rel=1e-9)


@needs_node
def test_counts_by_class_and_where_they_differ(paper: Paper, records: dict, hits: dict) -> None:
    """own is right on every image of class 9 from position 900, rival on none; elsewhere they are right on the same ones."""
    labels = next(iter(hits.values())).labels
    luck = {seed: np.random.default_rng(seed).random(1000) < 0.6 for seed in range(4)}
    planted = {key: Hits(labels, np.where(labels == 9, "own" in record["label"], luck[record["spec"]["seed"]]))
               for key, record in records.items()}
    found = compared(column_of(paper, records, planted), "own@written", "rival@written")
    last = found["classes"][9]
    assert last == {"label": 9, "images": 100, "both": 0, "first": 300, "second": 0, "neither": 0}
    assert [(one["label"], one["first"], one["second"]) for one in found["classes"][:9]] == [(i, 0, 0) for i in range(9)]
    assert found["both"] == sum(int((luck[seed] & (labels != 9)).sum()) for seed in range(3))
    assert found["both"] + found["first"] + found["second"] + found["neither"] == 3000
    assert found["differing"] == [{"image": i, "label": 9, "ours": 3, "theirs": 0} for i in range(900, 1000)]


@needs_node
def test_single_runs_differ_image_by_image_and_have_no_test(paper: Paper, records: dict, hits: dict) -> None:
    column = column_of(paper, records, hits)
    found = compared(column, "own@written", "rival@written", (3, 0))  # two runs may be of different seeds
    one, other = (hits[runs_of(records, label)[seed]["key"]].right for label, seed in (("own@written", 3), ("rival@written", 0)))
    assert found["test"] is None
    assert [at["image"] for at in found["differing"]] == np.flatnonzero(one != other).tolist()
    assert (found["first"], found["second"]) == (int((one & ~other).sum()), int((other & ~one).sum()))
    with_its_seed = compared(column, "own@written", "rival@written", (None, 1))  # a run against a method: the run of its seed
    starts = [sum(len(seeds) for _, seeds in column["methods"][:place(column, label)]) + 1
              for label in ("own@written", "rival@written")]
    assert with_its_seed["meeting"] == [starts]
    assert compared(column, "own@released", "rival@written", (None, 2))["meeting"] == []  # it has seed 0 only


def test_what_finds_no_room_is_counted(paper: Paper, records: dict, hits: dict) -> None:
    methods = entrants(results_of([paper], records, "paper"))
    every, main, none = (pair_data(methods, hits, share) for share in ("all", "main", "none"))
    assert every["left_out"] == 0
    assert none == {"columns": [], "left_out": len(hits)}
    names = {name for column in main["columns"] for name, _ in column["methods"]}
    assert names == {f"{label} · TOY" for label in ("ce@written", "rival@written", "own@written", "own@released")}
    there = sum(len(seeds) for column in main["columns"] for _, seeds in column["methods"])
    assert there + main["left_out"] == len(hits)
    assert pair_data(methods, {}, "all") == {"columns": [], "left_out": 0}


def test_the_page_has_the_section_where_predictions_are(paper: Paper, records: dict, hits: dict, tmp_path: Path) -> None:
    for some in ({}, hits):
        pages.build_page(results_of([paper], records, "paper", some), tmp_path / "figures", {}, tmp_path / "index.html")
        reader = read(tmp_path / "index.html")
        [(_, section)] = reader.all("section", id="pairs")
        [(_, data)] = reader.all("script", id="pair-data")
        assert ("No run has its predictions here yet" in section) == (not some)
        assert len([has for has, _ in reader.all("select") if "id" in has]) == (3 if some else 0)
        assert len(json.loads(data)["columns"]) == (2 if some else 0)
        shown = [text for has, text in reader.all("th") if text == "behind the first, points"]
        assert len(shown) == (2 if some else 0)
