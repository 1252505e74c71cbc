"""The kill trials: which commands, killed how often and when, and what has to be true afterwards.

    python -m tests.faults.trials [--jobs 2] [--most N] [--kinds train,merge]

Every trial has a name that fixes it; those that the progress file has of the same code are not tried again, so the whole may be
stopped and started at will. `tests/faults/results.json` is written anew at the end (`tests.faults.promises`).
"""

import argparse
import json
import os
import random
import shutil
import signal
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from common.checkout import commit, source_digest
from common.data.parcel import Need, needs_of, pack_data
from common.data.sets import content_digest, load
from common.errors import UserError
from common.predictions import decode
from common.store import RECORD, parse_record
from tests.faults import cluster
from tests.faults.kill import Shim
from tests.faults.world import COLUMN, World, differences, ending, run, run_main, start, under_torchrun

PROGRESS = Path(__file__).resolve().parents[2] / ".work" / "faults" / "trials.jsonl"
TRAIN = ("train", "--profile", "quick", "--save-every", "0.001", "--processes", "1")
CAMPAIGN = ("campaign", *TRAIN[1:])
GRACE = 15.0  # seconds within which a process has to end that is asked to
SEED = 20


@dataclass(frozen=True)
class Kind:
    """A command and how it is tried. ready: makes the checkout before it, given an empty one.

    trials: in all; every operation on a file once, as far as they go, the rest at random moments. signals: trials with SIGTERM
    and SIGINT beside these. ignored: files that name times. body: what runs the command in its process.
    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[World], None]
    trials: int
    signals: int = 0
    ignored: tuple[str, ...] = ()
    body: Callable[..., int] = run_main


class Trial(NamedTuple):
    """how: an operation's name, "moment", "SIGTERM" or "SIGINT". at: the number of the operation, or seconds."""

    kind: str
    number: int
    how: str
    at: float

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number} {self.how}"


def with_digits(world: World) -> None:
    must(world, "prepare", "digits")


def with_miniature(world: World) -> None:
    must(world, "prepare", "miniature")


def trained(world: World) -> None:
    """All runs of the quick profile have their records."""
    with_digits(world)
    must(world, *TRAIN)


def with_parts(world: World) -> None:
    """What a campaign elsewhere brought home: records, weights, speeds and the state of a pack; and an old record here."""
    there = World(world.root / "there").make()
    trained_at_home(there)
    shutil.move(there.root / "out", world.root / "incoming")
    shutil.rmtree(there.root)


def trained_at_home(world: World) -> None:
    with_digits(world)
    must(world, "train", "--profile", "quick", "--method", "rival", "--seeds", "1")
    must(world, "campaign", "--profile", "quick", "--processes", "1", "--out", "out/home.tar", "--weights-of", "all")
    must(world, "pack-records", "out/records.tar", "--profile", "quick")


def with_parcels(world: World) -> None:
    """A parcel of digits that serves one column is here; a larger one is to come."""
    with_digits(world)
    for name, ratio in (("small", 100), ("large", 20)):
        need = Need(replace(COLUMN, ratio=ratio))
        pack_data("digits", [need], world.root / "data", world.root / "out" / f"{name}.npz", {})
    (world.root / "data" / "digits.npz").unlink()
    must(world, "prepare", "digits", "--from", "out/small.npz")


def must(world: World, *command: str) -> None:
    code, said = run(world, *command)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {said[-2000:]}")


KINDS = (
    Kind("train", TRAIN, with_digits, 220, 16),
    Kind("train, two processes", (*TRAIN[:-1], "2"), with_digits, 20, 8),
    Kind("campaign", (*CAMPAIGN, "--out", "out/home.tar"), with_digits, 230, 16, ("out/home.tar",)),
    Kind("merge", ("merge", "incoming/home.tar", "incoming/records.tar"), with_parts, 140),
    Kind("pack-records", ("pack-records", "out/records.tar", "--profile", "quick"), trained, 50),
    Kind("export", ("export", "--to", "out/weights", "--profile", "quick"), trained, 100),
    Kind("report", ("report", "--profile", "quick"), trained, 120),
    Kind("prepare", ("prepare", "digits"), lambda world: None, 50),
    Kind("prepare, a parcel", ("prepare", "digits", "--from", "out/large.npz"), with_parcels, 20),
    Kind("prepare, a large set", ("prepare", "miniature"), lambda world: None, 20),
    Kind("torchrun", (*TRAIN[:3], "--column", "miniature", "--workers", "1", "--seeds", "1", "--save-every", "0.001"),
         with_miniature, 40, 8, body=under_torchrun),
    Kind("ray", (*CAMPAIGN[:-2], "--ray", "auto"), with_digits, 10,
         body=cluster.on_cluster),
)


