"""Labels, splits and corrections as users really have them."""

import csv
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from petnb import ImageData, Predictor, vision_learner
from petnb.data import same_bytes
from petnb.sources import (
    by_file,
    by_folder,
    check_edits,
    fold_numbers,
    k_fold,
    read_table,
    safe_cell,
)

BREEDS = ("Bombay", "beagle", "pug")
LISTED = [f"{breed}_{number}.jpg" for breed in BREEDS for number in range(10)]
LABELS = [name.split("_")[0] for name in LISTED]


@pytest.fixture(scope="module", autouse=True)
def files_are_fine() -> Iterator[None]:
    """Names and sides are tested here, on files that are empty or on no disk at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("petnb.data.glance", lambda path: None)
        yield


def listed(**options: Any) -> ImageData:
    """Thirty images of three breeds that are on no disk."""
    return ImageData.from_lists([f"pets/{name}" for name in LISTED], LABELS, **options)


def put(folder: Path, *names: str) -> Path:
    """Make empty files, and the folders above them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def sides(data: ImageData) -> dict[str, str]:
    return {
        Path(path).name: side
        for path, side in zip(data.items["path"], data.items["split"], strict=True)
    }


# -- Names (13, 20) ------------------------------------------------------------------------------

WILD = [
    *("naïve Кот 猫 🐈", " leading space", "trailing space ", "two\nlines", "carriage\rreturn"),
    *('a "quoted" one', "it's", "-rf", "--help", "=cmd|'calc'!A1", "+1", "@SUM(A1)", "a,b;c", "\t"),
    *("$x^2$", "<script>alert(1)</script>", "&amp;", "NA", "None", "nan", "007", "1e5", "True"),
    *("\u202egpj.tac", "\ufeff", "\\", "%20", "~", "#", "'", '"', "*", "?", "\x7f", "é", "e\u0301"),
]
FILES = [name.replace("/", "") for name in WILD]
NAMES = st.one_of(
    st.sampled_from(FILES),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1).filter(
        lambda name: not name.startswith(".") and len(name.encode()) < 200
    ),
)
QUICKLY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICKLY
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True), NAMES)
@example(FILES, "=cmd")
@example(FILES, "\r\n")
def test_names_survive_folders_and_tables(classes: list[str], stem: str) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder, "root")
        put(root, *(f"{label}/{stem}{n}.jpg" for label in classes for n in range(2)))
        data = ImageData.from_folder(root)
        assert data.vocab == sorted(classes)
        assert all(Path(path).is_file() for path in data.items["path"])
        again = ImageData.from_csv(data.to_csv(Path(folder, "items.csv")), root)
        pd.testing.assert_frame_equal(again.items, data.items)
        assert again.vocab == data.vocab
        assert json.loads(json.dumps(again.vocab)) == data.vocab


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9 %d.jpg" % number) for number in range(4)]  # Latin-1, as in 1999
    try:
        put(tmp_path / "root", *(f"{'ab'[n % 2]}/{name}" for n, name in enumerate(names)))
    except OSError as error:
        pytest.skip(f"this file system wants names in Unicode: {error}")
    data = ImageData.from_folder(tmp_path / "root")
    again = ImageData.from_csv(data.to_csv(tmp_path / "items.csv"), tmp_path / "root")
    assert list(again.items["path"]) == list(data.items["path"])
    assert data.to_csv(tmp_path / "safe.csv", spreadsheet=True).read_text(encoding="utf-8")


class Text(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


PLAIN = {"div", "b", "ul", "li", "table", "tr", "th", "td", "style"}


@QUICKLY
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True), NAMES)
@example(WILD, "&lt;b&gt;")
@example(["<script>alert(1)</script>", "&lt;b&gt;", "$"], '"><img src=x onerror=alert(1)>')
def test_names_are_text_in_a_notebook(classes: list[str], root: str) -> None:
    paths = [f"{root}/{number}.jpg" for number in range(2 * len(classes))]
    data = ImageData.from_lists(paths, classes * 2)
    data.notes.append(f"left out: {classes[0]}")
    data.source = classes[1]
    page = Text(data._repr_html_())
    assert page.tags <= PLAIN
    assert set(classes) <= set(page.text)
    assert f"left out: {classes[0]}" in page.text
    assert any(text.startswith(f"labels: {classes[1]};") for text in page.text)


def test_the_parser_sees_a_script() -> None:
    assert "script" in Text("<p><script>alert(1)</script>").tags


def test_names_are_text_in_figures(tmp_path: Path) -> None:
    labels = ["$\\frac{", "<b>&", "a_$x"]
    for number in range(6):
        Image.new("RGB", (40, 40), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    data = ImageData.from_lists(paths, labels * 2, size=32, workers=0)
    ticks = data.plot_classes().get_yticklabels()
    ticks[0].figure.canvas.draw()
    assert {tick.get_text() for tick in ticks} == set(labels)
    shown = data.show_batch(3)
    shown.flat[0].figure.canvas.draw()
    assert {axes.get_title() for axes in shown.flat if axes.get_title()} <= set(labels)


def test_names_survive_an_exported_model(tmp_path: Path) -> None:
    labels = WILD[:8] + WILD[-8:]
    data = ImageData.from_lists([f"{n}.jpg" for n in range(32)], labels * 2, size=32, workers=0)
    learn = vision_learner(data, "resnet10t", pretrained=False, show_progress=False)
    assert Predictor.load(learn.export(tmp_path / "pets.safetensors")).vocab == sorted(labels)


# -- A copy for spreadsheets (39) ----------------------------------------------------------------

BEGINS_A_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


@QUICKLY
@given(NAMES, NAMES)
@example("=cmd|'calc'!A1", " =1+1")
@example('"=1', "a\n=1")
def test_no_cell_of_the_copy_is_a_formula(label: str, name: str) -> None:
    with TemporaryDirectory() as folder:
        data = ImageData.from_lists(
            [f"{name}{n}" for n in range(4)], [label] * 2 + [f"{label}b"] * 2
        )
        data.items[f"={label}"] = name
        path = data.to_csv(Path(folder, "people.csv"), spreadsheet=True)
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.lstrip(" ").startswith(BEGINS_A_FORMULA)]
    assert len(rows) == 5
    assert rows[1][1].removeprefix("'") == label.removeprefix("'")


