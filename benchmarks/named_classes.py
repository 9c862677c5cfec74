"""Calls and time of a model of named classes, against the loop over images and classes.

    python benchmarks/named_classes.py BUNDLE CHECKPOINT [--images 8] [--classes 20] [--rounds 3] [-o FILE]

BUNDLE is ``maskmill export CHECKPOINT -o BUNDLE`` without --classes, CHECKPOINT a folder of SAM 3 in the transformers
format. Compared, one after another in each round, one thread: transformers' own forward for every image and class; the
same loop with the bundle's graphs in ONNX Runtime; and labeling's predictor, batch 1 and 4. Pictures are generated.
Figures: calls of image encoder and detector, processor time per image (medians over rounds; on a shared machine the
wall time says little), and the largest difference of a score from the first loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmill.engine.inputs.images import preprocess
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.texts import TextPredictor, encode_texts
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.pretrained.checkpoint import fetch
from maskmill.export.pretrained.families import FAMILIES, family_of

Scores = list[NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    bundle, checkpoint = Bundle.load(options.bundle), fetch(options.checkpoint)
    model, tokenizer = checkpoint.load(FAMILIES[family_of(checkpoint)][1]), checkpoint.tokenizer()
    encoder, text, decoder = (OnnxSession(bundle, role=role) for role in ("encoder", "text", "decoder"))
    names = tuple(f"thing {index}" for index in range(options.classes))
    rng = np.random.default_rng(0)
    pictures = [
        np.kron(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((20, 20, 1), np.uint8))
        for _ in range(options.images)
    ]
    tensors = [preprocess(picture, bundle.input)[0] for picture in pictures]
    tokens = [tokenizer(name, padding="max_length", max_length=32, return_tensors="pt") for name in names]
    texts = encode_texts(bundle, text, names)
    levels = [output.name for output in bundle.outputs_of("encoder")]

    def own_loop() -> tuple[Scores, int, int]:
        maps = []
        with torch.no_grad():
            for tensor in tensors:
                classes = []
                for words in tokens:
                    output = model(pixel_values=torch.from_numpy(tensor)[None], **words)
                    queries = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
                    classes.append((queries[..., None, None] * output.pred_masks.sigmoid()).amax(1)[0].numpy())
                maps.append(np.stack(classes))
        return maps, options.images * options.classes, options.images * options.classes

    def graph_loop() -> tuple[Scores, int, int]:
        maps = []
        for tensor in tensors:
            classes = []
            for index in range(options.classes):
                feeds = dict(zip(levels, encoder.run(tensor[None]), strict=True))
                part = slice(index, index + 1)
                feeds |= {"texts": texts.features[part], "present": texts.present[part]}
                classes.append(decoder.run(feeds)[0][0, 0])
            maps.append(np.stack(classes))
        return maps, options.images * options.classes, options.images * options.classes

    def predicted(batch: int) -> tuple[Scores, int, int]:
        predictor = TextPredictor(bundle, encoder, decoder, texts, batch=batch)
        maps = predictor.run([predictor.prepare(picture) for picture in pictures])
        return [view.scores[1:] for view in maps], predictor.encoder_calls, predictor.decoder_calls

    ways: dict[str, Callable[[], tuple[Scores, int, int]]] = {
        "transformers, image by image and class by class": own_loop,
        "the same loop over the bundle's graphs": graph_loop,
        "maskmill, batch 1": lambda: predicted(1),
        "maskmill, batch 4": lambda: predicted(4),
    }
    expected: Scores = []
    rows: dict[str, dict[str, Any]] = {name: {"cpu_s": []} for name in ways}
    for _ in range(options.rounds):
        for name, run in ways.items():
            started = time.process_time()
            maps, encoder_calls, decoder_calls = run()
            rows[name]["cpu_s"].append((time.process_time() - started) / options.images)
            expected = expected or maps
            rows[name] |= {
                "encoder_calls": encoder_calls,
                "decoder_calls": decoder_calls,
                "max_error": max(float(np.abs(a - b).max()) for a, b in zip(maps, expected, strict=True)),
            }
    for row in rows.values():
        row["cpu_s"] = round(float(np.median(row["cpu_s"])), 4)
        row["images_per_cpu_s"] = round(1 / row["cpu_s"], 2)
    results = {"images": options.images, "classes": options.classes, "rounds": options.rounds, "ways": rows}
    text_of_results = json.dumps(results, indent=1)
    print(text_of_results)
    if options.output:
        options.output.write_text(text_of_results + "\n")


if __name__ == "__main__":
    sys.exit(main())
