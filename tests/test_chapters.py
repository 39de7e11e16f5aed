"""Every chapter runs top to bottom with papermill, on real faces where they are and on drawn ones where not."""
import json
import os

import pytest
from conftest import CHAPTERS

from fer_book import build


@pytest.mark.parametrize("name", [c.stem for c in CHAPTERS])
def test_chapter_runs(executed, name):
    [run] = [r for r in json.loads((executed / "timings.json").read_text()) if r["chapter"] == name]
    assert not run["error"], run["error"]
    assert run["seconds"] < 180
    notebook = json.loads((executed / f"{name}.ipynb").read_text())
    assert notebook["metadata"]["papermill"]["parameters"] == {"profile": "smoke"}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", f"cell {cell['id']} warns: {''.join(output['text'])[:500]}"


def test_chapter_says_when_faces_are_drawn(tmp_path, monkeypatch):
    monkeypatch.delenv("FER_BOOK_DATA", raising=False)
    build.execute_all([build.find_chapter("03")], tmp_path, profile="smoke")
    assert "Drawn faces" in (tmp_path / "03_datasets.ipynb").read_text()


def test_unknown_parameter_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"03_datasets.ipynb has no parameter 'profle'; its parameters are profile"):
        build.execute_all([build.find_chapter("03")], tmp_path, profle="smoke")
    assert not list(tmp_path.iterdir())


def small_book(folder, source: str):
    """A book of one chapter whose only code is `source`."""
    from nbformat import v4, write

    (folder / "chapters").mkdir(parents=True)
    (folder / "data" / "claims").mkdir(parents=True)
    parameters = v4.new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]})
    notebook = v4.new_notebook(cells=[parameters, v4.new_code_cell(source)], metadata={"language_info": {"name": "python"}, "kernelspec": {"name": "python3", "display_name": "python3"}})
    write(notebook, folder / "chapters" / "01_only.ipynb")


def outputs(notebook) -> list[dict]:
    """Everything that the cells of an executed notebook put out."""
    return [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]


def test_a_failing_cell_fails_the_build(tmp_path, monkeypatch):
    small_book(tmp_path, "1 / 0")
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="(?s)01_only failed:.*ZeroDivisionError"):
        build.build()
    assert not (tmp_path / "_build" / "html").exists()


def test_a_dead_kernel_fails_the_build(tmp_path, monkeypatch):
    small_book(tmp_path, "import os; os._exit(1)")
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="01_only failed"):
        build.build()


def test_published_notebook_shows_its_parameters_and_no_machine():
    cell = {"cell_type": "code", "id": "p", "source": 'profile = "smoke"  # smoke | cpu | gpu\nn = 3', "metadata": {"tags": ["parameters"], "papermill": {}}}
    injected = {"cell_type": "code", "id": "i", "source": '# Parameters\nprofile = "cpu"\n', "metadata": {"tags": ["injected-parameters"]}}
    made = build.publishable({"cells": [cell, injected], "metadata": {"papermill": {"input_path": os.sep}, "language_info": {}}})
    assert [c["source"] for c in made["cells"]] == ['profile = "cpu"  # smoke | cpu | gpu\nn = 3']
    assert "papermill" not in json.dumps(made)
