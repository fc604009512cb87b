"""YAML files as flat settings: ``SECTION.KEY`` → text or list of texts, with where each was written.

Scalars stay text. What ``0``, ``off`` or ``1e-3`` means is decided by the key's type in the schema
(`d3still.config.coerce`), so that a file and the command line are understood alike and YAML 1.1's own
guesses (``on`` is true, ``1e-3`` is a string, ``010`` is eight) do not get in the way.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from d3still.config.bounded import MAX_LETTERS, compose
from d3still.errors import UserError
from d3still.files import require_regular, user_path

BASE_KEY = "_BASE_"
COMMAND_LINE = "command line"
MAX_DEPTH = 8  # deeper than any section
MAX_BASES = 64  # files, each building on the next
MAX_BYTES = 4 * MAX_LETTERS  # the most that so many letters take in UTF-8
NULL_TEXTS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Setting:
    """One value as written (text, list or Python value) and the place it was written at.

    ``published`` is what a published config has for the key, where that is read as another value here.
    """

    value: Any
    where: str
    published: Any = None


@dataclass(frozen=True)
class Layer:
    """One file's own settings, without those of the files it builds on."""

    file: Path
    settings: dict[str, Setting]
    bases: list[Path] = field(default_factory=list)


def read_layers(file: str | Path) -> list[Layer]:
    """The layers of a config, those of its ``_BASE_`` files first; later ones override earlier ones.

    A file that several build on is read once, and stands where the last of them needs it.

    Raises:
        UserError: for a file that is missing, not YAML, or that builds on itself.
    """
    layers: dict[Path, Layer] = {}
    _collect(user_path(file), (), layers)
    return list(reversed(layers.values()))


def _collect(file: Path, above: tuple[Path, ...], layers: dict[Path, Layer]) -> None:
    """Add a file, then those it builds on, the last of them first."""
    resolved = file.resolve()
    if resolved in above:
        chain = " -> ".join(shown(path) for path in (*above[above.index(resolved) :], resolved))
        raise UserError(f"{shown(file)}: {BASE_KEY} goes round in a circle ({chain}); take one link out")
    if resolved in layers:
        return
    if len(above) == MAX_BASES:
        raise UserError(f"{shown(file)}: {MAX_BASES} files build on each other; join some of them")
    layers[resolved] = layer = read_layer(file)
    for base in reversed(layer.bases):
        if not base.exists():
            raise UserError(f"{shown(file)}: {BASE_KEY} names {shown(base)}, which does not exist; correct the path")
        _collect(base, (*above, resolved), layers)


def read_layer(file: Path) -> Layer:
    """One YAML file, flattened; its ``_BASE_`` paths are resolved against its own folder."""
    settings = _flat_settings(_compose(file), shown(file))
    base = settings.pop(BASE_KEY, None)
    bases = [] if base is None else base.value if isinstance(base.value, list) else [base.value]
    if not all(isinstance(entry, str) and entry for entry in bases):
        raise UserError(f"{base.where}: {BASE_KEY} takes a path or a list of paths, e.g. ../_base_/acd.yaml")
    return Layer(file, settings, [file.parent / user_path(entry, f"{base.where}: {BASE_KEY}") for entry in bases])


def parse_list(text: str) -> list[Any] | None:
    """``[40, 70]``, ``(40, 70)``, ``(40,)``, ``40, 70`` or ``40`` as a list of texts; None if unreadable."""
    text = text.strip()
    if text[:1] == "(" and text[-1:] == ")":
        text = f"[{text[1:-1]}]"
    if text[:1] != "[":
        text = f"[{text}]"
    try:
        return _plain(compose(text, "list"), "", 0)
    except UserError:
        return None


def _compose(file: Path) -> yaml.Node:
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a config file in it, e.g. --config-file {file}/rop.yaml")
    try:
        if require_regular(file) > MAX_BYTES:
            raise UserError(f"config file {file} is larger than any config ({MAX_BYTES} bytes); name another file")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [path.name for path in file.parent.glob("*.y*ml")], n=1)
        hint = f"did you mean {file.parent / near[0]}?" if near else "check the path given to --config-file"
        raise UserError(f"config file {file} does not exist; {hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {file} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"config file {file} cannot be read ({reason}); check its permissions") from None
    node = compose(text, shown(file))
    if not isinstance(node, yaml.MappingNode):
        found = "is empty" if node is None else "holds no sections"
        raise UserError(f"{shown(file)} {found}; a config is sections of keys, e.g. 'SOLVER: {{MAX_EPOCHS: 120}}'")
    return node


def _flat_settings(root: yaml.MappingNode, file: str) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}

    def visit(node: yaml.MappingNode, prefix: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise UserError(f"{file}: {prefix} is nested too deeply; a key is SECTION.KEY")
        seen: set[str] = set()
        for key_node, value_node in node.value:
            where = f"{file}, line {key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value.isprintable():
                raise UserError(f"{where}: a key must be a plain name")
            key = f"{prefix}.{key_node.value}" if prefix else key_node.value
            if key in seen or key in settings:
                raise UserError(f"{where}: {key} is given twice; keep one of them")
            seen.add(key)
            if isinstance(value_node, yaml.MappingNode):
                visit(value_node, key, depth + 1)
            else:
                settings[key] = Setting(_plain(value_node, where, depth), where)

    visit(root, "", 0)
    return settings


def _plain(node: yaml.Node, where: str, depth: int) -> Any:
    """A scalar as text (None when there is nothing), a sequence as a list."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in NULL_TEXTS else node.value
    if isinstance(node, yaml.MappingNode) or depth > MAX_DEPTH:
        raise UserError(f"{where}: a list may hold only plain values")
    return [_plain(child, where, depth + 1) for child in node.value]


def shown(path: Path) -> str:
    """The path as short as it can be said from the current folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
