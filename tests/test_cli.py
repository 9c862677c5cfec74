"""The command line as a user meets it: exit codes, one-line errors."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
import tomllib
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from PIL import Image

from maskmill.cli import main
from maskmill.engine.cluster.leases import Leases
from maskmill.errors import MaskmillError
from maskmill.export import doctor

from .engine.corpus import write_photos
from .hostile_server import hostile_server
from .models import color_graph, color_image


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def maskmill(*arguments: str | Path, cwd: Path) -> Result:
    """Run a command in this process; tests of signals and terminals start one of their own."""
    out, errors, before = io.StringIO(), io.StringIO(), Path.cwd()
    handler = signal.getsignal(signal.SIGTERM)
    os.chdir(cwd)
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(errors),
            patch("sys.argv", ["maskmill", *map(str, arguments)]),
            patch("maskmill.cli._exit", sys.exit),  # which would end the tests beside a thread of an earlier one
        ):
            main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except MaskmillError:
        traceback.print_exc(file=errors)
        code = 1
    finally:
        os.chdir(before)
        signal.signal(signal.SIGTERM, handler)
    return Result(code, out.getvalue(), errors.getvalue())


def ok(*arguments: str | Path, cwd: Path) -> str:
    result = maskmill(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, photos and their label maps."""
    folder = tmp_path_factory.mktemp("home")
    onnx.save(color_graph(size=(16, 24), gain=6.0), folder / "model.onnx")
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    (folder / "photos").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for index in range(24):
        label = np.broadcast_to((np.arange(24) // 8 + index) % 3, (16, 24))
        noisy = color_image(label, strength=140) + rng.integers(0, 116, (16, 24, 3))
        Image.fromarray(noisy.astype(np.uint8)).save(folder / "photos" / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    ok("import", "model.onnx", "-o", "bundle", "--classes", "classes.txt", cwd=folder)
    return folder


def test_from_a_model_to_measured_labels(home: Path, tmp_path: Path) -> None:
    taxonomy, calibration, store = tmp_path / "classes.toml", tmp_path / "calibration.json", tmp_path / "store"
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\n")
    drafted = ok("taxonomy", "bundle", "--labels", "labels", "--label-names", names, "-o", taxonomy, cwd=home)
    assert "check every line" in drafted
    out = ok(
        "calibrate", "bundle", "--images", "photos", "--labels", "labels", "--taxonomy", taxonomy, "--alpha", "0.1",
        "-o", calibration, cwd=home,
    )  # fmt: skip
    assert "mean coverage per image" in " ".join(out.split())
    arguments = (
        "label", "bundle", "photos", "-o", store, "--select", "conformal", "--calibration", calibration,
        "--taxonomy", taxonomy, "--weight", "pcos",
    )  # fmt: skip
    first = ok(*arguments, cwd=home)
    assert "CPUExecutionProvider" in first.splitlines()[0]
    assert "24 images labeled" in first
    assert "the bottleneck is" in first
    assert "nothing to do" in ok(*arguments, cwd=home)

    quality = json.loads(ok("evaluate", store, "--labels", "labels", "--json", cwd=home))
    assert quality["num_images"] == 24
    assert quality["accuracy_kept"] > 0.9
    assert 0.5 < quality["kept"] < 1
    assert "mIoU of kept pixels" in ok("evaluate", store, "--labels", "labels", cwd=home)

    assert "24 images" in ok("show", store, cwd=home)
    ok("show", store, "3", "-o", tmp_path / "three.png", cwd=home)
    with Image.open(tmp_path / "three.png") as picture:
        assert picture.width == 24

    files = tmp_path / "files"
    arguments = ("export-labels", store, "--format", "png", "-o", files, "--weights", "--calibration", calibration)
    assert "labels of 24 images written as png" in ok(*arguments, cwd=home)
    assert "holds a finished export" in maskmill(*arguments, cwd=home).stderr
    with Image.open(files / "labels" / "3.png") as image, Image.open(files / "weights" / "3.png") as weights:
        assert image.size == weights.size == (24, 16)
    assert (files / "classes.txt").read_text().splitlines()[0].startswith("0 ")
    assert "49 files are as they were exported (24 images)" in ok("verify", files, cwd=home)
    certificate = json.loads((files / "labels.cert.json").read_text())
    assert certificate["promise"].startswith("Heuristic")
    assert certificate["calibration"]["report"]["num_images"] == 24
    assert certificate["drift"]["result"].startswith("no sign of drift in 24 images")
    (files / "labels" / "3.png").write_bytes((files / "labels" / "4.png").read_bytes())
    damaged = maskmill("verify", files, cwd=home)
    assert damaged.returncode == 1
    assert "damaged: labels/3.png was changed" in damaged.stdout
    imported = ok("import-labels", store, files, "--reviewer", "ana", cwd=home)
    assert "1 images corrected" in imported
    assert "23 unchanged" in imported
    assert "1 reviews withdrawn" in ok("import-labels", store, "--withdraw", cwd=home)


def test_json_lines_end_with_the_summary(home: Path, tmp_path: Path) -> None:
    lines = ok("label", "bundle", "photos", "-o", tmp_path / "store", "--json", cwd=home).splitlines()
    summary = json.loads(lines[-1])
    assert summary["event"] == "summary"
    assert summary["images"] == 24
    assert all(json.loads(line)["event"] == "progress" for line in lines[:-1])


def test_a_shard_without_inputs_says_so(home: Path, tmp_path: Path) -> None:
    arguments = ("label", "bundle", "photos/0.png", "-o", tmp_path / "store", "--shard")
    outputs = [ok(*arguments, f"{index}/2", cwd=home) for index in (0, 1)]
    (empty,) = (index for index in (0, 1) if "nothing to do" in outputs[index])
    assert f"nothing to do: no input of the source belongs to shard {empty}/2" in outputs[empty]
    assert "nothing to do: the store holds every input already" in ok(*arguments, f"{1 - empty}/2", cwd=home)


def test_a_dry_run_estimates_the_whole(home: Path) -> None:
    figures = json.loads(ok("label", "bundle", "photos", "--dry-run", "--json", cwd=home))
    assert figures["inputs"] == 24
    assert figures["gigabytes"] > 0


def test_rejects_exit_with_1_and_say_so(home: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, 2)
    (photos / "broken.jpg").write_bytes(b"not an image")
    result = maskmill("label", home / "bundle", "photos", "-o", "store", cwd=tmp_path)
    assert result.returncode == 1
    assert "rejected as not-an-image: 1" in result.stdout
    assert "broken.jpg" in ok("show", "store", cwd=tmp_path)
    again = maskmill("label", home / "bundle", "photos", "-o", "store", cwd=tmp_path)
    assert again.returncode == 1
    assert "rejected by an earlier run as not-an-image: 1" in again.stdout
    assert "--retry-rejects tries them again" in again.stdout
    (photos / "broken.jpg").unlink()
    assert "nothing to do" in ok("label", home / "bundle", "photos", "-o", "store", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("label nowhere photos -o store", 2, "nowhere is not a model bundle"),
        ("label bundle nowhere -o store", 2, "nowhere"),
        ("label bundle photos", 2, "labels need a store: give -o STORE"),
        ("label bundle photos -o store --select conformal", 2, "--calibration FILE and --select conformal go together"),
        ("label bundle photos -o store --threshold 0.5", 2, "--threshold SCORE and --select threshold go together"),
        ("label bundle photos -o store --shard 3/3", 2, "--shard must be I/N"),
        ("label bundle photos -o store --taxonomy nowhere.toml", 2, "cannot read the taxonomy nowhere.toml"),
        ("label bundle photos -o store --select threshold --threshold 2", 2, "above 0 and at most 1"),
        ("label bundle photos -o store --tile 64 --overlap 64", 2, "less than the tile"),
        (
            "calibrate bundle --images photos --labels labels --alpha 2 -o c.json",
            2,
            "alpha must be above 0 and below 1",
        ),
        (
            "calibrate bundle --images photos --labels no --alpha .1 -o c.json",
            2,
            "no do not exist; labels are a folder",
        ),
        ("calibrate bundle --images photos --labels labels --alpha .1 -o no/c.json", 2, "cannot write no/c.json"),
        ("evaluate nowhere --labels labels", 2, "nowhere does not exist; give a label store, a training run or"),
        ("show nowhere", 2, "nowhere is not a label store"),
        ("import-labels nowhere", 2, "expected STORE and REVIEWED"),
        ("export-labels nowhere --format png -o files", 2, "nowhere is not a label store"),
        ("import nowhere.onnx -o new --classes classes.txt", 2, "the model nowhere.onnx does not exist"),
        ("import model.onnx -o bundle --classes classes.txt", 2, "bundle exists already"),
        ("import model.onnx -o new --classes classes.txt --mean 1,2", 2, "--mean must be one number or three"),
        ("import model.onnx -o new --classes classes.txt --scale 1/0", 2, "--scale must be a number"),
        ("import model.onnx -o new --classes classes.txt --size 4xx", 2, "--size must be HEIGHTxWIDTH"),
        ("taxonomy bundle -o classes.txt", 2, "classes.txt exists already"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(home: Path, arguments: str, code: int, message: str) -> None:
    result = maskmill(*arguments.split(), cwd=home)
    assert result.returncode == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (home / "store").exists()
    assert not (home / "new").exists()


def test_debug_shows_the_traceback(home: Path) -> None:
    result = maskmill("--debug", "show", "nowhere", cwd=home)
    assert "Traceback" in result.stderr
    assert "StoreError" in result.stderr


def test_the_doctor_names_what_is_here_and_what_is_missing(home: Path) -> None:
    out = ok("doctor", cwd=home)
    assert "onnxruntime" in out
    assert "Python" in out
    missing = [line for line in out.splitlines() if "missing: pip" in line]
    assert all(line.endswith("]'") for line in missing)  # the whole command, at 80 columns


def test_the_doctor_knows_every_extra() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = {extra for *_, extra in doctor.PACKAGES}
    # object storage has one package, and what developers need is no feature
    assert set(project["optional-dependencies"]) - extras == {"gcs", "azure", "docs", "dev"}


def test_version_and_help(home: Path) -> None:
    assert ok("--version", cwd=home).strip() == "0.1.0"
    assert "calibrate" in ok("--help", cwd=home)


SOON_KNOWN = """
from maskmill.__main__ import main
from maskmill.engine.cluster import status
status.BEAT_SECONDS = 0.1  # a run says sooner how far it is
main()
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stores_what_was_done_and_exits_130(home: Path, tmp_path: Path, stop: int) -> None:
    paths = write_photos(tmp_path / "photos", 30)
    with hostile_server() as server:  # its images never arrive: the run cannot end before the interrupt
        names = [*(f"photos/{path.name}" for path in paths[:10]), *(f"{server.url}/silent/{n}.png" for n in range(50))]
        (tmp_path / "list.txt").write_text("\n".join(names))
        command = [sys.executable, "-c", SOON_KNOWN, "label", str(home / "bundle"), "list.txt", "-o", "store"]
        command += ["--timeout", "3600"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while sum(record["progress"]["images"] for record in Leases(tmp_path / "store").workers().values()) < 10:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(stop)
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "interrupted: finished images are stored" in out
    assert "10 images labeled" in out
    assert "20 images labeled" in ok("label", home / "bundle", "photos", "-o", "store", cwd=tmp_path)


def test_a_terminal_shows_a_bar(home: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 100)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "maskmill", "label", str(home / "bundle"), "photos", "-o", "store"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait(300) == 0
    assert "━".encode() in shown
    assert b"images/s" in shown
