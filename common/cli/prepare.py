"""The commands that bring images in, and that pack those which some columns keep. No torch."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from common.checkout import commit, source_digest
from common.data.large_sets import LARGE
from common.data.parcel import Need, instead_of_parcel, is_parcel, pack_data, unpack_data
from common.data.sets import find_set
from common.data.sources import prepare
from common.errors import UserError
from common.large.prepare import prepare_large
from common.paper import Paper
from common.plan import plan
from common.spec import Column, build


def prepare_named(options: argparse.Namespace, data: Path, console: Console) -> None:
    """The sets that `prepare` names, from a folder, an archive, a parcel or a download."""
    source = options.source.expanduser() if options.source else None
    for name in options.names:
        if name in LARGE:
            prepare_large(name, data, source, options.check_images)
        elif source and is_parcel(source):
            served = unpack_data(name, source, data)["serves"]
            columns = sorted({replace(build(need["column"], Column, "column"), backbone="resnet32").name for need in served})
            console.print(f"{name}: a parcel of {len(columns)} columns in {data.name}/{name}.npz: {', '.join(columns)}.")
        else:
            with instead_of_parcel(name, data):
                prepare(name, data, source)


def pack_columns(papers: Sequence[Paper], options: argparse.Namespace, data: Path, console: Console) -> None:
    """Every column of the set that any paper's runs use, of the kinds and names that the options leave."""
    name, needs = find_set(options.name).name, {}
    for item in (m for paper in papers for m in plan(paper, "quick" if name == "digits" else "paper")):
        column = item.spec.column
        if column.dataset == name and (not options.imbalance or column.imbalance in options.imbalance) and (
                not options.columns or column.name in options.columns):
            need = Need(column, item.method.held_out)
            needs.setdefault(need._replace(column=replace(column, backbone="")), need)
    if not needs:
        raise UserError(f"No paper trains on such a column of {name}.")
    about = {"commit": commit(), "source": source_digest()}
    packed = pack_data(name, list(needs.values()), data, options.to, about)
    size = options.to.stat().st_size / 2**20
    console.print(f"{packed['train_images']:,} training images and the test set of {name}, for {len(needs)} columns, are in "
                  f"{options.to} ({size:.1f} MiB).")


def prepare_all(names: Sequence[str], data: Path, console: Console) -> None:
    """Prepare what can be prepared; a dataset that cannot be had keeps only its own columns from being trained."""
    refusals = []
    for name in names:
        try:
            prepare_large(name, data) if name in LARGE else prepare(name, data, None)
        except UserError as refusal:
            refusals.append(refusal)
            console.print(f"[yellow]{escape(str(refusal))}[/]")
    if refusals and len(refusals) == len(names):
        raise refusals[0]
