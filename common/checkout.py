"""Which commit this code is of, also where it travelled without its history. No torch."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

from common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PARCELS = "*.parcel.json"  # in data/: what a parcel of images says of itself, see `common.data.parcel`
WRITTEN = ("**/dvc.lock", *(f"papers/*/{kind}/**" for kind in ("results", "summaries", "plans", "scores")))  # kept in git


def check_is_checkout(root: Path = ROOT) -> None:
    """A UserError where this code was installed as a package."""
    if root.name in ("site-packages", "dist-packages"):
        raise UserError("Records, data and tables are kept in a checkout: clone the repository and run this in its folder. What "
                        "is installed here is for `from common.zoo import load`.")


def commit(root: Path = ROOT) -> str:
    """The commit of the checkout at `root`, with "-dirty" if anything was changed but what training itself writes (`WRITTEN`).
    Without .git it is what LONGTAIL_COMMIT says, or the commit at which a parcel in data/ was packed; else "unknown"."""
    try:
        named = ["git", "describe", "--always", "--abbrev=12", "--exclude=*"]
        name = subprocess.run(named, capture_output=True, text=True, cwd=root, check=True).stdout.strip()
        changed = ["git", "diff", "--quiet", "HEAD", "--", ".", *(f":(exclude,glob){path}" for path in WRITTEN)]
        return f"{name}-dirty" if subprocess.run(changed, capture_output=True, cwd=root).returncode else name
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LONGTAIL_COMMIT") or _of_parcels(root) or "unknown"


def _of_parcels(root: Path) -> str | None:
    """"-dirty" where the code is not what it was when the parcel was packed."""
    for path in sorted((root / "data").glob(PARCELS)):
        described = json.loads(path.read_text())
        if described.get("commit"):
            clean = described["commit"].removesuffix("-dirty")
            return described["commit"] if described["source"] == source_digest(root) else f"{clean}-dirty"
    return None


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 over the Python and YAML files that decide what a run computes."""
    digest = hashlib.sha256()
    for path in sorted(p for room in ("common", "papers") for p in (root / room).rglob("*") if p.suffix in (".py", ".yaml")):
        if "results" not in path.relative_to(root).parts:
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
