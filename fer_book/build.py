"""Execute the chapters and render the book.

Written by hand: with `cli` the only module that no chapter exports, because it runs the chapters.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

PROFILES = ("smoke", "cpu", "gpu")
CELL_TIMEOUT = {"smoke": 600, "cpu": 6 * 3600, "gpu": 48 * 3600}  # seconds one cell may take
LAST = "status"  # reports on the other chapters, so it runs after them


class BuildError(RuntimeError):
    """A chapter failed or the site has a problem; the message says which and where to look."""


@dataclass(frozen=True)
class Execution:
    """How one chapter's execution went: wall time in seconds, `error` empty when it passed."""
    chapter: str
    seconds: float
    profile: str
    error: str = ""


def home() -> Path:
    """`datasets.project_home()`, imported when asked so that `fer-book --help` stays quick."""
    from fer_book.datasets import project_home

    return project_home()


def chapters() -> list[Path]:
    """Every notebook of the book, numbered chapters first, in reading order."""
    folder = home() / "chapters"
    found = sorted(folder.glob("*.ipynb"), key=lambda p: (not p.stem[0].isdigit(), p.stem == LAST, p.stem))
    if not found:
        raise ValueError(f"{folder} holds no chapters: run this inside a checkout of the book, or set FER_BOOK_HOME to one")
    return found


def find_chapter(name: str) -> Path:
    """The notebook called `name`: `03`, `03_datasets`, `datasets` or its path. ValueError lists the chapters."""
    stem = Path(name).stem
    found = [p for p in chapters() if stem in (p.stem, *p.stem.split("_", 1)) or stem.lstrip("0") == p.stem.split("_")[0].lstrip("0")]
    if len(found) != 1:
        raise ValueError(f"no chapter is called {name!r}: choose one of {', '.join(p.stem for p in chapters())}")
    return found[0]


def check_parameters(chapter: Path, parameters: dict) -> None:
    """ValueError when the chapter's parameters cell does not declare one of `parameters`; papermill would only log it."""
    from papermill import inspect_notebook

    known = inspect_notebook(str(chapter))
    unknown = [name for name in parameters if name not in known]
    if unknown:
        takes = ", ".join(known) or "none: give it a cell tagged 'parameters'"
        raise ValueError(f"{chapter.name} has no parameter {unknown[0]!r}; its parameters are {takes}")
    if parameters.get("profile", PROFILES[0]) not in PROFILES:
        raise ValueError(f"profile {parameters['profile']!r} is unknown: choose one of {', '.join(PROFILES)}")


def execute(chapter: Path, folder: Path, **parameters) -> Execution:
    """Run one chapter top to bottom into `folder` under its own name; a failing cell is reported, not raised."""
    import papermill
    from traitlets.config import Config

    check_parameters(chapter, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    profile = parameters.get("profile", PROFILES[0])
    started, error = time.perf_counter(), ""
    try:
        with tempfile.TemporaryDirectory(prefix="fer-") as sockets:  # no ports: two kernels can never meet on one
            ipc = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
            papermill.execute_notebook(str(chapter), str(folder / chapter.name), parameters=parameters, cwd=str(folder), config=ipc,
                                       kernel_name="python3", execution_timeout=CELL_TIMEOUT[profile], progress_bar=False)
    except Exception as problem:  # whatever stops a notebook, the reader wants to know which one and why
        error = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).strip() or type(problem).__name__
    return Execution(chapter.stem, round(time.perf_counter() - started, 1), profile, error)


