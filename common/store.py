"""Where records, checkpoints and resume states live, and how records travel between machines. No torch.

A record is `<paper>/results/<profile>/<column>/<method>-s<seed>-<identity>.json`. The identity is `<key>-<digest>e<engine>`:
which run it is, the digest of what its method computed, and the version of the engine (`common.methods.digest`). A run is
looked up by its identity under all papers, so a run that several tables need is trained once, and one whose code has changed
since is not found: its record is stale. Nothing is ever half-written: a temporary file is renamed.
"""

import csv
import hashlib
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import yaml

from common.errors import UserError, remedy
from common.record_form import misfit
from common.spec import canonical_json, load_yaml, spec_key

SCHEMA = 2
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "schema": int, "key": str, "label": str, "spec": dict, "status": str, "accuracy": dict, "per_class_accuracy": list,
    "confusion": list, "groups": dict, "calibration": dict, "curves": dict, "norms": dict, "counts": list, "made": dict,
    "method_digest": str, "engine": int, "predictions": dict, "digest": str,
}
STATUSES = ("done", "diverged")
RECORD = re.compile(r"^[^.].*-(([0-9a-f]{16})-([0-9a-f]{16})e(\d+))\.json$")  # a record's file, and no leftover of a system
LEFT = 3600.0  # seconds after which a half-written temporary file is nobody's
EQUIVALENT = "equivalent.yaml"  # in results/: digests that were reviewed and compute the same
SPEC_FIELDS = {"column", "protocol", "method", "data", "seed"}


def weights_metadata(**about: Any) -> dict[str, str]:
    """What a file of weights says of itself, all in one entry: safetensors 0.8 writes several in a random order, and equal
    weights have to be equal files, for DVC and for whoever compares digests."""
    return {"run": canonical_json(about).decode()}


def read_weights_metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What `weights_metadata` was given; nothing where a file has no such entry."""
    try:
        return dict(json.loads((metadata or {})["run"]))
    except (KeyError, TypeError, ValueError):
        return {}


def read_weights(path: Path, key: str, framework: Literal["numpy", "pt"] = "numpy") -> dict[str, Any]:
    """The tensors by name in the file of weights of the run `key`, as NumPy's or as torch's. A file that is missing, damaged or
    of another run is a UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            about, tensors = read_weights_metadata(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); delete it and its record, and train the run "
                        "again.") from None
    if about.get("key") != key:
        raise UserError(f"{path} holds the weights of run {about.get('key')}; delete it and its record, and train the run again.")
    return tensors


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write the whole file or nothing: `content`, or what that writes into a file. A full disk is a UserError, and leaves the
    old file as it was."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path} could not be written ({error.strerror}); {remedy(error) or 'make its folder writable'} and "
                            "start again: the old file, if there was one, is as it was.") from None
        raise
    _sweep(path)


def _sweep(path: Path) -> None:
    """Delete what processes that were killed while writing this file left of it; a younger one may be at work."""
    for left in (path.parent / name for name in _hidden(path.parent) if name.startswith(f".{path.name}.")):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT:
                left.unlink()


@lru_cache(maxsize=256)
def _hidden(folder: Path) -> tuple[str, ...]:
    """The hidden files of a folder, looked for once a process: what is left of others is older."""
    try:
        return tuple(name for name in os.listdir(folder) if name.startswith("."))
    except OSError:
        return ()


def rows_as_csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file of rows below the names of their columns: the same rows give the same bytes on every system."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(names)
    lines.writerows(rows)
    return text.getvalue().encode()


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its digest: the SHA-256 of everything else in it."""
    body = {k: v for k, v in record.items() if k != "digest"}
    return {**body, "digest": hashlib.sha256(canonical_json(body)).hexdigest()}


def check_record(record: Any, where: str) -> dict[str, Any]:
    """The record, if it is whole and its own: fields, schema, key of its spec and digest. Else a UserError naming `where`."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a record: it holds {type(record).__name__} instead of fields; remove it.")
    if type(record.get("schema")) is int and record["schema"] > SCHEMA:
        raise UserError(f"{where} was written by a newer version (record schema {record['schema']}; this one reads {SCHEMA}): "
                        "update this checkout, for example with git pull, or move the record away.")
    if record.get("schema") != SCHEMA:
        raise UserError(f"{where} has record schema {record.get('schema')!r}, and this version reads schema {SCHEMA}; remove it, "
                        "and train its run again.")
    for name, kind in FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{where} is not a record: field {name!r} is missing or of the wrong type; remove it, and train or "
                            "merge it again.")
    if record["status"] not in STATUSES or set(record["spec"]) != SPEC_FIELDS or type(record["spec"]["seed"]) is not int:
        raise UserError(f"{where} is not a record: its status or its spec is not one that this version writes; remove it.")
    if spec_key(record["spec"]) != record["key"]:
        raise UserError(f"{where} carries key {record['key']}, but its spec has key {spec_key(record['spec'])}; remove it, and "
                        "train or merge it again.")
    if seal(record)["digest"] != record["digest"]:
        raise UserError(f"{where} is damaged: its content does not match its digest; delete it and train or merge it again.")
    if why := misfit(record):
        raise UserError(f"{where} is not a record that this version writes: {why}; remove it, and train its run again.")
    return record


