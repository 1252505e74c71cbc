"""The columns of large sets: for every row the setting, what it needs, how long it takes, and the command that trains it."""

from common.cost import basis, hours
from common.data.large_sets import LARGE
from common.report.protocols import protocol_words
from common.report.results import Results
from common.report.text import markdown_table

TITLE = """# Columns of large sets

Each row is trained by itself, with as many processes as the machine has GPUs; the effective batch is the setting's on any
number of them. Without torchrun the same command is one process.

"""
COMMAND = ".venv/bin/torchrun --standalone --nproc-per-node=gpu --max-restarts=3 -m papers.{paper}.replicate train"


def large_markdown(results: Results) -> str:
    """Every row of the paper's large columns; empty where it has none."""
    paper = results.paper
    columns = [c for c in paper.columns["paper"] if c.name in paper.large]
    if not columns:
        return ""
    speeds, rows = results.speeds, []
    speed = basis(speeds)
    for column in columns:
        for method in paper.rows("paper", column):
            protocol = method.protocol or paper.settings("paper", column)[method.reading]
            command = f"{COMMAND.format(paper=paper.name)} --column {column.name} --method '{method.label}'"
            first = method.first_stage
            rows.append([column.name, method.label, protocol_words(protocol) + (f"; after {first.name}" if first else ""),
                         f"{hours(paper, column, method, speeds):,.2g}", command])
    sets = dict.fromkeys(c.dataset for c in columns)
    needed = "".join(f"- {name}: {LARGE[name].archive}; `.venv/bin/python -m papers prepare {name} --from FOLDER`\n"
                     for name in sets)
    assumed = "" if speeds else ", which is assumed: none has been measured"
    how = (f"GPU-hours of a run, the stages that it starts from included, at {speed.images_per_second:,.0f} images of "
           f"{speed.backbone} a second on {speed.device}{assumed}.\n\n")
    return TITLE + needed + "\n" + how + markdown_table(["column", "method", "setting", "GPU-hours", "command"], rows)
