"""`fer-book` does what its help says, and its exit code tells whether it did."""
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_chapters import small_book

from fer_book import build, cli


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, time; from fer_book import cli; cli.parser().format_help(); assert not {'torch', 'pandas'} & set(sys.modules); print(time.process_time())"
    took = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3))
    assert took < 1


def shown_commands() -> list[str]:
    """Every `fer-book …` line of the README's code blocks and of the help texts."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = "\n".join([*blocks, *cli.EXAMPLES.values()]).splitlines()
    found = [re.sub(r"^(\w+=\S+ )*", "", line.strip()) for line in lines if re.match(r"\s*(\w+=\S+ )*fer-book ", line)]
    return sorted({re.split(r"  +#?|\s+>|\s#", line)[0].removeprefix("fer-book ") for line in found})


@pytest.mark.parametrize("line", shown_commands())
def test_shown_commands_are_commands(line):
    arguments = cli.parser().parse_args(shlex.split(line))
    assert hasattr(arguments, "do")
    if "recipe" in arguments:
        from fer_book.training import find_recipe
        assert find_recipe(arguments.recipe)


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("9m", 540), ("1h30m", 5400), ("45", 45)])
def test_budget_is_a_duration(text, expected):
    assert cli.seconds(text) == expected


@pytest.mark.parametrize("arguments", [["train", "x", "--budget", "9x"], ["train", "x", "--budget", ""], ["run", "03", "--profile", "fast"],
                                       ["run", "03", "-p", "profile"], ["data"], ["nonsense"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and "usage: fer-book" in capsys.readouterr().err


def test_no_command_shows_help(capsys):
    assert cli.main([]) == 2
    assert "first steps" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["run", "99"], "no chapter is called '99': choose one of 01_emotion_models"),
    (["run", "03", "-p", "profle=smoke"], "03_datasets.ipynb has no parameter 'profle'; its parameters are profile"),
    (["train", "no-such-recipe"], "no-such-recipe"),
    (["verify", "--paper", "no-such-paper"], "no-such-paper"),
    (["data", "check", "no-such-data"], "no-such-data"),
    (["data", "prepare", "no-such-data"], "no-such-data"),
])
def test_what_cannot_be_done_is_one_sentence_and_exit_1(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path))
    assert cli.main(arguments) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("fer-book: ") and sentence in told


@pytest.mark.parametrize("name", ["03", "3", "datasets", "03_datasets", "chapters/03_datasets.ipynb"])
def test_chapter_is_found_by_every_name(name):
    assert build.find_chapter(name).stem == "03_datasets"


def test_run_executes_a_chapter(tmp_path, monkeypatch, capsys):
    small_book(tmp_path, "print(profile.upper())")
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    assert cli.main(["run", "1", "--profile", "cpu"]) == 0
    assert "01_only ran in" in capsys.readouterr().out
    assert "CPU" in (tmp_path / "_build" / "executed" / "01_only.ipynb").read_text()


def test_run_of_a_failing_chapter_exits_1(tmp_path, monkeypatch, capsys):
    small_book(tmp_path, "1 / 0")
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    assert cli.main(["run", "only"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_piped_table_is_short_and_aligned(capsys):
    cli.show(pd.DataFrame({"file": ["a b.jpg", "c\nd.jpg"], "p": np.array([0.07, 1], np.float32), "n": [1200, 3]}))
    assert capsys.readouterr().out == "file     p     n\na b.jpg  0.07  1200\nc d.jpg  1     3\n"


def test_data_list_names_the_data_sets(capsys):
    assert cli.main(["data", "list"]) == 0
    assert "fer2013" in capsys.readouterr().out


def test_verify_as_json(capsys):
    assert cli.main(["verify", "--paper", "cascade_finetuning", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"id", "paper", "where", "metric", "paper_value", "ours", "interval", "n_seeds", "state", "grade", "runs", "note"} <= rows[0].keys()


def test_verify_says_what_holds(capsys):
    assert cli.main(["verify", "--paper", "emotions_classification"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Of \d+ printed numbers that need a network, \d+ can be tested here", out) and re.search(r"\d+ adds up.*\(of \d+ numbers\)", out)


def test_verify_writes_the_table_of_all_papers(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "claims" / "settings").mkdir(parents=True)
    for path in ("cascade_finetuning.csv", "settings/cascade_finetuning.csv"):
        (tmp_path / "data" / "claims" / path).write_bytes((ROOT / "data" / "claims" / path).read_bytes())
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    assert cli.main(["verify", "--write"]) == 0 and cli.main(["verify", "--write", "--paper", "cascade_finetuning"]) == 1
    lines = (tmp_path / "data" / "claims" / "verdicts.csv").read_text().splitlines()
    rows = (ROOT / "data" / "claims" / "cascade_finetuning.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [row.split(",")[0] for row in rows]
    assert "leave out --paper" in capsys.readouterr().err


def test_training_out_of_budget_exits_3_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FER_BOOK_DATA", raising=False)
    arguments = ["train", "ablation-plain", "--profile", "smoke", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--budget", "1s"]) == 3
    assert "again to resume" in capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert "recorded in" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/predictions.parquet"))) == 1
