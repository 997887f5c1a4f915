"""Decisions survive crashes and hostile names; files are moved only where they may be, and back."""

import csv
import json
import os
import random
import sys
from pathlib import Path

import pandas as pd
import pytest

from petnb import ImageData
from petnb.edits import (
    KEEP,
    MANIFEST,
    RELABEL,
    TRASH,
    Decision,
    Edits,
    apply_moves,
    edits_of,
    plan_moves,
    read_journal,
    undo_moves,
)
from petnb.sources import DELETE, read_table

HOSTILE = ["two\nlines.png", '"quoted", name.png', "=cmd|'calc'!A1.png", "<img src=x>.png",
           "$x$ кот 猫.png", "\u202egpj.png", "NA"]  # fmt: skip
NOT_UTF8 = b"caf\xe9.png".decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Eight drawn pets."""
    root = tmp_path_factory.mktemp("drawn")
    drawn = ImageData.drawn_pets(images_per_breed=2, pixels=64, root=root)
    return [Path(path).read_bytes() for path in drawn.items["path"][:8]]


@pytest.fixture
def folders(tmp_path: Path, pictures: list[bytes]) -> ImageData:
    """Four pets in each of two folders that are named like their breeds."""
    root = tmp_path / "pets"
    for place, picture in enumerate(pictures):
        home = root / ("pug" if place < 4 else "boxer") / f"{place}.png"
        home.parent.mkdir(parents=True, exist_ok=True)
        home.write_bytes(picture)
    return ImageData.from_folder(root)


def files(root: Path) -> dict[str, bytes]:
    """Every visible file below, with its content."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and TRASH not in path.parts
    }


def table(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "label"])


def named(names: list[str], journal: Path | None = None) -> Edits:
    return Edits(dict.fromkeys(names, "pug"), Path("root"), journal)


# -- The journal ---------------------------------------------------------------------------------


def test_undo_and_redo_agree_with_a_list_of_states(tmp_path: Path) -> None:
    """200 random steps against the simplest thing that could be right: a copy of each state."""
    chance, names = random.Random(7), [f"{number}.png" for number in range(6)]
    edits = named(names, tmp_path / "journal")
    states, at = [dict[str, Decision]()], 0
    for _ in range(200):
        step = chance.choice(["decide", "decide", "undo", "redo"])
        if step == "undo":
            edits.undo()
            at = max(at - 1, 0)
        elif step == "redo":
            edits.redo()
            at = min(at + 1, len(states) - 1)
        else:
            kind = chance.choice([RELABEL, DELETE, KEEP, None])
            some = chance.sample(names, chance.randint(1, 3))
            if edits.decide(some, kind, "boxer"):
                states[at + 1 :] = [dict(edits.decisions)]
                at += 1
        assert edits.decisions == states[at]
    again = named(names, tmp_path / "journal")
    assert (again.decisions, again.done, again.undone) == (
        edits.decisions, edits.done, edits.undone
    )  # fmt: skip


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_half_a_line_is_dropped_and_overwritten(tmp_path: Path, cut: int) -> None:
    journal = tmp_path / "journal"
    edits = named(["a", "b"], journal)
    edits.decide(["a"], DELETE)
    before = dict(edits.decisions)
    edits.decide(["b"], DELETE)
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = named(["a", "b"], journal)
    assert again.decisions == before
    again.decide(["b"], KEEP)
    assert named(["a", "b"], journal).decisions == again.decisions


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "7", "null", '{"change": 3}', '{"change": {"a": [null]}}', '{"other": {}}',
     '{"change": {"a": [null, ["burn", "pug", "pug"]]}}', '{"change": {"a": [null, [1, 2, 3]]}}',
     "\udcff"],
)  # fmt: skip
def test_a_line_that_is_none_is_named_and_nothing_is_changed(tmp_path: Path, line: str) -> None:
    journal = tmp_path / "journal"
    content = b'{"change": {}}\n' + line.encode("utf-8", "surrogateescape") + b'\n"undo"\n'
    journal.write_bytes(content)
    with pytest.raises(ValueError, match=r"line 2 of .*journal is no decision"):
        named(["a"], journal)
    assert journal.read_bytes() == content


def test_an_undo_of_nothing_in_a_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b'"undo"\n')
    with pytest.raises(ValueError, match="nothing to undo"):
        named(["a"], tmp_path / "journal")


def test_two_notebooks_do_not_write_over_each_other(tmp_path: Path) -> None:
    first, second = (named(["a"], tmp_path / "journal") for _ in range(2))
    first.decide(["a"], DELETE)
    with pytest.raises(ValueError, match="another notebook has written"):
        second.decide(["a"], KEEP)
    assert second.decisions == {}
    assert len(read_journal(tmp_path / "journal")[0]) == 1


