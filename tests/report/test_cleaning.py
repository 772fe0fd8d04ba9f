"""What cleaning has found, in the report of a run."""

import json

import pytest

from detectkit.pipeline.products import Product, Role, to_json
from detectkit.report import write_report


@pytest.fixture
def run(tmp_path):
    """A run that has cleaned its data, and nothing else yet."""
    folder = tmp_path / "run"
    (folder / "clean").mkdir(parents=True)
    product = Product("clean", "Data cleaning", Role.FINDINGS, str(folder / "clean" / "cleaning.json"))
    content = {"products": to_json([product], folder), "stages": []}
    (folder / "run.json").write_text(json.dumps(content))
    return folder


def test_a_run_without_findings_has_no_section(run):
    assert 'id="cleaning"' not in write_report(run).read_text()


def test_kinds_pictures_and_the_way_to_the_page(run):
    found = {
        "images": 40,
        "kinds": [["outside", "Boxes outside the image", 3]],
        "first": ["<figure>x</figure>"],
    }
    (run / "clean" / "cleaning.json").write_text(json.dumps(found))
    page = write_report(run).read_text()
    section = page[page.index('id="cleaning"') :]
    assert "<td>Boxes outside the image</td><td>3</td>" in section
    assert '<a href="clean/cleaning.html">' in section and "<figure>x</figure>" in section


@pytest.mark.parametrize(
    "content", ["", "[]", '{"kinds": 3, "first": "x"}', '{"images": 3, "kinds": [[1], 2]}']
)
def test_a_damaged_file_stops_nothing(run, content):
    (run / "clean" / "cleaning.json").write_text(content)
    assert write_report(run).exists()
