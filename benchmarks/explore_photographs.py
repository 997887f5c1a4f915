"""One evening with the explorer, on the Oxford-IIIT Pet photographs.

    PETNB_PHOTOS=oxford-iiit-pet python benchmarks/explore_photographs.py

One label in twenty of the training photographs is given to another breed. A model learns from
them, and what it says is looked at in every way that chapters 07 to 08b offer. Then the wrong
labels are mended in the explorer: a made-up reader turns the pages of the least believed labels,
relabels the photographs that are wrong and keeps the others, and a new model learns from that.
The held-out photographs keep their labels. What is seen is printed, and kept beside this script;
no photograph is. `--pictures FOLDER` opens the explorer and the report in Chromium, and
leaves what they look like in that folder.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from machine import processor, versions

from petnb import ImageData, Interpretation, Learner, vision_learner
from petnb.edits import apply_moves, plan_moves, undo_moves
from petnb.explorer import Explorer, thumbnail
from petnb.wrong_labels import closest_across_split, label_issues, out_of_fold, overlapping_classes

ROOT = Path(__file__).resolve().parent.parent
FLIPPED, PAGES = 0.05, 5  # Share of the labels that are wrong; pages that the reader looks at


@contextmanager
def timed(what: str) -> Iterator[None]:
    "Print how long the block took."
    start = time.perf_counter()
    yield
    print(f"- {what}: {time.perf_counter() - start:.2f} s")


def with_wrong_labels(data: ImageData, seed: int) -> ImageData:
    "One in twenty of the photographs to learn from is said to be another breed."
    train = data.on_side("train")
    spoilt = train.sample(frac=FLIPPED, random_state=seed)
    rng = np.random.default_rng(seed)
    other = [rng.choice([name for name in data.vocab if name != label])
             for label in spoilt["label"]]  # fmt: skip
    return data.relabel(spoilt[["path"]].assign(label=other))


def trained(data: ImageData, epochs: int) -> Learner:
    "The default learner after some epochs."
    learn = vision_learner(data, show_progress=False)
    with timed(f"{epochs} epochs on {len(data.on_side('train'))} photographs"):
        learn.fit_one_cycle(epochs)
    return learn


def look(learn: Learner, interp: Interpretation, folder: Path) -> None:
    "The views of chapters 07 to 07d, in numbers."
    print(f"- {interp}")
    print(f"- top-5 accuracy {interp.top_k_accuracy(5):.1%}")
    print(f"- confused twice or more: {interp.most_confused(min_val=2)[:5]}")
    worst = interp.per_class().sort_values("accuracy").iloc[0]
    print(f"- the hardest breed: {worst.name}, {worst['accuracy']:.0%} of {worst['images']:.0f} "
          f"({worst['low']:.0%} to {worst['high']:.0%}), "
          f"taken for {worst['taken for']}")  # fmt: skip
    kept = interp.save(folder / "interpretation.npz")
    again = Interpretation.load(kept)
    assert np.array_equal(again.probs, interp.probs)
    print(f"- kept in {kept.stat().st_size / 1000:.0f} kB and read again, equal to the bit")
    calibration = interp.calibrate()
    errors = calibration.table()["calibration error"]
    print(f"- temperature {calibration.temperature:.2f}; calibration error "
          f"{errors.iloc[0]:.3f}, then {errors.iloc[1]:.3f}, on the other half")  # fmt: skip


def suspects(data: ImageData, wrong: set[str]) -> Interpretation:
    "Who has not seen a label judges it; print how good the list is."
    with timed("out-of-fold answers for all photographs"):
        judged = out_of_fold(data)
    issues = label_issues(judged)
    found = issues["path"].isin(wrong).sum()
    print(f"- {len(issues)} suspicious labels, {found} of the {len(wrong)} wrong ones among them")
    overlap = overlapping_classes(judged.probs, judged.targets, judged.vocab).iloc[0]
    print(f"- the breeds that overlap most: {overlap['class']} and {overlap['other']}")
    pairs = closest_across_split(judged)
    print(f"- most alike across the split: {pairs['similarity'].iloc[0]:.3f} (1 is the same)")
    return judged


def browse(explorer: Explorer) -> None:
    "Pages, heat maps, the matrix; how long each takes."
    controls = explorer.controls
    thumbnail.cache_clear()
    with timed("a page of photographs that were never shown"):
        controls.forward.click()
    with timed("the page before, whose photographs are kept"):
        controls.back.click()
    with timed("12 heat maps"):
        controls.looks.value = True
    controls.looks.value = False
    actual, predicted, count = explorer.interp.most_confused()[0]
    explorer.matrix.pairs.index = 0
    assert len(explorer.pages.shown) == count
    assert set(explorer.pages.shown["prediction"]) == {predicted}
    print(f"- after a click on {actual} → {predicted}: {explorer.said}")


def mend(explorer: Explorer, truth: dict[str, str]) -> int:
    "Page after page of the least believed labels: a wrong one is set right, a right one is kept."
    controls, mended = explorer.controls, 0
    for name, value in {"order": "label quality", "actual": -1, "predicted": -1}.items():
        controls.view[name].value = value
    for _ in range(PAGES):
        for number, row in enumerate(explorer.pages.on_page().itertuples()):
            if truth[str(row.path)] == row.actual:
                explorer.cells[number].keep.click()
                continue
            explorer.cells[number].pick.value = True
            controls.label.value = explorer.interp.vocab.index(truth[str(row.path)])
            controls.actions["relabel"].click()
            mended += 1
        controls.forward.click()
    print(f"- {explorer.said}, of them {mended} wrong labels set right")
    return mended


def take_back(explorer: Explorer) -> None:
    "Undo and redo everything, and another kernel that reads the journal."
    decided, journal = dict(explorer.edits.decisions), explorer.edits.journal
    n = len(explorer.edits.done)
    with timed(f"{n} times undo, {n} times redo"):
        for word in ("undo", "redo"):
            for _ in range(n):
                explorer.controls.actions[word].click()
            if word == "undo":
                assert not explorer.edits.decisions
    assert explorer.edits.decisions == decided
    another = Explorer(explorer.interp, journal=journal)
    assert another.edits.decisions == decided
    print(f"- all decisions were taken back and made again; another kernel: {another.said}")


def move_files(data: ImageData, explorer: Explorer) -> None:
    "Delete three photographs of a copy: a plan, into the trash, and back."
    explorer.controls.view["show"].value = "undecided"
    explorer.controls.keys.value = "ddd"
    before = sorted(data.root.rglob("*"))
    plan = plan_moves(data, explorer.edits)
    assert sorted(data.root.rglob("*")) == before
    trash = apply_moves(data, explorer.edits)
    gone = [path for path in data.items["path"] if not Path(path).exists()]
    back = undo_moves(trash)
    assert len(gone) == len(back) == plan["to"].astype(bool).sum() == 3
    assert all(Path(path).exists() for path in data.items["path"])
    print(f"- {len(plan)} decisions planned: {len(gone)} files into the trash, {len(back)} back")
    for _ in range(3):
        explorer.controls.actions["undo"].click()


def pictures(place: Path, folder: Path) -> None:
    "What explorer and report look like in Chromium."
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import Watch, browser, open_notebook, server, write_notebook

    cells = ("from petnb import *; from petnb.explorer import Explorer",
             'data = ImageData.oxford_pets("copy", valid="official")',
             'interp, learn = Interpretation.load("interpretation.npz"), vision_learner(data)',
             "learn.load('trained')",
             "Explorer(interp, data, learn, journal='new.jsonl')")  # fmt: skip
    write_notebook(folder / "evening.ipynb", *cells)
    place.mkdir(parents=True, exist_ok=True)
    with browser() as chromium, server("lab", folder) as address:
        page = chromium.new_page(viewport={"width": 1480, "height": 1250})
        watch = Watch(page)
        open_notebook(page, address, "evening.ipynb", "lab")
        root = page.locator(".petnb-explorer")
        root.wait_for(timeout=180_000)
        root.screenshot(path=place / "explorer.png")
        root.locator("button", has_text="where it looks").click()
        page.wait_for_timeout(20_000)
        root.screenshot(path=place / "explorer-looks.png")
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        page.goto((folder / "report.html").as_uri())
        page.locator(".cell").first.wait_for()
        page.screenshot(path=place / "report.png")
        page.locator("#pairs button").first.click()
        page.screenshot(path=place / "report-pair.png")
        print(f"- in Chromium: {len(watch.errors)} errors, "
              f"{len(watch.elsewhere())} requests to other machines")  # fmt: skip


def evening(folder: Path, options: argparse.Namespace) -> None:
    "Everything, in the order of a person."
    copy = Path(shutil.copytree(options.data, folder / "copy"))
    data = ImageData.oxford_pets(copy, valid="official")
    truth = dict(zip(data.items["path"], data.items["label"], strict=True))
    with timed(f"the doctor on {len(data.items)} photographs"):
        findings = data.check().table
    spoilt = with_wrong_labels(data, options.seed)
    labels = zip(spoilt.items["path"], spoilt.items["label"], strict=True)
    wrong = {path for path, label in labels if truth[path] != label}
    print(f"- {len(findings)} findings, {len(wrong)} labels made wrong\n\n## The model\n")
    learn = trained(spoilt, options.epochs)
    with timed("what it says of the held-out photographs"):
        interp = learn.interpret()
    learn.path = folder / "models"
    learn.save("trained")
    look(learn, interp, folder)
    print("\n## The labels\n")
    judged = suspects(spoilt, wrong)
    print("\n## The explorer\n")
    with timed(f"built with {len(judged.targets)} photographs"):
        explorer = Explorer(judged, spoilt, learn, folder / "edits.csv", findings=findings,
                            journal=folder / "journal.jsonl")  # fmt: skip
    browse(explorer)
    mended = mend(explorer, truth)
    take_back(explorer)
    move_files(spoilt, explorer)
    explorer.controls.actions["write edits.csv"].click()
    assert spoilt.relabel(explorer.csv).items.equals(explorer.corrected(spoilt).items)
    print("\n## Trained again, on the edits\n")
    again = trained(explorer.corrected(spoilt), options.epochs).interpret()
    print(f"- {again}\n- {interp.compare(again)}\n\n## The report\n")
    with timed("written"):
        report = interp.to_html(folder / "report.html", findings=findings)
    print(f"- {len(interp.targets)} photographs in {report.stat().st_size / 1e6:.1f} MB")
    assert mended > len(wrong) / 2
    if options.pictures:
        pictures(options.pictures, folder)


def main() -> None:
    "Print a page of Markdown."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=os.environ.get("PETNB_PHOTOS"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="decides which labels are wrong")
    parser.add_argument("--pictures", type=Path, help="folder for pictures; not in a repository")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data, or PETNB_PHOTOS: the data set's folder")
    heading, _, last = (__doc__ or "").partition("\n")
    print(f"# {heading.rstrip('.')}\n{last}\n{processor()}; {versions()}\n\n## The photographs\n")
    with tempfile.TemporaryDirectory() as folder:
        evening(Path(folder), options)


if __name__ == "__main__":
    main()
