"""Names that are slips of others."""

from collections import Counter

import pytest

from detectkit.audit.classes import edit_distance, slips


@pytest.mark.parametrize(
    "name", ["Platelets ", "PLATELETS", "Platelet", "Plateltes", "Platletes", "platelets_"]
)
def test_a_slip_is_found(name):
    assert slips(Counter({"Platelets": 300, name: 2}))[name][0] == "Platelets"


@pytest.mark.parametrize(
    "first, other", [("RBC", "WBC"), ("route_1", "route_2"), ("car", "cat"), ("bus", "truck"), ("?", "!")]
)
def test_other_classes_are_no_slips(first, other):
    assert slips(Counter({first: 300, other: 2})) == {}


def test_a_frequent_name_is_no_slip():
    assert slips(Counter({"barrel": 100, "barrels": 20})) == {}


def test_case_alone_is_a_slip_of_the_more_frequent_spelling():
    assert {name: right for name, (right, _) in slips(Counter({"car": 60, "Car": 40})).items()} == {
        "Car": "car"
    }


def test_labels_are_offered_the_right_name(folder):
    folder.add("04", ("Square", 100, 80, 128, 110), ("sqaure", 60, 80, 88, 110))
    found = folder.find()
    assert [(item.line, str(item.correction)) for item in found] == [
        (3, "rename to square"),
        (4, "rename to square"),
    ]


@pytest.mark.parametrize(
    "first, second, wanted", [("", "abc", 3), ("abc", "acb", 1), ("kitten", "sitting", 3)]
)
def test_edit_distance(first, second, wanted):
    assert edit_distance(first, second) == edit_distance(second, first) == wanted
