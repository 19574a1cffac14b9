"""A file is read line by line, in chunks of any size, and what is wrong with it is said with the number of the line."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.check import MAX_PROBLEMS, Check
from jobs.reading import raw_lines

MAX_BYTES = 200


async def chunks_of(data, size):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read(data, size=7, max_lines=100):
    check = Check("/v1/score", max_lines, MAX_BYTES)
    asyncio.run(check.read(chunks_of(data, size)))
    return check


def row(**changes):
    request = {"custom_id": "a", "method": "POST", "url": "/v1/score", "body": {"text": "hi"}, **changes}
    return json.dumps({name: value for name, value in request.items() if value is not ...}).encode() + b"\n"


@pytest.mark.parametrize(
    ("data", "code", "line", "said"),
    [
        (b"", "empty_file", None, "no lines"),
        (b"\n \n", "empty_file", None, "no lines"),
        (row() + b"%PDF-1.7\n", "invalid_json_line", 2, "not JSON"),
        (row() + b"\xff\xfe\n", "invalid_json_line", 2, "not JSON"),
        (b"[" * 150 + b"\n", "invalid_json_line", 1, "not JSON"),
        (b"[1]\n", "invalid_json_line", 1, "object"),
        (row(custom_id="\ud800"), "invalid_json_line", 1, "no Unicode"),
        (row(body={"text": "a \ud83d b"}), "invalid_json_line", 1, "no Unicode"),
        (row(**{"\ud800": 1}), "invalid_json_line", 1, "no Unicode"),
        (row().replace(b"hi", b"\xed\xa0\x80"), "invalid_json_line", 1, "no Unicode"),
        (row(body={"text": "hi", "x": float("nan")}), "invalid_json_line", 1, "NaN"),
        (row(body={"text": "hi", "seed": -float("inf")}), "invalid_json_line", 1, "Infinity"),
        (row().replace(b'"hi"', b"1e999"), "invalid_json_line", 1, "too large"),
        (row(method="GET"), "invalid_method", 1, "POST"),
        (row(url="/v1/completions"), "invalid_url", 1, "/v1/score"),
        (row(url=...), "missing_required_parameter", 1, "'url'"),
        (row(extra=1), "unknown_parameter", 1, "'extra'"),
        (row(custom_id=""), "invalid_custom_id", 1, "1 to 512"),
        (row(custom_id=7), "invalid_custom_id", 1, "text"),
        (row() + b"\n" + row(), "duplicate_custom_id", 3, "line 1"),
        (row(body="hi"), "invalid_body", 1, "object"),
        (row(body={"text": "hi", "stream": True}), "invalid_body", 1, "stream"),
        (row(body={"text": "x" * MAX_BYTES}), "line_too_long", 1, "200 bytes"),
        (b"x" * 1000, "line_too_long", 1, "200 bytes"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(data, code, line, said):
    problem = read(data).problems[0]
    assert (problem.code, problem.line) == (code, line) and said in problem.message


def test_every_wrong_line_is_named_up_to_a_bound():
    data = b"".join(row(custom_id=str(n), method="PUT") for n in range(5))
    assert [problem.line for problem in read(data).problems] == [1, 2, 3, 4, 5]
    assert len(read(b"x\n" * 500, max_lines=1000).problems) == MAX_PROBLEMS


def test_too_many_lines_end_the_reading():
    problem = read(b"".join(row(custom_id=str(n)) for n in range(6)), max_lines=5).problems[0]
    assert (problem.code, problem.line) == ("too_many_lines", 6)


def test_the_model_is_that_of_the_first_line_that_names_one():
    assert read(row() + row(custom_id="b", body={"model": "m"}) + row(custom_id="c", body={"model": "n"})).model == "m"


@given(
    lines=st.lists(
        st.binary(max_size=20).filter(lambda line: b"\n" not in line and line.strip() == line and line and line[:3] != b"\xef\xbb\xbf")
    ),
    size=st.integers(1, 30),
    ending=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_lines_are_the_same_in_chunks_of_any_size(lines, size, ending):
    async def collect():
        return [found async for found in raw_lines(chunks_of(data, size), MAX_BYTES)]

    data = ending.join(lines) + (ending if lines else b"")
    found = asyncio.run(collect())
    assert [each.text for each in found] == lines
    start = 0
    for each, text in zip(found, lines, strict=True):
        assert data[start : each.end].strip() == text  # so that a part of the file holds exactly its lines
        start = each.end


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_line():
    assert not read(b"\xef\xbb\xbf" + row()).problems


def test_a_character_may_be_written_in_two_halves():
    assert not read(row(custom_id="\U0001f600", body={"text": "\u2028"})).problems and b"\\ud83d\\ude00" in row(custom_id="\U0001f600")
