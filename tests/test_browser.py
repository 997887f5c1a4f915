"""The explorer and the report in a real browser, as a person uses them.

Skipped, saying so, where there is no Chromium or no JupyterLab. Each test looks at the text that is
on the screen and at what lies on the disk, never at pixels, and that nothing asked for an address
that is not this machine.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

for library in ("playwright.sync_api", "jupyterlab", "notebook"):
    pytest.importorskip(library)

import browser as tools  # noqa: E402
import made_up  # noqa: E402
from browser import COUNT, Watch, open_notebook, write_notebook  # noqa: E402
from nbconvert import HTMLExporter  # noqa: E402
from playwright.sync_api import expect  # noqa: E402

from petnb import ImageData, Interpretation  # noqa: E402

pytestmark = pytest.mark.skipif(
    tools.chromium() is None, reason=f"no browser: none of {', '.join(tools.NAMES)} is installed"
)
Visit = Callable[..., "Page"]
expect.set_options(timeout=120_000)
ROOT = ".petnb-explorer"
ELEMENT = f"document.querySelector('{ROOT}')"
HOSTILE = "<img src=x onerror=window.harm=1>"

ANSWERS = f"""
from pathlib import Path
from petnb import vision_learner
{inspect.getsource(made_up)}
"""
PETS = """
data = ImageData.drawn_pets(6, 64, root="pets", valid_pct=0.5, size=64)
interp = made_up_answers(data)
"""
EXPLORE = """
explorer = interp.explore(data, journal="journal.jsonl")
explorer
"""


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    with tools.browser() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers' notebooks are."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[str]:
    with tools.server("lab", folder) as address:
        yield address


@pytest.fixture
def visit(chromium: "Browser") -> Iterator[Visit]:
    """A fresh page, watched: at the end nothing may have gone elsewhere."""
    context = chromium.new_context(viewport={"width": 1500, "height": 1100})
    page = context.new_page()
    page.set_default_timeout(120_000)
    watch = Watch(page)
    yield lambda: page
    assert watch.asked
    assert watch.elsewhere() == []
    context.close()


def status(page: "Page") -> Any:
    return page.locator(f"{ROOT} .petnb-status")


def press(page: "Page", name: str) -> None:
    exactly = re.compile(rf"^\s*{re.escape(name)}\s*$")  # The icon is a letter too
    page.locator(f"{ROOT} button").filter(has_text=exactly).click()


def exported(notebook: Path, folder: Path) -> Path:
    """The page that nbconvert makes of a notebook."""
    text, _ = HTMLExporter().from_filename(str(notebook))
    page = folder / f"{notebook.stem}.html"
    page.write_text(text, encoding="utf-8")
    return page


def see_exported(chromium: "Browser", page: Path, script: bool) -> str:
    """What the picture in an exported notebook says, without any network."""
    context = chromium.new_context(java_script_enabled=script)
    context.route(re.compile("^http"), lambda route: route.abort())
    shown = context.new_page()
    shown.goto(page.as_uri(), wait_until="domcontentloaded")
    still = shown.locator(".petnb-still")
    expect(still).to_be_visible()
    pictures = still.locator("img")
    assert pictures.count() == 12
    for picture in (pictures.first, pictures.last):
        box = picture.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 100
    text = still.inner_text()
    context.close()
    return text


# -- JupyterLab ----------------------------------------------------------------------------------


def test_an_evening_in_jupyterlab(
    visit: Visit, chromium: "Browser", lab: str, folder: Path
) -> None:
    """Look, mend, undo, export, train on it, and open the notebook again the day after."""
    page = visit()
    retrain = """
    better = data.relabel("edits.csv")
    learn = vision_learner(better, show_progress=False)
    learn.fit(1)
    print("trained", "on", len(better.items), "images")
    """.replace("\n    ", "\n")
    name = write_notebook(folder / "evening.ipynb", ANSWERS + PETS, EXPLORE).name
    open_notebook(page, lab, name, "lab")
    expect(status(page)).to_have_text("page 1 of 3, 30 images, 0 decisions")
    expect(page.locator(".petnb-still")).to_be_hidden()

    confusion = page.locator(f"{ROOT} button[title*=' called ']:not([title*=': 0'])").first
    label, rest = str(confusion.get_attribute("title")).split(" called ")
    model, count = rest.split(": ")
    confusion.click()
    expect(status(page)).to_contain_text(f"page 1 of 1, {count} images")
    cells = page.locator(f"{ROOT} figcaption, {ROOT} .widget-html").filter(has_text="loss ")
    assert f"is {label}" in cells.first.inner_text()
    assert model in cells.first.inner_text()

    choices = page.locator(f"{ROOT} select")
    for number in (1, 2):
        choices.nth(number).select_option("any")
    expect(status(page)).to_contain_text("page 1 of 3, 30 images")
    press(page, "forward")
    expect(status(page)).to_contain_text("page 2 of 3")

    page.get_by_placeholder("k keep").click()
    page.keyboard.type("pdkd")
    expect(status(page)).to_contain_text("4 decisions")
    press(page, "undo")
    expect(status(page)).to_contain_text("3 decisions. undo:")
    press(page, "write edits.csv")
    expect(status(page)).to_contain_text("3 decisions are in edits.csv")
    assert len((folder / "edits.csv").read_text().splitlines()) == 4
    expect(page.locator(".petnb-still")).to_contain_text("✗ deleted")

    page.evaluate("() => window.jupyterapp.commands.execute('notebook:insert-cell-below')")
    page.evaluate(
        "(source) => window.jupyterapp.shell.currentWidget.content.activeCell.model"
        ".sharedModel.setSource(source)",
        retrain,
    )
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-cell')")
    lines = (folder / "edits.csv").read_text().splitlines()
    deleted = sum(line.endswith('"delete"') for line in lines)
    printed = page.locator(".jp-OutputArea-output").filter(has_text="trained on")
    expect(printed).to_have_text(f"trained on {60 - deleted} images")
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")

    saved = json.loads((folder / name).read_text())
    assert "widgets" not in saved["metadata"]
    page.evaluate("() => window.jupyterapp.commands.execute('kernelmenu:shutdown')")
    open_notebook(page, lab, name, "lab", run=False)
    expect(page.locator(".petnb-still")).to_be_visible()
    expect(page.locator(".petnb-still")).to_contain_text("✗ deleted")
    expect(page.locator(".petnb-still img")).to_have_count(12)
    expect(page.locator(ROOT)).to_have_count(0)

    outputs = [output for cell in saved["cells"] for output in cell["outputs"]]
    (still,) = [output["data"] for output in outputs if "petnb-still" in str(output)]
    assert not [kind for kind in still if "widget" in kind]  # For programs without widgets
    assert "pug" in str(still["text/plain"])  # And for those without HTML
    for script in (True, False):
        assert "✗ deleted" in see_exported(chromium, exported(folder / name, folder), script)


@pytest.mark.parametrize("script", [True, False])
def test_the_chapter_is_seen_without_a_kernel(
    chromium: "Browser", tmp_path: Path, script: bool
) -> None:
    """Chapter 08 as it is kept: the page that the explorer was left at."""
    page = exported(tools.ROOT / "nbs" / "08_explorer.ipynb", tmp_path)
    text = see_exported(chromium, page, script)
    assert "✓ kept" in text
    assert "images" in text


def test_hostile_names_in_jupyterlab(visit: Visit, lab: str, folder: Path) -> None:
    """They are seen as they are; the same text in a bare HTML widget does run."""
    page = visit()
    hostile = f"""
    for number, path in enumerate(data.items["path"]):
        Path(path).rename(f"pets/images/{HOSTILE}$x^2$_{{number}}.png")
    data = ImageData.from_name_func("pets/images", lambda name: "<img src=x onerror=window.harm=2>"
                                    if int(name[:-4].rpartition("_")[2]) % 2 else "$x^2$")
    interp = made_up_answers(data)
    """.replace("\n    ", "\n")
    explore = 'interp.explore(data, journal="hostile.jsonl")'
    control = 'import ipywidgets; ipywidgets.HTML("<img src=x onerror=window.control=1>")'
    name = write_notebook(
        folder / "hostile.ipynb", ANSWERS + PETS.replace('"pets"', '"hostile"')
        + hostile.replace("pets/", "hostile/"), explore, control,
    ).name  # fmt: skip
    open_notebook(page, lab, name, "lab")
    page.get_by_placeholder("k keep").click()
    page.keyboard.type("pdksu?")
    expect(status(page)).to_contain_text("decisions")
    page.wait_for_function("window.control === 1")
    page.locator(f"{ROOT} button[title*=' called ']").first.click()
    expect(page.locator(ROOT)).to_contain_text(HOSTILE)
    expect(page.locator(ROOT)).to_contain_text("$x^2$")
    assert page.evaluate("window.harm") is None
    assert page.locator(f"{ROOT} mjx-container").count() == 0


# -- Notebook 7 ----------------------------------------------------------------------------------


def test_keys_do_no_harm_in_notebook_7(visit: Visit, folder: Path) -> None:
    """`x` on a button cuts a cell; on a button of the explorer it does not."""
    page = visit()
    plain = 'import ipywidgets\nipywidgets.Button(description="plain")'
    explore = EXPLORE.replace("journal.jsonl", "keys.jsonl")
    write_notebook(folder / "keys.ipynb", ANSWERS + PETS, explore, plain, "3")
    with tools.server("notebook", folder) as address:
        open_notebook(page, address, "keys.ipynb", "notebook")
        expect(status(page)).to_contain_text("0 decisions")
        expect(page.locator(ROOT)).to_have_attribute("data-lm-suppress-shortcuts", "true")
        assert page.evaluate(COUNT) == 4
        page.set_viewport_size({"width": 400, "height": 900})  # A phone: nothing is cut off
        page.wait_for_function(f"(e => e.scrollWidth <= e.clientWidth)({ELEMENT})")
        page.set_viewport_size({"width": 1280, "height": 900})
        press(page, "keep")
        expect(status(page)).to_contain_text("1 decisions")
        for place in ("button[title^=keep]", "select", ".widget-toggle-button", "input"):
            page.locator(f"{ROOT} {place}").first.focus()
            for key in ("x", "d", "d", "a", "b", "m", "z"):
                page.keyboard.press(key)
        assert page.evaluate(COUNT) == 4
        page.get_by_role("button", name="plain").focus()
        page.keyboard.press("x")
        page.wait_for_function(f"({COUNT})() === 3")


# -- The report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A report with hostile names, and the interpretation that it shows."""
    root = tmp_path_factory.mktemp("report")
    data = ImageData.drawn_pets(6, 64, root=root / "pets", valid_pct=0.5)
    interp = made_up.made_up_answers(data)
    interp.vocab = [HOSTILE, "</script><script>window.harm=3</script>", *interp.vocab[2:]]
    return interp.to_html(root / "report.html", title=f"</title>{HOSTILE}"), interp