@dataclass
class Bench:
    """Where the trials of one kind are made. before: the checkout that each begins with; whole: what an undisturbed run leaves;
    operations: the kinds of what it does to files; seconds: how long it takes."""

    kind: Kind
    folder: Path
    before: World = field(init=False)
    whole: dict[str, Any] = field(init=False)
    operations: list[str] = field(init=False)
    seconds: float = field(init=False)

    def prepare(self) -> "Bench":
        self.before = World(self.folder / "before").make()
        self.kind.ready(self.before)
        world, log = self.fresh(), self.folder / "operations"
        begun = time.monotonic()
        code, said = run(world, *self.kind.command, before=self.watch(world, -1, log), body=self.kind.body)
        self.seconds = time.monotonic() - begun
        if code:
            raise RuntimeError(f"{self.kind.name} ended with {code}: {said[-3000:]}")
        self.whole, self.operations = self.ending(world), log.read_text().split() if log.exists() else []
        return self

    def fresh(self) -> World:
        """A copy of what is there before, always under the same name."""
        shutil.rmtree(self.folder / "trial", ignore_errors=True)
        return self.before.copy(self.folder / "trial")

    def watch(self, world: World, at: int, log: Path | None = None) -> Callable[[], None]:
        """What installs the shim. torchrun's is in its first worker, in that one's first life."""
        shim = Shim(world.root, at, log)
        if self.kind.body is not under_torchrun:
            return shim.install

        def later() -> None:
            os.register_at_fork(after_in_child=lambda: os.getppid() == shim.owner and shim.install())
            shim.owner = os.getpid()

        return later

    def ending(self, world: World) -> dict[str, Any]:
        return {name: content for name, content in ending(world).items() if name not in self.kind.ignored}

    def trials(self) -> Iterator[Trial]:
        """Every operation once, then random moments, then signals."""
        draw, kind = random.Random(f"{SEED} {self.kind.name}"), self.kind
        chosen = range(len(self.operations))
        if len(chosen) > kind.trials // 2 and kind.trials < 200:
            chosen = sorted(draw.sample(chosen, kind.trials // 2))
        for number in range(kind.trials):
            if number < len(chosen):
                yield Trial(kind.name, number, self.operations[chosen[number]], chosen[number])
            else:
                yield Trial(kind.name, number, "moment", draw.uniform(0, self.seconds))
        for number in range(kind.signals):
            yield Trial(kind.name, kind.trials + number, ("SIGTERM", "SIGINT")[number % 2], draw.uniform(0, self.seconds))

    def attempt(self, trial: Trial) -> dict[str, Any]:
        """Disturb the command, start it again, and look. Returns what a line of the progress file holds."""
        world, begun = self.fresh(), time.monotonic()
        ended_with, faults = self.disturb(world, trial)
        faults += [f"half-written: {fault}" for fault in unwhole(world)]
        code, said = run(world, *self.kind.command, body=self.kind.body)
        if code:
            faults.append(f"the next start ended with {code}: {said[-1500:]}")
        faults += [f"other bits than without a kill: {name}" for name in differences(self.whole, self.ending(world))]
        faults += [f"half-written: {fault}" for fault in unwhole(world)] + twins(world) + lost_at_home(world, self.folder)
        return {"trial": trial.name, "kind": trial.kind, "how": trial.how, "ended": ended_with, "faults": faults,
                "seconds": round(time.monotonic() - begun, 2)}

    def disturb(self, world: World, trial: Trial) -> tuple[int, list[str]]:
        """How the process ended, and what was wrong with that."""
        at = int(trial.at) if trial.how not in ("moment", "SIGTERM", "SIGINT") else -1
        pid = start(world, self.kind.command, self.watch(world, at) if at >= 0 else lambda: None, body=self.kind.body)
        if at >= 0:
            return wait(pid, 120.0), []
        time.sleep(trial.at)
        asked = time.monotonic()
        if trial.how == "moment":
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return wait(pid, 120.0), []
        with suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, trial.how))
        code = wait(pid, GRACE)
        late = time.monotonic() - asked
        faults = [f"{trial.how} did not end it within {GRACE:g} s"] if late > GRACE else []
        if b"Traceback" in (said := world.root.with_suffix(".said").read_bytes()):
            faults.append(f"{trial.how} left a traceback: {said[-600:].decode(errors='replace')}")
        return code, faults


