"""Sharded formats: WebDataset tar files and Hugging Face Parquet files, one file per batch of images.

WebDataset: ``KEY.jpg``, ``KEY.label.png``, ``KEY.weight.png`` and ``KEY.json``; dots of a name become underscores in
its key, since WebDataset ends a key at the first dot. Hugging Face: the columns ``image`` and ``label`` (Image
features), ``weight``, ``name`` and ``score``; class names are in the file's metadata and in ``README.md``.
"""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...checks import name_list
from ...errors import UsageError
from ..model.png import encode_png
from ..reading.parquet import open_parquet, texts_of
from .base import FileSink, LabeledImage, LabelReader, Writer
from .files import FileTree, filesystem_of, is_folder, open_picture

ANNOTATION_COLUMNS = (
    "label",
    "annotation",
    "mask",
    "labels",
    "segmentation_mask",
    "semantic_segmentation",
    "label_map",
)
"""Names of columns that hold label maps, in search order."""
_NAME_COLUMNS = ("name", "file_name", "filename", "image_id", "id")
_CLASSES = b"maskmill.classes"


class WebDatasetWriter(Writer):
    """Writes ``NNNNNN.tar`` with 256 images each and ``classes.txt``."""

    format = "webdataset"
    marks_ignored = True
    holds_weights = True
    image_modes = ("copy", "none")
    batch = 256

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write one tar file."""
        temporary = sink.folder / f"{index:06d}.tar.tmp"
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            for image in images:
                key = image.stem.replace(".", "_")
                members = {"label.png": encode_png(image.label)}
                if image.data is not None and self.options.images == "copy":
                    members[image.name.rsplit(".", 1)[-1].lower()] = image.data
                if image.weight is not None:
                    members["weight.png"] = encode_png(image.weight)
                record = {"name": image.name, "score": round(image.score, 6)}
                members["json"] = json.dumps(record, ensure_ascii=False).encode()
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size, member.mode = len(data), 0o644
                    archive.addfile(member, io.BytesIO(data))
        sink.adopt(f"{index:06d}.tar", temporary)
        return ""

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write the class list."""
        sink.save("classes.txt", "".join(f"{index} {name}\n" for index, name in enumerate(self.names)).encode())


class HuggingFaceWriter(Writer):
    """Writes ``data/train-NNNNN.parquet`` with 100 images each and ``README.md``, which ``load_dataset`` reads."""

    format = "huggingface"
    marks_ignored = True
    holds_weights = True
    image_modes = ("copy", "none")
    batch = 100

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write one Parquet file."""
        photos = self.options.images == "copy"
        file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {
            "image": (file, [{"bytes": image.data, "path": image.name} for image in images]),
            "label": (file, [{"bytes": encode_png(image.label), "path": f"{image.stem}.png"} for image in images]),
            "weight": (
                file,
                [
                    image.weight is not None and {"bytes": encode_png(image.weight), "path": f"{image.stem}.png"}
                    for image in images
                ],
            ),
            "name": (pa.string(), [image.name for image in images]),
            "score": (pa.float64(), [image.score for image in images]),
        }
        if not photos:
            del columns["image"]
        if not self.options.weights:
            del columns["weight"]
        types = {"image": "Image", "label": "Image", "weight": "Image"}
        features = {
            name: {"_type": types[name]} if name in types else {"_type": "Value", "dtype": str(kind)}
            for name, (kind, _) in columns.items()
        }
        features = {
            name: {"_type": "Value", "dtype": "float64"} if entry.get("dtype") == "double" else entry
            for name, entry in features.items()
        }
        metadata = {
            b"huggingface": json.dumps({"info": {"features": features}}).encode(),
            _CLASSES: json.dumps(self.names).encode(),
        }
        schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()], metadata=metadata)
        table = pa.table({name: pa.array(values, kind) for name, (kind, values) in columns.items()}, schema=schema)
        (sink.folder / "data").mkdir(exist_ok=True)
        temporary = sink.folder / "data" / f"train-{index:05d}.parquet.tmp"
        pq.write_table(table, temporary, row_group_size=25, compression="zstd")
        sink.adopt(f"data/train-{index:05d}.parquet", temporary)
        return ""

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write the dataset card with the class names."""
        names = "".join(f"| {index} | {name} |\n" for index, name in enumerate(self.names))
        sink.save(
            "README.md",
            (
                "---\ntask_categories: [image-segmentation]\nconfigs:\n- config_name: default\n  data_files:\n"
                "  - split: train\n    path: data/train-*.parquet\n---\nLabels made with maskmill; "
                f"{self.options.classes.ignore} is ignored. `labels.cert.json` states what is promised about them.\n\n"
                f"| value | class |\n|---|---|\n{names}"
            ).encode(),
        )


