"""Tables as the programs write that people have."""

import pytest

from app.csvtable import read_table

TOO_MANY = "it has 3 cells, the first line has 2; put a text that has a {} in quotation marks"


@pytest.mark.parametrize(
    ("content", "names", "rows"),
    [
        ("", [], []),
        ("Id,Text\n1,a\n", ["Id", "Text"], [(2, ["1", "a"])]),
        ("id;text\n1;a, b\n\n2\n", ["id", "text"], [(2, ["1", "a, b"]), (3, ["2"])]),
        ("id\ttext\n1\ta;b\n", ["id", "text"], [(2, ["1", "a;b"])]),
        ("id,text,,\n1,,,\n", ["id", "text"], [(2, ["1", ""])]),
        ("id,text\n1,a,b\n", ["id", "text"], [(2, TOO_MANY.format("comma"))]),
        ("id;text\n1;a;b\n", ["id", "text"], [(2, TOO_MANY.format("semicolon"))]),
        ("text,,\nOne, two.,,\n", ["text"], [(2, ["One, two."])]),
    ],
)
def test_the_names_and_the_cells_of_a_table(content, names, rows):
    table = read_table(content)
    assert (table.names, list(table.rows)) == (names, rows)


def test_a_cell_may_be_longer_than_pythons_reader_takes():
    assert [len(cells[0]) for _, cells in read_table("text\n" + "x" * 300_000).rows] == [300_000]
