"""The book on machines that are not its makers': what fails says so at once."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from layouts import LAYOUTS, drawn
from test_chapters import outputs, small_book

import fer_book
from fer_book import build, cli, doctor

DAY = 86400


def python(code: str, **environment: str | None) -> str:
    """What a fresh interpreter prints for `code`; None takes a variable out of its environment."""
    settings = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    return subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True
    ).stdout


@contextmanager
def forbidden(folder: Path):
    """Nothing can be written in `folder`; root gives its rights up for it."""
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(mode)


@pytest.fixture
def book(tmp_path, monkeypatch) -> Path:
    """A checkout with one chapter, which prints."""
    small_book(tmp_path / "book", "print(profile)")
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path / "book"))
    return tmp_path / "book"


# the home folder

SHOW = """
import json, os, fer_book
from fer_book.datasets import cache_dir
print(json.dumps([fer_book.fallback, str(cache_dir()), os.path.expanduser("~"), dict(os.environ)]))
"""


def test_a_usable_home_is_left_alone(tmp_path):
    code = (
        "import sys, os; before = dict(os.environ), set(sys.modules); import fer_book; "
        "print(before[0] == os.environ, set(sys.modules) - before[1])"
    )
    told = python(code, HOME=str(tmp_path), FER_BOOK_CACHE=None)
    assert told.startswith("True ") and "tempfile" not in told
    assert not list(tmp_path.iterdir())


def test_a_missing_home_is_gone_round(tmp_path):
    folder, cache, home, environment = json.loads(
        python(SHOW, HOME="/nonexistent", TMPDIR=str(tmp_path), FER_BOOK_CACHE=None)
    )
    assert Path(folder) == tmp_path / f"fer_book-{os.getuid()}" and home == folder
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert cache == f"{folder}/.cache/fer_book"
    assert all(environment[name].startswith(folder) for name in fer_book.KEPT)


def test_an_unknown_user_without_home_has_one(tmp_path):
    unknown = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n"
    code = (
        unknown
        + "from fer_book import cli, datasets; import matplotlib, pathlib\n"
        + "print(pathlib.Path.home(), matplotlib.get_configdir()); cli.main(['data', 'prepare', 'schematic'])"
    )
    told = python(code, HOME=None, TMPDIR=str(tmp_path), FER_BOOK_CACHE=None, MPLCONFIGDIR=None)
    folder = tmp_path / f"fer_book-{os.getuid()}"
    assert told.splitlines()[0] == f"{folder} {folder}/.config/matplotlib"


def test_only_what_cannot_be_kept_at_home_goes_elsewhere(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".cache").touch()  # nothing can be made below it, as below a folder of root's
    folder, cache, kept, environment = json.loads(
        python(
            SHOW,
            HOME=str(home),
            TMPDIR=str(tmp_path),
            FER_BOOK_CACHE=None,
            **dict.fromkeys(set(fer_book.KEPT) - {"FER_BOOK_CACHE"}),
        )
    )
    assert cache == f"{folder}/.cache/fer_book" and kept == str(home)
    assert {name for name in fer_book.KEPT if name in environment} == {"FER_BOOK_CACHE", "XDG_CACHE_HOME"}


def test_what_the_user_set_is_kept(tmp_path):
    told = json.loads(
        python(
            SHOW,
            HOME="/nonexistent",
            TMPDIR=str(tmp_path),
            FER_BOOK_CACHE=str(tmp_path / "mine"),
            MPLCONFIGDIR="/mine",
        )
    )
    assert told[1] == str(tmp_path / "mine") and told[3]["MPLCONFIGDIR"] == "/mine"


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_a_prepared_folder_of_another_user_is_not_taken(tmp_path, trap):
    place = tmp_path / f"fer_book-{os.getuid()}"
    if trap == "link":
        place.symlink_to(ROOT)
    elif trap == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    folder = Path(json.loads(python(SHOW, HOME="/nonexistent", TMPDIR=str(tmp_path)))[0])
    assert folder != place and folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700


# folders that cannot be written


def test_an_obstacle_is_named(tmp_path):
    assert not build.obstacle(tmp_path / "a" / "b") and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert build.obstacle(tmp_path / "file" / "below") == f"{tmp_path / 'file'}: not a directory"


def test_an_obstacle_names_the_owner():
    with forbidden(
        folder := Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True).stdout.strip())
    ):
        found = build.obstacle(folder / "_build")
    folder.rmdir()
    assert found == f"{folder}: belongs to {Path.home().owner()}, who lets nobody else write there"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on device"),
        (errno.EROFS, "read-only file system"),
        (errno.EDQUOT, "disk quota exceeded"),
    ],
)
def test_the_system_s_reasons_are_words(tmp_path, number, words):
    assert build.reason(OSError(number, os.strerror(number)), tmp_path) == words


def test_a_build_folder_that_is_a_file_is_one_sentence(book, capsys):
    (book / "_build").touch()
    started = time.perf_counter()
    assert cli.main(["build"]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fer-book:")]
    assert told == [
        f"fer-book: built book: {book / '_build'}: not a directory; free it, {build.ELSEWHERE}"
    ]
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("part", ["executed", "html"])
def test_what_another_user_built_is_one_sentence_before_any_chapter_runs(book, part, monkeypatch):
    (book / "_build" / part).mkdir(parents=True)
    (book / "_build" / part / "page").touch()
    monkeypatch.setattr(
        build, "obstacle", lambda folder: f"{folder}: belongs to ada" * (folder.name == part)
    )  # root may write everywhere
    with pytest.raises(build.BuildError, match=rf"^built book: .*{part}: belongs to ada; free it"):
        build.build(ready=doctor.require, report=lambda done: pytest.fail("a chapter ran"))


def test_copies_of_a_checkout_for_reading_only_can_be_removed(tmp_path, monkeypatch):
    small_book(tmp_path / "book", "1")
    executed = shutil.copytree(tmp_path / "book" / "chapters", tmp_path / "executed")
    for name in ("_config.yml", "_toc.yml"):
        (tmp_path / "book" / name).touch()
    (tmp_path / "book" / "site" / "vendor" / "fonts").mkdir(parents=True)
    for folder in (tmp_path / "book" / "site").rglob("*/"):
        folder.chmod(0o555)
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path / "book"))
    for _ in range(2):
        build.assemble(executed, tmp_path / "out")
    assert all(folder.stat().st_mode & 0o200 for folder in (tmp_path / "out").rglob("*/"))


def test_a_full_disk_is_said_before_any_chapter_runs(book, monkeypatch):
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    )
    with pytest.raises(build.BuildError, match=r"disk: .*0\.0 GB free, a build writes .* GB; make room"):
        build.build(ready=doctor.require, report=lambda done: pytest.fail("a chapter ran"))


@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("book", "jupyter_book"),
        ("weights", "face_recognition_models"),
        ("onnx", "onnxruntime"),
        ("libraries", "cv2"),
    ],
)
def test_a_missing_library_is_said_before_any_chapter_runs(book, monkeypatch, extra, module):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(
        build.BuildError,
        match=rf"^(extra )?{extra}: [a-z-]+: not installed; run make install, or pip install -e ",
    ):
        build.build(ready=doctor.require, report=lambda done: pytest.fail("a chapter ran"))


@pytest.mark.parametrize("module", ["nbdev", "pytest", "playwright"])
def test_a_library_that_no_build_needs_is_only_missing(monkeypatch, module):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == module else object())
    states = {line.what: line.state for line in doctor.packages()}
    assert sorted(states.values()).count("missing") == 1 and "cannot" not in states.values()


def test_every_library_that_the_package_asks_for_is_found_under_its_name():
    assert {line.what: line.told for line in doctor.packages() if line.state != "ok"} == {}
    assert doctor.importable("sphinxcontrib.bibtex") and not doctor.importable("no_such_package.part")


def test_a_module_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fer_book.claims", None)
    monkeypatch.delattr(fer_book, "claims", raising=False)  # where another test has imported it
    assert cli.main(["verify"]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "fer-book: fer_book.claims is not installed; `fer-book doctor` says how to get what is missing"
    )


# two at a time, and what killed builds leave


def test_a_second_build_says_that_one_is_at_work(book):
    out = book / "_build"
    out.mkdir()
    with (
        build.hold(out),
        pytest.raises(
            build.BuildError, match=f"another fer-book is at work in {out}: let it end, or build elsewhere"
        ),
    ):
        build.build(report=lambda done: pytest.fail("a chapter ran"))
    with (
        build.hold(out),
        pytest.raises(build.BuildError, match="another fer-book"),
        build.hold(out, alone=False),
    ):
        pass
    with build.hold(out, alone=False), build.hold(out, alone=False):  # two chapters may run side by side
        pass


def test_the_lock_of_a_killed_build_holds_nobody_up(tmp_path):
    code = (
        "import time, pathlib; from fer_book import build\n"
        f"with build.hold(pathlib.Path({str(tmp_path)!r})): print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(build.BuildError), build.hold(tmp_path):
            pass
        holder.kill()
    with build.hold(tmp_path):
        pass


def test_litter_of_killed_builds_is_swept(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("fer-old_____", "fer-held____", "fer-young___", "fer-pictures")]
    for folder in folders:
        (folder / "ipython").mkdir(parents=True)
        if folder.name != "fer-pictures":  # somebody's own
            (folder / ".lock").touch()
    with build.hold(tmp_path / "fer-held____"):
        for folder in folders:
            if folder.name != "fer-young___":
                os.utime(folder, (time.time() - 2 * DAY,) * 2)
        with build.scratch_folder(tmp_path) as own:
            assert {*tmp_path.iterdir()} == {*folders[1:], own}
    assert not own.exists()

    out = tmp_path / "book" / "_build"
    for folder in ("executed", "html", "rendering-x7"):
        (out / folder).mkdir(parents=True)
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path / "book"))
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "book" / "results"))
    (tmp_path / "book" / "results").mkdir()
    for name, age in (
        (".a.0123456789ab.part.npy", 2 * DAY),
        (".b.0123456789ab.part.npy", 60),
        ("c.npy", 2 * DAY),
    ):
        (tmp_path / "book" / "results" / name).touch()
        os.utime(tmp_path / "book" / "results" / name, (time.time() - age,) * 2)
    build.sweep(out)
    assert {p.name for p in out.iterdir()} == {"html"}
    assert {p.name for p in (tmp_path / "book" / "results").iterdir()} == {
        ".b.0123456789ab.part.npy",
        "c.npy",
    }


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"])
def test_a_build_that_ends_takes_its_processes_with_it(tmp_path, name):
    import signal

    number = getattr(signal, name)
    small_book(tmp_path, "import os, subprocess, time\nopen('started', 'w').close()\ntime.sleep(600)")
    with subprocess.Popen(
        [sys.executable, "-m", "fer_book.cli", "run", "1"],
        env=os.environ | {"FER_BOOK_HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [  # jobs in the background are started deaf to both
            signal.signal(deaf, signal.SIG_DFL) for deaf in (signal.SIGINT, signal.SIGHUP)
        ],
    ) as running:
        try:
            for _ in range(600):
                if (tmp_path / "_build" / "executed" / "started").exists():
                    break
                time.sleep(0.1)
            below = psutil.Process(running.pid).children(recursive=True)
            assert any("ipykernel_launcher" in " ".join(p.cmdline()) for p in below)
            running.send_signal(number)
            assert not psutil.wait_procs(below, timeout=10)[1]
            if name == "SIGINT":
                assert running.wait(60) == 130 and running.stderr.read().splitlines()[-1] == "fer-book: interrupted"
                assert not list(tmp_path.glob("fer-*"))
        finally:
            running.kill()


def test_a_killed_worker_is_one_sentence(tmp_path):
    small_book(tmp_path, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    with pytest.raises(
        build.BuildError,
        match="^a process that runs chapters was killed, .* memory runs out; see .*kernels.log$",
    ):
        build.execute_all([tmp_path / "chapters" / "01_only.ipynb"], tmp_path / "executed")


# kernels


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Path:
    """A home folder whose settings would all spoil a page."""
    home = tmp_path / "home"
    files = {
        ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(
            {"argv": ["/bin/false", "{connection_file}"], "display_name": "mine", "language": "python"}
        ),
        ".ipython/profile_default/startup/00.py": "1 / 0",
        ".ipython/profile_default/ipython_kernel_config.py": "c.InteractiveShellApp.exec_lines = ['1 / 0']",
        ".config/matplotlib/matplotlibrc": "figure.dpi: 7",
        ".jupyter/jupyter_config.py": "1 / 0",
        "startup.py": "print('hello')",
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    for name, value in {
        "HOME": home,
        "JUPYTER_CONFIG_DIR": home / ".jupyter",
        "PYTHONSTARTUP": home / "startup.py",
        "MPLBACKEND": "TkAgg",
        "MATPLOTLIBRC": home / ".config/matplotlib/matplotlibrc",
        "PYTHONWARNINGS": "error",
        "JUPYTER_DEFAULT_PROVISIONER_NAME": "none",
    }.items():
        monkeypatch.setenv(name, str(value))
    for name in ("JUPYTER_DATA_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    return home


def test_a_user_s_settings_do_not_reach_the_chapters(tmp_path, hostile):
    small_book(
        tmp_path / "book",
        "import sys, warnings, matplotlib\nwarnings.warn('x', UserWarning)\n"
        "print(sys.executable, matplotlib.rcParams['figure.dpi'], matplotlib.get_backend())",
    )
    build.execute_all([tmp_path / "book" / "chapters" / "01_only.ipynb"], tmp_path / "executed")
    [printed] = [
        o["text"] for o in outputs(tmp_path / "executed" / "01_only.ipynb") if o.get("name") == "stdout"
    ]
    assert "".join(printed).split()[:2] == [sys.executable, "100.0"] and "inline" in "".join(printed)
    assert {p.name for p in (hostile / ".ipython" / "profile_default").iterdir()} == {
        "startup",
        "ipython_kernel_config.py",
    }


@pytest.mark.parametrize("where", ["long", "missing", "loopback"])
def test_chapters_run_whatever_the_temporary_folder_is(book, tmp_path, monkeypatch, where):
    folder = tmp_path / ("a" * 150)
    if where != "missing":
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    if where == "loopback":
        monkeypatch.setattr(build, "socket_place", lambda: None)
    build.execute_all([book / "chapters" / "01_only.ipynb"], tmp_path / "executed")
    assert "smoke" in json.dumps(outputs(tmp_path / "executed" / "01_only.ipynb"))
    assert not folder.exists() or not list(folder.iterdir())


def test_what_chapters_leave_among_the_temporary_files_goes(book, tmp_path, monkeypatch):
    small_book(tmp_path / "littering", "import tempfile\nprint(tempfile.mkdtemp())")
    build.execute_all([tmp_path / "littering" / "chapters" / "01_only.ipynb"], tmp_path / "executed")
    [printed] = outputs(tmp_path / "executed" / "01_only.ipynb")
    assert not Path("".join(printed["text"]).strip()).exists()


# what `fer-book doctor` says


def lines(*found: doctor.Finding) -> dict[str, doctor.Finding]:
    return {line.what: line for line in found}


def test_doctor_finds_nothing_wrong_here(capsys):
    assert cli.main(["doctor", "--quick", "--json"]) == 0
    found = lines(*(doctor.Finding(**line) for line in json.loads(capsys.readouterr().out)))
    assert {
        "Python",
        "libraries",
        "extra book",
        "HOME",
        "TMPDIR",
        "built book",
        "cache",
        "results",
        "disk",
        "memory",
        "chapters",
        "git",
        "kernels",
        "browser",
        "FER_BOOK_DATA",
    } <= found.keys()
    assert all(line.remedy for line in found.values() if line.state != "ok") and not any(
        line.remedy for line in found.values() if line.state == "ok"
    )


def test_doctor_exits_1_where_the_book_cannot_be_built(book, capsys):
    (book / "_build").touch()
    assert cli.main(["doctor", "--quick"]) == 1
    assert f"cannot   built book        {book / '_build'}: not a directory\n" in capsys.readouterr().out


def test_doctor_starts_a_kernel_and_asks_what_it_imports(tmp_path, monkeypatch):
    [found] = doctor.live_kernel(tmp_path)
    assert found.state == "ok" and found.told == f"imports {fer_book.__file__}"
    (tmp_path / "fer_book.py").write_text("print('another one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(
        build, "kernel_environment", lambda scratch, threads: os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    [found] = doctor.live_kernel(tmp_path)
    assert found.state == "cannot" and found.remedy


def test_doctor_says_why_torch_does_not_import(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [found] = doctor.torch(tmp_path)
    assert (
        found.state == "cannot"
        and found.told == "does not import: OSError: libcudart.so.13: cannot open shared object file"
    )


def test_doctor_names_what_recorded_runs_lack_without_git(book, monkeypatch):
    assert (
        lines(*doctor.checkout(book))["git"].told
        == f"{book} is no git checkout: recorded runs name no commit"
    )
    monkeypatch.setenv("PATH", str(book))
    assert lines(*doctor.checkout(book))["git"] == doctor.Finding(
        "git", "missing", "not installed: recorded runs name no commit", "install git"
    )
    assert doctor.browser(book)[0].state == "missing"


def test_doctor_tells_a_checkout_of_another_user(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    found = lines(*doctor.checkout(tmp_path))
    assert found["git"].remedy == f"run git config --global --add safe.directory {tmp_path}"
    assert found["chapters"].state == "cannot"


def test_doctor_tells_where_temporary_files_go(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert doctor.temporary().state == "missing" and doctor.temporary().told.startswith(
        f"{tmp_path / 'none'} cannot be written: /"
    )


def test_doctor_tells_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path / "none"))
    assert doctor.data_folder(tmp_path)[0].state == "cannot"
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path))
    (tmp_path / "rafdb" / "EmoLabel").mkdir(parents=True)
    (tmp_path / "rafdb" / "EmoLabel" / "list_patition_label.txt").touch()
    found = lines(*doctor.data_sets(tmp_path))
    assert found["data: rafdb"].state == "cannot" and "the file has no rows" in found["data: rafdb"].told
    assert found["data: fer2013"].state == "missing" and "kaggle" in found["data: fer2013"].remedy.lower()


# nothing calls out

WORK = """
import os, sys
from pathlib import Path
import numpy as np
from PIL import Image
from fer_book import build, claims, cli, predict, training

