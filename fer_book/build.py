"""Execute the chapters and render the book.

By hand: with `cli` and `doctor` the only modules that no chapter exports, because they run the chapters.
"""
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

PROFILES = ("smoke", "cpu", "gpu")
CELL_TIMEOUT = {"smoke": 600, "cpu": 6 * 3600, "gpu": 48 * 3600}  # seconds one cell may take
LAST = "status"  # reports on the other chapters, so it runs after them
# settings of a user that would show up in pages or stop them
PERSONAL = ("PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONINSPECT", "MPLBACKEND", "MATPLOTLIBRC")
SILENT = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # no library may call out unasked
SOCKET = 103  # bytes that the path of a socket may have everywhere
ELSEWHERE = "or build elsewhere: fer-book build --out DIR"


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


def obstacle(folder: Path) -> str:
    """What keeps files from being written into `folder`, or where it would be made; empty if nothing does."""
    place = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryFile(dir=place) as trial:
            trial.write(bytes(1 << 16))
    except OSError as problem:
        return f"{place}: {reason(problem, place)}"
    return ""


def reason(problem: OSError, place: Path) -> str:
    """An error of the system about `place` in words, with the owner where that is what matters."""
    if problem.errno not in (errno.EACCES, errno.EPERM):
        return (problem.strerror or str(problem)).lower()
    try:
        return f"belongs to {place.owner()}, who lets nobody else write there"
    except (KeyError, OSError):
        return "belongs to another user, who lets nobody else write there"


def room(folder: Path) -> Path:
    """`folder`, made if need be; BuildError if nothing can be written there."""
    if found := obstacle(folder):
        raise BuildError(f"{found}; free it, {ELSEWHERE}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear(folder: Path) -> None:
    """Remove what an earlier build left in `folder`; BuildError if some of it stays."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as problem:
        why = reason(problem, folder)
        raise BuildError(f"{folder}: cannot be removed ({why}); do it yourself, {ELSEWHERE}") from problem


@contextmanager
def hold(folder: Path, alone: bool = True) -> Iterator[None]:
    """Lock `folder` until the block or this process ends, `alone` or beside others that do not insist on that.

    BuildError while another process holds it. No lock is left behind; where a file system has none, none is taken.
    """
    file = folder / ".lock"
    try:
        lock = open(file, "a")
    except OSError as problem:
        raise BuildError(f"{file}: {reason(problem, file)}; remove it, {ELSEWHERE}") from problem
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"another fer-book is at work in {folder}: let it end, {ELSEWHERE}") from None
        except OSError:  # some file systems have no locks
            pass
        yield


def is_old(path: Path) -> bool:
    """Whether nothing has happened to `path` for a day."""
    return time.time() - path.stat().st_mtime > 86400


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A fresh folder in `place`, gone after the block; those that killed builds left a day ago go as well."""
    for old in [lock.parent for lock in place.glob("fer-????????/.lock")]:
        with suppress(OSError, BuildError):
            if old.stat().st_uid == os.getuid() and is_old(old):
                with hold(old):
                    shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix="fer-", dir=place, ignore_cleanup_errors=True) as folder:
        with hold(Path(folder)):
            yield Path(folder)


def socket_place() -> Path | None:
    """A folder for sockets, whose paths may not be long; None where only the loopback device is left to talk over."""
    short = ("/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/var/tmp", "/dev/shm", os.environ.get("TMPDIR"))
    room_for = SOCKET - len("/fer-12345678/4194304-5")
    fits = (Path(place) for place in short if place and len(os.fsencode(place)) <= room_for)
    return next((place for place in fits if place.is_dir() and not obstacle(place)), None)


def die_with(parent: int) -> None:
    """End this process as soon as `parent`, the number of the one that started it, ends, however that happens."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def own_kernel() -> type:
    """Kernels that run this very interpreter, whatever the user has installed, and that end with this process."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernel(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                                 language="python",
                                 metadata={"kernel_provisioner": {"provisioner_name": "local-provisioner"}})

        async def start_kernel(self, **options):
            await super().start_kernel(preexec_fn=partial(die_with, os.getpid()), **options)

    return OwnKernel


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


