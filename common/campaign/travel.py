"""What a campaign brings home from a machine that will not be kept: records with their predictions, weights, states. No torch.

`Home` writes all of it anew after every pack, in files small enough to travel: `out.tar`, `out-2.tar` and so on, each a whole
tar with the SHA-256 of its members. `bring_in` puts what is no record where it belongs; `common.campaign.merging` does the
records.
"""

import hashlib
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.campaign.merging import add_member, predictions_beside, read_tar
from common.cost import check_speeds
from common.errors import UserError
from common.plan import Run, checkpoint_path, missing_runs
from common.store import files_by_key, read_weights_metadata, record_files, write_atomically

Weights = Literal["first-stages", "all", "none"]
PARTS = 8  # files
SUMS = "sha256.json"  # in each: name of a member -> its digest
WEIGHTS = re.compile(r"([0-9a-f]{16})\.safetensors$")
STATE, SPEED = re.compile(r"resume/([0-9a-f]{16}\.pt)$"), re.compile(r"probes/([a-z0-9-]+\.json)$")  # under .work
OVERHEAD = 2048  # bytes of a member's header and padding, and its line in SUMS


@dataclass(frozen=True)
class Home:
    """Where finished things go. planned: the runs of the campaign; root: of the papers; work: of states; before: names of the
    files of records that were there at the start, which need not travel; mib: the size that no file may pass.

    weights: of which finished runs: those that a planned run without a record starts from, all, or none.
    """

    target: Path
    planned: Sequence[Run]
    root: Path
    work: Path
    before: frozenset[str]
    mib: float = 16.0
    weights: Weights = "first-stages"

    def write(self) -> list[str]:
        """Write all files anew, the last first, so that no record is in none of them while it moves on; returns the names of what
        did not fit: records go first, then weights, then states."""
        parts: list[list[tuple[str, Path]]] = []
        room: list[float] = []
        left_out = []
        for name, path in self.files():
            size = path.stat().st_size + OVERHEAD
            place = next((i for i, free in enumerate(room) if size <= free), len(parts))
            if size > self.mib * 2**20 - 2 * OVERHEAD or place == PARTS:
                left_out.append(name)
                continue
            if place == len(parts):
                parts.append([])
                room.append(self.mib * 2**20 - 5 * OVERHEAD)
            parts[place].append((name, path))
            room[place] -= size
        parts = parts or [[]]
        for i in reversed(range(len(parts))):
            write_atomically(self.part(i), _tar(parts[i]))
        for i in range(len(parts), PARTS):
            self.part(i).unlink(missing_ok=True)
        return left_out

    def part(self, index: int) -> Path:
        return self.target.with_stem(f"{self.target.stem}-{index + 1}") if index else self.target

    def files(self) -> Iterator[tuple[str, Path]]:
        """Name in the tar and file of all that travels, the dearest first."""
        records = {key: path for key, path in files_by_key(self.root).items() if path.name not in self.before}
        yield from self._named(records.values(), self.root)
        yield from self._named(sorted({p for path in records.values() for p in predictions_beside(path)}), self.root)
        yield from self._named(sorted((self.work / "probes").glob("*.json")), self.work)
        yield from self._named(self.checkpoints(), self.root)
        yield from self._named(sorted((self.work / "resume").glob("*.pt")), self.work)

    @staticmethod
    def _named(paths: Iterable[Path], folder: Path) -> Iterator[tuple[str, Path]]:
        return ((path.relative_to(folder).as_posix(), path) for path in paths)

    def checkpoints(self) -> list[Path]:
        """The weights that travel."""
        if self.weights == "none":
            return []
        every = {link.spec.key: link for item in self.planned for link in item.chain}
        if self.weights == "first-stages":
            missing = missing_runs(list(every.values()), record_files(self.root))
            every = {m.start.spec.key: m.start for m in missing if m.start}
        return sorted({item.checkpoint for item in every.values() if item.checkpoint.exists()})


def begin_home(target: Path, planned: Sequence[Run], root: Path, work: Path, mib: float, weights: Weights) -> Home:
    """The `Home` of a campaign that begins, or goes on; the file is there from now on, as the sign that it has begun, with what a
    killed one could not write any more."""
    home = Home(target, planned, root, work, _before(target, root, work), mib, weights)
    home.write()
    return home


