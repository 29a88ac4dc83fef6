"""What importing costs: the mathematics and the conversion must not load Composer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import llmshearing
from llmshearing.registry import LISTED, resolve


@pytest.mark.parametrize(
    "modules",
    [
        "llmshearing.pruning, llmshearing.data.proportions, llmshearing.divergence",
        "llmshearing.convert.commands",
        "llmshearing.pruning.shear",
    ],
)
def test_composer_stays_out(modules: str) -> None:
    code = f"import {modules}, sys; assert 'composer' not in sys.modules; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_local_preparation_needs_neither_ray_nor_a_client_of_any_store(tmp_path: Path) -> None:
    """Nor datatrove; every module that does not say so is imported without them, too."""
    root = Path(llmshearing.__file__).parent
    paths = [*(root / "data_prep").glob("*.py"), root / "storage.py"]
    modules = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in paths]
    modules.remove("llmshearing.data_prep.datatrove_steps")
    code = f"""
import importlib, pathlib, sys
for name in ("ray", "boto3", "botocore", "google.cloud", "datatrove", "moto"):
    sys.modules[name] = None
for name in {modules}:
    importlib.import_module(name)
if __name__ == "__main__":
    from tests.data_prep.same_bytes import run, write_corpus
    run(write_corpus(pathlib.Path("corpus")), "out")
"""
    (tmp_path / "local.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(root.parent)}
    subprocess.run([sys.executable, "local.py"], check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_work_on_this_machine_needs_no_client_of_a_store() -> None:
    """Our own modules; streaming and Composer import theirs where they need them."""
    root = Path(llmshearing.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"boto3", "botocore", "google"} & {name.split(".")[0] for name in names}, path
    modules = "convert.commands, report.__main__, score, storage, copies, addresses, data.loaders, run_place"
    code = "import sys; sys.modules['boto3'] = sys.modules['botocore'] = None\n"  # as where they are not installed
    code += f"import {', '.join(f'llmshearing.{name}' for name in modules.split(', '))}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", llmshearing.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(llmshearing, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        llmshearing.Nothing  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("algorithms", "targeted_pruning"),
        ("algorithms", "source_distillation"),
        ("callbacks", "downstream_evaluation"),
        ("callbacks", "dynamic_batch_loading"),
        ("dataloaders", "dynamic_streaming"),
        ("dataloaders", "one_domain"),
        ("loggers", "metrics_log"),
        ("models", "composer_llama"),
    ],
)
def test_llm_foundry_finds_our_parts_by_the_names_that_recipes_use(kind: str, name: str) -> None:
    (entry,) = entry_points(group=f"llmfoundry_{kind}", name=name)
    sections = {"dataloaders": "eval_loader" if name == LISTED else "train_loader", "models": "model"}
    assert entry.load() is resolve(sections.get(kind, kind), name)


def imported(path: Path, name: str) -> set[str]:
    """The modules of the package that a module imports when it is imported itself."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)
    return {module for module in found if module.startswith("llmshearing.") and module != name}


def test_no_module_imports_itself_by_way_of_others() -> None:
    root = Path(llmshearing.__file__).parent
    modules = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {name: imported(path, name) & modules.keys() for name, path in modules.items()}
    assert "llmshearing.pruning.learned" in graph["llmshearing.pruning.functional"]
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_package_imports_one_that_imports_it() -> None:
    """The circle that modules hide: two folders that need each other."""
    root = Path(llmshearing.__file__).parent
    graph: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        own = path.relative_to(root).parts[0].removesuffix(".py")
        needs = {module.split(".")[1] for module in imported(path, "")}
        graph.setdefault(own, set()).update(needs - {own})
    tuple(TopologicalSorter(graph).static_order())
