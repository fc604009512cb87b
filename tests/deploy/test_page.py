"""A page of answers stands alone, shows what there is, and takes names for text."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from d3still.deploy import Match, write_page
from d3still.deploy.page import THUMBNAIL
from d3still.errors import UserError
from tests.deploy.small import picture, save_pictures


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.text, self.open = [], [], "", []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "well formed"

    def handle_data(self, data):
        self.text += data


def parsed(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    assert not tags.open
    return tags


def test_page_with_thumbnails(tmp_path):
    paths = [str(path) for path in save_pictures(tmp_path, 4)]
    answers = [[Match(0.9, paths[1], "7"), Match(0.25, paths[2], None)], [Match(-0.1, paths[3], "0", (5, 5, 25, 20))]]
    write_page(tmp_path / "page.html", [paths[0], paths[1]], answers, "two queries")
    page = parsed(tmp_path / "page.html")
    assert page.tags.count("img") == 5 and page.tags.count("section") == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources), "nothing beside it is needed"
    for shown in ("two queries", "1. 0.9000", "2. 0.2500", "1. -0.1000", "identity 7", "identity 0", *paths):
        assert shown in page.text
    sizes = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size for source in page.sources]
    assert sizes[0] == (40, 30) and sizes[-1] == (20, 15), "a boxed answer shows the box"


def test_large_images_become_small(tmp_path):
    Image.fromarray(picture(1, (900, 600))).save(tmp_path / "a.png")
    write_page(tmp_path / "page.html", [str(tmp_path / "a.png")], [[]], "t")
    source = parsed(tmp_path / "page.html").sources[0]
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert image.size == (round(THUMBNAIL * 2 / 3), THUMBNAIL)


def test_names_are_text_and_never_markup(tmp_path):
    name = "<img src=x onerror=alert(1)>&\"'.png"
    (path,) = save_pictures(tmp_path, 1)
    path = path.rename(tmp_path / name.replace("/", ""))
    write_page(tmp_path / "page.html", [str(path)], [[Match(1.0, str(path), "<script>alert(1)</script>")]], "<b>&")
    page = parsed(tmp_path / "page.html")
    own = "html head meta title style body h1 section div figure img figcaption b br ol li"
    assert set(page.tags) <= set(own.split())
    assert page.tags.count("img") == 2 and name in page.text and "<script>alert(1)</script>" in page.text
    assert not re.search(r"<script", (tmp_path / "page.html").read_text(encoding="utf-8"))


def test_names_turn_no_direction_and_hide_nothing(tmp_path):
    """Right-to-left marks and escape codes are shown as they are written."""
    write_page(tmp_path / "page.html", ["/q.png"], [[Match(1.0, "/a\x1b[2Jb.png", "shoe\u202egnp\n7")]], "t\u2066\x07")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a\\x1b[2Jb.png" in text and "identity shoe\\u202egnp\\n7" in text and "t\\u2066\\x07" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_a_picture_that_is_gone_and_a_name_that_is_no_unicode(tmp_path):
    write_page(tmp_path / "page.html", ["/gone.png"], [[Match(0.5, "/\udcff.png", None)]], "t")
    page = parsed(tmp_path / "page.html")
    assert page.text.count("no longer there") == 2 and "img" not in page.tags and "\\udcff.png" in page.text


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_page(tmp_path / "file" / "page.html", [], [], "t")
