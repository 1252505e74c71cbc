"""The large sets: what is known of each, without its images. No torch.

ImageNet-LT is a Pareto truncation of ImageNet 2012 and Places-LT one of Places-365 (Liu et al., 2019); iNaturalist 2018 is
long-tailed by nature. Their lists are those of facebookresearch/classifier-balancing.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from common.errors import UserError

Crop = Literal["random-resized", "resize-crop"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


SOURCES = ("archive", "folders", "pareto", "whole", "annotations")  # fields of LargeSet that say where a set comes from

# Folder of Places365-Standard -> the archive that it is in. Those of 256 pixels come in two forms; the lists fit the first.
PLACES_ARCHIVES = {
    "train": "places365standard_easyformat.tar", "val": "places365standard_easyformat.tar",
    "data_256": "train_256_places365standard.tar", "val_256": "val_256.tar",
    "data_large": "train_large_places365standard.tar", "val_large": "val_large.tar",
}


@dataclass(frozen=True)
class Split:
    """One half of a set. file: name of the official list ("path label" a line), "" where only class folders say it.

    images: of the split; largest, smallest: images of its largest and smallest class. digest: `lists.list_digest` of the
    official list, "" where that list could not be read for this table and its counts have to do.
    """

    file: str
    images: int
    largest: int
    smallest: int
    digest: str = ""


@dataclass(frozen=True)
class LargeSet:
    """A set of image files.

    mean, std: per channel, as fractions of 255. archive: what a user has to bring, after "needs". folders: whether
    train/<class>/ and val/<class>/ can stand in for a list that is missing; pareto: the power of the rule by which a
    long-tailed training split is then drawn from them (0: the folders are the split), whole: the set that they then have to
    hold. annotations: names of the JSON files of train and test that say the same as the lists.
    side: pixels of the square that the network sees. crop: of training images, a random part of the image (8 to 100 % of
    its area) resized, or a random square of the image whose shorter side was resized to `resize`; both are mirrored at
    random. jitter: the most by which brightness, contrast and saturation change (0: not at all).
    """

    name: str
    classes: int
    train: Split
    test: Split
    archive: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    folders: bool = False
    pareto: float = 0.0
    whole: str = ""
    annotations: tuple[str, str] | None = None
    side: int = 224
    crop: Crop = "random-resized"
    jitter: float = 0.0

    @property
    def resize(self) -> int:
        """The shorter side before the centre crop: 256 for 224 pixels."""
        return round(self.side * 256 / 224)

    @property
    def digest(self) -> str:
        """Identity of all that is stated here, 16 hexadecimal digits, for the key of a run; known without the images."""
        facts = {name: value for name, value in asdict(self).items() if name not in SOURCES}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


LARGE: dict[str, LargeSet] = {s.name: s for s in (
    LargeSet(
        "imagenet", 1_000, Split("", 1_281_167, 1_300, 732), Split("ImageNet_LT_test.txt", 50_000, 50, 50),
        archive="the images of ImageNet 2012, in train/<wnid>/ and val/<wnid>/", folders=True,
    ),
    LargeSet(
        "imagenet-lt", 1_000, Split("ImageNet_LT_train.txt", 115_846, 1_280, 5), Split("ImageNet_LT_test.txt", 50_000, 50, 50),
        archive="the images of ImageNet 2012, with ImageNet_LT_train.txt and ImageNet_LT_test.txt", folders=True, pareto=6.0,
        whole="imagenet",
    ),
    LargeSet(
        "inaturalist2018", 8_142, Split("iNaturalist18_train.txt", 437_513, 1_000, 2),
        Split("iNaturalist18_val.txt", 24_426, 3, 3, "be02642eb44d1d049cee7b60540d4038bdf15b85fa3049af5d763e9af3939858"),
        archive="the archive train_val2018 of iNaturalist 2018, with iNaturalist18_train.txt and iNaturalist18_val.txt, or "
                "train2018.json and val2018.json",
        annotations=("train2018.json", "val2018.json"),
        mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192),
    ),
    LargeSet(
        "places-lt", 365,
        Split("Places_LT_train.txt", 62_500, 4_980, 5, "185191d9124599ea7aedf8afb3fa27322ff0256fa2c70c955d5a2e7455b58e20"),
        Split("Places_LT_test.txt", 36_500, 100, 100, "cc9f30ac158716ee2825d0f50df6368a819f3282324985c32ed6fdb8db2b7f86"),
        archive="the images of Places365-Standard in places365standard_easyformat.tar, with Places_LT_train.txt and "
                "Places_LT_test.txt",
    ),
    # Drawn by `prepare miniature`, to try the whole path on a machine that has none of the above.
    LargeSet(
        "miniature", 30, Split("miniature_train.txt", 868, 104, 3), Split("miniature_test.txt", 150, 5, 5),
        archive="nothing but `python -m papers prepare miniature`", side=32,
    ),
)}


def find_large(name: str) -> LargeSet:
    """The entry of LARGE; an unknown name is a UserError that lists the known ones."""
    if name not in LARGE:
        raise UserError(f"Unknown large dataset {name!r}; known: {', '.join(LARGE)}.")
    return LARGE[name]
