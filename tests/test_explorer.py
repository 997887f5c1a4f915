"""The explorer by its buttons, without a browser; see test_browser.py for the rest."""

import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import made_up_answers

from petnb import ImageData, Interpretation
from petnb.edits import KEEP, RELABEL, plan_moves
from petnb.explorer import (
    ANY,
    SHOWN,
    Explorer,
    Pages,
    View,
    as_text,
    browsing_table,
    caption_html,
    select,
)
from petnb.learner import FITTING, Callback, vision_learner
from petnb.sources import DELETE

HOSTILE = "<img src=x onerror=alert(1)>"
Make = Callable[..., Explorer]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    root = tmp_path_factory.mktemp("pets")
    return ImageData.drawn_pets(images_per_breed=20, pixels=64, size=64, root=root)


@pytest.fixture
def make(data: ImageData, tmp_path: Path) -> Make:
    def explorer(**options: object) -> Explorer:
        options = {"journal": tmp_path / "journal", "csv": tmp_path / "edits.csv"} | options
        return Explorer(made_up_answers(data), data, **options)  # type: ignore[arg-type]

    return explorer


def rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))


def status(explorer: Explorer) -> str:
    shown = explorer.controls.status.value
    assert shown == as_text(explorer.said)
    return str(shown).removeprefix("<bdi>").removesuffix("</bdi>")


def captions(explorer: Explorer) -> list[str]:
    """Of the cells that are seen."""
    seen = [cell for cell in explorer.cells if cell.box.layout.visibility == "visible"]
    return [cell.caption.value for cell in seen]


def below(widget: Any) -> list[Any]:
    """The widget, and all that are inside it."""
    return [widget, *(found for child in getattr(widget, "children", []) for found in below(child))]


# -- Looking -------------------------------------------------------------------------------------


def test_every_filter_against_a_loop(data: ImageData) -> None:
    interp = made_up_answers(data)
    finding = pd.DataFrame({"path": interp.items["path"][:7], "finding": "blurred"})
    table = browsing_table(interp, data.root, finding)
    decided = set(table["name"][3:9])
    for show in SHOWN:
        for view in (View(show=show), View(show=show, actual=2), View(show=show, predicted=1),
                     View(show=show, finding="blurred"), View(show=show, text="PUG")):  # fmt: skip
            expected = [
                row.name
                for row in rows(table)
                if view.actual in (ANY, row.target)
                and view.predicted in (ANY, row.predicted)
                and view.finding in ("", row.finding)
                and (not view.text or "pug" in f"{row.name} {row.actual} {row.prediction}".lower())
                and {
                    "all": True,
                    "mistakes": row.target != row.predicted,
                    "right": row.target == row.predicted,
                    "decided": row.name in decided,
                    "undecided": row.name not in decided,
                }[show]
            ]
            assert sorted(select(table, view, decided)["name"]) == sorted(expected)


@pytest.mark.parametrize("order", ["loss", "confidence", "label quality", "path"])
def test_either_way_round(data: ImageData, order: str) -> None:
    table = browsing_table(made_up_answers(data), data.root)
    there, back = select(table, View(order)), select(table, View(order, backwards=True))
    assert list(there["name"]) == list(back["name"])[::-1]


def test_both_sides_of_the_split(data: ImageData, tmp_path: Path) -> None:
    train, valid = made_up_answers(data, "train"), made_up_answers(data, "valid")
    items = pd.concat([train.items, valid.items], ignore_index=True)
    probs = np.concatenate([train.probs, valid.probs])
    targets = np.concatenate([train.targets, valid.targets])
    losses = np.concatenate([train.losses, valid.losses])
    both = Interpretation(probs, targets, losses, items, data.vocab)
    explorer = Explorer(both, data, journal=tmp_path / "journal")
    explorer.controls.view["split"].value = "train"
    assert len(explorer.pages.shown) == len(train.items)


