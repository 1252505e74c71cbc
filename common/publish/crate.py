"""A set of records as a Process Run Crate: which software made which record and weights, when, on what and from what. No torch.

https://w3id.org/ro/wfrun/process/0.5, a profile of RO-Crate 1.1.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.large_sets import LARGE
from common.data.sets import SETS
from common.errors import UserError
from common.plan import Run, merged
from common.publish.about import LICENCE, author, citation, pretty, repository
from common.publish.croissant import list_name
from common.report.protocols import protocol_words
from common.report.results import Record
from common.store import load_records, record_path, write_atomically

PROFILE, CRATE = "https://w3id.org/ro/wfrun/process/0.5", "https://w3id.org/ro/crate/1.1"
CONTEXT = [f"{CRATE}/context", {"sha256": "http://schema.org/sha256"}]  # which RO-Crate 1.1 has no term for
METADATA, RECORDS = "ro-crate-metadata.json", "records"
FORMATS = {".json": "application/json", ".safetensors": "application/octet-stream", ".md": "text/markdown", ".csv": "text/csv"}
SAID = ("device", "precision", "torch", "python")  # of `made`
Entity = dict[str, Any]


def write_crate(planned: Sequence[Run], commands: Mapping[str, str], target: Path) -> Path:
    """Make `target` a crate of the records of these runs and of those that they start from; returns its metadata file.

    commands: key -> what made the run. Files that `export` has put there for a run belong to it; a record without such is copied
    to `<target>/records`. No record at all is a UserError.
    """
    links = merged(link for item in planned for link in item.chain)
    records = load_records(planned[0].root, list(links))
    if not records:
        raise UserError("No selected run has a record, so there is no crate to make; train or merge some, or choose others with "
                        "--column, --method, --seeds and --profile.")
    files = {key: _files(record, target) for key, record in records.items()}
    lists = {path.stem: path for path in sorted((target / "croissant").glob("*.json"))}
    shared: dict[str, Entity] = {}
    actions = [_action(links[key], record, commands[key], files, lists, target, shared) for key, record in records.items()]
    parts = [path for paths in files.values() for path in paths]
    parts += [path for one in lists.values() for path in (one, one.with_suffix(".csv"))]
    entities = [*_heads(records, actions, parts, target), *(_file(path, target) for path in parts), *shared.values(), *actions]
    path = target / METADATA
    write_atomically(path, pretty({"@context": CONTEXT, "@graph": entities}))
    return path


def _files(record: Record, target: Path) -> list[Path]:
    """The files of a run in the crate, its record first."""
    folder = record_path(target, record).with_suffix("")
    if (folder / "record.json").is_file():
        others = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]  # hidden: of a write that was killed
        return [folder / "record.json", *sorted(p for p in others if p.name != "record.json")]
    path = record_path(target / RECORDS, record)
    write_atomically(path, record_bytes(record))
    return [path]


def record_bytes(record: Record) -> bytes:
    """A record as its file holds it."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _heads(records: Mapping[str, Record], actions: Sequence[Entity], parts: Sequence[Path], target: Path) -> list[Entity]:
    """The metadata file, the crate itself, its profile, and who made it."""
    about, finished = citation(), sorted(r["made"].get("finished", about_date()) for r in records.values())
    datasets = sorted({r["spec"]["column"]["dataset"] for r in records.values()})
    return [
        {"@id": METADATA, "@type": "CreativeWork", "conformsTo": {"@id": CRATE}, "about": {"@id": "./"}},
        {"@id": "./", "@type": "Dataset", "name": f"{len(records)} training runs: {about['title']}",
         "description": f"Records of trainings on {', '.join(datasets)}, with weights where these are here, and what made them.",
         "datePublished": finished[-1][:10], "license": {"@id": LICENCE}, "conformsTo": {"@id": PROFILE},
         "author": {"@id": "#authors"}, "publisher": {"@id": "#authors"}, "hasPart": [_reference(path, target) for path in parts],
         "mentions": [{"@id": action["@id"]} for action in actions]},
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {"@id": LICENCE, "@type": "CreativeWork", "name": "Apache License 2.0",
         "description": "The licence of what is in here; the images that the runs were trained on have their owners' terms."},
        {"@id": "#authors", "@type": "Organization", "name": author(), **_address()},
    ]


def about_date() -> str:
    """The day of the release, for records that do not say when they were finished."""
    return citation()["date-released"]


def _action(item: Run, record: Record, command: str, files: Mapping[str, list[Path]], lists: Mapping[str, Path], target: Path,
            shared: dict[str, Entity]) -> Entity:
    """One training: an instrument, what went in and what came out. What several share is put into `shared`, by its @id."""
    made, key = record["made"], record["key"]
    done = record["status"] == "done"
    inputs = [_share(shared, one) for one in _inputs(item, record)]
    listed = lists.get(list_name(item.spec.column))
    inputs += [_reference(path, target) for path in ((listed, listed.with_suffix(".csv")) if listed else ())]
    inputs += [_reference(path, target) for path in (files.get(item.start.spec.key, [])[:1] if item.start else ())]
    results = [_reference(path, target) for path in files[key]]
    failed = {} if done else {"error": f"The loss left the finite range in epoch {made.get('diverged_in_epoch')}."}
    return {
        "@id": f"#{key}", "@type": "CreateAction", "name": item.label, "description": command,
        "endTime": made.get("finished", about_date()), "agent": {"@id": "#authors"},
        "actionStatus": f"http://schema.org/{'Completed' if done else 'Failed'}ActionStatus", **failed,
        "instrument": _share(shared, _software(made.get("commit", "unknown"))), "object": inputs,
        "result": results if len(results) > 1 else results[0],
    }


def _software(commit: str) -> Entity:
    about, url = citation(), repository()
    at = f"{url}/tree/{commit.removesuffix('-dirty')}" if url else f"#software-{commit}"
    return {"@id": at, "@type": "SoftwareApplication", "name": about["title"],
            "softwareVersion": f"{about['version']}, commit {commit}", **_address()}


def _address() -> Entity:
    """Where the repository is on the web, if it is anywhere."""
    return {"url": url} if (url := repository()) else {}


def _inputs(item: Run, record: Record) -> Iterator[Entity]:
    """The images, and everything else that decides or may touch the numbers, beside what `record.json` has in full."""
    column = item.spec.column
    facts = SETS.get(column.dataset) or LARGE[column.dataset]
    yield {"@id": f"#data-{column.dataset}", "@type": "CreativeWork", "name": f"The images of {column.dataset}",
           "identifier": facts.digest}
    properties = {"column": column.name, "method": item.method.label, "protocol": protocol_words(item.spec.protocol),
                  "seed": item.spec.seed, **{name: record["made"][name] for name in SAID if name in record["made"]}}
    for name, value in properties.items():
        yield {"@id": f"#{name}-{hashlib.sha256(str(value).encode()).hexdigest()[:8]}", "@type": "PropertyValue", "name": name,
               "value": value}


def _share(shared: dict[str, Entity], entity: Entity) -> Entity:
    shared.setdefault(entity["@id"], entity)
    return {"@id": entity["@id"]}


def _reference(path: Path, target: Path) -> Entity:
    return {"@id": path.relative_to(target).as_posix()}


def _file(path: Path, target: Path) -> Entity:
    content = path.read_bytes()
    return _reference(path, target) | {
        "@type": "File", "name": path.name, "encodingFormat": FORMATS.get(path.suffix, "text/plain"),
        "contentSize": str(len(content)), "sha256": hashlib.sha256(content).hexdigest(),
    }
