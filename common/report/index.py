"""`results/index.json`: every run of the published protocol in one machine-readable list; `index.schema.json` beside it says
what is in it. The same records give the same bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.report.results import Record, Results
from common.store import files_by_key, write_atomically

VERSION = 1  # grows with every change of a field's meaning; a new field does not change it
PROFILE = "paper"  # the file is kept in git, so it must not depend on who has run the quick profile
NAME, SCHEMA = "index.json", "index.schema.json"
MADE = ("seconds", "device", "precision", "torch", "commit", "finished")


def index(results: Sequence[Results]) -> dict[str, Any]:
    """The index of the records of all papers, whose files lie in their folders."""
    root, records = results[0].paper.folder.parent, results[0].records
    files = {key: path for key, path in files_by_key(root).items() if path.parts[-3] == PROFILE}
    entries = [_entry(records[key], path.relative_to(root.parent)) for key, path in files.items() if key in records]
    order = sorted(entries, key=lambda one: (one["paper"], one["column"], one["method"], one["seed"], one["key"]))
    return {"$schema": SCHEMA, "version": VERSION, "records": order}


def _entry(record: Record, place: Path) -> dict[str, Any]:
    """place: papers/<paper>/results/<profile>/<column>/<file>. What a record of an older version lacks is null."""
    spec, made = record["spec"], record["made"]
    method = record["label"].partition(" ")[2]
    return {
        "key": record["key"], "paper": place.parts[1], "profile": place.parts[3], "column": place.parts[4], "method": method,
        "reading": method.rpartition("@")[2], "task": spec["method"]["task"], "seed": spec["seed"], "status": record["status"],
        "accuracy": {name: record["accuracy"][name] for name in ("last", "best", "best_epoch")},
        "top5": record.get("top5", {}).get("last"),
        "groups": {name: record["groups"][name] for name in ("many", "medium", "few")}, "ece": record["calibration"]["ece"],
        **{name: made.get(name) for name in MADE}, "protocol": spec["protocol"], "path": place.as_posix(),
        "digest": record["digest"],
        **{name: record[name] for name in ("method_digest", "engine")}, "predictions": record["predictions"].get("file"),
    }


def index_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON with one run a line, so that a difference between two versions can be read."""
    lines = [json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in content["records"]]
    head = json.dumps({name: value for name, value in content.items() if name != "records"})[:-1]
    body = ",\n".join(lines)
    return (f'{head}, "records": [\n{body}\n]}}\n' if lines else f'{head}, "records": []}}\n').encode()


def write_index(results: Sequence[Results], folder: Path) -> Path:
    """Write index.json into `folder`; returns its path."""
    write_atomically(folder / NAME, index_bytes(index(results)))
    return folder / NAME
