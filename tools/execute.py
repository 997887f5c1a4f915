"""Execute notebooks in a real kernel and save their outputs, cleaned for git.

    python tools/execute.py nbs/00_data.ipynb nbs/index.ipynb
    python tools/execute.py --nb-flags slow nbs/*.ipynb

Cells with `#| eval: false`, or with a flag of settings.ini that is not asked for, keep the outputs
that they have.
"""

import argparse
import base64
import io
import os
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 50_000  # bytes of one figure; a notebook of ten stays under 600 kB
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Client(NotebookClient):
    """Executes all cells but those that carry one of the `skipped` directives."""

    skipped: re.Pattern[str]

    async def async_execute_cell(
        self,
        cell: nbformat.NotebookNode,
        cell_index: int,
        execution_count: int | None = None,
        store_history: bool = True,
    ) -> nbformat.NotebookNode:
        """Execute `cell`, or leave it as it is."""
        if cell.cell_type == "code" and self.skipped.search(cell.source):
            return cell
        return await super().async_execute_cell(cell, cell_index, execution_count, store_history)


def lasting(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The output without views of widgets, which need a kernel; None if nothing is left of it."""
    if "data" not in output:
        return output
    views = output.data.pop(WIDGET_VIEW, None)
    if "image/png" in output.data:
        output.data["image/png"] = small(output.data["image/png"])
    return None if views or not any(output.data.values()) else output


def small(png: str) -> str:
    """The same figure in 256 colours, scaled down as far as it takes to stay under `LARGEST`."""
    figure = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    scale = 1.0
    while True:
        size = (round(figure.width * scale), round(figure.height * scale))
        buffer = io.BytesIO()
        reduced = figure.resize(size, Image.Resampling.LANCZOS)
        reduced.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() < LARGEST:
            return base64.b64encode(buffer.getvalue()).decode()
        scale *= 0.9


def execute(path: Path, flags: set[str]) -> None:
    """Execute the notebook at `path` in its folder, against this tree's petnb, and save it."""
    skipped = ["eval: *false", *sorted(set(get_config().tst_flags.split()) - flags)]
    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook,
        kernel_name="python3",
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.skipped = re.compile(rf"^#\| *({'|'.join(skipped)})\b", re.MULTILINE)
    here = {"PYTHONPATH": str(ROOT), "MATPLOTLIBRC": str(ROOT / "nbs")}
    client.execute(env={**os.environ, **here})
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(lasting, cell.outputs) if output]
    nbformat.write(notebook, path)
    nbdev_clean.__wrapped__(str(path))


def main() -> None:
    """Execute the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--nb-flags", default="", help="flags of cells to run too, such as slow")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        start = time.perf_counter()
        execute(path, set(arguments.nb_flags.split()))
        print(f"{path}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
