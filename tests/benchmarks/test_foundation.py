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
from ..export.checkpoints import segformer  # noqa: E402
from ..export.pretrained.test_checkpoint import hub  # noqa: E402


@pytest.mark.slow
def test_models_are_downloaded_exported_and_labeled_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.fromarray(np.asarray(photo(40, 60, seed=index))).save(tmp_path / "photos" / f"{index}.png")
    name = "nvidia/segformer-b0-finetuned-ade-512-512"
    folder = tmp_path / name
    folder.mkdir(parents=True)
    segformer(folder)
    main = runpy.run_path(str(ROOT / "benchmarks" / "foundation.py"))["main"]
    with hub({name: folder}) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        main([str(tmp_path / "photos"), "--models", "segformer,mask2former", "-o", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows["segformer"]["images"] == 3
    assert rows["segformer"]["gate"]["agreement"] > 0.999
    assert "has no model facebook/mask2former" in rows["mask2former"]["error"]
    assert "images/s" in capsys.readouterr().out
