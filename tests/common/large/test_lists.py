"""Lists, class folders and drawn splits; what prepare says is wrong; the index that training reads."""

import gzip
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from common.data.large_sets import LARGE, find_large
from common.errors import UserError
from common.large.lists import in_order, list_digest, load_large, read_list
from common.large.miniature import class_sizes, make_miniature
from common.large.prepare import draw_pareto, pareto_counts, prepare_large, read_folders, read_source
from tests.large_miniature import CLASSES, TEST, WHOLE, facts, sizes_of, written

NAMES = ("imagenet-lt", "places-lt", "inaturalist2018")
OFFICIAL = ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Folder of each miniature by name."""
    return {name: written(tmp_path_factory, name) for name in (*NAMES, "imagenet")}


@pytest.fixture
def in_small(monkeypatch):
    """Puts the miniatures' facts in the place of the real ones."""
    for variable in ("LONGTAIL_DATA", "LONGTAIL_LISTS"):
        monkeypatch.delenv(variable, raising=False)
    for name in (*NAMES, "imagenet"):
        monkeypatch.setitem(LARGE, name, facts(name))


def complaint(function, *arguments, **keywords) -> str:
    """The UserError's message, which is one line."""
    with pytest.raises(UserError) as error:
        function(*arguments, **keywords)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


def test_facts_are_the_published_ones():
    found = {n: (s.train.images, s.classes, s.train.largest, s.train.smallest, s.test.images) for n, s in LARGE.items()}
    del found["miniature"]
    assert found == {
        "imagenet": (1_281_167, 1_000, 1_300, 732, 50_000),
        "imagenet-lt": (115_846, 1_000, 1_280, 5, 50_000),
        "inaturalist2018": (437_513, 8_142, 1_000, 2, 24_426),
        "places-lt": (62_500, 365, 4_980, 5, 36_500),
    }
    assert [LARGE[n].resize for n in ("imagenet", "miniature")] == [256, 37]


def test_identity_follows_what_decides_numbers():
    real = LARGE["imagenet-lt"]
    others = [replace(real, crop="resize-crop"), replace(real, jitter=0.4), replace(real, side=32), LARGE["imagenet"]]
    assert len({real.digest, *(o.digest for o in others)}) == 5
    assert replace(real, archive="elsewhere").digest == real.digest


@pytest.mark.skipif("LONGTAIL_LISTS" not in os.environ, reason="set LONGTAIL_LISTS to a folder with the official lists")
@pytest.mark.parametrize(("name", "part", "md5"), [
    ("places-lt", "train", "e7795ab1bf428a89f900854127b1e556"),
    ("places-lt", "test", "1347af35b053bd31cf782256306affe7"),
    ("inaturalist2018", "test", "b7ed52f3854c157c487cc3be9deb8abf"),
])
def test_digests_are_those_of_the_official_lists(name, part, md5):
    split = getattr(LARGE[name], part)
    path = Path(os.environ["LONGTAIL_LISTS"]) / f"{split.file}.gz"
    assert hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest() == md5
    assert list_digest(read_list(path, LARGE[name].classes)) == split.digest


@pytest.mark.parametrize("name", NAMES)
def test_prepare_finds_what_the_lists_say(name, roots, in_small, tmp_path, capsys):
    path = prepare_large(name, tmp_path, roots[name])
    images, small = load_large(name, tmp_path), facts(name)
    assert path == tmp_path / f"{name}.npz"
    assert images.official
    assert images.root == roots[name].resolve()
    assert images.counts.tolist() == sizes_of(small).tolist()
    assert images.counts.max() == 24
    assert images.counts.min() == 2
    assert np.bincount(images.test_labels).tolist() == [TEST] * CLASSES
    for split, paths, labels in ((small.train, images.train_paths, images.train_labels),
                                 (small.test, images.test_paths, images.test_labels)):
        lines = dict(line.rsplit(" ", 1) for line in (roots[name] / split.file).read_text().splitlines())
        assert {p.decode(): str(y) for p, y in zip(paths.tolist(), labels.tolist(), strict=True)} == lines
        keys = [(y, p.rsplit(b"/", 1)[1]) for p, y in zip(paths.tolist(), labels.tolist(), strict=True)]
        assert keys == sorted(keys)
    assert f"{name}: 259 train and 60 test images of 30 classes, 24 to 2 a class" in capsys.readouterr().out


