"""Lists, class folders and drawn splits; what prepare says is wrong; the index that training reads."""

import gzip
import hashlib
import json
import os
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from common.data.large_sets import LARGE, find_large
from common.data.large_sources import draw_pareto, pareto_counts, prepare_large, read_folders, read_source
from common.data.lists import in_order, list_digest, load_large, read_list
from common.data.miniature import class_sizes, make_miniature
from common.errors import UserError
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


# ---------------------------------------------------------------- copies as people have them

def linked(root: Path, tmp_path: Path) -> Path:
    """A copy whose images are the same files: they may be moved and removed, not written to."""
    def put(source: str, target: str) -> str:
        (shutil.copy2 if source.endswith(".txt") else os.link)(source, target)
        return target

    return Path(shutil.copytree(root, tmp_path / "copy", copy_function=put))


WNIDS = [f"n{1440764 + 977 * label:08d}" for label in range(CLASSES)]


def rename(root: Path, part: str, names: dict[str, str]) -> None:
    """Rename class folders, all at once."""
    for old in names:
        (root / part / old).rename(root / part / f"new-{old}")
    for old, new in names.items():
        (root / part / f"new-{old}").rename(root / part / new)


def by_kit(first: int = 1) -> dict[str, str]:
    """The development kit numbers the classes in an order of its own."""
    order = np.random.default_rng(5).permutation(CLASSES)
    return {wnid: str(first + int(k)) for wnid, k in zip(WNIDS, order, strict=True)}


def numbers(form: str = "{}", first: int = 0) -> dict[str, str]:
    return {wnid: form.format(first + label) for label, wnid in enumerate(WNIDS)}


def anonymous(root: Path, part: str = "train") -> None:
    """File names that say no class."""
    for folder in (root / part).iterdir():
        for k, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"{k:06d}.JPEG")


