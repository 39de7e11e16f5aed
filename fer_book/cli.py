"""`fer-book`: the book from a terminal. Written by hand and thin: every command calls a chapter's module or `build`."""
import argparse
import hashlib
import json
import os
import re
import sys
import warnings
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

from fer_book import build

EXAMPLES = {
    "": """
first steps:
  fer-book doctor                        what this machine can run, and what to do where it cannot
  fer-book data list                     which data sets there are, and which of them you have
  fer-book run 03                        execute a chapter on a few hundred faces
  fer-book train shallow-cnn-paper --budget 9m   train for nine minutes; the same again goes on from there
  fer-book verify                        every number the papers print, and what holds
  fer-book predict photo.jpg             find the faces and read their expressions
  fer-book build                         execute all chapters and render the site

Real faces are read from the folder in FER_BOOK_DATA; without it the chapters draw schematic ones.
Exit code: 0 done, 1 not done (one sentence says why), 2 wrong usage, 3 stopped by --budget before the end.""",
    "data": """
examples:
  fer-book data list
  fer-book data check fer2013            read every image and label, report what is wrong with them
  fer-book data prepare fer2013          decode once into the cache, so that the next read takes under a second""",
    "run": """
examples:
  fer-book run 03                        same as 03_datasets or datasets
  fer-book run 10 --profile gpu          the paper's protocol, on a machine with a GPU
  fer-book run 05 -p profile=\\"cpu\\"     any parameter of the chapter's parameters cell, as a Python value""",
    "train": """
examples:
  fer-book train shallow-cnn-paper --profile smoke       try whether it runs
  fer-book train shallow-cnn-paper --budget 1h30m --seed 1
A run lands in results/<run-id>/ when it is complete. Killed or out of budget, the same command resumes it (exit code 3: not complete yet).""",
    "verify": """
examples:
  fer-book verify
  fer-book verify --paper emotions_classification
  fer-book verify --json > verdicts.json
  fer-book verify --write
Verdicts are computed from results/ now; a contradicted paper is a finding, not an error, so the exit code stays 0.""",
    "build": """
examples:
  fer-book build
  FER_BOOK_DATA=~/faces fer-book build --profile cpu""",
    "doctor": """
examples:
  fer-book doctor
  fer-book doctor --quick                a second: what `fer-book build` looks at before it starts
  fer-book doctor --json
Each line is ok, missing (some commands do without it, or say so) or cannot (the book
cannot be built here: exit code 1), and names the remedy.""",
    "predict": """
examples:
  fer-book predict photo.jpg
  fer-book predict photos/ --csv > faces.csv             a bad file is reported, the others go through (exit code 1)
  fer-book predict clip.mp4 --json --every 0.2           one object per face per sampled frame, with its time in seconds
  fer-book predict photos/ --save-image marked/          copies with boxes and labels
  fer-book predict face.png --cropped                    the picture is one face already: do not search
  fer-book predict clip.mp4 --model vad --plot path.png  valence and arousal as a path through the plane, with its jitter
  fer-book predict webcam                                until you press Ctrl-C; ./webcam is a file or folder of that name
Boxes are in pixels of the upright picture. Without --model the network that is best on PublicTest answers.""",
    "bench": """
examples:
  fer-book bench
  fer-book bench shallow-cnn-paper       images per second: bare model step, our pipeline, faces read as files
  fer-book bench predict                 faces per second and ms for one face: PyTorch, ONNX Runtime, the package fer if installed""",
}


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator:
    """A bar on a terminal, plain lines elsewhere; yields `step(line="", advance=1)`, which prints `line` and moves the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = [SpinnerColumn(), TextColumn("{task.description}"), *([BarColumn(), MofNCompleteColumn()] if total else []), TimeElapsedColumn()]
    if not console.is_terminal:
        print(f"{label} …", file=sys.stderr, flush=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)

        def step(line: str = "", advance: int = 1) -> None:
            if line:
                bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
            bar.advance(task, advance)

        yield step


def show(table) -> None:
    """Print a DataFrame: a drawn table on a terminal, aligned plain text elsewhere."""
    text = lambda value: f"{value:.6g}" if isinstance(value, Real) and not isinstance(value, Integral) else str(value).replace("\n", " ")
    lines = [list(map(text, row)) for row in (table.columns, *table.astype(object).itertuples(index=False))]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*lines)]
        print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*lines[0], box=box.SIMPLE_HEAD)
    for line in lines[1:]:
        drawn.add_row(*line)
    Console(highlight=False, markup=False).print(drawn)


def seconds(text: str) -> float:
    """`90s`, `9m`, `1h30m` or plain seconds as seconds."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    total = sum(int(n or 0) * unit for n, unit in zip(found.groups(), (3600, 60, 1))) if found else 0
    if not total:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 90s, 9m or 1h30m")
    return float(total)