def test_numbers_stay_numbers() -> None:
    assert [safe_cell(value) for value in (-1.5, 3, "-1", "pug")] == [-1.5, 3, "'-1", "pug"]


# -- Tables --------------------------------------------------------------------------------------


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Images without a telling name, and a table of theirs."""
    put(tmp_path, *(f"train/{number:03}.JPG" for number in range(8)))
    return tmp_path


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines), encoding=encoding)
    return path


@pytest.mark.parametrize("ending", ["", ".JPG"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_with_and_without_endings(kaggle: Path, ending: str, encoding: str) -> None:
    rows = [f"{number:03}{ending},{'NA' if number % 2 else 'null'}" for number in range(8)]
    table = write(kaggle / "labels.csv", "id,breed", *rows, encoding=encoding)
    data = ImageData.from_csv(table, kaggle / "train", path="id", label="breed", size=32)
    assert data.vocab == ["NA", "null"]
    assert [Path(path).name for path in data.items["path"]] == [f"{n:03}.JPG" for n in range(8)]
    assert data.size == 32


def test_paths_may_hold_folders_and_stand_anywhere_in_the_table(kaggle: Path) -> None:
    rows = [f"{'ab'[number % 2]},x,train/{number:03}" for number in range(8)]
    data = ImageData.from_csv(write(kaggle / "t.csv", "l,m,p", *rows), path=-1, label="l")
    assert list(data.items["label"]) == list("abababab")
    assert list(data.items["m"]) == ["x"] * 8


def test_missing_images_are_counted_and_shown(kaggle: Path) -> None:
    table = write(kaggle / "t.csv", "id,breed", "000,a", "900,a", "901,b", "902,b", "903,b")
    with pytest.raises(FileNotFoundError, match=r"4 of 5 images are not .*'900', '901', '902'\]"):
        ImageData.from_csv(table, kaggle / "train")


def test_one_name_for_two_files(kaggle: Path) -> None:
    put(kaggle, "train/000.png")
    table = write(kaggle / "t.csv", "id,breed", "000,a", "001,a", "002,b", "003,b")
    with pytest.raises(ValueError, match=r"'000' may mean \['000.JPG', '000.png'\]"):
        ImageData.from_csv(table, kaggle / "train")


@pytest.mark.parametrize("empty", ["", None, float("nan")])
def test_a_row_without_a_label(kaggle: Path, empty: Any) -> None:
    table = pd.DataFrame({"id": ["000", "001", "002"], "breed": ["a", empty, "b"]})
    with pytest.raises(ValueError, match=r"1 of 3 rows have no label, such as '001' \(row 1\)"):
        ImageData.from_df(table, kaggle / "train")


def test_a_column_that_is_not_there(kaggle: Path) -> None:
    table = pd.DataFrame({"id": ["000"], "breed": ["a"]})
    with pytest.raises(KeyError, match=r"no column 'label'; the table has \['id', 'breed'\]"):
        ImageData.from_df(table, kaggle / "train", label="label")
    with pytest.raises(KeyError, match="no column 2: the table has 2 columns"):
        ImageData.from_df(table, kaggle / "train", label=2)


@pytest.mark.parametrize("values", [[True, False], ["True", "False"], ["1", "0"], [1, 0]])
def test_a_column_is_valid(kaggle: Path, values: list[Any]) -> None:
    table = pd.DataFrame({"id": [f"{n:03}" for n in range(8)], "breed": list("aabbaabb")})
    table["is_valid"] = values * 4
    data = ImageData.from_df(table, kaggle / "train", split="is_valid")
    assert list(data.items["split"]) == ["valid", "train"] * 4
    assert list(data.items["label"]) == list("aabbaabb")


def test_numbers_as_labels(kaggle: Path) -> None:
    table = pd.DataFrame({"id": [f"{n:03}" for n in range(8)], "digit": [0, 1] * 4})
    assert ImageData.from_df(table, kaggle / "train").vocab == ["0", "1"]


def test_a_column_split_is_the_split_unless_another_is_wanted(kaggle: Path) -> None:
    table = pd.DataFrame({"id": [f"{n:03}" for n in range(8)], "breed": list("abababab")})
    table["split"] = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    data = ImageData.from_df(table, kaggle / "train")
    assert list(data.items["split"]) == list(table["split"])
    other = ImageData.from_df(table, kaggle / "train", valid="stratified")
    assert "test" not in set(other.items["split"])
    with pytest.raises(ValueError, match=r"'train', 'valid' or 'test', and not \['unknown'\]"):
        ImageData.from_df(table.replace("test", "unknown"), kaggle / "train")


def test_an_image_that_is_listed_twice() -> None:
    data = ImageData.from_lists(LISTED + LISTED[:2], LABELS + LABELS[:2])
    assert len(data.items) == 30
    assert data.notes == ["rows left out, since they repeat another: 2"]
    with pytest.raises(ValueError, match=r"in more than one way: 1, such as .*'pug'"):
        ImageData.from_lists([*LISTED, LISTED[0]], [*LABELS, "pug"])


# -- Functions and folders -----------------------------------------------------------------------


def test_functions_of_names_and_paths(tmp_path: Path) -> None:
    put(tmp_path, *(f"{'Cd'[n % 2]}/{'Cd'[n % 2]}{n}.jpg" for n in range(8)))
    by_name = ImageData.from_name_func(tmp_path, lambda name: name[0].isupper(), batch_size=3)
    by_path = ImageData.from_path_func(tmp_path, lambda path: path.parent.name)
    assert (by_name.vocab, by_name.batch_size) == (["False", "True"], 3)
    assert by_path.vocab == ["C", "d"]


def test_an_error_in_a_function_names_the_file(tmp_path: Path) -> None:
    put(tmp_path, "a_1.jpg", "b.jpg")
    with pytest.raises(IndexError) as raised:
        ImageData.from_name_func(tmp_path, lambda name: name.split("_")[1])
    assert "b.jpg" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match=r"no label for 1 of 2 images, such as \['b.jpg'\]"):
        ImageData.from_name_func(tmp_path, lambda name: "" if name == "b.jpg" else "a")


def test_folders_train_and_valid_are_the_split(tmp_path: Path) -> None:
    root = tmp_path / "train" / "pets"  # a folder above the root is not asked
    put(
        root,
        *(f"{s}/{b}/{n}.jpg" for s in ("train", "val", "test") for b in "ab" for n in range(3)),
    )
    data = ImageData.from_folder(root)
    assert [Path(path).parents[1].name for path in data.items["path"]] == [
        {"valid": "val"}.get(side, side) for side in data.items["split"]
    ]
    assert data.vocab == ["a", "b"]
    assert "split by those named test, train, val" in data.source
    mixed = ImageData.from_folder(root, valid="stratified")
    assert mixed.class_counts()["valid"].tolist() == [2, 2]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(
        tmp_path,
        *(f"{s}/{b}/{n}.jpg" for s in ("train", "valid") for b in ("bus", "train") for n in (1, 2)),
    )
    data = ImageData.from_folder(tmp_path)
    assert data.class_counts().to_numpy().tolist() == [[2, 2], [2, 2]]
    assert {Path(path).parents[1].name for path in data.on_side("valid")["path"]} == {"valid"}


def test_a_split_by_folders_is_not_mixed_for_a_few_strays(tmp_path: Path) -> None:
    put(tmp_path, *(f"{s}/{b}/1.jpg" for s in ("train", "valid", "more") for b in "ab"))
    with pytest.raises(ValueError, match=r"2 of 6 images are in no folder named .*'more/a/1.jpg'"):
        ImageData.from_folder(tmp_path)


def test_a_file_lists_what_is_held_out(tmp_path: Path) -> None:
    file = write(tmp_path / "valid.txt", "Bombay_1.jpg", "beagle_2.jpg", "", "pug_3.jpg", "")
    held_out = listed(valid=by_file(file)).on_side("valid")["path"].tolist()
    assert held_out == ["pets/Bombay_1.jpg", "pets/beagle_2.jpg", "pets/pug_3.jpg"]
    write(file, "Bombay_1.jpg", "pets/pug_3.jpg")
    with pytest.raises(ValueError, match=r"1 of 2 lines of .*\['pets/pug_3.jpg'\].*'Bombay_0.jpg'"):
        listed(valid=by_file(file))


@pytest.mark.parametrize("nothing", ["", None, float("nan")])
def test_lists_with_a_label_missing(nothing: Any) -> None:
    with pytest.raises(ValueError, match=r"1 of 30 images have no label: \['Bombay_0.jpg'\]"):
        ImageData.from_lists(LISTED, [nothing, *LABELS[1:]])


def test_folders_by_other_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{side}/{breed}/1.jpg" for side in ("learn", "check") for breed in "ab"))
    named = by_folder({"learn": "train", "check": "valid"})
    data = ImageData.from_folder(tmp_path, valid=named)
    assert [Path(p).parents[1].name for p in data.on_side("valid")["path"]] == ["check"] * 2
    put(tmp_path, "more/a/1.jpg")
    with pytest.raises(ValueError, match=r"1 of 5 images are in no folder named .*'more/a/1.jpg'"):
        ImageData.from_folder(tmp_path, valid=named)


def test_images_that_no_folder_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{s}/{b}/{n}.jpg" for s in ("train", "valid") for b in "ab" for n in range(2)))
    put(tmp_path, "test/1.jpg", "test/2.jpg")  # as a competition has them
    with pytest.raises(ValueError, match=r"2 of 10 images .*no folder that names .*'test/1.jpg'"):
        ImageData.from_folder(tmp_path)
    put(tmp_path / "flat", "1.jpg", "a/2.jpg", "b/3.jpg")
    with pytest.raises(ValueError, match=r"1 of 3 images .*'1.jpg'\]"):
        ImageData.from_folder(tmp_path / "flat")


def test_an_empty_folder(tmp_path: Path) -> None:  # 19
    ways: list[Callable[[Path], ImageData]] = [
        ImageData.from_folder,
        ImageData.from_name_re,
        lambda root: ImageData.from_name_func(root, str),
        lambda root: ImageData.from_path_func(root, str),
    ]
    for way in ways:
        with pytest.raises(FileNotFoundError, match=r"no image under .*\.jpeg \.jpg") as raised:
            way(tmp_path)
        assert str(tmp_path) in str(raised.value)


# -- Groups --------------------------------------------------------------------------------------


def owner(path: str) -> str:
    """Burst shots: three photographs in a row are of one animal."""
    breed, number = Path(path).stem.split("_")
    return f"{breed} {int(number) // 3}"


@pytest.mark.parametrize("valid", ["stratified", "random", k_fold(1, 3)])
@pytest.mark.parametrize(
    "groups",
    [
        owner,
        [owner(name) for name in LISTED],
        {f"pets/{name}": owner(name) for name in LISTED},
        {Path(f"pets/{name}"): owner(name) for name in LISTED if name < "beagle_3"},
    ],
    ids=["function", "list", "dictionary", "some"],
)
@pytest.mark.parametrize("test_pct", [0, 0.2])
def test_a_group_is_never_divided(valid: Any, groups: Any, test_pct: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if valid == "random" else "error")
        data = listed(valid=valid, groups=groups, test_pct=test_pct)
    assert data.items.groupby("together")["split"].nunique().max() == 1
    assert (data.class_counts()["train"] > 0).all()
    assert set(data.items["split"]) == {"train", "valid"} | ({"test"} if test_pct else set())


def test_without_groups_they_would_be() -> None:
    items = listed().items
    assert items.groupby([owner(path) for path in items["path"]])["split"].nunique().max() == 2


@QUICKLY
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=12, max_size=60),
    st.integers(0, 5),
)
def test_groups_of_every_shape(images: list[tuple[str, int]], seed: int) -> None:
    labels, groups = [label for label, _ in images], [group for _, group in images]
    table = pd.DataFrame({"label": labels, "group": groups})
    alone = table.groupby("label")["group"].nunique() < 2
    paths = [f"{number}.jpg" for number in range(len(images))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = ImageData.from_lists(paths, labels, groups=groups, seed=seed)
    except ValueError as error:
        message = str(error)
        assert any(w in message for w in ("classifier needs", "cannot be dealt", "never learnt"))
        return
    counts = data.class_counts()
    assert data.items.groupby("together")["split"].nunique().max() == 1
    assert (counts["train"] > 0).all()
    assert (counts["valid"][[label for label in counts.index if alone[label]]] == 0).all()


def test_the_share_of_groups() -> None:
    paths = [f"{number}.jpg" for number in range(600)]
    labels = [BREEDS[number % 3] for number in range(600)]
    groups = [number // 6 for number in range(600)]
    for pct in (0.1, 0.15, 0.2, 0.3, 0.4, 0.5):
        counts = ImageData.from_lists(paths, labels, groups=groups, valid_pct=pct).class_counts()
        share = counts["valid"] / counts.sum(axis=1)
        assert share.between(pct - 0.02, pct + 0.02).all()


def test_wrong_groups() -> None:
    with pytest.raises(ValueError, match="2 groups but 30 images"):
        listed(groups=["a", "b"])
    with pytest.raises(KeyError, match="no column 'owner'"):
        listed(groups="owner")
    with pytest.raises(ValueError, match="cannot be dealt into 2 folds: 0 of them"):
        listed(groups=lambda path: "the same")
    with pytest.raises(ValueError, match="one group, which cannot be divided"):
        listed(groups=lambda path: "the same", valid="random")


def test_a_users_column_named_group_means_nothing_by_itself(kaggle: Path) -> None:
    table = pd.DataFrame({"id": [f"{n:03}" for n in range(8)], "breed": list("abababab")})
    data = ImageData.from_df(table.assign(group="one"), kaggle / "train")
    assert data.class_counts()["valid"].tolist() == [1, 1]


# -- Folds, tests, positions ---------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, owner])
@pytest.mark.parametrize("test_pct", [0, 0.2])
def test_over_all_folds_each_image_is_held_out_once(groups: Any, test_pct: float) -> None:
    folds = [listed(valid=k_fold(k, 3), groups=groups, test_pct=test_pct) for k in range(3)]
    table = pd.DataFrame({k: fold.items["split"] for k, fold in enumerate(folds)})
    in_test = (table == "test").any(axis=1)
    assert (table[in_test] == "test").all(axis=None)
    assert in_test.any() == bool(test_pct)
    assert ((table[~in_test] == "valid").sum(axis=1) == 1).all()


def test_a_single_image_is_in_every_fold_learnt_from() -> None:
    items = pd.DataFrame({"label": ["a"] * 5 + ["b"] * 5 + ["c"]})
    assert fold_numbers(items, 5)[-1] == -1
    with pytest.raises(ValueError, match="11 images cannot be dealt into 6 folds"):
        fold_numbers(items, 6)


@pytest.mark.parametrize(("k", "n"), [(5, 5), (-1, 5), (0, 1)])
def test_folds_that_are_none(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"fold {k} of {n}: give 2 or more folds"):
        k_fold(k, n)


def test_a_test_apart_does_not_move() -> None:
    one, other = listed(test_pct=0.2), listed(test_pct=0.2, valid_pct=0.4)
    test = one.on_side("test")["path"]
    assert list(test) == list(other.on_side("test")["path"])
    assert one.class_counts().to_numpy().tolist() == [[6, 2, 2]] * 3
    assert other.class_counts().to_numpy().tolist() == [[4, 4, 2]] * 3
    assert "6 for the last test" in repr(one)
    assert listed(test_pct=0.2, seed=1).on_side("test")["path"].tolist() != test.tolist()


def test_the_test_has_a_loader() -> None:
    data = ImageData.drawn_pets(12, 128, size=32, workers=0, test_pct=0.2)
    images, targets = next(iter(data.test))
    assert len(images) == len(targets) == len(data.on_side("test")) == 20
    assert data.plot_classes().get_legend().get_texts()[2].get_text() == "for the last test"  # type: ignore[union-attr]


@pytest.mark.parametrize("positions", [[0, 10, 29], (0, 10, 29), np.array([0, 10, 29])])
def test_positions(positions: Sequence[int]) -> None:
    assert listed(valid=positions).on_side("valid")["path"].tolist() == [
        f"pets/{LISTED[place]}" for place in (0, 10, 29)
    ]


def test_positions_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"no image at \[30, -1\]: positions go from 0 to 29"):
        listed(valid=[0, 30, -1])


def test_a_splitter_of_ones_own() -> None:
    def newest(items: pd.DataFrame, seed: int) -> list[str]:
        assert items["path"].tolist()[0] == "Bombay_0.jpg"  # relative to the root
        assert seed == 7
        return ["valid" if path.endswith("9.jpg") else "train" for path in items["path"]]

    assert listed(valid=newest, seed=7).class_counts()["valid"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"and not \['held'\]"):
        listed(valid=lambda items, seed: ["held"] * len(items))


@pytest.mark.parametrize("options", [{"valid_pct": 0}, {"valid_pct": 1.5}, {"test_pct": 0.8},
                                     {"test_pct": -0.1}, {"valid": "half"}])  # fmt: skip
def test_shares_and_ways_that_are_none(options: dict[str, Any]) -> None:
    value = str(next(iter(options.values())))
    with pytest.raises(ValueError, match=value):
        listed(**options)


def test_the_same_seed_splits_as_before_chapter_00c() -> None:
    """A split is a promise: seed 42 gave these to 0.0.1's first users."""
    assert [name for name, side in sides(listed()).items() if side == "valid"] == EXPECTED


