"""The list keeps what a person has decided."""

import csv
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings, strategies

from detectkit.audit.findings import DataFinding, FindingKind
from detectkit.audit.listing import write_list
from detectkit.data.cleaning_list import Correction, Verb, read_list

DROP = Correction(Verb.DROP_LABEL)


def finding(number, kind=FindingKind.OUTSIDE, correction=DROP):
    box = (1.0, 2.0, 30.25, 40.0 + number % 3)
    return DataFinding(kind, f"image_{number // 6}.png", "text", correction, name="rbc", box=box)


def decide(path, decisions):
    rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    at = rows[0].index("decision")
    for row, decision in zip(rows[1:], decisions):
        row[at] = decision
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(rows)


def test_a_new_list_decides_nothing(tmp_path):
    path = tmp_path / "cleaning.csv"
    assert write_list(path, [finding(0), finding(1)]) == 0
    assert [row.correction for row in read_list(path)] == [None, None]


def test_accepted_kinds_are_decided_on_but_for_those_to_look_at(tmp_path):
    path = tmp_path / "cleaning.csv"
    findings = [
        finding(0),
        finding(1, correction=Correction(Verb.LOOK)),
        finding(2, kind=FindingKind.DOUBLED),
    ]
    assert write_list(path, findings, accept={"outside"}) == 1
    assert [row.correction for row in read_list(path)] == [DROP, None, None]


def test_what_is_kept_stays_so_when_its_kind_is_accepted(tmp_path):
    path = tmp_path / "cleaning.csv"
    write_list(path, [finding(0), finding(1)])
    decide(path, ["keep", ""])
    write_list(path, [finding(0), finding(1)], accept={"outside"})
    assert [row.decision for row in read_list(path)] == ["keep", "accept"]


def test_decisions_of_the_list_of_a_conversion_are_kept(tmp_path):
    mine, path = tmp_path / "mine.csv", tmp_path / "cleaning.csv"
    write_list(mine, [finding(0), finding(1)])
    decide(mine, ["keep", "drop image"])
    write_list(path, [finding(1), finding(0)])
    write_list(path, [finding(1), finding(0)], earlier=[mine, tmp_path / "none.csv"])
    assert [row.decision for row in read_list(path)] == ["drop image", "keep"]


def test_a_decision_stays_when_its_finding_is_not_found(tmp_path):
    path = tmp_path / "cleaning.csv"
    write_list(
        path, [finding(0, kind=FindingKind.MISSING, correction=Correction(Verb.ADD_LABEL)), finding(1)]
    )
    decide(path, ["accept", ""])
    for _ in range(2):
        assert write_list(path, [finding(2)]) == 1
        assert [(row.kind, row.correction) for row in read_list(path)] == [
            ("outside", None),
            ("missing_label", Correction(Verb.ADD_LABEL)),
        ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(strategies.data())
def test_decisions_survive_whatever_is_found_later(tmp_path, data):
    """Equal findings, as of a box that is there thrice, have decisions of their own."""
    path = (
        Path(tempfile.mkdtemp(dir=tmp_path)) / "cleaning.csv"
    )  # a list that is there already has decisions of its own
    numbers = data.draw(strategies.lists(strategies.integers(0, 20), max_size=12))
    write_list(path, [finding(number) for number in numbers])
    choices = strategies.sampled_from(["", "keep", "accept", "drop image", "rename to wbc"])
    decisions = [data.draw(choices) for _ in numbers]
    decide(path, decisions)
    later = [*numbers, *data.draw(strategies.lists(strategies.integers(21, 40), max_size=4))]
    write_list(path, [finding(number) for number in data.draw(strategies.permutations(later))])
    key = [(finding(number).image, finding(number).box, text) for number, text in zip(numbers, decisions)]
    left = [(row.image, row.box, row.decision) for row in read_list(path)]
    assert sorted(item for item in left if item[2]) == sorted(item for item in key if item[2])
    Path(path).unlink()
