"""What every committed notebook promises, whatever it teaches."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest
from matplotlib.colors import to_hex

import petnb
from petnb.colours import CYCLE

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [
    path for path in sorted(ROOT.glob("nbs/**/*.ipynb")) if ".ipynb_checkpoints" not in path.parts
]
LARGEST = 100_000  # bytes of one figure
MACHINE_PATH = re.compile(
    r"""(?<![\w.~/-])  # neither the middle of a relative path nor of an address
    (/(home|root|Users|tmp|work|opt|mnt|private|var)/\w | [A-Z]:\\{1,2}\w)""",
    re.VERBOSE,
)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def notebook(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(request.param, as_version=4)


def outputs(notebook: Any) -> Iterator[tuple[int, Any]]:
    """Each output with the number of its cell."""
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            yield index, output


def texts(notebook: Any) -> Iterator[tuple[int, str]]:
    """Each source and each text among the outputs, with the number of its cell."""
    for index, cell in enumerate(notebook.cells):
        yield index, cell.source
    for index, output in outputs(notebook):
        yield index, output.get("text", "")
        for kind, content in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield index, content


def test_there_are_notebooks() -> None:
    assert ROOT / "nbs" / "index.ipynb" in NOTEBOOKS


def test_no_widget_state(notebook: Any) -> None:
    assert "widgets" not in notebook.metadata


def test_no_errors(notebook: Any) -> None:
    assert [index for index, output in outputs(notebook) if output.output_type == "error"] == []


def test_figures_are_small(notebook: Any) -> None:
    sizes = [
        (index, kind, len(base64.b64decode(content)))
        for index, output in outputs(notebook)
        for kind, content in output.get("data", {}).items()
        if kind in ("image/png", "image/jpeg")
    ]
    assert [figure for figure in sizes if figure[2] >= LARGEST] == []


def test_no_machine_paths(notebook: Any) -> None:
    found = [(index, match[0]) for index, text in texts(notebook)
             for match in MACHINE_PATH.finditer(text)]
    assert found == []


@pytest.mark.parametrize("text", ["open('/home/x')", "at /home/run1", r"C:\Users", "=/opt/a"])
def test_machine_paths_are_recognised(text: str) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://x.org/home/a", "data/home/x", "~/opt/x", "in/out/opt"])
def test_other_paths_are_not(text: str) -> None:
    assert not MACHINE_PATH.search(text)


def test_a_kernel_is_named(notebook: Any) -> None:
    """Without one, Jupyter asks a newcomer which kernel to take before the first cell runs."""
    assert notebook.metadata.get("kernelspec", {}).get("name") == "python3"


def test_what_could_show_photographs_shows_drawings(notebook: Any) -> None:
    """Photographs are not ours to publish; a page that can run on them says what it ran on."""
    reads = [cell for cell in notebook.cells
             if cell.cell_type == "code" and 'get("PETNB_PHOTOS")' in cell.source]
    said = "".join(output.get("text", "") for _, output in outputs(notebook))
    assert not reads or "Run on drawn pets" in said


def test_figures_have_the_colours_of_the_book() -> None:
    """Those of matplotlib's settings for the notebooks too; and no other place repeats them."""
    file = ROOT / "nbs" / "matplotlibrc"
    settings = matplotlib.rc_params_from_file(file, use_default_template=False)
    lines = settings["axes.prop_cycle"].by_key()["color"]
    assert [to_hex(color if color.startswith("#") else f"#{color}") for color in lines] == [*CYCLE]
    for path in Path(petnb.__file__).parent.glob("*.py"):
        if path.stem != "colours":
            text = path.read_text(encoding="utf-8")
            assert not [color for color in CYCLE if f'"{color}"' in text], path.name
