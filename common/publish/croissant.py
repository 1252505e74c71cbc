"""Index lists as datasets that tools read: a CSV of the images that a column keeps, and its Croissant 1.1 description. No torch.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html. The images are not in it: a list says which ones of the
official archive are kept.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.data.class_names import class_names
from common.data.imbalance import SEEDS, read_list, select
from common.data.large_sets import LARGE
from common.data.lists import load_large
from common.data.sets import LISTS, SETS, archive_order, load
from common.publish.about import LICENCE, author, citation, pretty, repository
from common.spec import Column
from common.store import write_atomically

SPECIFICATION = "http://mlcommons.org/croissant/1.1"
PAGES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html", "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "mnist": "http://yann.lecun.com/exdb/mnist/", "digits": "https://archive.ics.uci.edu/dataset/80",
    "tiny-imagenet": "https://cs231n.stanford.edu/", "imagenet": "https://www.image-net.org/",
    "imagenet-lt": "https://www.image-net.org/", "inaturalist2018": "https://github.com/visipedia/inat_comp",
    "places-lt": "http://places2.csail.mit.edu/",
}
TERMS = """
citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes isLiveDataset jsonPath
key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField transform
"""
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/", "dct": "http://purl.org/dc/terms/", "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo", "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{term: f"cr:{term}" for term in TERMS.split()},
}


ARCHIVE, CANONICAL, PATH = "position", "index", "path"
WORDS = {
    ARCHIVE: "its position in the training split of the official archive, counted from 0",
    CANONICAL: "its place in canonical order, by label and then by the SHA-256 of the pixels, counted from 0",
    PATH: "its path below the folder of the images",
}
HOW = {
    **{subset: f"NumPy's seed {seed} shuffles the positions of each class, and the first are kept"
       for subset, seed in SEEDS.items()},
    "authors": "NumPy's seed 0 shuffles the positions of each class, and the first are kept, as the script of LDAM-DRW does",
    "hash": "the first of each class by the SHA-256 of their pixels are kept",
    True: "the official list", False: "drawn by the rule of the official list, which was not at hand; it is another one",
}


class Listing(NamedTuple):
    """The training images that a column keeps. where: ARCHIVE, CANONICAL or PATH, what `places` are; places: of each image;
    labels: int [images]; how: how the images were chosen."""

    name: str
    dataset: str
    where: str
    places: Sequence
    labels: np.ndarray
    how: str


def export_lists(columns: Iterable[Column], data: Path, target: Path) -> list[Path]:
    """Write `<target>/<column>.csv` and `<column>.json` for every committed list, and for every one of these columns whose images
    are prepared in `data`; returns the descriptions."""
    written = {}
    here = {path.stem for path in LISTS.glob("*.json")}
    more = {name: column for column in columns if (name := list_name(column)) not in here}
    for listing in (*committed(), *drawn(more.values(), data)):
        table = _table(listing)
        write_atomically(target / f"{listing.name}.csv", table)
        written[listing.name] = target / f"{listing.name}.json"
        write_atomically(written[listing.name], pretty(describe(listing, table, class_names(listing.dataset, data))))
    return list(written.values())


def list_name(column: Column) -> str:
    """The list of a column: that of its images, whatever its backbone."""
    return column.dataset if column.dataset in LARGE else replace(column, backbone="resnet32").name


def committed() -> Iterator[Listing]:
    """The lists in data/lists, without the images: in canonical order a class is as long as any other, and where an image stands
    there is in git for both sets of which there are lists."""
    for path in sorted(LISTS.glob("*.json")):
        listed = read_list(path)
        order, _ = archive_order(listed.dataset)
        labels = np.empty(len(order), np.int64)
        labels[order] = np.arange(len(order)) // (len(order) // SETS[listed.dataset].classes)
        yield Listing(path.stem, listed.dataset, ARCHIVE, listed.positions, labels[listed.positions], HOW[listed.subset])


def drawn(columns: Iterable[Column], data: Path) -> Iterator[Listing]:
    """What the columns keep that do not keep everything, where the images are here."""
    for column in columns:
        if not (data / f"{column.dataset}.npz").is_file():
            continue
        if column.dataset in LARGE:
            images = load_large(column.dataset, data)
            paths = [path.decode() for path in images.train_paths.tolist()]
            yield Listing(list_name(column), column.dataset, PATH, paths, images.train_labels, HOW[images.official])
            continue
        images = load(column.dataset, data)
        kept = select(images.y_train, column, images.archive_order)
        if len(kept) < len(images.y_train):
            places = kept if images.archive_order is None else images.archive_order[kept]
            order, where = np.argsort(places), CANONICAL if images.archive_order is None else ARCHIVE
            labels = images.y_train[kept][order]
            yield Listing(list_name(column), column.dataset, where, places[order], labels, HOW[column.subset])


def _table(listing: Listing) -> bytes:
    """A line an image: its place and its label."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([listing.where, "label"])
    rows.writerows(zip(map(str, listing.places), listing.labels.tolist(), strict=True))
    return text.getvalue().encode()


