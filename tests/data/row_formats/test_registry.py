"""Row formats by name: their options, their columns, and those of other packages."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from automixalign.config.data import FormatSpec, SourceSpec
from automixalign.data.row_formats.registry import check_columns, make_format, registered_formats
from automixalign.data.row_formats.row_format import RowFormat
from automixalign.system.errors import ConfigError
from tests.system.packages import Package

_CODE = """
from automixalign.data.row_formats.row_format import RowFormat, messages, reply


class Duel(RowFormat):
    winner: str = "left"
    columns = ("question", "left", "right")

    def read(self, row, draw):
        loser = "right" if self.winner == "left" else "left"
        sides = {"chosen": reply(row[self.winner]), "rejected": reply(row[loser])}
        return {"prompt": messages(row["question"]), **sides}


def no_format(row):
    return row
"""


def format_of(name: str, **options: object) -> RowFormat:
    return make_format(FormatSpec.model_validate({"name": name, **options}))


def source(**keys: object) -> SourceSpec:
    return SourceSpec.model_validate({"path": "pairs.jsonl", **keys})


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"'trll' .did you mean 'trl'.*; there are: alpaca, chat, .*, trl, ultrafeedback$"
    ):
        format_of("trll")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("orca", {"min_gap": 1}, "row format orca: min_gap: unknown key"),
        ("ratings", {"rejected": "best"}, "row format ratings: rejected: .*'worst' or 'random'"),
        ("ratings", {"min_gap": -1}, "row format ratings: min_gap: "),
        ("helpsteer3", {"min_strength": 4}, "row format helpsteer3: min_strength: "),
        ("helpsteer3", {"min_strength": True}, "row format helpsteer3: min_strength: "),
        ("pku-saferlhf", {"label": "better"}, "row format pku-saferlhf: label: "),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        format_of(name, **options)


def test_columns_of_the_format_pass() -> None:
    check_columns(source(format="ratings", columns={"ratings": "all_rm_scores", "generations": "outputs"}))


def test_a_column_that_the_format_does_not_read_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^columns\.query: the row format orca .*; it reads: prompt, question, input"
    ):
        check_columns(source(format="orca", columns={"query": "text"}))


def test_columns_that_only_tell_layouts_apart_cannot_be_mapped() -> None:
    with pytest.raises(
        ConfigError, match=r"^columns\.question: the row format trl .*; it reads: prompt, chosen, "
    ):
        check_columns(source(format="trl", columns={"question": "text"}))


def test_columns_without_a_format_are_those_of_chat() -> None:
    with pytest.raises(ConfigError, match=r"^columns\.question: the row format chat "):
        check_columns(source(columns={"question": "text"}))


@pytest.mark.parametrize("name", sorted(registered_formats()))
def test_optional_columns_are_columns(name: str) -> None:
    row_format = registered_formats()[name]
    assert set(row_format.optional) <= set(row_format.columns)
    assert len(set(row_format.columns)) == len(row_format.columns)


@pytest.fixture
def install(own_plugins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package that declares an item of its module as a row format."""
    package = Package(tmp_path, monkeypatch, "duels", _CODE)

    def declare(item: str, name: str = "duel") -> None:
        package.declare("automixalign.row_formats", name, item)
        registered_formats.cache_clear()

    return declare


def test_a_package_adds_a_format_with_options(install: Callable[..., None]) -> None:
    install("Duel")
    fields = format_of("duel", winner="right").read({"question": "?", "left": "a", "right": "b"}, random.Random)
    assert [fields[side][0]["content"] for side in ("prompt", "chosen", "rejected")] == ["?", "b", "a"]


@pytest.mark.parametrize(
    ("item", "problem"),
    [("Missing", "no attribute 'Missing'"), ("no_format", "it is no subclass of RowFormat")],
)
def test_a_format_that_cannot_be_loaded_is_named(install: Callable[..., None], item: str, problem: str) -> None:
    install(item)
    with pytest.raises(ConfigError, match=rf"'duel' cannot be loaded from .*:{item}: .*{problem}.*uninstall"):
        registered_formats()


def test_a_package_cannot_take_the_name_of_a_format(install: Callable[..., None]) -> None:
    install("Duel", name="orca")
    with pytest.raises(
        ConfigError, match=r"'orca' cannot be loaded from .*defined twice: in .*\.orca and duels_pac"
    ):
        registered_formats()
