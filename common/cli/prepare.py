"""The commands that bring images in, and that pack those which some columns keep. No torch."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from common.checkout import commit, source_digest
from common.data.large_sets import LARGE
from common.data.large_sources import prepare_large
from common.data.parcel import instead_of_parcel, is_parcel, pack_data, unpack_data
from common.data.second_tests import prepare_second_tests
from common.data.sets import find_set
from common.data.sources import prepare
from common.errors import UserError
from common.paper import Paper
from common.plan import needed_images
from common.spec import Column, build


def prepare_named(options: argparse.Namespace, data: Path, console: Console) -> None:
    """The sets that `prepare` names, from a folder, an archive, a parcel or a download."""
    source = options.source.expanduser() if options.source else None
    for name in options.names:
        if name == "second-tests":
            prepare_second_tests(source, data, partial(console.print, markup=False))
        elif name in LARGE:
            prepare_large(name, data, source, options.check_images)
        elif source and is_parcel(source):
            served = unpack_data(name, source, data)["serves"]
            columns = sorted({replace(build(need["column"], Column, "column"), backbone="resnet32").name for need in served})
            console.print(f"{name}: a parcel of {len(columns)} columns in {data.name}/{name}.npz: {', '.join(columns)}.")
        else:
            with instead_of_parcel(name, data):
                prepare(name, data, source)


def pack_columns(papers: Sequence[Paper], options: argparse.Namespace, data: Path, console: Console) -> None:
    """The columns of the set that papers train on, of the kinds and names that the options leave."""
    name = find_set(options.name).name
    needs = needed_images(papers, name, options.imbalance, options.columns)
    about = {"commit": commit(), "source": source_digest()}
    packed = pack_data(name, needs, data, options.to, about)
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