def execute(chapter: Path, folder: Path, sockets: Path | None, **parameters) -> Execution:
    """Run one chapter top to bottom into `folder` under its own name; a failing cell is reported, not raised."""
    import papermill
    from traitlets.config import Config

    check_parameters(chapter, parameters)
    profile = parameters.get("profile", PROFILES[0])
    started, error = time.perf_counter(), ""
    # no ports, where that can be: two kernels can never meet on one
    ipc, tcp = {"transport": "ipc", "ip": f"{sockets}/{os.getpid()}"}, {"transport": "tcp", "ip": "127.0.0.1"}
    try:
        papermill.execute_notebook(str(chapter), str(folder / chapter.name), parameters, cwd=str(folder),
                                   config=Config({"KernelManager": ipc if sockets else tcp}), kernel_name="python3",
                                   kernel_manager_class=own_kernel(), execution_timeout=CELL_TIMEOUT[profile],
                                   progress_bar=False)
    except Exception as problem:  # whatever stops a notebook, the reader wants to know which one and why
        error = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).strip() or type(problem).__name__
    return Execution(chapter.stem, round(time.perf_counter() - started, 1), profile, error)


def impersonal() -> dict[str, str]:
    """The environment without personal settings that would change pages or stop them; no library calls out."""
    kept = {name: value for name, value in os.environ.items() if name not in PERSONAL}
    return kept | SILENT | {"MATPLOTLIBRC": os.devnull, "PYTHONUTF8": "1"}


def kernel_environment(scratch: Path, threads: int) -> dict[str, str]:
    """The environment of kernels: `impersonal`, `scratch` for what is not to stay, this book and its faces."""
    made = impersonal() | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    made |= {"TMPDIR": str(scratch), "IPYTHONDIR": str(scratch / "ipython")}
    made |= {"FER_BOOK_HOME": str(home()), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    # a kernel works in another folder
    given = [name for name in ("FER_BOOK_DATA", "FER_BOOK_CACHE") if os.environ.get(name)]
    return made | {name: str(Path(os.environ[name]).expanduser().absolute()) for name in given}


def _prepare_worker(parent: int, environment: dict[str, str], log: Path) -> None:
    die_with(parent)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)  # what kernels mutter would tear the progress bar
    os.environ.clear()
    os.environ.update(environment)


def execute_all(todo: list[Path], folder: Path, report: Callable[[Execution], None] = lambda done: None, **parameters) -> list[Execution]:
    """Run chapters into `folder`, two at a time in `smoke`, the status page last; BuildError names those that failed."""
    for chapter in todo:
        check_parameters(chapter, parameters)
    room(folder)
    place = socket_place()
    with (scratch_folder(Path(tempfile.gettempdir())) as scratch,
          scratch_folder(place) if place else nullcontext() as sockets):
        try:
            done = _execute_groups(todo, folder, report, scratch, sockets, parameters)
        except BrokenProcessPool as problem:
            raise BuildError("a process that runs chapters was killed, as happens where memory runs out; see "
                             f"{folder / 'kernels.log'}") from problem
    failed = [run for run in done if run.error]
    if failed:
        raise BuildError("\n\n".join(f"{run.chapter} failed:\n{run.error}" for run in failed) + f"\n\nexecuted notebooks and kernels.log: {folder}")
    return done


