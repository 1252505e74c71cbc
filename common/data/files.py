"""What counts as a file of a dataset, in which order class folders are numbered, and how text is read. No torch.

Copies of a dataset pass through many systems, which leave files behind, add byte order marks and pack or unpack under the
old name. These rules hold for small and large sets, folders, archives and lists.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from common.errors import UserError

JPEG = frozenset({".jpeg", ".jpg"})
PNG = frozenset({".png"})
LEFTOVERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
GZIP = b"\x1f\x8b"
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))

T = TypeVar("T")


def is_visible(name: str) -> bool:
    """Whether a name counts: not one that begins with a dot, nor a folder in which a system keeps things of its own."""
    return not name.startswith(".") and name.lower() not in LEFTOVERS


def all_visible(path: str) -> bool:
    """Whether every part of a path with slashes counts; `.` and `..` do."""
    return all(part in ("", ".", "..") or is_visible(part) for part in path.split("/"))


def is_image(name: str, suffixes: frozenset[str] = JPEG | PNG) -> bool:
    """Whether a file name counts and has one of the suffixes, whatever their case."""
    return is_visible(name) and os.path.splitext(name)[1].lower() in suffixes


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder` that count, sorted; links to folders are folders."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if is_visible(entry.name) and entry.is_dir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); give a folder that can.") from None


def all_numbers(names: Iterable[str]) -> bool:
    """Whether every name is a whole number, leading zeros allowed."""
    return all(name.isascii() and name.isdecimal() for name in names)


def class_order(names: Iterable[str], where: object) -> list[str]:
    """Names of classes in the order of their labels: numbers by value, else in alphabetical order.

    Two names of one number (`7` and `07`) are a UserError that begins with `where`.
    """
    names = sorted(names)
    if not all_numbers(names):
        return names
    ordered = sorted(names, key=int)
    for one, two in pairwise(ordered):
        if int(one) == int(two):
            raise UserError(f"{where} has the class folders {one!r} and {two!r}, which are one number; keep one of them.")
    return ordered


def some(names: Sequence[str], count: int = 3) -> str:
    """The first names, for a message."""
    return ", ".join(map(repr, names[:count])) + (", ..." if len(names) > count else "")


def decode_text(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark; a mark is not part of the text. Else a ValueError."""
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")
    text = content.decode(encoding)
    if "\0" in text:
        raise ValueError("it is not text in UTF-8")
    return text


def unpack(content: bytes) -> bytes:
    """The content without gzip's packing, which its first bytes tell, whatever the name; packed twice is unpacked twice."""
    for _ in range(2):
        if content[:2] == GZIP:
            content = gzip.decompress(content)
    return content


UNREADABLE = (OSError, EOFError, zlib.error)  # what `unpack` raises of damaged content


def reason(error: Exception) -> str:
    """The first line of an error's message (tarfile and Pillow add more), or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":. ")


def first_whole(attempts: Iterable[Callable[[], T]]) -> T | None:
    """What the first attempt without a UserError gives; prints what was wrong with those before it.

    None where there is no attempt. If all fail, one UserError with all that was wrong.
    """
    faults: list[str] = []
    for attempt in attempts:
        try:
            result = attempt()
        except UserError as error:
            faults += [str(error)] * (str(error) not in faults)
            continue
        for fault in faults:
            print(f"Passed over: {fault}")
        return result
    if faults:
        raise UserError(" And beside it: ".join(faults))
    return None
