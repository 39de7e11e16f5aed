"""Training and every chapter on every form in which FER-2013 is to be had. The chapters take an hour: `make layouts`, not `make test`."""
import json
from dataclasses import replace
from html import escape

import pytest
from layouts import LAYOUTS, drawn

from fer_book import build, datasets, training


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path, monkeypatch) -> tuple[str, ...]:
    """One layout as the data folder; what it lacks."""
    (tmp_path / "faces").mkdir()
    LAYOUTS[request.param](tmp_path / "faces", drawn(120))
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path / "faces"))
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "cache"))
    return datasets.load("fer2013").lacks


def test_every_kind_of_recipe_trains(layout, tmp_path):
    plain = training.Recipe(name="tried", model="fer_book.training:PixelRegression", epochs=1, batch_size=64)
    for changes in (dict(), dict(crowd_share=0.5), dict(target="vad", loss="l2+l1"), dict(dataset="ferplus")):
        recipe = replace(plain, **changes)
        if recipe.dataset == "ferplus" and "votes" in layout:
            with pytest.raises(datasets.DataError, match="no FER\\+ votes"):
                training.fit(recipe, "cpu", out=tmp_path / "runs", report=lambda row: None)
            continue
        done = training.fit(recipe, "cpu", out=tmp_path / "runs", report=lambda row: None)
        told = json.loads((done.path / "run.json").read_text())["data"]
        assert done.complete and told["lacks"] == list(layout) and min(told["n_train"], told["n_valid"], told["n_test"]) > 0


@pytest.mark.layouts
def test_every_chapter_runs_and_says_what_the_copy_lacks(layout, tmp_path):
    build.execute_all(build.chapters(), tmp_path / "executed", profile="smoke")
    page = (tmp_path / "executed" / "05_training.ipynb").read_text()
    for key in layout:
        assert escape(datasets.LACKS[key]) in page, f"chapter 5 does not say that the copy lacks {key}"
