"""How the cells of a table are laid out: rows, columns and pieces, and the text of a cell, for every form of output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from common.report.compare import Cell
from common.report.groups import WHOLE
from common.report.text import mean_text, signed

NOT_PRINTED = "not printed"
METRICS = {"top1_error": "Top-1 error", "top1_accuracy": "Top-1 accuracy", "top5_accuracy": "Top-5 accuracy",
           "per_class_accuracy": "Accuracy per class", "top1_error_change_abs": "Change of the top-1 error"}


class TableColumn(NamedTuple):
    """A column of a laid out table: our column, the published one in whose place it is shown, group of classes, metric."""

    column: str
    stands_for: str
    group: str
    metric: str


@dataclass(frozen=True)
class GridRow:
    """A row of the table in one reading; cells is as long as the grid has columns, None where the paper prints nothing."""

    label: str
    reading: str
    cells: tuple[Cell | None, ...]
    says_variant: bool  # whether the cells differ in their setting, so that each must say its own


@dataclass(frozen=True)
class Grid:
    """The table as the paper lays it out, quick stand-ins last."""

    columns: tuple[TableColumn, ...]
    rows: tuple[GridRow, ...]

    def header(self, place: TableColumn, name: str) -> str:
        """What stands above a column: `name`, and what else tells it from the others."""
        says_metric = len({other.metric for other in self.columns}) > 1
        parts = [name, place.group, METRICS.get(place.metric, place.metric) if says_metric else ""]
        return ", ".join(part for part in parts if part) or "all classes"


def pieces(cells: list[Cell], key: Callable[[Cell], object] = lambda cell: (cell.column, cell.stands_for)) -> list[list[Cell]]:
    """The cells of a table as they are laid out: all in one piece, or, where it prints groups of classes, one piece a column."""
    if all(cell.group in WHOLE for cell in cells):
        return [cells]
    by_key: dict[object, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.quick):
        by_key.setdefault(key(cell), []).append(cell)
    return list(by_key.values())


def grid(cells: list[Cell]) -> Grid:
    """Lay cells out as the paper does. Rows of one name in one place (an ablation's settings) are told apart by their order."""
    columns = sorted(dict.fromkeys(map(_place, cells)), key=lambda place: place.column != place.stands_for)
    variants: dict[tuple, list[str]] = {}
    places: dict[tuple, dict[tuple[str, TableColumn], Cell]] = {}
    for cell in cells:
        settings = variants.setdefault((cell.row, cell.method, cell.stands_for, cell.group, cell.metric), [])
        if cell.variant not in settings:
            settings.append(cell.variant)
        row = (cell.row, cell.method, settings.index(cell.variant))
        places.setdefault(row, {})[cell.reading, _place(cell)] = cell
    order = {name: i for i, (name, _) in enumerate(dict.fromkeys(key[:2] for key in places))}
    rows = []
    for row, by_place in sorted(places.items(), key=lambda item: (order.get(item[0][0], 0), item[0][2])):
        settings = {cell.variant for cell in by_place.values()}
        readings = sorted({reading for reading, _ in by_place} - {""}, key=lambda reading: reading != "written") or [""]
        label = row[0] + (f" [{settings.copy().pop()}]" if len(settings) == 1 and "" not in settings else "")
        for reading in readings:
            row_cells = tuple(by_place.get((reading, place)) or _other_reading(by_place, place) for place in columns)
            rows.append(GridRow(label, reading, row_cells, len(settings) > 1))
    return Grid(tuple(columns), tuple(rows))


def _place(cell: Cell) -> TableColumn:
    return TableColumn(cell.column, cell.stands_for, cell.group, cell.metric)


def _other_reading(by_place: Mapping[tuple[str, TableColumn], Cell], place: TableColumn) -> Cell | None:
    """What stands in for a reading that a column does not have: the cell that says why, or the only reading there is."""
    return next((cell for (_, other), cell in by_place.items() if other == place), None)


def cell_text(cell: Cell | None, row: GridRow, best: bool = False) -> str:
    """One cell of the Markdown table; `best` gives the best-epoch numbers, which carry no delta and no verdict."""
    if cell is None:
        return NOT_PRINTED
    numbers = cell.best if best else cell.values
    parts = [mean_text(numbers) if numbers else "last epoch only" if cell.n else cell.state]
    parts += [signed(cell.delta), cell.verdict] if cell.delta is not None and not best else []
    parts += [f"{cell.diverged} diverged"] if cell.diverged and cell.n else []
    parts += [f"as {cell.reading}"] if cell.reading and row.reading and cell.reading != row.reading else []
    text = ", ".join(parts) + (" †" if cell.flags else "")
    setting = f"{cell.variant}: " if row.says_variant else ""
    return f"{setting}quick {text}" if cell.quick else f"{setting}{cell.shown} → {text}"


def column_words(place: TableColumn | Cell) -> str:
    return place.column if place.column == place.stands_for else f"quick: {place.column} (in place of {place.stands_for})"
