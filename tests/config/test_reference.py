"""docs/config.md is what the schema says."""

import ast

from d3still.config import REPOSITORY, get_cfg
from d3still.config.reference import reference
from d3still.config.sections import known_rules, owner_of
from d3still.distillers import DISTILLERS


def test_the_page_is_up_to_date():
    page = (REPOSITORY / "docs/config.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m d3still.config.reference > docs/config.md"


def test_the_page_names_each_key_once_with_its_rule():
    page = reference()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(get_cfg().flat())
    assert "| `TOPK` | `10` | 2 or more | ranks that count, the image itself first, among the pair batch |" in rows
    assert "| `SEED` | `2024` | 0 or more and below 2^32 |  |" in rows
    assert r"| `DEVICE` | `'cuda'` | cuda \| cpu | cuda falls back to cpu where there is none |" in rows
    assert "| `PDIST.EPSILON` | `1e-12` | number | the least squared distance |" in rows
    assert all(rule.meaning.replace("|", "\\|") in page for rule in known_rules().values())


def test_config_knows_no_distiller_by_name():
    """But for the published translation, and for NONE, which is no distiller; sections stand beside their class."""
    names = {*DISTILLERS, "RAHO", *(DISTILLERS.get(name).section for name in DISTILLERS)} - {"NONE"}
    for file in sorted((REPOSITORY / "d3still/config").glob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        said = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        said |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert file.name == "published.py" or not names & said, file
    owners = {name: owner_of(DISTILLERS.get(name).section) for name in DISTILLERS if name != "NONE"}
    assert owners == {name: DISTILLERS.get(name).__module__ for name in owners}
