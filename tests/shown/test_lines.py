"""Cutting, columns and units."""

import pytest

from reconsup.shown.lines import Column, Piece, Style, cut, facts, line, mebibytes, span, table, text


def plain(*lines: tuple[Piece, ...]) -> list[str]:
    return [text(each, is_colored=False) for each in lines]


@pytest.mark.parametrize(
    ("width", "shown"), [(11, "hello world"), (10, "hello wor…"), (6, "hello…"), (1, "…"), (0, "")]
)
def test_what_is_too_long_is_cut_and_says_so(width: int, shown: str) -> None:
    assert plain(cut(line(Piece("hello", Style.BAD), " ", "world"), width)) == [shown]


def test_the_least_important_columns_go_first_and_those_that_say_nothing_at_once() -> None:
    columns = [Column("a"), Column("bb", 2), Column("cc", 1, is_right=True), Column("dd", 2), Column("ee", 1)]
    rows = [[Piece(each) for each in row] for row in (("1", "2", "3", "4", "–"), ("1", "2", "33", "4", ""))]

    shown = [plain(*table(columns, rows, width))[0] for width in (13, 12, 8, 5, 3, 1)]

    assert shown == ["a  bb  cc  dd", "a  bb  cc", "a  cc", "a  cc"[:5], "a", "a"]
    assert plain(*table(columns, rows, 80))[1] == "1  2    3  4"
    assert table(columns, [], 80) == []


def test_facts_show_as_much_as_fits() -> None:
    pairs = [("one", [Piece("first"), Piece("second")]), ("nothing", []), ("other", [Piece("x")])]

    assert plain(*facts(pairs, 80)) == ["one    first  second", "other  x"]
    assert plain(*facts(pairs, 16)) == ["one    first…", "other  x"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (-3, "0.0 s"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99, "99 s"), (101, "2 min"),
     (5999, "100 min"), (6001, "2 h"), (172_000, "48 h"), (172_801, "2 d"), (1e9, "11574 d")],
)  # fmt: skip
def test_times_are_short(seconds: float | None, shown: str) -> None:
    assert span(seconds) == shown


def test_memory_is_short() -> None:
    assert [mebibytes(each) for each in (None, 0, 88 << 20)] == ["–", "0 MiB", "88 MiB"]
