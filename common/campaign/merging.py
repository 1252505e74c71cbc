"""Bringing in records that were made elsewhere: the good ones are taken, the others are listed with what is wrong. No torch."""

import hashlib
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.methods.digest import ENGINE
from common.plan import Run, checkpoint_path
from common.predictions import SUFFIX, check_predictions, decode
from common.store import (
    RECORD,
    drop_twins,
    equivalents,
    files_by_key,
    load_records,
    parse_record,
    record_files,
    save_record,
    write_atomically,
)

MOST_TEXT, MOST_OTHER, MOST_TAR = 2**26, 2**31, 2**34  # bytes of a record or predictions, of weights or a state, of all of a tar
BESIDE = ("sha256.json", "probes/", "resume/")  # what a campaign brings home beside records


class RecordPlace(NamedTuple):
    """Of a run that the papers plan: where its record goes, and the digest of what its method computes today."""

    folder: Path
    digest: str


@dataclass
class Merged:
    """What became of the incoming records. replaced: stale ones here that gave way; refused: a sentence each."""

    new: int = 0
    known: int = 0
    replaced: int = 0
    refused: list[str] = field(default_factory=list)


def merge(sources: Sequence[Path], places: Callable[[int], Mapping[str, RecordPlace]], root: Path) -> Merged:
    """Bring in the records of tars, folders and single files, each with its predictions.

    places(seeds): key -> place of every run that the papers know, up to that many seeds. A record is refused that is damaged,
    foreign, made by code that computes something else than today's, without its predictions, or another one than a record of
    today's code that is here. Every file is written whole or not at all, predictions before the record that speaks of them.
    """
    records, answers, merged = {}, {}, Merged()
    for source in map(Path, sources):
        contents, beside = read_source(source)
        answers |= beside
        for name, content in contents.items():
            try:
                records[name] = parse_record(content, name)
            except UserError as error:
                merged.refused.append(str(error))
    if not records and not merged.refused and not answers:
        raise UserError(f"{' and '.join(map(str, sources))} hold no record (<name>-<key>-<digest>e<engine>.json).")
    place = places(1 + max((r["spec"]["seed"] for r in records.values()), default=0))
    drop_twins(root, {f"{key}-{item.digest}e{ENGINE}" for key, item in place.items()})
    files = files_by_key(root)
    digests: dict[str, set[str]] = {}
    for record in records.values():
        digests.setdefault(record["key"], set()).add(record["digest"])
    here, same = load_records(root, {r["key"] for r in records.values()}), equivalents(root)
    for name, record in records.items():
        twins = digests[record["key"]] - {record["digest"]}
        old = here.get(record["key"])
        if old and old["digest"] == record["digest"]:
            merged.known += 1
        elif why := _why_not(record, place.get(record["key"]), old, twins, same, answers):
            merged.refused.append(f"{name}: {why}")
        else:
            _take(record, place[record["key"]].folder, answers, replaces=files[record["key"]] if old else None)
            here[record["key"]] = record
            merged.replaced, merged.new = merged.replaced + (old is not None), merged.new + (old is None)
    return merged


def _why_not(record: Mapping[str, Any], place: RecordPlace | None, old: Mapping[str, Any] | None, twins: Collection[str],
             same: Mapping[str, frozenset[str]], answers: Mapping[str, bytes]) -> str:
    """Why a record is refused, with the way out; "" where it is not."""
    def is_fresh(one: Mapping[str, Any]) -> bool:
        return one["engine"] == ENGINE and one["method_digest"] in same.get(place.digest, (place.digest,))

    if place is None:
        return f"no paper here plans the run {record['key']} ({record['label']}); bring the code to one version first."
    if not is_fresh(record):
        return (f"it was made by other code (digest {record['method_digest']}, engine {record['engine']}) than today's (digest "
                f"{place.digest}, engine {ENGINE}); train it again, or `accept` the digest if no number changes.")
    if twins:
        return "there are two different records of this run among the sources; leave one of them out."
    if old is not None and is_fresh(old):
        return "it differs from the record that is here under the same key; remove one of them."
    return _lacks_predictions(record, place.folder, answers)


