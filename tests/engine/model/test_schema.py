"""JSON files that more than one reading would fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskmill.engine.model.schema import read_json_object
from maskmill.errors import UsageError


def test_a_name_that_occurs_twice_in_an_object_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"a": [{"alpha": 1, "b": 2, "alpha": 3}]}')
    with pytest.raises(UsageError, match=r"cannot read .*c\.json: the name 'alpha' occurs twice in one object"):
        read_json_object(file)
    file.write_text('{"a": {"b": 1}, "b": 1}')
    assert read_json_object(file) == {"a": {"b": 1}, "b": 1}