class HuggingFaceReader(LabelReader):
    """Reads Parquet files with a column of images and one of label maps; one row group is held at a time."""

    format = "huggingface"
    stored_values = True

    def __init__(self, location: str) -> None:
        self.path = location
        self._lock = threading.Lock()
        self._tree = FileTree(location) if is_folder(location) else None
        files = self._tree.with_suffix(".parquet") if self._tree else [location]
        if not files:
            raise UsageError(f"{location} holds no Parquet file; save a Hugging Face dataset with to_parquet")
        self._rows: dict[str, tuple[str, int, int]] = {}
        self._held: tuple[tuple[str, int], Any] | None = None
        classes: list[str] | None = None
        for file in files:
            with self._open(file) as parquet:
                self._column, names = _columns(parquet.schema_arrow, file)
                is_image = pa.types.is_struct(parquet.schema_arrow.field(self._column).type)
                self._label_column = f"{self._column}.bytes" if is_image else self._column
                metadata = parquet.schema_arrow.metadata or {}
                if _CLASSES in metadata:
                    classes = json.loads(metadata[_CLASSES])
                # of a column of images only the paths are read
                column = f"{names}.path" if pa.types.is_struct(parquet.schema_arrow.field(names).type) else names
                for group in range(parquet.num_row_groups):
                    values = self._read(file, group, column)
                    is_text = pa.types.is_string(values.type) or pa.types.is_dictionary(values.type)
                    for number, value in enumerate(texts_of(values) if is_text else values.to_pylist()):
                        name = value if value is None else str(value)
                        if not name or name in self._rows:
                            raise UsageError(
                                f"{file}, row {self._start(file, group) + number}: the image's name {name!r} is "
                                "missing or not unique"
                            )
                        self._rows[name] = file, group, number
        self.image_names: Sequence[str] = list(self._rows)
        self.class_names: Mapping[int, str] = dict(enumerate(classes or ()))
        self.notes: tuple[str, ...] = (f"label maps come from the column {self._column}",)

    def _open(self, file: str, columns: Sequence[str] = ()) -> pq.ParquetFile:
        try:
            if self._tree is None:
                filesystem, path = filesystem_of(file)
                return open_parquet(filesystem.open(path, "rb"), columns)
            return open_parquet(self._tree.open(file), columns)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"cannot read {file}: {error}") from error

    def _read(self, file: str, group: int, column: str) -> pa.Array:
        """Read a column of a row group, an Arrow array; ``column`` may be a path into a struct."""
        with self._open(file, [column]) as parquet:
            try:
                values = parquet.read_row_group(group, columns=[column]).column(0).combine_chunks()
            except (pa.ArrowException, OSError) as error:
                raise UsageError(f"{file}: the row group {group} is damaged: {error}; write the file again") from error
        return pc.struct_field(values, column.rpartition(".")[2]) if pa.types.is_struct(values.type) else values

    def _start(self, file: str, group: int) -> int:
        """Return the number of the first row of a row group."""
        with self._open(file) as parquet:
            return sum(parquet.metadata.row_group(index).num_rows for index in range(group))

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Decode the label map of an image."""
        file, group, number = self._rows[name]
        with self._lock:
            if self._held is None or self._held[0] != (file, group):
                self._held = (file, group), self._read(file, group, self._label_column)
            data = self._held[1][number].as_py()
        if data is None:
            raise UsageError(f"{file}: the label map of {name} is not embedded; save the dataset with its images")
        where = f"{file}, row {self._start(file, group) + number}: the label map of {name} in column {self._column}"
        try:
            image = open_picture(data, name)
        except UsageError as error:
            fate = "choose other images with --ids, or repair the file"
            raise UsageError(f"{where} cannot be decoded: {error}; {fate}") from error
        if image.mode not in ("L", "P", "I;16", "I"):
            raise UsageError(f"{where} is a {image.mode} image, expected class indices")
        label = np.asarray(image)
        return label if label.dtype == np.uint8 else label.astype(np.uint16)


def _columns(schema: pa.Schema, file: str) -> tuple[str, str]:
    """Return the columns of label maps and of names (a struct of an image is named by its path)."""
    label = next((name for name in ANNOTATION_COLUMNS if name in schema.names), None)
    if label is None or not (
        pa.types.is_struct(schema.field(label).type) or pa.types.is_binary(schema.field(label).type)
    ):
        raise UsageError(
            f"{file} needs a column of label maps (images) named {', '.join(ANNOTATION_COLUMNS)}; "
            f"it has {name_list(schema.names)}"
        )
    names = next((name for name in _NAME_COLUMNS if name in schema.names), "image")
    if names not in schema.names:
        raise UsageError(f"{file} needs a column that names the images: {', '.join(_NAME_COLUMNS)}, or image")
    return label, names