def test_a_decision_that_cannot_be_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    edits = named(["a"], tmp_path / "journal")
    monkeypatch.setattr("petnb.edits.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        edits.decide(["a"], DELETE)
    assert edits.decisions == {}


@pytest.mark.parametrize("label", ["", DELETE])
def test_labels_that_mean_something_else_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match="cannot be a label"):
        named(["a"]).decide(["a"], RELABEL, label)


def test_the_own_label_means_keep_and_no_change_writes_nothing(tmp_path: Path) -> None:
    edits = named(["a"], tmp_path / "journal")
    edits.decide(["a"], RELABEL, "pug")
    assert edits.decisions["a"].kind == KEEP
    edits.decide(["a"], KEEP)
    assert len(edits.done) == 1
    edits.decide(["a"], None)
    assert edits.decisions == {}
    with pytest.raises(ValueError, match="no image 'b' under root"):
        edits.decide(["a", "b"], DELETE)
    assert edits.decisions == {}


def test_both_sides_of_a_split_share_a_journal(folders: ImageData, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    train = edits_of(folders.on_side("train"), folders.root, journal)
    train.decide([next(iter(train.labels))], DELETE)
    valid = edits_of(folders.on_side("valid"), folders.root, journal)
    assert valid.carried_over == 1
    valid.decide([next(iter(valid.labels))], DELETE)
    assert len(folders.relabel(valid.table()).items) == len(folders.items) - 2


def test_a_folder_is_the_same_by_its_short_name(
    folders: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpretation that was kept has whole paths; the data of today may be named from here."""
    monkeypatch.chdir(tmp_path)
    short = ImageData.from_folder("pets")
    for items, root in ((folders.items, short.root), (short.items, folders.root)):
        edits = edits_of(items, root, tmp_path / f"journal {root.is_absolute()}")
        assert sorted(edits.labels) == sorted(files(folders.root))
        edits.decide([next(iter(edits.labels))], DELETE)
        for data in (folders, short):
            assert len(data.relabel(edits.table()).items) == 7
        assert len(edits.apply(short if root == short.root else folders).items) == 7


# -- Tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HOSTILE, NOT_UTF8])
def test_names_come_back_from_journal_and_table(tmp_path: Path, name: str) -> None:
    edits = named([name], tmp_path / "journal")
    edits.decide([name], RELABEL, "<b>=1+1</b>")
    again = named([name], tmp_path / "journal")
    assert again.decisions == {name: Decision(RELABEL, "pug", "<b>=1+1</b>")}
    exact = read_table(again.to_csv(tmp_path / "edits.csv"))
    assert exact.iloc[0].tolist() == [name, "<b>=1+1</b>", "pug", "relabel"]


def test_no_cell_of_the_copy_for_people_is_a_formula(tmp_path: Path) -> None:
    edits = named([*HOSTILE, NOT_UTF8])
    edits.decide(edits.labels, RELABEL, "@SUM(A1)")
    path = edits.to_csv(tmp_path / "for people.csv", spreadsheet=True)
    with open(path, encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert len(cells) == 4 * (len(edits.labels) + 1)
    assert not any(cell.lstrip(" ").startswith(("=", "+", "-", "@")) for cell in cells)


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    edits, path = named(["a"]), tmp_path / "edits.csv"
    edits.decide(["a"], DELETE)
    before = edits.to_csv(path).read_bytes()
    edits.labels["lone \ud800"] = "pug"  # No file system gives such a name
    edits.decide(["lone \ud800"], DELETE)
    with pytest.raises(UnicodeEncodeError):
        edits.to_csv(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["edits.csv"]


# -- Files ---------------------------------------------------------------------------------------


def test_a_plan_touches_nothing_and_moves_can_be_undone(folders: ImageData) -> None:
    before = files(folders.root)
    edits = table(("pug/0.png", "boxer"), ("boxer/4.png", DELETE), ("pug/1.png", "pug"))
    plan = plan_moves(folders, edits)
    assert plan["to"].tolist() == ["boxer/0.png", f"{TRASH}/boxer/4.png", ""]
    assert files(folders.root) == before
    assert not (folders.root / TRASH).exists()
    trash = apply_moves(folders, edits)
    after = files(folders.root)
    assert after.keys() ^ before.keys() == {"pug/0.png", "boxer/0.png", "boxer/4.png"}
    assert ImageData.from_folder(folders.root).vocab == ["boxer", "pug"]
    assert undo_moves(trash) == ["boxer/4.png", "pug/0.png"]
    assert files(folders.root) == before


@pytest.mark.parametrize(
    "path", ["../secret.png", "pug/../../secret.png", "/etc/passwd", "", ".", "pug", "pug/9.png"]
)
def test_paths_from_elsewhere_are_refused(folders: ImageData, path: str) -> None:
    (folders.root.parent / "secret.png").write_bytes(b"secret")
    before = files(folders.root.parent)
    plan = plan_moves(folders, table((path, DELETE)))
    assert plan["verdict"].str.startswith("refused").all()
    apply_moves(folders, table((path, DELETE)))
    assert files(folders.root.parent) == before


needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


@needs_links
@pytest.mark.parametrize("where", ["file", "folder", "outside", "target"])
def test_links_are_refused(folders: ImageData, where: str, tmp_path: Path) -> None:
    root = folders.root
    if where == "file":
        (root / "pug" / "link.png").symlink_to("0.png")
        path, label = "pug/link.png", DELETE
    elif where == "folder":
        (root / "alias").symlink_to("pug")
        path, label = "alias/0.png", DELETE
    elif where == "outside":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "0.png").write_bytes((root / "pug" / "0.png").read_bytes())
        (root / "alias").symlink_to(tmp_path / "elsewhere")
        path, label = "alias/0.png", DELETE
    else:
        (tmp_path / "elsewhere").mkdir()
        (root / "cat").symlink_to(tmp_path / "elsewhere")
        path, label = "pug/0.png", "cat"
    items = folders.items.copy()
    items.loc[0, "path"] = str(root / path)
    data = ImageData(items, [*folders.vocab, "cat"], root)
    before = files(tmp_path)
    plan = plan_moves(data, table((path, label)))
    assert "link" in plan["verdict"][0]
    apply_moves(data, table((path, label)))
    assert files(tmp_path) == before


@needs_links
def test_a_trash_folder_that_is_a_link_is_refused(folders: ImageData, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folders.root / TRASH).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"no trash folder can be made: '\.petnb-trash' is a link"):
        apply_moves(folders, table(("pug/0.png", DELETE)))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_nothing_is_overwritten(folders: ImageData) -> None:
    (folders.root / "boxer" / "0.png").write_bytes(b"another picture")
    plan = plan_moves(folders, table(("pug/0.png", "boxer"), ("pug/1.png", "../cat")))
    assert "is there already" in plan["verdict"][0]
    assert plan["verdict"][1].startswith("refused")
    trash = apply_moves(folders, table(("pug/2.png", DELETE)))
    (folders.root / "pug" / "2.png").write_bytes(b"a new picture")
    with pytest.raises(ValueError, match="is there already"):
        undo_moves(trash)
    assert (folders.root / "pug" / "2.png").read_bytes() == b"a new picture"


def test_two_images_never_get_one_place(folders: ImageData) -> None:
    """A pug and a beagle of one name, and both become boxers."""
    (folders.root / "beagle").mkdir()
    picture = (folders.root / "pug" / "0.png").read_bytes()
    for number in (0, 1):
        (folders.root / "beagle" / f"{number}.png").write_bytes(picture)
    data, before = ImageData.from_folder(folders.root), len(files(folders.root))
    edits = table(("pug/0.png", "boxer"), ("beagle/0.png", "boxer"))
    plan = plan_moves(data, edits)
    assert plan["to"].tolist() == ["boxer/0.png", ""]
    assert plan["verdict"][1] == "refused: 'boxer/0.png' is there already"
    apply_moves(data, edits)
    assert len(files(folders.root)) == before


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_crash_in_the_middle_can_be_undone(
    folders: ImageData, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before, rename = files(folders.root), os.rename
    calls: list[str] = []

    def breaks(source: Path, target: Path) -> None:
        calls.append(str(source))
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("petnb.edits.os.rename", breaks)
        with pytest.raises(KeyboardInterrupt):
            apply_moves(folders, table(*((f"pug/{number}.png", DELETE) for number in range(3))))
    (trash,) = (folders.root / TRASH).iterdir()
    assert len(undo_moves(trash)) == failing - 1
    assert files(folders.root) == before


@pytest.mark.parametrize(
    "entry",
    [("../../secret.png", "pug/0.png"), ("pug/new.png", "../../secret.png"), ("/x", "/etc/passwd")],
)
def test_a_manifest_from_elsewhere_cannot_reach_out(
    folders: ImageData, entry: tuple[str, str]
) -> None:
    trash = apply_moves(folders, table(("pug/0.png", DELETE)))
    before = files(folders.root.parent)
    (trash / MANIFEST).write_bytes(json.dumps({"from": entry[0], "to": entry[1]}).encode() + b"\n")
    with pytest.raises(ValueError, match="is not touched: outside pets"):
        undo_moves(trash)
    assert files(folders.root.parent) == before


def test_a_name_may_hold_anything(tmp_path: Path, folders: ImageData) -> None:
    names = [name for name in HOSTILE if name != "NA"]
    for name in names:
        try:
            (folders.root / "pug" / name).write_bytes((folders.root / "pug" / "0.png").read_bytes())
        except OSError:
            pytest.skip("this file system refuses such names")
    data = ImageData.from_folder(folders.root)
    before = files(folders.root)
    edits = edits_of(data.items, data.root, tmp_path / "journal")
    edits.decide([f"pug/{name}" for name in names], DELETE)
    trash = apply_moves(data, edits.to_csv(tmp_path / "edits.csv"))
    assert len(before) - len(files(folders.root)) == len(names)
    undo_moves(trash)
    assert files(folders.root) == before