def assert_true(images) -> None:
    """Every label is that of the wnid that the miniature drew the image for."""
    for paths, labels in ((images.train_paths, images.train_labels), (images.test_paths, images.test_labels)):
        for path, label in zip(paths.tolist(), labels.tolist(), strict=True):
            name = path.decode().rpartition("/")[2]
            number = int(name.rpartition("_")[2].split(".")[0])
            assert label == (WNIDS.index(name.split("_")[0]) if name.startswith("n") else (number - 1) // TEST)


@pytest.mark.parametrize("test_list", [False, True])
@pytest.mark.parametrize(("train", "val"), [
    (None, by_kit()), (None, numbers()), (numbers(), None), (numbers(first=1), None), (by_kit(0), None), (by_kit(), by_kit()),
    (numbers("{:04d}"), numbers("{:04d}")), (by_kit(), numbers()),
])
def test_folders_of_imagenet_under_other_names_are_right_or_refused(train, val, test_list, roots, in_small, tmp_path):
    """Training images say their class; of validation images the list, or folders named as training's, does."""
    root = linked(roots["imagenet"], tmp_path)
    rename(root, "train", train or {})
    rename(root, "val", val or {})
    if test_list:
        shutil.copy(roots["imagenet-lt"] / OFFICIAL[1], root)
    if test_list or not val or val == train:
        assert_true(read_source(facts("imagenet"), root))
    else:
        message = complaint(read_source, facts("imagenet"), root)
        assert "val has the class folders " in message  # of (by_kit(), numbers()), one name of each is not the other's
        assert "are not among these, and labels come from the names" in message
        assert "bring ImageNet_LT_test.txt" in message


@pytest.mark.parametrize(("train", "val", "words"), [
    (numbers(), numbers(), None),
    (numbers("{:03d}"), numbers("{:03d}"), None),
    (numbers(first=1), numbers(first=1), None),
    (numbers(), None, "val has the class folders 'n01440764', 'n01441741', 'n01442718', ..., training has '0', '1', '2'"),
    (by_kit(), numbers(), "1 of 30 are not among these"),
])
def test_numbers_without_wnids_are_in_the_order_of_their_values(train, val, words, roots, in_small, tmp_path):
    root = linked(roots["imagenet"], tmp_path)
    rename(root, "train", train)
    rename(root, "val", val or {})
    anonymous(root)
    if words:
        assert words in complaint(read_source, facts("imagenet"), root)
    else:
        images = read_source(facts("imagenet"), root)
        names = [{p.decode().split("/")[1]: y for p, y in zip(paths.tolist(), labels.tolist(), strict=True)}
                 for paths, labels in ((images.train_paths, images.train_labels), (images.test_paths, images.test_labels))]
        assert names[0] == names[1] == {name: label for label, name in enumerate(train.values())}


@pytest.mark.parametrize("flat", [False, True])
def test_numbers_and_a_list_have_nothing_in_common(flat, roots, in_small, tmp_path):
    root = linked(roots["imagenet"], tmp_path)
    rename(root, "train", numbers())
    anonymous(root)
    lines = (roots["imagenet-lt"] / OFFICIAL[1]).read_text().splitlines()
    (root / OFFICIAL[1]).write_text("\n".join(f"val/{x.rpartition('/')[2]}" if flat else x for x in lines))
    words = "they are the labels of ImageNet_LT_test.txt" if flat else "their labels mean the same"
    assert f"nothing says that {words}" in complaint(read_source, facts("imagenet"), root)


@pytest.mark.parametrize("kind", ["training image", "swapped folders", "training images of the other", "validation image"])
def test_images_moved_between_classes(kind, roots, in_small, tmp_path):
    root, (one, two) = linked(roots["imagenet"], tmp_path), WNIDS[3:5]
    if kind == "training image":
        first = sorted((root / "train" / one).iterdir())[0]
        first.rename(root / "train" / two / first.name)
    elif kind == "validation image":
        a, b = (sorted((root / "val" / w).iterdir())[0] for w in (one, two))
        a.rename(root / "val" / two / a.name)
        b.rename(root / "val" / one / b.name)
        shutil.copy(roots["imagenet-lt"] / OFFICIAL[1], root)
        rename(root, "val", numbers())
    else:
        rename(root, "train", {one: two, two: one})
    message = complaint(read_source, facts("imagenet"), root)
    words = "images were moved between classes" if kind == "validation image" else "by its name, but its folder is that of"
    assert words in message


@pytest.mark.parametrize(("change", "words"), [
    (lambda x: [line.replace(f"/{WNIDS[0]}/", "/X/").replace(f"/{WNIDS[1]}/", f"/{WNIDS[0]}/").replace("/X/", f"/{WNIDS[1]}/")
                for line in x], f"is an image of {WNIDS[1]}"),
    (lambda x: [f"{a} {(int(y) + 1) % CLASSES}" for a, y in (line.rsplit(" ", 1) for line in x)], "the lists give folder n"),
    (lambda x: [re.sub(r"train/n(\d+)/n\d+_", r"train/c\1/", line) for line in x], "are in class folders like 'n0"),
])
def test_lists_that_name_classes_otherwise(change, words, roots, in_small, tmp_path):
    root = linked(roots["imagenet-lt"], tmp_path)
    edit(root, change)
    assert words in complaint(read_source, facts("imagenet-lt"), root)


def test_both_lists_in_another_numbering(roots, in_small, tmp_path):
    root, order = linked(roots["imagenet-lt"], tmp_path), np.random.default_rng(1).permutation(CLASSES)
    for file in OFFICIAL:
        lines = (line.rsplit(" ", 1) for line in (root / file).read_text().splitlines())
        (root / file).write_text("\n".join(f"{a} {order[int(y)]}" for a, y in lines))
    message = complaint(read_source, facts("imagenet-lt"), root)
    assert f"class n01440764 has label {order[0]}, which is 0 in the official lists" in message


@pytest.mark.parametrize("missing", [1, 30, 400])
def test_a_part_of_imagenet_is_not_drawn_from(missing, roots, in_small, tmp_path):
    root = linked(roots["imagenet"], tmp_path)
    for path in sorted((root / "train").glob("*/*"))[::-1][:missing]:
        path.unlink()
        path.parent.mkdir(exist_ok=True)
    message = complaint(prepare_large, "imagenet-lt", tmp_path, root)
    assert f"train has {779 - missing} images, all of imagenet are 779: what is drawn from a part is another subset" in message
    assert "or bring ImageNet_LT_train.txt" in message


def test_a_drawn_subset_needs_the_wnids(roots, in_small, tmp_path):
    whole = read_source(facts("imagenet-lt"), roots["imagenet"])
    root = linked(roots["imagenet"], tmp_path)
    rename(root, "train", by_kit())
    rename(root, "val", by_kit())
    again = read_source(facts("imagenet-lt"), root)
    assert again.digest == whole.digest
    anonymous(root)
    assert "the images' names say no wnids, by which imagenet-lt is drawn" in complaint(read_source, facts("imagenet-lt"), root)


LEFT = {
    "apple": lambda root: (root / "train" / WNIDS[0] / f"._{WNIDS[0]}_1.JPEG").write_bytes(b"x"),
    "notebook": lambda root: shutil.copytree(root / "train" / WNIDS[0], root / "train" / ".ipynb_checkpoints"),
    "in a class": lambda root: shutil.copytree(root / "train" / WNIDS[0], root / "train" / WNIDS[0] / ".ipynb_checkpoints"),
    "validation": lambda root: shutil.copytree(root / "val" / WNIDS[0], root / "val" / "__MACOSX"),
    "windows": lambda root: [(root / "train" / WNIDS[1] / name).write_bytes(b"x") for name in ("Thumbs.db", "desktop.ini")],
    "nas": lambda root: (root / "val" / "@eaDir").mkdir(),
    "hidden file": lambda root: (root / "val" / ".DS_Store").write_bytes(b"x"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_leftovers_of_systems_are_not_there(kind, roots, in_small, tmp_path):
    root = linked(roots["imagenet"], tmp_path)
    LEFT[kind](root)
    assert read_source(facts("imagenet"), root).digest == read_source(facts("imagenet"), roots["imagenet"]).digest


LISTED = {
    "mark": lambda text, root: b"\xef\xbb\xbf" + text.encode(),
    "utf-16": lambda text, root: text.encode("utf-16"),
    "windows": lambda text, root: text.replace("\n", "  \r\n").replace("/", "\\").encode(),
    "tab": lambda text, root: text.replace(".JPEG ", ".JPEG\t").encode(),
    "absolute": lambda text, root: "".join(f"{root}/{line}\n" for line in text.splitlines()).encode(),
    "of another machine": lambda text, root: "".join(f"D:\\sets\\train\\{line}\n" for line in text.splitlines()).encode(),
    "dot": lambda text, root: "".join(f"./{line}\n\n" for line in text.splitlines()).encode(),
    "leftovers": lambda text, root: (text + f"train/{WNIDS[0]}/._{WNIDS[0]}_0.JPEG 0\n").encode(),
    "packed twice": lambda text, root: gzip.compress(gzip.compress(text.encode())),
}


@pytest.mark.parametrize("kind", LISTED)
def test_lists_as_other_tools_leave_them(kind, roots, in_small, tmp_path):
    plain, root = read_source(facts("imagenet-lt"), roots["imagenet-lt"]), linked(roots["imagenet-lt"], tmp_path)
    for file in OFFICIAL:
        (root / file).write_bytes(LISTED[kind]((root / file).read_text(), root))
    prepare_large("imagenet-lt", tmp_path, root)
    images = load_large("imagenet-lt", tmp_path)
    assert images.digest == plain.digest
    assert images.train_paths.tolist() == plain.train_paths.tolist()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_path(encoding, tmp_path):
    (tmp_path / "list.txt").write_bytes("new/a/1.jpg 1\r\nnew/b/2.jpg 0".encode(encoding))
    listed = read_list(tmp_path / "list.txt", 2)
    assert listed.paths.tolist() == [b"new/a/1.jpg", b"new/b/2.jpg"]
    assert listed.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("content", "words"), [
    (b"train/a/1.JPEG 0\n\xff\xfe", "is no list of images"),
    ("train/a/1.JPEG 0\n".encode("utf-16-le"), "is no list of images"),
    (gzip.compress(b"train/a/1.JPEG 0\n" * 99)[:-9], "is no list of images"),
    (b"\xef\xbb\xbf", "is empty"),
], ids=["binary", "utf-16", "cut gzip", "empty"])
def test_what_is_no_list(content, words, tmp_path):
    (tmp_path / "list.txt").write_bytes(content)
    assert words in complaint(read_list, tmp_path / "list.txt", 2)


@pytest.mark.parametrize("place", ["places365_standard", "a/b/places-lt", "only"])
def test_images_may_lie_some_folders_deeper(place, roots, in_small, tmp_path):
    root = tmp_path / "outer"
    shutil.copytree(roots["places-lt"], root / place)
    for file in ("Places_LT_train.txt", "Places_LT_test.txt"):
        (root / place / file).rename(root / file)
    prepare_large("places-lt", tmp_path, root)
    assert load_large("places-lt", tmp_path).root == root / place


@pytest.mark.parametrize("suffix", [".jpeg", ".Jpeg"])
def test_the_case_of_a_suffix_does_not_matter(suffix, roots, in_small, tmp_path):
    root = linked(roots["imagenet-lt"], tmp_path)
    for path in list(root.glob("*/*/*.JPEG")):
        path.rename(path.with_suffix(suffix))
    prepare_large("imagenet-lt", tmp_path, root)
    images = load_large("imagenet-lt", tmp_path)
    assert_true(images)
    assert {os.path.splitext(p)[1] for p in images.train_paths.tolist()} == {suffix.encode()}


@pytest.mark.parametrize("here", [("data_256", "val_256"), ("data_large", "val_large"), ()])
def test_the_archive_that_the_lists_of_places_fit_is_named(here, roots, in_small, tmp_path):
    root = linked(roots["places-lt"], tmp_path)
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")
    for top in here:
        (root / top / "a" / "airfield").mkdir(parents=True)
    message = complaint(prepare_large, "places-lt", tmp_path, root)
    assert "the lists fit places365standard_easyformat.tar (train/) and places365standard_easyformat.tar (val/), not " in message
    size = "large" if "data_large" in here else "256"
    assert f"train_{size}_places365standard.tar (data_{size}/)" in message
    assert message.endswith("which is here." if here else "val_256.tar (val_256/).")


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("\n".join(path.read_text().splitlines()[:-3])),
    lambda path: path.write_bytes(b"\x1f\x8b\x08" + path.read_bytes()[:90]),
    lambda path: path.write_text(path.read_text().replace(" ", ",")),
])
@pytest.mark.parametrize("file", OFFICIAL)
def test_a_damaged_list_beside_a_whole_one_is_named_and_passed_over(file, spoil, roots, in_small, tmp_path, capsys):
    root = linked(roots["imagenet-lt"], tmp_path)
    (root / "lists").mkdir()
    (root / "lists" / f"{file}.gz").write_bytes(gzip.compress((root / file).read_bytes()))
    spoil(root / file)
    prepare_large("imagenet-lt", tmp_path, root)
    assert load_large("imagenet-lt", tmp_path).digest == read_source(facts("imagenet-lt"), roots["imagenet-lt"]).digest
    assert f"Passed over: {root / file}" in capsys.readouterr().out


