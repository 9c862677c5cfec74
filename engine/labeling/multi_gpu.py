"""Label on several GPUs: one process per device, each labeling its part of the source into the same store.

::

    work = partial(label_share, open_predictor, selection)
    progress = label_on_devices(work, "photos/", "labels", devices=(0, 1), observer=print)

Each process sees only its own device (``CUDA_VISIBLE_DEVICES``) and does an ordinary label run over part I of N, so no
other module needs to know about several devices. The store supports several writers. An interrupt is passed to every
process once.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import MaskmillError, SessionError, UsageError
from ..inputs.summary import SourceSummary
from .progress import Progress
from .thread_stages import StageTime

Work = Callable[..., Progress]
"""Function that labels a source into a store: called in each process with source, store path, ``shard_of``,
``observer`` and the remaining options. It must be importable by name in that process."""


def label_share(
    open_predictor: Callable[[], tuple[Any, Any]],
    selection: Any,
    source: Any,
    store_path: str | os.PathLike[str],
    **options: Any,
) -> Progress:
    """Label one device's part of ``source`` by classes; ``open_predictor`` returns predictor and taxonomy."""
    from .label_run import label

    predictor, taxonomy = open_predictor()
    return label(predictor, source, store_path, taxonomy, selection, **options)


def segment_share(
    open_everything: Callable[[], Any], source: Any, store_path: str | os.PathLike[str], **options: Any
) -> Progress:
    """Segment one device's part of ``source``, without classes."""
    from .label_run import segment

    return segment(open_everything(), source, store_path, **options)


def label_on_devices(
    work: Work,
    source: str,
    store_path: str | os.PathLike[str],
    *,
    devices: Sequence[int],
    shard_of: tuple[int, int] | None = None,
    opening: Mapping[str, Any] | None = None,
    observer: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Progress:
    """Label ``source`` on the GPUs ``devices`` and return the summed counts of all processes.

    ``opening`` goes to :func:`maskmill.engine.inputs.sources.open_source`; ``options`` are passed to ``work``.
    The first error in a process stops the other processes, which commit their finished images; it is raised as
    :class:`SessionError`. Raises :class:`UsageError` for devices that do not exist.
    """
    if len(set(devices)) != len(devices) or not devices or min(devices) < 0:
        raise UsageError(
            f"expected distinct device numbers counted from 0, as in 0,1; got {','.join(map(str, devices))!r}"
        )
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if visible and max(devices) >= len(visible):
        raise UsageError(
            f"expected device numbers below {len(visible)}, the number of devices in CUDA_VISIBLE_DEVICES; "
            f"got {max(devices)}"
        )
    context = multiprocessing.get_context("spawn")
    channel: Any = context.Queue()
    index, count = shard_of or (0, 1)
    processes = []
    for part, device in enumerate(devices):
        share_options = {
            **options,
            "opening": dict(opening or {}),
            "shard_of": (index + count * part, count * len(devices)),
        }
        device_name = visible[device] if visible else str(device)
        arguments = (device_name, part, channel, work, source, os.fspath(store_path), share_options)
        processes.append(context.Process(target=_work, args=arguments, name=f"maskmill-device-{device}"))
        processes[-1].start()
    parts = [Progress(planned=0) for _ in devices]
    failure: str | None = None
    while any(process.is_alive() for process in processes) or not channel.empty():
        try:
            part, message = channel.get(timeout=0.5)
            if isinstance(message, Progress):
                parts[part] = message
                if observer is not None:
                    observer(_total(parts))
            else:
                failure = failure or f"device {devices[part]}: {message}"
                _interrupt(processes)
        except queue.Empty:
            continue
        except KeyboardInterrupt:
            _interrupt(processes)
    for process, device in zip(processes, devices, strict=True):
        process.join()
        if process.exitcode != 0 and failure is None:
            failure = f"the process of device {device} ended with status {process.exitcode}; its output above says why"
    if failure is not None:
        raise SessionError(failure)
    return _total(parts)


def _work(
    device: str,
    part: int,
    channel: Any,
    work: Work,
    source: str,
    store_path: str,
    options: dict[str, Any],
) -> None:
    """Run ``work`` in a child process; modules that touch a device are imported after the device is chosen."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    # in a process group of its own, Ctrl-C in a terminal reaches only the parent, which passes it on
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from ..inputs.sources import open_source

    def observe(progress: Progress) -> None:
        channel.put((part, progress))

    images = open_source(source, **options.pop("opening"))
    try:
        observe(work(images, store_path, observer=observe, **options))
    except MaskmillError as error:
        channel.put((part, " ".join(str(error).split())))
    except KeyboardInterrupt:
        channel.put((part, Progress(interrupted=True)))
    except Exception as error:
        traceback.print_exc()
        channel.put((part, f"{type(error).__name__}: {error}"))


def _interrupt(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)


def _total(parts: Sequence[Progress]) -> Progress:
    """Sum the counts of runs that ran at the same time."""
    num_targets = max(len(part.kept) for part in parts)
    kept_pixels = np.zeros(num_targets, np.int64)
    stages: dict[str, StageTime] = {}
    for part in parts:
        kept_pixels[: len(part.kept)] += part.kept
        for stage in part.stages:
            total = stages.setdefault(stage.name, StageTime(stage.name, 0))
            total.threads += stage.threads
            total.items += stage.items
            total.busy += stage.busy
            total.cpu += stage.cpu
    sums = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("planned", "images", "duplicates", "pixels", "input_bytes", "label_bytes", "weight_bytes")
    }
    return Progress(
        **sums,
        rejects=sum((part.rejects for part in parts), Counter()),
        earlier_rejects=sum((part.earlier_rejects for part in parts), Counter()),
        kept=kept_pixels,
        seconds=max(part.seconds for part in parts),
        stages=list(stages.values()),
        source=SourceSummary(
            # every process lists the whole source
            skipped=max((part.source.skipped for part in parts), key=Counter.total),
            low_range=[uri for part in parts for uri in part.source.low_range],
        ),
        interrupted=any(part.interrupted for part in parts),
    )
