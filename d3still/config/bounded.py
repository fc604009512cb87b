"""YAML that cannot outgrow its file: every alias counts as much as what it stands for."""

from __future__ import annotations

from typing import Any

import yaml

from d3still.errors import UserError

MAX_LETTERS = 2**18  # a whole frozen config has some 6,000
MAX_VALUES = 10_000  # with every alias expanded; a whole config has some 400


def compose(text: str, source: str) -> yaml.Node | None:
    """The text as YAML nodes, none of them within itself; None where there is nothing.

    Args:
        text: one YAML document.
        source: what an error should name.

    Raises:
        UserError: when it is no YAML, or would expand to more than any config holds.
    """
    if len(text) > MAX_LETTERS:
        raise UserError(f"{source}: holds more than {MAX_LETTERS} characters, and is no config; name another file")
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line}: not valid YAML ({error.problem}); correct that line") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML ({' '.join(str(error).split())}); correct the file") from None
    if node is not None and _values(node, source, {}) > MAX_VALUES:
        raise UserError(f"{source}: stands for more than {MAX_VALUES} values, aliases (*name) expanded; shorten it")
    return node


def read_tree(text: str, source: str) -> Any:
    """What a config that was written by `dump_config` holds, as plain values.

    Raises:
        UserError: as `compose`; and for a value that is not what its tag says.
    """
    node = compose(text, source)
    try:
        return None if node is None else yaml.load(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a timestamp of month 13, an unhashable key
        raise UserError(f"{source}: not a config ({' '.join(str(error).split())}); correct the file") from None


def _values(node: yaml.Node, source: str, known: dict[int, int | None]) -> int:
    """How many values a node stands for; each node is looked at once, however many aliases name it."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None  # until it is done
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_values(child, source, known) for child in children)
    count = known[id(node)]
    if count is None:
        section = isinstance(node, yaml.MappingNode)
        kind = "a section is nested too deeply" if section else "a list may hold only plain values"
        raise UserError(f"{source}, line {node.start_mark.line + 1}: {kind}; here an alias stands for what holds it")
    return count