EXPECTED = [
    f"{name}.jpg" for name in ("Bombay_5", "Bombay_6", "beagle_4", "beagle_8", "pug_0", "pug_9")
]


# -- What a split can break (16, 17, 18) ---------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_class_with_one_image_is_kept_and_warned_of(seed: int) -> None:
    with pytest.warns(UserWarning, match=r"not checked, no image is held out: 'Sphynx' \(1\)"):
        data = ImageData.from_lists([*LISTED, "Sphynx_1.jpg"], [*LABELS, "Sphynx"], seed=seed)
    assert data.vocab == ["Bombay", "Sphynx", "beagle", "pug"]
    assert sides(data)["Sphynx_1.jpg"] == "train"
    assert "'Sphynx' (1)" in data.notes[0]
    assert "'Sphynx' (1)" in repr(data)
    assert "Sphynx&#x27; (1)" in data._repr_html_()


def test_a_class_that_is_only_held_out() -> None:
    held_out = [place for place, label in enumerate(LABELS) if label != "beagle"][5:]
    with pytest.raises(ValueError, match=r"never learnt from: 'pug' \(10\); put some"):
        listed(valid=held_out)


def test_classes_that_are_only_tested_and_too_many_to_name() -> None:
    labels = [f"{number:02}" for number in range(25)]
    official = ["test" if label > "03" else "train" for label in labels] + ["valid"] * 2
    table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(27)], "label": [*labels, "00", "01"]})
    with TemporaryDirectory() as folder:
        put(Path(folder), *table["path"])
        with pytest.raises(ValueError, match=r"'04' \(1\), .*'13' \(1\) and 11 more; put some"):
            ImageData.from_df(table.assign(split=official), folder)


