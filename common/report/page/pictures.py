"""A paper's figures as data URIs, as many as find room in the page."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from common.paper import Figure, Paper


@dataclass(frozen=True)
class Picture:
    """A figure of a paper: its image as a data URI, or in `instead` why there is none on the page."""

    number: str
    caption: str
    uri: str = ""
    instead: str = ""


def pictures(papers: Sequence[Paper], folder: Path, lines: Mapping[str, Sequence[str]], room: int) -> dict[str, list[Picture]]:
    """Paper name -> its figures, read from `folder`/<paper>/figure-<n>.svg or .png, whichever takes less room.

    lines: paper name -> what `save_figures` says of each, which stands in the place of a figure that is not drawn.
    The smallest go first, until `room` bytes are taken, so that as many as possible are on the page.
    """
    uris = {(paper.name, figure.number): _uri(folder / paper.name, figure) for paper in papers for figure in paper.figures}
    inlined = set()
    for place, uri in sorted(uris.items(), key=lambda item: len(item[1])):
        if uri and len(uri) <= room:
            inlined.add(place)
            room -= len(uri)
    shown: dict[str, list[Picture]] = {paper.name: [] for paper in papers}
    for paper in papers:
        for figure in paper.figures:
            uri = uris[paper.name, figure.number]
            if (paper.name, figure.number) in inlined:
                shown[paper.name].append(Picture(figure.number, figure.caption, uri))
            else:
                why = f"too large for this page; see figures/{paper.name}/figure-{figure.number}.png" if uri else (
                    _why(figure, lines.get(paper.name, ())))
                shown[paper.name].append(Picture(figure.number, figure.caption, instead=why))
    return shown


def _why(figure: Figure, lines: Sequence[str]) -> str:
    begin = f"Figure {figure.number}: "
    return next((line.removeprefix(begin) for line in lines if line.startswith(begin)), "not drawn yet")


def _uri(folder: Path, figure: Figure) -> str:
    """The shorter of the two data URIs; empty where the figure is not drawn. An SVG is text, so it takes no base64."""
    drawn, image = folder / f"figure-{figure.number}.svg", folder / f"figure-{figure.number}.png"
    uris = []
    if drawn.exists():
        uris.append("data:image/svg+xml," + quote(" ".join(drawn.read_text(encoding="utf-8").split()), safe=" /:=,;.()-'!?&*+@$"))
    if image.exists():
        uris.append("data:image/png;base64," + base64.b64encode(image.read_bytes()).decode())
    return min(uris, key=len, default="")
