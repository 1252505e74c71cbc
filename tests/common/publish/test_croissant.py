"""Index lists as CSV and Croissant: the images that a column keeps, and nothing that the list does not say."""

import base64
import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from common.data.imbalance import read_list, select
from common.data.large_sources import prepare_large
from common.data.sets import LISTS, load
from common.data.sources import prepare
from common.publish.croissant import CANONICAL, PATH, SPECIFICATION, export_lists
from common.spec import Column


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    export_lists([], folder / "no-data", folder / "croissant")
    return folder / "croissant"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_committed_list_is_written(exported) -> None:
    assert sorted(p.stem for p in exported.glob("*.json")) == sorted(p.stem for p in LISTS.glob("*.json"))
    assert sorted(p.stem for p in exported.glob("*.csv")) == sorted(p.stem for p in LISTS.glob("*.json"))


@pytest.mark.parametrize("name", ["cifar10-lt-100", "cifar10-step-10", "cifar100-lt-100-seed-666", "cifar100-lt-200-hash",
                                  "cifar10-lt-100-draw-3"])
def test_a_table_has_the_images_and_the_labels_of_its_list(exported, name, request) -> None:
    listed, table = read_list(LISTS / f"{name}.json"), rows(exported / f"{name}.csv")
    assert [int(row["position"]) for row in table] == listed.positions.tolist()
    assert np.bincount([int(row["label"]) for row in table]).tolist() == listed.counts
    images = load(listed.dataset, request.getfixturevalue(listed.dataset))  # the labels of the images themselves
    label_at = np.empty(len(images.y_train), int)
    label_at[images.archive_order] = images.y_train
    assert [int(row["label"]) for row in table] == label_at[listed.positions].tolist()


def test_the_description_is_of_the_file_beside_it(exported) -> None:
    for path in exported.glob("*.json"):
        described, table = json.loads(path.read_text()), path.with_suffix(".csv").read_bytes()
        [file] = described["distribution"]
        assert (file["contentUrl"], file["sha256"]) == (path.with_suffix(".csv").name, hashlib.sha256(table).hexdigest())
        assert described["conformsTo"] == SPECIFICATION == "http://mlcommons.org/croissant/1.1"
        for needed in ("description", "license", "name", "url", "creator", "datePublished"):  # what the specification requires
            assert described[needed]
        classes = {one["classes/name"]: one["classes/images"] for one in described["recordSet"][0]["data"]}
        assert list(classes.values()) == read_list(LISTS / path.name).counts
        assert next(iter(classes)) in ("airplane", "apple")


@pytest.mark.parametrize(("name", "seed", "more"), [
    ("cifar10-lt-100", 0, ", as the script of LDAM-DRW does"), ("cifar100-lt-100-seed-666", 666, ""),
    ("cifar10-lt-100-draw-3", 3, "")])
def test_the_description_says_how_the_images_were_drawn(exported, name, seed, more) -> None:
    said = f" images: NumPy's seed {seed} shuffles the positions of each class, and the first are kept{more}. A line"
    assert said in json.loads((exported / f"{name}.json").read_text())["description"]


def test_what_is_drawn_from_prepared_images_is_listed_too(tmp_path) -> None:
    prepare("digits", tmp_path, None)
    columns = [Column("digits", "lt", 20, "resnet8", "hash"), Column("digits", "lt", 20, "cnn4", "hash"),
               Column("digits", "none", 1, "resnet8", "hash"), Column("mnist", "lt", 10, "resnet32", "hash")]
    written = export_lists(columns, tmp_path, tmp_path / "out")
    drawn = [path.stem for path in written if "cifar" not in path.stem]
    assert drawn == ["digits-lt-20"]  # one a list, none where all is kept or no image is here
    images = load("digits", tmp_path)
    kept = select(images.y_train, columns[0])
    table = rows(tmp_path / "out" / "digits-lt-20.csv")
    assert [(int(r[CANONICAL]), int(r["label"])) for r in table] == list(zip(kept.tolist(), images.y_train[kept], strict=True))


def test_what_is_drawn_in_the_order_of_the_archive_keeps_image_and_label_together(cifar10, tmp_path) -> None:
    column = Column("cifar10", "counts", 1, "resnet32", "authors", (50, 20, 10))
    written = export_lists([column], cifar10, tmp_path)
    images, table = load("cifar10", cifar10), rows(tmp_path / f"{column.name}.csv")
    assert written[-1].stem == column.name == "cifar10-50-20-10"
    label_at = dict(zip(images.archive_order.tolist(), images.y_train.tolist(), strict=True))
    positions = [int(row["position"]) for row in table]
    assert positions == sorted(images.archive_order[select(images.y_train, column, images.archive_order)].tolist())
    assert [int(row["label"]) for row in table] == [label_at[place] for place in positions]


def test_a_large_list_names_its_files(tmp_path, capsys) -> None:
    prepare_large("miniature", tmp_path, None)
    written = export_lists([Column("miniature", "none", 1, "resnet10w8")], tmp_path, tmp_path / "out")
    table = rows(tmp_path / "out" / "miniature.csv")
    assert written[-1].stem == "miniature"
    assert len(table) == 868
    with np.load(tmp_path / "miniature.npz") as file:
        assert [row[PATH].encode() for row in table] == file["train_paths"].tolist()


def test_the_mask_of_a_list_is_what_the_readme_says() -> None:
    listed = json.loads((LISTS / "cifar10-lt-100.json").read_text())
    positions = np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(listed["kept"]), np.uint8)))
    assert positions.tolist() == read_list(LISTS / "cifar10-lt-100.json").positions.tolist()
