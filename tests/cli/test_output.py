from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, strategies as st

from prunekit_plugins.cli.output import Output, Table, cost_rows
from prunekit_plugins.reports.collapse import collapse


def test_rows_that_differ_in_one_number_are_joined() -> None:
    rows = [
        ("stem", "3"),
        *((f"layers.{i}.conv{j}", "8") for i in (0, 1, 2, 5) for j in (1, 2)),
        ("layers.9.conv1", "4"),
    ]
    assert collapse(rows) == [
        (1, ("stem", "3")),
        (8, ("layers.{0-2,5}.conv{1-2}", "8")),
        (1, ("layers.9.conv1", "4")),
    ]


def expand(name: str) -> set[str]:
    """All names that a joined one stands for."""
    parts = []
    for part in re.split(r"(\{[^}]*\})", name):
        if part.startswith("{"):
            numbers = []
            for run in part[1:-1].split(","):
                first, _, last = run.partition("-")
                numbers.extend(str(n) for n in range(int(first), int(last or first) + 1))
            parts.append(numbers)
        else:
            parts.append([part])
    return {"".join(choice) for choice in itertools.product(*parts)}


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(0, 3), st.sampled_from("xy")),
        unique_by=lambda row: row[:3],
    )
)
def test_joining_loses_and_invents_nothing(parts: list[tuple[str, int, int, str]]) -> None:
    rows = [(f"{letter}.{i}.block{j}", other) for letter, i, j, other in parts]
    lines = collapse(rows)
    spread = [(name, row[1]) for _, row in lines for name in expand(row[0])]
    assert sorted(spread) == sorted(rows)
    assert [count for count, _ in lines] == [len(expand(row[0])) for _, row in lines]


def test_a_plain_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(Table("costs", ("cost", ">before", ">left"), cost_rows({"macs": (1000, 250)})[0:0]))
    rows = [(name, before, left) for name, before, _, left in cost_rows({"macs": (1000, 250), "none": (0, 0)})]
    Output().table(Table("costs", ("cost", ">before", ">left"), rows))
    assert capsys.readouterr().out.splitlines() == [
        "costs",
        "  cost  before  left",
        "costs",
        "  cost  before   left",
        "  macs   1,000  25.0%",
        "  none       0      -",
    ]


def test_json_output_holds_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.line("for people")
    output.table(Table("t", ("a",), [("b",)]))
    with output.progress("working", 2) as advance, output.working("more"):
        advance()
    output.result({"a": 1})
    assert capsys.readouterr() == ('{\n  "a": 1\n}\n', "")
    Output().result({"a": 1})
    assert capsys.readouterr().out == ""
