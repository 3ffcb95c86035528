"""The line that a message names is the line of the key."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_simulator.toml_file import load_toml


def test_keys_tables_and_arrays_of_tables_have_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        '# head\n"quoted key" = 1\n'  # 2
        'text = """\n[not.a.table]\nkey = 2\n"""\n'  # 3
        "list = [\n  1,  # ]\n  { x = 1 },\n]\n"  # 7
        "[table]  # comment\nx.y = 1\n"  # 11, 12
        "[[item]]\na = 1\n[[item]]\na = ']'\n[item.sub]\nb = '''\nc = 1'''\nd = 2\n"  # 13 to 20
    )
    top = load_toml(file)
    assert top.line("quoted key") == 2
    assert top.line("text") == 3
    assert top.line("list") == 7
    assert top.table("table").line() == 11
    assert top.table("table").line("x", "y") == 12
    first, second = top.tables("item")
    assert (first.line(), first.line("a"), second.line(), second.line("a")) == (13, 14, 15, 16)
    assert (second.line("sub"), second.line("sub", "b"), second.line("sub", "d")) == (17, 18, 20)
    assert top.line("list", 1, "x") == 7  # inside a value: the line where it begins
    assert top.line("nowhere") == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tables=st.lists(
        st.tuples(
            st.sampled_from(["[[group]]", "[[other]]"]),
            st.lists(
                st.sampled_from(["# note", "", "v = '''\n]\n'''", "w = [\n1,\n2]", "u = {a = 1}"]),
                unique=True,
            ),
        ),
        max_size=6,
    ),
    has_windows_ends=st.booleans(),
)
def test_lines_are_right_whatever_stands_between(
    tables: list[tuple[str, list[str]]], has_windows_ends: bool, tmp_path: Path
) -> None:
    lines: list[str] = []
    expected: list[tuple[str, int, int]] = []
    counts: dict[str, int] = {}
    for header, between in tables:
        name = header.strip("[]")
        lines.append(header)
        for text in between:
            lines += text.split("\n")
        lines.append("key = 1")
        expected.append((name, counts.setdefault(name, 0), len(lines)))
        counts[name] += 1
    end = "\r\n" if has_windows_ends else "\n"
    file = tmp_path / "a.toml"
    file.write_bytes(end.join(lines).encode())
    top = load_toml(file)
    for name, number, line in expected:
        assert top.tables(name)[number].line("key") == line
