"""Dependencies point one way, and the runtime never brings torch."""

import ast
from pathlib import Path

import pytest

import cutline

PACKAGE = Path(cutline.__file__).parent
LAYERS = [
    {"config", "control_groups", "cpus", "errors", "console", "durable", "undo", "starter", ""},
    {"data"},
    {"search"},
    {"evaluation"},
    {"models"},
    {"features"},
    {"bundle", "classify", "consensus", "predict", "sorting", "writers"},
    {"export"},
    {"engine", "presets"},
    {"cli", "report", "__main__"},
]
TORCH_FREE = [
    *("config.py", "control_groups.py", "cpus.py", "errors.py", "console.py", "durable.py"),
    *("data", "search.py", "evaluation"),
    *("bundle.py", "classify.py", "consensus.py", "predict.py", "writers.py", "sorting.py", "undo.py", "starter.py"),
    *(
        f"cli/{verb}.py"
        for verb in ("__init__", "caption", "classify", "pictures", "score", "data", "doctor", "completion")
    ),
    *(f"cli/{verb}.py" for verb in ("runs", "watch", "telling", "compare")),
    *(f"engine/{part}.py" for part in ("__init__", "checkpoint", "folder", "journal", "lines", "runs", "tidy")),
    *(f"engine/{part}.py" for part in ("alerts", "machine", "watch")),
]
HEAVY = {"torch", "torchvision", "timm", "safetensors"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer(name: str) -> int:
    return next(height for height, names in enumerate(LAYERS) if name in names)


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at any depth of its code, in full."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            found.add(node.module or "")
            if node.module in ("cutline", "cutline.engine"):  # of these, modules are imported rather than names
                found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # the public names, imported when they are used
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        if name.startswith("cutline."):
            other = name.split(".")[1]
            assert layer(other) <= layer(own), f"{own} imports {other}, which stands above it"


@pytest.mark.parametrize("place", TORCH_FREE)
def test_the_runtime_names_no_torch(place: str) -> None:
    path = PACKAGE / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        heavy = {name.split(".")[0] for name in imports(file)} & HEAVY
        assert not heavy, f"{file.relative_to(PACKAGE)} imports {', '.join(heavy)}"
        above = {name for name in imports(file) if name.startswith("cutline.")}
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        lower = max(layer("predict"), layer(own))
        assert all(layer(name.split(".")[1]) <= lower for name in above)


def test_of_the_engine_only_its_torch_free_part_is_used_without_torch() -> None:
    """A module of the engine that names no torch may still import one that does."""
    for place in TORCH_FREE:
        if place.endswith(".py"):
            engine = {name for name in imports(PACKAGE / place) if name.startswith("cutline.engine.")}
            assert {f"engine/{name.split('.')[2]}.py" for name in engine} <= set(TORCH_FREE), place