def test_a_damaged_training_list_is_not_replaced_by_a_drawn_one(roots, in_small, tmp_path):
    root = linked(roots["imagenet"], tmp_path)
    (root / OFFICIAL[0]).write_bytes(b"")
    assert "ImageNet_LT_train.txt is empty" in complaint(prepare_large, "imagenet-lt", tmp_path, root)


# ---------------------------------------------------------------- iNaturalist's own files

def write_annotations(root: Path, **more) -> dict[str, dict]:
    """train2018.json and val2018.json in the place of the lists; returns their contents."""
    contents = {}
    for split, file in ((facts("inaturalist2018").train, "train2018.json"), (facts("inaturalist2018").test, "val2018.json")):
        lines = [line.rsplit(" ", 1) for line in (root / split.file).read_text().splitlines()]
        (root / split.file).unlink()
        contents[file] = {
            "images": [{"id": 7 + i, "width": 40, "file_name": path} for i, (path, _) in enumerate(lines)],
            "categories": [{"id": c, "name": str(c), "supercategory": "Plantae"} for c in range(CLASSES)],
            "annotations": [{"id": i, "image_id": 7 + i, "category_id": int(y)} for i, (_, y) in enumerate(lines)][::-1], **more}
        (root / file).write_text(json.dumps(contents[file]))
    return contents


