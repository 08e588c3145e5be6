"""The packages of yarn_gguf: imports go one way, and no module uses private parts of another."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"yarn_gguf": ROOT / "yarn_gguf", "yarn_gguf.convert": ROOT / "convert"}

# A package imports only from packages on earlier lines. Packages of one line do not import from each other.
FLOORS = (
    ("errors", "progress", "palette", "_version"),
    ("disk",),
    ("gguf",),
    ("rope",),
    ("native",),
    ("run",),
    ("session", "model_file", "convert"),
    ("evaluate",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Return the path of every module by its full name; a package by the name of its folder."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([name, *parts]).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Return our modules that a file imports anywhere, late and type-only imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            # "from package import module" needs the module; the package itself only for other names
            found |= inner if len(inner) == len(node.names) else inner | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def graph() -> dict[str, set[str]]:
    """Return the modules that each module imports."""
    known = modules()
    return {name: imports_of(path, known) - {name} for name, path in known.items()}


def room_of(module: str) -> str:
    """Return the room of a module: its package within yarn_gguf; "__init__" for yarn_gguf itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_module_has_its_room():
    assert {room_of(name) for name in modules()} == set(FLOOR_OF)


def test_imports_are_written_so_that_these_tests_see_them():
    """Each is a whole "from yarn_gguf.room.module import name"."""
    known = modules()
    unseen = [
        f"{name}:{node.lineno}"
        for name, path in known.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if is_hidden_import(node, known) and name != "yarn_gguf"  # whose table of late imports this is
    ]
    assert not unseen


def is_hidden_import(node: ast.AST, known: dict[str, Path]) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] == "convert"
    if isinstance(node, ast.Import):
        return any(each.name.split(".")[0] in ("yarn_gguf", "convert") for each in node.names)
    if isinstance(node, ast.Constant):  # for import_module and sys.modules
        return "." in str(node.value) and node.value in known
    is_call = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
    return is_call and "llama_cpp" not in ast.unparse(node)


def test_imports_go_one_way():
    upward = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if room_of(name) != room_of(other) and FLOOR_OF[room_of(other)] >= FLOOR_OF[room_of(name)]
    ]
    assert upward == []


@pytest.mark.parametrize("depth", [None, 3, 2], ids=["modules", "rooms within rooms", "rooms"])
def test_imports_have_no_circle(depth: int | None):
    """Late and type-only imports count. No two folders import from each other, either."""
    edges: dict[str, set[str]] = {}
    for name, others in graph().items():
        node = folder_of(name, depth)
        edges.setdefault(node, set()).update({folder_of(other, depth) for other in others} - {node})
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def folder_of(module: str, depth: int | None) -> str:
    """Return the first `depth` names of a module's full name; None for all of them."""
    return ".".join(module.split(".")[:depth])


def private_names(tree: ast.Module) -> set[str]:
    """Return the private names that a module defines: variables, attributes, functions and classes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
            }
    return {name for name in names if name.startswith("_") and not name.startswith("__")} - {"_"}


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def named_part(node: ast.AST) -> str | None:
    """Return the name that a node takes from an object: x._name, getattr(x, "_name") or vars(x)["_name"]."""
    if isinstance(node, ast.Attribute) and not is_self(node.value):
        return node.attr
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "delattr", "hasattr"):
        return getattr(node.args[1], "value", None)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).startswith("vars("):
        return getattr(node.slice, "value", None)
    return None


def test_no_module_uses_private_parts_of_another():
    """Only the module that defines a private name uses it. Private names of libraries do not count."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    own = {name: private_names(tree) for name, tree in trees.items()}
    ours = set().union(*own.values())
    found = [
        f"{name}, line {node.lineno}: {ast.unparse(node)}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if named_part(node) in ours - own[name]
    ]
    imported = [
        f"{name} imports {alias.name} from {node.module}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("yarn_gguf")
        for alias in node.names
        if alias.name.startswith("_") and alias.name not in ("_version", "__version__")
    ]
    assert found + imported == []