def wait(pid: int, seconds: float) -> int:
    """The exit code of a child; it and its group are killed when the seconds are over. Its group never outlives it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not found:
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def unwhole(world: World) -> list[str]:
    """Every visible file that is not whole."""
    found = []
    for path in sorted(p for p in world.root.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            if RECORD.search(path.name) and "results" in path.parts:
                parse_record(path.read_bytes(), path.name)
            elif path.name.endswith(".predictions.npz"):
                decode(path.read_bytes(), path.name)
            elif path.suffix == ".safetensors":
                safe_open(path, framework="numpy").keys()
            elif path.suffix == ".tar":
                with tarfile.open(path) as tar:
                    [tar.extractfile(m).read() for m in tar.getmembers()]
            elif path.suffix in (".npz", ".pt"):
                with zipfile.ZipFile(path) as archive:
                    if bad := archive.testzip():
                        found.append(f"{path.name}: {bad}")
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (UserError, OSError, ValueError, tarfile.TarError, zipfile.BadZipFile, Exception) as error:
            found.append(f"{path.relative_to(world.root)}: {error}")
    return found + black_images(world)


def black_images(world: World) -> list[str]:
    """Columns that a parcel's marker promises, but whose images are not here."""
    found = []
    for marker in (world.root / "data").glob("[!.]*.parcel.json"):
        name = marker.name.partition(".")[0]
        with suppress(UserError):  # no images at all is said by itself
            images = load(name, marker.parent)
            for need, digest in needs_of(json.loads(marker.read_text())):
                index = need.images(images)
                if content_digest(images.x_train[index], images.y_train[index]) != digest:
                    found.append(f"{marker.name} promises {need.column.name}, whose images are not in {name}.npz")
    return found


def twins(world: World) -> list[str]:
    """Runs with two records."""
    keys = Counter(RECORD.search(p.name)[2] for p in world.root.glob("papers/*/results/*/*/*.json") if RECORD.search(p.name))
    return [f"two records of {key}" for key, count in keys.items() if count > 1]


def lost_at_home(world: World, folder: Path) -> list[str]:
    """Records that the campaign's store has and its file for home lacks."""
    home = world.root / "out" / "home.tar"
    if not home.exists() or not (world.root / "data").exists():
        return []
    with tarfile.open(home) as tar:
        inside = {Path(name).name for name in tar.getnames()}
    here = {p.name for p in world.root.glob("papers/*/results/*/*/*.json") if RECORD.search(p.name)}
    return [f"not in {home.name}: {name}" for name in sorted(here - inside)]


def done_already(progress: Path) -> dict[str, dict[str, Any]]:
    """Trials of today's code in the progress file, by name; a line that a kill cut is passed over."""
    found, code = {}, source_digest()
    for line in progress.read_text().splitlines() if progress.exists() else ():
        with suppress(ValueError, KeyError):
            entry = json.loads(line)
            if entry["code"] == code:
                found[entry["trial"]] = entry
    return found


def mark() -> dict[str, str]:
    """Of which code a trial is."""
    return {"code": source_digest(), "commit": commit()}


def work_on(kinds: Sequence[Kind], progress: Path, jobs: int, job: int, most: int) -> int:
    """Every `jobs`-th trial that is still to be made; returns the number of those that found something."""
    failed, known = 0, done_already(progress)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for number, kind in enumerate(kinds):
            place = Path(folder) / str(number)
            place.mkdir()
            total = kind.trials + kind.signals
            if sum(entry["kind"] == kind.name and not entry["faults"] for entry in known.values()) >= total:
                continue
            try:
                bench, tried = Bench(kind, place).prepare(), 0
            except RuntimeError as error:  # undisturbed it does not run here: none of its trials is made, and the page says so
                print(f"{kind.name}: not tried. {error}", flush=True)
                failed += 1
                continue
            for trial in spread(list(bench.trials()), most):
                if trial.number % jobs != job or (trial.name in known and not known[trial.name]["faults"]):
                    continue
                entry = bench.attempt(trial)
                failed, tried = failed + bool(entry["faults"]), tried + 1
                line = json.dumps(entry | mark()).encode() + b"\n"
                with open(progress, "ab") as file:
                    file.write(line)
                print(f"{trial.name}: {'; '.join(entry['faults'])[:1500] or 'as without'} ({entry['seconds']} s)", flush=True)
            shutil.rmtree(place, ignore_errors=True)
    return failed


def spread(trials: list[Trial], most: int) -> list[Trial]:
    """So many of the trials, evenly."""
    return trials if len(trials) <= most else [trials[len(trials) * i // most] for i in range(most)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--most", type=int, default=1000, help="trials of each kind")
    parser.add_argument("--kinds", default="", help="these only, with commas (default: all that can run here)")
    parser.add_argument("--progress", type=Path, default=PROGRESS)
    options = parser.parse_args(arguments)
    options.progress.parent.mkdir(parents=True, exist_ok=True)
    wanted = options.kinds.split(",") if options.kinds else [k.name for k in KINDS]
    kinds = [k for k in KINDS if k.name in wanted or k.name.partition(",")[0] in wanted]
    children = []
    for job in range(options.jobs):
        if not (pid := os.fork()):
            os._exit(min(1, work_on(kinds, options.progress, options.jobs, job, options.most)))
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return max(map(abs, codes))


if __name__ == "__main__":
    raise SystemExit(main())
