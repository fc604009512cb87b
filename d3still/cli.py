"""The installed command: ``d3still train …`` is ``python tools/train_net.py …``, from any folder."""

from __future__ import annotations

import ast
import importlib
import re
import sys

from d3still.config import REPOSITORY
from d3still.registry import unknown_name

TOOLS = REPOSITORY / "tools"
COMMANDS = {
    "train": "train_net",
    "test": "test_net",
    "compare": "compare_net",
    "sweep": "sweep_net",
    "visualize": "visualize_net",
    "merge": "merge_net",
    "check-dataset": "check_dataset",
    "export": "export_net",
    "index": "index_net",
    "serve": "serve_net",
    "demo": "demo",
}


def main() -> None:
    """Run the command that the first word names with the words that follow."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(overview())
        return
    if name not in COMMANDS:
        sys.exit(f"error: {unknown_name(f'there is no command {name!r}', name, COMMANDS)}")
    sys.argv = [f"d3still {name}", *words]
    sys.path.insert(0, str(TOOLS))  # as Python does for a script
    importlib.import_module("_bootstrap").run(importlib.import_module(COMMANDS[name]).main)


def overview() -> str:
    """The commands, a line each; they are not imported for it."""
    lines = ["usage: d3still COMMAND …; d3still COMMAND --help says more", ""]
    for name, script in COMMANDS.items():
        text = (TOOLS / f"{script}.py").read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
        summary = re.split(r"[:,.?] ", " ".join(first.split()))[0].rstrip(".")
        lines.append(f"  {name:14} {summary}")
    return "\n".join(lines) + "\n"
