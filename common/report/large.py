"""The columns of large sets: for every row the setting, what it needs, how long it takes, and the command that trains it."""

from collections.abc import Mapping
from typing import Any

from common.data.large_sets import LARGE
from common.estimate import basis, hours, known_speeds
from common.paper import Paper
from common.report.text import markdown_table
from common.spec import LargeProtocol

TITLE = """# Columns of large sets

Each row is trained by itself, with as many processes as the machine has GPUs; the effective batch is the setting's on any
number of them. Without torchrun the same command is one process.

"""
COMMAND = "torchrun --standalone --nproc-per-node=gpu --max-restarts=3 -m papers.{paper}.replicate train"


def large_markdown(paper: Paper, records: Mapping[str, Any]) -> str:
    """Every row of the paper's large columns; empty where it has none."""
    columns = [c for c in paper.columns["paper"] if c.name in paper.large]
    if not columns:
        return ""
    speeds, rows = known_speeds(paper, records), []
    speed = basis(speeds)
    for column in columns:
        for method in paper.rows("paper", column):
            protocol = method.protocol or paper.settings("paper", column)[method.reading]
            command = f"{COMMAND.format(paper=paper.name)} --column {column.name} --method '{method.label}'"
            first = method.starts_from
            rows.append([column.name, method.label, setting_words(protocol) + (f"; after {first.name}" if first else ""),
                         f"{hours(paper, column, method, speeds):,.2g}", command])
    sets = dict.fromkeys(c.dataset for c in columns)
    needed = "".join(f"- {name}: {LARGE[name].archive}; `python -m papers prepare {name} --from FOLDER`\n" for name in sets)
    assumed = "" if speeds else ", which is assumed: none has been measured"
    how = (f"GPU-hours of a run, the stages that it starts from included, at {speed.images_per_second:,.0f} images of "
           f"{speed.backbone} a second on {speed.device}{assumed}.\n\n")
    return TITLE + needed + "\n" + how + markdown_table(["column", "method", "setting", "GPU-hours", "command"], rows)


def setting_words(p: LargeProtocol) -> str:
    """The setting in a few words."""
    rate = f"cosine from {p.rate:g}" if p.schedule == "cosine" else (
        f"{p.rate:g}, times {p.decay_factor:g} at {', '.join(map(str, p.decay_epochs))}")
    trains = {"all": "", "last": ", last block", "head": ", head alone"}[p.trains]
    start = ", from ImageNet weights" if p.pretrained else ""
    return f"{p.epochs} epochs, batch {p.batch_size}, rate {rate}, weight decay {p.weight_decay:g}{trains}{start}"