def interval(text: str) -> float:
    """Seconds between frames, a number above 0."""
    try:
        if (value := float(text)) > 0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def parameter(text: str) -> tuple[str, object]:
    """`name=value` with a Python literal or a bare word as the value."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not a parameter: write name=value")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def near(path: Path) -> Path:
    """`path` as seen from the working folder, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def data(args) -> int:
    from fer_book import datasets  # its readers draw their own bars

    if args.action == "list":
        show(datasets.catalogue()[["name", "here", "rows", "layout", "holds", "licence"]])
        print("data/datasets.md says how to get each one and where it goes in the folder that FER_BOOK_DATA names.")
    elif args.action == "check":
        show(datasets.check(args.name))
    else:
        print(datasets.prepare(args.name))
    return 0


def run(args) -> int:
    chapter = build.find_chapter(args.chapter)
    folder = build.home() / "_build" / "executed"
    with progress(f"{chapter.stem}, profile {args.profile}"), build.hold(build.room(folder.parent), alone=False):
        [done] = build.execute_all([chapter], folder, **{"profile": args.profile} | dict(args.parameter))
    print(f"{chapter.stem} ran in {done.seconds:.1f} s: {near(folder / chapter.name)}")
    return 0


def train(args) -> int:
    with progress(f"loading {args.recipe}"):
        from fer_book import datasets, training

        recipe = training.find_recipe(args.recipe)
    if args.publish and args.out:
        raise ValueError("--publish puts the network of a run in results/ into models/; leave out --publish or --out")
    drawn = datasets.load_or_embedded(recipe.dataset).embedded  # a first read fills the cache under a bar of its own
    with progress(f"training {recipe.name}, profile {args.profile}, seed {args.seed}", recipe.at(args.profile).epochs) as step:
        def report(row: dict) -> None:
            step(training.epoch_line(row))

        done = training.fit(recipe, profile=args.profile, seed=args.seed, out=args.out, budget=args.budget, report=report)
    if not done.complete:
        print(f"{done.id}: stopped by --budget after epoch {len(done.history)} of {recipe.at(args.profile).epochs}; run the same command again to resume")
        return 3
    if args.publish:
        print(f"{near(training.publish(done.id))}: the network, for `training.load_model`")
    if done.recorded:
        return 0
    next_step = f"a smoke run enters no verdict{', and this one saw drawn faces' * drawn}" if args.profile == "smoke" else "`fer-book verify` confronts it with the paper"
    print(f"{done.id}: recorded in {near(done.path)}; {next_step}")
    return 0


def verify(args) -> int:
    if args.write and args.paper:
        raise ValueError("--write writes the table of all papers; leave out --paper")
    with progress("reading recorded runs"):
        from fer_book import claims

        table = claims.verdicts(paper=args.paper)
    if args.write:
        print(f"{near(claims.write_gate(table))}: {len(table)} rows")
        return 0
    if args.json:
        print(claims.to_json(table))
        return 0
    for paper, rows in table.groupby("paper", sort=False):
        print(f"\n{claims.PAPERS.get(paper, paper)}")
        show(claims.readable(rows)[["where", "what", "unit", "paper", "ours [95% interval]", "state", "unlike the paper"]])
    for sentence in dict.fromkeys(sentence for row in table.to_dict("records") for result in (row, *row["also"]) for sentence in result["remarks"]):
        print(f"note: {sentence}")
    print(f"\n{what_holds(table)}")
    return 0


def what_holds(table) -> str:
    """What became of the printed numbers: two sentences on all, and one line per paper."""
    from fer_book import claims

    counts = claims.count_states(table)
    lines = [f"{paper}: " + ", ".join(f"{n} {state}" for state, n in row.items() if n and state != "all") + f" (of {row['all']} numbers)"
             for paper, row in counts.iterrows()]
    return "\n".join([claims.headline(table), claims.arithmetic_headline(table), *lines])


def build_book(args) -> int:
    from fer_book.doctor import require

    total = len(build.chapters())
    with progress("executing chapters", total) as step:
        def report(done: build.Execution) -> None:
            step(f"{done.chapter:32s} {done.seconds:6.1f} s  {'failed' if done.error else 'ok'}")

        first = build.build(args.out, args.profile, report, rendering=lambda: step("rendering the site …", 0),
                            ready=require)
    from fer_book import claims

    faces = "" if os.environ.get("FER_BOOK_DATA") else "Executed on drawn faces: set FER_BOOK_DATA to your folder with real ones.\n"
    print(f"\n{what_holds(claims.verdicts())}\n\n{faces}Open {first.as_uri()}")
    return 0