def describe(listing: Listing, table: bytes, names: Sequence[str]) -> dict[str, Any]:
    """The Croissant description of a list whose file holds `table`."""
    about, counts = citation(), np.bincount(listing.labels)
    page, file = PAGES.get(listing.dataset), f"{listing.name}.csv"
    text = (f"The {len(listing.labels):,} training images of {listing.dataset} that the column {listing.name} keeps, of "
            f"{len(counts)} classes with {counts.max():,} to {counts.min():,} images: {listing.how}. A line an image: its "
            f"{listing.where} ({WORDS[listing.where]}) and its label. The images are not in it; their terms are their owners'.")
    links = {"url": repository() or page, "prov:wasDerivedFrom": {"@id": page} if page else None}
    return {
        "@context": CONTEXT, "@type": "sc:Dataset", "conformsTo": SPECIFICATION, "name": listing.name, "description": text,
        "license": LICENCE, **{name: value for name, value in links.items() if value},
        "creator": {"@type": "sc:Organization", "name": author()}, "datePublished": about["date-released"],
        "version": about["version"], "citeAs": f"{author()}: {about['title']}, version {about['version']}.",
        "keywords": about["keywords"], "isLiveDataset": False,
        "distribution": [{"@type": "cr:FileObject", "@id": file, "name": file, "contentUrl": file, "encodingFormat": "text/csv",
                          "contentSize": f"{len(table)} B", "sha256": hashlib.sha256(table).hexdigest()}],
        "recordSet": [_classes(counts, names), _images(listing, file)],
    }


def _classes(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What the labels mean, and how many images each has."""
    fields = {"label": ("sc:Integer", "The number of the class."), "name": ("sc:Text", "What the class is called."),
              "images": ("sc:Integer", "How many images of it are kept.")}
    return {
        "@type": "cr:RecordSet", "@id": "classes", "name": "classes", "key": {"@id": "classes/label"},
        "field": [{"@type": "cr:Field", "@id": f"classes/{name}", "name": name, "dataType": kind, "description": text}
                  for name, (kind, text) in fields.items()],
        "data": [{"classes/label": i, "classes/name": names[i], "classes/images": n} for i, n in enumerate(counts.tolist())],
    }


def _images(listing: Listing, file: str) -> dict[str, Any]:
    kind = "sc:Text" if listing.where == PATH else "sc:Integer"
    words = {listing.where: (kind, WORDS[listing.where]), "label": ("sc:Integer", "The number of its class.")}
    fields = [{"@type": "cr:Field", "@id": f"images/{name}", "name": name, "dataType": kind, "description": text,
               "source": {"fileObject": {"@id": file}, "extract": {"column": name}}} for name, (kind, text) in words.items()]
    fields[1]["references"] = {"field": {"@id": "classes/label"}}
    key = {"@id": f"images/{listing.where}"}
    return {"@type": "cr:RecordSet", "@id": "images", "name": "images", "key": key, "field": fields}
