"""The command line as a user meets it: help, dry runs, refusals with exit code 2, the quick profile end to end in small."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = ("plan", "train", "status", "table", "figures", "report", "reproduce", "campaign", "merge", "pack-records",
            "export", "prepare", "pack-data", "pipeline", "doctor", "try", "new")


def run(*arguments: str, cwd: Path = ROOT, module: str = "papers.mm.replicate") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=cwd, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=300)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A copy of the repository without records whose quick profile of the first paper takes seconds: two epochs, one seed."""
    copy = make_small(tmp_path_factory.mktemp("small") / "repo")
    assert run("prepare", "digits", cwd=copy).returncode == 0
    return copy


def make_small(copy: Path) -> Path:
    ignored = shutil.ignore_patterns(".git", ".venv", ".work", "__pycache__", "quick", "tables", "checkpoints",
                                     "tmp", "cache", "dvc_plots")

    def left_out(folder: str, names: list[str]) -> set[str]:
        images = {name for name in names if name.endswith(".npz")} if Path(folder) == ROOT / "data" else set()
        inside = Path(folder).parent.name == "results" and Path(folder).parents[2] == ROOT / "papers"
        records = {name for name in names if (Path(folder) / name).is_dir()} if inside else set()
        return ignored(folder, names) | images | records

    shutil.copytree(ROOT, copy, ignore=left_out)
    params = copy / "papers" / "mm" / "params.yaml"
    head, tail = params.read_text().split("quick:", 1)
    tail = tail.replace("seeds: 2", "seeds: 1").replace("epochs: 30", "epochs: 2", 1).replace("[24, 27]", "[1]")
    params.write_text(head + "quick:" + tail)
    return copy


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 5


def test_a_plan_says_what_would_be_trained(small):
    done = run("plan", "--profile", "paper", "--column", "cifar10-lt-100", cwd=small)
    assert done.returncode == 0
    assert "cifar10-lt-100" in done.stdout
    assert "90 runs of profile paper are to be trained (3 of them pre-training that others start from)" in done.stdout


