"""Write what transformers' own processors and models give end to end; run by ``make family-references``.

The image processors of SAM 2, SAM 3 and DINOv3 need torchvision, and EdgeTAM needs timm. Neither can be installed
beside every build of PyTorch, so this script runs with both in a folder of their own, and the tests read its files:
``photos.npz``; ``FAMILY.npz`` with each output for them, and with the photos as the processor resized them, since
torchvision rounds some pixels of a resize to the other side than Pillow; and EdgeTAM's graphs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import maskmill  # noqa: F401  (hides this project's folder "kernels", which transformers would import)

# torchvision's compiled operators belong to one build of PyTorch; image processors call none, but they must be declared
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402

from tests.export.checkpoints import CHECKPOINTS  # noqa: E402

FOLDER = Path(__file__).parent
CLASSES = ("cat", "sofa", "mat")
TOKENS = {"padding": "max_length", "max_length": 32, "return_tensors": "pt"}


def photos() -> list[NDArray[np.uint8]]:
    """Two smooth pictures, one larger and one smaller than the models' inputs."""
    rng = np.random.default_rng(21)
    made = []
    for height, width in ((150, 130), (70, 100)):
        coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 7, 9)))
        smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255)
        made.append(smooth[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
    return made


def semantic(model: Any, processor: Any, pictures: list[Any], folder: Path) -> dict[str, Any]:
    """Scores of every class, from one call on all photos."""
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    output = model(pixel_values=pixels)
    if hasattr(output, "logits"):
        return {"scores": output.logits}
    probabilities = output.class_queries_logits.softmax(-1)[..., :-1]
    return {"scores": torch.einsum("nqc,nqhw->nchw", probabilities, output.masks_queries_logits.sigmoid())}


def concepts(model: Any, processor: Any, pictures: list[Any], folder: Path) -> dict[str, Any]:
    """SAM 3: every photo and class alone, and its own instances at the size of the photo."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scores, instances = [], {}
    for number, picture in enumerate(pictures):
        classes = []
        for name in CLASSES:
            pixels = processor(picture, return_tensors="pt")["pixel_values"]
            output = model(pixel_values=pixels, **tokenizer(name, **TOKENS))
            queries = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
            classes.append((queries[..., None, None] * output.pred_masks.sigmoid()).amax(1)[0])
            if name == CLASSES[0]:
                (found,) = processor.post_process_instance_segmentation(
                    output, threshold=0.0, target_sizes=[picture.shape[:2]]
                )
                instances[f"instance_scores_{number}"] = found["scores"]
                instances[f"instance_masks_{number}"] = np.packbits(found["masks"].numpy().astype(bool))
        scores.append(torch.stack(classes))
    return {"scores": torch.stack(scores), **instances}


def promptable(model: Any, processor: Any, pictures: list[Any], folder: Path) -> dict[str, Any]:
    """Low-resolution masks and their scores for two points and for a box on each photo, and masks of its size."""
    arrays: dict[str, Any] = {}
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        points = [[[[0.3 * width, 0.4 * height], [0.7 * width, 0.6 * height]]]]
        box = [[[0.2 * width, 0.1 * height, 0.8 * width, 0.7 * height]]]
        prompts = {"points": {"input_points": points, "input_labels": [[[1, 0]]]}, "box": {"input_boxes": box}}
        for kind, prompt in prompts.items():
            inputs = processor(picture, return_tensors="pt", **prompt)
            sizes = {key: inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
            output = model(**inputs)
            arrays[f"{kind}_masks_{number}"] = output.pred_masks[0, 0]
            arrays[f"{kind}_ious_{number}"] = output.iou_scores[0, 0]
            full = processor.post_process_masks(output.pred_masks, *sizes.values())[0]
            arrays[f"{kind}_binary_{number}"] = np.packbits(full.numpy().astype(bool))
    return arrays


def levels(processor: Any, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a photo as the processor resizes it: (h, w, 3) uint8, without padding."""
    images = getattr(processor, "image_processor", processor)
    prepared = images(picture, return_tensors="pt")
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (images.image_mean, images.image_std))
    pixels = ((prepared["pixel_values"][0] * std + mean) * 255).round().to(torch.uint8)
    height, width = prepared["reshaped_input_sizes"][0] if "reshaped_input_sizes" in prepared else pixels.shape[1:]
    return pixels[:, :height, :width].permute(1, 2, 0).numpy()


def _sam_processor(processor: type, images: type) -> Callable[[Path], Any]:
    return lambda folder: processor(image_processor=images.from_pretrained(folder))


SAM, SAM2, SAM3 = transformers.SamImageProcessor, transformers.Sam2ImageProcessor, transformers.Sam3ImageProcessor
FAMILIES: dict[str, tuple[str, Callable[[Path], Any], Callable[..., dict[str, Any]]]] = {
    "segformer": ("SegformerForSemanticSegmentation", transformers.SegformerImageProcessor.from_pretrained, semantic),
    "eomt_dinov3": ("EomtDinov3ForUniversalSegmentation", transformers.EomtImageProcessor.from_pretrained, semantic),
    "sam3": ("Sam3Model", SAM3.from_pretrained, concepts),
    "sam3_lite_text": ("Sam3LiteTextModel", SAM3.from_pretrained, concepts),
    "sam": ("SamModel", _sam_processor(transformers.SamProcessor, SAM), promptable),
    "sam_hq": ("SamHQModel", _sam_processor(transformers.SamHQProcessor, SAM), promptable),
    "sam2": ("Sam2Model", _sam_processor(transformers.Sam2Processor, SAM2), promptable),
    "edgetam": ("EdgeTamModel", _sam_processor(transformers.Sam2Processor, SAM2), promptable),
    "sam3_tracker": ("Sam3TrackerModel", _sam_processor(transformers.Sam3TrackerProcessor, SAM3), promptable),
}
"""Family → its class, how its processor is opened, and how it runs."""


def main(names: list[str]) -> None:
    """Write the references of the named families, or of all."""
    pictures = photos()
    np.savez_compressed(FOLDER / "photos.npz", *pictures)
    for name in names or FAMILIES:
        architecture, open_processor, run = FAMILIES[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = CHECKPOINTS[name](Path(temporary) / name)
            model = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager").eval()
            with torch.no_grad():
                processor = open_processor(folder)
                arrays = run(model, processor, pictures, folder)
                arrays |= {f"levels_{number}": levels(processor, picture) for number, picture in enumerate(pictures)}
            if name == "edgetam":
                from maskmill.export.pretrained.families import bundle_from_pretrained

                shutil.rmtree(FOLDER / "edgetam", ignore_errors=True)
                bundle_from_pretrained(str(folder), FOLDER / "edgetam")
        values = {key: np.asarray(value) for key, value in arrays.items()}
        np.savez_compressed(FOLDER / f"{name}.npz", **values)
        print(f"{name}: {(FOLDER / f'{name}.npz').stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