def test_whole_imagenet_is_read_from_its_folders(roots, in_small, tmp_path):
    images = read_source(facts("imagenet"), roots["imagenet"])
    assert len(images.train_labels) == WHOLE * CLASSES - 1
    assert images.official
    wnids = sorted({p.split(b"/")[1] for p in images.train_paths.tolist()})
    assert [wnids[y] for y in images.test_labels] == [p.split(b"/")[1] for p in images.test_paths.tolist()]


def test_order_of_lines_compression_and_place_do_not_matter(roots, in_small, tmp_path, monkeypatch):
    name = "imagenet-lt"
    prepare_large(name, tmp_path, roots[name])
    first, root = load_large(name, tmp_path), copy(roots[name], tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for file in OFFICIAL:
        lines = (root / file).read_text().splitlines(keepends=True)
        content = "".join(reversed(lines)).replace("\n", "\r\n").encode()
        (tmp_path / "elsewhere" / f"{file}.gz").write_bytes(gzip.compress(content))
        (root / file).unlink()
    monkeypatch.setenv("LONGTAIL_LISTS", str(tmp_path / "elsewhere"))
    prepare_large(name, tmp_path, root)
    second = load_large(name, tmp_path)
    assert second.root == root
    assert second.digest == first.digest
    assert (first.train_paths == second.train_paths).all()
    assert (first.test_labels == second.test_labels).all()


def test_lists_may_lie_beside_the_images_and_the_folder_in_the_environment(roots, in_small, tmp_path, monkeypatch):
    root = tmp_path / "sets" / "places-lt"
    shutil.copytree(roots["places-lt"], root)
    (root / "lists").mkdir()
    for file in ("Places_LT_train.txt", "Places_LT_test.txt"):
        (root / file).rename(root / "lists" / file)
    monkeypatch.setenv("LONGTAIL_DATA", str(tmp_path / "sets"))
    prepare_large("places-lt", tmp_path)
    assert load_large("places-lt", tmp_path).root == root


def test_list_digest_by_hand(tmp_path):
    (tmp_path / "list.txt").write_text("b/x/2.jpg 1\na/0/10.jpg 0\na/0/9.jpg 0\n")
    listed = read_list(tmp_path / "list.txt", 2)
    assert listed.labels.tolist() == [1, 0, 0]
    assert in_order(listed).paths.tolist() == [b"a/0/10.jpg", b"a/0/9.jpg", b"b/x/2.jpg"]
    assert list_digest(listed) == hashlib.sha256(b"0 10.jpg\n0 9.jpg\n1 2.jpg").hexdigest()


@pytest.mark.parametrize(("files_flat", "list_flat"), [(True, False), (False, True), (True, True)])
def test_validation_images_may_lie_in_one_folder(files_flat, list_flat, roots, in_small, tmp_path):
    plain = read_source(facts("imagenet-lt"), roots["imagenet-lt"])
    root = copy(roots["imagenet-lt"], tmp_path)
    if files_flat:
        for path in list((root / "val").glob("*/*")):
            path.rename(root / "val" / path.name)
    if list_flat:
        lines = [f"val/{line.rsplit('/', 1)[1]}\n" for line in (root / OFFICIAL[1]).read_text().splitlines()]
        (root / OFFICIAL[1]).write_text("".join(lines))
    prepare_large("imagenet-lt", tmp_path, root)
    images = load_large("imagenet-lt", tmp_path)
    assert images.digest == plain.digest
    assert images.test_labels.tolist() == plain.test_labels.tolist()
    assert all((root / p.decode()).is_file() for p in images.test_paths.tolist())


def edit(root: Path, change) -> None:
    """Replace the lines of the training list by what `change` makes of them."""
    path = root / OFFICIAL[0]
    path.write_text("".join(f"{line}\n" for line in change(sorted(path.read_text().splitlines()))))


LAST = f"train/n{1440764 + 977 * 29:08d}"
WRONG_LISTS = {
    "columns": (lambda x: [*x[:4], "only/a/path.jpg", *x[4:]], "line 5 is 'only/a/path.jpg', expected a path, a space and a"),
    "commas": (lambda x: [line.replace(" ", ",") for line in x], "line 1 is"),
    "empty": (lambda x: [], "is empty"),
    "twice": (lambda x: [*x, x[0]], "stands in line 1 and in line 260"),
    "label": (lambda x: [x[0].rsplit(" ", 1)[0] + " 30", *x[1:]], "label 30 in line 1 is not one of 0 to 29"),
    "negative": (lambda x: [x[0].rsplit(" ", 1)[0] + " -1", *x[1:]], "line 1 is"),
    "class": (lambda x: [line for line in x if LAST not in line], "has no image of 1 of the 30 classes"),
    "total": (lambda x: x[1:], "has 258 images, imagenet-lt has 259"),
    "head": (lambda x: moved(x, most=True), "has 25 images in its largest class, imagenet-lt has 24"),
    "tail": (lambda x: moved(x, most=False), "has 1 images in its smallest class, imagenet-lt has 2"),
    "folder": (lambda x: swapped(x), "the lists give folder n"),
}


def moved(lines: list[str], most: bool) -> list[str]:
    """One image under another label: of a class in the middle to the largest, or of a smallest class to the middle."""
    counts = sizes_of(facts("imagenet-lt"))
    middle = int(np.flatnonzero((counts > 4) & (counts < 20))[0])
    source, target = (middle, int(counts.argmax())) if most else (int(counts.argmin()), middle)
    at = next(i for i, line in enumerate(lines) if line.endswith(f" {source}"))
    return [*lines[:at], f"{lines[at].rsplit(' ', 1)[0]} {target}", *lines[at + 1:]]


def swapped(lines: list[str]) -> list[str]:
    """Two images of different classes with each other's label: every count is right."""
    (a, x), (b, y) = lines[0].rsplit(" ", 1), lines[-1].rsplit(" ", 1)
    assert x != y
    return [f"{a} {y}", *lines[1:-1], f"{b} {x}"]


@pytest.mark.parametrize("kind", WRONG_LISTS)
def test_wrong_list_is_one_sentence_and_leaves_what_was_there(kind, roots, in_small, tmp_path):
    root, (change, words) = copy(roots["imagenet-lt"], tmp_path), WRONG_LISTS[kind]
    prepare_large("imagenet-lt", tmp_path, root)
    before = (tmp_path / "imagenet-lt.npz").read_bytes()
    edit(root, change)
    assert words in complaint(prepare_large, "imagenet-lt", tmp_path, root)
    assert (tmp_path / "imagenet-lt.npz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "imagenet-lt.npz"]


def test_known_digest_tells_a_foreign_list(roots, tmp_path):
    small = facts("places-lt")
    known = replace(small, train=replace(small.train, digest=list_digest(read_list(roots["places-lt"] / small.train.file, 30))))
    assert read_source(known, roots["places-lt"]).official
    root = copy(roots["places-lt"], tmp_path)
    other = root / "train" / "place_01" / "99999999.jpg"
    next((root / "train" / "place_01").iterdir()).rename(other)
    lines = [line for line in (root / small.train.file).read_text().splitlines() if (root / line.rsplit(" ", 1)[0]).exists()]
    (root / small.train.file).write_text("\n".join([*lines, "train/place_01/99999999.jpg 1"]))
    assert "right counts but digest" in complaint(read_source, known, root)


def test_image_in_both_lists(roots, in_small, tmp_path):
    root = copy(roots["imagenet-lt"], tmp_path)
    lines = (root / OFFICIAL[1]).read_text().splitlines()
    label = lines[0].rsplit(" ", 1)[1]
    twin = next(line for line in (root / OFFICIAL[0]).read_text().splitlines() if line.endswith(f" {label}"))
    (root / OFFICIAL[1]).write_text("\n".join([twin, *lines[1:]]))
    assert "1 images stand in the training and in the test list" in complaint(prepare_large, "imagenet-lt", tmp_path, root)


def test_missing_files_are_named(roots, in_small, tmp_path):
    root = copy(roots["inaturalist2018"], tmp_path)
    gone = sorted((root / "train_val2018" / "Insecta" / "3").iterdir())
    lost = sorted((root / "train_val2018" / "Plantae" / "6").iterdir())[0]
    lost.unlink()
    message = complaint(prepare_large, "inaturalist2018", tmp_path, root)
    assert "1 of 319 images" in message
    assert f"{lost.relative_to(root)} (not in its folder, which has" in message
    shutil.rmtree(gone[0].parent)
    message = complaint(prepare_large, "inaturalist2018", tmp_path, root)
    assert f"{1 + len(gone)} of 319 images" in message
    assert "(there is no folder train_val2018/Insecta/3)" in message
    shutil.rmtree(root / "train_val2018")
    message = complaint(prepare_large, "inaturalist2018", tmp_path, root)
    assert "319 of 319 images" in message
    assert message.count("there is no folder") == 10
    assert "and so on" in message


def test_what_is_not_there_is_one_sentence(roots, in_small, tmp_path):
    assert "needs the images of Places365" in complaint(prepare_large, "places-lt", tmp_path)
    assert "is not a folder" in complaint(prepare_large, "places-lt", tmp_path, tmp_path / "nowhere")
    assert "there is no Places_LT_train.txt" in complaint(prepare_large, "places-lt", tmp_path, tmp_path)
    assert "and no folder train/ of classes" in complaint(prepare_large, "imagenet-lt", tmp_path, tmp_path)
    assert "there is no list" in complaint(prepare_large, "imagenet", tmp_path, tmp_path)
    assert "Unknown large dataset 'imagenet-21k'; known: imagenet, " in complaint(find_large, "imagenet-21k")
    assert "prepare places-lt --from FOLDER" in complaint(load_large, "places-lt", tmp_path)
    assert not list(tmp_path.iterdir())


def test_class_folders_that_do_not_fit(roots, in_small, tmp_path):
    root = copy(roots["imagenet"], tmp_path)
    shutil.rmtree(next((root / "val").iterdir()))
    assert "has 29 class folders, imagenet has 30 classes" in complaint(prepare_large, "imagenet", tmp_path, root)


def test_prepared_set_that_moved_is_damaged_or_of_another_version(roots, in_small, tmp_path, monkeypatch):
    root = copy(roots["places-lt"], tmp_path)
    path = prepare_large("places-lt", tmp_path, root)
    root.rename(tmp_path / "moved")
    assert f"no longer in {root}" in complaint(load_large, "places-lt", tmp_path)
    assert "no longer in" in complaint(prepare_large, "places-lt", tmp_path)
    prepare_large("places-lt", tmp_path, tmp_path / "moved")
    assert load_large("places-lt", tmp_path).root == tmp_path / "moved"
    monkeypatch.setitem(LARGE, "places-lt", replace(facts("places-lt"), jitter=0.4))
    load_large("places-lt", tmp_path)
    monkeypatch.setitem(LARGE, "places-lt", replace(facts("places-lt"), classes=31))
    assert "is not what this version's prepare makes" in complaint(load_large, "places-lt", tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "is damaged" in complaint(load_large, "places-lt", tmp_path)


def test_pareto_counts_are_those_of_a_pareto_distribution():
    counts = pareto_counts(LARGE["imagenet-lt"])
    quantile = scipy.stats.lomax(6).ppf((np.arange(1_000) + 0.2) / 1_000)
    expected = np.round(5 + 1_275 * (quantile - quantile[0]) / (quantile[-1] - quantile[0]))
    assert counts.tolist() == expected[::-1].tolist()
    assert (counts[0], counts[-1], counts.sum()) == (1_280, 5, 116_079)
    assert ((counts > 100).sum(), (counts < 20).sum()) == (388, 143)


def test_drawn_split_is_marked_and_the_same_everywhere(roots, in_small, tmp_path, capsys):
    small = facts("imagenet-lt")
    prepare_large("imagenet-lt", tmp_path, roots["imagenet"])
    images = load_large("imagenet-lt", tmp_path)
    assert not images.official
    assert "NOT the official split" in capsys.readouterr().out
    assert sorted(images.counts, reverse=True) == pareto_counts(small).tolist()
    assert images.counts.tolist() != sorted(images.counts, reverse=True)
    assert len(set(images.train_paths.tolist())) == len(images.train_paths)
    names = [p.decode().split("/") for p in images.train_paths.tolist()]
    for label in (0, 17):  # the class's images with the smallest hashes
        wnid = next(n[1] for n, y in zip(names, images.train_labels, strict=True) if y == label)
        ranked = sorted((f"{wnid}/{p.name}" for p in (roots["imagenet"] / "train" / wnid).iterdir()),
                        key=lambda s: hashlib.sha256(s.encode()).digest())
        assert {"/".join(n[1:]) for n in names if n[1] == wnid} == set(ranked[:images.counts[label]])
    first = min({n[1] for n in names}, key=lambda s: hashlib.sha256(s.encode()).digest())
    assert sum(n[1] == first for n in names) == 24


def test_drawing_waits_for_a_class_that_is_large_enough(roots, in_small):
    small, whole = facts("imagenet-lt"), read_folders(facts("imagenet"), roots["imagenet"], "train")
    first = min({p.split(b"/")[1] for p in whole.paths.tolist()}, key=lambda s: hashlib.sha256(s).digest())
    kept = np.ones(len(whole.labels), bool)
    kept[[i for i, p in enumerate(whole.paths.tolist()) if p.split(b"/")[1] == first][4:]] = False
    few = type(whole)(whole.paths[kept], whole.labels[kept])
    drawn = np.bincount(draw_pareto(small, few).labels, minlength=30)
    assert sorted(drawn, reverse=True) == pareto_counts(small).tolist()
    assert drawn[few.labels[[p.split(b"/")[1] == first for p in few.paths.tolist()]][0]] <= 4
    tiny = type(whole)(whole.paths[::3], whole.labels[::3])
    assert "no class is left with 24 training images" in complaint(draw_pareto, small, tiny)


def test_every_image_is_decoded_if_asked(roots, in_small, tmp_path):
    root = copy(roots["imagenet-lt"], tmp_path)
    files = sorted((root / "train").glob("*/*.JPEG"))
    files[3].write_bytes(files[3].read_bytes()[:200])
    files[5].write_bytes(b"")
    prepare_large("imagenet-lt", tmp_path, root)
    message = complaint(prepare_large, "imagenet-lt", tmp_path, root, check_images=True)
    assert "2 of 319 images of imagenet-lt cannot be read" in message
    assert f"{files[3]} is damaged" in message
    assert f"{files[5]} is damaged" in message
    assert "2 of 319" in complaint(prepare_large, "imagenet-lt", tmp_path, check_images=True)


def test_the_drawn_miniature_is_the_same_everywhere(tmp_path, capsys):
    prepare_large("miniature", tmp_path)
    images, known = load_large("miniature", tmp_path), LARGE["miniature"]
    counts = images.counts
    assert (counts.sum(), counts.max(), counts.min()) == (868, 104, 3)
    assert counts.tolist() == class_sizes(known).tolist()
    assert [(counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum()] == [1, 13, 16]
    prepare_large("miniature", tmp_path)
    first, again = (line.split(", images in")[0] for line in capsys.readouterr().out.splitlines())
    assert first == again == ("miniature: 868 train and 150 test images of 30 classes, 104 to 3 a class, "
                              "lists 13090e3acbf03b20")


def test_miniature_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "could not be written" in complaint(make_miniature, tmp_path / "file" / "miniature", LARGE["miniature"])
