"""Students of bad teachers that are rescaled first: our candidate against the rows of ``students_msrc.py``.

    python benchmarks/students_rescaled.py             # all candidates and seeds that have no figures yet
    python benchmarks/students_rescaled.py --table     # print the rows with all seeds

The labeled photos first fit a scale and an offset per class of the teacher's logits, as ``maskmill rescale`` does but
from all pixels at the scores' resolution; the rescaled scores then label the unlabeled photos, with or without
conformal thresholds of the same labeled photos. Photos, splits, student, optimizer and crops are those of
``students_msrc.py``: 200 steps on the stored labels, then 100 steps on the labeled photos alone at a third of the rate.
Candidates were compared on the validation photos; ``--scored`` scores the chosen one on the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from students import Results
from students_msrc import COMMON, RESULTS, SECOND_STEPS, SEEDS, Photos, Split, labeled_alone, selection_of
from teachers import SIDE, Teacher

from maskmill.engine.inputs.label_maps import read_label_map
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.predictors.score_files import ScoreFiles, write_score_bundle
from maskmill.engine.report.evaluate import evaluate_store
from maskmill.engine.store.label_store import LabelStore
from maskmill.export.rescaling import fit_rescaling
from maskmill.trainer.data.corpus import open_corpus
from maskmill.trainer.recipes import supervised


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to train from a rescaled teacher."""

    labels: str
    """Labels of the unlabeled photos, as in ``students_msrc.selection_of``."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Changed settings of the recipe."""
    after: str | None = None
    """Candidate whose student is trained on the labeled photos alone; this candidate has no labels of its own then."""


MOST_PIXELS = 130_000
"""Pixels of the labeled photos that fit the rescaling, about as many as 30 photos have."""
RAW, RAW_LONGER = "rescaled: raw labels", "rescaled: raw labels, 300 steps"
CANDIDATES: Mapping[str, Candidate] = {
    RAW: Candidate("raw"),
    "rescaled: rule agree": Candidate("agree"),
    RAW_LONGER: Candidate("raw", {"steps": 300}),
    "rescaled: raw labels, then labeled photos alone": Candidate("raw", after=RAW),
}


def rescaled_teacher(photos: Photos, kind: Teacher, labeled: Sequence[Path], folder: Path) -> ScoreFiles:
    """Write the scores of a teacher after rescaling on labeled photos, unless they exist."""
    if not (folder / "done").exists():
        photos.teacher(kind)
        truths, logits = [], []
        files = {photo.stem: photos.work / f"scores-{kind}" / f"{photo.stem}.npy" for photo in photos.files}
        for photo in labeled:
            path = photos.data / "msrc" / "labels" / f"{photo.stem}.png"
            truth = photos.taxonomy.encode(read_label_map(path), str(path))
            rows, columns = (((np.arange(SIDE) + 0.5) * length / SIDE).astype(int) for length in truth.shape)
            truths.append(truth[np.ix_(rows, columns)].ravel())
            logits.append(np.load(files[photo.stem]).reshape(-1, SIDE * SIDE).T)
        known = np.concatenate(truths) < len(photos.taxonomy.targets)
        step = 1 + known.sum() // MOST_PIXELS
        scale, offsets = fit_rescaling(np.concatenate(logits)[known][::step], np.concatenate(truths)[known][::step])
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "scores").mkdir(parents=True)
        for name, file in files.items():
            np.save(
                folder / "scores" / f"{name}.npy", (scale * np.load(file) + offsets[:, None, None]).astype(np.float32)
            )
        classes = photos.teacher(kind).bundle.classes
        write_score_bundle(
            folder / "teacher", scores=folder / "scores", classes=classes, background=classes[0], activation="softmax"
        )
        (folder / "done").touch()
    return ScoreFiles.open(folder / "teacher")


def train_candidate(
    results: Results, photos: Photos, name: str, kind: Teacher, seed: int, scored: bool, steps: int | None
) -> None:
    """Label with the rescaled teacher, train both stages and score."""
    if results.find(kind, name, seed) is not None:
        return
    candidate, split = CANDIDATES[name], Split.of_seed(photos.files, seed)
    folder = photos.work / "rescaled" / kind / f"seed{seed}"
    predictor = rescaled_teacher(photos, kind, split.labeled, folder)
    store = folder / f"labels-{candidate.labels}"
    listed = folder / "unlabeled.txt"
    listed.write_text("\n".join(str(photo.resolve()) for photo in split.unlabeled))
    if results.find(kind, f"labels: rescaled, {candidate.labels}", seed) is None or not store.exists():
        selection = selection_of(candidate.labels, photos, predictor, split)
        label(predictor, open_source(listed), store, photos.taxonomy, selection)
        quality = evaluate_store(LabelStore.open(store), LabelFolder(photos.folder / "labels"), photos.taxonomy)
        figures = {key: round(float(getattr(quality, key)), 5) for key in ("miou_kept", "accuracy_kept", "kept")}
        results.add(kind, f"labels: rescaled, {candidate.labels}", seed, {"labels": figures})
    ids = [photo.stem for photo in split.labeled]
    sets = {"validation": photos.images(split.validation)} | ({"scored": photos.images(split.scored)} if scored else {})
    runs = {row: folder / f"run{number}" for number, row in enumerate(CANDIDATES)}
    if candidate.after:
        recipe = labeled_alone(**{**COMMON, "steps": steps or SECOND_STEPS}, seed=seed)
        corpus = open_corpus(labeled=photos.folder, ids=ids, taxonomy=photos.taxonomy)
        results.run(kind, name, seed, runs[name], recipe, corpus, sets, init=runs[candidate.after])
    else:
        settings = {**COMMON, **candidate.settings} | ({"steps": steps} if steps else {})
        corpus = open_corpus(stores=[store], labeled=photos.folder, ids=ids, taxonomy=photos.taxonomy)
        recipe = supervised(**settings, seed=seed)
        results.run(kind, name, seed, runs[name], recipe, corpus, sets, keep=name == RAW)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/students-msrc"), help="folder for stores and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--table", action="store_true", help="print finished rows and do nothing else")
    parser.add_argument("--rows", help="parts of the names of the rows to run, separated by semicolons")
    parser.add_argument("--teachers", default="eager,blurred")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--scored", action="store_true", help="score on the scored photos as well")
    parser.add_argument("--steps", type=int, help="steps per run, to try the script")
    options = parser.parse_args(arguments)
    results, seeds = Results(options.results, "students_rescaled"), [int(seed) for seed in options.seeds.split(",")]
    kinds: list[Any] = options.teachers.split(",")
    if options.table:
        results.print_table(kinds, seeds, "scored" if options.scored else "validation")
        return 0
    torch.set_num_threads(1)
    photos = Photos.open(options.work)
    parts = options.rows.split(";") if options.rows else [""]
    for name in CANDIDATES:
        if any(part in name for part in parts):
            for kind in kinds:
                for seed in seeds:
                    train_candidate(results, photos, name, kind, seed, options.scored, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
