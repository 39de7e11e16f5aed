"""Training and every chapter on every form in which FER-2013 is to be had. The chapters take an hour: `make layouts`, not `make test`."""
import json
from html import escape

import pytest
from layouts import LAYOUTS, drawn

from fer_book import build, datasets, training


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path, monkeypatch) -> tuple[str, ...]:
    """One layout as the data folder; what it lacks."""
    LAYOUTS[request.param](tmp_path / "faces", drawn(300))
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path / "faces"))
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "cache"))
    return datasets.load("fer2013").lacks


@pytest.mark.parametrize("recipe", [
    dict(), dict(crowd_share=0.5), dict(target="vad", loss="l2+l1", dataset="fer2013"), dict(dataset="ferplus")], ids=str)
def test_every_kind_of_recipe_trains(layout, tmp_path, recipe):
    plain = training.Recipe(name="tried", model="fer_book.training:PixelRegression", epochs=2, batch_size=64, **recipe)
    if recipe.get("dataset") == "ferplus" and "votes" in layout:
        with pytest.raises(datasets.DataError, match="no FER\\+ votes"):
            training.fit(plain, "cpu", out=tmp_path / "runs", report=lambda row: None)
        return
    done = training.fit(plain, "cpu", out=tmp_path / "runs", report=lambda row: None)
    told = json.loads((done.path / "run.json").read_text())
    assert done.complete and told["data"]["lacks"] == list(layout)
    assert told["data"]["n_train"] and told["data"]["n_valid"] and told["data"]["n_test"]


@pytest.mark.layouts
def test_every_chapter_runs_and_says_what_the_copy_lacks(layout, tmp_path):
    build.execute_all(build.chapters(), tmp_path / "executed", profile="smoke")
    page = (tmp_path / "executed" / "05_training.ipynb").read_text()
    for key in layout:
        assert escape(datasets.LACKS[key]) in page, f"chapter 5 does not say that the copy lacks {key}"