if __name__ == "__main__":
    Image.fromarray(np.full((96, 96), 128, np.uint8)).save("grey.png")
    assert cli.main(["train", "ablation-plain", "--profile", "smoke", "--out", "runs"]) == 0
    assert cli.main(["predict", "grey.png", "--cropped", "--json"]) == 0
    small = training.load_model(claims.best_model(most_parameters=predict.SMALL))
    file = predict.to_onnx(small, Path("network.onnx"))
    print(predict.bench_predict(small, file, batches=1, singles=2, rounds=1))
    cli.main(["doctor", "--quick"])
    os.environ["FER_BOOK_HOME"] = sys.argv[1]
    build.build()
"""
WATCH = """
import sys

def tell(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0] if event.startswith("socket.get") else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(address, tuple) or event.startswith("socket.get"):
            with open({log!r}, "a") as log:
                print(event, f'"{{host}}"', file=log)

sys.addaudithook(tell)
"""


def calls_out(log: Path) -> list[str]:
    """The lines of a log that name an address which is not this machine's own."""
    named = (
        [line for line in log.read_text().splitlines() if "AF_INET" in line or line.startswith("socket.")]
        if log.exists()
        else []
    )
    return [
        line
        for line in named
        if not any(own in line for own in ('"127.0.0.1"', '"::1"', '"localhost"', '"None"'))
    ]