def test_a_class_that_is_missing_there() -> None:
    with pytest.warns(UserWarning, match=r"no image is held out: 'beagle' \(10\), 'pug' \(10\)"):
        data = listed(valid=[0, 1, 2])
    assert len(data.notes) == 1


def test_quiet_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert listed().notes == []


def test_one_class_only() -> None:
    with pytest.raises(
        ValueError, match=r"10 images of 1 class \['Bombay'\]: a classifier needs 2"
    ):
        ImageData.from_lists(LISTED[:10], LABELS[:10])


@pytest.mark.parametrize("valid", ["stratified", "random"])
def test_two_images_in_all(valid: Any) -> None:
    with pytest.raises(ValueError, match=r"2 images of 2 classes, and none|never learnt from"):
        ImageData.from_lists(["a.jpg", "b.jpg"], ["a", "b"], valid=valid)


def test_one_image_a_class_says_what_is_missing() -> None:
    with pytest.raises(
        ValueError, match=r"4 images of 4 classes, and none is held out: .* 2 images"
    ):
        ImageData.from_lists(list("abcd"), list("abcd"))


def test_an_empty_side() -> None:
    with pytest.raises(ValueError, match="none is to learn from"):
        listed(valid=range(30))
    with pytest.raises(ValueError, match="none is held out"):
        listed(valid=[])


