"""Chapters, package and lock file belong together: what one says the others do."""
import ast
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import CHAPTERS, ROOT
from packaging.requirements import Requirement

from fer_book import cascade, claims

HAND_WRITTEN = {"__init__", "_modidx", "build", "cli", "doctor"}
MODULES = sorted(p.stem for p in (ROOT / "fer_book").glob("*.py") if p.stem not in HAND_WRITTEN)
by_name = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)


def cells(chapter) -> list[dict]:
    return [c | {"source": "".join(c["source"])} for c in json.loads(chapter.read_text())["cells"]]


def born_in() -> dict[str, str]:
    """Module -> the chapter that exports it."""
    found = [(cell["metadata"]["nbdev"]["default_exp"], chapter.stem) for chapter in CHAPTERS for cell in cells(chapter)
             if "default_exp" in cell["metadata"].get("nbdev", {})]
    return dict(found)


def test_package_is_what_the_chapters_export(tmp_path):
    shutil.copytree(ROOT / "chapters", tmp_path / "chapters", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(ROOT / "fer_book", tmp_path / "fer_book", ignore=shutil.ignore_patterns("__pycache__", *(f"{m}.py" for m in MODULES)))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True)
    exported = {p.name: p.read_bytes() for p in (tmp_path / "fer_book").glob("*.py")}
    committed = {p.name: p.read_bytes() for p in (ROOT / "fer_book").glob("*.py")}
    assert exported.keys() == committed.keys()
    differ = [name for name in committed if committed[name] != exported[name]]
    assert not differ, f"run nbdev-export: {differ} are not what the chapters export"


def test_every_module_has_one_chapter():
    assert sorted(born_in()) == MODULES


@by_name
def test_chapter_is_clean(chapter):
    for cell in cells(chapter):
        assert "#|" not in cell["source"], f"cell {cell['id']} has a directive in its source: nbdev-clean moves it to the metadata"
        assert not cell.get("outputs") and cell.get("execution_count") is None, f"cell {cell['id']} holds outputs: run nbdev-clean"
    ids = [cell["id"] for cell in cells(chapter)]
    assert len(ids) == len(set(ids))


