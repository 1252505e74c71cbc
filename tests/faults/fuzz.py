"""Damaged files by the hundred: every command ends as ever, or in one sentence with exit code 2 and nothing changed.

    python -m tests.faults.fuzz [--most N] [--targets records,tars]

Hypothesis draws the damage from SEED, so the same cases come every time. Results go to the progress file of the kill trials.
"""

import argparse
import io
import json
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from common.data.large_sets import LARGE
from common.data.large_sources import prepare_large
from common.data.lists import read_list
from common.errors import UserError, complain
from common.store import seal
from tests.faults.kill import Shim
from tests.faults.trials import PROGRESS, TRAIN, done_already, mark, trained_at_home, unwhole, with_digits, with_miniature
from tests.faults.world import World, run, run_main

SEED = 20
ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = (b"", b"\0", b"\xff\xfe", b"\n", b"{", b"]", b"NaN", b"1e999", b"-1", b"null", b"'", b'"', b": ", b"../../x", b"- ",
            b"0" * 400, "é\u2028".encode(), b"\xed\xa0\x80", b"&a [*a]", b",,,", b"true", b"[" * 3000)
VALUES = (None, True, -1, 0, 10**400, 1e308, "", "x" * 2000, "<b>x</b>", "\ud800", "../../x", [], {}, [[]], {"a": 1}, [None],
          float("nan"), float("inf"))


@dataclass(frozen=True)
class Target:
    """A file that is damaged. place: where in the checkout, as a pattern that one file fits. command: what reads it. deep: the
    damage is in a value of a JSON file, sealed again, instead of in the bytes."""

    name: str
    cases: int
    place: str
    command: tuple[str, ...]
    ready: Callable[[World], None]
    deep: bool = False
    body: Callable[..., int] = run_main


def with_paper(world: World) -> None:
    """A real paper's folder beside the small ones."""
    shutil.copytree(ROOT / "papers" / "mm", world.root / "papers" / "mm", ignore=shutil.ignore_patterns("results", "__pycache__"))


def with_paper_and_runs(world: World) -> None:
    with_digits(world)
    trained_at_home(world)


def loose(world: World) -> None:
    """Records outside of the store, with their predictions."""
    with_paper_and_runs(world)
    shutil.copytree(world.root / "papers" / "toy" / "results", world.root / "out" / "loose")
    for path in world.root.glob("papers/toy/results/*/*/*"):
        path.unlink()


def with_state(world: World, column: str = "digits-lt-20") -> None:
    """A pack that stopped after its first epoch, on a large set after its first batch or later."""
    with_digits(world)
    with_miniature(world)
    for at in range(10, 90, 3):
        if not list((world.root / ".work" / "resume").glob("*.pt")):
            run(world, *TRAIN, "--column", column, "--seeds", "1", "--workers", "1", before=Shim(world.root, at).install)


