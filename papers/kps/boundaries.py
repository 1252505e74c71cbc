"""Boundaries between two classes in the plane of a sample's angles to their anchors: what Figures 3.2 to 3.4 draw.

r, m: radius and margin of a class; angles in degrees.
"""

import math
from collections.abc import Callable

DEGREES = tuple(2.0 * i for i in range(91))
AXES = ("angle to anchor 1 (°)", "angle to anchor 2 (°)")


def cosine_boundary(own: float, r_own: float, m_own: float, r_other: float) -> float | None:
    """Eq. (3.6) and its form with radii in section 3.4.2.1: the angle to the other class's anchor at which
    r_own cos(own) - m_own = r_other cos(other), both in degrees; None where there is none."""
    cos = (r_own * math.cos(math.radians(own)) - m_own) / r_other
    return math.degrees(math.acos(cos)) if abs(cos) <= 1 else None


def angle_boundary(own: float, r_own: float, m_own: float, r_other: float) -> float | None:
    """Eq. (3.19): the angle to the other anchor at which r_own own + m_own = r_other other."""
    other = (r_own * own + math.degrees(m_own)) / r_other
    return other if 0 <= other <= 180 else None


def boundary_lines(boundary: Callable, r: tuple[float, float], m: tuple[float, float], name: str = "") -> list[tuple]:
    """The class boundaries of class 1 and class 2 as (label, angles to anchor 1, angles to anchor 2)."""
    first = [(t, boundary(t, r[0], m[0], r[1])) for t in DEGREES]
    second = [(boundary(t, r[1], m[1], r[0]), t) for t in DEGREES]
    lines = []
    for label, points in ((f"{name}class 1 (head)", first), (f"{name}class 2 (tail)", second)):
        inside = [(x, y) for x, y in points if x is not None and y is not None]
        lines.append((label, [x for x, _ in inside], [y for _, y in inside]))
    return lines


DECISION = ("decision boundary", list(DEGREES), list(DEGREES))
ONES = (1.0, 1.0)
