"""Every key does something: a key that nothing reads is a bug.

The distillers' own sections are tried: `settings` gets a config that notes what is read from it. The other
sections are looked up in the package's source, where a key is read as ``cfg.SECTION.KEY``, through a local name
for the section, or by a name in quotes.
"""

import ast
import re
from pathlib import Path

import d3still
from d3still.config import get_cfg
from d3still.distillers import DISTILLERS

PACKAGE = Path(d3still.__file__).parent
READ_BY_THE_CONFIG_ITSELF = {
    "EXPERIMENT.IMPORTS",  # imports.py
    "OUTPUT_DIR.ROOT_PATH",  # paths.run_dir
    "OUTPUT_DIR.EXPERIMENT_NAME",  # paths.run_dir
}


class Noting(dict):
    """A section that notes the full keys of the values taken from it."""

    def __init__(self, values, prefix, notes):
        super().__init__(
            {
                key: Noting(value, f"{prefix}{key}.", notes) if isinstance(value, dict) else value
                for key, value in values.items()
            }
        )
        self.__dict__.update(prefix=prefix, notes=notes)

    def _note(self, key, value):
        if not isinstance(value, dict):
            self.notes.add(f"{self.prefix}{key}")
        return value

    def __getitem__(self, key):
        return self._note(key, super().__getitem__(key))

    def get(self, key, default=None):
        return self._note(key, super().get(key, default))

    def items(self):
        return [(key, self[key]) for key in self]

    def __getattr__(self, key):
        if key not in self:
            raise AttributeError(key)
        return self[key]


def read_by_distillers():
    """Keys read when each registered distiller takes its settings."""
    notes = set()
    for name in DISTILLERS:
        DISTILLERS.get(name).settings(Noting(get_cfg(), "", notes))
    return notes


class Reads(ast.NodeVisitor):
    """Which keys of which sections one module reads."""

    def __init__(self, sections):
        self.sections, self.names, self.found, self.quoted, self.used = sections, {}, set(), set(), set()

    def section_of(self, node):
        if isinstance(node, ast.Attribute) and node.attr in self.sections:
            return node.attr
        return self.names.get(node.id) if isinstance(node, ast.Name) else None

    def visit_Assign(self, node):
        target, value = node.targets[0], node.value
        several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        pairs = zip(target.elts, value.elts, strict=True) if several else [(target, value)]
        for target, value in pairs:
            if isinstance(target, ast.Name) and self.section_of(value):
                self.names[target.id] = self.section_of(value)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        if section := self.section_of(node.value):
            self.found.add(f"{section}.{node.attr}")
        if node.attr in self.sections:
            self.used.add(node.attr)
        self.generic_visit(node)

    def visit_Subscript(self, node):
        if isinstance(node.slice, ast.Constant) and node.slice.value in self.sections:  # config["INPUT"]
            self.used.add(node.slice.value)
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, str) and re.fullmatch("[A-Z][A-Z_0-9]+", node.value):
            self.quoted.add(node.value)

    def keys(self):
        return self.found | {f"{section}.{name}" for section in self.used for name in self.quoted}


def read_by_source(files):
    sections = {key for key, value in get_cfg().items() if isinstance(value, dict)}
    found = set()
    for file in files:
        reads = Reads(sections)
        reads.visit(ast.parse(file.read_text(encoding="utf-8")))
        found |= reads.keys()
    return found


def test_every_key_is_read():
    files = [file for file in PACKAGE.rglob("*.py") if "config" not in file.relative_to(PACKAGE).parts]
    read = read_by_source(files) | read_by_distillers() | READ_BY_THE_CONFIG_ITSELF
    unread = sorted(get_cfg().flat().keys() - read)
    assert not unread, f"nothing reads {', '.join(unread)}"


def test_the_check_itself(tmp_path):
    """It sees each way of reading, and is not satisfied by a key of that name in another section."""
    module = tmp_path / "module.py"
    module.write_text(
        "def build(cfg, key='MAX_EPOCHS'):\n"
        "    '''TEST.WEIGHTS is only written about.'''\n"
        "    solver, i = cfg.SOLVER, cfg.INPUT\n"
        "    print('set SOLVER.SEED', solver.BASE_LR, i.PROB, cfg.TEST.RE_RANKING, getattr(cfg.SOLVER, key))\n"
        "    return cfg.INPUT.IMS_PER_BATCH\n"
    )
    assert read_by_source([module]) & get_cfg().flat().keys() == {
        "SOLVER.BASE_LR",
        "SOLVER.MAX_EPOCHS",
        "INPUT.PROB",
        "TEST.RE_RANKING",
    }