def with_archive(world: World) -> None:
    """The archive of a small set that is not whole, so that no damage makes it so."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
            content = b"\x80\x02}q\x00(U\x04dataq\x01U\x04abcdq\x02U\x06labelsq\x03]q\x04K\x01au."
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (world.root / "out" / "cifar-10-python.tar.gz").write_bytes(buffer.getvalue())


def with_digits_outside(world: World) -> None:
    with_digits(world)
    shutil.move(world.root / "data" / "digits.npz", world.root / "out" / "digits.npz")


def of_paper(world: World, arguments: Sequence[str]) -> int:
    """The command over the copy of the real paper."""
    where = world.root / "papers" / "mm" / "replicate.py"
    spec = spec_from_file_location("papers.mm.replicate", where)
    module = module_from_spec(spec)
    sys.modules["papers.mm.replicate"] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:  # as `papers/__init__.py` does
        complain(error)
        return 2
    return run_main(Alone(world.root, module.PAPER), arguments)


@dataclass(frozen=True)
class Alone(World):
    """A checkout with one paper."""

    paper: Any = None

    @property
    def papers(self) -> tuple[Any, ...]:
        return (self.paper,)


def of_list(world: World, arguments: Sequence[str]) -> int:
    """`prepare` of a set whose list is damaged: only reading it and looking for its images."""
    try:
        for file in sorted((world.root / "data" / "miniature").glob("*train*.txt")):
            read_list(file, LARGE["miniature"].classes)
        prepare_large("miniature", world.root / "out", world.root / "data" / "miniature")
    except UserError as error:
        complain(error)
        return 2
    return 0


TABLE, REPORT = ("table", "--profile", "quick"), ("report", "--profile", "quick")
ON_SMALL, ON_LARGE = (("train", "--profile", "quick", "--minutes", "0.0001", "--workers", "1", "--processes", "1", "--column",
                       name)
                      for name in ("digits-lt-20", "miniature"))
TARGETS = (
    Target("params.yaml", 50, "papers/mm/params.yaml", ("status", "--profile", "quick"), with_paper, body=of_paper),
    Target("claims.yaml", 50, "papers/mm/claims.yaml", TABLE, with_paper, body=of_paper),
    Target("published.csv", 50, "papers/mm/published.csv", TABLE, with_paper, body=of_paper),
    Target("records", 40, "papers/toy/results/quick/digits-lt-20/*ce@*s0*.json", REPORT, with_paper_and_runs),
    Target("records, sealed again", 70, "papers/toy/results/quick/digits-lt-20/*ce@*s0*.json", REPORT, with_paper_and_runs,
           deep=True),
    Target("records given to merge", 30, "out/loose/*/*/*ce@*s1*.json", ("merge", "out/loose"), loose, deep=True),
    Target("predictions", 20, "papers/toy/results/quick/digits-lt-20/*.npz", REPORT, with_paper_and_runs),
    Target("index of a set", 25, "data/miniature.npz", ON_LARGE, with_miniature),
    Target("states", 35, ".work/resume/*.pt", (*ON_SMALL, "--seeds", "1"), with_state),
    Target("states of large sets", 15, ".work/resume/*.pt", (*ON_LARGE, "--seeds", "1"),
           partial(with_state, column="miniature")),
    Target("speeds", 25, ".work/probes/*.json", ("campaign", "--profile", "quick", "--dry-run"), with_paper_and_runs),
    Target("tars given to merge", 40, "out/records.tar", ("merge", "out/records.tar"), with_paper_and_runs),
    Target("campaigns' tars given to merge", 30, "out/home.tar", ("merge", "out/home.tar"), with_paper_and_runs),
    Target("archives given to prepare", 20, "out/cifar-10-python.tar.gz",
           ("prepare", "cifar10", "--from", "out/cifar-10-python.tar.gz"), with_archive),
    Target("arrays given to prepare", 20, "out/digits.npz", ("prepare", "mnist", "--from", "out/digits.npz"),
           with_digits_outside),
    Target("lists given to prepare", 40, "data/miniature/*train*.txt", (), with_miniature, body=of_list),
)


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to three wounds."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("cut", "flip", "insert", "drop", "twice", "replace")))
        end = min(len(content), at + draw(st.integers(1, 40)))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip":
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))] if content else b"x") + content[at + 1:]
        elif kind == "insert":
            content = content[:at] + draw(st.sampled_from(SNIPPETS)) + content[at:]
        elif kind == "drop":
            content = content[:at] + content[end:]
        elif kind == "twice":
            content = content[:end] + content[at:]
        else:
            lines = content.split(b"\n")
            line = draw(st.integers(0, len(lines) - 1))
            lines[line] = re.sub(rb"[^\s:,]+$", lambda m: draw(st.sampled_from(SNIPPETS)), lines[line])
            content = b"\n".join(lines)
    return content


@st.composite
def changed_value(draw: st.DrawFn, content: bytes) -> bytes:
    """A record with another value, or none, somewhere; sealed again where that is possible."""
    record = json.loads(content)
    place: Any = record
    for _ in range(draw(st.integers(0, 3))):
        inner = [v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v]
        if not inner:
            break
        place = draw(st.sampled_from(inner))
    key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if draw(st.booleans()):
        place[key] = draw(st.sampled_from(VALUES))
    else:
        del place[key]
    with suppress(ValueError, RecursionError):
        record = seal(record)
    return json.dumps(record).encode(errors="replace")


def cases(target: Target, content: bytes, count: int) -> list[bytes]:
    """So many damaged contents, the same every time."""
    found: list[bytes] = []

    @seed(SEED)
    @settings(max_examples=count * 5, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))
    @given((changed_value if target.deep else damage)(content))
    def collect(one: bytes) -> None:
        if one != content and one not in found and len(found) < count:
            found.append(one)

    collect()
    return found


def attempt(target: Target, before: World, folder: Path, content: bytes) -> list[str]:
    """What is wrong with how the command ends on the damaged content."""
    shutil.rmtree(folder / "case", ignore_errors=True)
    world = before.copy(folder / "case")
    the_file(world, target).write_bytes(content)
    kept = store(world)
    code, said = run(world, *target.command, body=target.body)
    faults = []
    if code not in (0, 2, 3):  # 3: the minutes are over
        faults.append(f"exit code {code}: {said[-700:]}")
    if "Traceback" in said:
        faults.append(f"a traceback: {said[-700:]}")
    if code == 2:
        sentences = [line for line in said.splitlines() if line.startswith("error:") or "Left out" in line]
        if not sentences or not sentences[0].rstrip().endswith((".", ".)")):
            faults.append(f"not one sentence: {said[-700:]}")
        now = store(world)
        new = set() if target.command[:1] == ("merge",) else now.keys() - kept.keys()  # merge takes what is good
        if changed := sorted({name for name in kept if now.get(name) != kept[name]} | new):
            faults.append(f"changed: {changed}")
        faults += unwhole(World(world.root / "papers")) if target.command[:1] == ("merge",) else []
    return faults


def the_file(world: World, target: Target) -> Path:
    return min(world.root.glob(target.place))


def store(world: World) -> dict[str, bytes]:
    """What a refusal must not change: everything but the log and the cache of the work folder, and what reports write."""
    return {str(name): path.read_bytes() for path in sorted(p for p in world.root.rglob("*") if p.is_file())
            if not {"tables", "report", "__pycache__"} & set((name := path.relative_to(world.root)).parts)
            and name.name not in ("log.jsonl", "records.json")}


def work_on(targets: Sequence[Target], most: int, progress: Path) -> int:
    """Every case of the targets; returns how many found something."""
    failed, known = 0, {name for name, entry in done_already(progress).items() if not entry["faults"]}
    for target in targets:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            before = World(Path(folder) / "before").make()
            target.ready(before)
            content = the_file(before, target).read_bytes()
            for number, one in enumerate(cases(target, content, min(most, target.cases))):
                if f"damaged {target.name} {number}" in known:
                    continue
                faults = attempt(target, before, Path(folder), one)
                failed += bool(faults)
                entry = {"trial": f"damaged {target.name} {number}", "kind": f"damaged {target.name}", "how": "damage",
                         "faults": faults}
                progress.parent.mkdir(parents=True, exist_ok=True)
                with open(progress, "ab") as file:
                    file.write(json.dumps(entry | mark()).encode() + b"\n")
                if faults:
                    print(f"{target.name} {number}: {faults}", flush=True)
        print(f"{target.name}: {min(most, target.cases)} cases", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--most", type=int, default=1000, help="cases of each file")
    parser.add_argument("--targets", default="", help="these only, with commas")
    parser.add_argument("--progress", type=Path, default=PROGRESS)
    options = parser.parse_args(arguments)
    wanted = options.targets.split(",") if options.targets else [t.name for t in TARGETS]
    targets = [t for t in TARGETS if t.name in wanted or t.name.split(",")[0] in wanted]
    return min(1, work_on(targets, options.most, options.progress))


if __name__ == "__main__":
    raise SystemExit(main())
