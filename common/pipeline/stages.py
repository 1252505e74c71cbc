"""dvc.yaml, made from the papers: at the root the quick profile of all, beside each paper its published protocol. No torch.

A paper's first stage writes the plans of its columns (`common.pipeline.plans`), of which every column's training depends on its
own. So DVC looks at what a change really concerns, and the records decide what is trained.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.data.large_sets import LARGE
from common.paper import Paper
from common.pipeline.plans import TRAIN, follow, followed, path_in_repository, place, train_command, write_plans
from common.spec import ProfileName
from common.store import write_atomically

Stage = dict[str, Any]
FILE = "dvc.yaml"
KEPT = {"persist": True}  # or DVC deletes, before it runs a stage, what that would go on from
IN_GIT = {"cache": False, "persist": True}
QUICK = """\
# The quick profile of every paper: `dvc repro` (with the environment's Python on the PATH, as `make repro` has it).
# The published protocol is papers/<paper>/dvc.yaml. DVC decides whether to look; the records decide whether to train.
# Written by `python -m papers pipeline` from the papers; edit those.
"""
DATA = """\
# The datasets of the published protocols. Without a download, name a source first: LONGTAIL_DATA=FOLDER.
# Written by `python -m papers pipeline` from the papers.
"""
PUBLISHED = """\
# The published protocol, a stage for each column: `dvc repro papers/{name}/dvc.yaml` (GPU-hours; it resumes), or one alone:
# `dvc repro papers/{name}/dvc.yaml:train@{column}`. `dvc status papers/{name}/dvc.yaml` says which columns are made.
# A large column (train-large) takes GPU-days. It is frozen, and without outs, which a frozen stage would have to have, so that
# `dvc repro` leaves it alone: run the command by hand.
# Written by `python -m papers pipeline` from the paper; edit that.
"""


def command_pipeline(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    """Write the plans of all columns; and, unless --plans, every dvc.yaml and the locks of the published protocol."""
    if options.plans:
        for paper in papers:
            for profile in paper.columns:
                write_plans(paper, profile)
        return
    for path, text in pipeline_files(papers).items():
        write_atomically(path, text.encode())
        print(path.relative_to(papers[0].folder.parents[1]).as_posix())
    for paper in papers:
        print(follow(paper))


def pipeline_files(papers: Sequence[Paper]) -> dict[Path, str]:
    """Path -> text of every dvc.yaml that is made from these papers; those that are about all papers from several only."""
    root, files = papers[0].folder.parents[1], {paper.folder / FILE: published_text(paper) for paper in papers}
    sets = DATA + dump({"stages": {"prepare": prepare_stage(papers, "paper")}})
    shared = {root / FILE: quick_text(papers), root / "data" / FILE: sets}
    return shared | files if len(papers) > 1 else files


def quick_text(papers: Sequence[Paper]) -> str:
    stages: dict[str, Stage] = {"prepare": prepare_stage(papers, "quick")}
    for paper in papers:
        columns = small_columns(paper, "quick")
        stages[f"{paper.name}-plan"] = plan_stage(paper)
        stages[f"{paper.name}-train"] = {"foreach": columns, "do": quick_training(paper, columns)}
        stages |= {f"{paper.name}-{kind}": stage for kind, stage in report_stages(paper, "quick").items()}
    shown = [(paper, f"papers/{paper.name}/scores/quick") for paper in papers]
    return QUICK + dump({"stages": stages, "metrics": [f"{folder}/metrics.json" for _, folder in shown],
                         "plots": [plot for paper, folder in shown for plot in plots(f"{paper.name}, quick", folder)]})


def published_text(paper: Paper) -> str:
    columns, large = small_columns(paper, "paper"), [c for c in paper.columns["paper"] if c.name in paper.large]
    plan, summary = (path_in_repository(place(paper, kind, "paper", "${item}"), paper) for kind in ("plans", "summaries"))
    stages: dict[str, Stage] = {TRAIN: {"foreach": columns, "do": {
        "wdir": "../..", "cmd": train_command(paper, "paper", "${item}"), "deps": [plan], "outs": [{summary: IN_GIT}]}}}
    if large:
        stages[f"{TRAIN}-large"] = {"foreach": {c.name: c.dataset for c in large}, "do": {
            "frozen": True, "wdir": "../..",
            "cmd": "torchrun --standalone --nproc-per-node=gpu -m "
                   f"papers.{paper.name}.replicate train --profile paper --column ${{key}}",
            "deps": ["data/${item}.npz", plan.replace("${item}", "${key}")]}}
    stages |= {kind: {"wdir": "../..", **stage} for kind, stage in report_stages(paper, "paper").items()}
    head = PUBLISHED.format(name=paper.name, column=columns[0])
    return head + dump({"stages": stages, "metrics": ["scores/paper/metrics.json"],
                        "plots": plots(paper.name, "scores/paper")})


def prepare_stage(papers: Sequence[Paper], profile: ProfileName) -> Stage:
    """The small datasets of a profile. They depend on no code: `prepare` checks the images against known digests, which are part
    of every run's key, so that a training follows them by its plan."""
    of = {name: {c.dataset for paper in papers for c in paper.columns[name]} - set(LARGE) for name in ("quick", "paper")}
    names = sorted(of["quick"] if profile == "quick" else of["paper"] - of["quick"])  # each is made by one stage
    wdir = {} if profile == "quick" else {"wdir": ".."}
    return {"foreach": names, "do": {**wdir, "cmd": "python -m papers prepare ${item}", "outs": [{"data/${item}.npz": KEPT}]}}