def parse_record(content: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: it is not JSON ({error}); delete it and train or merge it again.") from None
    return check_record(record, where)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def record_path(folder: Path, record: Mapping[str, Any]) -> Path:
    """A readable file name that ends in the identity."""
    method = re.sub(r"[^A-Za-z0-9.@]+", "-", record["label"]).strip("-")
    return folder / f"{method}-s{record['spec']['seed']}-{identity_of(record)}.json"


def file_stem(text: str) -> str:
    """A name of a device, say, as a file is called."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def identity(key: str, digest: str, engine: int) -> str:
    """Of a run: its key, the digest of what its method computes, the version of the engine."""
    return f"{key}-{digest}e{engine}"


def identity_of(record: Mapping[str, Any]) -> str:
    return identity(record["key"], record["method_digest"], record["engine"])


def save_record(folder: Path, record: Mapping[str, Any], is_first: bool = False) -> Path:
    """Seal and write a record into the folder, in the place of an older one of its run; returns its file. is_first: there is
    none, so that none is looked for."""
    path = record_path(folder, record)
    older = [] if is_first else _others(path, record["key"])
    write_atomically(path, json.dumps(seal(record), separators=(",", ":"), allow_nan=False).encode() + b"\n")
    latest = max((p.stat().st_mtime_ns for p in older), default=0)
    if path.stat().st_mtime_ns <= latest:  # the clock went backwards
        os.utime(path, ns=(latest + 1, latest + 1))
    for other in older:
        other.unlink(missing_ok=True)
    return path


def _others(path: Path, key: str) -> list[Path]:
    """The other records of a run beside this one."""
    try:
        names = [name for name in os.listdir(path.parent) if key in name and name != path.name]
    except FileNotFoundError:
        return []
    return [path.parent / name for name in names if (match := RECORD.search(name)) and match[2] == key]


def drop_twins(root: Path, fresh: Container[str] = ()) -> int:
    """Delete all but one record of every run, where a kill, or another paper that trained the run again, left several; returns
    how many. fresh: identities of today's code, which stay; else that of the newer engine, or the one written last."""
    by_key: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/results/*/*/*.json")):
        if name := RECORD.search(path.name):
            by_key.setdefault(name[2], []).append(path)
    dropped = 0
    for paths in (paths for paths in by_key.values() if len(paths) > 1):
        kept = max(paths, key=lambda p: (RECORD.search(p.name)[1] in fresh, *_age(p)))
        for path in (p for p in paths if p != kept):
            path.unlink(missing_ok=True)
            dropped += 1
    return dropped


def files_by_key(root: Path) -> dict[str, Path]:
    """Key -> file of the record of every run under `root` (the folder of all papers); only names are read.

    Where a kill left two records of a run, that of the newer engine counts, else the one written last.
    """
    by_key: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/results/*/*/*.json")):
        if name := RECORD.search(path.name):
            by_key.setdefault(name[2], []).append(path)
    return {key: paths[0] if len(paths) == 1 else max(paths, key=_age) for key, paths in by_key.items()}


def _age(path: Path) -> tuple[int, int]:
    return int(RECORD.search(path.name)[4]), path.stat().st_mtime_ns


def record_files(root: Path) -> dict[str, Path]:
    """Identity -> file of every record under `root`; a record whose digest was accepted for another has both identities."""
    files, same = {}, equivalents(root)
    for path in files_by_key(root).values():
        _, key, digest, engine = RECORD.search(path.name).groups()
        files |= {identity(key, name, int(engine)): path for name in same.get(digest, (digest,))}
    return files


@dataclass(frozen=True)
class Equivalent:
    """A line of results/equivalent.yaml: two digests of one method, and why both compute the same numbers."""

    old: str
    new: str
    because: str


def equivalents(root: Path) -> dict[str, frozenset[str]]:
    """Digest -> all digests that were accepted as computing the same, itself included. root: the folder of all papers."""
    path = root.parent / "results" / EQUIVALENT
    return _equivalents(path, path.stat().st_mtime_ns) if path.exists() else {}


@lru_cache(maxsize=1)
def _equivalents(path: Path, changed: int) -> dict[str, frozenset[str]]:
    groups: dict[str, frozenset[str]] = {}
    for line in load_yaml(path, tuple[Equivalent, ...]):
        joined = groups.get(line.old, frozenset({line.old})) | groups.get(line.new, frozenset({line.new}))
        groups |= dict.fromkeys(joined, joined)
    return groups


def accept(root: Path, old: str, new: str, because: str) -> Path:
    """Add a line to results/equivalent.yaml; returns the file."""
    for name in (old, new):
        if not re.fullmatch(r"[0-9a-f]{16}", name):
            raise UserError(f"{name!r} is not a digest, which has 16 hexadecimal digits; `status --stale` shows those of the "
                            "records and of the code.")
    if old == new:
        raise UserError(f"{old} is both the old and the new digest: there is nothing to accept.")
    if not because.strip():
        raise UserError("--because is empty: say why both compute the same numbers, as a reader of the tables has to trust it.")
    path = root.parent / "results" / EQUIVALENT
    lines = load_yaml(path, tuple[Equivalent, ...]) if path.exists() else ()
    rows = [*map(asdict, lines), {"old": old, "new": new, "because": because.strip()}]
    head = b"# Digests that were reviewed and compute the same: records of either count for both (`python -m papers accept`).\n"
    write_atomically(path, head + yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=120).encode())
    return path


