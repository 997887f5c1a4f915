"""Build the documentation site from the notebooks and their saved outputs.

    python tools/site.py    # writes the folder that settings.ini names as doc_path
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import nbformat
from nbdev.config import get_config

HIDDEN = re.compile(r"^#\| *(hide|default_exp\b.*) *$", re.MULTILINE)
HIDE_INPUT = re.compile(r"^#\| *hide_input *$", re.MULTILINE)
PROJECT = """\
project: {{type: website, output-dir: site}}
format: {{html: {{theme: {{light: cosmo, dark: darkly}}, toc: true}}}}
website:
  title: {title}
  description: {description}
  site-url: {doc_host}{doc_baseurl}
  repo-url: {git_url}
  navbar: {{search: true}}
  llms-txt: true
  sidebar: {{style: floating, contents: auto}}
"""


def stage(path: Path) -> None:
    """Leave in the notebook at `path` what the site shows."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN.search(cell.source)]
    for cell in notebook.cells:
        cell.source = HIDE_INPUT.sub("#| echo: false", cell.source)
    nbformat.write(notebook, path)


def main() -> None:
    """Build the site."""
    settings = get_config()
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "nbs"
        shutil.copytree(settings.nbs_path, staged, ignore=shutil.ignore_patterns(".*"))
        for path in staged.rglob("*.ipynb"):
            stage(path)
        project = PROJECT.format_map({key: settings.get(key) for key in settings.d})
        (staged / "_quarto.yml").write_text(project, encoding="utf-8")
        subprocess.run(["smalldocs", "render", str(staged)], check=True)
        shutil.rmtree(settings.doc_path, ignore_errors=True)
        shutil.move(staged / "site", settings.doc_path)


if __name__ == "__main__":
    main()
