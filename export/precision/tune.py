"""Choose the fastest runtime and precision of a bundle that passes the gate, and record it for ``--provider auto``.

::

    choice, rows = tune(bundle, GateImages.open("photos/"))
    choice.provider, choice.precision, choice.ratio
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...engine.model.bundle import Bundle
from ...engine.model.verdicts import Tolerances
from ...engine.runtimes.tuned import TunedChoice, machine_name, write_choice
from ...errors import GateError
from ...kernels.processors import usable_processors
from ..gate.bench import Row, measure
from ..gate.judge import GateImages
from ..gate.proof import prove_artifact, roles_of
from .convert import Conversion, convert


def tune(
    bundle: Bundle,
    images: GateImages,
    *,
    precisions: Sequence[str] = (),
    seconds: float = 5.0,
    tolerances: Tolerances | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[TunedChoice, list[Row]]:
    """Measure, judge and record the choice for this machine.

    Parameters
    ----------
    bundle, images
        The model, and the real images that runtimes and precisions are timed and judged on.
    precisions
        Precisions to convert to first, of fp16, bf16, int8 and fp8; a conversion that does not pass is left out.
    seconds
        Seconds to time each combination for.
    tolerances
        The gate's limits; its defaults if None.
    say
        Receives a line for each conversion that does not pass.

    Returns the choice and the rows of the comparison. The winner's verdicts are recorded in the manifest. The original
    in ONNX Runtime always passes, so that there is a choice.
    """
    role = roles_of(bundle)[0]
    how = Conversion(threads=usable_processors(), tolerances=tolerances or Tolerances())
    for precision in precisions:
        if any(file.role == role and file.precision == precision for file in bundle.files):
            continue
        try:
            convert(bundle, precision, images, how=how)
        except GateError as error:
            if say is not None:
                say(f"{precision}: {error}")
        bundle = Bundle.load(bundle.path)
    rows = measure(bundle, images, seconds=seconds, tolerances=tolerances)
    passing = [row for row in rows if row.gate == "original" or (row.verdict is not None and not row.verdict.failures)]
    for row in sorted(passing, key=lambda row: -(row.images_per_second or 0)):
        if row.gate != "original":
            verdicts = prove_artifact(
                bundle, row.provider, row.precision, images, tolerances, threads=usable_processors()
            )
            if not all(verdict.passed for verdict in verdicts):
                continue
        choice = TunedChoice(
            machine=machine_name(),
            provider=row.provider,
            precision=row.precision,
            artifact=bundle.file(role, row.precision).sha256,
            images_per_second=round(row.images_per_second or 0.0, 3),
            ratio=round(row.ratio or 1.0, 3),
        )
        write_choice(Bundle.load(bundle.path), choice)
        return choice, rows
    raise GateError(f"{bundle.location} does not run in ONNX Runtime on this machine, so there is nothing to choose")