def doctor(args) -> int:
    from fer_book.doctor import examine

    found = []
    for line in examine(quick=args.quick):
        found.append(line)
        if not args.json:
            remedy = f"\n{'':27s}-> {line.remedy}" if line.remedy else ""
            print(f"{line.state:8s} {line.what:17s} {line.told}{remedy}", flush=True)
    if args.json:
        print(json.dumps([vars(line) for line in found], indent=1))
    return 1 if any(line.state == "cannot" for line in found) else 0


def predict(args) -> int:
    with progress("loading the network"):
        from fer_book.predict import Predictor, is_camera, read_sources

        predictor = Predictor(args.model, detect=not args.cropped)
    if args.plot and not predictor.trained.recipe.outputs:
        raise ValueError("--plot draws valence and arousal, and this network answers with emotions; add --model vad")
    files, live, rows, bad = sources(args.source, args.save_image), is_camera(args.source), [], set()
    if args.plot:
        check_plot(args.plot, files)
    if args.save_image and is_file_name(args.save_image) and Path(args.source).is_dir():
        raise ValueError(f"{args.save_image} is one file, but {args.source} is a folder; give --save-image a folder")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have the letters of a name
    if args.csv:
        print(",".join(["file", "seconds", *predictor.columns]))
    try:
        for file, reading in read_sources(predictor, files, args.every):
            try:
                if file not in bad:
                    table = tell(args, file, live, *reading.result())
                    if len(table) and (args.plot or not (args.csv or live and not args.json)):
                        rows.append(table)
            except ValueError as problem:
                print(f"fer-book: {problem}", file=sys.stderr)
                bad.add(file)
    except KeyboardInterrupt:
        if not live:
            raise
    finish(args, rows)
    if bad and len(files) > 1:
        print(f"fer-book: {len(bad)} of {len(files)} files could not be read", file=sys.stderr)
    return 1 if bad else 0


def tell(args, file: Path | str, live: bool, seconds: float, image, table):
    """Print what has to come at once, save the marked copy; returns the table with name and time in front."""
    from fer_book.predict import readable_name

    name = readable_name(file)
    table.insert(0, "seconds", seconds)
    table.insert(0, "file", name)
    if args.csv:
        print(table.to_csv(index=False, header=False), end="", flush=True)
    elif live and not args.json:
        print(*(told(face) for face in table.to_dict("records")), sep="\n", flush=True)
    if table.empty and not live:
        print(no_face(name, seconds), file=sys.stderr)
    if args.save_image:
        save_image(args, file, live, seconds, image, table)
    return table


def finish(args, rows: list) -> None:
    """Draw the path, print the JSON or the table: what needs all rows."""
    import pandas as pd

    faces = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    if args.plot:
        save_path(args.plot, faces)
    if args.json:
        print(json.dumps(json.loads(faces.to_json(orient="records")), indent=1, ensure_ascii=False))
    elif len(faces) and not args.csv:
        show(faces.round(2).dropna(axis=1, how="all").rename(columns=lambda name: name.removeprefix("p_")))


def sources(source: str, leave_out: Path | None = None) -> list[Path | str]:
    """The picture, video or camera that is meant, or every file below a folder.

    Left out are hidden files, those below `leave_out`, and the one we print to. Linked folders are entered, each once.
    """
    if not source.strip():
        raise ValueError("the name of the picture, video or folder is empty; give one, or . for this folder")
    from fer_book.datasets import files_below
    from fer_book.predict import is_camera

    folder = Path(source)
    if not folder.is_dir():
        return [source if is_camera(source) else folder]
    apart = Path(os.path.realpath(leave_out)) if leave_out else None
    if apart == Path(os.path.realpath(folder)):
        raise ValueError(f"{leave_out} is the folder of the pictures; give --save-image another place")
    hidden = lambda path: any(part.startswith(".") for part in path.relative_to(folder).parts)
    files = [path for path in files_below(folder) if os.path.isfile(path) and not hidden(path) and not is_stdout(path)
             and apart not in Path(os.path.realpath(path)).parents]
    if not files:
        raise ValueError(f"{folder}: there is no file in this folder; give one with photographs or videos")
    return sorted(files)


