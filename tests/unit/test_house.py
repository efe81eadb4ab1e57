"""The rules of the house: floors, cycles, sizes, and what importing the package may load."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "toolkit"
FLOORS = {
    "errors": 0, "importing": 0, "quiet": 0, "recipe": 1, "artifacts": 2, "data": 2, "models": 2, "rewards": 3,
    "inference": 4, "evaluation": 5, "stages": 6, "report": 6, "pipeline": 7, "preflight": 8,
    "environment": 7, "first_recipe": 7, "launching": 7, "verification": 7, "from_python": 8, "commands": 9, "cli": 10, "__main__": 11, "__init__": 1,
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The package or top-level module below `toolkit` that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[str]:
    """Modules of this project that a file imports, wherever in it, as dotted names."""
    known = {module_name(module) for module in MODULES}
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append(whole if whole in known else base)
    return [name for name in found if name.split(".")[0] == "toolkit"]


def test_modules_are_found():
    assert len(MODULES) > 10


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_floors_below(path: Path):
    here = part(path)
    for name in imports(path):
        there = name.split(".")[1] if name.count(".") else "__init__"
        if there != here:
            assert FLOORS[there] < FLOORS[here], (
                f"{path.name} (floor {FLOORS[here]}) imports {name}"
            )


def test_no_import_cycles():
    graph = {module_name(path): set(imports(path)) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name in done:
            return
        for target in graph.get(name, ()):
            if target not in (name, "toolkit"):  # the package itself imports nothing at load
                visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sizes(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_no_catch_all_file_names():
    refused = {"utils", "helpers", "common", "misc"}
    assert not [path for path in MODULES if path.stem in refused or path.parent.name in refused]


@pytest.mark.parametrize(
    "code",
    [
        "import toolkit",
        "import toolkit; toolkit.ToolkitError",
        "from toolkit.cli import main; main(['--help'])",
        "from toolkit.cli import main; main(['sft', '--help'])",
        "from toolkit.cli import main; main(['check', '--keys', 'recipes/quickstart.yaml'])",
    ],
)
def test_loads_no_torch(code: str):
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'pandas', 'matplotlib'}"
    script = f"import sys; {code}; print('LOADED', sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["LOADED []"], done.stdout[-500:] + done.stderr


def test_no_posix_only_module_at_load():
    posix = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not posix & set(names), path


def test_constraints_name_plain_versions():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 30
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin), pin
    assert "torch==2.13.0" in pins


def test_no_dangerous_calls():
    refused = {"eval", "exec", "compile", "__import__"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in refused, f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg in {"shell", "weights_only"}:
                assert not (
                    isinstance(node.value, ast.Constant)
                    and node.value.value is (node.arg == "shell")
                ), f"{path}:{node.value.lineno}"
