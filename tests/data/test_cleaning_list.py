"""The list of findings: what is decided in it is done, whatever a spreadsheet made of the file."""

import csv
import io

import pytest
from hypothesis import given, strategies

from detectkit.data.cleaning_list import COLUMNS, Correction, Verb, parse_correction, read_list
from detectkit.data.convert import convert
from detectkit.data.tfrecord import read_records
from detectkit.errors import DataError
from tests.audit.conftest import Folder

HEADER = ",".join(COLUMNS)


@pytest.fixture
def place(tmp_path):
    return Folder(tmp_path / "kitti")


def row(folder, name, label="", box="", suggestion="look", decision="", kind="outside"):
    cells = [kind, str(folder.images / f"{name}.png"), "", "1", label, box, "1.000", suggestion, decision, ""]
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def converted(folder, *rows, encoding="utf-8"):
    """The records by frame name, as a list with these rows makes them."""
    path = folder.root / "cleaning.csv"
    path.write_bytes((HEADER + "\n" + "".join(rows)).encode(encoding))
    summary = convert(folder.export(f'cleaning_file: "{path}"'), str(folder.root / "records" / "all"))
    records = [
        record for fold in summary.folds for shard in fold.shards for record in read_records(str(shard))
    ]
    return {
        record.frame_id.rsplit("/", 1)[-1]: dict(zip(record.names, record.boxes.tolist()))
        for record in records
    }, summary


@pytest.mark.spec_field("DatasetExportConfig.cleaning_file")
def test_decisions_are_carried_out(place, caplog):
    caplog.set_level("INFO", logger="detectkit")
    place.write("01", [("square", 10, 10, 38, 40), ("bar", 60, 60, 100, 76)])
    place.write("02", [("square", 10, 10, 38, 40), ("bra", 60, 60, 100, 76)])
    place.write("03", [("square", 10, 10, 38, 40)])
    found, summary = converted(
        place,
        row(place, "00", suggestion="drop image", decision="accept", kind="exact_duplicate"),
        row(place, "01", "square", "10 10 38 40", "drop label", "accept"),
        row(place, "02", "bra", "60 60 100 76", "rename to bar", "Accept"),
        row(place, "02", "square", "10 10 38 40", "look", "replace box with 12 12 40 42"),
        row(place, "03", "bar", "60 60 100 76", "add label", "accept"),
        row(place, "04", suggestion="drop image"),  # undecided
        row(place, "05", suggestion="drop image", decision="keep"),
    )
    assert len(found) == 39 and "00" not in found and {"04", "05"} <= found.keys()
    assert found["01"] == {"bar": [60, 60, 100, 76]}
    assert found["02"] == {"square": [12, 12, 40, 42], "bar": [60, 60, 100, 76]}
    assert found["03"] == {"square": [10, 10, 38, 40], "bar": [60, 60, 100, 76]}
    reasons = {(reject.file, reject.line, reject.reason) for reject in summary.rejected}
    assert reasons == {
        (str(place.images / "00.png"), None, "exact duplicate: left out by cleaning.csv"),
        (str(place.labels / "01.txt"), 1, "outside: left out by cleaning.csv"),
    }
    told = "1 labels renamed, 1 boxes replaced, 1 labels added, 1 labels left out, 1 images left out"
    assert told in caplog.text


def test_of_two_equal_labels_one_is_dropped(place):
    place.write("01", [("square", 10, 10, 38, 40), ("square", 10, 10, 38, 40)])
    _, summary = converted(place, row(place, "01", "square", "10 10 38 40", "drop label", "accept"))
    assert sum(fold.boxes["square"] for fold in summary.folds) == 40


def test_what_fits_nothing_any_more_is_told_with_its_line(place, caplog):
    found, _ = converted(
        place,
        row(place, "99", suggestion="drop image", decision="accept"),
        row(place, "01", "ball", "1 1 5 5", "drop label", "accept"),
    )
    assert len(found) == 40
    path = place.root / "cleaning.csv"
    assert (
        f"{path}:2: drop image does nothing to {place.images / '99.png'}: no such image is read"
        in caplog.text
    )
    assert (
        f"{path}:3: drop label does nothing to" in caplog.text
        and "no such label ball (1, 1, 5, 5)" in caplog.text
    )


def test_the_data_stay_as_they_are(place):
    before = {path: path.read_bytes() for path in place.root.rglob("*.*") if path.is_file()}
    converted(place, row(place, "00", suggestion="drop image", decision="accept"))
    assert all(path.read_bytes() == content for path, content in before.items())


# Files as tools write them


def rows_of(tmp_path, content):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    return read_list(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark, end", [(b"", "\n"), (b"\xef\xbb\xbf", "\r\n")])
def test_what_spreadsheets_write(tmp_path, separator, mark, end):
    columns = ["Decision", "box", "CLASS", "image", "kind", "suggestion", "mine"]
    cells = ["accept", "1 2 3 4", "Zelle ä", "a b.png", "outside", "drop label", "x"]
    empty = separator * 6
    text = end.join((separator.join(columns), separator.join(cells), empty, ""))
    (found,) = rows_of(tmp_path, mark + text.encode())
    assert (found.name, found.box, found.image) == ("Zelle ä", (1, 2, 3, 4), "a b.png")
    assert found.correction == Correction(Verb.DROP_LABEL) and found.line == 2


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "its first line has no column kind, image"),
        (b"a,b,c\n1,2,3\n", "is no list of `detectkit clean`"),
        ("kind,image,class,box,suggestion,decision\nä".encode("utf-16"), "not text in UTF-8: save it as"),
        (
            HEADER.encode() + b"\nk,i,,,,,1,look,accpet,\n",
            ":2: decision 'accpet' is none; write accept, keep",
        ),
        (
            HEADER.encode() + b"\nk,i,,,,,1,look,accept,\n",
            ":2: decision 'accept': this finding has no correction",
        ),
        (HEADER.encode() + b"\nk,i,,,,,1,look,drop label,\n", "the row has no class and box of a label"),
        (HEADER.encode() + b"\nk,i,,,c,1 2 3,1,look,,\n", ":2: the box '1 2 3' is not X1 Y1 X2 Y2"),
        (HEADER.encode() + b"\nk,i,,,c,1 2 1e400 4,1,look,,\n", "not a finite number"),
        (HEADER.encode() + b"\nk,i,,,c,1 2 3 4,1,look,rename to a\x07b,\n", "control character"),
        (HEADER.encode() + b"\n" + b'k,"' + b"i" * 200_000, "field larger than"),
    ],
)
def test_a_hostile_list_is_one_message(tmp_path, content, told):
    with pytest.raises(DataError) as error:
        rows_of(tmp_path, content)
    assert told in str(error.value) and str(error.value).startswith(str(tmp_path / "list.csv")), error.value
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot read cleaning_file .*: No such file"):
        read_list(tmp_path / "none.csv")


sides = strategies.floats(-1e6, 1e6, allow_nan=False).map(lambda value: float(f"{value:.10g}"))
boxes = strategies.tuples(sides, sides, sides, sides).filter(lambda box: box[0] < box[2] and box[1] < box[3])
names = strategies.text(strategies.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)


@given(
    strategies.sampled_from(
        [Correction(verb) for verb in Verb if verb not in (Verb.RENAME, Verb.REPLACE_BOX)]
    )
    | names.map(lambda name: Correction(Verb.RENAME, name=name))
    | boxes.map(lambda box: Correction(Verb.REPLACE_BOX, box=box))
)
def test_a_correction_is_read_as_it_is_written(correction):
    assert parse_correction(str(correction)) == correction