def _execute_groups(todo: list[Path], folder: Path, report: Callable[[Execution], None], scratch: Path,
                    sockets: Path | None, parameters: dict) -> list[Execution]:
    cores = len(os.sched_getaffinity(0))
    jobs = min(2, cores, len(todo)) if parameters.get("profile", PROFILES[0]) == PROFILES[0] else 1
    prepare = os.getpid(), kernel_environment(scratch, max(1, cores // jobs)), folder / "kernels.log"
    others, done = active_children(), []
    with ProcessPoolExecutor(jobs, get_context("spawn"), _prepare_worker, prepare) as pool:
        try:
            for group in ([c for c in todo if c.stem != LAST], [c for c in todo if c.stem == LAST]):
                runs = [pool.submit(execute, chapter, folder, sockets, **parameters) for chapter in group]
                for future in as_completed(runs):
                    done.append(future.result())
                    report(done[-1])
                done.sort(key=lambda run: [c.stem for c in todo].index(run.chapter))
                if len(todo) > 1 and done:
                    (folder / "timings.json").write_text(json.dumps([asdict(run) for run in done], indent=1))
        except BaseException:  # Ctrl-C: do not wait for chapters that take hours
            for worker in set(active_children()) - set(others):
                worker.kill()
            pool.shutdown(cancel_futures=True)
            raise
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
    clear(book)
    (book / "chapters").mkdir(parents=True)
    (book / "data").mkdir()
    for page in (project / "_config.yml", project / "_toc.yml", *project.glob("*.bib")):
        shutil.copy(page, book / page.name)
    shutil.copytree(project / "site", book / "site", ignore=shutil.ignore_patterns("README.md"))
    for copied in (book / "site", *(book / "site").rglob("*/")):
        copied.chmod(0o755)  # a checkout that is for reading only must not make copies that cannot be removed
    for page in (project / "data").glob("*.md"):
        shutil.copy(page, book / "data" / page.name)
    for chapter in chapters():
        notebook = json.loads((executed / chapter.name).read_text("utf-8"))
        (book / "chapters" / chapter.name).write_text(json.dumps(publishable(notebook), indent=1), "utf-8")


def render(executed: Path, out: Path) -> Path:
    """Render executed chapters to `out/html`, always from nothing; BuildError quotes what Sphinx warned about."""
    book, log = out / "book", out / "sphinx.log"
    assemble(executed, book)
    with tempfile.TemporaryDirectory(dir=out, prefix="rendering-") as stage:
        command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(book), "--path-output", stage, "--all", "-W", "--keep-going"]
        with log.open("w") as lines:
            code = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                  env=impersonal() | {"NO_COLOR": "1"},
                                  preexec_fn=partial(die_with, os.getpid())).returncode
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text("utf-8", "replace"))
        problems = [line for line in text.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
        rendered = Path(stage) / "_build" / "html"
        if code or problems or not (rendered / "index.html").is_file():
            raise BuildError("\n".join(problems[:20] or text.splitlines()[-15:]) + f"\nthe site was not rendered; whole log: {log}")
        clear(out / "html")
        rendered.rename(out / "html")
    return out / "html" / "index.html"


def build(out: Path | None = None, profile: str = "smoke", report: Callable[[Execution], None] = lambda done: None,
          rendering: Callable[[], None] = lambda: None, ready: Callable[[Path], None] = lambda out: None) -> Path:
    """Execute every chapter, render the site to `out/html` (default `_build`) and return its first page.

    `ready` is asked first whether the book can be built into `out`; it raises BuildError if not (`doctor.require`).
    """
    out = (out or home() / "_build").resolve()
    ready(out)
    with hold(room(out)):
        sweep(out)
        execute_all(chapters(), out / "executed", report, profile=profile)
        rendering()
        return render(out / "executed", out)


def sweep(out: Path) -> None:
    """Remove from `out` what was executed before, and what killed builds left there, in the cache and in the book."""
    from fer_book.datasets import cache_dir

    for folder in (out / "executed", *out.glob("rendering-*")):
        clear(folder)
    for folder in (cache_dir(), home() / "results", home() / "models"):
        for part in folder.glob(".*.????????????.part*"):  # of datasets.write_atomic
            with suppress(OSError):
                if is_old(part):
                    part.unlink()
