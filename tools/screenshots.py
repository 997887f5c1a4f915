"""Take the pictures of the explorer and of the report that the documentation shows.

    python tools/screenshots.py    # writes nbs/images/explorer.png and nbs/images/report.png

It draws pets, trains on them for a moment, and looks at the result in Chromium, as a reader would.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "nbs" / "images"
LARGEST = 100_000  # bytes of a picture
sys.path.insert(0, str(ROOT / "tests"))

from browser import browser, open_notebook, server, write_notebook  # noqa: E402

NOTEBOOK = """
from petnb import *
from petnb.explorer import Explorer

data = ImageData.drawn_pets(images_per_breed=25, pixels=128, size=96)
learn = vision_learner(data)
learn.fit_one_cycle(2)
interp = learn.interpret()
interp.to_html("report.html")
Explorer(interp, data, learn, journal="journal.jsonl")
"""


def save(png: bytes, path: Path) -> None:
    """Write the picture in as many colours as its size allows."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colors in (256, 128, 64, 32):
        reduced = picture.quantize(colors, dither=Image.Dither.NONE)
        reduced.save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes, {picture.size}")
            return
    raise ValueError(f"{path} has {path.stat().st_size:,} bytes, and {LARGEST:,} are the limit")


def main() -> None:
    """Take both pictures."""
    with tempfile.TemporaryDirectory() as name, browser() as chromium:
        folder = Path(name)
        write_notebook(folder / "pets.ipynb", NOTEBOOK)
        with server("lab", folder) as address:
            page = chromium.new_page(viewport={"width": 1480, "height": 1250})
            open_notebook(page, address, "pets.ipynb", "lab")
            page.wait_for_selector(".petnb-explorer", timeout=180_000)
            page.get_by_placeholder("k keep").click()
            page.keyboard.type("pdk")
            page.locator(".petnb-explorer").get_by_text("✓ kept").wait_for()
            save(page.locator(".petnb-explorer").screenshot(), IMAGES / "explorer.png")
        page = chromium.new_page(viewport={"width": 1120, "height": 820})
        page.goto((folder / "report.html").as_uri())
        page.locator(".cell").first.wait_for()
        save(page.screenshot(), IMAGES / "report.png")


if __name__ == "__main__":
    main()
