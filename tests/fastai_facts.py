"""Values obtained by running fastai, by their ids: what several tests replay."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "facts"
FACTS: dict[str, Any] = {
    fact["id"]: fact for fact in json.loads((FOLDER / "fastai_values.json").read_text())["facts"]
}