def test_pages_show_each_image_once(make: Make) -> None:
    explorer = make()
    seen = list(explorer.pages.on_page()["name"])
    while not explorer.controls.forward.disabled:
        explorer.controls.forward.click()
        seen += list(explorer.pages.on_page()["name"])
        assert len(captions(explorer)) == len(explorer.pages.on_page())
    assert sorted(seen) == sorted(explorer.table["name"])
    while not explorer.controls.back.disabled:
        explorer.controls.back.click()
    assert explorer.pages.page == 0


def test_no_image_is_left(make: Make) -> None:
    explorer = make()
    explorer.controls.view["text"].value = "no such pet"
    assert captions(explorer) == []
    assert status(explorer).startswith("page 1 of 1, 0 images")
    explorer.controls.keys.value = "kdpsnbur"
    for button in [*explorer.controls.actions.values(), explorer.controls.forward]:
        button.click()
    assert explorer.edits.decisions == {}
    assert "Error" not in status(explorer)


def test_every_field_of_the_matrix_shows_its_images(make: Make) -> None:
    explorer = make()
    counts = explorer.interp.confusion_matrix()
    explorer.controls.view["text"].value = "no such pet"
    for (actual, predicted), button in explorer.matrix.buttons.items():
        button.click()
        assert (
            len(explorer.pages.shown) == counts[actual, predicted] == int(button.description or 0)
        )
    for number, (_, pair) in enumerate(explorer.matrix.pairs.options):
        explorer.matrix.pairs.index = number
        assert len(explorer.pages.shown) == counts[pair]


# -- Deciding ------------------------------------------------------------------------------------


def test_buttons_of_a_cell_mean_the_image_that_it_shows(make: Make) -> None:
    explorer = make()
    explorer.controls.forward.click()
    for number, (button, kind) in enumerate([("keep", KEEP), ("delete", DELETE)]):
        row = explorer.pages.on_page().iloc[number]
        getattr(explorer.cells[number], button).click()
        assert explorer.edits.decisions[row["name"]].kind == kind
    explorer.controls.view["show"].value = "mistakes"
    row = explorer.pages.on_page().iloc[0]
    explorer.cells[0].agree.click()
    assert explorer.edits.decisions[row["name"]] == (RELABEL, row["actual"], row["prediction"])
    assert f"→ <bdi>{row['prediction']}</bdi>" in captions(explorer)[0]


def test_a_selection_over_two_pages_is_one_change(make: Make) -> None:
    explorer = make()
    first = explorer.pages.on_page()["name"].iloc[0]
    explorer.cells[0].pick.value = True
    explorer.controls.forward.click()
    assert not explorer.cells[0].pick.value
    second = explorer.pages.on_page()["name"].iloc[2]
    explorer.cells[2].pick.value = True
    assert "2 picked" in status(explorer)
    explorer.controls.label.value = 4
    explorer.controls.actions["relabel"].click()
    assert set(explorer.edits.decisions) == {first, second}
    assert len(explorer.edits.done) == 1
    assert not any(cell.pick.value for cell in explorer.cells)
    explorer.controls.actions["undo"].click()
    assert explorer.edits.decisions == {}
    explorer.controls.actions["redo"].click()
    assert set(explorer.edits.decisions) == {first, second}


def test_a_page_as_predicted_and_forgotten(make: Make) -> None:
    explorer = make()
    explorer.controls.view["show"].value = "mistakes"
    page = explorer.pages.on_page()
    for name in ("pick page", "as predicted"):
        explorer.controls.actions[name].click()
    table = explorer.edits.table().set_index("path")
    assert (table.loc[page["name"], "label"] == page["prediction"].to_numpy()).all()
    for name in ("pick page", "forget"):
        explorer.controls.actions[name].click()
    assert explorer.edits.decisions == {}
    for name in ("pick page", "pick page"):
        explorer.controls.actions[name].click()
    assert explorer.pages.picked == set()


