"""Two processes that exchange gradients by Gloo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from maskmill.cli import app  # noqa: E402
from maskmill.errors import UsageError  # noqa: E402
from maskmill.trainer.log import read_log  # noqa: E402
from maskmill.trainer.processes import joined  # noqa: E402
from maskmill.trainer.run import read_checkpoint  # noqa: E402

from ..ports import free_ports  # noqa: E402
from .builders import make_store, write_labeled  # noqa: E402
from .plain_network import plain  # noqa: E402


def start(arguments: list[str], **environment: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "maskmill", "train", *arguments], env=environment, stdout=-1, stderr=-1
    )


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    said = [process.communicate(timeout=600) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors.decode()


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path: Path) -> None:
    photos = write_labeled(tmp_path / "photos", range(6))
    make_store(tmp_path / "store", photos, range(2, 6), weight=128)
    (tmp_path / "ids.txt").write_text("0\n1\n")
    (tmp_path / "held-out.txt").write_text("2\n3\n")
    settings = [
        "crop=64",
        "scale=0.5,1.5",
        "batch=4",
        "steps=6",
        "lr=0.1",
        "log_every=1",
        "validate_every=3",
        "ema=0.5",
    ]
    common = [
        str(tmp_path / "store"), "--labeled", str(photos), "--ids", str(tmp_path / "ids.txt"), "--validation",
        str(photos), "--validation-ids", str(tmp_path / "held-out.txt"), "--recipe", "weighted", "--device", "cpu",
        "--workers", "0", *(f"--set={setting}" for setting in settings),
    ]  # fmt: skip
    (port,) = map(str, free_ports(1))
    shutil.copy(Path(__file__).with_name("plain_network.py"), tmp_path)
    launched = {"PYTHONPATH": str(tmp_path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    pair = [
        start(
            [*common, "--set=model=plain_network:plain", "--allow-code", "-o", str(tmp_path / "two")],
            RANK=rank,
            LOCAL_RANK=rank,
            **launched,
        )
        for rank in "01"
    ]
    here = ["train", *common, f"--set=model={plain.__module__}:plain", "--allow-code", "-o", str(tmp_path / "one")]
    alone = CliRunner().invoke(app, here, catch_exceptions=False)
    assert alone.exit_code == 0
    finish(pair)
    for name in ("loss", "miou"):
        two, one = ([float(row[name] or -1) for row in read_log(tmp_path / folder)] for folder in ("two", "one"))
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)
    two, one = (read_checkpoint(tmp_path / folder / "last.pt") for folder in ("two", "one"))
    for key in ("model", "ema"):
        for name, value in one[key].items():
            np.testing.assert_allclose(two[key][name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("device", "message"), [("cuda", "has no CUDA device"), ("toaster", "must be cpu, cuda")])
def test_a_device_that_is_not_there_is_refused(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=message), joined(device):
        pass


def test_one_process_needs_no_launcher() -> None:
    with joined("cpu") as process:
        assert (process.rank, process.world, process.first) == (0, 1, True)
        assert process.mean([1, torch.tensor(2.5)]) == [1, 2.5]
