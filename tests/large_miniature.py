"""Miniatures of the large sets, with the official names of lists and folders: JPEG files of varied size, 30 classes.

`write(folder, name)` writes the images and the lists of "imagenet-lt", "places-lt" or "inaturalist2018", or the class
folders of the whole "imagenet", and returns the facts to put into `LARGE` in the place of the real set's.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.large_sets import LARGE, LargeSet, Split
from common.data.miniature import class_sizes, draw_image

CLASSES, LARGEST, SMALLEST, TEST = 30, 24, 2, 2
WHOLE = 26  # training images of every class of the whole "imagenet" but the last, which has one fewer
SIDE = 32


def facts(name: str) -> LargeSet:
    """What `LARGE[name]` says, in small."""
    real = LARGE[name]
    small = replace(real, classes=CLASSES, side=SIDE, train=Split(real.train.file, 0, LARGEST, SMALLEST),
                    test=Split(real.test.file, CLASSES * TEST, TEST, TEST))
    sizes = sizes_of(small)
    return replace(small, train=Split(real.train.file, int(sizes.sum()), int(sizes.max()), int(sizes.min())))


def sizes_of(small: LargeSet) -> np.ndarray:
    """Training images of each class."""
    if small.name == "imagenet":
        return np.full(CLASSES, WHOLE) - (np.arange(CLASSES) == CLASSES - 1)
    return class_sizes(small)


def file_name(name: str, part: str, label: int, number: int) -> str:
    """A path as the official list of the set has it; part: "train" or "val"."""
    if name == "inaturalist2018":
        code = hashlib.md5(f"{part}/{label}/{number}".encode()).hexdigest()
        return f"train_val2018/{('Plantae', 'Insecta')[label % 2]}/{label}/{code}.jpg"
    if name == "places-lt":
        place = f"place_{label:02d}" + ("-outdoor" if label % 3 == 0 else "")
        return f"{part}/{place}/" + (f"{number:08d}.jpg" if part == "train" else f"Places365_val_{label * TEST + number:08d}.jpg")
    wnid = f"n{1440764 + 977 * label:08d}"
    file = f"{wnid}_{number}" if part == "train" else f"ILSVRC2012_val_{label * TEST + number + 1:08d}"
    return f"{part}/{wnid}/{file}.JPEG"


def write(folder: Path, name: str) -> LargeSet:
    """Write the miniature of `name` into `folder`; the lists' lines are in no order."""
    small, generator = facts(name), np.random.default_rng(1)
    for split, part, sizes in ((small.train, "train", sizes_of(small)), (small.test, "val", [TEST] * CLASSES)):
        lines = []
        for label in range(CLASSES):
            for number in range(sizes[label]):
                path = file_name(name, part, label, number)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                pixels = draw_image(label, number + (1000 if part == "val" else 0), CLASSES)
                Image.fromarray(pixels).save(folder / path, quality=90)
                lines.append(f"{path} {label}\n")
        if name != "imagenet":
            (folder / split.file).write_text("".join(generator.permutation(lines).tolist()))
    return small


def written(factory, name: str) -> Path:
    """The folder of the miniature of `name`, written once a session (`factory`: pytest's); change only a copy of it."""
    root = factory.getbasetemp() / f"large-{name}"
    if not root.exists():
        write(root, name)
    return root
