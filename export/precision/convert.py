"""Convert a bundle to a lower precision, through the gate: what does not pass is not written.

::

    bundle = convert(bundle, "fp16", GateImages.open("photos/"), on_fail="next", say=print)

``on_fail="next"`` walks on: fp8 or int8, fp16, bf16, then ``mixed``, which is fp16 with the few nodes in fp32 that make
it pass: those that make or take values beyond fp16's range, and what bisection finds.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...engine.model.bundle import Bundle
from ...engine.model.verdicts import Tolerances, Verdict, add_verdict, failures_of
from ...errors import ExportError, GateError, UsageError
from ..gate.compare import Difference, Side, differences, summarize
from ..gate.emulate import GraphSession, Memory, beyond_range, emulation, nodes_touching, with_probes
from ..gate.judge import GateImages, describe, require_pass, verdicts_of
from ..graph import LARGEST, node_name
from .artifacts import remove_unlisted, save_graph, with_files
from .bisect import smallest_subset
from .eight_bit import Method, in_8_bit
from .sixteen_bit import in_16_bit

OnFail = Literal["stop", "next"]
Found = list[tuple[str, Difference]]

WALK = ("fp8", "int8", "fp16", "bf16", "mixed")
"""Precisions in the order in which they are tried."""
BISECT_IMAGES = 8
"""Images, the worst ones, that nodes at fault are searched on."""
BISECT_BUDGET = 60
"""Sets of nodes that one search tries at most."""
ROUNDS = 4
"""Times that further nodes are searched for, after those found did not do on all images."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a bundle is converted."""

    roles: tuple[str, ...] = ()
    """Graphs to convert; all where empty."""
    keep_fp32: tuple[str, ...] = ()
    """Names of nodes that stay in fp32, in whichever graph has them."""
    calibration: GateImages | None = None
    """Images that 8-bit ranges are taken from; those of the gate where None."""
    method: Method = "minmax"
    """How a range follows from what was seen (8-bit precisions)."""
    symmetric: bool = False
    """8-bit ranges around 0, as TensorRT asks for."""
    tolerances: Tolerances = field(default_factory=Tolerances)
    """What the gate asks for."""
    threads: int = 1
    """Threads of one model call."""


