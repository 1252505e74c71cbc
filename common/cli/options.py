"""The commands and their options, as argparse has them."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.paper import Paper


def parser(papers: Sequence[Paper], actions: Mapping[str, Callable]) -> argparse.ArgumentParser:
    """Every command with its options; `--help` of each shows them. actions: what each command calls, by its name."""
    what = papers[0].title if len(papers) == 1 else "all papers: " + ", ".join(p.name for p in papers)
    top = argparse.ArgumentParser(description=f"Replication of {what}.", epilog="See the README for the whole story.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    selection, profile, published = _selection(_profile()), _profile(), _profile("paper", "paper")
    _add_variants(_add(commands, "plan", actions, "what would be trained, how many runs, and for how long", selection))
    training = _add(commands, "train", actions, "train every run that has no record; goes on where it stopped", selection)
    _add_variants(training)
    _add_training(training)
    training.add_argument("--retrain", action="store_true", help="train the selected runs again, whatever is there; the old "
                          "records are kept in .work/retired")
    training.add_argument("--prepare", action="store_true", help="where a run is missing, prepare its dataset first")
    training.add_argument("--summary", type=Path, metavar="FILE", help="also write a CSV of the selected runs and their results")
    state = _add(commands, "status", actions, "how many runs of each paper have a record",
                 _selection(_profile(otherwise="that of a named column, else paper")))
    _add_all(state, "the seeds of every method and column")
    state.add_argument("--variants", action="store_true", help="as --all, and also the points of grids and the switches")
    state.add_argument("--stale", action="store_true", help="the records that other code than today's made, with the digests for "
                       "`accept`")
    same = _add(commands, "accept", actions, "let records of one digest count for another, where a change alters no number")
    same.add_argument("old", metavar="OLD", help="digest of the records, 16 hexadecimal digits (`status --stale`)")
    same.add_argument("new", metavar="NEW", help="digest of today's code")
    same.add_argument("--because", required=True, metavar="REASON", help="why both compute the same numbers, for the readers")
    tables = _add(commands, "table", actions, "write the tables and claims beside the published numbers", published)
    _add_all(tables, "the tables and claims")
    _add(commands, "figures", actions, "draw the figures from records", profile)
    report = _add(commands, "report", actions, "write report/index.html, tables, figures/, results/index.json and the "
                  "READMEs' tables", published)
    _add_all(report, "the tables and claims, and of every figure what was written or is missing")
    whole = _add(commands, "reproduce", actions, "prepare data, train, draw, write tables: what make reproduce-PAPER calls",
                 selection)
    _add_variants(whole)
    _add_training(whole)
    following = _add(commands, "pipeline", actions, "write dvc.yaml from the papers, and dvc.lock from the records that are here")
    following.add_argument("--plans", action="store_true", help="write the plans of all columns only, which DVC's stages follow")
    _add_campaign(_add(commands, "campaign", actions, "train what is worth most and fits the time, over all papers", profile))
    _add_trial(_add(commands, "try", actions, "judge a loss of your own beside the papers' methods; executes its file"))
    fresh = _add(commands, "new", actions, "begin the folder of another paper: it trains and reports at once, as an example")
    fresh.add_argument("name", metavar="NAME", help="of the folder: small letters, digits and _, for example my_paper")
    fresh.add_argument("--title", required=True, help="of the paper")
    fresh.add_argument("--authors", default="the authors", help="of the paper, as it is cited")
    incoming = _add(commands, "merge", actions, "bring in records made on another machine")
    incoming.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="tars of pack-records or of campaign --out, "
                          "folders, or single records")
    outgoing = _add(commands, "pack-records", actions, "put all records, or the selected, into one tar", selection)
    outgoing.add_argument("target", type=Path, help="the tar to write, for example records.tar")
    exporting = _add(commands, "export", actions, "write weights with model cards, index lists (Croissant), an RO-Crate",
                     selection)
    exporting.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder for each run goes in here, croissant/ "
                           "with the index lists, and ro-crate-metadata.json")
    exporting.add_argument("--part", dest="parts", action="append", choices=("models", "lists", "crate"), help="only this part "
                           "(repeatable)")
    asked = _add(commands, "answer", actions, "let finished runs answer a further test set, such as CIFAR-10.1", selection)
    asked.add_argument("name", help="a test set that `prepare second-tests` has read, for example cifar10.1_v6")
    asked.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where it is)")
    sets = _add(commands, "prepare", actions, "make data/<name>.npz from a folder, an archive or a download")
    sets.add_argument("names", nargs="+", help="cifar10, cifar100, mnist, tiny-imagenet or digits; imagenet, imagenet-lt, "
                      "inaturalist2018, places-lt or miniature; second-tests for what others publish about test sets")
    sets.add_argument("--from", dest="source", type=Path, help="an .npz or a file of pack-data, the official archive or its "
                      "folder, or class folders of PNGs (or set LONGTAIL_DATA); without it the official archive is downloaded")
    sets.add_argument("--check-images", action="store_true", help="of a large set: decode every image, too")
    parcel = _add(commands, "pack-data", actions, "put the images that some columns keep into one small file, for prepare --from")
    parcel.add_argument("name", help="cifar10, cifar100, mnist, tiny-imagenet or digits, which must be prepared here")
    parcel.add_argument("--imbalance", type=_names, default=(), metavar="K,L", help="only columns of these kinds: lt, step, "
                        "counts or none (default: all that a paper trains on)")
    parcel.add_argument("--columns", type=_names, default=(), metavar="C,D", help="only these, for example cifar10-lt-100")
    parcel.add_argument("--to", type=Path, required=True, metavar="FILE", help="the file to write, for example cifar10-lt.npz")
    _add(commands, "doctor", actions, "environment, device, data and disk: what is wrong and how to mend it")
    return top


def _profile(default: str | None = None, otherwise: str = "that of a named column, else paper where there are a GPU and the data"
             ) -> argparse.ArgumentParser:
    """otherwise: what is meant where no profile is asked for, in words."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--profile", choices=("quick", "paper"), default=default,
                        help="quick: scikit-learn's digits, minutes on two CPU cores; paper: the published protocol (default: "
                        f"{otherwise})")
    return shared