def is_stdout(path: Path) -> bool:
    """Whether what we print is being written to this file, as in `fer-book predict . --csv > faces.csv`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except OSError:  # no output with a number
        return False


def is_file_name(path: Path) -> bool:
    """Whether `path` names one file to write, not a folder."""
    return bool(path.suffix) and not path.is_dir()


def told(face: dict) -> str:
    """A row of the table as one line for a terminal."""
    answer = f"{face['emotion']} {face['p_' + face['emotion']]:.2f}" if "emotion" in face else \
        "  ".join(f"{k} {face[k]:.1f}" for k in ("valence", "arousal", "dominance") if k in face)
    return f"{face['seconds']:7.1f} s  {face['width']:4d} px at {face['x']}, {face['y']}: {answer}"


def no_face(name: str, seconds: float) -> str:
    """What to say of a picture or frame without a face."""
    where = f" at {seconds:.2f} s" if seconds == seconds else "; if it is a cropped face already, add --cropped"
    return f"{name}: no face found{where}"


def marked_name(file: Path, seconds: float) -> str:
    """The name of a picture's or frame's marked copy, at most 255 bytes; no other picture beside `file` has it."""
    ending = "" if file.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
    if seconds == seconds:
        ending = f"-{seconds:09.3f}s.png"
    while ending and os.path.exists(file.with_name(file.name + ending)):
        ending += ".png"
    if len(os.fsencode(file.name)) + len(ending) > 255:
        ending = f"-{hashlib.sha256(os.fsencode(file.name)).hexdigest()[:8]}{ending}"
        return os.fsencode(file.name)[:255 - len(ending)].decode("utf-8", "ignore") + ending
    return file.name + ending


def save_image(args, file: Path | str, live: bool, seconds: float, image, table) -> None:
    """Write a copy with boxes and labels: to the file that --save-image names, else into that folder under the picture's own name."""
    from PIL import Image

    from fer_book.datasets import write_atomic
    from fer_book.predict import draw_table

    target, file = args.save_image, Path(file)
    if seconds == seconds and is_file_name(target) and not live:
        raise ValueError(f"{target} is one picture, but {file} has many frames; give --save-image a folder")
    if not is_file_name(target):
        below = Path(args.source) if Path(args.source).is_dir() else file.parent
        target = target / file.parent.relative_to(below) / marked_name(file, seconds)
    if target.exists() and file.exists() and target.samefile(file):
        raise ValueError(f"{target} is the picture itself; give --save-image another place")
    write_atomic(target, lambda path: Image.fromarray(draw_table(image, table)).save(path))


def check_plot(target: Path, files: list[Path]) -> None:
    """ValueError before any work is done if --plot cannot be drawn from these files or written to `target`."""
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if len(files) != 1:
        raise ValueError("--plot draws the path of a face through one video; give one, not a folder")
    if target.is_dir() or target.suffix.lstrip(".").lower() not in known:
        raise ValueError(f"{target}: --plot writes one picture; end its name in .{', .'.join(sorted(known))}")


def save_path(target: Path, faces) -> None:
    """Draw the faces' path through the valence-arousal plane to the file that --plot names."""
    from matplotlib.figure import Figure

    from fer_book.datasets import write_atomic
    from fer_book.predict import path_of, plot_path

    if faces.empty:
        raise ValueError("--plot draws the path of a face through one video, and no face was found")
    figure = Figure(figsize=(6, 5), layout="constrained")
    plot_path(path_of(faces), figure.add_subplot())
    write_atomic(target, lambda path: figure.savefig(path, dpi=150, format=target.suffix.lstrip(".")))
    print(f"path: {target}", file=sys.stderr)


def bench(args) -> int:
    if args.what == "predict":
        return bench_predict(args)
    from fer_book import datasets, training

    recipe = training.find_recipe(args.what)
    faces = datasets.load_or_embedded(recipe.dataset)
    with progress("measuring images per second, for minutes"):
        table = training.bench(recipe, faces)
    show(table.round(2).reset_index(names=recipe.name))
    return 0