@pytest.mark.parametrize(("arguments", "said"), [
    (("plan", "--column", "cifar10-lt-7"), "no column 'cifar10-lt-7'"),
    (("plan", "--profile", "quick", "--method", "resnet"), "no method 'resnet'"),
    (("train", "--profile", "quick", "--device", "gpu0"), "'gpu0' is not a device"),
    (("merge", "nowhere.tar"), "nowhere.tar does not exist"),
    (("prepare", "imagenette"), "Unknown dataset 'imagenette'"),
    (("prepare", "cifar10", "--from", "nowhere"), "nowhere does not exist"),
    (("status", "--profile", "quick", "--method", "nope"), "no method 'nope'"),
    (("status", "--column", "nope"), "no column 'nope'"),
    (("merge", "README.md"), "not a whole tar of records"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, said, small):
    refused(run(*arguments, cwd=small), said)


def test_a_record_of_a_large_set_is_not_passed_over_where_it_is_to_be_trained_again(small):
    arguments = ("train", "--profile", "paper", "--column", "imagenet-lt-resnext50", "--retrain")
    refused(run(*arguments, cwd=small, module="papers.two_head.replicate"), "--retrain is for small sets")


def refused(done: subprocess.CompletedProcess, said: str) -> None:
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error:")


@pytest.mark.parametrize(("arguments", "said"), [
    (("plan", "--seeds", "0"), "whole number above 0"),
    (("train", "--minutes", "-1"), "not a number above 0"),
    (("train", "--save-every", "soon"), "not a number above 0"),
    (("table", "--column", "digits-lt-20"), "unrecognized arguments"),
])
def test_a_wrong_option_is_refused(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_missing_data_names_the_command_that_makes_it(small):
    done = run("train", "--profile", "paper", "--column", "cifar10-lt-100", cwd=small)
    assert done.returncode == 2
    assert "make data-cifar10" in done.stderr


def test_the_quick_profile_end_to_end(small):
    """Train, tables, figure; a second time nothing is trained; records go out and come back in."""
    done = run("reproduce", "--profile", "quick", cwd=small)
    assert done.returncode == 0, done.stderr
    assert "Training 51 runs on cpu" in done.stdout
    assert "make reproduce-mm PROFILE=paper" in done.stdout
    tables = small / "papers" / "mm" / "tables" / "quick"
    for number in "123":
        assert (tables / f"table-{number}.md").exists()
    first = (tables / "table-1.md").read_text()
    assert "29.64" in first
    assert "digits-step-20" in first
    assert "no run yet" in first
    figure = small / "papers" / "mm" / "figures" / "quick" / "figure-3.svg"
    assert figure.exists()
    again = run("reproduce", "--profile", "quick", cwd=small)
    assert "nothing to train" in again.stdout
    assert (tables / "table-1.md").read_text() == first
    assert "mm, profile paper: " in run("status", cwd=small).stdout
    assert "mm, profile quick: " in run("status", "--column", "digits-lt-20", cwd=small).stdout
    line = run("status", "--profile", "quick", cwd=small)
    assert "38 of 38 runs on 2 columns have a record, and 11 of 11 of grids and switches; --all shows them" in line.stdout
    assert line.stdout.count("\n") == 1
    written = run("table", "--profile", "quick", cwd=small).stdout
    assert re.match(r"mm, profile quick: \d+ of \d+ cells have runs; claims: .* every cell in papers/mm/tables/quick\n$", written)
    published = run("table", cwd=small).stdout  # whatever has been trained here
    assert re.match(r"mm, profile paper: 0 of \d+ cells have runs; claims: ", published)
    assert "Table 1." in run("table", "--all", cwd=small).stdout
    assert run("table", "--profile", "quick", cwd=small).stdout == written
    status = run("status", "--profile", "quick", "--all", cwd=small)
    assert re.search(r"mm-drw@released\W+1\W+1", status.stdout)
    assert "And 11 of 11 runs of grids and switches" in status.stdout
    out = small / "records.tar"
    assert run("pack-records", str(out), "--profile", "quick", cwd=small).returncode == 0
    shutil.rmtree(small / "papers" / "mm" / "results" / "quick")
    merged = run("merge", str(out), cwd=small)
    assert "Merged 51 new records" in merged.stdout, merged.stderr
    assert run("merge", str(out), cwd=small).stdout.startswith("Merged 0 new records")
    plan = run("plan", "--profile", "quick", cwd=small)
    assert "0 runs of profile quick are to be trained." in plan.stdout


def test_a_campaign_plans_trains_and_learns_what_the_device_needs(small, tmp_path):
    """With nothing known it begins; a plan trains nothing; two devices share the packs; what is left is said; and every record
    is in the file that goes home."""
    shutil.rmtree(small / "papers" / "mm" / "results" / "quick", ignore_errors=True)

    def campaign(*arguments):
        return run("campaign", "--profile", "quick", *arguments, cwd=small, module="papers")

    dry = campaign("--dry-run", "--only", "mm", "--columns", "digits-step-20", "--minutes", "5")
    assert dry.returncode == 0, dry.stderr
    assert re.search(r"digits-step-20\W+\d+\W+own methods,", dry.stdout)
    assert "Of unknown time" in dry.stdout
    everything = int(re.search(r"(\d+) of \1 runs are missing; they need", dry.stdout)[1])
    assert not (small / "papers" / "mm" / "results" / "quick").exists()
    home = tmp_path / "home.tar"
    done = campaign("--only", "mm", "--columns", "digits-step-20", "--device", "cpu,cpu", "--pack", "8", "--out", str(home))
    assert done.returncode == 0, done.stderr
    assert re.search(r"digits-step-20\W+8\W+done", done.stdout)
    trained = int(re.search(r"(\d+) of \1 runs are missing; no limit of time on 2", done.stdout)[1])
    assert f"{everything - trained} of {everything} runs are missing; they need" in done.stdout
    assert not (small / ".work" / "resume").exists() or not list((small / ".work" / "resume").iterdir())
    speeds, = (small / ".work" / "probes").glob("*.json")
    assert {row["runs"] for row in json.loads(speeds.read_text())["rows"]} >= {8}
    known = campaign("--dry-run", "--only", "mm", "--columns", "digits-lt-20", "--minutes", "5")
    assert "Of unknown time" not in known.stdout, known.stdout
    nothing = campaign("--only", "mm", "--columns", "digits-lt-20", "--minutes", "0.0001")
    assert "Nothing fits this time; give more minutes." in nothing.stdout
    assert f"0 of {trained} runs are missing" in campaign("--only", "mm", "--columns", "digits-step-20").stdout
    shutil.rmtree(small / "papers" / "mm" / "results" / "quick")
    merged = run("merge", str(home), cwd=small)
    first_stages = int(re.search(r"Merged (\d+) new records", merged.stdout)[1]) - trained
    assert first_stages in range(5), merged.stdout
    assert list(small.glob("papers/mm/results/quick/*/*.predictions.npz"))
    assert f"0 of {trained} runs are missing" in campaign("--only", "mm", "--columns", "digits-step-20").stdout
    for arguments, said in ((("--only", "resnet"), "Nothing is called 'resnet'"), (("--columns", "x"), "Nothing is called 'x'"),
                            (("--ray", "127.0.0.1:1"), "No Ray cluster answers")):
        refused = campaign(*arguments)
        assert refused.returncode == 2
        assert said in refused.stderr


def test_a_campaign_plans_runs_of_no_epochs_whose_first_stages_are_done(small):
    """Their records alone are made here, with weights that nobody reads."""
    make = ("from papers.catalog import PAPERS; from common.plan import plan; from common.store import save_record; "
            "from tests.records import make_record; "
            "starts = {m.start.spec.key: m.start for p in PAPERS for m in plan(p, 'quick') "
            "if m.start and not m.spec.protocol.epochs}; "
            "[(save_record(m.folder, make_record(m, 50.0)), m.checkpoint.parent.mkdir(parents=True, exist_ok=True), "
            "m.checkpoint.write_bytes(b'')) for m in starts.values()]; print(len(starts))")
    made = subprocess.run([sys.executable, "-c", make], cwd=small, capture_output=True, text=True)
    assert int(made.stdout) > 0, made.stderr
    dry = run("campaign", "--profile", "quick", "--device", "cpu", "--minutes", "5", "--dry-run", cwd=small, module="papers")
    assert (dry.returncode, dry.stderr) == (0, "")
    for paper in (small / "papers").glob("*/checkpoints"):
        shutil.rmtree(paper)
    for paper in (small / "papers").glob("*/results/quick"):
        shutil.rmtree(paper)


def test_one_method_on_one_column_with_a_summary(small):
    summary = small / "summary.csv"
    chosen = ("--column", "digits-lt-20", "--method", "ldam-drw-ssp", "--seeds", "2")
    done = run("train", *chosen, "--summary", str(summary), cwd=small)
    assert done.returncode == 0, done.stderr
    lines = summary.read_text().splitlines()
    assert lines[0] == "run,seed,key,status,last,best,digest"
    assert len(lines) == 3
    log = [json.loads(line) for line in (small / ".work" / "log.jsonl").read_text().splitlines()]
    assert {"column", "epoch", "loss_and_accuracy", "time"} <= set(log[-1])


def test_doctor_names_what_is_missing(small):
    done = run("doctor", cwd=small)
    assert "torch" in done.stdout
    assert "data/cifar10.npz is not here: make data-cifar10" in done.stdout


def test_every_command_in_the_readmes_exists():
    """Make targets, modules and options that a README names are real."""
    targets = re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    patterns = [re.compile(t.replace("%", "[a-z0-9_<>-]+") + "$") for t in targets]
    for page in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("papers/*/README.md")]:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for block in (text for language, text in fenced if language in ("", "sh", "bash", "console")):
            for line in block.splitlines():
                words = shlex.split(line.split("#")[0])
                if words[:1] == ["make"]:
                    for word in (w for w in words[1:] if "=" not in w):
                        assert any(p.match(word) for p in patterns), f"{page}: make {word}"
                if "-m" in words:
                    module, *rest = words[words.index("-m") + 1:]
                    assert (ROOT / (module.replace(".", "/") + ".py")).exists() or (ROOT / module / "__main__.py").exists(), line
                    help_text = run(*rest[:1], "--help", module=module).stdout
                    for option in (w for w in rest if w.startswith("--")):
                        assert option.split("=")[0] in help_text, f"{page}: {line}"
                if words and words[0].endswith(".py"):
                    assert (ROOT / words[0]).exists(), line


def test_a_large_column_is_prepared_and_trained_by_the_same_command(small):
    """One process on the drawn miniature; without its data one sentence, and small and large columns do not mix."""
    gcl = ("train", "--column", "miniature", "--method", "ce@written", "--seeds", "1")
    done = run(*gcl, cwd=small, module="papers.gcl.replicate")
    assert done.returncode == 2
    assert "miniature" in done.stderr
    assert "prepare miniature" in done.stderr
    done = run("prepare", "miniature", cwd=small)
    assert done.returncode == 0, done.stderr
    assert "868 train and 150 test images of 30 classes" in done.stdout
    done = run(*gcl, cwd=small, module="papers.gcl.replicate")
    assert done.returncode == 0, done.stderr
    record, = (small / "papers/gcl/results/quick/miniature-resnet10w8").glob("*.json")
    found = json.loads(record.read_text())
    assert len(found["curves"]["train_loss"]) == 4
    assert found["confusion"] == []
    assert found["made"]["official"] is True
    assert "nothing to train" in run(*gcl, cwd=small, module="papers.gcl.replicate").stdout
    packed = run("pack-records", "records.tar", "--column", "miniature", cwd=small, module="papers.gcl.replicate")
    assert "1 records in records.tar" in packed.stdout, packed.stderr
    record.unlink()
    assert "Merged 1 new records" in run("merge", "records.tar", cwd=small, module="papers").stdout
    assert json.loads(record.read_text())["digest"] == found["digest"]
    mixed = run("train", "--column", "miniature", "--column", "digits-lt-20", cwd=small, module="papers.gcl.replicate")
    assert mixed.returncode == 2
    assert "miniature is trained by itself" in mixed.stderr


@pytest.fixture(scope="module")
def wrong(small, tmp_path_factory) -> Path:
    """A checkout in which somebody edited a paper's parameters badly."""
    copy = tmp_path_factory.mktemp("wrong") / "repo"
    shutil.copytree(small, copy)
    params = copy / "papers" / "mm" / "params.yaml"
    params.write_text(params.read_text().replace("    weight_decay: 0.0002", "    weight_decay: '0.0002'", 1))
    return copy


def said_of(copy: Path) -> str:
    params = copy / "papers" / "mm" / "params.yaml"
    line = 1 + params.read_text().splitlines().index(next(t for t in params.read_text().splitlines() if "'0.0002'" in t))
    return f"error: {params}, line {line}: paper: protocols: written: weight_decay: expected float, found str '0.0002'"


@pytest.mark.parametrize("command", [("status",), ("doctor",), ("plan", "--profile", "quick"), ("--help",)])
def test_wrong_parameters_are_one_sentence_with_file_and_line(command, wrong):
    done = run(*command, cwd=wrong)
    assert done.returncode == 2
    assert done.stderr.startswith(said_of(wrong))
    assert (done.stderr.count("\n"), done.stdout) == (1, "")


def test_a_paper_that_is_broken_does_not_stop_the_others(wrong):
    alone = run("plan", "--profile", "quick", cwd=wrong, module="papers.gcl.replicate")
    assert (alone.returncode, alone.stderr) == (0, "")
    for command, shown in ((("status", "--profile", "quick"), "gcl, profile quick"), (("doctor",), "ok   Python")):
        done = run(*command, cwd=wrong, module="papers")
        assert done.returncode == 2
        assert done.stderr.startswith(said_of(wrong))
        assert done.stderr.count("\n") == 1
        assert shown in done.stdout


@pytest.mark.parametrize(("old", "new", "said"), [
    ("    cifar10-lt-100: {dataset: cifar10,", "    cifar10-lt-100: {dataset: cifar11,", "Unknown dataset 'cifar11'"),
    ("ratio: 100, backbone: resnet32", "ratio: 100, backbone: resnet33", "resnet33"),
    ("  digits-step-20: {delta: 0.6, betas", "  digits-step-30: {delta: 0.6, betas", "grids: key 'digits-step-20' is missing"),
    ("ratio: 20, backbone", "ratio: 30, backbone", "digits-lt-30"),
    ("epochs: 2\n", "epochs: 1\n", "warmup_epochs 2: a warm-up ends within the run")])
def test_what_is_right_by_itself_and_names_nothing_is_one_sentence(old, new, said, wrong, small):
    params = wrong / "papers" / "mm" / "params.yaml"
    kept, text = params.read_text(), (small / "papers" / "mm" / "params.yaml").read_text()
    assert old in text
    params.write_text(text.replace(old, new, 1))
    try:
        done = run("plan", "--profile", "quick", cwd=wrong)
    finally:
        params.write_text(kept)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {params}")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("report",), ("merge", "records.tar")])
def test_what_is_about_all_papers_waits_for_the_broken_one(command, wrong):
    index = (wrong / "results" / "index.json").read_bytes()
    done = run(*command, cwd=wrong, module="papers")
    assert done.returncode == 2
    assert done.stderr.startswith(said_of(wrong))
    assert "needs every paper" in done.stderr
    assert (done.stdout, (wrong / "results" / "index.json").read_bytes()) == ("", index)


def test_what_is_written_does_not_depend_on_who_listens(small):
    """`table | head -1`: the tables of the last paper are written, though its line has no reader."""
    last = small / "papers" / "gcl" / "tables" / "paper" / "claims.csv"
    last.unlink(missing_ok=True)
    end, mouth = os.pipe()
    os.close(end)
    try:
        done = subprocess.run([sys.executable, "-m", "papers", "table"], cwd=small, stdout=mouth, stderr=subprocess.PIPE,
                              text=True, timeout=300)
    finally:
        os.close(mouth)
    assert (done.returncode, done.stderr) == (0, "")
    assert last.exists()


def test_without_any_paper_nothing_runs(tmp_path):
    copy = make_small(tmp_path / "repo")
    for params in copy.glob("papers/*/params.yaml"):
        params.write_text("paper: {")
    done = run("status", cwd=copy, module="papers")
    assert done.returncode == 2
    assert done.stderr.count("not valid YAML") == done.stderr.count("\n") == 6
    assert ", line 1: " in done.stderr


def test_a_defect_keeps_its_traceback():
    done = subprocess.run([sys.executable, "-c", "import papers; raise KeyError('x')"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'x'" in done.stderr


def test_here_every_paper_is_whole():
    from papers.catalog import BROKEN, PAPERS

    assert not BROKEN
    assert {p.name for p in PAPERS} == {path.parent.name for path in ROOT.glob("papers/*/replicate.py")}
