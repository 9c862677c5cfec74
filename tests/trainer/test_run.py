from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from maskmill.engine.model.input_spec import InputSpec  # noqa: E402
from maskmill.errors import TrainingError, UsageError  # noqa: E402
from maskmill.trainer.recipes import csl  # noqa: E402
from maskmill.trainer.run import (  # noqa: E402
    LAST,
    Run,
    best_checkpoint,
    open_run,
    read_checkpoint,
    student_state,
    write_checkpoint,
)

RUN = Run(
    recipe=csl(steps=5),
    model_options={"width": 8},
    classes=("a", "b"),
    background=0,
    labels={0: 0, 7: 1, 9: -1},
    input=InputSpec(name="image", height=32, width=32, mean=(0.5, 0.5, 0.5)),
    data={"stores": []},
    versions={"torch": "1"},
)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    RUN.save(tmp_path)
    assert Run.load(tmp_path) == RUN


def test_a_folder_with_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    assert open_run(tmp_path / "run", RUN) is False
    other = dataclasses.replace(RUN, recipe=dataclasses.replace(RUN.recipe, steps=6))
    with pytest.raises(UsageError, match=r"recipe\.steps: 5 there, 6 now"):
        open_run(tmp_path / "run", other)
    newer = dataclasses.replace(RUN, versions={"torch": "2"})
    assert open_run(tmp_path / "run", newer) is False


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(UsageError, match="not empty and not a training run"):
        open_run(tmp_path, RUN)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "it has no run.json"), ("{", "cannot read"), ('{"format_version": 99}', "format version 99")],
)
def test_a_folder_that_holds_no_run_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(TrainingError, match=message):
        Run.load(tmp_path)


def test_checkpoints_are_tensors_and_plain_data(tmp_path: Path) -> None:
    state = {"step": 3, "model": {"weight": torch.arange(3.0)}, "ema": None, "best": None}
    write_checkpoint(tmp_path / LAST, state)
    found = read_checkpoint(tmp_path / LAST)
    assert found["step"] == 3
    assert torch.equal(found["model"]["weight"], state["model"]["weight"])
    assert best_checkpoint(tmp_path) == tmp_path / LAST
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    write_checkpoint(tmp_path / LAST, {"step": 1})

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(TrainingError, match="No space left"):
        write_checkpoint(tmp_path / LAST, {"step": 2})
    assert read_checkpoint(tmp_path / LAST) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_damaged_and_missing_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        best_checkpoint(tmp_path)
    (tmp_path / LAST).write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="does not match the hash"):
        read_checkpoint(tmp_path / LAST)


def test_the_record_is_readable(tmp_path: Path) -> None:
    RUN.save(tmp_path)
    raw = json.loads((tmp_path / "run.json").read_text())
    assert raw["model"] == {"name": "lite0", "options": {"width": 8}}
    assert raw["ignore"] == 255


NEW_VALUES: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "x", "a\0b", "os:system", [], ["x"], [[]], {}, {"x": 1}]


def places(raw: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the inner ones first."""
    for key in raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else ():
        yield from places(raw[key], (*path, key))
        yield (*path, key)


def test_no_edit_of_a_record_ends_in_a_traceback(tmp_path: Path) -> None:
    RUN.save(tmp_path)
    file = tmp_path / "run.json"
    original = json.loads(file.read_text())
    tried = refused = 0
    for path in places(original):
        for value in NEW_VALUES:
            raw = json.loads(json.dumps(original))
            parent = raw
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            file.write_text(json.dumps(raw))
            tried += 1
            try:
                Run.load(tmp_path)
            except TrainingError:
                refused += 1
    assert tried > 600
    assert refused > tried / 2


def test_no_flipped_bit_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    file = tmp_path / LAST
    write_checkpoint(file, {"model": {"weight": torch.arange(300.0)}, "ema": None})
    data = file.read_bytes()
    # other programs read the file as well
    assert torch.load(file, weights_only=True)["model"]["weight"][7] == 7
    for place in [*range(0, len(data), 29), *range(len(data) - 80, len(data))]:
        file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(TrainingError, match="does not match the hash"):
            read_checkpoint(file)
    for length in (0, 10, 73, len(data) - 73, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(TrainingError, match="does not match the hash"):
            read_checkpoint(file)


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / LAST, {})
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    content = buffer.getvalue()
    (tmp_path / LAST).write_bytes(content + b"\nsha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n")
    with pytest.raises(TrainingError, match="is not a checkpoint: it holds a list"):
        read_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds no weights"),
        ({"model": [1], "ema": None}, "holds no weights"),
        ({"model": {"w": 1}, "ema": None}, "'w' is no tensor"),
        ({"model": {"w": torch.tensor([1.0, float("nan")])}, "ema": None}, "weight w is not finite"),
    ],
)
def test_weights_that_cannot_be_used_are_named(state: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        student_state(state)


@pytest.mark.parametrize("name", ["os:system", "transformers:pipeline", "cam:os:system", "allspark:cam:os:system"])
def test_a_record_that_names_code_does_not_run_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskmill.trainer.students.models import load_run

    dataclasses.replace(RUN, recipe=dataclasses.replace(RUN.recipe, model=name)).save(tmp_path)
    write_checkpoint(tmp_path / LAST, {"step": 1, "model": {}, "ema": None})
    calls: list[str] = []
    monkeypatch.setattr("importlib.import_module", lambda module, *_: calls.append(module))
    with pytest.raises(TrainingError, match="names the function .* allow that with --allow-code"):
        load_run(tmp_path)
    assert not calls
    with pytest.raises((TrainingError, UsageError)):
        load_run(tmp_path, allow_code=True)
    assert calls == [name.split(":")[-2]]
