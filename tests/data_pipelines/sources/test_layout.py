"""The layout of a folder is the one that a person means, or the line says which folder or rule is amiss."""

import re
import unicodedata
from pathlib import Path

import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.sources import tree
from data_pipelines.sources.catalog import open_source

COMPOSED = "caf\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
CLUTTER = {
    "__MACOSX": "a folder of the system",
    "@eaDir": "a folder of the system",
    "#recycle": "a folder of the system",
    "lost+found": "a folder of the system",
    "$RECYCLE.BIN": "a folder of the system",
    "System Volume Information": "a folder of the system",
    "@Recycle": "a folder of the system",
    ".Trash-1000": "a hidden folder",
    ".ipynb_checkpoints": "a hidden folder",
    ".git": "a hidden folder",
}


def plant(root: Path, *names: str) -> Path:
    """Empty files, for a source looks at names when it is opened; x.png where a name ends in a slash."""
    for name in names:
        path = root / name / "x.png" if name.endswith("/") else root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def labels(root: Path, **options) -> dict[str, dict[str, str | None]]:
    """{split: {path: the name of its class}}"""
    source = open_source("folder", root, **options)
    names = {None: None} | dict(enumerate(source.classes))
    return {
        split: {path: names[label] for path, label in zip(part.paths, part.labels, strict=True)}
        for split, part in source.splits.items()
    }


