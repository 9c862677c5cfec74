"""Machine code on disk: used while the kernels' sources are unchanged, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from maskmill import kernels

PROGRAM = """
from maskmill.kernels.cpu.caller import answer

print(answer(1.0), "compiled" if answer.stats.cache_misses else "loaded")
"""

CALLER = """
from .compiled import compiled
from .callee import add


@compiled()
def answer(value):
    return add(value)
"""

CALLEE = """
from .compiled import compiled

NUMBER = {number}


@compiled()
def add(value):
    return value + NUMBER
"""


def answer(folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_code_is_compiled_anew_when_a_file_changes_that_it_inlines(tmp_path):
    package = tmp_path / "maskmill"
    source = Path(kernels.__file__).parents[1]
    package.mkdir()
    for name in ("__init__.py", "checks.py", "errors.py"):
        shutil.copy(source / name, package)
    shutil.copytree(source / "kernels", package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    folder = package / "kernels" / "cpu"
    (folder / "caller.py").write_text(CALLER)
    (folder / "callee.py").write_text(CALLEE.format(number=1))
    assert answer(tmp_path) == "2.0 compiled"
    assert answer(tmp_path) == "2.0 loaded"
    (folder / "callee.py").write_text(CALLEE.format(number=5))
    assert answer(tmp_path) == "6.0 compiled"
    assert answer(tmp_path) == "6.0 loaded"
