"""Images of any kind as bytes: what Pillow's `convert` gets wrong is put right. No torch."""

from typing import Any

import numpy as np


def eight_bit(image: Any, mode: str) -> np.ndarray:
    """An image that Pillow has opened, as uint8 [height, width, 3] (mode "RGB") or [height, width] ("L").

    Of 16 bits the higher eight are kept, which Pillow itself does for colour; of grey it would make everything from 255 on
    white. Values without a known range (32 bits, or fractions) are a ValueError.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its values have 32 bits (Pillow's mode {image.mode}), and nothing says which of them is white")
    return np.array(image.convert(mode))