def convert(
    bundle: Bundle,
    precision: str,
    images: GateImages,
    *,
    how: Conversion | None = None,
    on_fail: OnFail = "stop",
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """The bundle with a further file for each role, which passed the gate on ``images``; saved.

    An earlier file of the same role and precision is replaced. ``say`` gets a line on what passes, and on every
    precision that is refused on the way. Raises :class:`GateError` where nothing passes, with what fell short and the
    nodes at fault; the bundle is then as it was.
    """
    if precision not in WALK[:-1]:
        raise UsageError(f"the precision to convert to is one of {', '.join(WALK[:-1])}, got {precision!r}")
    steps = [precision]
    if on_fail == "next":
        # int8 is no way out for what fp8 breaks
        steps += [step for step in WALK[WALK.index(precision) + 1 :] if step != "int8"]
    converter = _Converter(bundle, images, how or Conversion())
    refusals = []
    for step in steps:
        try:
            converted, verdicts = converter.mixed() if step == "mixed" else converter.uniform(step)
        except (GateError, ExportError) as error:
            refusals.append(f"{step} is refused: {error}")
            if len(steps) > 1:
                say(refusals[-1])
            continue
        say(describe(verdicts[0]))
        return converted
    raise GateError(f"{bundle.path} stays in {bundle.files[0].precision}; {'; '.join(refusals)}")


class _Converter:
    """One bundle, its originals with probes as the reference, and the images."""

    def __init__(self, bundle: Bundle, images: GateImages, how: Conversion) -> None:
        import onnx

        self._bundle, self._images, self._how = bundle, images, how
        every = ("encoder", "decoder") if bundle.task == "promptable" else ("model",)
        if unknown := sorted(set(how.roles) - set(every)):
            raise UsageError(f"{bundle.path} has no role {', '.join(unknown)}; its roles are {', '.join(every)}")
        self._roles = how.roles or every
        self._originals = {role: onnx.load_model(bundle.model_path(role)) for role in every}
        self._names = {role: [node_name(node) for node in self._originals[role].graph.node] for role in self._roles}
        if unknown := sorted(set(how.keep_fp32).difference(*self._names.values())):
            raise UsageError(f"no graph that is converted has a node named {', '.join(unknown[:5])}")
        self._reference = {
            role: GraphSession(
                with_probes(graph) if role in self._roles else graph,
                bundle,
                role=role,
                kind="onnxruntime/cpu/fp32",
                artifact=bundle.file(role).sha256,
                threads=how.threads,
            )
            for role, graph in self._originals.items()
        }

    def uniform(self, precision: str) -> tuple[Bundle, tuple[Verdict, ...]]:
        """Convert to one precision, with the nodes kept that were asked for."""
        graphs, kept = self._graphs(precision, self._how.keep_fp32)
        return self._pass_or_raise(precision, graphs, kept)

    def mixed(self) -> tuple[Bundle, tuple[Verdict, ...]]:
        """Convert to fp16 with as few nodes in fp32 as it takes."""
        keep = set(self._how.keep_fp32)
        for _ in range(ROUNDS):
            graphs, kept = self._graphs("fp16", keep)
            found = self._differences(graphs, "mixed")
            if not failures_of(summarize(found), self._how.tolerances):
                return self._pass_or_raise("mixed", graphs, kept, found)
            touching = {
                name
                for role in self._roles
                for name in nodes_touching(self._originals[role], self._reference[role].magnitudes, "fp16")
            }
            keep |= touching if touching - keep else self._search(keep, found)
        raise GateError(f"no small set of nodes in fp32 makes it pass; tried {len(keep)} nodes")

    def _search(self, keep: Collection[str], found: Found) -> frozenset[str]:
        """Further nodes to keep, enough for the worst images."""
        worst = sorted(found, key=lambda pair: (pair[1].finite, pair[1].iou))[:BISECT_IMAGES]
        names = {name for name, _ in worst}
        tolerances = self._how.tolerances
        # images that fail and are not tried are left to the next round
        rest = [pair for pair in found if pair[0] not in names and pair[1].iou >= tolerances.worst_iou]
        photos = list(self._images.only(names))
        reference = {role: Memory(session) for role, session in self._reference.items()}
        asked = dataclasses.replace(tolerances, min_images=1)

        def enough(more: frozenset[str]) -> bool:
            graphs, _ = self._graphs("fp16", {*keep, *more})
            side = Side(bundle=self._bundle, sessions=self._sessions(graphs, "mixed"))
            remembered = Side(bundle=self._bundle, sessions=reference)
            tried = differences(remembered, side, photos, min_share=tolerances.min_share)
            return not failures_of(summarize([*rest, *tried]), asked)

        candidates = [name for names in self._names.values() for name in names if name not in keep]
        return smallest_subset(candidates, enough, budget=BISECT_BUDGET)

    def _graphs(self, precision: str, keep: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Role → converted graph, where any node is converted, and the names of the nodes that stay in fp32."""
        graphs, kept = {}, []
        for role in self._roles:
            wanted = [name for name in self._names[role] if name in keep]
            if precision in ("fp16", "bf16"):
                converted = in_16_bit(self._originals[role], precision, keep_fp32=wanted)  # type: ignore[arg-type]
            else:
                how = self._how
                converted = in_8_bit(
                    self._bundle,
                    role,
                    precision,  # type: ignore[arg-type]
                    how.calibration or self._images,
                    keep_fp32=wanted,
                    method=how.method,
                    symmetric=how.symmetric,
                    threads=how.threads,
                )
            if converted.converted:
                graphs[role] = converted.model
                kept += converted.kept
        if not graphs:
            raise ExportError(f"no node would be in {precision}")
        return graphs, tuple(kept)

    def _sessions(
        self, graphs: Mapping[str, Any], precision: str, artifacts: Mapping[str, str] | None = None
    ) -> dict[str, GraphSession]:
        """What runs the candidate: the reference itself for roles that are not converted."""
        sessions = dict(self._reference)
        for role, graph in graphs.items():
            sessions[role] = GraphSession(
                graph if precision in ("int8", "fp8") else emulation(graph),
                self._bundle,
                role=role,
                kind=f"onnxruntime/cpu/{precision}",
                artifact=(artifacts or {}).get(role, ""),
                threads=self._how.threads,
            )
        return sessions

    def _differences(self, graphs: Mapping[str, Any], precision: str) -> Found:
        reference = Side(bundle=self._bundle, sessions=self._reference)
        candidate = Side(bundle=self._bundle, sessions=self._sessions(graphs, precision))
        return differences(reference, candidate, self._images, min_share=self._how.tolerances.min_share)

    def _pass_or_raise(
        self, precision: str, graphs: Mapping[str, Any], kept: tuple[str, ...], found: Found | None = None
    ) -> tuple[Bundle, tuple[Verdict, ...]]:
        """Judge the graphs and write them with their verdicts; nothing is left of them where they fail."""
        bundle = self._bundle
        found = self._differences(graphs, precision) if found is None else found
        with tempfile.TemporaryDirectory(dir=bundle.path, prefix=".conversion-") as folder:
            staging, entries = Path(folder), []
            for role, graph in graphs.items():
                entries += save_graph(graph, staging, bundle.file(role), precision, kept)
            artifacts = {entry.role: entry.sha256 for entry in entries if entry.role in graphs}
            verdicts = verdicts_of(
                Side(bundle=bundle, sessions=self._reference),
                Side(bundle=bundle, sessions=self._sessions(graphs, precision, artifacts)),
                summarize(found),
                self._how.tolerances,
                emulated=precision not in ("int8", "fp8"),
                faults=self._faults(precision),
                kept_fp32=kept,
            )
            require_pass(*verdicts)
            for entry in entries:
                os.replace(staging / entry.path, bundle.path / entry.path)
        converted = with_files(Bundle.load(bundle.path), entries)
        for verdict in verdicts:
            converted = add_verdict(converted, verdict)
        converted.save()
        remove_unlisted(bundle, converted)
        return converted, verdicts

    def _faults(self, precision: str) -> tuple[str, ...]:
        """What is known of nodes whose values the precision cannot hold."""
        if precision not in LARGEST:
            return ()
        lines = []
        for role in self._roles:
            beyond = beyond_range(self._originals[role], self._reference[role].magnitudes, precision)
            for name, largest in list(beyond.items())[:5]:
                lines.append(
                    f"the node {name} makes values up to {largest:.3g}, beyond {LARGEST[precision]:.5g} of {precision}"
                )
            if len(beyond) > 5:
                lines.append(f"and {len(beyond) - 5} more nodes do")
        return tuple(lines)