def refusal(root: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        open_source("folder", root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training"])
def test_train_with_classes_is_a_split_whatever_lies_beside_it(tmp_path, train):
    plant(tmp_path, f"{train}/cat/", f"{train}/dog/", "__MACOSX/train/cat/", "docs/readme.txt", "figures/")
    plant(tmp_path, "annotations/trimaps/", "stray.png", "README.md")
    source = open_source("folder", tmp_path, test_percent=0)
    assert source.classes == ["cat", "dog"]
    assert labels(tmp_path, test_percent=0) == {
        "train": {f"{train}/cat/x.png": "cat", f"{train}/dog/x.png": "dog"}
    }
    assert [(entry["member"], entry["why"]) for entry in source.left_out] == [
        ("annotations", "a folder that is no split"),
        ("docs", "a folder that is no split"),
        ("figures", "a folder that is no split"),
        ("stray.png", "it lies in no split"),
        ("__MACOSX", "a folder of the system"),
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/cat/", "docs/"], "train the split or a class? cat in it and docs beside it hold images"),
        (["train/a/", "train/b/", "held/a/"], "is train the split or a class? a, b in it and held beside it"),
        (["train/a/", "train/b/", "train/1.png", "car/"], "is train the split or a class?"),
        (["test/", "cat/", "dog/"], "has test but no train beside cat, dog; put the classes into"),
        (["wrap/my/train/a/", "wrap/my/val/a/", "wrap/other/"], "such as from=ROOT/wrap/my, or rename"),
        (["my/train/a/", "my/val/a/", "1.png"], "my holds train, val, .* such as from=ROOT/my"),
        (["tin/train/good/", "tin/test/good/", "jar/train/good/", "jar/test/good/"], "from=ROOT/jar, or"),
        (["my/train/a/", "my/train/b/", "docs/"], "my holds train, .* such as from=ROOT/my"),
        (["train/data/train/a/", "train/data/val/a/"], "train/data holds train, val"),
        (["seg_train/a/", "seg_test/a/", "seg_pred/a/"], "seg_test, seg_train would be classes; name"),
        (["training_set/a/", "test_set/a/"], "test_set, training_set would be classes"),
        (["train/Cat/", "train/dog/", "val/cat/", "val/dog/"], "cat is no class of train but Cat is"),
        (["train/a/", "Train/a/"], "Train and train are both train"),
        (["images/", "masks/"], "images would be a class, with masks beside it; give from=ROOT/images for"),
        (["JPEGImages/", "SegmentationClass/"], "JPEGImages would be a class, with SegmentationClass"),
        (["images/", "annotations/trimaps/"], "with annotations beside it; give from=ROOT/images for it"),
        (["train/images/", "train/masks/", "val/images/"], "with masks beside it; give from=ROOT/train/imag"),
        (["images/", "images/cat/", "1.png"], "images would be a class, with images loose beside it"),
        (["photos/", "ground truth/"], "photos would be a class, with ground truth beside it"),
        (["cats/", "cats_masks/", "dogs/"], "cats would be a class, with cats_masks beside it"),
        (["a/images/", "a/masks/", "b/images/"], "images in ROOT/a/masks would be data as those beside it"),
        (["train/a/", "val/images/", "val/masks/"], "images in ROOT/val/masks would be data as those beside"),
        (["x_images/", "x_masks/"], "x_images would be a class, with x_masks beside it"),
        (["train/", "masks/"], "is train the split or a class? It and masks .* give from=ROOT/train for its"),
        (["train/", "train_masks/", "val_masks/"], "split or a class? It and train_masks, val_masks beside"),
        (["train/", "dev/"], "It and dev beside it hold images; rename dev to val, give"),
        (["train/a/", "train/b/", "dev/a/"], "rename dev to val, move the latter away"),
        (["trainset/a/", "testset/a/"], "testset, trainset would be classes; name splits test and train"),
        (["TrainImages/", "testimages/", "a/", "b/", "c/"], "TrainImages, testimages would be classes"),
        (["trainA/", "trainB/", "testA/", "testB/"], "testA, testB, trainA, ... would be classes"),
        (["train data/", "test data/", "a/", "b/", "c/"], "test data, train data would be classes"),
        (["train/cat/", "train/train/cat/", "val/cat/"], "holds train beside class folders, so it would be"),
        (["train/a/", "val/b/"], "val: b, the folder of val, is no class of train; name it like one, or im"),
        (["train/a b/", "val/a_b /"], "'a_b ' is no class of train but 'a b' is; name the folders alike"),
        (["train/a/", "val/a\u00a0/"], r"'a\\xa0' is no class of train but 'a' is"),
        (["1.png", "2.png", "edited/"], "ROOT: 2 images lie loose in it, and only 1 in folders .edited.,"),
        (["train/a/", "val/1.png", "val/2.png", "val/a/"], "ROOT/val: 2 images lie loose in it, and only 1"),
        (["train-0.tar", "deep/b.tar.gz"], "no image to train on; it has tars, which source=wds reads"),
        (["train/cat/", "train/valid/", "val/cat/"], "holds valid beside class folders, so it would be a cl"),
    ],
)  # fmt: skip
def test_what_may_be_meant_in_two_ways_is_refused(tmp_path, files, words):
    assert re.search(
        words.replace("?", r"\?").replace("ROOT", str(tmp_path)), refusal(plant(tmp_path, *files))
    )
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (["images/"], []),
        (["Imgs/"], []),
        (["train/images/", "valid/images/", "test/images/"], []),
        (["train/imgs/", "val/data/"], []),
        (["train/images/cat/", "val/images/cat/"], ["cat"]),
        (["train/cat/images/"], ["cat"]),
        (["cat/"], ["cat"]),
        (["photos/", "paintings/"], ["paintings", "photos"]),
        (["with_mask/", "without_mask/", "mask/"], ["mask", "with_mask", "without_mask"]),
        (["face/", "face_mask/"], ["face", "face_mask"]),
        (["train/car/", "train/train/", "val/car/", "val/train/"], ["car", "train"]),
        (
            ["trains/", "trainer/", "testosterone/", "valley/", "training shoes/", "trainset/"],
            ["testosterone", "trainer", "training shoes", "trains", "trainset", "valley"],
        ),
    ],
)
def test_images_is_no_class_and_names_that_are_near_to_others_are(tmp_path, files, classes):
    (tmp_path / "train/labels" if "train/images/" in files else tmp_path).mkdir(parents=True, exist_ok=True)
    source = open_source("folder", plant(tmp_path, *files), test_percent=None if "/" in files[0][:-1] else 0)
    assert source.classes == classes
    wanted = set(range(len(classes))) or {None}
    assert set(source.splits["train"].labels) == wanted
    assert sum(map(len, source.splits.values())) == len(files)


