"""`published.csv`: the numbers that a paper prints, and the columns of ours that stand beside them."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.paper import Paper
from common.report.verdict import bounds
from common.spec import Column, ProfileName

if TYPE_CHECKING:
    from pandas import DataFrame

FIELDS = ("paper", "table", "dataset", "imbalance_type", "imbalance_ratio", "backbone", "method", "method_ref", "metric", "unit",
          "value", "std", "group", "notes")


def published(paper: Paper) -> "DataFrame":
    """`published.csv` of the paper, its strings as printed, and beside them: number, column, row, variant, remark, bound."""
    import pandas

    path = paper.folder / "published.csv"
    try:
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: it holds the numbers that the paper prints.") from None
    except ValueError as error:
        raise UserError(f"{path} is not a table of published numbers ({' '.join(str(error).split())}).") from None
    if missing := [name for name in FIELDS if name not in frame]:
        raise UserError(f"{path}: column {missing[0]!r} is missing.")
    for line, value in enumerate(frame["value"], 2):
        if not _is_number(value):
            raise UserError(f"{path}, line {line}: value {value!r} is not a number.")
    frame = frame.assign(
        number=[float(value) for value in frame["value"]],
        column=[_column_name(row, f"{path}, line {line}") for line, row in enumerate(frame.itertuples(), 2)],
        row=[_own_label(text) or _spell(method) for text, method in zip(frame["notes"], frame["method"], strict=True)],
    )
    notes = _split_notes(frame)
    return frame.assign(variant=[variant for variant, _ in notes], remark=[remark for _, remark in notes], bound=bounds(frame))


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _column_name(row: Any, where: str) -> str:
    """The name that `Column` gives to the column of a printed number; the file spells the backbone "resnet-32"."""
    try:
        ratio = int(row.imbalance_ratio or 1)
    except ValueError:
        raise UserError(f"{where}: imbalance_ratio {row.imbalance_ratio!r} is not a whole number.") from None
    return Column(row.dataset, row.imbalance_type, ratio, row.backbone.replace("-", "")).name


def _own_label(notes: str) -> str:
    """The paper's own label of the row, from "row=..."."""
    return next((item[4:] for item in notes.split(";") if item.startswith("row=")), "")


def _split_notes(frame: "DataFrame") -> list[tuple[str, str]]:
    """Variant and remark of every row.

    The settings among the notes ("beta=1.4") are a variant only where one table prints several numbers of a method in one
    column, so that the method's name alone says too little. All else is a remark on the row.
    """
    several = frame.duplicated(["table", "column", "method", "metric", "group"], keep=False)
    pairs = []
    for text, is_needed in zip(frame["notes"], several, strict=True):
        items = [item for item in map(str.strip, text.split(";")) if item and not item.startswith(("row=", "label="))]
        settings = [item for item in items if is_needed and re.fullmatch(r"[\w.-]+=[^\s=]+", item)]
        pairs.append((";".join(settings), "; ".join(item for item in items if item not in settings)))
    return pairs


def _spell(method: str) -> str:
    """The label of a row for which the file gives none: short words are acronyms (`LDAM-DRW`), others names (`Focal`)."""
    return "-".join(word.upper() if len(word) <= 4 else word.capitalize() for word in method.split("-"))


def columns_shown_for(paper: Paper, profile: ProfileName) -> dict[str, tuple[Column, ...]]:
    """Published column name -> the columns of this profile whose runs are shown for it."""
    shown: dict[str, tuple[Column, ...]] = {}
    there = {column.name for column in paper.columns[profile]}
    for column in paper.columns[profile]:
        # The join is on dataset, imbalance and backbone: which images a subset keeps is not printed anywhere. But the authors'
        # are meant, so a column of other images stands for the number only where there is none of theirs.
        authors = replace(column, subset="authors").name
        if column.name != authors and authors in there:
            continue
        plain = replace(column, backbone=column.backbone.replace("-", ""), subset="authors").name
        name = plain if profile == "paper" else paper.stand_ins.get(column.name)
        if name is not None and (profile == "quick" or name not in shown):
            shown[name] = (*shown.get(name, ()), column)
    return shown