def test_keys_over_the_end_of_a_page(make: Make) -> None:
    explorer = make()
    names = list(explorer.pages.shown["name"])
    typed = ""
    for key in "k" * 12 + "d" + "b" + "s" + "u" + "?" + "É":
        typed += key
        explorer.controls.keys.value = typed
    assert explorer.pages.page == 1
    assert explorer.pages.picked == {names[12]}
    assert list(explorer.edits.decisions) == names[:12]
    explorer.controls.keys.value = typed + "rd"  # Fast typing arrives as one
    assert explorer.edits.decisions[names[12]].kind == DELETE
    explorer.controls.keys.value = "k"  # Rubbed out: nothing new
    assert len(explorer.edits.decisions) == 13
    explorer.controls.keys.value = "kk"
    assert explorer.edits.decisions[names[13]].kind == KEEP


def test_export_and_retrain(make: Make, data: ImageData) -> None:
    explorer = make()
    explorer.controls.view["show"].value = "mistakes"
    explorer.controls.keys.value = "ppd"
    explorer.controls.actions["write edits.csv"].click()
    assert "3 decisions are in" in status(explorer)
    from_file, at_once = data.relabel(explorer.csv), explorer.corrected(data)
    assert from_file.items.equals(at_once.items)
    assert len(at_once.items) == len(data.items) - 1
    before = data.items.set_index("path")["label"]
    after = at_once.items.set_index("path")["label"]
    assert (before[after.index] != after).sum() == 2


def test_without_data_the_paths_still_fit(data: ImageData, tmp_path: Path) -> None:
    explorer = Explorer(made_up_answers(data), journal=tmp_path / "journal")
    explorer.cells[0].delete.click()
    assert len(explorer.corrected(data).items) == len(data.items) - 1


