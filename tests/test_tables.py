"""CSV tables from users: what spreadsheets write is accepted; errors name file, row and column."""

from pathlib import Path

import pandas as pd
import pytest

from face_attributes.errors import UserError
from face_attributes.photos.tables import read_stage_table, read_text_table

TABLE = Path("table.csv")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(content: str | bytes) -> pd.DataFrame:
    """Read the columns name, age and, if it is there, note."""
    TABLE.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_text_table(TABLE, ["name", "age"], ["note"])


def test_requested_columns_are_text_and_missing_optional_ones_empty() -> None:
    table = read("other,age,name\nx,007,Ann\n")
    assert table.to_dict("list") == {"name": ["Ann"], "age": ["007"], "note": [""]}


def test_a_spreadsheets_table_is_accepted() -> None:
    """It has a byte-order mark, Windows line endings, and empty cells and rows at the end."""
    table = read(b'\xef\xbb\xbfname,age,note,,\r\n Ann , 25,"a, ""b""" ,,\r\n,,,,\r\n')
    assert table.to_numpy().tolist() == [["Ann", "25", 'a, "b"']]


def test_rows_are_numbered_as_in_a_text_editor() -> None:
    table = read('name,age,note\nAnn,25,"two\nlines"\n\nBen,30,x\n')
    assert table.index.to_list() == [2, 5]


def test_a_quote_inside_a_text_is_text() -> None:
    assert read('name,age,note\nAnn,25,6" hat\nBen,30,x\n')["note"].to_list() == ['6" hat', "x"]


@pytest.mark.parametrize("row_below", ["Ben,30,x", 'Ben,30,"x"'])
def test_an_unclosed_quote_is_an_error_and_does_not_swallow_the_rows_below(row_below: str) -> None:
    with pytest.raises(UserError, match=r"^table.csv, row 2: .*: put the whole text in double"):
        read(f'name,age,note\nAnn,25,"seen\n{row_below}\n')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "table.csv is empty: its first line must name name, age"),
        ("name,sex\n", "table.csv has no column 'age'; it has name, sex"),
        ("name,age,name\n", "table.csv has more than one column 'name'"),
        ("name,age\nAnn,25\nBen,30,a, b\n", "table.csv, row 3 has more cells than the header: put"),
        ("name,age\nJürgen,25\n".encode("utf-16"), "table.csv is not UTF-8: save it as UTF-8"),
        ("name,age\nAnn,25\n".encode("utf-16-le"), "table.csv, row 1 has a null character: save"),
        ("name;age\nAnn;25\n", "no column 'name'; it has name;age: separate columns by commas"),
        ("name\tage\n", "no column 'name'; it has name\\tage: separate columns by commas"),
    ],
)
def test_an_invalid_table_is_an_error(content: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(content)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_or_a_folder_is_an_error() -> None:
    with pytest.raises(UserError, match="table.csv is missing: create it"):
        read_text_table(TABLE, ["name"])
    with pytest.raises(UserError, match="table.csv is missing: `dvc repro` makes it"):
        read_stage_table(TABLE)
    TABLE.mkdir()
    with pytest.raises(UserError, match="table.csv is not a file"):
        read_text_table(TABLE, ["name"])


def test_names_in_tables_of_stages_stay_text() -> None:
    TABLE.write_text("person,photo,label\n007,NA,3\n")
    assert read_stage_table(TABLE).iloc[0].to_list() == ["007", "NA", 3]