def where(page: "Page") -> Any:
    return page.locator("#where")


def test_the_report_sorts_filters_and_turns(visit: Visit, report: tuple[Path, Any]) -> None:
    page, (path, interp) = visit(), report
    page.goto(path.as_uri())
    expect(where(page)).to_have_text("page 1 of 2, 30 images")
    worst = interp.top_losses(1).iloc[0]
    expect(page.locator(".cell").first).to_contain_text(Path(worst["path"]).name)
    page.locator("#backwards").check()
    best = interp.top_losses(1, largest=False).iloc[0]
    expect(page.locator(".cell").first).to_contain_text(Path(best["path"]).name)
    page.locator("#forward").click()
    expect(where(page)).to_have_text("page 2 of 2, 30 images")
    expect(page.locator(".cell")).to_have_count(6)
    page.locator("#show").select_option("mistakes")
    wrong = int((interp.predictions != interp.targets).sum())
    expect(where(page)).to_contain_text(f", {wrong} images")
    page.locator("#show").select_option("all")
    page.locator("#text").fill("PUG_")
    expect(page.locator(".cell").first).to_contain_text("pug_")
    pictures = page.locator("img.picture")
    assert pictures.first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_each_field_of_the_reports_matrix(visit: Visit, report: tuple[Path, Any]) -> None:
    page, (path, interp) = visit(), report
    page.goto(path.as_uri())
    page.locator("#text").fill("no such pet")
    expect(page.locator(".cell")).to_have_count(0)
    fields = page.locator("#matrix button")
    assert fields.count() == (interp.confusion_matrix() > 0).sum()
    for field in fields.all():
        field.click()
        expect(where(page)).to_contain_text(f", {field.inner_text()} images")
    page.locator("#pairs button").first.click()
    expect(where(page)).to_contain_text(f", {interp.most_confused()[0][2]} images")


