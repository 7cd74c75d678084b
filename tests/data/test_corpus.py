"""Records know where they stand; complaints are one line, file:line:field (DESIGN, 5)."""

import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue.data.corpus import DataError, Record, existing_file, read_json, read_json_lines

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
rows = st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=5)


@given(rows, st.booleans())
def test_lines_read_back_as_the_objects_that_were_written(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.mktemp("lines") / "rows.json"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes("\n".join(lines).encode())
    records = list(read_json_lines(path))
    assert [r.value for r in records] == rows
    assert [r.position for r in records] == [str(i + 1) for i in range(len(rows))]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_separator_inside_a_string_ends_no_line(separator, tmp_path):
    path = tmp_path / "rows.json"
    text = f"甲{separator}乙"
    body = json.dumps({"a": text}, ensure_ascii=False) + "\n" + '{"a": "丙"}\n'
    path.write_bytes(body.encode())
    assert [r.value["a"] for r in read_json_lines(path)] == [text, "丙"]


def test_blank_lines_are_passed_over_and_counted(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'{"a": 1}\r\n\n  \n{"a": 2}')
    assert [(r.position, r.value["a"]) for r in read_json_lines(path)] == [("1", 1), ("4", 2)]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert [r.value for r in read_json_lines(path)] == [{"a": 1}]
    assert read_json(path) == {"a": 1}


def test_records_come_one_at_a_time(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\nnot json\n', "utf-8")
    records = read_json_lines(path)
    assert next(records).value == {"a": 1}
    with pytest.raises(DataError):
        next(records)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1', "not JSON at column 8: "),
        (b"[1]", "needs one JSON object a line, got [1]"),
        (b'"\xd6\xd0\xce\xc4"', "byte 1 is not UTF-8; convert the file: iconv -f GB18030"),
    ],
)
def test_a_bad_line_is_named(line, problem, tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        list(read_json_lines(path))
    assert str(caught.value).startswith(f"{path}:3: {problem}")
    assert "\n" not in str(caught.value)


def test_one_json_value_read_as_lines_is_recognised(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"a": 1}\n]\n', "utf-8")
    with pytest.raises(DataError, match="is the file one JSON value instead of one a line"):
        list(read_json_lines(path))


def test_a_bad_json_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "whole.json"
    path.write_text('{"a": 1,\n "b" 2}', "utf-8")
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}:2: not JSON at column 6: Expecting ':' delimiter"


# Files


def test_an_existing_file_is_given_back(tmp_path):
    path = tmp_path / "a.json"
    path.touch()
    assert existing_file(path) == path


def test_a_missing_file_is_answered_with_what_is_there(tmp_path):
    (tmp_path / "b.json").touch()
    (tmp_path / "a.json").touch()
    with pytest.raises(DataError) as caught:
        existing_file(tmp_path / "c.json")
    assert str(caught.value) == (
        f"{tmp_path / 'c.json'}: no such file; {tmp_path} holds a.json, b.json"
    )


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file, and no folder .*nowhere either"):
        existing_file(tmp_path / "nowhere" / "c.json")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        existing_file(tmp_path)


def test_a_zip_under_any_name_is_answered_with_the_command_that_unpacks_it(tmp_path):
    path = tmp_path / "train.json"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")
    with pytest.raises(DataError, match=rf"zip archive; unpack it first: unzip {path} -d "):
        existing_file(path)


# Fields


@pytest.fixture
def record(tmp_path):
    value = {"text": "文", "n": 3, "flag": True, "none": None, "list": [1], "blank": " \u3000"}
    return Record(tmp_path / "rows.json", "7", value)


@pytest.mark.parametrize(
    ("field", "kind", "value"),
    [("text", str, "文"), ("n", int, 3), ("list", list, [1]), ("n", (str, int), 3)],
)
def test_a_field_of_the_stated_type_is_given(field, kind, value, record):
    assert record.get(field, kind) == value


@pytest.mark.parametrize(
    ("field", "kind", "problem"),
    [
        ("gone", str, "field is missing (present: text, n, flag, none, list, blank)"),
        ("n", str, "needs a string, got 3"),
        ("text", int, 'needs an integer, got "文"'),
        ("flag", int, "needs an integer, got true"),
        ("none", (str, int), "needs a string or an integer, got null"),
        ("text", list, 'needs a list, got "文"'),
        ("list", dict, "needs an object, got [1]"),
    ],
)
def test_another_field_is_refused_with_its_address(field, kind, problem, record):
    with pytest.raises(DataError) as caught:
        record.get(field, kind)
    assert str(caught.value) == f"{record.path}:7:{field}: {problem}"


def test_a_text_of_white_space_is_empty(record):
    with pytest.raises(DataError, match="7:blank: text is empty; remove the row or fill it in"):
        record.text("blank")


def test_a_long_value_is_cut_to_fit_the_message(tmp_path):
    record = Record(tmp_path / "rows.json", "1", {"a": ["字" * 1000]})
    with pytest.raises(DataError) as caught:
        record.get("a", str)
    assert str(caught.value).endswith("字…")
    assert len(str(caught.value)) < len(str(tmp_path)) + 120


def test_a_part_knows_its_place(record):
    inner = record.part("list[0]", {"a": 1})
    assert inner.where == f"{record.path}:7.list[0]"
    assert Record(record.path, "", {}).part("data[2]", {}).position == "data[2]"
    with pytest.raises(DataError, match=r":7\.list\[0\]: needs an object, got 1"):
        record.part("list[0]", 1)


def test_half_a_character_is_refused_where_it_stands(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"text": "a"}\n{"text": "\\ud83d x"}\n')
    with pytest.raises(DataError, match=r"a\.json:2: \\ud83d is half a character"):
        list(read_json_lines(path))
    path.write_bytes(b'{"text": "\\ud83d\\ude00 x"}\n')
    assert next(iter(read_json_lines(path))).text("text") == "\U0001f600 x"


def test_a_line_nested_too_deep_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 200_000 + b"\n")
    with pytest.raises(DataError, match=r"a\.json:1: not JSON that can be read: nested too deep"):
        list(read_json_lines(path))