def watched(script: Path, log: Path) -> tuple[list[str], dict[str, str]]:
    """A command that runs `script` and logs whom it calls, and its environment.

    strace sees what C++ does too; where there is none, Python's own hook has to do.
    """
    strace = [
        "strace",
        "--seccomp-bpf",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-o",
        str(log),
    ]
    if shutil.which("strace") and subprocess.run([*strace, "true"], capture_output=True).returncode == 0:
        return [*strace, sys.executable, str(script)], {}
    (script.parent / "hook").mkdir()
    (script.parent / "hook" / "sitecustomize.py").write_text(WATCH.format(log=str(log)))
    return [sys.executable, str(script)], {
        "PYTHONPATH": os.pathsep.join([str(script.parent / "hook"), os.environ.get("PYTHONPATH", "")])
    }


@pytest.mark.parametrize("how", ["as it can", "without strace"])
def test_a_call_out_would_be_seen(tmp_path, monkeypatch, how):
    if how == "without strace":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "call.py").write_text(
        "import socket\nfor host in ('127.0.0.1', '192.0.2.1'):\n s = socket.socket(); s.settimeout(0.1)\n"
        " try: s.connect((host, 9))\n except OSError: pass"
    )
    command, environment = watched(tmp_path / "call.py", tmp_path / "log")
    subprocess.run(command, env=os.environ | environment, check=True)
    assert len(calls_out(tmp_path / "log")) == 1


