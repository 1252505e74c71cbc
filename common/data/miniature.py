"""A set of a thousand small JPEG files that anyone can draw: it has the form of a large set and trains on a laptop. No torch.

Classes differ in colour and in the direction of stripes; images differ in size, phase and noise.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from common.data.large_sets import LargeSet
from common.errors import UserError

SMALLEST, LARGEST = 34, 60  # pixels of an image's side


def class_sizes(facts: LargeSet) -> np.ndarray:
    """Training images of each class, int64 [classes]: geometric from largest to smallest, and not in that order."""
    classes, (largest, smallest) = facts.classes, (facts.train.largest, facts.train.smallest)
    sizes = [int(largest * (smallest / largest) ** (i / (classes - 1)) + 1e-9) for i in range(classes)]
    return np.array(sizes)[np.random.default_rng(0).permutation(classes)]


def draw_image(label: int, number: int, classes: int) -> np.ndarray:
    """Image `number` of a class, uint8 [height, width, 3], the same on every machine."""
    generator = np.random.default_rng([label, number])
    height, width = generator.integers(SMALLEST, LARGEST + 1, 2)
    y, x = np.mgrid[:height, :width] / 8
    angle = np.pi * label / classes
    wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y + generator.random()))
    colour = np.array([np.sin(2 * np.pi * (label / classes + k / 3)) for k in range(3)])
    values = 128 + 50 * colour + 40 * wave[..., None] + generator.normal(0, 25, (height, width, 3))
    return values.clip(0, 255).astype(np.uint8)


def make_miniature(folder: Path, facts: LargeSet) -> Path:
    """Write lists and JPEG files of a set of this form into `folder`, in the place of what was there, and return it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / folder.name
            write_images(made, facts)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error.strerror}); make its folder writable, or free some "
                        "space.") from None
    return folder


def write_images(folder: Path, facts: LargeSet) -> None:
    """Write `train/<class>/*.jpg` and `val/<class>/*.jpg`, and the lists that name them."""
    from PIL import Image

    for split, part, sizes in ((facts.train, "train", class_sizes(facts)),
                               (facts.test, "val", np.full(facts.classes, facts.test.largest))):
        lines, first = [], 0 if part == "train" else facts.train.largest
        for label, size in enumerate(sizes.tolist()):
            (folder / part / f"c{label:03d}").mkdir(parents=True)
            for number in range(first, first + size):
                name = f"{part}/c{label:03d}/{number:05d}.jpg"
                Image.fromarray(draw_image(label, number, facts.classes)).save(folder / name, quality=90)
                lines.append(f"{name} {label}\n")
        (folder / split.file).write_text("".join(lines))
