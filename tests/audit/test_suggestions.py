"""Labels that a network contradicts: here one that knows its pictures by heart, and labels that are changed behind its back."""

import shutil

import pytest

from detectkit import spec
from detectkit.audit.gather import gather
from detectkit.audit.look import look
from detectkit.audit.page import write_page
from detectkit.predict import load_model
from tests.conftest import EXPORT


@pytest.fixture
def place(tiny_root, tmp_path):
    shutil.copytree(tiny_root / "kitti", tmp_path / "kitti")
    return tmp_path


@pytest.fixture
def suggest(place, learnt):
    def found(**fields):
        gathered = gather(spec.loads(EXPORT.replace("ROOT", str(place))))
        classes = {"square": "square", "bar": "bar"}
        config = spec.DataCleaningConfig(near_duplicate_distance=0, **fields)
        return gathered, look(gathered._replace(classes=classes), config, load_model(learnt, "cpu"))

    return found


def lines(place, name):
    path = place / "kitti" / "label_2" / f"{name}.txt"
    return path, path.read_text().splitlines()


def change(place, name, edit):
    path, rows = lines(place, name)
    path.write_text("\n".join(edit(rows)) + "\n")
    return rows


def test_labels_that_are_right_are_not_contradicted(suggest):
    _, found = suggest()
    assert found == []


def test_a_missing_label_is_suggested_where_it_was(place, suggest):
    rows = change(place, "003", lambda rows: rows[1:])
    gathered, found = suggest()
    assert [(item.kind, str(item.correction)) for item in found] == [("missing_label", "add label")]
    (item,) = found
    assert item.name == rows[0].split()[0] and item.image.endswith("003.png")
    assert item.box == pytest.approx([float(side) for side in rows[0].split()[4:8]], abs=4)
    page = write_page(place, gathered.images, found).read_text()
    assert page.count("<img ") == 1 and "http" not in page


def test_a_wrong_class_is_offered_the_right_one(place, suggest):
    swap = {"square": "bar", "bar": "square"}

    def edit(rows):
        name, rest = rows[0].split(" ", 1)
        return [f"{swap[name]} {rest}", *rows[1:]]

    rows = change(place, "003", edit)
    _, found = suggest()
    assert [(item.kind, item.line) for item in found] == [("wrong_class", 1)]
    assert str(found[0].correction) == f"rename to {rows[0].split()[0]}"


def test_a_badly_placed_box_is_offered_another(place, suggest):
    def edit(rows):
        columns = rows[0].split()
        width = float(columns[6]) - float(columns[4])
        columns[4], columns[6] = (str(float(columns[at]) + 0.3 * width) for at in (4, 6))
        return [" ".join(columns), *rows[1:]]

    rows = change(place, "003", edit)
    _, found = suggest()
    (item,) = [item for item in found if item.kind == "badly_placed_box"]
    assert item.line == 1
    assert item.correction.box == pytest.approx([float(side) for side in rows[0].split()[4:8]], abs=4)


@pytest.mark.spec_field("DataCleaningConfig.max_suggestions")
def test_the_surest_suggestions_are_listed(place, suggest):
    for name in ("003", "004", "005"):
        change(place, name, lambda rows: rows[1:])
    _, found = suggest()
    assert len(found) == 3
    _, few = suggest(max_suggestions=2)
    assert few == found[:2]


def test_an_image_that_cannot_be_read_shifts_no_suggestion(place, suggest):
    (place / "kitti" / "image_2" / "001.png").write_bytes(b"")
    cut = place / "kitti" / "image_2" / "002.png"
    cut.write_bytes(cut.read_bytes()[:-200])  # its header is sound
    change(place, "003", lambda rows: rows[1:])
    _, found = suggest()
    assert [item.image[-7:] for item in found if item.kind == "missing_label"] == ["003.png"]
    assert sorted(item.image[-7:] for item in found if item.kind == "unreadable_image") == [
        "001.png",
        "002.png",
    ]