def test_nothing_calls_out(tmp_path):
    small_book(tmp_path / "book", "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    for name in ("_config.yml", "references.bib"):
        shutil.copy(ROOT / name, tmp_path / "book")
    shutil.copytree(ROOT / "site", tmp_path / "book" / "site", ignore=shutil.ignore_patterns("vendor"))
    (tmp_path / "book" / "_toc.yml").write_text("format: jb-book\nroot: chapters/01_only\n")
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "home").mkdir()
    command, environment = watched(tmp_path / "work.py", tmp_path / "log")
    settings = {
        k: v
        for k, v in os.environ.items()
        if k not in ("FER_BOOK_DATA", "FER_BOOK_CACHE", *build.SILENT, *fer_book.KEPT)
    }
    done = subprocess.run(
        [*command, str(tmp_path / "book")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)}
        | settings
        | {"FER_BOOK_HOME": str(ROOT), "HOME": str(tmp_path / "home")}
        | environment,
    )
    assert done.returncode == 0, done.stderr
    assert not calls_out(tmp_path / "log")
    kept = {str(p.relative_to(tmp_path / "home")) for p in (tmp_path / "home").glob("*/*")}
    assert kept <= {".cache/matplotlib", ".config/matplotlib", ".cache/fer_book"}, kept


def test_doctor_reads_the_data_and_says_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "faces").mkdir()
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path / "faces"))
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "cache"))
    LAYOUTS["train, test"](tmp_path / "faces", drawn(60))
    (tmp_path / "faces" / "own.parquet").write_bytes(b"PAR1 cut")
    lines = {line.what: line for line in doctor.data_sets(tmp_path)}
    assert lines["data: fer2013"].state == "missing" and "class folders" in lines["data: fer2013"].told
    assert "no FER+ votes" in lines["data: fer2013"].remedy and "no validation split" in lines["data: fer2013"].remedy
    assert lines["data: ferplus"].state == "missing" and lines["data: rafdb"].remedy.startswith("ask at")
    assert lines["data: own"].state == "cannot" and "not a whole parquet file" in lines["data: own"].told