def small_columns(paper: Paper, profile: ProfileName) -> list[str]:
    return [column.name for column in followed(paper, profile) if column.name not in paper.large]


def plan_stage(paper: Paper) -> Stage:
    """Follows all code and every parameter, in a second; what comes after it follows plans."""
    return {
        "desc": "which runs every column needs, with the digest of what each method computes",
        "cmd": f"python -m papers.{paper.name}.replicate pipeline --plans",
        "deps": ["common", *scripts(paper)], "params": parameters(paper),
        "outs": [{f"papers/{paper.name}/plans/quick": KEPT}, {f"papers/{paper.name}/plans/paper": IN_GIT}],
    }


def quick_training(paper: Paper, columns: Sequence[str]) -> Stage:
    datasets = sorted({column.dataset for column in paper.columns["quick"] if column.name in columns})
    plan, summary = (path_in_repository(place(paper, kind, "quick", "${item}"), paper) for kind in ("plans", "summaries"))
    return {
        "desc": "every method of the paper on this column",
        "cmd": train_command(paper, "quick", "${item}"),
        "deps": [*(f"data/{name}.npz" for name in datasets), plan],
        # persist: never from DVC's cache alone, as the records must be there too
        "outs": [{summary: KEPT}, {f"papers/{paper.name}/results/quick/${{item}}": KEPT}],
    }


def report_stages(paper: Paper, profile: ProfileName) -> dict[str, Stage]:
    """Tables and figures, after the trainings of all columns, whose summaries they depend on as a folder."""
    home = f"papers/{paper.name}"
    printed = [f"{home}/published.csv", *([f"{home}/claims.yaml"] if (paper.folder / "claims.yaml").exists() else [])]
    there = [f"{home}/results/paper"] if profile == "quick" else []  # published records stand in its tables too
    deps = [f"{home}/summaries/{profile}", *there, *printed, *scripts(paper), "common/report"]
    command = f"python -m papers.{paper.name}.replicate"
    kept = KEPT if profile == "quick" else IN_GIT
    return {
        "tables": {
            "desc": f"tables {listed([t.number for t in paper.tables])} and the claims, beside the published numbers",
            "cmd": f"{command} table --profile {profile}", "deps": deps, "params": parameters(paper),
            "outs": [f"{home}/tables/{profile}", {f"{home}/scores/{profile}": kept}]},
        "figures": {
            "desc": f"figures {listed([f.number for f in paper.figures])}",
            "cmd": f"{command} figures --profile {profile}", "deps": deps, "params": parameters(paper),
            "outs": [f"{home}/figures/{profile}"]},
    }


def scripts(paper: Paper) -> list[str]:
    return [path_in_repository(path, paper) for path in sorted(paper.folder.glob("*.py")) if path.name != "__init__.py"]


def parameters(paper: Paper) -> list[Mapping[str, None]]:
    """The whole file: `dvc params diff` then shows every number."""
    return [{f"papers/{paper.name}/params.yaml": None}]


def plots(title: str, folder: str) -> list[Mapping[str, Any]]:
    """What `dvc plots show` draws, by the templates in .dvc/plots."""
    return [
        {f"{title}: ours against published": {"template": "agreement", "x": {f"{folder}/agreement.csv": "published"},
                                              "y": {f"{folder}/agreement.csv": "ours"}}},
        {f"{title}: accuracy per class": {"template": "per_class", "x": {f"{folder}/per_class.csv": "class"},
                                          "y": {f"{folder}/per_class.csv": "accuracy"}}},
    ]


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def dump(content: Mapping[str, Any]) -> str:
    return yaml.dump(content, Dumper=_NoAliases, sort_keys=False, width=1000, allow_unicode=True)


class _NoAliases(yaml.SafeDumper):
    """Writes what occurs twice twice, as readers expect it in a file of stages."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_none(self, data: None) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:null", "")


_NoAliases.add_representer(type(None), _NoAliases.represent_none)