def _prepare_worker(threads: int, project: str, log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)  # what kernels mutter would tear the progress bar
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ |= {"FER_BOOK_HOME": project, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if os.environ.get("FER_BOOK_DATA"):  # a kernel works in another folder
        os.environ["FER_BOOK_DATA"] = str(Path(os.environ["FER_BOOK_DATA"]).expanduser().absolute())


def execute_all(todo: list[Path], folder: Path, report: Callable[[Execution], None] = lambda done: None, **parameters) -> list[Execution]:
    """Run chapters into `folder`, two at a time in `smoke`, the status page last; BuildError names those that failed."""
    for chapter in todo:
        check_parameters(chapter, parameters)
    cores = len(os.sched_getaffinity(0))
    jobs = min(2, cores, len(todo)) if parameters.get("profile", PROFILES[0]) == PROFILES[0] else 1
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "kernels.log"
    done: list[Execution] = []
    with ProcessPoolExecutor(jobs, get_context("spawn"), _prepare_worker, (max(1, cores // jobs), str(home()), log)) as pool:
        try:
            for group in ([c for c in todo if c.stem != LAST], [c for c in todo if c.stem == LAST]):
                for future in as_completed([pool.submit(execute, chapter, folder, **parameters) for chapter in group]):
                    done.append(future.result())
                    report(done[-1])
                done.sort(key=lambda run: [c.stem for c in todo].index(run.chapter))
                if len(todo) > 1 and done:
                    (folder / "timings.json").write_text(json.dumps([asdict(run) for run in done], indent=1))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    failed = [run for run in done if run.error]
    if failed:
        raise BuildError("\n\n".join(f"{run.chapter} failed:\n{run.error}" for run in failed) + f"\n\nexecuted notebooks and kernels.log: {folder}")
    return done


def publishable(executed: dict) -> dict:
    """An executed notebook as readers get it: parameters in the parameters cell, no machine paths, no execution clutter."""
    injected = [c for c in executed["cells"] if "injected-parameters" in c["metadata"].get("tags", [])]
    values = dict(re.findall(r"^(\w+) = (.+)$", "\n".join("".join(c["source"]) for c in injected), re.M))
    cells = [c for c in executed["cells"] if c not in injected]
    for cell in cells:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution")}
        if "parameters" in cell["metadata"].get("tags", []):
            for name, value in values.items():
                cell["source"] = re.sub(rf"^({name} *= *)(\"[^\"]*\"|'[^']*'|[^#\n]*?)(?= *(#|$))", lambda m: m[1] + value,
                                        "".join(cell["source"]), flags=re.M)
    metadata = {k: v for k, v in executed["metadata"].items() if k != "papermill"}
    return executed | {"cells": cells, "metadata": metadata}


def assemble(executed: Path, book: Path) -> None:
    """Lay out in `book` what Jupyter Book renders: configuration, sources, executed chapters, pages of `data/`, style and scripts."""
    project = home()
    shutil.rmtree(book, ignore_errors=True)
    (book / "chapters").mkdir(parents=True)
    (book / "data").mkdir()
    for name in ("_config.yml", "_toc.yml", "references.bib"):
        shutil.copy(project / name, book / name)
    shutil.copytree(project / "site", book / "site", ignore=shutil.ignore_patterns("README.md"))
    for page in (project / "data").glob("*.md"):
        shutil.copy(page, book / "data" / page.name)
    for chapter in chapters():
        notebook = json.loads((executed / chapter.name).read_text())
        (book / "chapters" / chapter.name).write_text(json.dumps(publishable(notebook), indent=1))


def render(executed: Path, out: Path) -> Path:
    """Render executed chapters to `out/html`, always from nothing; BuildError quotes what Sphinx warned about."""
    book, log = out / "book", out / "sphinx.log"
    assemble(executed, book)
    with tempfile.TemporaryDirectory(dir=out, prefix="rendering-") as stage:
        command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(book), "--path-output", stage, "--all", "-W", "--keep-going"]
        with log.open("w") as lines:
            code = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                  env=os.environ | {"NO_COLOR": "1"}).returncode
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
        problems = [line for line in text.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
        rendered = Path(stage) / "_build" / "html"
        if code or problems or not (rendered / "index.html").is_file():
            raise BuildError("\n".join(problems[:20] or text.splitlines()[-15:]) + f"\nthe site was not rendered; whole log: {log}")
        shutil.rmtree(out / "html", ignore_errors=True)
        rendered.rename(out / "html")
    return out / "html" / "index.html"


def build(out: Path | None = None, profile: str = "smoke", report: Callable[[Execution], None] = lambda done: None,
          rendering: Callable[[], None] = lambda: None) -> Path:
    """Execute every chapter, render the site to `out/html` (default `_build`) and return its first page."""
    out = (out or home() / "_build").resolve()
    shutil.rmtree(out / "executed", ignore_errors=True)
    execute_all(chapters(), out / "executed", report, profile=profile)
    rendering()
    return render(out / "executed", out)
