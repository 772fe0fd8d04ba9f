"""Pages of HTML."""

import base64
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from detectkit import page


class Reader(HTMLParser):
    """What a browser makes of a page: the tags still open, and the texts by their tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.sources = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))


TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


@given(TEXT, TEXT, TEXT)
def test_what_is_written_is_what_is_read_and_never_a_tag(title, name, cell):
    read = Reader(page.page(title, page.heading(name), page.paragraph(cell), page.table([name], [[cell]])))
    assert read.open == []
    texts = [entry for entry in read.texts if entry[0] != "style"]
    assert [text for _, text in texts] == [title, title, name, cell, name, cell]
    assert [tag for tag, _ in texts] == ["title", "h1", "h2", "p", "th", "td"]


def test_pictures_are_inside_the_page():
    read = Reader(page.page("runs", page.pictures([(b"\x89PNG", 'the "best" <run>')])))
    assert read.sources == ["data:,", "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]
    assert ("figcaption", 'the "best" <run>') in read.texts and read.open == []


def test_a_jpeg_says_that_it_is_one():
    assert 'src="data:image/jpeg;base64,/9g=" alt="a dog"' in page.picture(b"\xff\xd8", "found", alt="a dog")


@given(TEXT, TEXT)
def test_contents_name_every_section(first, second):
    sections = [page.Section("a", first, page.paragraph(second)), page.Section("b", second, "")]
    read = Reader(page.page("run", page.paragraph("lead", style="lead"), sections=sections))
    assert read.open == [] and read.sources == ["data:,", "#a", "#b"]
    shown = [entry for entry in read.texts if entry[0] in ("a", "h2", "p")]
    assert shown == [("a", first), ("a", second), ("p", "lead"), ("h2", first), ("p", second), ("h2", second)]


@given(TEXT)
def test_only_what_is_html_is_not_escaped(text):
    parts = [page.joined(page.swatch("s0"), text), page.marked(text, "bad"), page.lines(text, text)]
    read = Reader(page.table(["", "note"], [parts], text=[1]) + page.folded(text, page.code([text, "b"])))
    assert read.open == []
    assert [content for _, content in read.texts if content != "note"] == [text] * 5 + [f"{text}\nb"]


def test_colours_of_the_page_and_of_pictures():
    assert 'style="background:var(--s3)"' in page.swatch("s3")
    assert 'style="background:#ff6a00"' in page.swatch("#ff6a00")
