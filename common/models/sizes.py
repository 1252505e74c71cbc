"""The names and shapes of the small backbones, and what they cost. No torch: a plan reads this."""

# name -> blocks a stage, width of the first stage
BACKBONES: dict[str, tuple[int, int]] = {
    "resnet8": (1, 8),  # for the 8x8 digits of the quick profile
    "resnet20": (3, 16),
    "resnet32": (5, 16),
    "resnet56": (9, 16),
    "resnet110": (18, 16),
}


def multiplications(name: str, side: int, channels: int) -> int:
    """Multiplications of one forward pass of one image through the backbone's convolutions."""
    blocks, width = BACKBONES[name]
    total, c_in, side_now = 9 * channels * width * side**2, width, side
    for stage in range(3):
        c_out = width << stage
        side_now = side_now if stage == 0 else -(-side_now // 2)
        total += 9 * side_now**2 * (c_in * c_out + (2 * blocks - 1) * c_out**2)
        c_in = c_out
    return total