def test_heat_maps_are_made_when_asked_for_and_kept(
    make: Make, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def heat(learn: Any, path: str) -> bytes:
        asked.append(path)
        return f"heat of {path} after {learn.n_steps} steps".encode()

    monkeypatch.setattr("petnb.explorer.heat_thumbnail", heat)
    learn = SimpleNamespace(data=data, n_steps=0)
    explorer = make(learn=learn)
    page = list(explorer.pages.on_page()["path"])
    explorer.controls.forward.click()
    explorer.controls.back.click()
    assert asked == []
    explorer.controls.looks.value = True
    assert asked == page
    assert explorer.cells[0].image.value == f"heat of {page[0]} after 0 steps".encode()
    explorer.cells[0].keep.click()
    assert asked == page
    learn.n_steps = 7
    explorer.cells[0].delete.click()
    assert bytes(explorer.cells[0].image.value).endswith(b"after 7 steps")
    explorer.controls.looks.value = False
    assert bytes(explorer.cells[0].image.value).startswith(b"\xff\xd8")
    assert make().controls.looks.disabled


def test_another_kernel_goes_on(make: Make) -> None:
    first = make()
    first.cells[0].delete.click()
    second = make()
    assert second.edits.decisions == first.edits.decisions
    assert "1 decisions of earlier days" in status(second)
    second.controls.view["show"].value = "decided"
    assert "✗ deleted" in captions(second)[0]


# -- Going wrong ---------------------------------------------------------------------------------


def test_an_error_is_seen_and_logged(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(number: int) -> None:
        raise OSError(28, f"No space left on {HOSTILE}")

    explorer = make()
    monkeypatch.setattr("petnb.edits.os.fsync", full)
    explorer.cells[0].delete.click()
    assert "OSError" in status(explorer)
    assert "&lt;img" in status(explorer)
    assert "No space left" in caplog.text
    assert explorer.edits.decisions == {}
    explorer.pages.go(11)
    explorer.controls.keys.value = "kk"  # The frame stays, and the page is not turned
    assert "OSError" in status(explorer)
    assert (explorer.pages.page, explorer.pages.cursor) == (0, 11)
    explorer.cells[3].pick.value = explorer.cells[4].pick.value = True
    explorer.controls.actions["delete"].click()
    assert "OSError" in status(explorer)
    monkeypatch.undo()
    explorer.controls.actions["delete"].click()
    assert len(explorer.edits.decisions) == 2


def test_locked_while_a_fit_runs(make: Make) -> None:
    explorer, started, end = make(), threading.Event(), threading.Event()

    def fit() -> None:
        with FITTING:
            started.set()
            end.wait(30)

    thread = threading.Thread(target=fit)
    thread.start()
    started.wait(30)
    before = captions(explorer)
    explorer.cells[0].delete.click()
    assert status(explorer).startswith("busy: a training")
    explorer.controls.forward.click()
    explorer.controls.keys.value = "d"
    assert captions(explorer) == before
    assert explorer.edits.decisions == {}
    end.set()
    thread.join()
    assert explorer.typed == "d"
    explorer.controls.keys.value = "dk"  # What was typed meanwhile is not done now
    assert [decision.kind for decision in explorer.edits.decisions.values()] == [KEEP]


def test_two_clicks_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer, inside, go_on = make(), threading.Event(), threading.Event()
    decide = explorer.edits.decide

    def slow(*arguments: object) -> object:
        inside.set()
        go_on.wait(30)
        return decide(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(explorer.edits, "decide", slow)
    thread = threading.Thread(target=explorer.cells[0].delete.click)
    thread.start()
    inside.wait(30)
    explorer.cells[1].delete.click()
    assert status(explorer).startswith("busy")
    go_on.set()
    thread.join()
    assert len(explorer.edits.decisions) == 1


def test_nothing_is_decided_beside_a_real_fit(make: Make, data: ImageData) -> None:
    free: list[bool] = []
    said: list[str] = []
    explorer = make()

    def click() -> None:
        free.append(FITTING.acquire(blocking=False))
        explorer.cells[0].delete.click()
        said.append(status(explorer))

    class Clicks(Callback):
        def after_step(self, fit: object) -> None:
            other = threading.Thread(target=click)
            other.start()
            other.join()

    learn = vision_learner(data, show_progress=False)
    learn.fit(1, callbacks=[Clicks()])
    assert said
    assert not any(free)
    assert all(text.startswith("busy: a training") for text in said)
    assert explorer.edits.decisions == {}
    assert FITTING.acquire(blocking=False)
    FITTING.release()
    explorer.cells[0].delete.click()
    assert len(explorer.edits.decisions) == 1


def test_names_are_text_everywhere(data: ImageData, tmp_path: Path) -> None:
    """In captions, the matrix, the picture beside the widget, and what the status line says."""
    items = data.on_side("valid").copy()
    label = f"{HOSTILE}$x^2$"
    vocab = [label, *data.vocab[1:]]
    items["label"] = [label if name == data.vocab[0] else name for name in items["label"]]
    items.loc[0, "path"] = str(Path(items["path"][0]).with_name(HOSTILE + "\udcff.jpg"))
    first = made_up_answers(data)
    findings = pd.DataFrame({"path": items["path"], "finding": HOSTILE})
    interp = Interpretation(first.probs, first.targets, first.losses, items, vocab)
    explorer = Explorer(interp, data, findings=findings, journal=tmp_path / "journal")
    explorer.controls.view["order"].value = "path"
    explorer.controls.keys.value = "ppp"
    texts = [*captions(explorer), explorer.bundle()["text/html"].split("<style>")[0]]
    texts += [field.value for field in explorer.matrix.grid.children if hasattr(field, "value")]
    explorer.say(f"ValueError: {HOSTILE}")
    texts += [status(explorer)]
    assert any("&lt;img" in text for text in texts)
    assert not any("<img src=x" in text for text in texts)
    kinds = {type(widget).__name__ for widget in below(explorer.widget)}
    assert "HTML" in kinds
    assert not {"HTMLMath", "Label"} & kinds  # Both typeset names that hold a formula


class Tags(HTMLParser):
    """The attributes of all tags of a text, and what is in their titles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.titles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}
        self.titles += [value or "" for name, value in attrs if name == "title"]


@pytest.mark.parametrize(
    "name", ['" onmouseover="alert(1)', "' onload='x", "><b onclick=x>", 'a"b']
)
def test_no_name_leaves_the_title_that_it_stands_in(make: Make, name: str) -> None:
    first: Any = next(make().table.itertuples())
    row = first._replace(name=name, actual=name, finding=name)
    caption = caption_html(row, np.array([0.9, 0.1]), [name, name])
    found = Tags(caption)
    assert found.names == {"style", "title"}
    assert found.titles == [name] * 5  # File, label, two bars, finding


def test_files_that_are_gone_are_grey_and_counted(data: ImageData, tmp_path: Path) -> None:
    interp = made_up_answers(data)
    interp.items = interp.items.assign(path=[f"{path}.gone" for path in interp.items["path"]])
    explorer = Explorer(interp, data, journal=tmp_path / "journal")
    assert len({cell.image.value for cell in explorer.cells}) == 1
    assert "12 of 12 images cannot be read" in status(explorer)
    assert "Interpretation.load(file, root=FOLDER)" in status(explorer)
    explorer.cells[0].keep.click()
    assert len(explorer.edits.decisions) == 1


def test_a_class_may_be_called_any(data: ImageData, tmp_path: Path) -> None:
    interp = made_up_answers(data)
    interp.vocab = ["any", "", *data.vocab[2:]]
    explorer = Explorer(interp, data, journal=tmp_path / "journal")
    explorer.controls.view["actual"].value = 0
    assert set(explorer.pages.shown["actual"]) == {"any"}
    explorer.controls.view["actual"].value = ANY
    assert len(explorer.pages.shown) == len(interp.targets)


@pytest.mark.parametrize("rows", [0, 1, 11, 12, 13])
def test_pages_of_any_number(rows: int) -> None:
    pages = Pages(pd.DataFrame({"name": [str(k) for k in range(rows)]}), 12)
    pages.turn(5)
    assert pages.page == max(rows - 1, 0) // 12
    pages.move(-100)
    assert (pages.page, pages.cursor) == (0, 0)
    assert pages.here() == (["0"] if rows else [])


def test_speed_is_told(data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = made_up_answers(data, "train")
    many = np.random.default_rng(0).integers(len(few.targets), size=10_000)
    items = few.items.iloc[many].reset_index(drop=True)
    big = Interpretation(few.probs[many], few.targets[many], few.losses[many], items, few.vocab)
    start = time.perf_counter()
    explorer = Explorer(big, data, journal=tmp_path / "journal")
    built = time.perf_counter() - start
    start = time.perf_counter()
    explorer.controls.forward.click()
    page = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n10,000 rows: built in {built:.2f} s, a page in {page:.3f} s")
    assert explorer.pages.n_pages == 834


def test_on_the_real_photographs(photographs: Path, tmp_path: Path) -> None:
    data = ImageData.oxford_pets(photographs, valid="official")
    explorer = Explorer(made_up_answers(data), data, journal=tmp_path / "journal")
    assert len(explorer.matrix.buttons) == 100  # Ten of the 37 breeds; the list has all pairs
    actual, predicted = explorer.matrix.pairs.options[0][1]
    explorer.matrix.pairs.index = 0
    assert set(explorer.pages.shown["target"]) == {actual}
    assert set(explorer.pages.shown["predicted"]) == {predicted}
    explorer.controls.keys.value = "pd"
    chosen = explorer.pages.shown["name"].head(2).tolist()
    assert list(explorer.edits.decisions) == chosen
    assert all(name.startswith("images/") for name in chosen)
    plan = plan_moves(data, explorer.edits)
    assert plan["path"].tolist() == chosen
    assert plan["to"].astype(bool).tolist() == [False, True]
    assert len(explorer.corrected(data).items) == len(data.items) - 1
    assert all(Path(path).is_file() for path in data.items["path"])
