"""docs/architecture.md is the plan of the house; here the imports are held against it."""

import ast
import re
from collections import defaultdict

import pytest

from tests.tiny import REPOSITORY

PAGE = REPOSITORY / "docs/architecture.md"
PACKAGE = REPOSITORY / "d3still"
FLOORS = {
    room: int(floor)
    for floor, rooms in re.findall(r"^\| (\d+) \| (.+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for room in re.findall(r"`(\w+)`", rooms)
}


def room_of(file):
    """The room that a file under d3still/ or tools/ belongs to."""
    inside = file.relative_to(REPOSITORY).with_suffix("").parts
    return inside[0] if inside[0] == "tools" else inside[1]


def imported_modules(source, package):
    """Dotted names of the d3still modules that Python text imports, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = [*start, *(node.module.split(".") if node.module else [])]
            names = [".".join(module)] if len(module) > 1 else [".".join([*module, alias.name]) for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("d3still."))


def climbs(room, source, package=("d3still",)):
    """Rooms on the same floor or above that a file of ``room`` imports."""
    rooms = {name.split(".")[1] for name in imported_modules(source, list(package))} - {room, "__version__"}
    return sorted(other for other in rooms if FLOORS[other] >= FLOORS[room])


def sources():
    return [file for folder in ("d3still", "tools") for file in sorted((REPOSITORY / folder).rglob("*.py"))]


def test_every_room_has_its_floor():
    rooms = {room_of(file) for file in sources()} - {"__init__"}
    assert rooms == FLOORS.keys()
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize(
    "room, source, found",
    [
        ("errors", "from d3still.files import write_text", ["files"]),
        ("config", "def late():\n    import d3still.engine.run", ["engine"]),
        ("data", "from ..modeling import build", ["modeling"]),
        ("data", "from d3still import reporting, files, __version__", ["reporting"]),
        ("engine", "from d3still.runs import folder\nfrom .step import update\nimport torch", []),
    ],
)
def test_the_check_sees_a_climb(room, source, found):
    assert climbs(room, source, ("d3still", room)) == found


def test_imports_go_down_only():
    upwards = {
        str(file.relative_to(REPOSITORY)): found
        for file in sources()
        if file != PACKAGE / "__init__.py"
        and (found := climbs(room_of(file), file.read_text(encoding="utf-8"), file.relative_to(REPOSITORY).parts[:-1]))
    }
    assert not upwards


def test_every_file_that_the_page_names_is_there():
    named = re.findall(r"(?<![\w/.])((?:\w+/)+(?:\w+\.(?:py|html))?)", PAGE.read_text(encoding="utf-8"))
    places = (REPOSITORY, PACKAGE, PACKAGE / "reporting")
    assert len(named) > 30
    assert [name for name in named if "/VeRi/" not in name and not any((at / name).exists() for at in places)] == []


def test_no_two_public_classes_have_one_name():
    homes = defaultdict(list)
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(file.relative_to(PACKAGE)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
