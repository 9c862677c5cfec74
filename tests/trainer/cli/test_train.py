"""The command line of the trainer, from labels to a measured student."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from maskmill.cli import app  # noqa: E402
from maskmill.engine.store.label_store import LabelStore  # noqa: E402
from maskmill.engine.store.verify import verify  # noqa: E402
from maskmill.errors import MaskmillError, UsageError  # noqa: E402
from maskmill.trainer.data.corpus import open_corpus  # noqa: E402
from maskmill.trainer.run import Run  # noqa: E402

from ...models import COLORS  # noqa: E402
from ..builders import make_store, write_labeled  # noqa: E402

TINY = [
    "--set=model=tiny",
    "--set=model.width=4",
    "--set=crop=32",
    "--set=batch=4",
    "--set=steps=4",
    "--set=log_every=2",
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_labeled(tmp_path / "photos", range(6))


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_student_is_trained_gone_on_with_and_measured(tmp_path: Path, photos: Path) -> None:
    make_store(tmp_path / "store", photos, range(2, 6))
    (tmp_path / "ids").write_text("0\n1\n")
    train = (
        "train", tmp_path / "store", "--labeled", photos, "--ids", tmp_path / "ids", "--recipe", "weighted",
        "-o", tmp_path / "run", "--device", "cpu", "--workers", 0, *TINY,
    )  # fmt: skip
    said = call(*train)
    assert "step 2 of 4, " in said
    assert "4 of 4 steps" in said
    assert "4 of 4 steps" in call(*train)
    measured = call(
        "evaluate", tmp_path / "run", "--images", photos / "images", "--labels", photos / "labels", "--json"
    )
    assert json.loads(measured)["num_images"] == 6


def test_without_a_store_the_classes_come_from_a_list(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    (tmp_path / "ids").write_text("0\n1\n")
    lines = call(
        "train", "--labeled", photos, "--ids", tmp_path / "ids", "--unlabeled", photos / "images", "--classes",
        tmp_path / "classes.txt", "--background", "green", "--recipe", "csl", "--set=labeled=2", "-o",
        tmp_path / "run", "--device", "cpu", "--workers", 0, "--json", *TINY,
    ).splitlines()  # fmt: skip
    events = [json.loads(line) for line in lines]
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["source", "source"]
    assert kinds[-1] == "summary"
    assert set(kinds[2:-1]) == {"progress"}  # more of them if training is slow
    assert events[-1]["step"] == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["background"] == 1


def test_the_names_of_label_maps_are_an_option(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    for path in (photos / "labels").iterdir():
        path.rename(path.with_name(f"map-{path.stem}.png"))
    output = call(
        "train", "--labeled", photos, "--pairing", "*=map-*", "--labels-as-stored", "--classes",
        tmp_path / "classes.txt", "--recipe", "supervised", "-o", tmp_path / "run", "--device", "cpu", "--workers", 0,
        *TINY,
    )  # fmt: skip
    assert "labeled: 6 images" in output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["reading"]["pairing"] == "*=map-*"


def pins(store: Path) -> dict[str, int]:
    return verify(store).pins


def test_a_run_that_cannot_start_leaves_no_pin_in_the_store(tmp_path: Path, photos: Path) -> None:
    store = make_store(tmp_path / "store", photos, range(6)).path
    train = ("train", store, "--device", "cpu", "--workers", 0, "-o", tmp_path / "run", *TINY)
    for wrong, message in (
        (["--set=model=big"], "big"),
        (["--recipe=csl", "--set=labeled=2", f"--unlabeled={tmp_path / 'nowhere'}"], "nowhere"),
        (["--recipe=s2c", f"--segments={tmp_path / 'nowhere'}"], "nowhere"),
    ):
        with pytest.raises(MaskmillError, match=message):
            call(*train, *wrong)
        assert pins(store) == {}
    call(*train)
    with pytest.raises(UsageError, match="holds another run"):
        call(*train, "--set=steps=5")
    assert pins(store) == {}


def test_a_refused_command_keeps_the_pin_of_an_interrupted_run(tmp_path: Path, photos: Path) -> None:
    store = make_store(tmp_path / "store", photos, range(6))
    train = ("train", store.path, "--device", "cpu", "--workers", 0, "-o", tmp_path / "run", *TINY)
    call(*train)
    corpus = open_corpus(stores=[store.path], run=tmp_path / "run")  # as an interrupted run leaves it
    pinned = pins(store.path)
    assert list(pinned) == [corpus.pin]
    with pytest.raises(UsageError, match="holds another run"):
        call(*train, "--set=steps=5")
    assert pins(store.path) == pinned


def test_a_label_store_and_a_training_run_are_told_apart(tmp_path: Path, photos: Path) -> None:
    store = make_store(tmp_path / "store", photos, range(6)).path
    train = ("train", store, "--device", "cpu", "--workers", 0, *TINY)
    other = make_store(tmp_path / "other", photos, range(2)).path
    with pytest.raises(UsageError, match="other is a label store, not a training run; choose another folder .* -o"):
        call(*train, "-o", other)
    with pytest.raises(MaskmillError, match="store is a label store, not a training run"):
        Run.load(store)
    call(*train, "-o", tmp_path / "run")
    with pytest.raises(MaskmillError, match="run is a training run, not a label store"):
        LabelStore.open_or_create(tmp_path / "run", {"select": "argmax"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labeled", "photos"], "classes are not known"),
        (["--labeled", "photos", "--background", "green"], "--background applies to --classes only"),
        (["--classes", "classes.txt"], "needs labeled images or a label store"),
        (["--classes", "gap.txt"], "with none left out"),
        (["--set", "corp=3"], "no setting corp"),
    ],
)
def test_a_wrong_call_says_what_is_missing(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    (tmp_path / "gap.txt").write_text("0 red\n2 blue\n")
    with pytest.raises(UsageError, match=message):
        call("train", "-o", tmp_path / "run", *TINY, *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model=os:system", "names a function, which training imports and calls; allow that with --allow-code"),
        ("model=cam:hostile_model:build", "names a function, which training imports and calls"),
        ("crop=1000000000", "crop must be from 1 to 32768, got 1000000000"),
        ("batch=1000000000", "batch must be from 1 to 65536, got 1000000000"),
        ("steps=-1", "steps must be at least 1"),
        ("lr=nan", "lr must be above 0"),
        ("scale=1,1e9", "scale must be two positive numbers up to 32768"),
        ("crop=1e999", "crop must be an integer"),
        ("model=../../x", "there is no model '../../x'"),
        ("model.size=x", "does not take these options"),
        ("=", "there is no setting"),
        ("max_steps=8", "there is no setting max_steps; did you mean steps? This recipe has name"),
    ],
)
def test_a_hostile_setting_is_one_line_and_runs_nothing(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    (tmp_path / "hostile_model.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("os.system", lambda *arguments: pytest.fail("called"))
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    arguments = ["train", "--labeled", photos, "--classes", tmp_path / "classes.txt", "--recipe", "supervised"]
    options = ["-o", tmp_path / "run", "--device", "cpu", "--workers", 0, *TINY, f"--set={setting}"]
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *options)])
    assert isinstance(result.exception, UsageError), result.exception
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert "hostile_model" not in sys.modules


def test_names_with_colons_pair_with_their_own_maps_and_train(tmp_path: Path, photos: Path) -> None:
    for folder in ("images", "labels"):
        for number, file in enumerate(sorted((photos / folder).iterdir())):
            file.rename(file.with_name(("a::b", "s.tar::c", "::d", "e::", "f::g::h", "plain")[number] + file.suffix))
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    call(
        "train", "--labeled", photos, "--classes", tmp_path / "classes.txt", "--recipe",
        "supervised", "-o", tmp_path / "run", "--device", "cpu", "--workers", 0, *TINY,
    )  # fmt: skip
    text = call("evaluate", tmp_path / "run", "--images", photos / "images", "--labels", photos / "labels", "--json")
    assert json.loads(text)["num_images"] == 6
