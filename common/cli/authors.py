"""The commands of authors: `try` judges a loss of one's own, `new` begins a paper's folder. No torch before a command runs."""

import argparse
import keyword
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from string import Template

from rich.console import Console

from common.errors import UserError
from common.paper import Paper
from common.store import write_atomically

TEMPLATE = Path(__file__).parent / "template"
TITLE = re.compile(r'[^"\\\x00-\x1f$`]{1,200}')
CATALOG = re.compile(r"^NAMES = \(([^()]*)\)$", re.MULTILINE)  # in papers/catalog.py
PLACES = {  # file of the template -> where it goes, from the papers' folder
    "replicate.py.txt": "{name}/replicate.py",
    "params.yaml.txt": "{name}/params.yaml",
    "published.csv.txt": "{name}/published.csv",
    "claims.yaml.txt": "{name}/claims.yaml",
    "README.md.txt": "{name}/README.md",
    "results.md.txt": "{name}/results/paper/README.md",
}
TEST = "test.py.txt"


def author_commands(data: Path, work: Path, guests: Path, limit: Callable, console: Console) -> dict[str, Callable]:
    """What the command line calls, by name. limit(options, place): how many runs train side by side."""

    def command_try(papers: Sequence[Paper], options: argparse.Namespace) -> int:
        from common.guests.run import try_loss
        from common.guests.trial import Ground

        ground = Ground(papers[0].folder.parent, guests, data, work)
        return try_loss(papers, options, ground, partial(limit, options), console)

    def command_new(papers: Sequence[Paper], options: argparse.Namespace) -> None:
        root = papers[0].folder.parent
        new_paper(root, options.name, options.title, options.authors)
        say_what_next(options.name, console)

    return {"try": command_try, "new": command_new}


def new_paper(root: Path, name: str, title: str, authors: str) -> Path:
    """Make the folder of a paper from the template, its tests, and its entry in the catalog: all of it, or nothing. root: the
    folder of all papers. Returns the new folder."""
    catalog, test = root / "catalog.py", root.parent / "tests" / "papers" / f"test_{name}.py"
    text = catalog.read_text(encoding="utf-8")
    names = _names(catalog, text)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is not the name of a folder that Python can import: small letters, digits and _, a letter "
                        "first.")
    for what, words in (("--title", title), ("--authors", authors)):
        if not TITLE.fullmatch(words) or not words.strip():
            raise UserError(f"{what} {words!r}: 1 to 200 characters on one line, without quotes, dollars, backticks or "
                            "backslashes.")
    if taken := next((path for path in (root / name, root / f"{name}.py", test) if path.exists()), None):
        raise UserError(f"{taken} exists; choose another name, or remove it.")
    if name in names:
        raise UserError(f"{name} is in {catalog} already; choose another name.")
    words = {"name": name, "row": name.replace("_", "-"), "title": title.strip(), "authors": authors.strip()}
    listed = ", ".join(f'"{one}"' for one in (*names, name))
    _write(root, words, test, catalog, text, CATALOG.sub(f"NAMES = ({listed})", text))
    return root / name


def _names(catalog: Path, text: str) -> list[str]:
    match = CATALOG.search(text)
    if not match:
        raise UserError(f"{catalog} has no line NAMES = (...), which a new paper's name goes into.")
    return re.findall(r'"(\w+)"', match[1])


def _write(root: Path, words: dict[str, str], test: Path, catalog: Path, before: str, after: str) -> None:
    """The folder appears whole, by a renaming; what fails after that takes it away again."""
    with tempfile.TemporaryDirectory(dir=root, prefix=".new-") as made:
        for source, place in PLACES.items():
            write_atomically(Path(made) / place.format(**words), _filled(source, words))
        write_atomically(Path(made) / words["name"] / "__init__.py", b"")
        (Path(made) / words["name"]).rename(root / words["name"])
    try:
        write_atomically(test, _filled(TEST, words))
        write_atomically(catalog, after.encode())
    except BaseException:
        shutil.rmtree(root / words["name"])
        test.unlink(missing_ok=True)
        if catalog.read_text(encoding="utf-8") != before:
            write_atomically(catalog, before.encode())
        raise


def _filled(source: str, words: dict[str, str]) -> bytes:
    return Template((TEMPLATE / source).read_text(encoding="utf-8")).substitute(words).encode()


def say_what_next(name: str, console: Console) -> None:
    """The files, and the commands that work at once."""
    console.print(f"papers/{name}, tests/papers/test_{name}.py and the entry in papers/catalog.py are made. It trains and "
                  f"reports as it is, an example; papers/{name}/README.md says what each file is for. Next:", markup=False)
    for command in (f"make reproduce-{name} PROFILE=quick", f".venv/bin/python -m pytest tests/papers/test_{name}.py",
                    f".venv/bin/python -m papers.{name}.replicate plan --profile paper"):
        console.print(f"  {command}", markup=False)