def has_diverged(identity: str, files: Mapping[str, Path]) -> bool:
    """Whether the run has a record that says so."""
    return identity in files and _read(files[identity])["status"] == "diverged"


def load_records(root: Path, keys: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Key -> checked record, stale or not, of all under `root` or of `keys` only."""
    files = files_by_key(root)
    wanted = files if keys is None else [k for k in keys if k in files]
    return {key: _read(files[key]) for key in wanted}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy(error) or 'fetch it again'}.") from None
    record = parse_record(content, str(path))
    if identity_of(record) != RECORD.search(path.name)[1]:
        raise UserError(f"{path} holds the record {identity_of(record)}: rename or remove it.")
    return record


def thin_records(root: Path, cache: Path) -> list[dict[str, Any]]:
    """What an estimate needs of every record under `root`: of `spec` column, protocol and companions, of `made` device,
    precision, compiled, runs_in_pack and seconds.

    cache: a file that keeps this by the name, time and size of each record, so that only new ones are read; their digests
    are not checked. Where it cannot be written, all are read again next time.
    """
    known, now, changed = _read_cache(cache), {}, False
    for path in files_by_key(root).values():
        name, state = str(path.relative_to(root)), path.stat()
        entry = known.get(name)
        if not entry or entry[:2] != [state.st_mtime_ns, state.st_size]:
            entry, changed = [state.st_mtime_ns, state.st_size, _thin(path)], True
        now[name] = entry
    if changed or len(now) < len(known):
        with suppress(UserError):
            write_atomically(cache, json.dumps(now, separators=(",", ":")).encode())
    return [thin for *_, thin in now.values()]


def _read_cache(cache: Path) -> dict[str, list]:
    try:
        cached = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _thin(path: Path) -> dict[str, Any]:
    try:
        spec, made = _parts(content := path.read_bytes())
        return {"spec": {"column": spec["column"], "protocol": spec["protocol"],
                         "method": {"companions": spec["method"].get("companions", [])}},
                "made": {"compiled": made.get("compiled", False),
                         **{name: made[name] for name in ("device", "precision", "runs_in_pack", "seconds")}}}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy(error) or 'fetch it again'}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        parse_record(content, str(path))  # says what is wrong with it
        raise UserError(f"{path} does not say on what device it was made, and how long that took.") from None


def _parts(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """`spec` and `made` of a record. Of one as `save_record` writes it nothing else is read: most of it is curves and matrices. A
    quotation mark inside a text has a backslash before it, so that these names are found nowhere else."""
    places = [content.find(name) for name in (b'"spec":{', b'"made":{')]
    if -1 in places or not content.endswith(b"}\n"):
        record = json.loads(content)
        return record["spec"], record["made"]
    text, decode = content.decode("ascii"), json.JSONDecoder().raw_decode
    return tuple(decode(text, place + len('"spec":'))[0] for place in places)
