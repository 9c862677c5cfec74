"""Columns of a table that hold images and their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ....errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "images", "img", "photo", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
"""Names of a column of bytes that may hold images, in search order."""
KEY_NAMES = ("__key__", "file_name", "filename", "image_id", "key", "id")
"""Names of a column of strings that may name the images, in search order."""


class Columns(NamedTuple):
    """Columns to read."""

    image: str
    """Column of the images, a path with a dot inside a struct."""
    name: str | None
    """Column of their names; None: they are known by their row alone."""


def image_columns(schema: Any, table: str) -> Columns | None:
    """Find the columns of images and names in an Arrow schema; None if it holds no images.

    Images are a struct with a field ``bytes``, as ``datasets`` writes them, or a column of bytes of a usual name.
    Raises :class:`SourceError` if there are several such structs and none is called ``image``.
    """
    import pyarrow as pa

    structs = [
        column
        for column in schema
        if pa.types.is_struct(column.type) and any(is_bytes(part.type) for part in column.type if part.name == "bytes")
    ]
    if structs:
        named_columns = [column for column in structs if column.name in IMAGE_NAMES] or structs
        if len(named_columns) > 1 and named_columns[0].name != "image":
            raise SourceError(
                f"{table} has several columns of images ({', '.join(column.name for column in named_columns)}); "
                "name the one to use image"
            )
        column = next((column for column in named_columns if column.name == "image"), named_columns[0])
        has_path = any(part.name == "path" and _is_text(part.type) for part in column.type)
        return Columns(f"{column.name}.bytes", f"{column.name}.path" if has_path else None)
    kinds = {column.name: column.type for column in schema}
    image = next((name for name in IMAGE_NAMES if name in kinds and is_bytes(kinds[name])), None)
    if image is None:
        return None
    return Columns(image, next((name for name in KEY_NAMES if name in kinds and _is_text(kinds[name])), None))


def flat_column(table: Any, column: str) -> pa.Array:
    """Return a column of a table or record batch as one array; ``column`` may be a path into a struct."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first, *field_names = column.split(".")
    values = table[first]
    for name in field_names:
        values = pc.struct_field(values, name)
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def is_bytes(kind: Any) -> bool:
    """Return True for an Arrow type of bytes."""
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
