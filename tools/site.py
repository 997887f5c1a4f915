"""Build the documentation site from the notebooks and their saved outputs, without a network.

    python tools/site.py            # writes the folder that settings.ini names as doc_path
    python tools/site.py FOLDER     # writes another one

Chapters, tutorials and guides are the notebooks. The reference comes from the package, benchmarks
and changelog from their Markdown files. Mathematics becomes MathML, which browsers draw themselves.
Where the environment variable PETNB_PHOTOS names photographs, what can run on them does so first.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import yaml
from execute import execute
from latex2mathml.converter import convert
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbdev.config import get_config

HIDDEN = re.compile(r"^#\| *(hide|default_exp\b.*) *$", re.MULTILINE)
HIDE_INPUT = re.compile(r"^#\| *hide_input *$", re.MULTILINE)
# Code, in a fence or between backticks, keeps its dollars; mathematics has one or two around it
MATH = re.compile(
    r"(?P<code>^```.*?^```|`+[^`\n]+`+)|\$\$(?P<display>.+?)\$\$|(?<![\\\w$])\$(?P<inline>[^$\s](?:[^$\n]|\n(?!\n))*?)\$",
    re.MULTILINE | re.DOTALL,
)
# What latex2mathml makes a letter: functions, which keep apart from what follows, and signs
FUNCTION = re.compile(r"<mi>\\?(arg|cos|exp|ln|log|sin)</mi>(?!<mo stretchy)")
PRIME = re.compile(r"<msup><mi>([^<]+)</mi><mi>&#x02032;</mi></msup>")  # Raised already
SIGNS = {"<mi>&#x000B1;</mi>": "<mo>&#x000B1;</mo>", "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>"}
LINK = re.compile(r"\]\((?!https?:|#|mailto:)(?:\.\./)*([^)]+)\)")
# Themes fetch their fonts from another host; without, the reader's own are used
IMPORT = re.compile(r"""@import\s*(?:url\()?["']?https?:[^"')]*["']?\)?\s*;""")
# The theme's blue is too pale to read on white, by the contrast of 4.5 that WCAG asks for
STYLES = """\
html:not(.quarto-dark) { --bs-link-color: #1b66b8; --bs-link-color-rgb: 27, 102, 184; }
html:not(.quarto-dark) :is(main a, a code, .breadcrumb a, .active, .active span) {
  color: #1b66b8;
}
/* And blue in the dark too, where the theme's links are green */
.quarto-dark { --bs-link-color: #8ab8ea; --bs-link-color-rgb: 138, 184, 234; }
.quarto-dark :is(main a, a code, .breadcrumb a, #TOC .active, .sidebar .active) { color: #8ab8ea; }
/* Room for code of 100 columns and for tables of many, at a laptop's width */
#quarto-content {
  --sd-body-width: 860px; --sd-sidebar-width: 205px; --sd-margin-width: 180px; --sd-gap: 1.5rem;
}
main pre, main pre code { font-size: 0.75rem; }
main pre.sourceCode { padding-inline: 0.7rem; }
main pre .sentences { white-space: pre-wrap; }
main table :is(td, th) { font-size: 0.9rem; }
/* Tables among the outputs: a heading stands above its column, and apart from the next one */
main .cell-output-display table :is(td, th) {
  padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; vertical-align: top !important;
  font-size: 0.85rem; font-variant-numeric: tabular-nums;
}
main .cell-output-display table, main .cell-output-display table * { border: none; }
main .cell-output-display table tr { border-bottom: 1px solid #8884; }
.reference main pre code { white-space: pre-wrap; }
.quarto-dark .smalldocs-search input { background: #333; border-color: #666; color: #eee; }
.quarto-dark .smalldocs-search input::placeholder { color: #bbb; }
img { max-width: 100%; height: auto; }
.quarto-dark .cell-output-display img { background: white; padding: 4px; border-radius: 4px; }
main pre, main table, main .cell-output { overflow-x: auto; max-width: 100%; }
@media (max-width: 600px) {
  .reference main td { overflow-wrap: anywhere; padding-inline: 0.3rem; }
}
main table { display: block; }
main code, main h1, main h2, main h3, main h4 { overflow-wrap: anywhere; }
iframe.live { width: 100%; height: 60rem; border: 1px solid #8884; border-radius: 4px; }
/* Fonts that know mathematics: of Windows, of macOS, of TeX, of Linux */
math {
  font-family: "Cambria Math", "STIX Two Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math;
}
math[display="block"] {
  overflow-x: auto; overflow-y: hidden; max-width: 100%; padding: 0.4em 0 1em;
}
"""

ASKS = r"os.environ.get(\"PETNB_PHOTOS\")"  # As it stands in the file of a notebook
LIVE = "explorer_live.html"
TUTORIALS = ["the_pets_article", "your_own_photographs", "cleaning_labels", "choosing_a_backbone",
             "when_it_goes_wrong", "on_photographs", "from_fastai"]  # fmt: skip
# Names for the places of a page, by which those who do not see it move, and keys for what opens
PLACES = [
    ('<nav class="navbar', '<nav aria-label="Site" class="navbar'),
    ('<nav class="quarto-secondary-nav', '<nav aria-label="Page" class="quarto-secondary-nav'),
    ('<nav id="quarto-sidebar"', '<nav aria-label="Contents" id="quarto-sidebar"'),
    ('<nav class="page-navigation"', '<nav aria-label="Before and after" class="page-navigation"'),
    ('<nav id="TOC"', '<nav aria-label="On this page" id="TOC"'),
    ('title-breadcrumbs d-none d-lg-block" aria-label="breadcrumb"',
     'title-breadcrumbs d-none d-lg-block" aria-label="Where this page is"'),
    ("<th></th>", "<td></td>"),
]  # fmt: skip
# smalldocs links `name`; here `name(arguments)` too, and what a chapter's usual variables can do
CODE = re.compile(
    r"<(a|pre|h[1-6])\b.*?</\1>|<code>(?P<name>[\w.]+)(?P<call>\([^<]*\))?</code>", re.DOTALL
)
OWNERS = {"data": "ImageData", "learn": "Learner", "interp": "Interpretation",
          "predictor": "Predictor", "recorder": "Recorder"}  # fmt: skip
# A message wraps where it would leave a laptop's page; code does not
TEXT = re.compile(r'(<pre[^>]*><code)(?: class="sourceCode ")?>(.*?)</code>', re.DOTALL)
COLUMNS = 100
SECTION = re.compile(r'data-bs-target="(#quarto-sidebar-section-\d+)" role="navigation"')
# What scrolls can be reached, and scrolled, by keys
KEYS = """<script>
const reach = () => {
  for (const box of document.querySelectorAll("main pre, main table, main .cell-output, main math"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
};
addEventListener("load", reach); addEventListener("resize", reach);
</script></body>"""


def mathml(found: re.Match[str]) -> str:
    """Return the mathematics that was `found` as MathML; code as it is."""
    if found["code"]:
        return found[0]
    if found["display"]:
        formula = convert(found["display"].strip(), display="block")
    else:
        formula = convert(" ".join(found["inline"].split()))
    formula = FUNCTION.sub(r'<mi>\1</mi><mspace width="0.17em"/>', formula)
    formula = PRIME.sub(
        r'<mrow><mi>\1</mi><mo lspace="0" rspace="0">&#x02032;</mo></mrow>', formula
    )
    for letter, sign in SIGNS.items():
        formula = formula.replace(letter, sign)
    return f"\n\n```{{=html}}\n{formula}\n```\n\n" if found["display"] else formula


def stage(path: Path, git_url: str) -> None:
    """Leave in the notebook at `path` what the site shows."""
    notebook, streams = nbformat.read(path, as_version=4), CoalesceStreamsPreprocessor()
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN.search(cell.source)]
    for cell in notebook.cells:
        cell.source = HIDE_INPUT.sub("#| echo: false", cell.source)
        streams.preprocess_cell(cell, {}, 0)  # What is printed in pieces is one output
        if cell.cell_type == "markdown":
            source = cell.source.replace(
                "(../CONTRIBUTING.md)", f"({git_url}/blob/main/CONTRIBUTING.md)"
            )
            cell.source = MATH.sub(mathml, source)
    nbformat.write(notebook, path)


def stage_markdown(staged: Path, git_url: str) -> None:
    """Lay benchmarks and changelog beside the staged notebooks; link other files at GitHub."""
    folder = staged / "benchmarks"
    shutil.copytree(
        "benchmarks",
        folder,
        ignore=lambda _, names: [
            n for n in names if not n.endswith((".md", ".png")) or n.endswith("_notes.md")
        ],
    )
    (folder / "README.md").rename(folder / "index.md")
    shutil.copy("CHANGELOG.md", staged / "changelog.md")

    def target(found: re.Match[str]) -> str:
        name = found[1]
        if (folder / name.partition("#")[0]).exists():
            return found[0]
        return f"]({git_url}/blob/main/benchmarks/{name})"

    for path in folder.glob("*.md"):
        path.write_text(LINK.sub(target, path.read_text(encoding="utf-8")), encoding="utf-8")


def wrapped(found: re.Match[str]) -> str:
    """Return the text that was `found`; if it has a long line, named as sentences."""
    longest = max(len(line) for line in unescape(found[2]).split("\n"))
    return f'{found[1]} class="sentences">{found[2]}</code>' if longest > COLUMNS else found[0]


def finish(page: str, symbols: dict[str, str], root: str) -> str:
    """Return the HTML of a page, usable without eyes and without a mouse, with names as links.

    `symbols` are the reference's addresses by name, `root` from the page to the site
    """
    for plain, named in PLACES:
        page = page.replace(plain, named)
    page = SECTION.sub(r'href="\1" data-bs-target="\1" role="button"', page)
    if root and "<title>petnb." in page:
        page = page.replace('<body class="', '<body class="reference ')

    def link(found: re.Match[str]) -> str:
        owner, _, name = (found["name"] or "").partition(".")
        name = f"{OWNERS[owner]}.{name}" if owner in OWNERS else found["name"]
        if name in symbols and (found["call"] or "." in name):
            return f'<a href="{root}{symbols[name]}">{found[0]}</a>'
        return found[0]

    page = TEXT.sub(wrapped, page)
    before, main, after = page.partition("<main")
    return before + main + CODE.sub(link, after).replace("</body>", KEYS)


def photographs(staged: Path) -> None:
    """Execute anew what can run on photographs, where there are some."""
    for path in sorted(staged.rglob("*.ipynb")):
        if os.environ.get("PETNB_PHOTOS") and ASKS in path.read_text(encoding="utf-8"):
            execute(path, set())


def explorer_live(path: Path) -> None:
    """Write a report of a small model on drawn pets, for readers to click through."""
    from petnb import ImageData, vision_learner

    data = ImageData.drawn_pets(images_per_breed=20, pixels=128, size=96, valid_pct=0.4)
    learn = vision_learner(data)
    learn.fit_one_cycle(2)
    learn.interpret().to_html(path, title="What does this model get wrong?")


def numbered(path: Path) -> dict[str, str]:
    """Return the entry of a chapter: its number, as in its file's name, and its title."""
    title = nbformat.read(path, as_version=4).cells[0].source.partition("\n")[0].lstrip("# ")
    return {"text": f"{path.name.partition('_')[0]} {title}", "href": path.name}


def place(path: Path) -> int:
    """Return where the tutorial at `path` stands: what a newcomer needs first comes first."""
    return TUTORIALS.index(path.stem) if path.stem in TUTORIALS else len(TUTORIALS)


def project(settings: Any, staged: Path) -> dict[str, Any]:
    """Return what smalldocs should know, in the form of a `_quarto.yml`."""
    chapters = [numbered(path) for path in sorted(staged.glob("[0-9]*.ipynb"))]
    sidebar: list[Any] = [
        {"text": "Home", "href": "index.ipynb"},
        {"text": "Getting started", "href": "index.ipynb#try-it"},
        {"text": "Try the explorer", "href": "try_the_explorer.md"},
        {"section": "Chapters", "contents": chapters},
    ]
    for title, name in (("Tutorials", "tutorials"), ("How to", "how_to")):
        pages = sorted((staged / name).glob("*.ipynb"), key=lambda path: (place(path), path))
        names = [path.relative_to(staged).as_posix() for path in pages]
        if names:
            sidebar.insert(-1, {"section": title, "contents": names})
    if (staged / "what_happens_when.ipynb").exists():
        sidebar.append("what_happens_when.ipynb")
    measured = sorted(
        (path.relative_to(staged).as_posix() for path in (staged / "benchmarks").glob("*.md")),
        key=lambda name: (not name.endswith("/index.md"), name),
    )
    sidebar.append({"section": "Benchmarks", "contents": measured})
    modules = sorted(path.stem for path in Path(settings.lib_path).glob("[!_]*.py"))
    sidebar.append({"section": "Reference", "contents": [f"api/{name}.qmd" for name in modules]})
    sidebar.append({"text": "Changelog", "href": "changelog.md"})
    return {
        "project": {"type": "website", "output-dir": "site", "resources": [LIVE]},
        "format": {
            "html": {
                "theme": {"light": "cosmo", "dark": "darkly"},
                "css": "styles.css",
                "toc": True,
            }
        },
        "website": {
            "title": settings.title,
            "description": settings.description,
            "site-url": f"{settings.doc_host}{settings.doc_baseurl}",
            "repo-url": settings.git_url,
            "navbar": {"search": True},
            "llms-txt": True,
            "page-navigation": True,
            "sidebar": {"style": "floating", "contents": sidebar},
        },
        "smalldocs": {
            "api": {
                "packages": [settings.lib_name],
                "root": str(Path.cwd()),
                "source": f"{settings.git_url}/blob/{settings.branch}",
            }
        },
    }


def main(folder: str | None = None) -> None:
    """Build the site in `folder`."""
    settings = get_config()
    out = Path(folder or settings.doc_path)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "nbs"
        ignored = shutil.ignore_patterns(".*", "*.py", "__pycache__")
        shutil.copytree(settings.nbs_path, staged, ignore=ignored)
        photographs(staged)
        for path in staged.rglob("*.ipynb"):
            stage(path, settings.git_url)
        stage_markdown(staged, settings.git_url)
        (staged / "styles.css").write_text(STYLES, encoding="utf-8")
        text = yaml.safe_dump(project(settings, staged), sort_keys=False)
        (staged / "_quarto.yml").write_text(text, encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        }
        explorer_live(staged / LIVE)
        subprocess.run(
            ["smalldocs", "api", "build", "--dir", str(staged)], check=True, env=environment
        )
        subprocess.run(["smalldocs", "render", str(staged)], check=True, env=environment)
        for path in (staged / "site").rglob("*.css"):
            text = path.read_text(encoding="utf-8")
            path.write_text(IMPORT.sub("", text), encoding="utf-8")
        symbols = json.loads((staged / "_symbols.json").read_text(encoding="utf-8"))
        symbols = {name: at.lstrip("/").replace(".qmd", ".html") for name, at in symbols.items()}
        for path in (staged / "site").rglob("*.html"):
            if path.name != LIVE:  # It lets no script in that it does not know
                root = "../" * (len(path.relative_to(staged / "site").parts) - 1)
                page = finish(path.read_text(encoding="utf-8"), symbols, root)
                path.write_text(page, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(staged / "site", out)


if __name__ == "__main__":
    main(*sys.argv[1:])