def tarred(path: Path) -> None:
    with tarfile.open(f"{path}.tar.gz", "w:gz") as tar:
        tar.add(path, path.name)
    path.unlink()


@pytest.mark.parametrize("form", [
    lambda path: None,
    lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    lambda path: Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes())) and path.unlink(),
    tarred,
])
def test_inaturalists_own_files_say_what_the_lists_say(form, roots, in_small, tmp_path):
    root = linked(roots["inaturalist2018"], tmp_path)
    for file in write_annotations(root):
        form(root / file)
    prepare_large("inaturalist2018", tmp_path, root)
    found, plain = load_large("inaturalist2018", tmp_path), read_source(facts("inaturalist2018"), roots["inaturalist2018"])
    assert found.official
    assert found.digest == plain.digest
    assert found.train_paths.tolist() == plain.train_paths.tolist()
    assert found.test_labels.tolist() == plain.test_labels.tolist()


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: c.pop("annotations"), "does not hold images and annotations as iNaturalist 2018 has them (KeyError: 'anno"),
    (lambda c: c["annotations"].pop(), "has no annotation of 1 of its 259 images"),
    (lambda c: c["annotations"].append({**c["annotations"][0], "category_id": 5}), "two categories"),
    (lambda c: c["categories"].pop(), "has 29 categories, 0 to 28, expected 0 to 29"),
    (lambda c: [k.update(id=k["id"] + 1) for k in c["categories"]], "has 30 categories, 1 to 30, expected 0 to 29"),
    (lambda c: c["annotations"][0].update(category_id=-1), "has category -1"),
    (lambda c: c["images"].append(c["images"][0]), "stands in image 7 and in image 7"),
    (lambda c: c["images"].clear(), "is empty"),
])
def test_annotations_that_do_not_fit(change, words, roots, in_small, tmp_path):
    root = linked(roots["inaturalist2018"], tmp_path)
    content = write_annotations(root)["train2018.json"]
    change(content)
    (root / "train2018.json").write_text(json.dumps(content))
    assert words in complaint(prepare_large, "inaturalist2018", tmp_path, root)
    (root / "train2018.json").write_text(json.dumps(content)[:-50])
    assert "does not hold images" in complaint(prepare_large, "inaturalist2018", tmp_path, root)


def test_neither_list_nor_annotations(in_small, tmp_path):
    (tmp_path / "train_val2018").mkdir()
    words = "there is no iNaturalist18_train.txt (.gz or not) or train2018.json in"
    assert words in complaint(prepare_large, "inaturalist2018", tmp_path, tmp_path)
