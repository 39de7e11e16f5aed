"""What this machine and this data folder can run, in lines that name the remedy; its quick part opens a build.

Written by hand, like `build`, whose needs it checks. It imports no library before that is known to be there.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import fer_book
from fer_book import build

MODULES = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "sphinxcontrib-bibtex": "sphinxcontrib.bibtex",
}  # imported under another name than installed
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DISK, MEMORY = 0.3, 2.0  # GB that a build writes, GB of memory that two chapters side by side take


@dataclass(frozen=True)
class Finding:
    """One line: `what` was looked at, what was found (`told`), and the `remedy`, empty where none is needed.

    `state`: ok; missing (some commands do without it, or say so); cannot (the book cannot be built here).
    """

    what: str
    state: str
    told: str
    remedy: str = ""


def python() -> list[Finding]:
    """The interpreter and the package it runs."""
    package = f"fer_book {fer_book.__version__} in {Path(fer_book.__file__).parent}"
    told = f"{sys.version.split()[0]}, {sys.executable}, {package}"
    old = sys.version_info < (3, 11)
    return [
        Finding(
            "Python",
            "cannot" if old else "ok",
            told,
            "take Python 3.11 or newer: make PYTHON=/path/to/python3.12 book" if old else "",
        )
    ]


def packages() -> list[Finding]:
    """The libraries that the package asks for, one line for the required ones and one for each extra."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in requires("fer_book") or ()]
    except PackageNotFoundError:
        return [
            Finding(
                "libraries",
                "cannot",
                "fer_book is not installed in this Python",
                "run make install, or pip install --no-deps -e . in the checkout",
            )
        ]
    extra_of = lambda r: next(
        (
            e
            for e in ("weights", "onnx", "book", "test")
            if r.marker and r.marker.evaluate({"extra": e}) and not r.marker.evaluate({"extra": ""})
        ),
        "",
    )
    return [libraries(extra, list(group)) for extra, group in groupby(sorted(asked, key=extra_of), extra_of)]


def libraries(extra: str, asked: list) -> Finding:
    """Whether the libraries of an extra ("" for the required ones) are there, in versions as asked for."""
    what = f"extra {extra}" if extra else "libraries"
    remedy = f'run make install, or pip install -e ".{extra and f"[{extra}]"}" in the checkout'
    absent = [r.name for r in asked if not importable(MODULES.get(r.name, r.name.replace("-", "_")))]
    if absent:
        tolerable = extra == "test" or absent == ["nbdev"]  # neither chapters nor pages need them
        return Finding(
            what, "missing" if tolerable else "cannot", f"{', '.join(absent)}: not installed", remedy
        )
    other = [
        f"{r.name} {found} instead of {r.specifier}"
        for r in asked
        if (found := installed(r.name)) and not r.specifier.contains(found, prereleases=True)
    ]
    if other:
        return Finding(what, "missing", f"{', '.join(other)}: may or may not do", remedy)
    return Finding(what, "ok", f"{len(asked)} installed")