@by_name
def test_chapter_has_parameters(chapter):
    tagged = [c for c in cells(chapter) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and re.search(r'^profile = "smoke"', tagged[0]["source"], re.M), "papermill finds no cell tagged 'parameters'"
    assert json.loads(chapter.read_text())["metadata"].get("language_info", {}).get("name") == "python"


def test_contents_list_every_chapter():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [contents["root"], *(entry["file"] for part in contents["parts"] for entry in part["chapters"])]
    assert sorted(p.removeprefix("chapters/") for p in listed if p.startswith("chapters/")) == [c.stem for c in CHAPTERS]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_earlier_chapters(module):
    chapter = born_in()[module]
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "fer_book" / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {a.name.split(".")[1] for a in node.names if a.name.startswith("fer_book.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fer_book":
            imported |= {node.module.split(".")[1]} if "." in node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            imported |= {node.module} if node.module else {a.name for a in node.names}
    late = {name for name in imported & set(MODULES) if born_in()[name] >= chapter}
    assert not late, f"{module} (chapter {chapter}) imports {late}, which a reader does not know yet"
    assert not imported & {"build", "cli", "doctor"}


def cpu_seconds(code: str, compiled) -> float:
    """Processor time of a fresh interpreter that finds its modules compiled in the folder `compiled`, as users do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(compiled)}
    subprocess.run([sys.executable, "-c", code], check=True, env=settings | {"OPENBLAS_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_emotions_import_fast_and_without_torch(tmp_path):
    bare = min(cpu_seconds("pass", tmp_path) for _ in range(5))
    ours = min(cpu_seconds("import sys, fer_book.emotions; assert 'torch' not in sys.modules", tmp_path) for _ in range(5))
    assert ours - bare < 0.3


def locked() -> dict[str, list[Requirement]]:
    """Name -> its pins in the lock file (several where Python versions need different ones)."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(pin.name.lower().replace("_", "-"), []).append(pin)
    return pins


def test_lock_satisfies_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, asked):
        pins = locked().get(requirement.name.lower().replace("_", "-"), [])
        assert pins, f"{requirement} is not in requirements.lock"
        for pin in pins:
            [exact] = pin.specifier
            assert requirement.specifier.contains(exact.version, prereleases=True), f"{pin} is not {requirement}"


def test_lock_pins_exactly_and_names_no_address():
    for pin in (pin for pins in locked().values() for pin in pins):
        assert pin.url is None and [s.operator for s in pin.specifier] == ["=="], pin
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and not re.search(r"^\s*-", text, re.M)


def test_readme_code_runs(real_data):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert names["targets"].shape == (len(names["faces"]), 8) and names["kept"].any()


# --- numbers in prose --------------------------------------------------------------------------------------------------------------

LEDGER_OF = {"10_emotions_classification": "emotions_classification", "11_dimensional_vad": "dimensional_vad",
             "12_cascade_finetuning": "cascade_finetuning", "13_cake": "cake"}
# Numbers that no run and no paper decides, by what they mean. Everything else in prose is a paper's number that its ledger has, an
# outside number in a paragraph that cites its source, or computed in a cell.
DEFINED = {
    "the levels of intervals and tests": {"95%", "5%"}, "resamples": {"2,000", "1,000"}, "all of something": {"100%"},
    "thresholds: near copies, spreads of targets": {"0.95", "2%"}, "pixels of a 48 x 48 image": {"2,304"}, "images read at a time": {"1,024"},
    "FER+'s rules for several words": {"30%", "0.001"}, "how dlib normalises, and its distance": {"122.8", "117.0", "104.3", "0.6"},
    "quantiles of a distribution": {"1.96", "4.30"}, "made-up numbers of an example": {"70%", "0.7", "57.89"},
    "official sizes of FER-2013 and FER+": {"28,709", "3,589", "28,561", "35,714"}, "versions": {"3.11", "2.11"},
}
NUMBER = re.compile(r"(?<![-\w.,])[-−+±]?\d[\d,]*(?:\.\d+)?\s?%|(?<![-\w.,])[-−+±]?(?:\d+\.\d+|\d{1,3}(?:,\d{3})+)(?![\w.]?\d)|(?<![-\w.,])\d+(?= points\b)")


def paragraphs(page) -> list[tuple[str, str]]:
    """Where and what: the prose of a chapter or page without code, formulas, addresses, section numbers and quotations.

    Cells of questions or exercises are left out: they make up their numbers.
    """
    texts = [("", page.read_text())]
    if page.suffix == ".ipynb":
        texts = [(c["id"], c["source"]) for c in cells(page) if c["cell_type"] == "markdown" and c["id"] not in ("questions", "exercises")]
    for where, text in texts:
        text = re.sub(r"(?s)~~~.*?~~~|```(?!\{admonition)[^\n]*\n.*?```", " ", text)
        text = re.sub(r"\{cite[^}]*\}`[^`]*`", " CITED ", text)
        text = re.sub(r'(?s)`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|"[^"]*"', " ", text)
        text = re.sub(r"[Ss]ections? \d\.\d(?:(?:, | and )\d\.\d)*", " ", text)
        yield from ((where, part) for part in re.split(r"\n\s*\n", text))


def printed_numbers(paper: str) -> set[float]:
    """The numbers of a paper's ledger; of the cascade paper also the cells of its Figure 4."""
    cells_of_figure_4 = {cell for s in cascade.SUBMISSIONS for row in s.confusion for cell in row} if paper == "cascade_finetuning" else set()
    return {abs(c.paper_value) for c in claims.read_claims(paper)} | cells_of_figure_4


@pytest.mark.parametrize("page", [*CHAPTERS, ROOT / "README.md"], ids=lambda p: p.stem)
def test_no_number_in_prose_is_typed_by_hand(page):
    known = printed_numbers(LEDGER_OF[page.stem]) if page.stem in LEDGER_OF else set()
    defined = set.union(*DEFINED.values())
    typed = [(where, number) for where, text in paragraphs(page) if "CITED" not in text for number in NUMBER.findall(text)
             if number not in defined and abs(float(re.sub(r"[^\d.]", "", number))) not in known]
    assert not typed, f"{page.stem}: compute these in a cell, enter them in the paper's ledger, or cite where they are from: {typed}"


def test_a_number_typed_in_prose_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Ours is 66.80% and 1.6 points below 1,234 `0.5` $0.25$ (section 3.2) [a](b/0.7) \"9.9%\".\n\nTheirs is 74.14% {cite}`x`.")
    assert [NUMBER.findall(text) for _, text in paragraphs(page)] == [["66.80%", "1.6", "1,234"], ["74.14%"]]


def test_every_source_is_cited_and_every_citation_has_a_source():
    entries = re.findall(r"(?ms)^@\w+\{([^,]+),(.*?)^\}", (ROOT / "references.bib").read_text())
    pages = "".join(c["source"] for chapter in CHAPTERS for c in cells(chapter)) + (ROOT / "data" / "datasets.md").read_text()
    cited = {key.strip() for keys in re.findall(r"\{cite[^}]*\}`([^`]+)`", pages) for key in keys.split(",")}
    assert cited == {key for key, _ in entries}
    for key, fields in entries:
        assert {"author", "title", "year"} <= set(re.findall(r"^  (\w+) = ", fields, re.M)), f"{key} lacks its author, title or year"
