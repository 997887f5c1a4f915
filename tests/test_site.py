"""The site as a reader gets it: complete, no broken link, nothing from another host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import nbformat
import pytest
from browser import Watch, browser, chromium

ROOT = Path(__file__).parent.parent
Scheme = Literal["light", "dark"]
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
# Tables and figures, mathematics, a long table of words, the reference, numbers
SAMPLE = ["00_data", "05_one_cycle", "index", "tutorials/from_fastai", "api/lr_finder",
          "benchmarks/speed", "explorer_live"]  # fmt: skip
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_LOADED = {"canonical", "alternate"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.unnamed: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links += [values[name] for name in ("href", "src") if values.get(name)]
        if tag in LOADED and values.get("rel") not in NOT_LOADED:
            self.loaded.append(values.get(LOADED[tag], ""))
        # The explorer's thumbnails are JPEGs whose caption stands below: theirs is empty on purpose
        captioned = "alt" in values and values.get("src", "").startswith("data:image/jpeg")
        if tag == "img" and not values.get("alt", "").strip() and not captioned:
            self.unnamed.append(values.get("src", "")[:80])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site, and what its builder said."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "tools/site.py", str(folder)]
    drawn = {name: value for name, value in os.environ.items() if name != "PETNB_PHOTOS"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=drawn)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder, built.stdout + built.stderr


@pytest.fixture(scope="module")
def pages(site: tuple[Path, str]) -> dict[Path, Page]:
    """Each page of the site by its path."""
    return {path.resolve(): Page(path) for path in site[0].rglob("*.html")}


def test_no_warning(site: tuple[Path, str]) -> None:
    said = [line for line in site[1].splitlines() if re.search("warning|error", line, re.I)]
    assert not said


def test_each_notebook_and_module_has_its_page(site: tuple[Path, str]) -> None:
    notebooks = [path.relative_to(ROOT / "nbs") for path in (ROOT / "nbs").rglob("*.ipynb")]
    wanted = [
        path.with_suffix(".html") for path in notebooks if ".ipynb_checkpoints" not in path.parts
    ]
    wanted += [Path("api", path.stem + ".html") for path in (ROOT / "petnb").glob("[!_]*.py")]
    others = ("changelog", "benchmarks/speed", "try_the_explorer", "explorer_live")
    wanted += [Path(f"{name}.html") for name in others]
    assert not [str(path) for path in wanted if not (site[0] / path).exists()]


def test_links_and_anchors_lead_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:|//|#$", link):
                continue
            name, _, anchor = link.partition("#")
            name = unquote(name.partition("?")[0])
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            missing = anchor and target in pages and unquote(anchor) not in pages[target].anchors
            if not target.exists() or missing:
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_nothing_is_loaded_from_another_host(pages: dict[Path, Page]) -> None:
    foreign = {
        f"{path.name}: {link}"
        for path, page in pages.items()
        for link in page.loaded
        if re.match(r"https?:|//", link)
    }
    assert not foreign


def test_no_style_loads_from_another_host(site: tuple[Path, str]) -> None:
    pattern = re.compile(r"""@import[^;]*https?:|url\(["']?(https?:)?//""")
    styles = list(site[0].rglob("*.css"))
    assert styles
    assert not [path.name for path in styles if pattern.search(path.read_text(encoding="utf-8"))]


def test_the_front_door_and_the_side_list_each_chapter_by_its_title(
    site: tuple[Path, str],
) -> None:
    door = (ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8")
    side = (site[0] / "index.html").read_text(encoding="utf-8")
    for path in CHAPTERS:
        title = nbformat.read(path, as_version=4).cells[0].source.partition("\n")[0].lstrip("# ")
        name = f"{path.name.partition('_')[0]} {title}"
        assert f"[{name}]({path.name})" in door
        assert f'<span class="menu-text">{name}</span>' in side


def test_each_picture_says_what_it_shows(pages: dict[Path, Page]) -> None:
    # A figure of a cell says what `#| fig-alt:` says, which is YAML: a colon in it needs quotes
    assert not {path.name: len(page.unnamed) for path, page in pages.items() if page.unnamed}


def test_mathematics_is_there_without_a_script(site: tuple[Path, str]) -> None:
    text = (site[0] / "05_one_cycle.html").read_text(encoding="utf-8")
    assert text.count("<math") > 5
    assert not re.search("katex|mathjax", text, re.I)


def test_no_command_of_latex_is_left_in_the_mathematics(pages: dict[Path, Page]) -> None:
    formulas = [
        formula
        for path in pages
        for formula in re.findall("<math.*?</math>", path.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert len(formulas) > 100
    assert not [formula for formula in formulas if "\\" in formula]


needs_browser = pytest.mark.skipif(
    chromium() is None, reason="neither Chromium nor Chrome on the path"
)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it_and_nobody_is_asked(site: tuple[Path, str], scheme: Scheme) -> None:
    """On a phone and on a laptop; what axe-core calls serious or critical is none of it there."""
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    # What is dark is another set of colours, and nothing else
    rules = {} if scheme == "light" else {"runOnly": ["color-contrast", "link-in-text-block"]}
    with browser() as started:
        page = started.new_page(
            viewport={"width": 400, "height": 800}, color_scheme=scheme, locale="en"
        )
        page.set_default_timeout(300_000)  # A busy machine is no fault of the site
        watch = Watch(page)
        wide, found = {}, []
        for name in SAMPLE:
            page.set_viewport_size({"width": 400, "height": 800})
            page.goto((site[0] / f"{name}.html").as_uri())
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > 400:
                wide[name] = width
            page.set_viewport_size({"width": 1280, "height": 800})
            for violation in axe.run(page, options=rules).response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    first = violation["nodes"][0]["html"][:200]
                    found.append(f"{name}: {violation['id']}, such as {first}")
    assert len(watch.asked) > len(SAMPLE)
    assert not watch.elsewhere()
    assert not wide
    assert not found


@needs_browser
def test_the_explorer_lives_in_its_page(site: tuple[Path, str]) -> None:
    with browser() as started:
        page = started.new_page()
        page.set_default_timeout(300_000)
        watch = Watch(page)
        page.goto((site[0] / "try_the_explorer.html").as_uri())
        explorer = page.frame_locator("iframe.live")
        explorer.locator(".cell").first.wait_for()
        everything = explorer.locator("#where").inner_text()
        wrong = explorer.locator("#matrix button.wrong").first
        count = wrong.inner_text()
        wrong.click()
        shown = explorer.locator("#where").inner_text()
    assert everything.endswith(" 80 images")
    assert re.search(rf"\b{count} images?$", shown)
    assert not watch.elsewhere()
    assert not watch.errors
