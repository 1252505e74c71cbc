"""The command line over one paper (`python -m papers.<paper>.replicate`) or all of them (`python -m papers`).

Only `train`, `reproduce` and `doctor` import torch; `plan`, `status`, `table` and `figures` work on records alone.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from common.campaign.campaign import Campaign, CampaignPaths, alone, print_rest, run_campaign, select, show_plan
from common.campaign.merging import RecordPlace, merge, pack_records
from common.campaign.priority import needs
from common.campaign.travel import Home, begin_home, bring_in, check_in
from common.checkout import ROOT, check_is_checkout
from common.cli.answers import command_answer
from common.cli.authors import author_commands
from common.cli.console import HOUR, MINUTE, Terminal, pack_observer, print_count, print_status
from common.cli.devices import choose_devices, find_engine, local_engine
from common.cli.doctor import examine
from common.cli.options import parser
from common.cli.prepare import pack_columns, prepare_all, prepare_named
from common.cli.stale import check_reportable, print_stale, print_stale_count, retire
from common.cli.tensorboard import Watch, observer_of
from common.cost import SPEEDS, Costs, clock, speeds
from common.data.large_sets import LARGE
from common.data.sources import prepare
from common.errors import UserError, complain
from common.paper import Paper
from common.pipeline.plans import follow, write_summary
from common.pipeline.stages import command_pipeline
from common.plan import Run, all_planned, has_data, missing_runs, plan, plan_all, resolve_profile, with_data
from common.publish.export import export
from common.report.results import Results, read_results, results_of
from common.report.scores import write_scores
from common.spec import ProfileName
from common.stopping import signal_code, to_its_end
from common.store import accept, files_by_key, load_records, record_files, thin_records
from common.train.packing import LARGEST, Limit, cpu_limit, form_packs, memory_limit

DATA, WORK, GUESTS = ROOT / "data", ROOT / ".work", ROOT / "guests"
RESULTS = ROOT / "benchmarks" / "results"
MOST_SEEDS = 100  # of a run that can be merged
LARGE_SAVE = 600.0  # seconds between resume states of a large run, whose files are large

RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))  # torchrun's

console = Terminal(highlight=False, soft_wrap=True, quiet=RANK > 0)


def main(*papers: Paper, broken: Sequence[UserError] = ()) -> None:
    """Run one command; a UserError is one sentence on standard error and exit code 2. SIGTERM and Ctrl-C end it in seconds,
    with the state of what trains saved, and exit code 143 or 130.

    broken: what is wrong with papers that could not be loaded. It is said first; the command goes on with the others, unless it
    writes about all of them, and ends with exit code 2.
    """
    for error in broken:
        complain(error)
    if broken and not papers:
        sys.exit(2)
    try:
        options = parser(papers, COMMANDS).parse_args()
    except KeyboardInterrupt:
        sys.exit(signal_code())

    def run() -> int:
        check_is_checkout()
        if broken and options.command in OF_ALL:
            raise UserError("This command needs every paper: mend what is named above first; nothing was changed.")
        return options.command(papers, options) or (2 if broken else 0)

    sys.exit(to_its_end(run, patient=options.command in OF_HOURS, quiet=RANK > 0))


def profile_of(papers: Sequence[Paper], options: argparse.Namespace) -> ProfileName:
    named = getattr(options, "column", None) or getattr(options, "columns", ())  # as campaign calls them
    return resolve_profile(papers, options.profile, named, DATA, console)


def planned_runs(papers: Sequence[Paper], options: argparse.Namespace) -> tuple[ProfileName, list[Run]]:
    """The runs of all papers that the options select, each key once."""
    profile = profile_of(papers, options)
    variants = options.command is command_status or getattr(options, "variants", True)
    return profile, plan_all(papers, profile, options.column, options.method, options.seeds, variants)


def papers_root(papers: Sequence[Paper]) -> Path:
    """The folder of all papers: records are looked up under it by key."""
    return papers[0].folder.parent


def command_plan(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    profile, planned = planned_runs(papers, options)
    have = record_files(papers_root(papers))
    missing = missing_runs(planned, have)
    table = Table("column", "runs", "have a record", "to train", "settings")
    for name in dict.fromkeys(m.spec.column.name for m in planned):
        of = [m for m in planned if m.spec.column.name == name]
        settings = dict.fromkeys(f"{p.epochs} epochs, batch {p.batch_size}" for p in (m.spec.protocol for m in of))
        table.add_row(name, str(len(of)), str(sum(m.identity in have for m in of)),
                      str(sum(m.spec.column.name == name for m in missing)), "; ".join(settings))
    console.print(table)
    extra = len(missing) - sum(m.identity not in have for m in planned)
    first = f" ({extra} of them pre-training that others start from)" if extra else ""
    console.print(f"{len(missing)} runs of profile {profile} are to be trained{first}. {_expected(papers, missing)}")


def _expected(papers: Sequence[Paper], missing: Sequence[Run]) -> str:
    """How long, on every device that has trained or been measured with such networks; of large sets, where that is said."""
    small = [m for m in missing if m.spec.column.dataset not in LARGE]
    estimates, folders = [], (RESULTS, RESULTS / SPEEDS, WORK / "probes")
    known = speeds(thin_records(papers_root(papers), WORK / "records.json"), *folders) if small else {}
    for place, speed in sorted(known.items()):
        limit = (lambda item: LARGEST) if speed.compiled else cpu_limit
        seconds, unknown = needs(small, lambda runs, limit=limit: form_packs(runs, limit), Costs(speed))
        if unknown < len(small):
            rest = f" for {len(small) - unknown} of them, the others unknown" if unknown else ""
            estimates.append(f"{clock(seconds)} on {place}{rest}")
    sentences = [f"Expected: {'; '.join(estimates)}."] if estimates else [
        "No device has trained such networks here yet, so the time is unknown."] if small else []
    if large := len(missing) - len(small):
        sentences.append(f"{large} of them are of large sets, whose GPU-hours `table` writes into tables/<profile>/large.md.")
    return " ".join(sentences)


def command_train(papers: Sequence[Paper], options: argparse.Namespace) -> int:
    _, planned = planned_runs(papers, options)
    code = train_runs(papers, planned, options)
    if options.summary and code == 0 and RANK == 0:
        planned[0].folder.mkdir(parents=True, exist_ok=True)  # an output of DVC, even where another paper has all the records
        write_summary(options.summary, planned)
    return code


def train_runs(papers: Sequence[Paper], planned: Sequence[Run], options: argparse.Namespace) -> int:
    """Train what is missing. Returns 0, or 3 when the minutes ran out first."""
    from common.train.state import Workspace
    from common.train.work import drop_states, train

    observer = observer_of(options.tensorboard if RANK == 0 else None, WORK / "log.jsonl", planned, pack_observer())
    if large := [m for m in planned if m.spec.column.dataset in LARGE]:
        if len(large) < len(planned):
            raise UserError(f"{large[0].spec.column.dataset} is trained by itself, under torchrun; name its columns alone.")
        if getattr(options, "retrain", False):
            raise UserError(f"--retrain is for small sets; to train {large[0].label} again, move its record out of "
                            f"{large[0].folder}.")
        return train_large_runs(large, options, observer)
    if WORLD > 1:
        raise UserError("torchrun is for ImageNet, ImageNet-LT, iNaturalist 2018 and Places-LT; several GPUs train the "
                        "small sets by `make campaign`.")
    root = papers_root(papers)
    check_reportable(papers)
    again = getattr(options, "retrain", False)
    if again or (missing := missing_runs(planned, record_files(root))):
        if getattr(options, "prepare", False):
            prepare_all(sorted({m.spec.column.dataset for m in (planned if again else missing)}), DATA, console)
        planned = with_data(planned, DATA, console, named=bool(options.column))
    if again:
        console.print(f"{retire(planned, root, WORK)} records are set aside in .work/retired; their runs are trained again.")
    missing = missing_runs(planned, record_files(root))
    if not missing:
        drop_states(Workspace(WORK, None), record_files(root), missing)  # which a kill after the last record left
        console.print(f"All {len(planned)} runs have their records: nothing to train.")
        return 0
    devices = choose_devices(options)
    engine, place = local_engine(devices[:1] if devices[0].cuda else devices, DATA)
    most = max(map(limit := most_side_by_side(options, place), missing))
    at_a_time = f" in each of {engine.places} processes" if engine.places > 1 else ""
    console.print(f"Training {len(missing)} runs on {devices[0].name} in {place['precision']}, at most {most} side by side"
                  f"{at_a_time}.")
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    work = Workspace(WORK, options.save_every, deadline)
    try:
        done = train(planned, root=root, work=work, engine=engine, limit=limit, observer=observer)
    finally:
        engine.close()
    if not done:
        console.print("The minutes are over; the same command goes on from here.")
    return 0 if done else 3


def train_large_runs(planned: Sequence[Run], options: argparse.Namespace, observer: Watch) -> int:
    """The columns of large sets, one run after another, on all processes of torchrun; the first of them alone speaks."""
    from common.train.state import Workspace
    from common.train.torchrun import LargeOptions, train_large

    if not missing_runs(planned, record_files(planned[0].root)):
        console.print(f"All {len(planned)} runs have their records: nothing to train.")
    workers = options.workers or max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    large_options = LargeOptions(options.device, options.precision, options.compile, options.per_device, workers)
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    done = train_large(planned, DATA, Workspace(WORK, options.save_every or LARGE_SAVE, deadline), large_options, observer)
    if not done:
        console.print("The minutes are over; the same command goes on from here.")
        options.summary = None
    return 0 if done or WORLD > 1 else 3  # to torchrun, 3 would be a process to start again


def most_side_by_side(options: argparse.Namespace, place: Mapping[str, Any]) -> Limit:
    """How many runs of a kind a pack may have: as --pack says, else what the device's memory holds."""
    def limit(item: Run) -> int:
        return options.pack or (memory_limit(item, place["precision"], place["memory"]) if place["memory"] else cpu_limit(item))

    return limit


