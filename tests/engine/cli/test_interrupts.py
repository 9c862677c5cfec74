"""Interrupts end every command soon, whatever a model or a server does, and print no traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from maskmill.engine.cluster.leases import Leases
from maskmill.engine.cluster.status import read_status
from maskmill.engine.store.label_store import LabelStore
from maskmill.export.adopt.semantic import bundle_from_onnx
from tests.hostile_server import hostile_server
from tests.models import COLORS, color_bundle, moody_graph

PATIENCE = 300
"""Seconds within which anything happens, on a machine that does much else."""

START = """
import signal, sys
beat = float(sys.argv.pop(1))

class Prepared:
    def find_spec(name, *_):
        if name == "maskmill.cli":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

# an interrupt waits until the command is prepared for it, however late that is
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
sys.meta_path.insert(0, Prepared)
from maskmill.__main__ import main
print("started", flush=True)
if beat:
    from maskmill.engine.cluster import status
    status.BEAT_SECONDS = beat
main()
"""


def start(*arguments: str | int | Path, folder: Path, beat: float = 0) -> subprocess.Popen[str]:
    """Start a command; returns when Python runs, and has hardly imported anything of maskmill yet.

    With ``beat`` a labeling run writes how far it is after that many seconds, again and again.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(beat), *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def interrupt(process: subprocess.Popen[str], times: int = 1) -> str:
    """Interrupt a process, which must end; returns its output."""
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    out, errors = process.communicate(timeout=PATIENCE)
    # a second one may end Python while it ends; shells call that 130 as well
    assert process.returncode in (130, -signal.SIGINT) if times > 1 else process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "core dumped" not in errors
    return out + errors


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)


def endless_bundle(folder: Path) -> Path:
    onnx.save(moody_graph("endless"), folder / "model.onnx")
    return bundle_from_onnx(folder / "model.onnx", folder / "bundle", classes=COLORS, background=None).path


@pytest.mark.parametrize("times", [1, 2])
def test_an_endless_model_ends_with_an_interrupt(tmp_path: Path, times: int) -> None:
    bundle = endless_bundle(tmp_path)
    for number in range(3):
        write(tmp_path / "photos" / f"{number}.png", np.full((16, 24, 3), 50 * number, np.uint8))
    write(tmp_path / "photos" / "white.png", np.full((16, 24, 3), 255, np.uint8))
    process = start("label", bundle, "photos", "-o", "store", "--workers", 2, folder=tmp_path, beat=0.1)
    wait_until(process, lambda: images_labeled(tmp_path / "store") == 3)
    output = interrupt(process, times)
    if times == 1:
        assert "interrupted: finished images are stored" in output
        assert len(LabelStore.open(tmp_path / "store")) == 3
    else:
        assert "maskmill: interrupted" in output
    status = read_status(tmp_path / "store")
    assert (status.run, status.planned) == ("interrupted", 4)
    assert any("left; run the same command again to continue" in line for line in status.describe())


def test_an_endless_model_ends_with_an_interrupt_when_calibrating(tmp_path: Path) -> None:
    bundle = endless_bundle(tmp_path)
    for number in range(3):
        write(tmp_path / "photos" / f"{number}.png", np.full((16, 24, 3), 255, np.uint8))
        write(tmp_path / "labels" / f"{number}.png", np.zeros((16, 24), np.uint8))
    process = start(
        "calibrate",
        bundle,
        "--images",
        "photos",
        "--labels",
        "labels",
        "--alpha",
        "0.1",
        "-o",
        "c.json",
        folder=tmp_path,
    )
    wait_for_the_model(process)
    interrupt(process)


def test_a_server_that_does_not_answer_ends_with_an_interrupt(tmp_path: Path) -> None:
    color_bundle(tmp_path)
    write(tmp_path / "a.png", np.zeros((16, 24, 3), np.uint8))
    with hostile_server() as server:
        (tmp_path / "list.txt").write_text("a.png\n" + "".join(f"{server.url}/silent/{n}.png\n" for n in range(9)))
        process = start("label", "bundle", "list.txt", "-o", "store", "--timeout", 3600, folder=tmp_path, beat=0.1)
        wait_until(process, lambda: server.requests and images_labeled(tmp_path / "store") == 1)
        output = interrupt(process)
    assert "interrupted: finished images are stored" in output
    assert len(LabelStore.open(tmp_path / "store")) == 1


def test_an_interrupt_ends_the_listing_of_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with hostile_server() as server:
        url = f"{server.url}/silent/a.tar"
        process = start("manifest", url, "-o", "m.parquet", "--timeout", 3600, folder=tmp_path)
        wait_until(process, lambda: server.requests)
        output = interrupt(process)
    assert output.endswith("maskmill: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moments", [3, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "command", [("label", "bundle", "photos", "-o", "store"), ("--help",), ("doctor",)], ids=" ".join
)
def test_an_interrupt_while_a_command_starts_prints_no_traceback(
    tmp_path: Path, command: tuple[str, ...], moments: int
) -> None:
    for delay in np.linspace(0.03, 0.9, moments):
        process = start(*command, folder=tmp_path)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert not re.search("Traceback|KeyboardInterrupt", errors), (delay, errors)


def test_an_interrupt_while_a_command_ends_leaves_its_exit_status(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, threading; from maskmill.cli import main; "
        "threading.enumerate = lambda: os.kill(os.getpid(), signal.SIGINT) or []; "
        "sys.argv = ['maskmill', 'show', 'missing']; main()"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr


ENDLESS = """
<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 16, 24] image) => (float[N, 3, 16, 24] scores) {
    trips = Constant <value = int64 {4611686018427387904}> ()
    going = Constant <value = bool {1}> ()
    scores = Loop (trips, going, image) <body = step (int64 number, bool before, float[N, 3, 16, 24] old) =>
        (bool after, float[N, 3, 16, 24] new) { after = Identity (before)  new = Add (old, old) }>
}
"""


@pytest.mark.parametrize("times", [1, 2])
def test_an_endless_model_ends_with_an_interrupt_on_import(tmp_path: Path, times: int) -> None:
    onnx.save(onnx.parser.parse_model(" ".join(ENDLESS.split())), tmp_path / "model.onnx")
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    process = start("import", "model.onnx", "-o", "bundle", "--classes", "classes.txt", folder=tmp_path)
    wait_for_the_model(process)
    interrupt(process, times)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.txt", "model.onnx"]


@pytest.mark.slow
def test_an_endless_model_ends_with_an_interrupt_in_the_gate(tmp_path: Path) -> None:
    bundle = endless_bundle(tmp_path)
    write(tmp_path / "photos" / "white.png", np.full((16, 24, 3), 255, np.uint8))
    process = start("gate", bundle, "--images", "photos", "--provider", "openvino", folder=tmp_path)
    wait_for_the_model(process)
    interrupt(process)


def wait_for_the_model(process: subprocess.Popen[str]) -> None:
    """Wait until one of the threads beside the main one, which starts the command, has computed for a while."""
    wait_until(process, lambda: max(seconds_of_threads(process.pid), default=0) > 0.5)


def images_labeled(store: Path) -> int:
    """Number of images that the run says it has labeled."""
    return sum(record["progress"]["images"] for record in Leases(store).workers().values())


def seconds_of_threads(pid: int) -> Iterator[float]:
    """Processor time of each thread but the main one."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        if thread.name != str(pid):
            with suppress(OSError):  # it has ended
                fields = (thread / "stat").read_text().rpartition(")")[2].split()
                yield (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(process: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.05)
