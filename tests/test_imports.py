"""Who imports whom: no circles, and every folder imports only from the layers below it.

Imports are read from the source files, including those inside functions.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = tuple(sorted(path.stem for path in ROOT.glob("*.py")))
_BELOW_PIPELINE = {"training", "methods", "models", "packnet_models", "data", "utils"}
# Folder → the folders of this project that it may import from, beside itself.
LAYERS: dict[str, set[str]] = {
    "tools": {"pipeline", "reports"} | _BELOW_PIPELINE,
    "reports": {"pipeline"} | _BELOW_PIPELINE,
    "pipeline": _BELOW_PIPELINE,
    "federation": {"pipeline", "tools", *ENTRY_POINTS} | _BELOW_PIPELINE,
    "methods": {"models", "training", "utils"},
    "packnet_models": {"models"},
    "models": set(),
    "data": {"utils"},
    "training": {"models", "utils"},
    "utils": set(),
    **{name: {"pipeline", "utils"} for name in ENTRY_POINTS},
}
# Installed packages that these may import from; the others are free.
THIRD_PARTY = {"models": {"torch", "torchvision"}, "packnet_models": {"torch", "torchvision"}}
# These may import anything, and nothing else imports them.
FREE = ("tests", "benchmarks")


@cache
def modules() -> dict[str, Path]:
    """The project's modules by dotted name; packages by that of their folder."""
    folders = sorted({path.parent for path in ROOT.glob("[!.]*/*.py")})
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def targets(node: ast.AST, module: str, path: Path) -> list[str]:
    """The dotted names that an import statement may mean: modules, or names inside them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
    return [f"{base}.{alias.name}" for alias in node.names]


@cache
def imports() -> dict[str, set[str]]:
    """Module → what it imports: modules of this project, or the top-level packages of others."""
    graph = {}
    for module, path in modules().items():
        tree = ast.parse(path.read_bytes(), filename=str(path))
        found = {name for node in ast.walk(tree) for name in targets(node, module, path)}
        graph[module] = {resolve(name) for name in found} - {module}
    return graph


def resolve(name: str) -> str:
    """The module of this project that a dotted name is or is in, or another package's top level."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in modules():
            return ".".join(parts[:length])
    return parts[0]


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules along one circle, or an empty list."""
    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in finished:
            return []
        for imported in sorted(graph.get(module, ())):
            circle = visit(imported, [*trail, module])
            if circle:
                return circle
        finished.add(module)
        return []

    for module in sorted(graph):
        circle = visit(module, [])
        if circle:
            return circle
    return []


def folder_of(module: str) -> str:
    return module.split(".")[0]


def test_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_inside_functions_are_seen():
    tree = ast.parse("def late():\n    from . import sibling\n    from data.tables import Table\n")
    path = ROOT / "data" / "loading.py"
    found = [name for node in ast.walk(tree) for name in targets(node, "data.loading", path)]
    assert found == ["data.sibling", "data.tables.Table"]
    assert resolve("data.tables.Table") == "data.tables" and resolve("numpy.linalg") == "numpy"


def test_no_module_imports_itself_through_others():
    assert " → ".join(find_circle(imports())) == ""


@pytest.mark.parametrize("folder", sorted({folder_of(module) for module in modules()} - set(FREE)))
def test_a_folder_imports_only_the_layers_below(folder):
    assert folder in LAYERS, f"add {folder} to LAYERS"
    project = {folder_of(module) for module in modules()}
    wrong = []
    for module, imported in imports().items():
        if folder_of(module) != folder:
            continue
        for name in sorted(imported):
            top = folder_of(name)
            allowed = LAYERS[folder] if top in project else THIRD_PARTY.get(folder, {top})
            if top != folder and top not in allowed and top not in sys.stdlib_module_names:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_listing_tasks_does_not_load_pytorch():
    code = (
        "import sys; from tools.list_tasks import main; "
        "main(['--dataset_config', 'digits', '--dataset', 'all']); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
