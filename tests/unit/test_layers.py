"""What may import what: packages go leftwards only, and heavy libraries wait inside functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import finelaunch

ROOT = Path(finelaunch.__file__).parent
ORDER = (
    {"errors"},
    {"section"},
    {"run", "metrics"},
    {"data"},
    {"models"},
    {"tasks"},
    {"methods"},
    {"engines"},
    {"preparation"},
    {"training"},
    {"evaluation"},
    {"recipe"},
    {"launch", "reporting"},
    {"slurm"},
    {"operations", "provision"},
    {"chaos"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
HEAVY = {"torch", "transformers", "datasets", "evaluate", "accelerate", "peft", "deepspeed", "tensorboard"}
HEAVY_NAMES = (
    *("trainer", "arguments", "journal", "guards", "saving", "preemption", "loader"),
    *("best", "epochs", "pacing"),
)
HEAVY_FILES = {f"training/{name}.py" for name in HEAVY_NAMES}
"""Files that are imported inside functions alone, or by each other."""


def sources() -> list[Path]:
    found = sorted(ROOT.rglob("*.py"))
    assert len(found) > 40
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what is imported below ``tree``: of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_top(path: Path) -> Iterator[str]:
    """Yield what loading ``path`` imports: nothing inside functions, nothing for type checkers."""
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_go_leftwards_only() -> None:
    wrong = []
    for path in sources():
        here = package(path)
        if here == "__init__":
            continue
        assert here in LEVEL, f"{here} has no place in the order"
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            parts = name.split(".")
            if parts[0] != "finelaunch" or len(parts) < 2 or parts[1].startswith("__version"):
                continue
            if parts[1] != here and LEVEL[parts[1]] >= LEVEL[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_heavy_libraries_wait_inside_functions() -> None:
    heavy_modules = {f"finelaunch.{name.removesuffix('.py').replace('/', '.')}" for name in HEAVY_FILES}
    wrong = []
    for path in sources():
        if path.relative_to(ROOT).as_posix() in HEAVY_FILES:
            continue
        wrong += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in imports_at_top(path)
            if name.split(".")[0] in HEAVY or name in heavy_modules
        ]
    assert not wrong
    assert all((ROOT / name).exists() for name in HEAVY_FILES)


def test_the_package_loads_without_a_deep_learning_library() -> None:
    import subprocess
    import sys

    light = [path for path in sources() if path.relative_to(ROOT).as_posix() not in HEAVY_FILES]
    modules = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in light]
    names = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = f"import sys, {', '.join(names)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_no_module_is_a_drawer() -> None:
    names = {path.stem for path in sources()} | {path.name for path in ROOT.rglob("*") if path.is_dir()}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc", "shared", "manager", "handler", "core"}


def test_files_are_short() -> None:
    assert not [path for path in sources() if len(path.read_text(encoding="utf-8").splitlines()) > 400]
