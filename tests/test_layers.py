"""Imports go down the house only: a module may import those of the rooms above it in this list, and its own room."""

import ast
from pathlib import Path

import detectkit

ROOMS = [
    {"errors", "console", "files", "stores", "draw", "page", "versions"},
    {"spec"},
    {"ops"},
    {"data", "trackers"},
    {"heads"},
    {"model"},
    {"runtimes"},
    {"predict"},
    {"evaluation", "detect"},
    {"audit"},
    {"tune", "train"},
    {"compress", "deploy"},
    {"pipeline"},
    {"report", "doctor", "propose"},
    {"commands"},
    {"cli"},
]
BASE = {
    "errors": set(),
    "console": {"errors"},
    "files": {"errors"},
    "stores": {"errors"},
    "draw": {"console"},
    "page": set(),
    "versions": set(),
}
LEVEL = {room: number for number, level in enumerate(ROOMS) for room in level}
PACKAGE = Path(detectkit.__file__).parent


def imports(path):
    """The detectkit rooms that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module] if node.module != "detectkit" else [f"detectkit.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("detectkit.") and not name.startswith("detectkit.__"):
                yield name.split(".")[1]


def test_every_import_goes_down():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room.startswith("__"):
            continue
        assert room in LEVEL, f"{path}: a room that the list above does not place"
        allowed = {other for other in LEVEL if LEVEL[other] < LEVEL[room]} | {room}
        allowed |= BASE.get(room, set())
        wrong += [
            f"{path.relative_to(PACKAGE)} imports {other}" for other in imports(path) if other not in allowed
        ]
    assert wrong == []


def test_no_import_is_relative():
    nodes = [(path, node) for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    assert [str(path) for path, node in nodes if isinstance(node, ast.ImportFrom) and node.level != 0] == []


def test_ops_know_no_spec():
    assert [str(path) for path in (PACKAGE / "ops").glob("*.py") if "spec" in set(imports(path))] == []


def test_every_public_class_has_a_name_of_its_own():
    """A person who reads a name in one room must not have to ask which of two it is."""
    places = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: sorted(files) for name, files in places.items() if len(files) > 1} == {}