# -- Classes and trials --------------------------------------------------------------------------


def test_merging_comes_before_choosing() -> None:
    data = listed(merge={"beagle": "dog", "pug": "dog"})
    assert data.class_counts().sum(axis=1).to_dict() == {"Bombay": 10, "dog": 20}
    chosen = listed(merge=lambda label: label.lower(), classes=["bombay", "pug"])
    assert chosen.vocab == ["bombay", "pug"]
    assert chosen.notes == ["left out, not among the chosen classes: 10 images"]


@pytest.mark.parametrize("option", [{"merge": {"bugle": "dog"}}, {"classes": ["bugle", "pug"]}])
def test_a_misspelt_class(option: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"names 'bugle', which is no class here; near it: \['beagle"
    ):
        listed(**option)


def test_a_subset_for_trials() -> None:
    data = listed(test_pct=0.2)
    trial = data.subset(0.5)
    assert trial.class_counts().to_numpy().tolist() == [[3, 1, 1]] * 3
    assert trial.vocab == data.vocab
    assert sides(trial).items() <= sides(data).items()
    assert sides(trial) == sides(data.subset(0.5))
    assert data.subset(1e-9).class_counts().to_numpy().tolist() == [[1, 1, 1]] * 3
    assert data.subset(1).items.equals(data.items)
    assert trial.notes == ["a trial with 15 of 30 images"]
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=f"share is {share}"):
            data.subset(share)


