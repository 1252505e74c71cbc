"""A small checkout in a folder of its own: two papers whose rows train in seconds, and the commands as a user gives them.

A command runs in a process that is forked from this one, which has imported torch but never used it: a trial takes seconds.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from matplotlib.pyplot import figure
from pandas import read_csv
from rich.console import Console
from scipy.stats import ttest_rel
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from common.cli.main import main
from common.methods.losses import ldam, softmax_cross_entropy
from common.methods.method import COSINE, Method, Start
from common.methods.sampling import deferred, effective_number_weights, uniform_weights
from common.paper import Paper
from common.report.page.page import build_page
from common.spec import Column, LargeProtocol, Protocol
from common.store import parse_record
from common.train.torchrun import train_large
from common.train.work import train
from tests.records import toy_paper

IMPORTED = train, train_large, build_page, read_csv, ttest_rel, figure  # commands import these late
COLUMN = Column("digits", "lt", 20, "resnet8", "hash")
LARGE = Column("miniature", "lt", 35, "resnet10w8")
PROTOCOL = Protocol(epochs=3, batch_size=200, rate=0.1, momentum=0.9, weight_decay=0.0002, warmup_epochs=1, decay_epochs=(2,),
                    decay_factor=0.01, drop_last=False)
SECOND = replace(PROTOCOL, epochs=2, warmup_epochs=0, decay_epochs=(), schedule="cosine", trains="head")
LARGE_PROTOCOL = LargeProtocol(epochs=2, batch_size=300, rate=0.1, momentum=0.9, weight_decay=0.0002, warmup_epochs=1,
                               decay_epochs=(), decay_factor=0.1, drop_last=False)
STABLE = ("device_type", "precision", "path", "torch", "processes")  # of what a record says of its making
README = "# Toy\n\n<!-- begin generated: {0} -->\n<!-- end generated: {0} -->\n"
NO_RESULT = {"log.jsonl", "records.json", "campaign.lock"}  # in .work


def rows(column: Column, protocols: Any) -> tuple[Method, ...]:
    """Cross-entropy, a row with deferred weights, and a second stage that starts from the first."""
    first = Method("ce", "written", softmax_cross_entropy)
    if column.dataset == LARGE.dataset:
        return (first,)
    late = partial(deferred, before=uniform_weights, then=effective_number_weights, start=2)
    rival = Method("rival", "written", partial(ldam, s=30.0, largest=0.5), COSINE, weights=late)
    return first, rival, Method("own", "written", softmax_cross_entropy, start=Start(replace(first, protocol=PROTOCOL)),
                                weights=effective_number_weights, protocol=SECOND)


@cache
def toy() -> Paper:
    """The paper of `tests.records`; its files are written into a folder that is gone at once."""
    with tempfile.TemporaryDirectory() as folder:
        return toy_paper(Path(folder) / "toy")


def small_paper(folder: Path) -> Paper:
    """The same in another folder, with rows that train."""
    columns = {"paper": toy().columns["paper"], "quick": (COLUMN, LARGE)}
    return replace(toy(), name=folder.name, folder=folder, methods=rows, columns=columns,
                   protocols={profile: {"written": PROTOCOL} for profile in ("paper", "quick")},
                   large={LARGE.name: {"written": LARGE_PROTOCOL}})


@dataclass(frozen=True)
class World:
    """A checkout at `root`: papers/, data/, .work/, README.md."""

    root: Path

    @property
    def papers(self) -> tuple[Paper, ...]:
        return tuple(small_paper(self.root / "papers" / name) for name in ("toy", "other"))

    def make(self) -> "World":
        """An empty one."""
        for name in ("data", "benchmarks/results", "results", "out"):
            (self.root / name).mkdir(parents=True)
        (self.root / "README.md").write_text(README.format("front"))
        for paper in self.papers:
            toy_paper(paper.folder)
            (paper.folder / "README.md").write_text(README.format("results"))
        return self

    def copy(self, to: Path) -> "World":
        shutil.copytree(self.root, to, symlinks=True)
        return World(to)

    def settings(self) -> dict[str, Any]:
        """What the command line takes from its own file."""
        return {"ROOT": self.root, "DATA": self.root / "data", "WORK": self.root / ".work",
                "RESULTS": self.root / "benchmarks" / "results"}


def run_main(world: World, arguments: Sequence[str], rank: int = 0, processes: int = 1) -> int:
    """The command in this process; its exit code."""
    main.__globals__.update(world.settings(), RANK=rank, WORLD=processes,
                            console=Console(highlight=False, soft_wrap=True, quiet=rank > 0))
    sys.argv = ["papers", *arguments]
    os.chdir(world.root)
    try:
        main(*world.papers)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def start(world: World, arguments: Sequence[str], before: Callable[[], None] = lambda: None, said: Path | None = None,
          body: Callable[..., int] = run_main) -> int:
    """Fork a process that runs the command, in a process group of its own; returns its id. before: called in it first."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(said or world.root.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest has put its own there
        before()
        code = body(world, arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(world: World, *arguments: str, **how: Any) -> tuple[int, str]:
    """The command's exit code and all that it says."""
    code = ended(start(world, arguments, **how))
    return code, (how.get("said") or world.root.with_suffix(".said")).read_text(errors="replace")


def ended(pid: int) -> int:
    """The exit code of a forked process; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def under_torchrun(world: World, arguments: Sequence[str]) -> int:
    """The command on two workers of torchrun's own agent, which starts them once more where one is lost."""
    config = LaunchConfig(1, 1, 2, run_id=str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=1,
                          monitor_interval=0.1, start_method="fork")
    try:
        elastic_launch(config, _worker)(world, tuple(arguments))
    except Exception as error:
        print(error)
        return 1
    return 0


def _worker(world: World, arguments: Sequence[str]) -> None:
    rank = int(os.environ["RANK"])
    if code := run_main(world, arguments, rank, int(os.environ["WORLD_SIZE"])):
        sys.exit(code)


# What a command leaves


def ending(world: World) -> dict[str, Any]:
    """File -> what of it must not depend on interruptions: records without the time and place of their making, other files
    byte for byte; but no hidden file, nor what the work folder has for people and for estimates."""
    found = {}
    for path in sorted(p for p in world.root.rglob("*") if p.is_file()):
        name = path.relative_to(world.root)
        if any(part.startswith(".") for part in name.parts[1:]) or name.name.startswith(".") or "__pycache__" in name.parts:
            continue
        if name.parts[0] == ".work" and (name.name in NO_RESULT or {"probes", "home"} & set(name.parts)):
            continue
        if name.suffix == ".json" and "results" in name.parts[2:3]:
            record = parse_record(path.read_bytes(), str(path))
            made = {key: record["made"].get(key) for key in STABLE}
            answers = record["predictions"].get("digest")
            found[str(name)] = json.dumps({**record, "made": made, "digest": "", "predictions": answers}, sort_keys=True)
        elif not name.name.endswith(".predictions.npz"):  # records have the digests of their own
            found[str(name)] = path.read_bytes()
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The files in which two endings differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def tree(world: World) -> dict[str, bytes]:
    """Every file, byte for byte, but for what is said to people."""
    return {str(p.relative_to(world.root)): p.read_bytes() for p in sorted(world.root.rglob("*")) if p.is_file()}
