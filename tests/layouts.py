"""FER-2013 in the forms that the public finds it in, written from one table: what `data/datasets.md` documents."""
import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fer_book.datasets import FER2013_ROWS, OFFICIAL, FaceTable
from fer_book.emotions import FER2013_EMOTIONS, VOTE_COLUMNS
from fer_book.schematic import generate

KAGGLE = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FERPLUS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
TWICE = ((5274, 6968), (5348, 11817), (8423, 15835), (33200, 34334))  # lines whose image names FER+ gave twice


@dataclass(frozen=True)
class Whole:
    """FER-2013 line by line: images (N,48,48), emotion (N,), usage (N,), ten votes (N,10), FER+'s image name (N,)."""

    images: np.ndarray
    emotion: np.ndarray
    usage: np.ndarray
    votes: np.ndarray
    names: np.ndarray

    @property
    def named(self) -> np.ndarray:
        """The lines that FER+ rated."""
        return self.names != ""

    def last_named(self) -> dict[str, int]:
        """Line by image name; of a name that is there twice the later one."""
        return {name: line for line, name in enumerate(self.names) if name}


def drawn(n: int = 600) -> Whole:
    """n drawn faces in the order of the original, 70% Training, two of them without a name, one name twice."""
    made = generate(n, seed=1, size=48)
    usage = np.repeat(list(OFFICIAL), [n - 2 * (n * 15 // 100), n * 15 // 100, n * 15 // 100])
    names = np.array([f"fer{i:07d}.png" for i in range(n)], object)
    names[[7, n - 3]] = ""
    names[11] = names[10]
    return Whole(made.images, made.emotion, usage, made.votes, names)


def genuine(faces: FaceTable) -> Whole:
    """The original 35,887 lines back from the compact form: lines that are not in it get a drawn face, no name and no votes."""
    n = sum(FER2013_ROWS)
    fill = generate(n - len(faces), seed=2, size=48)
    at, gap = faces.frame["row"].to_numpy(), np.setdiff1d(np.arange(n), faces.frame["row"])
    images, emotion, votes = np.empty((n, 48, 48), np.uint8), np.empty(n, int), np.zeros((n, 10), int)
    images[at], images[gap] = faces.images, fill.images
    emotion[at], emotion[gap] = faces.frame["emotion"], fill.emotion
    votes[at] = faces.votes
    names = np.array([f"fer{i:07d}.png" for i in range(n)], object)
    names[gap] = ""
    for first, second in TWICE:
        names[second] = names[first]
    return Whole(images, emotion, np.repeat(list(OFFICIAL), FER2013_ROWS), votes, names)


def write_lines(path: Path, whole: Whole, columns: str = "emotion,pixels,Usage") -> None:
    """Kaggle's CSV file; `columns` as its first line has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = [name.strip().lower() for name in columns.split(",")]
    with path.open("w") as file:
        file.write(columns + "\n")
        for image, label, usage in zip(whole.images, whole.emotion, whole.usage):
            told = {"emotion": str(label), "pixels": " ".join(map(str, image.ravel().tolist())), "usage": usage}
            file.write(",".join(told[name] for name in order) + "\n")


def write_new(path: Path, whole: Whole) -> None:
    """FER+'s fer2013new.csv."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Usage", "Image name", *VOTE_COLUMNS])
        writer.writerows([usage, name, *votes] for usage, name, votes in zip(whole.usage, whole.names, whole.votes))


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def write_folders(root: Path, whole: Whole, splits: dict[str, str], prefix: bool = False, suffix: str = ".png") -> None:
    """Class folders in `splits` (folder by usage), files numbered at random as on Kaggle, their usage in the name with `prefix`."""
    numbers = np.random.default_rng(0).permutation(10 * len(whole.images))
    for k, (image, label, usage) in enumerate(zip(whole.images, whole.emotion, whole.usage)):
        folder = root / splits[usage] / KAGGLE[label]
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{usage}_{numbers[k]}" if prefix else f"im{numbers[k]}"
        data = encoded(image) if suffix == ".png" else encoded(image, "JPEG", quality=75)
        (folder / f"{name}{suffix}").write_bytes(data)


def write_ferplus(root: Path, whole: Whole, labels: bool = True) -> None:
    """The folders that FER+'s own script writes, with the `label.csv` of each or without."""
    rows = {folder: [] for folder in FERPLUS.values()}
    for name, line in whole.last_named().items():
        folder = root / FERPLUS[whole.usage[line]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(whole.images[line]))
        rows[folder.name].append([name, "(0, 0, 48, 48)", *whole.votes[line]])
    for folder, lines in rows.items() if labels else ():
        with (root / folder / "label.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def write_shards(root: Path, whole: Whole, files: dict[str, str], names: tuple[str, ...] = ()) -> None:
    """A data hub's parquet files (path by usage); labels are numbers for `names` in the metadata, or the names themselves."""
    for usage in files:
        mine = [u for u in files if files[u] == files[usage]]
        at = np.flatnonzero(np.isin(whole.usage, mine))
        words = [KAGGLE[k] for k in whole.emotion[at]]
        images = [{"bytes": encoded(image), "path": None} for image in whole.images[at]]
        table = pa.table({"image": images, "label": [names.index(w) for w in words] if names else words})
        features = {"label": {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        if names:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (root / files[usage]).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / files[usage])


def write_compact(root: Path, whole: Whole) -> None:
    """The book's own form: one lossless WebP a row, votes inside."""
    at = np.flatnonzero(whole.named)
    frame = pd.DataFrame({"row": at, "usage": whole.usage[at], "emotion": whole.emotion[at]})
    frame[list(VOTE_COLUMNS)] = whole.votes[at]
    frame["image"] = [encoded(image, "WEBP", lossless=True) for image in whole.images[at]]
    frame.to_parquet(root / "fer2013.parquet")


def _csv(root: Path, whole: Whole) -> None:
    write_lines(root / "fer2013.csv", whole)


def _csv_and_new(root: Path, whole: Whole) -> None:
    write_lines(root / "fer2013.csv", whole)
    write_new(root / "fer2013new.csv", whole)


def _icml(root: Path, whole: Whole) -> None:
    write_lines(root / "fer2013" / "icml_face_data.csv", whole, "emotion, Usage, pixels")


def _kaggle(root: Path, whole: Whole) -> None:
    split = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
    write_folders(root / "archive", whole, split, prefix=True, suffix=".jpg")


def _train_test(root: Path, whole: Whole) -> None:
    write_folders(root / "fer2013", whole, {"Training": "train", "PublicTest": "test", "PrivateTest": "test"})


def _train_validation(root: Path, whole: Whole) -> None:
    split = {"Training": "train", "PublicTest": "validation", "PrivateTest": "validation"}
    write_folders(root / "fer2013" / "images", whole, split, suffix=".jpg")


def _three_folders(root: Path, whole: Whole) -> None:
    write_folders(root / "fer2013", whole, {"Training": "train", "PublicTest": "val", "PrivateTest": "test"})


def _folders_and_new(root: Path, whole: Whole) -> None:
    _train_test(root, whole)
    write_new(root / "fer2013" / "fer2013new.csv", whole)


def _classes_only(root: Path, whole: Whole) -> None:
    write_folders(root / "fer2013", whole, dict.fromkeys(OFFICIAL, ""))


def _ferplus(root: Path, whole: Whole) -> None:
    write_ferplus(root / "FERPlus" / "data", whole)


def _ferplus_and_new(root: Path, whole: Whole) -> None:
    write_ferplus(root / "FERPlus" / "data", whole, labels=False)
    write_new(root / "FERPlus" / "fer2013new.csv", whole)


def _hub(root: Path, whole: Whole) -> None:
    files = {u: f"data/{s}-00000-of-00001.parquet" for u, s in zip(OFFICIAL, ("train", "valid", "test"))}
    write_shards(root / "fer2013", whole, files, tuple(sorted(KAGGLE)))


def _hub_two(root: Path, whole: Whole) -> None:
    test = "default/test/0000.parquet"
    files = {"Training": "default/train/0000.parquet", "PublicTest": test, "PrivateTest": test}
    write_shards(root / "fer2013", whole, files)


LAYOUTS = {"fer2013.parquet": write_compact, "fer2013.csv": _csv, "fer2013.csv + fer2013new.csv": _csv_and_new,
           "icml_face_data.csv": _icml, "train, test with Kaggle's names": _kaggle, "train, test": _train_test,
           "train, validation": _train_validation, "train, val, test": _three_folders,
           "train, test + fer2013new.csv": _folders_and_new, "classes only": _classes_only,
           "FER+ folders": _ferplus, "FER+ folders + fer2013new.csv": _ferplus_and_new,
           "hub, three files": _hub, "hub, two files": _hub_two}
"How to write each layout into a data folder, by name."


def only(whole: Whole, keep: np.ndarray) -> Whole:
    """Some of the lines."""
    return replace(whole, **{name: getattr(whole, name)[keep] for name in vars(whole)})
