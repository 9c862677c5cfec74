"""Convert a bundle to a lower precision; an artifact that does not pass the gate is not written.

::

    bundle = convert(bundle, "fp16", GateImages.open("photos/"), on_fail="next", say=print)

``on_fail="next"`` tries the next precision: fp8 or int8, fp16, bf16, then ``mixed``, which is fp16 with as few nodes in
fp32 as needed to pass: nodes that make or read values beyond fp16's range, and nodes that bisection finds.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ...checks import name_list
from ...engine.model.bundle import Bundle
from ...engine.model.verdicts import Metrics, Tolerances, Verdict, add_verdict, failures_of
from ...errors import ExportError, GateError, UsageError
from ..gate.compare import batch_size, differences, summarize
from ..gate.emulate import GraphSession, Memory, emulation, magnitudes_beyond, nodes_touching, with_probes
from ..gate.judge import Findings, GateImages, check_required_classes, describe, require_pass, verdicts_of
from ..gate.proof import roles_of
from ..gate.tasks import Difference, Side
from ..graph import LARGEST, node_name
from .artifacts import remove_unlisted, save_graph, with_files
from .bisect import smallest_subset
from .eight_bit import Method, Precision8, in_8_bit
from .sixteen_bit import Precision16, in_16_bit

if TYPE_CHECKING:
    import onnx

OnFail = Literal["stop", "next"]
LowPrecision = Literal[Precision16, Precision8]
"""Precisions that a model can be converted to."""
Differences = list[tuple[str, Difference]]

WALK = ("fp8", "int8", "fp16", "bf16", "mixed")
"""Precisions in the order in which they are tried."""
BISECT_IMAGES = 8
"""Number of worst images on which the search for failing nodes runs."""
BISECT_BUDGET = 60
"""Largest number of sets of nodes that one search tries."""
ROUNDS = 4
"""Number of searches for further nodes, if the nodes of one search are not enough on all images."""
CLOSE = 2.0
"""A tensor within this factor of fp16's range is a warning: a brighter image may overflow it."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Options of a conversion."""

    roles: tuple[str, ...] = ()
    """Graphs to convert; all if empty."""
    keep_fp32: tuple[str, ...] = ()
    """Names of nodes that stay in fp32, in whichever graph has them."""
    calibration: GateImages | None = None
    """Images for 8-bit ranges; those of the gate if None."""
    method: Method = "minmax"
    """Rule for the range of an int8 activation."""
    symmetric: bool = False
    """8-bit ranges around 0, as TensorRT asks for."""
    tolerances: Tolerances = field(default_factory=Tolerances)
    """Tolerances of the gate."""
    threads: int = 1
    """Threads per model call."""