def importable(module: str) -> bool:
    """Whether a module, or a part of one as in "a.b", is there."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the "a" of "a.b"
        return False


def installed(name: str) -> str:
    """The version of a library; empty where its importable module came under another name."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def checkout(out: Path) -> list[Finding]:
    """The chapters, and git, which tells recorded runs their commit."""
    home = build.home()
    try:
        lines = [Finding("chapters", "ok", f"{len(build.chapters())} in {home / 'chapters'}")]
    except ValueError:
        lines = [
            Finding(
                "chapters",
                "cannot",
                f"{home} holds no chapters",
                "go to a checkout of the book, or set FER_BOOK_HOME to one",
            )
        ]
    if not shutil.which("git"):
        return [
            *lines,
            Finding("git", "missing", "not installed: recorded runs name no commit", "install git"),
        ]
    asked = subprocess.run(["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True)
    if asked.returncode == 0:
        return [*lines, Finding("git", "ok", asked.stdout.strip())]
    foreign = "dubious ownership" in asked.stderr
    remedy = (
        f"run git config --global --add safe.directory {home}"
        if foreign
        else "clone the book instead of copying it"
    )
    told = f"{home} belongs to another user" if foreign else f"{home} is no git checkout"
    return [*lines, Finding("git", "missing", f"{told}: recorded runs name no commit", remedy)]


def home_folder(out: Path) -> list[Finding]:
    """Whether caches and settings of libraries can go below the home folder."""
    if not fer_book.fallback:
        return [Finding("HOME", "ok", os.path.expanduser("~"))]
    return [
        Finding(
            "HOME",
            "missing",
            f"cannot be written (all of it): caches go to {fer_book.fallback} instead",
            "set HOME to a folder of your own that stays, or give it back to this user",
        )
    ]


def places(out: Path) -> list[Finding]:
    """The folders that are written into: temporary files, the built book, the cache, recorded runs."""
    from fer_book.datasets import cache_dir

    parts = (out, *(out / part for part in ("executed", "book", "html") if (out / part).exists()))
    return [
        temporary(),
        place("built book", "cannot", f"free it, {build.ELSEWHERE}", *parts),
        place(
            "cache",
            "missing",
            "set FER_BOOK_CACHE to a folder with room; without, images are decoded each time",
            cache_dir(),
        ),
        place(
            "results",
            "missing",
            "record your runs elsewhere: fer-book train RECIPE --out DIR",
            build.home() / "results",
        ),
    ]


def temporary() -> Finding:
    """Where temporary files go, TMPDIR or elsewhere."""
    remedy = "set TMPDIR to a folder with room"
    try:
        used = tempfile.gettempdir()
    except FileNotFoundError:
        return Finding(
            "TMPDIR", "cannot", "no temporary file can be written, neither there nor in /tmp", remedy
        )
    asked = os.environ.get("TMPDIR", used)
    if os.path.realpath(asked) != os.path.realpath(used):
        return Finding("TMPDIR", "missing", f"{asked} cannot be written: {used} is used", remedy)
    return Finding("TMPDIR", "ok", used)


def place(what: str, otherwise: str, remedy: str, *folders: Path) -> Finding:
    """Whether files can be written into all of `folders`; if not, the state is `otherwise`."""
    found = next(filter(None, map(build.obstacle, folders)), "")
    return Finding(what, otherwise, found, remedy) if found else Finding(what, "ok", str(folders[0]))


def room(out: Path) -> list[Finding]:
    """Free disk below the built book; memory that may still be taken, a container's limit included."""
    import psutil

    there = next(p for p in (out, *out.parents) if p.exists())
    free, memory = shutil.disk_usage(there).free / 1e9, psutil.virtual_memory().available / 1e9
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text().strip().isdecimal():
        memory = min(memory, (int(limit.read_text()) - int(used.read_text())) / 1e9)
    few = free < DISK, memory < MEMORY
    return [
        Finding(
            "disk",
            "cannot" if few[0] else "ok",
            f"{there}: {free:.1f} GB free, a build writes {DISK} GB",
            f"make room, {build.ELSEWHERE}" * few[0],
        ),
        Finding(
            "memory",
            "missing" if few[1] else "ok",
            f"{memory:.1f} GB free, chapters take up to {MEMORY:.0f} GB",
            "end other programs, or chapters may be killed" * few[1],
        ),
    ]


def kernel(out: Path) -> list[Finding]:
    """Which Python runs the chapters, how one talks to it, and whether processes can share the work."""
    try:
        get_context("spawn").Lock()
    except (ImportError, OSError) as problem:
        return [
            Finding(
                "kernels",
                "cannot",
                f"this system has no semaphores ({problem})",
                "make /dev/shm writable, in a container with --ipc=host or --tmpfs /dev/shm",
            )
        ]
    sockets = build.socket_place()
    return [
        Finding(
            "kernels",
            "ok",
            f"{sys.executable}, sockets in {sockets}"
            if sockets
            else f"{sys.executable}, over the loopback device",
        )
    ]


def browser(out: Path) -> list[Finding]:
    """The browser in which the tests open pages."""
    found = next(filter(None, map(shutil.which, BROWSERS)), "")
    return [
        Finding("browser", "ok", found)
        if found
        else Finding(
            "browser",
            "missing",
            "none found: tests of pages are skipped",
            "as root: apt-get install chromium",
        )
    ]


def data_folder(out: Path) -> list[Finding]:
    """The folder that FER_BOOK_DATA names."""
    from fer_book.datasets import DataError, DataMissing, data_dir

    try:
        return [Finding("FER_BOOK_DATA", "ok", str(data_dir()))]
    except DataMissing:
        return [
            Finding(
                "FER_BOOK_DATA",
                "missing",
                "not set: chapters take drawn faces",
                "put data sets into a folder and set FER_BOOK_DATA to it, see data/datasets.md",
            )
        ]
    except DataError:
        return [
            Finding(
                "FER_BOOK_DATA",
                "cannot",
                f"{os.environ['FER_BOOK_DATA']}: there is no such folder",
                "set FER_BOOK_DATA to the folder with your data sets, or unset it",
            )
        ]


def torch(out: Path) -> list[Finding]:
    """Whether torch and torchvision import together, and the GPU that they see."""
    code = (
        "import json, torch, torchvision; c = torch.cuda; here = c.is_available(); "
        "print(json.dumps([torch.__version__, torchvision.__version__, "
        "c.get_device_name() if here else '', c.mem_get_info()[0] / 1e9 if here else 0]))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=build.impersonal()
    )
    if asked.returncode:
        told = (
            asked.stderr.strip().splitlines()[-1]
            if asked.stderr.strip()
            else f"ended by signal {-asked.returncode}"
        )
        return [
            Finding(
                "torch",
                "cannot",
                f"does not import: {told}",
                "install torch and torchvision of the same build: make install",
            )
        ]
    own, vision, name, free = json.loads(asked.stdout.splitlines()[-1])
    gpu = (
        Finding("GPU", "ok", f"{name}, {free:.0f} GB free")
        if name
        else Finding(
            "GPU",
            "missing",
            "torch sees a driver but no GPU"
            if Path("/dev/nvidiactl").exists()
            else "none: networks train on the processor",
            "take the profiles smoke and cpu, or a machine with a GPU for the profile gpu",
        )
    )
    return [Finding("torch", "ok", f"{own}, torchvision {vision}"), gpu]


def live_kernel(out: Path) -> list[Finding]:
    """Start a kernel as a build does, and ask which package it imports."""
    from nbformat import v4, write

    notebook = v4.new_notebook(
        cells=[v4.new_code_cell("import fer_book; print(fer_book.__file__)")],
        metadata={"language_info": {"name": "python"}},
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            asked = Path(folder, "asked.ipynb")
            write(notebook, asked)
            build.execute_all([asked], asked.parent / "executed")
            cells = json.loads((asked.parent / "executed" / asked.name).read_text("utf-8"))["cells"]
        told = "".join(cells[-1]["outputs"][0]["text"]).strip()
    except (build.BuildError, OSError) as problem:
        told = next((line for line in reversed(str(problem).splitlines()[:-1]) if line.strip()), str(problem))
        return [Finding("a started kernel", "cannot", told, "see what is missing above")]
    same = Path(told).resolve() == Path(fer_book.__file__).resolve()
    remedy = "install the checkout into this Python: make install, or pip install --no-deps -e ."
    return [
        Finding("a started kernel", "ok" if same else "cannot", f"imports {told}", "" if same else remedy)
    ]


def data_sets(out: Path) -> list[Finding]:
    """Every data set that the book knows or finds, each that is there read once."""
    from fer_book.datasets import DataError, catalogue

    try:
        return [data_set(row) for row in catalogue().itertuples(index=False)]
    except DataError as problem:
        return [Finding("data sets", "missing", str(problem))]


def data_set(row) -> Finding:
    """One row of the catalogue: whether the data set is there and whole, and what this copy of it lacks."""
    from fer_book.datasets import LACKS, DataError, load

    what = f"data: {row.name}"
    if row.here == "no":
        return Finding(what, "missing", row.holds, row.get)
    if not row.path:
        return Finding(what, "ok", row.holds)
    told = f"{row.rows} rows, {row.layout}: {row.path}"
    try:
        lacks = load(row.name).lacks
    except DataError as problem:  # chapters end there: damaged data is no missing data
        return Finding(what, "cannot", f"{told}: {problem}", "mend it, or take it out of the data folder")
    return Finding(what, "missing" if lacks else "ok", told, " ".join(LACKS[key] for key in lacks))


QUICK = (home_folder, places, room, checkout, kernel, browser, data_folder)
SLOW = (torch, live_kernel, data_sets)


def examine(out: Path | None = None, quick: bool = False) -> Iterable[Finding]:
    """Findings as they come, for a build into `out` (default `_build`): `quick` takes a second, all about ten
    and the first reading of your data.

    Without a required library nothing else can be looked at.
    """
    lines = [*python(), *packages()]
    yield from lines
    if any(line.state == "cannot" for line in lines if line.what in ("Python", "libraries")):
        return
    for check in QUICK if quick else QUICK + SLOW:
        yield from check((out or build.home() / "_build").resolve())


def require(out: Path) -> None:
    """BuildError with a sentence for each thing that, as a second shows, keeps the book from being built."""
    if found := [line for line in examine(out, quick=True) if line.state == "cannot"]:
        raise build.BuildError("\n".join(f"{line.what}: {line.told}; {line.remedy}" for line in found))
