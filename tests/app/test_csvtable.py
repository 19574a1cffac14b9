"""Tables as the programs write that people have."""

import pytest

from app.csvtable import Unclosed, read_table

TOO_MANY = "it has 3 cells, the first line has 2; put a text that has a {} in quotation marks"


@pytest.mark.parametrize(
    ("content", "names", "rows"),
    [
        ("", [], []),
        ("Id,Text\n1,a\n", ["Id", "Text"], [(2, ["1", "a"])]),
        ("id;text\n1;a, b\n\n2\n", ["id", "text"], [(2, ["1", "a, b"]), (4, ["2"])]),
        ("id\ttext\n1\ta;b\n", ["id", "text"], [(2, ["1", "a;b"])]),
        ("id,text,,\n1,,,\n", ["id", "text"], [(2, ["1", ""])]),
        ("id,text\n1,a,b\n", ["id", "text"], [(2, TOO_MANY.format("comma"))]),
        ("id;text\n1;a;b\n", ["id", "text"], [(2, TOO_MANY.format("semicolon"))]),
        ("text,,\nOne, two.,,\n", ["text"], [(2, ["One, two."])]),
        ('\nid,text\r\n\r\n1,"a\r\nb"\r\n2,c', ["id", "text"], [(4, ["1", "a\r\nb"]), (6, ["2", "c"])]),
        ("sep=;\nid;text\n1;a, b\n", ["id", "text"], [(3, ["1", "a, b"])]),
        ('"SEP=|"\r\nid|text\r\n1|a, b|\r\n2|a|b\r\n', ["id", "text"], [(3, ["1", "a, b"]), (4, TOO_MANY.format("|"))]),
        ("sep=\t\n", [], []),
        ("sep=;x\na\n", ["sep=", "x"], [(2, ["a"])]),
        ('text\n"a"b"\n"c ""d"""', ["text"], [(2, ['ab"']), (3, ['c "d"'])]),
    ],
)
def test_the_names_and_the_cells_of_a_table(content, names, rows):
    table = read_table(content)
    assert (table.names, list(table.rows)) == (names, rows)


def test_a_cell_may_be_longer_than_pythons_reader_takes():
    assert [len(cells[0]) for _, cells in read_table("text\n" + "x" * 300_000).rows] == [300_000]


@pytest.mark.parametrize(
    ("content", "line"),
    [('id,text\n\n1,"a\nb"\n2,"c\n3,d\n4,e\n', 5), ('text\n"a', 2), ('text\n"a\n', 2), ('id,"text\n1,a\n', 1), ('text\n"a ""b""', 2)],
)
def test_a_quotation_mark_that_nothing_closes_is_told_by_its_line(content, line):
    with pytest.raises(Unclosed, match=f"^line {line}: a quotation mark opens a cell and none closes it$"):
        list(read_table(content).rows)
