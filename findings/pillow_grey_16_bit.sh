#!/usr/bin/env bash
# A good guess: convert("RGB") of a 16-bit picture scales it to 8 bits, grey as well as colour.
# What happens: colour and grey with alpha keep the higher byte of each value; plain grey is cut off at 255, so that nearly all of
#   the picture is white. Nothing is said.
# Versions: Pillow 13.0.0, numpy 2.4.6.
# Why it matters: the usual loaders of image folders call convert("RGB"), and 16-bit grey files are what microscopes, X-rays and
#   converted MNIST or ImageNet pictures come in: a white image trains as well as any other. Here the higher byte is kept.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q pillow==13.0.0 numpy==2.4.6 >&2
env/bin/python - <<'EOF'
import struct
import zlib

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # black to white


def write(path: str, colour_type: int, channels: int) -> None:
    """A 16-bit PNG whose channels all are the ramp."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.repeat(ramp[..., None], channels, 2))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, colour_type, 0, 0, 0)),
                           (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


seen = {}
for name, colour_type, channels in (("grey", 0, 1), ("colour", 2, 3), ("grey with alpha", 4, 2)):
    write("picture.png", colour_type, channels)
    with Image.open("picture.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    seen[name] = (pixels == 255).mean()
    print(f"{name} (mode {image.mode}): mean {pixels.mean():.1f} of 255, white are {100 * seen[name]:.1f} %")
assert seen["grey"] > 0.99
assert seen["colour"] == seen["grey with alpha"] == 1 / 256
print("as described")
EOF