def _add_all(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--all", action="store_true", help=f"print {what}, not only a line a paper")


def _add_variants(command: argparse.ArgumentParser) -> None:
    command.add_argument("--variants", action="store_true", help="with --method: also the method's other settings and switches, "
                         "not only its plain rows")


def _selection(profile: argparse.ArgumentParser) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, parents=[profile])
    shared.add_argument("--column", action="append", default=[], metavar="NAME", help="only this column, for example "
                        "cifar10-lt-100 (repeatable)")
    shared.add_argument("--method", action="append", default=[], metavar="NAME", help="only this method: ldam-drw, "
                        "written and released, or one of them as in ldam-drw@released (repeatable)")
    shared.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N - 1 (default: as params.yaml says)")
    return shared


def _add_training(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where it is); campaign also takes several, as in "
                         "cuda:0,cuda:1, and by default all GPUs")
    command.add_argument("--processes", type=_positive, metavar="N", help="trainings at a time on a CPU, each on a thread of its "
                         "own (default: as many as there are cores; small sets only)")
    command.add_argument("--precision", choices=("bfloat16", "float32", "float64"),
                         help="default: bfloat16 on CUDA, float32 on CPU")
    command.add_argument("--no-compile", dest="compile", action="store_false", default=None, help="do not compile on CUDA")
    command.add_argument("--no-graph", dest="graph", action="store_false", help="do not capture a step as a CUDA graph")
    command.add_argument("--pack", type=_positive, metavar="M", help="at most M runs side by side (the same sums, in "
                         "another order)")
    command.add_argument("--minutes", type=_duration, metavar="T",
                         help="pause after T minutes (exit code 3, under torchrun 0); the same command goes on")
    command.add_argument("--per-device", type=_positive, metavar="N", help="large sets: at most N images at once on a device; a "
                         "larger share of a batch is taken in several passes")
    command.add_argument("--workers", type=_positive, metavar="N", help="large sets: processes that decode images, for each "
                         "device (default: its share of the cores, at most 8)")
    command.add_argument("--tensorboard", type=Path, metavar="DIR", help="also write loss and accuracy of every epoch for "
                         "TensorBoard: what the log of this machine has of the selected runs, and then each new epoch")
    command.add_argument("--save-every", type=_duration, metavar="S",
                         help="seconds between resume states (default: 30, on CUDA 300; 600 for large sets)")


def _add_campaign(command: argparse.ArgumentParser) -> None:
    command.add_argument("--only", type=_names, default=(), metavar="P,Q", help="these papers only")
    command.add_argument("--columns", type=_names, default=(), metavar="C,D", help="these columns only")
    command.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N - 1 (default: as each params.yaml says)")
    command.add_argument("--dry-run", action="store_true", help="show the plan; train nothing")
    command.add_argument("--out", type=Path, metavar="TAR", help="after every pack, put what is finished into this file (and "
                         "TAR-2, TAR-3, ... where it is too much for one); merge brings it in")
    command.add_argument("--out-limit", type=_duration, default=16.0, metavar="MIB", help="the most of one such file (default: "
                         "16; at most 8 files)")
    command.add_argument("--weights-of", choices=("first-stages", "all", "none"), default="first-stages", help="which weights go "
                         "into --out: those that a run still to be trained starts from (default), of all finished runs, or none")
    command.add_argument("--ray", metavar="ADDRESS", help="use the machines of this Ray cluster (auto: the one that runs here)")
    _add_training(command)


def _add_trial(command: argparse.ArgumentParser) -> None:
    command.add_argument("loss", type=Path, nargs="?", metavar="FILE", help="Python: loss(outputs, labels, "
                         "context) and METHODS = [Method(...)]; it is executed, with all your rights")
    command.add_argument("--column", metavar="NAME", help="where, as in cifar10-lt-100 (default: that of the quick profile)")
    command.add_argument("--protocol", action="append", default=[], metavar="PAPER", help="only under this paper's setting, or "
                         "PAPER@READING (repeatable; default: all that the papers have there)")
    command.add_argument("--seeds", type=_positive, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    command.add_argument("--confirm", type=Path, metavar="CARD", help="in place of FILE: run again what a card says, and compare")
    command.add_argument("--trust", action="store_true", help="with --confirm: execute the code that the card carries")
    _add_training(command)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _add(commands, name: str, actions: Mapping[str, Callable], text: str, *parents) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=list(parents))
    command.set_defaults(command=actions[name])
    return command


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