@pytest.mark.parametrize("wrap", ["my", "wrap/my", "a/b/c", "cat"])
def test_folders_that_are_alone_are_passed_through(tmp_path, wrap):
    splits = ["train/cat/", "train/dog/", "val/cat/", "val/dog/"]
    plant(tmp_path / "splits", *(f"{wrap}/{name}" for name in splits), f"{wrap}/.cache/", "readme.txt")
    read = labels(tmp_path / "splits")
    assert read["val"] == {f"{wrap}/val/cat/x.png": "cat", f"{wrap}/val/dog/x.png": "dog"}
    assert read["train"] == {f"{wrap}/train/cat/x.png": "cat", f"{wrap}/train/dog/x.png": "dog"}
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(20)]
    plant(tmp_path / "classes", *(f"{wrap}/{name}" for name in names))
    read = labels(tmp_path / "classes")
    # The split and the order are those of from=DIR/wrap, so the data set is the same.
    below = labels(tmp_path / "classes" / wrap)
    assert {s: {f"{wrap}/{p}": n for p, n in part.items()} for s, part in below.items()} == read
    assert list(read["train"]) == [f"{wrap}/{p}" for p in below["train"]]


def test_splits_with_one_folder_inside_are_passed_through(tmp_path):
    plant(tmp_path, *(f"{s}/{s}/{c}/" for s in ("train", "test") for c in ("cat", "dog")))
    assert labels(tmp_path)["test"] == {"test/test/cat/x.png": "cat", "test/test/dog/x.png": "dog"}
    plant(tmp_path / "odd", "train/images/cat/", "train/images/dog/", "val/data/cat/", "test/images/")
    assert labels(tmp_path / "odd") == {
        "train": {"train/images/cat/x.png": "cat", "train/images/dog/x.png": "dog"},
        "val": {"val/data/cat/x.png": "cat"},
        "test": {"test/images/x.png": None},
    }


def test_a_class_is_the_first_folder_and_its_number_the_place_in_the_order_of_text(tmp_path):
    plant(tmp_path, "train/animals/cat/", "train/animals/dog/", "train/plants/rose/", "train/plants/1.png")
    assert set(labels(tmp_path, test_percent=0)["train"].values()) == {"animals", "plants"}
    plant(tmp_path / "numbers", "1/", "2/", "10/")
    assert open_source("folder", tmp_path / "numbers", test_percent=0).classes == ["1", "10", "2"]


@pytest.mark.parametrize("name", CLUTTER)
def test_what_systems_leave_is_neither_class_nor_image(tmp_path, name):
    plant(tmp_path, "cat/", "dog/", f"{name}/", f"cat/{name}/", f"dog/deep/{name}/more/", "cat/._x.png")
    plant(tmp_path, "cat/Thumbs.db", "cat/.DS_Store", "dog/desktop.ini")
    source = open_source("folder", tmp_path, test_percent=0)
    assert source.classes == ["cat", "dog"]
    assert sorted(source.splits["train"].paths) == ["cat/x.png", "dog/x.png"]
    left_out = {entry["member"]: entry["why"] for entry in source.left_out}
    assert {path: why for path, why in left_out.items() if path.endswith(name)} == dict.fromkeys(
        (name, f"cat/{name}", f"dog/deep/{name}"), CLUTTER[name]
    )
    assert left_out["cat/._x.png"] == left_out["cat/.DS_Store"] == "a hidden file"
    assert left_out["cat/Thumbs.db"] == left_out["dog/desktop.ini"] == "its name is no image's"


def test_two_normal_forms_of_a_name_are_one_class(tmp_path):
    assert COMPOSED != DECOMPOSED
    plant(tmp_path / "a", f"train/{COMPOSED}/", "train/dog/", f"val/{DECOMPOSED}/", "val/dog/")
    assert labels(tmp_path / "a")["val"] == {f"val/{DECOMPOSED}/x.png": COMPOSED, "val/dog/x.png": "dog"}
    plant(tmp_path / "b", f"train/{DECOMPOSED}/", f"val/{COMPOSED}/")
    assert labels(tmp_path / "b")["val"] == {f"val/{COMPOSED}/x.png": COMPOSED}
    plant(tmp_path / "c", f"{COMPOSED}/", f"{DECOMPOSED}/", "dog/")
    source = open_source("folder", tmp_path / "c", test_percent=0)
    assert source.classes == [COMPOSED, "dog"]
    assert sorted(source.splits["train"].labels) == [0, 0, 1]
    plant(tmp_path / "d", f"train/{COMPOSED}/", "train/dog/", "val/images/1.png")
    (tmp_path / "d/val/val_annotations.txt").write_text(f"1.png\t{DECOMPOSED}\t0\n", "utf-8")
    assert labels(tmp_path / "d")["val"] == {"val/images/1.png": COMPOSED}