# -- Corrections (40) ----------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> ImageData:
    """Two classes on disk, in a folder beside a secret."""
    put(tmp_path, "secret.jpg", *(f"pets/{breed}/{n}.jpg" for breed in "ab" for n in range(4)))
    return ImageData.from_folder(tmp_path / "pets")


def edits(path: Path, *rows: tuple[str, str]) -> Path:
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(
        path / "edits.csv", index=False, quoting=csv.QUOTE_ALL
    )
    return path / "edits.csv"


def test_corrections(home: ImageData, tmp_path: Path) -> None:
    files = sorted(tmp_path.rglob("*"))
    inside = str(home.root / "b" / "1.jpg")  # an absolute path, but inside
    table = edits(
        tmp_path, ("a/0.jpg", "b"), ("a/./1.jpg", "delete"), (inside, "a"), ("a/2.jpg", "a")
    )
    data = home.relabel(table)
    labels = dict(zip(data.items["path"], data.items["label"], strict=True))
    assert labels[str(home.root / "a" / "0.jpg")] == "b"
    assert labels[inside] == "a"
    assert str(home.root / "a" / "1.jpg") not in labels
    assert data.notes == [
        "corrections: labels changed 2, images struck off 1, labels as they were 1"
    ]
    before = dict(zip(home.items["path"], home.items["split"], strict=True))
    assert all(before[row.path] == row.split for row in data.items.itertuples())
    assert sorted(tmp_path.rglob("*")) == sorted([*files, table])  # no file was touched
    assert len(home.items) == 8


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.jpg", "outside pets"),
        ("a/../../secret.jpg", "outside pets"),
        ("../pets/../secret.jpg", "outside pets"),
        ("/etc/passwd", "outside pets"),
        ("../pets2/a/0.jpg", "outside pets"),
        ("a/9.jpg", "no such image here"),
        ("a", "no such image here"),
        ("", "no such image here"),
        ("a\\0.jpg", "no such image here"),
        ("~/x.jpg", "no such image here"),
        ("out/secret.jpg", "a link leads outside pets"),
        ("linked.jpg", "a link leads outside pets"),
    ],
)
@pytest.mark.parametrize("label", ["b", "delete"])
def test_refused_corrections(
    home: ImageData, tmp_path: Path, path: str, reason: str, label: str
) -> None:
    (home.root / "out").symlink_to(tmp_path)
    (home.root / "linked.jpg").symlink_to(tmp_path / "secret.jpg")
    table = edits(tmp_path, (path, label), ("a/0.jpg", "b"))
    assert list(check_edits(home, table)["verdict"]) == [f"refused: {reason}", "relabel"]
    data = home.relabel(table)
    assert data.notes == [
        "corrections: labels changed 1, rows refused 1",
        f"refused: {reason}: {path!r}",
    ]
    assert len(data.items) == 8
    assert f"refused: {reason}" in repr(data)