def bench_predict(args) -> int:
    from tempfile import TemporaryDirectory

    with progress("measuring faces per second"), TemporaryDirectory() as folder:
        from fer_book import claims, predict, training

        run_id = args.model or claims.best_model(most_parameters=predict.SMALL)
        trained = training.load_model(run_id)
        try:
            table = predict.bench_predict(trained, predict.to_onnx(trained, Path(folder) / "network.onnx"))
        except ImportError as problem:
            raise ValueError(problem) from problem
    show(table.round(2).reset_index(names=run_id))
    print(f"Batches of 64 faces, then one face at a time, on {os.cpu_count()} processors; other load makes it slower.")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser("fer-book", description="Facial expression recognition: five papers, every number checked.",
                                  epilog=EXAMPLES[""], formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, does: str, do) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".", epilog=EXAMPLES[name],
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
        made.set_defaults(do=do)
        return made

    def profile(made: argparse.ArgumentParser, default: str = "smoke") -> None:
        made.add_argument("--profile", choices=build.PROFILES, default=default,
                          help="smoke: seconds, a few hundred faces; cpu: an hour on two cores; gpu: the paper's protocol (default: %(default)s)")

    sub = command("data", "list, check or prepare data sets", data)
    sub = sub.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    sub.add_parser("list", help="the data sets the book knows, and which of them you have")
    sub.add_parser("check", help="read every image and label of one, report what is wrong").add_argument("name", metavar="NAME")
    sub.add_parser("prepare", help="decode one into the cache").add_argument("name", metavar="NAME")

    sub = command("run", "execute a chapter into _build/executed", run)
    sub.add_argument("chapter", metavar="CHAPTER", help="its number, name or both: 03, datasets, 03_datasets")
    profile(sub)
    sub.add_argument("-p", "--parameter", metavar="NAME=VALUE", type=parameter, action="append", default=[], help="set another parameter of the chapter")

    sub = command("train", "train a recipe and record the run in results/", train)
    sub.add_argument("recipe", metavar="RECIPE", help="a recipe's name; a wrong one lists them all")
    profile(sub, "cpu")
    sub.add_argument("--budget", metavar="TIME", type=seconds, help="stop cleanly before this much time is over: 90s, 9m, 1h30m")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="random seed, part of the run's id (default 0)")
    sub.add_argument("--out", metavar="DIR", type=Path, help="record the run here instead of in results/")
    sub.add_argument("--publish", action="store_true", help="also put the trained network into models/")

    sub = command("verify", "confront every number the papers print with the recorded runs", verify)
    sub.add_argument("--paper", metavar="P", help="only this paper; a wrong name lists them all")
    sub.add_argument("--json", action="store_true", help="a JSON list of objects on standard output")
    sub.add_argument("--write", action="store_true", help="write the table that a test compares with, data/claims/verdicts.csv")

    sub = command("build", "execute every chapter and render the site to _build/html", build_book)
    profile(sub)
    sub.add_argument("--out", metavar="DIR", type=Path, help="build here instead of in _build/")

    sub = command("doctor", "say what this machine and this data folder can run", doctor)
    sub.add_argument("--quick", action="store_true", help="only what takes a second")
    sub.add_argument("--json", action="store_true", help="a JSON list of objects on standard output")

    sub = command("predict", "find faces in a photo, a folder, a video or the webcam and read their expressions", predict)
    sub.add_argument("source", metavar="PHOTO|FOLDER|VIDEO|webcam", help="what to look at")
    sub.add_argument("--model", metavar="RUN-ID", help="a network of models/, or vad for the best one that answers with valence, arousal and "
                     "dominance (default: the best for emotions, on PublicTest)")
    output = sub.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="a JSON list with one object per face")
    output.add_argument("--csv", action="store_true", help="comma-separated values, one line per face, as they come")
    sub.add_argument("--save-image", metavar="DIR|FILE", type=Path, help="write copies with boxes and labels")
    sub.add_argument("--plot", metavar="FILE", type=Path, help="draw the path of the largest face of a video through the valence-arousal plane")
    sub.add_argument("--cropped", action="store_true", help="every picture is one face already: do not search for faces")
    sub.add_argument("--every", metavar="SECONDS", type=interval, default=0.5, help="time between sampled frames of a video (default %(default)s)")

    sub = command("bench", "measure speed: training images, or with `predict` faces, per second", bench)
    sub.add_argument("what", metavar="RECIPE|predict", nargs="?", default="shallow-cnn-paper", help="a recipe's name (default: %(default)s), or predict")
    sub.add_argument("--model", metavar="RUN-ID", help="with predict: a network of models/ (default: the best on PublicTest that has at most 5 million parameters)")
    return top


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """What the book warns of comes as a line on stderr; what libraries warn of does not come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module="fer_book|__main__")
        warnings.showwarning = lambda message, *where, **more: print(f"fer-book: {message}", file=sys.stderr)
        yield


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    grammar = parser()
    args = grammar.parse_args(argv)
    if not hasattr(args, "do"):
        grammar.print_help()
        return 2
    os.environ |= build.SILENT
    try:
        with warnings_as_lines():
            return args.do(args)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("fer-book: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as problem:
        print(f"fer-book: {problem.name} is not installed; `fer-book doctor` says how to get what is missing",
              file=sys.stderr)
        return 1
    except (ValueError, OSError, build.BuildError) as problem:
        print(f"fer-book: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
