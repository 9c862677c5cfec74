"""Every kernel in every form: the same files, the same functions, the same parameters."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from maskmill import kernels
from maskmill.kernels import cpu, gpu, reference
from maskmill.kernels.plans.class_stats import DEFAULTS, DecodeOptions

ROOT = Path(kernels.__file__).parent
KERNELS = sorted(path.stem for path in (ROOT / "cuda").glob("*.cu"))
FUNCTIONS = sorted(name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name)))
FORMS = (reference, cpu, gpu)

OWN = {(cpu, "class_stats"): {"threads"}}
"""Parameters that one form has beyond those of the others."""


def parameters(function) -> list[tuple]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def files_with_public_functions(form) -> set[str]:
    """Names of the files that the functions of a form come from."""
    return {Path(inspect.getsourcefile(getattr(form, name))).stem for name in form.__all__}


def test_every_kernel_has_a_file_in_every_folder():
    assert "class_stats" in KERNELS
    for folder in ("api", "reference"):
        assert {path.stem for path in (ROOT / folder).glob("[!_]*.py")} == set(KERNELS)
    for folder in ("cpu", "gpu"):
        # Here there may be helpers beside the kernels.
        assert set(KERNELS) <= {path.stem for path in (ROOT / folder).glob("*.py")}
    for form in FORMS:
        assert files_with_public_functions(form) == set(KERNELS)


def test_every_kernel_has_tests_of_its_cpu_and_its_cuda_form():
    here = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert {f"test_{name}" for name in KERNELS} | {f"test_gpu_{name}" for name in KERNELS} <= here


def public_parameters(name: str) -> list[tuple]:
    """Parameters that the forms must have: the options of ``class_stats`` reach them as one object."""
    public = parameters(getattr(kernels, name))
    if name != "class_stats":
        return public
    options = {field.name: field.default for field in fields(DecodeOptions)}
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert [p for p in public if p[0] in options] == [(name, keyword, value) for name, value in options.items()]
    bundle = ("options", inspect.Parameter.POSITIONAL_OR_KEYWORD, DEFAULTS)
    return [*public[:2], bundle, *(p for p in public[2:] if p[0] not in options)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_same_parameters_in_every_form(name):
    public = public_parameters(name)
    for form in FORMS:
        own = OWN.get((form, name), set())
        found = parameters(getattr(form, name))
        assert [p for p in found if p[0] not in own] == public, form.__name__
        assert own <= {p[0] for p in found}


def test_no_form_has_a_function_of_its_own():
    for form in FORMS:
        assert sorted(form.__all__) == FUNCTIONS


@pytest.mark.parametrize("name", KERNELS)
def test_the_page_of_the_kernels_names_every_file(name):
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_page_of_the_kernels_names_every_function(name):
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")