def _lacks_predictions(record: Mapping[str, Any], folder: Path, answers: Mapping[str, bytes]) -> str:
    if not record["predictions"]:
        return ""
    name = record["predictions"]["file"]
    content = answers.get(name) or ((folder / name).read_bytes() if (folder / name).is_file() else None)
    if content is None:
        return f"its predictions {name} are in none of the sources; name all parts in one command."
    if hashlib.sha256(content).hexdigest()[:16] + SUFFIX != name:
        return f"its predictions {name} are damaged; fetch them again."
    try:
        check_predictions(record, decode(content, name).get(record["key"]), name)
    except UserError as error:
        return str(error)
    return ""


def _take(record: Mapping[str, Any], folder: Path, answers: Mapping[str, bytes], replaces: Path | None) -> None:
    """Write a record and its predictions. replaces: the file of the record that gives way; its weights are nobody's any more."""
    if record["predictions"] and record["predictions"]["file"] in answers:
        write_atomically(folder / record["predictions"]["file"], answers[record["predictions"]["file"]])
    if replaces:
        checkpoint_path(replaces.parent, record["key"]).unlink(missing_ok=True)
    written = save_record(folder, record, is_first=replaces is None)
    if replaces and replaces != written:
        replaces.unlink(missing_ok=True)


def read_source(source: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The records of a tar, folder or file by their names in it, and its files of predictions by their own. A tar is read in
    memory, so no member can leave a folder."""
    if source.is_dir():
        files = {str(p): p.read_bytes() for p in sorted(source.rglob("*"))
                 if p.is_file() and (RECORD.search(p.name) or p.name.endswith(SUFFIX))}
    elif not source.exists():
        raise UserError(f"{source} does not exist.")
    elif source.suffix == ".json":
        files = {str(p): p.read_bytes() for p in (source, *sorted(source.parent.glob(f"*{SUFFIX}")))}
    else:
        files = _read_tar(source)
    answers = {Path(name).name: content for name, content in files.items() if name.endswith(SUFFIX)}
    return {name: content for name, content in files.items() if not name.endswith(SUFFIX)}, answers


def _read_tar(source: Path) -> dict[str, bytes]:
    def is_ours(name: str) -> bool:
        return (not name.startswith(BESIDE) and name.endswith((".json", SUFFIX)) and not name.rpartition("/")[2].startswith("."))

    return {f"{source}: {name}": content for name, content in read_tar(source, is_ours).items()}


def read_tar(source: Path, is_wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Name -> content of the wanted plain files of a tar. Nothing is unpacked to the disk, so no path and no link leads anywhere;
    sizes are looked at before a byte is read, so no small file grows to fill the memory."""
    contents, total = {}, 0
    try:
        with tarfile.open(source) as tar:
            for member in tar:
                limit = MOST_TEXT if member.name.endswith((".json", SUFFIX)) else MOST_OTHER
                total += member.size
                if member.size > limit or total > MOST_TAR:
                    raise UserError(f"{source}: {member.name} is said to have {member.size:,} bytes, as no file of pack-records "
                                    "or of campaign --out has; nothing of it was read: ask for another copy.")
                if member.isfile() and is_wanted(member.name):
                    contents[member.name] = tar.extractfile(member).read()
        return contents
    except FileNotFoundError:
        raise UserError(f"{source} does not exist.") from None
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{source} is not a whole tar of records ({' '.join(str(error).split())}).") from None


def pack_records(planned: Iterable[Run], root: Path, target: Path) -> tuple[int, list[str]]:
    """Write the records of the planned runs, with their predictions, into one xz tar: the same bytes for the same records.

    Returns how many, and a sentence for each record of theirs that is left out, being of other code than today's.
    """
    buffer, fresh, files = io.BytesIO(), record_files(root), files_by_key(root)
    planned = {item.spec.key: item for item in planned}
    there = {key: files[key] for key in planned if key in files}
    records = sorted({path for key, path in there.items() if planned[key].identity in fresh})
    if not records:
        raise UserError("There is no record to pack for this selection; `status` shows what there is.")
    beside = sorted({path for record in records for path in predictions_beside(record)})
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for path in (*records, *beside):
            content = path.read_bytes()
            if path in records:
                parse_record(content, str(path))
            add_member(tar, path.relative_to(root).as_posix(), content)
    write_atomically(target, buffer.getvalue())
    return len(records), [f"{path.name}: made by other code than today's" for path in sorted(set(there.values()) - set(records))]


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Write a file into a tar, without time or owner: equal contents are equal tars."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def predictions_beside(record: Path) -> list[Path]:
    """The file of predictions that the record in this file speaks of."""
    name = json.loads(record.read_bytes())["predictions"].get("file")
    return [record.parent / name] if name and (record.parent / name).is_file() else []
