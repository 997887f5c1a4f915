"""Make README.md, and its pictures in nbs/images/, from nbs/index.ipynb with its saved outputs.

    python tools/readme.py            # write them
    python tools/readme.py --check    # fail when they are not what the notebook says

Directives are hidden, and obeyed where they hide a cell, its code or its output.
"""

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
PICTURES = "nbs/images/readme-{}.png"
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py: change it there. -->\n\n"
HIDES = {
    "cell": {"hide", "include: false", "default_exp"},
    "code": {"echo: false", "hide_input"},
    "output": {"output: false", "hide_output"},
}


def links(markdown: str) -> str:
    """Make links that are relative to nbs/ relative to the README's folder."""
    return re.sub(
        r"\]\((?![a-z]+:|[#/])([^)\s]+)",
        lambda link: "](" + posixpath.normpath(posixpath.join("nbs", link[1])),
        markdown,
    )


def visible(cell: nbformat.NotebookNode) -> bool:
    """Whether the reader sees `cell`, from which what they shall not see is taken away."""
    if cell.cell_type == "markdown":
        cell.source = links(cell.source)
    if cell.cell_type != "code":
        return bool(cell.cell_type == "markdown")
    directives = set(re.findall(r"^#\| *(.*?) *$", cell.source, re.MULTILINE))
    hidden = {part for part, names in HIDES.items() if directives & names}
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    cell.metadata["transient"] = {"remove_source": "code" in hidden}
    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    if "output" in hidden:
        cell.outputs = []
    for output in cell.outputs:
        if html := output.get("data", {}).get("text/html"):  # GitHub shows a style sheet as text
            html = re.sub(r"<style.*?</style>\n?", "", html, flags=re.DOTALL)
            output.data["text/html"] = html
    return "cell" not in hidden


def alternative_texts(cell: nbformat.NotebookNode) -> list[str]:
    """What `#| fig-alt:` says of each picture among the cell's outputs."""
    outputs = cell.get("outputs", [])
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    said = re.search(r"^#\| *fig-alt: *(.*?) *$", cell.source, re.MULTILINE)
    if pictures and not said:
        sys.exit(f"{NOTEBOOK.name}: a picture without '#| fig-alt:' after {cell.source[:60]!r}")
    return [said[1] for _ in pictures if said]


def made() -> dict[Path, bytes]:
    """What the files should hold: the README and its pictures."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # for the colours of the code
    alternatives = [text for cell in notebook.cells for text in alternative_texts(cell)]
    notebook.cells = [cell for cell in notebook.cells if visible(cell)]
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    files = {}
    pictures = zip(resources["outputs"].items(), alternatives, strict=True)
    for number, ((name, content), alternative) in enumerate(pictures, 1):
        picture = PICTURES.format(number)
        body = body.replace(f"![png]({name})", f"![{alternative}]({picture})")
        files[ROOT / picture] = content
    body = "\n".join(line.rstrip() for line in body.splitlines())
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return {README: f"{NOTE}{body}\n".encode(), **files}


def main() -> None:
    """Write the files, or check them."""
    files = made()
    there = [path for path in [README, *ROOT.glob(PICTURES.format("*"))] if path.exists()]
    if sys.argv[1:] == ["--check"]:
        if files != {path: path.read_bytes() for path in there}:
            sys.exit("README.md is stale: run python tools/readme.py")
        return
    for path in there:
        path.unlink()
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
