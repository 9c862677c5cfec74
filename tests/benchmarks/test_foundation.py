"""The table of foundation models, from a hub on loopback: what can be had is measured, the rest says why not."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ..builders import photo  # noqa: E402
from ..conftest import ROOT  # noqa: E402
from ..export.checkpoints import owlv2, sam, segformer  # noqa: E402
from ..export.pretrained.test_checkpoint import hub  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(1500)  # three exports
def test_models_are_downloaded_exported_and_labeled_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for folder in ("photos", "maps"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        Image.fromarray(np.asarray(photo(40, 60, seed=index))).save(tmp_path / "photos" / f"{index}.png")
        label = np.broadcast_to(np.arange(60, dtype=np.uint8) // 12, (40, 60))
        Image.fromarray(label).save(tmp_path / "maps" / f"{index}.png")
    models = {
        "nvidia/segformer-b0-finetuned-ade-512-512": segformer,
        "facebook/sam-vit-base": sam,
        "google/owlv2-base-patch16-ensemble": owlv2,
    }
    for name, build in models.items():
        (tmp_path / name).mkdir(parents=True)
        build(tmp_path / name)
    main = runpy.run_path(str(ROOT / "benchmarks" / "foundation.py"))["main"]
    with hub({name: tmp_path / name for name in models}) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        arguments = ["--models", "owlv2,segformer,mask2former,sam", "--folder", str(tmp_path / "bundles")]
        arguments += ["--labels", str(tmp_path / "maps"), "-o", str(tmp_path / "out.json")]
        main([str(tmp_path / "photos"), *arguments])
        rows = json.loads((tmp_path / "out.json").read_text())
        assert "name sam before it" in rows["owlv2"]["error"]
        arguments = ["--models", "owlv2", "--folder", str(tmp_path / "bundles"), "-o", str(tmp_path / "boxes.json")]
        main([str(tmp_path / "photos"), *arguments])
    boxes = json.loads((tmp_path / "boxes.json").read_text())["owlv2"]
    assert (boxes["images"], boxes["gate"]["mean_iou"] > 0.99) == (3, True)
    assert (rows["segformer"]["images"], rows["sam"]["images"]) == (3, 3)
    assert 0 <= rows["segformer"]["miou"] < 1
    assert rows["segformer"]["gate"]["agreement"] > 0.999
    assert "has no model facebook/mask2former" in rows["mask2former"]["error"]
    assert "images/s" in capsys.readouterr().out