@pytest.mark.parametrize(("classes", "width"), [(18, 400), (18, 1200), (37, 1200), (37, 1920)])
def test_the_reports_matrix_needs_no_sideways_scrolling(
    visit: Visit, report: tuple[Path, Any], classes: int, width: int
) -> None:
    """Nor does the page; two pictures or more stand in a row, and a click brings them into view."""
    page, (_, few) = visit(), report
    names = [f"staffordshire_bull_terrier_{number:02}" for number in range(classes)]
    n, every = 2 * classes, np.arange(2 * classes) % classes
    probs = np.full((n, classes), 0.5 / classes, dtype=np.float32)
    probs[np.arange(n), (every + np.arange(n) // classes) % classes] += 0.5
    items = few.items.iloc[np.arange(n) % len(few.items)].reset_index(drop=True)
    many = Interpretation(probs, every, -np.log(probs[np.arange(n), every]), items, names)
    path = many.to_html(report[0].with_name(f"{classes}.html"), images=24)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.as_uri())
    expect(page.locator("#matrix tr")).to_have_count(min(classes, 30) + 1)
    for place in ("html", "#side"):
        wide, seen = page.locator(place).evaluate("one => [one.scrollWidth, one.clientWidth]")
        assert wide <= seen
    first, second = (page.locator(".cell").nth(number).bounding_box() for number in (0, 1))
    assert first is not None
    assert second is not None
    assert first["y"] == second["y"]
    page.locator("#matrix button").last.click()
    expect(page.locator(".cell").first).to_be_in_viewport(ratio=1)


def test_hostile_names_are_inert_in_the_report(visit: Visit, report: tuple[Path, Any]) -> None:
    """And if one got through, the policy would stop it: the same page without it is harmed."""
    page, (path, _) = visit(), report
    page.goto(path.as_uri())
    expect(page.locator("#matrix")).to_contain_text(HOSTILE)
    expect(page.locator("h1")).to_have_text(f"</title>{HOSTILE}")
    assert page.evaluate("window.harm") is None
    text = path.read_text()
    broken = text.replace("<noscript>", f"{HOSTILE}<script>window.harm = 4</script><noscript>")
    for policy, harm in ((True, None), (False, 4)):
        content = broken if policy else broken.replace("Content-Security-Policy", "none")
        other = path.with_name(f"broken-{policy}.html")
        other.write_text(content)
        page.goto(other.as_uri())
        expect(where(page)).to_contain_text("30 images")
        assert page.evaluate("window.harm") in ((harm,) if policy else (1, 4))
