"""What the author of a paper's folder has probably misspelt: a sentence each, with file, line and what was meant.

Much that a folder names may rightly be unknown here (a row that nobody trains, a metric that no record holds), so only what
looks like something known is called a mistake. What makes no sense at all is refused where it is read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from common.errors import UserError, line_of, meant
from common.paper import Paper
from common.report.claims import load_claims
from common.report.compare import MEASURED
from common.report.groups import SHOTS, SPANS, TENTHS, is_group
from common.report.published import published
from common.spec import Imbalance


def mistakes(paper: Paper) -> list[str]:
    """Of published.csv, claims.yaml and the rows; empty where nothing looks wrong."""
    try:
        return _of_published(paper) or _of_the_paper(paper) + _of_claims(paper)  # a claim on a misspelt row is wrong too
    except UserError as error:
        return [str(error)]


def _of_published(paper: Paper) -> list[str]:
    """Names and numbers of published.csv."""
    path, frame, sentences = paper.folder / "published.csv", published(paper), []
    columns = {column.name for several in paper.columns.values() for column in several}
    rows = _rows(paper)
    for line, row in enumerate(frame.itertuples(), 2):
        sentences += _unlike(path, line, "imbalance_type", row.imbalance_type, get_args(Imbalance))
        sentences += _unlike(path, line, "method", row.method, rows)
        sentences += _unlike(path, line, "column", row.column, columns)
        sentences += _unlike(path, line, "metric", row.metric, MEASURED)
        sentences += [] if is_group(row.group) else _unlike(path, line, "group", row.group, (*SHOTS, *TENTHS, *SPANS))
        sentences += _unlike(path, line, "table", row.table, (table.number for table in paper.tables))
        if row.unit == "percent" and not 0 <= row.number <= 100:
            sentences.append(f"{path}, line {line}: value {row.value} is not a percentage, which is 0 to 100.")
    return sentences


def _rows(paper: Paper) -> set[str]:
    """The names of everything that the paper trains."""
    return {method.name for profile, several in paper.columns.items() for column in several
            for method in paper.rows(profile, column)}


def _of_claims(paper: Paper) -> list[str]:
    """What claims.yaml is refused for."""
    try:
        load_claims(paper) if (paper.folder / "claims.yaml").exists() else ()
    except UserError as error:
        return [str(error)]
    return []


def _unlike(path: Path, line: int, what: str, word: str, known: Iterable[str]) -> list[str]:
    """A sentence, if the word is not known and looks like one that is."""
    names = list(known)
    hint = "" if word in names else meant(word, names)
    return [f"{path}, line {line}: {what} {word!r} is not known{hint}."] if hint else []


def _of_the_paper(paper: Paper) -> list[str]:
    """What replicate.py says of itself: its own rows, its main tables, the stand-ins of its quick columns."""
    path, sentences, rows = paper.folder / "replicate.py", [], _rows(paper)
    published_columns = {column.name for column in paper.columns["paper"]}
    for what, words, known in (("own", paper.own, rows), ("main", paper.main, {table.number for table in paper.tables})):
        sentences += [f"{line_of(path, word)}: {what} {word!r} is not known{meant(word, known)}."
                      for word in words if word not in known]
    sentences += [f"{line_of(paper.folder / 'params.yaml', quick)}: stand_ins {name!r} is no column"
                  f"{meant(name, published_columns)}."
                  for quick, name in paper.stand_ins.items() if name not in published_columns]
    return sentences
