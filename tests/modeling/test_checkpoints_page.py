"""checkpoints/README.md names every published weight file and only configs that exist."""

import json
import re
from pathlib import Path

from tests import conformance

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "checkpoints" / "README.md").read_text()
WEIGHT_KEYS = ("DISTILLER.TEACHER_MODEL_PATH", "DISTILLER.STUDENT_PRETRAIN_PATH")


def test_every_published_file_is_named():
    settings = json.loads((conformance.FOLDER / "published_settings.json").read_text())
    published = {entry[key] for entry in settings.values() for key in WEIGHT_KEYS if entry.get(key)}
    assert set(re.findall(r"\| (\S+\.pth) \|", PAGE)) == published


def test_every_config_named_exists():
    folder = None
    for line in PAGE.splitlines():
        if heading := re.fullmatch(r"\*\*(configs/\S+)\*\*", line):
            folder = ROOT / heading[1]
        elif row := re.fullmatch(r"\| \S+\.pth \| (\S+) \| (\S+) \|", line):
            assert all((ROOT / "configs" / place).exists() for place in (row[1], *row[2].split("<br>")))
        elif row := re.fullmatch(r"\| \S+\.pth \| (\S+) \|", line):
            assert (folder / row[1]).exists(), line
