"""Groups of options: a parameter of a command that is several options, in a panel of the help."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from maskmill.engine.cli.options.groups import OptionGroup, with_options

SideOption = Annotated[int, typer.Option("--side", min=1, help="Side of a tile.")]


@dataclass(frozen=True, kw_only=True)
class TileGroup(OptionGroup):
    panel: ClassVar = "Tiles"
    side: SideOption = 512
    name: Annotated[str, typer.Option(help="Name of the grid.")]


@dataclass(frozen=True, kw_only=True)
class LimitGroup(OptionGroup):
    panel: ClassVar = "Limits"
    limit: Annotated[int, typer.Option(help="Most images.")] = 3


def cut(source: str, tiles: TileGroup, loud: Annotated[bool, typer.Option("--loud", help="Say more.")] = False) -> None:
    typer.echo(f"{source} {tiles} {loud}")


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(with_options(cut, LimitGroup, lambda group: nullcontext(typer.echo(f"{group}"))))
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    return result.output


def test_a_command_receives_the_options_of_a_group_as_one_object() -> None:
    expected = "LimitGroup(limit=5)\nphotos TileGroup(side=64, name='a b') True\n"
    assert run("photos", "--side", "64", "--name", "a b", "--loud", "--limit", "5") == expected


def test_options_have_the_defaults_of_the_group() -> None:
    assert "TileGroup(side=512, name='a')" in run("photos", "--name", "a")


def test_an_option_without_a_default_is_required() -> None:
    assert "Missing option '--name'" in run("photos")


def test_the_help_has_a_panel_per_group() -> None:
    text = run("--help")
    tiles, limits = text.index("─ Tiles ─"), text.index("─ Limits ─")
    assert tiles < text.index("--side") < limits < text.index("--limit")


def test_a_group_leaves_the_shared_option_as_it_is() -> None:
    run("photos", "--name", "a")
    assert SideOption.__metadata__[0].rich_help_panel is None  # type: ignore[attr-defined]


def test_two_groups_cannot_have_the_same_option() -> None:
    def twice(first: TileGroup, second: TileGroup) -> None: ...

    twice.__annotations__ = {"first": TileGroup, "second": TileGroup}
    with pytest.raises(ValueError, match="side"):
        with_options(twice, LimitGroup, nullcontext)