def convert(
    bundle: Bundle,
    precision: str,
    images: GateImages,
    *,
    how: Conversion | None = None,
    on_fail: OnFail = "stop",
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Add a file per role in another precision, which passed the gate on ``images``, and save the bundle.

    An earlier file of the same role and precision is replaced. ``say`` gets one line for the artifact that passes, and
    for every precision refused before it. Raises :class:`GateError` if nothing passes, with the failures and the nodes
    that cause them; the bundle is then unchanged.
    """
    if precision not in WALK[:-1]:
        raise UsageError(f"the precision to convert to is one of {', '.join(WALK[:-1])}, got {precision!r}")
    steps = [precision]
    if on_fail == "next":
        # int8 is not tried for graphs that fail in fp8
        steps += [step for step in WALK[WALK.index(precision) + 1 :] if step != "int8"]
    converter = _Converter(bundle, images, how or Conversion())
    refusals = []
    for step in steps:
        try:
            new_bundle, verdicts = converter.mixed() if step == "mixed" else converter.uniform(step)
        except (GateError, ExportError) as error:
            refusals.append(f"{step} is refused: {error}")
            if len(steps) > 1:
                say(refusals[-1])
            continue
        say(describe(verdicts[0]))
        return new_bundle
    raise GateError(f"{bundle.location} stays in {bundle.files[0].precision}; {'; '.join(refusals)}")


class _Converter:
    """Converts one bundle: holds its originals with probes as the reference, and the images."""

    def __init__(self, bundle: Bundle, images: GateImages, how: Conversion) -> None:
        import onnx

        self._bundle, self._images, self._how = bundle, images, how
        roles = roles_of(bundle)
        if unknown := sorted(set(how.roles) - set(roles)):
            raise UsageError(f"{bundle.location} has no role {', '.join(unknown)}; its roles are {', '.join(roles)}")
        self._roles = how.roles or roles
        self._originals = {role: onnx.load_model(bundle.model_path(role)) for role in roles}
        self._names = {role: [node_name(node) for node in self._originals[role].graph.node] for role in self._roles}
        if unknown := sorted(set(how.keep_fp32).difference(*self._names.values())):
            raise UsageError(f"no graph that is converted has a node named {name_list(unknown, most=5)}")
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
        check_required_classes(Side(bundle=bundle, sessions=self._reference), how.tolerances)

    def uniform(self, precision: str) -> tuple[Bundle, tuple[Verdict, ...]]:
        """Convert to one precision, except for the nodes that the caller keeps in fp32."""
        graphs, fp32_nodes = self._graphs(precision, self._how.keep_fp32)
        return self._pass_or_raise(precision, graphs, fp32_nodes)

    def mixed(self) -> tuple[Bundle, tuple[Verdict, ...]]:
        """Convert to fp16 with as few nodes in fp32 as needed to pass."""
        keep = set(self._how.keep_fp32)
        for _ in range(ROUNDS):
            graphs, fp32_nodes = self._graphs("fp16", keep)
            differences = self._differences(graphs, "mixed")
            if not failures_of(self._summary(differences), self._how.tolerances):
                return self._pass_or_raise("mixed", graphs, fp32_nodes, differences)
            touching = {
                name
                for role in self._roles
                for name in nodes_touching(self._originals[role], self._reference[role].magnitudes, "fp16")
            }
            keep |= touching if touching - keep else self._search(keep, differences)
        raise GateError(f"no small set of nodes in fp32 makes it pass; tried {len(keep)} nodes")

    def _search(self, keep: Collection[str], pairs: Differences) -> frozenset[str]:
        """Return further nodes to keep, enough for the worst images."""
        worst = sorted(pairs, key=lambda pair: (pair[1].finite, pair[1].iou))[:BISECT_IMAGES]
        names = {name for name, _ in worst}
        tolerances = self._how.tolerances
        # failing images that are not used here are left to the next round
        remainder = [pair for pair in pairs if pair[0] not in names and pair[1].iou >= tolerances.worst_iou]
        photos = list(self._images.only(names))
        reference = {role: Memory(session) for role, session in self._reference.items()}
        limits = dataclasses.replace(tolerances, min_images=1, required_classes=())

        def enough(more: frozenset[str]) -> bool:
            graphs, _ = self._graphs("fp16", {*keep, *more})
            side = Side(bundle=self._bundle, sessions=self._sessions(graphs, "mixed"))
            remembered = Side(bundle=self._bundle, sessions=reference)
            tried = differences(remembered, side, photos, min_share=tolerances.min_share)
            return not failures_of(self._summary([*remainder, *tried]), limits)

        candidates = [name for names in self._names.values() for name in names if name not in keep]
        return smallest_subset(candidates, enough, budget=BISECT_BUDGET)

    def _summary(self, compared: Differences) -> Metrics:
        return summarize(compared, self._bundle.classes)

    def _graphs(self, precision: str, keep: Collection[str]) -> tuple[dict[str, onnx.ModelProto], tuple[str, ...]]:
        """Return the graphs in which any node is converted, by role, and the names of the nodes that stay in fp32."""
        graphs, fp32_nodes = {}, []
        for role in self._roles:
            names = [name for name in self._names[role] if name in keep]
            if precision in get_args(Precision16):
                conversion = in_16_bit(self._originals[role], precision, keep_fp32=names)  # type: ignore[arg-type]
            else:
                how = self._how
                conversion = in_8_bit(
                    self._bundle,
                    role,
                    precision,  # type: ignore[arg-type]
                    how.calibration or self._images,
                    keep_fp32=names,
                    method=how.method,
                    symmetric=how.symmetric,
                    threads=how.threads,
                )
            if conversion.converted:
                graphs[role] = conversion.model
                fp32_nodes += conversion.fp32_nodes
        if not graphs:
            raise ExportError(f"no node would be in {precision}")
        return graphs, tuple(fp32_nodes)

    def _sessions(
        self, graphs: Mapping[str, onnx.ModelProto], precision: str, artifacts: Mapping[str, str] | None = None
    ) -> dict[str, GraphSession]:
        """Open the candidate's sessions: the reference itself for roles that are not converted."""
        sessions = dict(self._reference)
        for role, graph in graphs.items():
            sessions[role] = GraphSession(
                graph if precision in get_args(Precision8) else emulation(graph),
                self._bundle,
                role=role,
                kind=f"onnxruntime/cpu/{precision}",
                artifact=(artifacts or {}).get(role, ""),
                threads=self._how.threads,
            )
        return sessions

    def _differences(self, graphs: Mapping[str, onnx.ModelProto], precision: str) -> Differences:
        reference = Side(bundle=self._bundle, sessions=self._reference)
        candidate = Side(bundle=self._bundle, sessions=self._sessions(graphs, precision))
        return differences(reference, candidate, self._images, min_share=self._how.tolerances.min_share)

    def _pass_or_raise(
        self,
        precision: str,
        graphs: Mapping[str, onnx.ModelProto],
        fp32_nodes: tuple[str, ...],
        differences: Differences | None = None,
    ) -> tuple[Bundle, tuple[Verdict, ...]]:
        """Judge the graphs and write them with their verdicts; if they fail, nothing is written."""
        bundle = self._bundle
        differences = self._differences(graphs, precision) if differences is None else differences
        with tempfile.TemporaryDirectory(dir=bundle.path, prefix=".conversion-") as folder:
            staging, entries = Path(folder), []
            for role, graph in graphs.items():
                entries += save_graph(graph, staging, bundle.file(role), precision, fp32_nodes)
            artifacts = {entry.role: entry.sha256 for entry in entries if entry.role in graphs}
            reference = Side(bundle=bundle, sessions=self._reference)
            verdicts = verdicts_of(
                reference,
                Side(bundle=bundle, sessions=self._sessions(graphs, precision, artifacts)),
                self._summary(differences),
                self._how.tolerances,
                batch=batch_size(reference, list(islice(self._images, 2))),
                findings=Findings(
                    emulated=precision not in get_args(Precision8),
                    faults=self._faults(precision),
                    warnings=self._warnings(precision),
                    kept_fp32=fp32_nodes,
                ),
            )
            require_pass(*verdicts)
            for entry in entries:
                os.replace(staging / entry.path, bundle.path / entry.path)
        new_bundle = with_files(Bundle.load(bundle.path), entries)
        for verdict in verdicts:
            new_bundle = add_verdict(new_bundle, verdict)
        new_bundle.save()
        remove_unlisted(bundle, new_bundle)
        return new_bundle, verdicts

    def _faults(self, precision: str) -> tuple[str, ...]:
        """Describe the nodes whose values the precision cannot hold."""
        if precision not in LARGEST:
            return ()
        lines = []
        for role in self._roles:
            beyond = magnitudes_beyond(self._originals[role], self._reference[role].magnitudes, LARGEST[precision])
            for name, largest in list(beyond.items())[:5]:
                lines.append(
                    f"the node {name} produces values up to {largest:.3g}, beyond {LARGEST[precision]:.5g} of "
                    f"{precision}"
                )
            if len(beyond) > 5:
                lines.append(f"and {len(beyond) - 5} more nodes do")
        return tuple(lines)

    def _warnings(self, precision: str) -> tuple[str, ...]:
        """Describe the tensor closest to the limit of fp16's range, if it is close and within."""
        if precision not in ("fp16", "mixed"):
            return ()
        limit = LARGEST["fp16"]
        lines = []
        for role in self._roles:
            close = magnitudes_beyond(self._originals[role], self._reference[role].magnitudes, limit / CLOSE)
            within = {name: largest for name, largest in close.items() if largest <= limit}
            if within:
                name, largest = max(within.items(), key=lambda pair: pair[1])
                suffix = f" (and {len(within) - 1} more nodes)" if len(within) > 1 else ""
                lines.append(
                    f"the node {name} produces values up to {largest:.3g}{suffix}, within a factor of {CLOSE:g} of "
                    "fp16's "
                    f"limit of {limit:.5g}: another image may overflow"
                )
        return tuple(lines)