def command_status(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    if not options.column:
        options.profile = options.profile or "paper"  # as `table` and `report`: what is there, whatever this machine could train
    profile, planned = planned_runs(papers, options)  # refuses a column or method that no paper has
    if options.stale:
        return print_stale(console, planned, papers_root(papers))
    have = set(record_files(papers_root(papers)))
    for paper in papers:
        try:
            mine = plan(paper, profile, columns=tuple(options.column), methods=tuple(options.method), seeds=options.seeds)
        except UserError:
            continue  # the selection is another paper's
        show = print_status if options.all or options.variants else print_count
        show(console, f"{paper.name}, profile {profile}", mine, have, options.variants)
        print_stale_count(console, mine, papers_root(papers))


def command_accept(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    path = accept(papers_root(papers), options.old, options.new, options.because)
    console.print(_relative(f"Records of {options.old} count for {options.new} too: {path}"))


def command_table(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    for results in read_results(papers, options.profile):
        show_paper(results, options.all)


def show_paper(results: Results, is_whole: bool, figures: Sequence[str] = ()) -> None:
    """Write the tables of a paper; print a line on it, or before that its tables and claims and a line a figure."""
    from common.report.readme import paper_line
    from common.report.tables import print_table, write_tables

    folder = write_tables(results, results.paper.folder / "tables" / results.profile)[0].parent
    write_scores(results)
    if is_whole:
        print_table(results, console)
    for line in (*(figures if is_whole else ()), f"{paper_line(results, figures)}; every cell in {folder}"):
        console.print(_relative(line), markup=False)


def command_figures(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    from common.report.figures import save_figures

    for one in results_of(papers, load_records(papers_root(papers)), profile_of(papers, options)):
        folder = one.paper.folder / "figures" / one.profile
        folder.mkdir(parents=True, exist_ok=True)  # an output of DVC, even where nothing can be drawn yet
        for line in save_figures(one, folder):
            console.print(_relative(line), markup=False)  # labels of rows have brackets


def command_report(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    """READMEs and figures/ hold the published protocol only: what is committed must not depend on who ran the quick profile."""
    from common.guests.view import guest_views
    from common.report.clean import second_of
    from common.report.figures import save_figures
    from common.report.index import write_index
    from common.report.page.page import build_page
    from common.report.readme import fill, front_table, results_block
    from common.report.waterfall import waterfall_block

    results, sentences = read_results(papers, "paper"), {}
    for one in results:
        name = one.paper.name
        sentences[name] = save_figures(one, ROOT / "figures" / name)
        show_paper(one.under(options.profile), options.all, sentences[name])
        fill(one.paper.folder / "README.md", "results", results_block(one))
        if path := waterfall_block(one):
            fill(one.paper.folder / "README.md", "text-to-code", path)
        write_scores(one)
        console.print(follow(one.paper))
    if len(papers) > 1:  # what is about all papers
        fill(ROOT / "README.md", "front", front_table(results))
        index = write_index(results, ROOT / "results")
        console.print(_relative(f"Every run, machine-readable: {index}"))
        second, page = second_of(papers_root(papers), DATA), ROOT / "report" / "index.html"
        console.print(_relative(build_page(results, ROOT / "figures", sentences, page, second, guest_views(GUESTS))))
    console.print("README.md and the papers' README.md are up to date with the records.")


def command_reproduce(papers: Sequence[Paper], options: argparse.Namespace) -> int:
    begun = time.monotonic()
    options.profile, planned = planned_runs(papers, options)
    prepare_all(sorted({m.spec.column.dataset for m in planned}), DATA, console)
    if code := train_runs(papers, planned, options):
        return code
    command_figures(papers, options)
    for results in read_results(papers, options.profile):
        show_paper(results, is_whole=True)
    console.print(f"\nDone in {clock(time.monotonic() - begun)}.")
    if options.profile == "quick":
        name = papers[0].name if len(papers) == 1 else "PAPER"
        console.print(
            "These runs are on scikit-learn's digits: they show that every method trains, not what the paper claims.\n"
            f"The real thing: make data-cifar10 data-cifar100 FROM=FOLDER && make reproduce-{name} PROFILE=paper\n"
            f"What that would train: .venv/bin/python -m papers.{name}.replicate plan --profile paper")
    return 0


def command_campaign(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    begun, seconds = time.monotonic(), 60 * options.minutes if options.minutes else float("inf")
    profile = profile_of(papers, options)
    check_reportable(papers)
    if profile == "quick" and not has_data("digits", DATA):
        prepare("digits", DATA, None)
    selection = select(papers, profile, options.only, options.columns, options.seeds, DATA, console)
    engine, where = find_engine(options, papers_root(papers), DATA)
    paths = CampaignPaths(papers_root(papers), WORK, RESULTS, most_side_by_side(options, where))
    try:
        campaign = Campaign(paths, selection, where, console, begun + seconds)
        time_left = "no limit of time" if seconds == float("inf") else clock(seconds)
        console.print(f"Campaign, profile {profile}: {campaign.lacking(selection.runs)} of {len(selection.runs)} runs are "
                      f"missing; {time_left} on {engine.places} × {where['device']} in {where['precision']}.")
        show_plan(campaign, engine.places)
        if options.dry_run:
            print_rest(campaign)
        else:
            behind = profile == "paper" and not where["memory"]
            every, save_seconds = stay_behind(options) if behind else (MINUTE, options.save_every)
            watch = observer_of(options.tensorboard, WORK / "log.jsonl", selection.runs, pack_observer(
                every, lambda: f"; {campaign.lacking(selection.runs)} of {len(selection.runs)} runs are missing"))
            with alone(WORK):
                home = begin_home(options.out, selection.runs, paths.root, WORK, options.out_limit, options.weights_of
                                  ) if options.out else None
                run_campaign(campaign, engine, watch, save_seconds, partial(bring_home, home))
    finally:
        engine.close()


def stay_behind(options: argparse.Namespace) -> tuple[float, float]:
    """The published protocol takes a CPU days, beside other work: from here on at the lowest priority, with a line an hour, and
    every epoch is saved. Returns the seconds between lines and between saved states."""
    os.nice(19)
    return HOUR, options.save_every or 0.0


def bring_home(home: Home | None) -> None:
    """Write what is finished; what does not fit is said."""
    if home and (left_out := home.write()):
        console.print(f"[yellow]Not in {home.target}[/]: {len(left_out)} files, first {left_out[0]}: --out-limit is too small.")


def command_merge(papers: Sequence[Paper], options: argparse.Namespace) -> int:
    root = papers_root(papers)

    def places(seeds: int) -> dict[str, RecordPlace]:
        """Of a run that papers share, the first one's place."""
        by_key: dict[str, RecordPlace] = {}
        for item in all_planned(papers, min(seeds, MOST_SEEDS)):
            by_key.setdefault(item.spec.key, RecordPlace(item.folder, item.digest))
        return by_key

    @cache
    def folders() -> dict[str, Path]:
        return {key: place.folder for key, place in places(MOST_SEEDS).items()}

    for source in options.sources:  # before the first record is written
        check_in(source, folders)
    merged, counts = merge(options.sources, places, root), Counter()
    for source in options.sources:
        counts.update(bring_in(source, folders, root, WORK / "resume", RESULTS / SPEEDS))
    more = [f"{counts[kind]} new files of {kind}" for kind in ("weights", "states") if counts[kind]]
    console.print(f"Merged {merged.new} new records; {merged.known} were here already"
                  + (f", {merged.replaced} took the place of stale ones" if merged.replaced else "")
                  + ". `table --profile paper` shows them." + (f" And {', '.join(more)}." if more else ""))
    for sentence in merged.refused:
        console.print(f"[red]Left out[/]: {escape(sentence)}")
    thin_records(root, WORK / "records.json")  # so that the next estimate need not read them
    return 2 if merged.refused else 0


def command_pack_records(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    if options.profile or options.column or options.method or options.seeds:
        _, selected = planned_runs(papers, options)
        planned = [link for item in selected for link in item.chain]
    else:
        more = not {m.spec.key for m in all_planned(papers)}.issuperset(files_by_key(papers_root(papers)))  # of further seeds
        planned = list(all_planned(papers, MOST_SEEDS if more else None))
    packed, left_out = pack_records(planned, papers_root(papers), options.target)
    console.print(f"{packed} records in {options.target}.")
    for sentence in left_out:
        console.print(f"[yellow]Left out[/]: {escape(sentence)}")


def command_export(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    _, planned = planned_runs(papers, options)
    export(planned, options.to, DATA, options.parts or ("models", "lists", "crate"), partial(console.print, markup=False))


def command_prepare(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    prepare_named(options, DATA, console)


def command_pack_data(papers: Sequence[Paper], options: argparse.Namespace) -> None:
    pack_columns(papers, options, DATA, console)


def command_doctor(papers: Sequence[Paper], options: argparse.Namespace) -> int:
    return examine(console, DATA, sorted({c.dataset for p in papers for columns in p.columns.values() for c in columns}))


def _relative(text: str) -> str:
    return text.replace(f"{ROOT}/", "")


COMMANDS = {
    "plan": command_plan,
    "train": command_train,
    "status": command_status,
    "accept": command_accept,
    "table": command_table, "figures": command_figures, "report": command_report,
    "reproduce": command_reproduce,
    "campaign": command_campaign,
    **author_commands(DATA, WORK, GUESTS, most_side_by_side, console),
    "pipeline": command_pipeline, "merge": command_merge, "pack-records": command_pack_records,
    "export": command_export,
    "answer": partial(command_answer, data=DATA, console=console),
    "prepare": command_prepare,
    "pack-data": command_pack_data,
    "doctor": command_doctor,
}
OF_HOURS = (command_train, command_reproduce, command_campaign)  # which save where they are before they end
OF_ALL = (command_report, command_merge, command_pipeline)  # without a paper they would drop its rows, and refuse its records
