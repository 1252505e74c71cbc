"""A card: what a trial has shown, in one JSON file that another machine can re-run. It holds the guest's source, every number of
the boards, and digests of the runs and of their answers to every test image. No torch.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.errors import UserError
from common.guests.source import PLAIN_NAME
from common.spec import Column, ProfileName, Protocol, build, canonical_json
from common.store import write_atomically

SCHEMA = 1
MOST, MOST_SEEDS = 4_000_000, 100  # bytes and seeds of a card that is read


@dataclass(frozen=True)
class Source:
    """The guest's file. sha256: of its text."""

    name: str
    sha256: str
    text: str


@dataclass(frozen=True)
class RunOf:
    """A run behind a row. identity: which run, of which code; accuracy: of the last epoch, None where it diverged; answers:
    digest of its answers to all test images, "" where none are kept."""

    identity: str
    seed: int
    accuracy: float | None
    answers: str
    device: str
    precision: str


@dataclass(frozen=True)
class Row:
    """A method on a board; accuracies of the last epoch in percent, means over its finished runs.

    kind: the guest's own, a reference that was trained beside it, or what else the papers have trained under this protocol.
    papers: who trains it, of what the papers have.
    """

    label: str
    kind: Literal["guest", "reference", "paper"]
    papers: tuple[str, ...]
    diverged: int
    mean: float | None
    sd: float | None
    many: float | None
    medium: float | None
    few: float | None
    runs: tuple[RunOf, ...]

    @property
    def n(self) -> int:
        """Finished runs."""
        return len(self.runs) - self.diverged


@dataclass(frozen=True)
class Versus:
    """A row of the guest against another row, in points, on the same images and seeds. low, high: 95 % interval; p: two-sided,
    of no difference, Holm-corrected over the other rows of the board; wins, losses: images and seeds on which only the guest's,
    only the other is right."""

    guest: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    seeds: int
    images: int
    wins: int
    losses: int

    @property
    def verdict(self) -> str:
        """In a word, at 0.05."""
        return "undecided" if self.p >= 0.05 else "ahead" if self.difference > 0 else "behind"


@dataclass(frozen=True)
class Board:
    """All rows of the column under one protocol, the best first. names: which papers' protocol it is; words: what it says."""

    names: tuple[str, ...]
    words: str
    protocol: Protocol
    rows: tuple[Row, ...]
    versus: tuple[Versus, ...]


@dataclass(frozen=True)
class Card:
    """A trial. engine: version of what all runs share; data: digest of the dataset; commit, torch: of the guest's runs; remarks:
    what the checks before training noted of the rows."""

    schema: int
    name: str
    profile: ProfileName
    column: Column
    seeds: int
    engine: int
    data: str
    commit: str
    torch: str
    source: Source
    remarks: tuple[str, ...]
    boards: tuple[Board, ...]


def source_of(path: Path, text: str) -> Source:
    return Source(path.name, hashlib.sha256(text.encode()).hexdigest(), text)


def digest_of_card(content: dict) -> str:
    """SHA-256 of everything in the card but its digest."""
    return hashlib.sha256(canonical_json({k: v for k, v in content.items() if k != "digest"})).hexdigest()


def write_card(card: Card, path: Path) -> str:
    """Write the card; returns its digest."""
    content = json.loads(json.dumps(asdict(card), allow_nan=False))
    content["digest"] = digest_of_card(content)
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    return content["digest"]


def read_card(path: Path) -> tuple[Card, str]:
    """The card and its digest, if it is whole; else a UserError. Nothing in it is executed."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw) if len(raw) <= MOST else None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a card: {error}.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a card of `try`, or one of another version (schema {SCHEMA} is read here).")
    try:
        digest = content.pop("digest", None)
        matches = digest_of_card(content) == digest
    except (TypeError, ValueError):
        matches = False
    if not matches:
        raise UserError(f"{path} is damaged, or was changed by hand: its content does not match its digest; fetch it again.")
    card = build(content, Card, str(path))
    if not 1 <= card.seeds <= MOST_SEEDS:
        raise UserError(f"{path}: seeds {card.seeds}: 1 to {MOST_SEEDS} are read.")
    source = card.source
    if not PLAIN_NAME.fullmatch(card.name) or source != source_of(Path(f"{card.name}.py"), source.text):
        raise UserError(f"{path} is not a card of `try`: its source is not what it says.")
    return card, digest


def find_cards(guests: Path) -> list[tuple[Path, Card]]:
    """All cards in guests/ and in the guests' folders; what is no card is left out."""
    cards = []
    for path in sorted([*guests.glob("*.json"), *guests.glob("*/card-*.json")]):
        try:
            cards.append((path, read_card(path)[0]))
        except UserError:
            continue
    return cards