def test_empty_folders_named_after_splits(tmp_path):
    plant(tmp_path / "a", "cat/", "dog/")
    (tmp_path / "a/test").mkdir()
    assert open_source("folder", tmp_path / "a", test_percent=0).classes == ["cat", "dog"]
    plant(tmp_path / "b", "train/cat/", "train/dog/")
    (tmp_path / "b/val").mkdir()
    assert set(labels(tmp_path / "b")) == {"train"}  # it has splits, so none is cut off by a hash
    entry = {"member": "val", "why": "a split without an image that can be used"}
    assert open_source("folder", tmp_path / "b").left_out == [entry]


def test_classes_that_differ_in_case_are_two_where_train_has_both(tmp_path):
    plant(tmp_path, "train/a/", "train/A/", "val/A/", "val/a/")
    assert labels(tmp_path)["val"] == {"val/A/x.png": "A", "val/a/x.png": "a"}


def test_a_folder_that_may_not_be_read_matters_only_where_it_is_used(tmp_path, monkeypatch):
    plant(tmp_path, "train/a/", "train/b/", "val/a/", "private/")
    (tmp_path / "train/loop").symlink_to(tmp_path / "train/loop")
    scandir = tree.os.scandir

    def refuse(name):
        def scan(path):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(tree.os, "scandir", scan)

    refuse("private")
    assert set(labels(tmp_path)) == {"train", "val"}
    left_out = open_source("folder", tmp_path).left_out
    assert left_out == [
        {"member": "private", "why": "a folder that is no split"},
        {"member": "train/loop", "why": "a link to nothing"},
    ]
    refuse("val/a")
    assert f"{tmp_path}/val/a cannot be read (Permission denied)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("val", "val is a link to nothing; mend it, or remove it"),
        ("my/Test", "my/Test is a link to nothing"),
        ("train", "train is a link to nothing"),
    ],
)
def test_a_split_whose_link_leads_nowhere_is_refused(tmp_path, link, words):
    here = link.rpartition("/")[0]
    plant(tmp_path / here, *(["cat/", "dog/"] if link == "train" else ["train/cat/", "train/dog/"]))
    (tmp_path / link).symlink_to(tmp_path / "gone")
    assert words in refusal(tmp_path)


def test_other_links_that_lead_nowhere_are_named(tmp_path):
    plant(tmp_path, "train/a/", "train/b/", "val/a/")
    for name in ("train/c", "train/a/2.png", "val/a/notes.txt", "val/val"):
        (tmp_path / name).symlink_to("gone")
    source = open_source("folder", tmp_path)
    assert source.classes == ["a", "b"]
    names = ("train/a/2.png", "train/c", "val/a/notes.txt", "val/val")
    assert source.left_out == [{"member": name, "why": "a link to nothing"} for name in names]


@pytest.mark.parametrize("text", ["", "1.png cat 0", "2.png\tcat", "1.png\tbird"])
def test_annotations_that_give_no_image_a_class_are_refused(tmp_path, text):
    plant(tmp_path, "train/cat/", "val/images/1.png")
    (tmp_path / "val/val_annotations.txt").write_text(text)
    assert "val_annotations.txt: no line gives an image of val a class of train; expected NAME<tab>CLASS" in (
        refusal(tmp_path)
    )
    (tmp_path / "val/val_annotations.txt").write_text("\ufeff1.png\tcat \t0", "utf-8")
    assert labels(tmp_path)["val"] == {"val/images/1.png": "cat"}