def _before(target: Path, root: Path, work: Path) -> frozenset[str]:
    """Names of the files of records that were here when the campaign that fills `target` began. They are kept in the folder of
    unfinished work: what a campaign made that was killed has to come home with what its next start makes."""
    kept = work / "home" / f"{hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:16]}.json"
    if target.exists() and kept.is_file():
        with suppress(OSError, ValueError, TypeError):
            return frozenset(map(str, json.loads(kept.read_bytes())))
    names = sorted(path.name for path in files_by_key(root).values())
    write_atomically(kept, json.dumps(names).encode())
    return frozenset(names)


def _tar(members: Sequence[tuple[str, Path]]) -> bytes:
    buffer, sums = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, path in members:
            content = path.read_bytes()
            sums[name] = hashlib.sha256(content).hexdigest()
            add_member(tar, name, content)
        add_member(tar, SUMS, json.dumps(sums).encode())
    return buffer.getvalue()


def bring_in(source: Path, places: Callable[[], Mapping[str, Path]], root: Path, states: Path, speeds: Path
             ) -> dict[str, int]:
    """Put weights, states and speeds of a tar, or of a folder, where they belong, the last two in the folders of
    these names; what is here already stays, but speeds.

    places(): key -> folder of the records of every run that the papers know. What `check_in` refuses is a UserError before the
    first file is written. Returns how many of each were new.
    """
    contents = check_in(source, places)
    place = places() if any(WEIGHTS.search(name) for name in contents) else {}
    known = files_by_key(root)
    folders = {key: path.parent for key, path in known.items()}
    targets: dict[Path, bytes] = {}
    count = dict.fromkeys(("weights", "states", "speeds"), 0)
    for name, content in contents.items():
        if key := WEIGHTS.search(name):
            kind, target = "weights", checkpoint_path(folders.get(key[1], place[key[1]]), key[1])
        elif state := STATE.search(name):
            kind, target = "states", states / state[1]
        else:
            kind, target = "speeds", speeds / SPEED.search(name)[1]
        if kind == "speeds" or not target.exists():
            targets[target] = content
            count[kind] += 1
    for target, content in targets.items():
        write_atomically(target, content)
    return count


def check_in(source: Path, places: Callable[[], Mapping[str, Path]]) -> dict[str, bytes]:
    """Name -> content of what `bring_in` would take. Weights of a run that no paper plans, whatever is damaged, and anything that
    its digest does not fit, are a UserError."""
    contents = _read(source)
    place = places() if any(WEIGHTS.search(name) for name in contents) else {}
    for name, content in contents.items():
        where = f"{source}: {name}"
        if key := WEIGHTS.search(name):
            if key[1] not in place:
                raise UserError(f"{where} is foreign: no paper here plans that run; nothing was brought in.")
            _check_weights(content, key[1], where)
        elif STATE.search(name):
            _check_state(content, where)
        else:
            check_speeds(content, where)
    return contents


def _check_state(content: bytes, where: str) -> None:
    """Whether this is a whole archive, as torch writes states; what is in it is read without running any of it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            whole = archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error):
        whole = False
    if not whole:
        raise UserError(f"{where} is a damaged state, which would stop later starts; fetch it again. Nothing was brought in.")


def _check_weights(content: bytes, key: str, where: str) -> None:
    """Whether this is a whole safetensors file of the run: an eight-byte length, a header in JSON, as many bytes as it says."""
    try:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:8 + size])
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        whole, owner = len(content) == 8 + size + end, read_weights_metadata(header.get("__metadata__")).get("key")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        whole, owner = False, None
    if not whole or owner != key:
        raise UserError(f"{where} is damaged or of another run; fetch it again. Nothing was brought in.")


def _read(source: Path) -> dict[str, bytes]:
    """Name -> content of what is no record, checked against SUMS where that is there."""
    source = Path(source)
    if source.is_dir():
        return {p.relative_to(source).as_posix(): p.read_bytes() for p in sorted(source.rglob("*")) if _wanted(p.as_posix())}
    if source.suffix == ".json":
        return {}
    members = read_tar(source, lambda name: True)
    try:
        sums = dict(json.loads(members.get(SUMS, b"{}")))
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{source}: {SUMS} is damaged; fetch it again. Nothing was brought in.") from None
    for name, digest in sums.items():
        if hashlib.sha256(members.get(name, b"")).hexdigest() != digest:
            raise UserError(f"{source}: {name} is damaged: its content does not match its digest; fetch it again. Nothing was "
                            "brought in.")
    return {name: content for name, content in members.items() if _wanted(name)}


def _wanted(name: str) -> bool:
    return any(pattern.search(name) for pattern in (WEIGHTS, STATE, SPEED))
