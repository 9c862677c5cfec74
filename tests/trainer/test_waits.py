"""Steps queue their work without waiting for the device; it is waited for where the log, a checkpoint or a validation
needs numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from maskmill.errors import TrainingError  # noqa: E402
from maskmill.trainer import train as train_module  # noqa: E402
from maskmill.trainer.data.corpus import Corpus  # noqa: E402
from maskmill.trainer.loop import device_settings as settings_module  # noqa: E402
from maskmill.trainer.loop.loss_watch import LossWatch  # noqa: E402
from maskmill.trainer.objectives.base import Losses  # noqa: E402
from maskmill.trainer.objectives.s2c import segment_contrast  # noqa: E402
from maskmill.trainer.processes import Process  # noqa: E402
from maskmill.trainer.recipes import supervised  # noqa: E402

from .test_train import SETTINGS, corpus, recipe_of, run  # noqa: E402,F401

WAITING = (
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "repeat_interleave", "equal",
)  # fmt: skip
"""Operators whose result, or the size of it, the host must know at once."""


class Waits(TorchDispatchMode):
    """Fails where a device would have to be waited for; ``on_host`` is in main memory whatever the device."""

    def __init__(self, on_host: Any = None) -> None:
        super().__init__()
        self._on_host = on_host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        is_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        is_waiting = name in WAITING and not (
            self._on_host is not None and args[0].data_ptr() == self._on_host.data_ptr()
        )
        assert not is_waiting, f"{name} waits for the device"
        assert not is_mask, f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_does_not_wait_for_the_device(
    name: str,
    tmp_path: Path,
    corpus: Corpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update, steps, waits = train_module._Loop._update, [], []

    def watched(loop: Any, *args: Any) -> Any:
        steps.append(loop.step)
        with Waits(on_host=loop.average.n_averaged):
            return update(loop, *args)

    check, mean = LossWatch.check, Process.mean
    monkeypatch.setattr(train_module._Loop, "_update", watched)
    monkeypatch.setattr(LossWatch, "check", lambda watch: waits.append(len(steps)) or check(watch))

    def noted_mean(process: Process, values: Any) -> Any:
        if any(isinstance(value, torch.Tensor) for value in values):
            waits.append(len(steps))
        return mean(process, values)

    monkeypatch.setattr(Process, "mean", noted_mean)
    # AdamW on a CPU reads the number of its steps from tensors, which are in main memory on any device
    settings = ["log_every=2", "steps=4", "validate_every=100", "save_every=100", "optimizer=sgd", "ema=0.9"]
    total = run(tmp_path / "run", recipe_of(name, *settings), corpus).steps
    assert steps == list(range(total))
    assert set(waits) == {*range(2, total, 2), total}


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_on_a_device_does_not_wait_for_it(
    name: str,
    tmp_path: Path,
    corpus: Corpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = train_module._Loop._update

    def watched(loop: Any, *args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return update(loop, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train_module._Loop, "_update", watched)
    settings = ["log_every=2", "steps=4", "validate_every=100", "ema=0.9", "precision=fp16", "channels_last=true"]
    train_module.train(tmp_path / "run", recipe_of(name, *settings), corpus, device="cuda", workers=0)


def test_segments_are_compared_without_waiting() -> None:
    segments, features = torch.randint(0, 4, (2, 5, 6)), torch.randn(2, 3, 5, 6)
    for compat in (False, True):
        with Waits():
            segment_contrast(features, segments, 3, compat=compat)


def test_a_loss_is_named_at_the_next_check_and_never_saved(tmp_path: Path) -> None:
    watch = LossWatch()
    with Waits():
        for step, value in enumerate((1.0, float("nan"), 2.0, float("inf"))):
            terms = {"labeled": torch.tensor(value)}
            watch.add(step, Losses(total=torch.tensor(value), terms=terms), {"labeled": {"uri": [f"{step}.png"]}})
    with pytest.raises(TrainingError, match=r"loss of step 1 is not finite \(loss nan, labeled nan\).*images: 1\.png"):
        watch.check()
    watch.check()  # nothing is left


def test_channels_last_computes_the_same(tmp_path: Path, corpus: Corpus) -> None:  # noqa: F811
    losses = []
    for name in ("false", "true"):
        progress = run(tmp_path / name, recipe_of("supervised", f"channels_last={name}"), corpus)
        losses.append(progress.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_settings_hold_inside_a_run_and_not_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = torch.backends
    before = (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark)
    monkeypatch.setitem(sys.modules, "cupy", None)  # an import fails
    recipe = supervised(tf32=not before[0], cudnn_benchmark=not before[2])
    with settings_module.device_settings(torch.device("cuda:0"), recipe):
        assert backends.cuda.matmul.allow_tf32 == backends.cudnn.allow_tf32 == (not before[0])
        assert backends.cudnn.benchmark == (not before[2])
    assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark) == before


def test_cupy_allocates_from_the_memory_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []

    @contextmanager
    def using_allocator(allocator: Any) -> Iterator[None]:
        log.append("on")
        yield
        log.append("off")

    def allocator(allocate: Any, free: Any) -> Any:
        return SimpleNamespace(malloc=lambda size: free(allocate(size, 0), 0))

    current = SimpleNamespace(ptr=77)
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(
            PythonFunctionAllocator=allocator,
            get_current_stream=lambda: current,
            using_allocator=lambda malloc: using_allocator(log.append(malloc(512))),
        )
    )
    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", lambda *args: log.append(args) or 4096)
    monkeypatch.setattr(torch.cuda, "caching_allocator_delete", lambda address: log.append(address))
    with settings_module.torch_memory(cupy):
        pass
    assert log == [(512, 0, 77), 4096, None, "on", "off"]
