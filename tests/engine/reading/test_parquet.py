"""A value that a Parquet file stores once and repeats in every row takes the memory of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.reading.parquet import MAX_TEXT, open_parquet, texts_of

ROWS = 20_000
LONG = "x" * (1 << 20)


def repeated(value: Any) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(ROWS, np.int32)), pa.array([value]))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fail if the test takes more than 1 GB of Arrow's memory; decoded, every file below has 20 GB."""
    pool = pa.default_memory_pool()
    yield
    assert (pool.max_memory() or 0) < 1 << 30


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "columns",
    [
        {"path": repeated(LONG)},
        {"jpg": repeated(LONG.encode()), "__key__": [str(row) for row in range(ROWS)]},
        {"jpg": [b"x"] * ROWS, "__key__": repeated(LONG)},
    ],
    ids=["list", "images", "names"],
)
def test_repeated_values_are_read_once(columns: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    items = iter(open_source(path))
    assert len([next(items) for _ in range(3)]) == 3


def test_texts_beyond_the_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        texts_of(pa.array(["a", "x" * (MAX_TEXT + 1)]))
    with pytest.raises(ValueError, match="at most"):
        texts_of(pa.array(["a", "x" * (MAX_TEXT + 1)]).dictionary_encode())
    assert texts_of(pa.array(["a", None]).dictionary_encode()) == ["a", None]
    assert texts_of(pa.array([], pa.string())) == []


def test_columns_in_structs_are_read_once_too(tmp_path: Path) -> None:
    images = pa.StructArray.from_arrays([pa.array([b"x"] * 5), pa.array(list("abcde"))], ["bytes", "path"])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    table = open_parquet(tmp_path / "a.parquet", ["image.bytes"]).read()
    assert pa.types.is_dictionary(table.schema.field("image").type.field("bytes").type)
    assert table["image"].to_pylist()[1] == {"bytes": b"x", "path": "b"}
