"""docs/config.md: every key with its default, its values and its meaning, from the rows of the schema themselves.

``python -m d3still.config.reference > docs/config.md`` writes the page; a test compares the two.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys

from d3still.config.sections import known_rules, leaves, owner_of, schema

ROW = re.compile(r'^(?:_C\.(?P<key>[\w.]+) =|\s+"(?P<leaf>[A-Z][A-Z_0-9]*)":) .*?(?:  # (?P<meaning>.*))?$', re.M)
KINDS = {bool: "True, False", int: "whole number", float: "number", str: "text", list: "list"}
COMMON = {"KD_WEIGHT": "weight of the loss"}
HEAD = """# Every key

Made from the schema by `python -m d3still.config.reference > docs/config.md`. How files build on each other, and
what may stand in a weight path, is in [configs/README.md](../configs/README.md).
"""


def reference() -> str:
    """The page as Markdown."""
    rules, parts = known_rules(), [HEAD]
    for section, rows in schema().items():
        meanings = _meanings(section)
        parts.append(f"## {section}\n\n| key | default | values | meaning |\n|---|---|---|---|")
        for key, default in leaves(rows):
            rule = rules.get(f"{section}.{key}")
            values = rule.meaning if rule else KINDS[type(default)]
            cells = (f"`{key}`", f"`{default!r}`", values, meanings.get(key, ""))
            parts[-1] += "\n| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _meanings(section: str) -> dict[str, str]:
    """The comment beside each row of a section, in the module where it stands."""
    source = inspect.getsource(importlib.import_module(owner_of(section)))
    rows = [row for row in ROW.finditer(source) if row["meaning"]]
    return COMMON | {
        key: row["meaning"]
        for row in rows
        for key, _ in leaves(schema()[section])
        if row["key"] == f"{section}.{key}" or row["leaf"] == key.rpartition(".")[2]
    }


if __name__ == "__main__":
    sys.stdout.write(reference())
