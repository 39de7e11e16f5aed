"""Every chapter on every form in which FER-2013 is to be had: about an hour, so `make layouts` runs it and `make test` does not."""
from html import escape

import pytest
from layouts import LAYOUTS, drawn

from fer_book import build, datasets

pytestmark = pytest.mark.layouts


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_chapter_runs_and_says_what_the_copy_lacks(tmp_path, monkeypatch, name):
    LAYOUTS[name](tmp_path / "faces", drawn())
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path / "faces"))
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "cache"))
    build.execute_all(build.chapters(), tmp_path / "executed", profile="smoke")
    page = (tmp_path / "executed" / "05_training.ipynb").read_text()
    for key in datasets.load("fer2013").lacks:
        assert escape(datasets.LACKS[key]) in page, f"chapter 5 does not say that the copy lacks {key}"
