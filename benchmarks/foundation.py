"""Download the named foundation models, export each through the gate, label photos with it, and print the table.

    python benchmarks/foundation.py photos/ [--models segformer,sam3] [--limit 100] [--provider cuda] [--labels maps/]
        [-o FILE]

It needs a network, or the hub's cache, and for the large models a GPU and patience. Per model: size and license,
seconds of the export, the gate's figures on the photos, images per second of a label run (for promptable models, of
segmenting everything; for detectors, with the masks of ``sam``, which must be among the models before), and with
``--labels``, for models whose classes are those of the labels, the mIoU. A model that cannot be downloaded or exported
gets a row with the reason, and the others are still measured. ``--folder`` keeps the bundles, and an existing one is
not exported again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label, segment
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.open import (
    ModelOptions,
    PromptedOptions,
    open_everything,
    open_predictor,
    open_prompted,
)
from maskmill.errors import MaskmillError, UsageError
from maskmill.export.gate.judge import GateImages
from maskmill.export.pretrained.families import Choices, bundle_from_pretrained

NAMES = ("person", "car", "dog", "cat", "tree", "building", "sky", "grass", "road", "water")
"""Class names for models that take text."""
MODELS: Mapping[str, tuple[str, Choices]] = {
    "segformer": ("nvidia/segformer-b0-finetuned-ade-512-512", Choices()),
    "upernet": ("openmmlab/upernet-convnext-tiny", Choices()),
    "dpt": ("Intel/dpt-large-ade", Choices()),
    "mask2former": ("facebook/mask2former-swin-tiny-ade-semantic", Choices(instances=100)),
    "oneformer": ("shi-labs/oneformer_ade20k_swin_tiny", Choices(instances=100)),
    "eomt": ("tue-mps/ade20k_semantic_eomt_large_512", Choices()),
    "clipseg": ("CIDAS/clipseg-rd64-refined", Choices(classes=NAMES, background="other")),
    "sam3": ("facebook/sam3", Choices(classes=NAMES, background="other", instances=100)),
    "sam": ("facebook/sam-vit-base", Choices()),
    "sam_hq": ("syscv-community/sam-hq-vit-base", Choices()),
    "sam2": ("facebook/sam2.1-hiera-tiny", Choices()),
    "edgetam": ("yonigozlan/EdgeTAM-hf", Choices()),
    "grounding_dino": ("IDEA-Research/grounding-dino-tiny", Choices(classes=NAMES)),
    "mm_grounding_dino": ("openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det", Choices(classes=NAMES)),
    "owlv2": ("google/owlv2-base-patch16-ensemble", Choices(classes=NAMES)),
}
"""Name → hub id and choices of the export."""


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one row of the table."""
    model, choices = MODELS[name]
    photos = GateImages.open(options.photos, limit=options.limit)
    started = time.perf_counter()
    path = folder / name
    bundle = Bundle.load(path) if path.exists() else bundle_from_pretrained(model, path, choices, images=photos)
    row: dict[str, Any] = {
        "model": model,
        "license": bundle.source.license,
        "revision": bundle.source.revision,
        "megabytes": round(sum(file.bytes for file in bundle.files) / 1e6, 1),
        "export_s": round(time.perf_counter() - started, 1),
        "gate": bundle.verdicts[0]["metrics"],
    }
    models = ModelOptions(provider=options.provider, batch=options.batch)
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary) / "store"
        source = open_source(options.photos)
        if bundle.task == "promptable":
            progress = segment(
                open_everything(PromptedOptions(sam=path), options=models), source, store, limit=options.limit
            )
        else:
            if bundle.task == "detector":
                if not (folder / "sam").exists():
                    raise UsageError(f"{name} gives boxes, and sam their masks: name sam before it in --models")
                prompted = PromptedOptions(sam=folder / "sam", detector=path)
                predictor, taxonomy = open_prompted(prompted, options=models)
            else:
                predictor, taxonomy = open_predictor(path, options=models)
            progress = label(predictor, source, store, taxonomy, Selection.argmax(), limit=options.limit)
            if options.labels:
                import maskmill

                row["miou"] = round(maskmill.evaluate(store, labels=options.labels).miou_all, 4)
    row["images"], row["images_per_s"] = progress.images, round(progress.images / max(progress.seconds, 1e-9), 3)
    return row


def main(arguments: list[str] | None = None) -> None:
    """Measure the models and print the table, and JSON with ``-o``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--labels")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    rows: dict[str, Any] = {}
    temporary = tempfile.TemporaryDirectory() if options.folder is None else nullcontext(options.folder)
    with temporary as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in options.models.split(","):
            try:
                row = measure(name, Path(folder), options)
            except MaskmillError as error:
                rows[name] = {"model": MODELS[name][0], "error": str(error)}
                print(f"{name:14} {error}", flush=True)
                continue
            rows[name] = row
            gate = row["gate"]
            print(
                f"{name:14} {row['megabytes']:8.1f} MB  export {row['export_s']:6.1f} s  agreement "
                f"{gate['agreement']:.6f}  mean IoU {gate['mean_iou']:.4f}  {row['images_per_s']:7.2f} images/s"
                + (f"  mIoU {row['miou']:.3f}" if "miou" in row else ""),
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    if all("error" in row for row in rows.values()):
        sys.exit("no model could be measured")


if __name__ == "__main__":
    main()
