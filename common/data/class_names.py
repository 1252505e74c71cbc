"""What the classes of a dataset are called, without its images. No torch."""

from pathlib import Path

import numpy as np

from common.data.large_sets import LARGE
from common.data.sets import SETS

TURNS = ("0", "90", "180", "270")  # the labels of the pretext task: degrees, counter-clockwise
DIGITS = tuple("0123456789")
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar
cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl
hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
NAMES: dict[str, tuple[str, ...]] = {
    "cifar10": tuple(CIFAR10.split()),
    "cifar100": tuple(CIFAR100.split()),
    "mnist": DIGITS,
    "digits": DIGITS,
}


def class_names(dataset: str, folder: Path) -> tuple[str, ...]:
    """The name of every class in the order of the labels: of the small sets above, or from `<folder>/<dataset>.npz` where that
    is prepared, else the number of each."""
    path = folder / f"{dataset}.npz"
    if dataset not in NAMES and path.is_file():
        with np.load(path, allow_pickle=False) as file:
            if "classes" in file.files:
                return tuple(map(str, file["classes"]))
    return NAMES.get(dataset) or tuple(map(str, range((SETS.get(dataset) or LARGE[dataset]).classes)))
