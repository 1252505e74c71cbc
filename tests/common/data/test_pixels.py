"""Images of 16 and 32 bits: the same picture as with 8, or a refusal."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.decoding import read_image
from common.data.forms import _read_png
from common.data.pixels import eight_bit
from common.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
SIDE = 8
BYTES = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 4  # 0 to 252
COLOUR_TYPES = {"L": (0, 1), "RGB": (2, 3), "LA": (4, 2), "RGBA": (6, 4)}


def png(values: np.ndarray, mode: str) -> bytes:
    """A PNG of 16 bits: each channel has these values [side, side], but for an opaque alpha."""
    colour_type, channels = COLOUR_TYPES[mode]
    planes = [np.full_like(values, 65535) if mode.endswith("A") and c == channels - 1 else values for c in range(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.stack(planes, 2))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", COLOUR_TYPES)
@pytest.mark.parametrize("values", [BYTES * 257, BYTES << 8, (BYTES << 8) + 255], ids=["replicated", "shifted", "upper-end"])
def test_sixteen_bits_are_the_picture_of_eight(mode, values, tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(png(values, mode))
    expected = np.repeat(BYTES.astype(np.uint8)[..., None], 3, 2)
    assert np.array_equal(_read_png(path, (SIDE, SIDE, 3)), expected)
    assert np.array_equal(_read_png(path, (SIDE, SIDE, 1)), expected[..., :1])
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_the_order_of_the_bytes_in_a_tiff_does_not_matter(order, tmp_path: Path):
    Image.fromarray((BYTES << 8).astype(order)).save(tmp_path / "image.tiff")
    assert np.array_equal(read_image(tmp_path / "image.tiff")[0].numpy(), BYTES)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_without_a_known_white_are_refused(kind, tmp_path: Path):
    path = tmp_path / "image.tiff"
    Image.fromarray(BYTES.astype(kind)).save(path)
    with pytest.raises(UserError, match=r"image\.tiff is damaged \(its values have 32 bits"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_other_kinds_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(np.repeat(BYTES.astype(np.uint8)[..., None], 3, 2)).convert(mode)
    for wanted in ("RGB", "L"):
        assert np.array_equal(eight_bit(image, wanted), np.asarray(image.convert(wanted)))