def test_a_link_that_is_in_the_table_is_refused_too(tmp_path: Path) -> None:
    put(tmp_path, "secret.jpg", *(f"pets/{breed}/{n}.jpg" for breed in "ab" for n in range(4)))
    (tmp_path / "pets" / "a" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    data = ImageData.from_folder(tmp_path / "pets")
    verdicts = check_edits(data, edits(tmp_path, ("a/link.jpg", "delete")))
    assert list(verdicts["verdict"]) == ["refused: a link leads outside pets"]


def test_the_root_itself_may_be_a_link(home: ImageData, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(home.root)
    data = ImageData.from_folder(tmp_path / "alias")
    assert list(check_edits(data, edits(tmp_path, ("a/0.jpg", "b")))["verdict"]) == ["relabel"]


def test_the_later_row_counts(home: ImageData, tmp_path: Path) -> None:
    table = edits(
        tmp_path, ("a/0.jpg", "delete"), ("a/./0.jpg", "b"), ("a/1.jpg", "b"), ("a/1.jpg", "a")
    )
    data = home.relabel(table)
    assert data.notes == [
        "corrections: labels changed 1, labels as they were 1, rows overruled by a later one 2"
    ]


def test_labels_that_are_no_class(home: ImageData, tmp_path: Path) -> None:
    rows = [("a/0.jpg", "c"), ("a/1.jpg", "c"), ("a/2.jpg", "c"), ("b/0.jpg", "")]
    table = edits(tmp_path, *rows)
    verdicts = check_edits(home, table)["verdict"]
    assert verdicts.str.startswith("refused: no class").all()
    new = check_edits(home, table, new_classes=True)["verdict"]
    assert list(new.str.split(":").str[0]) == ["relabel"] * 3 + ["refused"]
    only = edits(tmp_path, *[(f"a/{n}.jpg", "c") for n in range(4)])
    data = home.relabel(only, new_classes=True)
    assert data.vocab == ["b", "c"]
    assert "no image is left of ['a']" in data.notes


def test_of_many_refused_rows_the_first_are_shown(home: ImageData, tmp_path: Path) -> None:
    data = home.relabel(edits(tmp_path, *[(f"{n}.jpg", "b") for n in range(50)]))
    assert data.notes[0] == "corrections: rows refused 50"
    assert len(data.notes) == 22
    assert data.notes[-1].startswith("and 30 more")


def test_a_class_called_delete(tmp_path: Path) -> None:
    put(tmp_path / "pets", *(f"{breed}/{n}.jpg" for breed in ("delete", "a") for n in range(4)))
    data = ImageData.from_folder(tmp_path / "pets")
    verdicts = check_edits(data, edits(tmp_path, ("a/0.jpg", "delete")))["verdict"]
    assert list(verdicts) == ["refused: 'delete' is a class here"]


def test_corrections_that_break_the_split(home: ImageData, tmp_path: Path) -> None:
    learnt = [Path(p).relative_to(home.root).as_posix() for p in home.on_side("train")["path"]]
    table = edits(tmp_path, *[(path, "b") for path in learnt if path.startswith("a")])
    with pytest.raises(ValueError, match=r"never learnt from: 'a' \(1\)"):
        home.relabel(table)
    everything = edits(tmp_path, *[(f"a/{n}.jpg", "delete") for n in range(4)])
    with pytest.raises(ValueError, match=r"leave only \['b'\]"):
        home.relabel(everything)


def test_a_table_of_corrections_without_its_columns(home: ImageData, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"no column 'path'; the table has \['file', 'label'\]"):
        home.relabel(write(tmp_path / "e.csv", "file,label", "a/0.jpg,b"))
    empty = home.relabel(write(tmp_path / "e.csv", "path,label"))
    assert empty.items.equals(home.items)


@QUICKLY
@given(st.lists(NAMES, min_size=4, max_size=6, unique=True))
def test_corrections_of_names_of_every_kind(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        root = put(Path(folder, "pets"), *(f"{name}.jpg" for name in names))
        paths = [root / f"{name}.jpg" for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = ImageData.from_lists(
                paths, ["a", "b"] * 2 + ["b"] * (len(names) - 4), valid=[0, 1]
            )
        table = edits(Path(folder), *((f"{name}.jpg", "b") for name in names[:1]))
        assert read_table(table)["path"][0] == f"{names[0]}.jpg"
        assert list(data.relabel(table).items["label"])[:2] == ["b", "b"]


# -- In a notebook -------------------------------------------------------------------------------


def test_the_summary_says_where_it_came_from_and_what_is_in_it() -> None:
    page = Text(listed(test_pct=0.2)._repr_html_())
    assert "labels: lists; images under pets" in page.text
    assert page.text.count("6") == 3
    assert {"to learn from", "held out", "for the last test", *BREEDS} <= set(page.text)


def test_of_many_classes_the_smallest_are_shown() -> None:
    labels = [f"class {n:03}" for n in range(100) for _ in range(2 + n % 5)]
    page = ImageData.from_lists([f"{n}.jpg" for n in range(len(labels))], labels)._repr_html_()
    assert page.count("<tr>") == 41
    assert "the 40 smallest of 100 classes" in page
    assert "class 000" in page
    assert "class 004" not in page


# -- Duplicates kept together (12) ----------------------------------------------------------------


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pets of which some lie there twice, byte for byte or saved again."""
    from petnb.doctor import add_twin, redrawn

    root = tmp_path_factory.mktemp("twins") / "pets"
    shutil.copytree(ImageData.drawn_pets(images_per_breed=8, pixels=128, size=64).root, root)
    for number, path in enumerate(sorted(root.glob("*.jpg"))[::4]):
        change = bytes if number % 2 else redrawn(lambda picture: picture)
        add_twin(path, "copied", change, 9000 + number)
    return root


WAYS = ["stratified", "random", k_fold(0, 3)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("valid", WAYS)
def test_duplicates_stay_on_one_side(twins: Path, valid: Any, seed: int) -> None:
    plain = ImageData.from_name_re(twins, valid=valid, seed=seed)
    data = ImageData.from_name_re(twins, valid=valid, seed=seed, groups="duplicates", test_pct=0.1)
    assert "leak" in plain.check().counts()  # Pictures that were saved again
    assert "leak" not in data.check().counts()
    assert "found before the split" in repr(data)
    assert "all on one side" in repr(data)
    assert "found before the split" in data._repr_html_()
    assert (data.items.groupby("together")["split"].nunique() == 1).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("test_pct", [0, 0.2])
@pytest.mark.parametrize("valid", WAYS)
def test_exact_copies_stay_on_one_side_without_being_asked_for(
    twins: Path, valid: Any, test_pct: float, seed: int
) -> None:
    data = ImageData.from_name_re(twins, valid=valid, test_pct=test_pct, seed=seed)
    content = data.items["path"].map(lambda path: Path(path).read_bytes())
    assert content.duplicated().sum() == 10
    assert (data.items.groupby(content)["split"].nunique() == 1).all()
    assert data.findings == ["exact copies of another file: 10, all on one side of the split"]
    assert list(data.items) == ["path", "label", "split"]
    assert (data.class_counts() > 0).all(axis=None) or valid == "random"


@pytest.mark.parametrize("valid", WAYS)
def test_originals_are_split_as_if_there_were_no_copies(tmp_path: Path, valid: Any) -> None:
    for number in range(24):
        name = f"{'pug' if number % 3 else 'Bombay'}_{number:02}.png"
        Image.new("RGB", (9, 9), (10 * number, 0, 0)).save(tmp_path / name)
    before = sides(ImageData.from_name_re(tmp_path, valid=valid))
    for path in sorted(tmp_path.glob("*.png"))[::3]:
        shutil.copy(path, tmp_path / f"{path.stem.partition('_')[0]}_9{path.stem[-2:]}.png")
    after = sides(ImageData.from_name_re(tmp_path, valid=valid))
    assert len(after) == 32
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("valid", ["stratified", k_fold(1, 3)])
def test_a_file_under_two_labels_is_only_learnt_from(tmp_path: Path, valid: Any, seed: int) -> None:
    for number in range(8):
        name = f"{'pug' if number % 2 else 'Bombay'}_{number}.png"
        Image.new("RGB", (9, 9), (10 * number, 0, 0)).save(tmp_path / name)
    shutil.copy(tmp_path / "Bombay_0.png", tmp_path / "pug_10.png")
    data = ImageData.from_name_re(tmp_path, valid=valid, seed=seed)
    disputed = data.items["path"].str.contains("_0|_10")
    assert set(data.items.loc[disputed, "split"]) == {"train"}
    assert (data.class_counts() > 0).all(axis=None)


def test_copies_join_the_groups_they_lie_in(twins: Path) -> None:
    """Each file has an owner of its own, but two owners of one file are not divided."""
    names = sorted(path.name for path in twins.glob("*.jpg"))
    table = pd.DataFrame({"path": names, "label": [name.split("_")[0] for name in names]})
    for seed in range(3):
        data = ImageData.from_df(
            table.assign(owner=range(len(names))), twins, groups="owner", seed=seed
        )
        assert "all on one side" in data.findings[0]
        assert data.items["together"].nunique() == len(names)  # What the user said stays as it is


def test_nothing_but_copies_cannot_be_split(tmp_path: Path) -> None:
    for name in ("pug_1", "pug_2", "Bombay_1", "Bombay_2"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / f"{name}.png")
    for valid in ("stratified", "random"):
        with pytest.raises(ValueError, match=r"none is held out|cannot be split"):
            ImageData.from_name_re(tmp_path, valid=valid)


def test_copies_are_told_where_the_split_is_given(twins: Path) -> None:
    given = ["valid" if "_900" in path.name else "train" for path in sorted(twins.glob("*.jpg"))]
    table = pd.DataFrame({"path": sorted(path.name for path in twins.glob("*.jpg"))})
    table["label"] = table["path"].str.replace(r"_\d+\.jpg", "", regex=True)
    data = ImageData.from_df(table.assign(split=given), twins)
    assert "on both sides of the split that was given" in data.findings[0]
    assert list(data.items["split"]) == given


def test_a_column_called_duplicates_is_a_column(twins: Path) -> None:
    names = sorted(path.name for path in twins.glob("*.jpg"))
    table = pd.DataFrame({"path": names, "label": [name.split("_")[0] for name in names]})
    data = ImageData.from_df(table.assign(duplicates=range(len(names))), twins, groups="duplicates")
    assert data.items["together"].nunique() == len(names)


# -- Which files are copies ----------------------------------------------------------------------


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from([b"", b"a", b"b"]), st.sampled_from([0, 5000]),
                          st.sampled_from([b"", b"x", b"y"])), max_size=12))  # fmt: skip
def test_copies_are_files_of_the_same_bytes(tmp_path: Path, parts: list[Any]) -> None:
    """Also where only the first byte differs, so that size and last bytes are equal."""
    contents = [start + b"." * middle + end for start, middle, end in parts]
    paths = [str(tmp_path / f"{number}.jpg") for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    first = {content: contents.index(content) for content in contents}
    expected = [first[content] if content else place for place, content in enumerate(contents)]
    assert same_bytes(paths) == expected


def test_only_what_may_be_a_copy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [
        b"1",
        b"22",
        b"33",
        b"4" * 9999 + b"end",
        b"5" * 9999 + b"end",
        b"6" * 9999 + b"eNd",
    ]
    paths = [str(tmp_path / f"{number}.jpg") for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    read: list[str] = []

    def fingerprint(path: str) -> bytes:
        read.append(path)
        return path.encode()

    monkeypatch.setattr("petnb.data.fingerprint", fingerprint)
    monkeypatch.setattr("petnb.data.last_bytes", lambda path: Path(path).read_bytes()[-3:])
    assert same_bytes(paths) == list(range(6))
    assert read == paths[3:5]


def test_what_is_not_there_or_not_ours_is_nobody_s_copy(tmp_path: Path) -> None:
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    (tmp_path / "locked.jpg").write_bytes(b"abc")
    (tmp_path / "open.jpg").write_bytes(b"abc")
    (tmp_path / "locked.jpg").chmod(0)
    paths = [tmp_path / name for name in ("gone.jpg", "a\0b.jpg", "locked.jpg", "open.jpg")]
    readable = os.access(tmp_path / "locked.jpg", os.R_OK)  # Root reads everything
    found = same_bytes([str(path) for path in [*paths, folder]])
    assert found == [0, 1, 2, 2 if readable else 3, 4]
