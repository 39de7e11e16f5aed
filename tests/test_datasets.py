"""Readers on tiny made-up copies of every layout, the audit on hand-made tables, and the counts on the real faces."""
import csv
import errno
import io
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import LAYOUTS, drawn, genuine, only, write_lines, write_new
from PIL import Image

from fer_book import datasets
from fer_book.datasets import DataError, DataMissing, FaceTable
from fer_book.emotions import FER2013_EMOTIONS, FERPLUS_EMOTIONS, NORMS, VOTE_COLUMNS, votes_to_vad

USAGE = ("Training",) * 6 + ("PublicTest",) * 3 + ("PrivateTest",) * 3
SPLIT = np.array(["train"] * 6 + ["valid"] * 3 + ["test"] * 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FER_BOOK_DATA", raising=False)


def made_up(n=12, size=48, seed=0):
    """n random grey images, labels 0..6 and ten votes each."""
    rng = np.random.default_rng(seed)
    votes = rng.multinomial(10, np.full(10, 0.1), n)
    return rng.integers(0, 256, (n, size, size), dtype=np.uint8), np.arange(n) % 7, votes


def png(image, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def write_csv(path, images, labels, header="emotion,pixels,Usage", usage=USAGE):
    columns = [name.strip().lower() for name in header.split(",")]
    with open(path, "w", newline="") as f:
        f.write(header + "\n")
        for image, label, use in zip(images, labels, usage):
            value = {"emotion": str(label), "pixels": " ".join(map(str, image.ravel())), "usage": use}
            f.write(",".join(value[c] for c in columns) + "\n")
    return path


def write_votes(path, votes, names, usage=USAGE):
    with open(path, "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(["Usage", "Image name", *VOTE_COLUMNS])
        w.writerows([u, n, *v] for u, n, v in zip(usage, names, votes.tolist()))
    return path


def write_parquet(path, images, labels, votes=None, kind="WEBP", **columns):
    frame = pd.DataFrame({"row": np.arange(len(images)), "usage": USAGE[:len(images)], "emotion": labels} | columns)
    if votes is not None:
        frame[list(VOTE_COLUMNS)] = votes
    options = {"lossless": True} if kind == "WEBP" else {}
    frame["image"] = [png(i, kind, **options) for i in images]
    pq.write_table(pa.Table.from_pandas(frame), path)
    return path


def names_of(n, skipped=()):
    """FER+'s names, which do not count every row it left out."""
    return ["" if i in skipped else f"fer{i - sum(s < i for s in skipped):07d}.png" for i in range(n)]


def table(images, label=0, split="train", classes=FER2013_EMOTIONS, votes=None, name="made_up", **columns):
    frame = pd.DataFrame({"row": np.arange(len(images)), "split": split, "emotion": label} | columns)
    if votes is not None:
        frame[list(VOTE_COLUMNS)] = votes
    return FaceTable(images, frame, classes, name)


# --- the table -------------------------------------------------------------------------------------------------------

def test_table_indexing_keeps_images_and_labels_together():
    images, labels, votes = made_up()
    faces = table(images, labels, SPLIT, votes=votes)
    for which in (labels == 2, np.array([7, 3, 3]), slice(2, 9, 2), 5):
        part, at = faces[which], np.atleast_1d(np.arange(12)[which])
        assert (part.images == images[at]).all() and part.frame["row"].tolist() == at.tolist()
        assert (part.votes == votes[at]).all()
    assert [len(faces.split(s)) for s in datasets.SPLITS] == [6, 3, 3]
    assert faces.counts().loc["valid", "all"] == 3 and faces.counts().to_numpy()[:, :-1].sum() == 12
    assert "12 images of 48 x 48" in repr(faces) and "valid" in repr(faces)
    assert len(faces[labels > 100]) == 0 and "0 images" in repr(faces[labels > 100])


def test_fingerprint_follows_every_pixel_and_label_and_nothing_else():
    images, labels, votes = made_up()
    base = table(images, labels, SPLIT, votes=votes)
    other_pixel, other_vote = images.copy(), votes.copy()
    other_pixel[3, 5, 5] ^= 1
    other_vote[2, :2] = other_vote[2, 1::-1] + [0, 1]
    assert base.fingerprint == table(images.copy(), labels.astype(np.int8), SPLIT, votes=votes.astype(np.int8), name="x").fingerprint
    changed = [table(other_pixel, labels, SPLIT, votes=votes), table(images, (labels + 1) % 7, SPLIT, votes=votes),
               table(images, labels, SPLIT[::-1].copy(), votes=votes), table(images, labels, SPLIT, votes=other_vote),
               base[::-1], table(images, labels, SPLIT)]
    assert len({base.fingerprint, *(t.fingerprint for t in changed)}) == 7


def test_table_draws_itself(tmp_path):
    images, labels, _ = made_up()
    for faces in (table(images, labels), table(np.repeat(images[..., None], 3, -1), -1), table(images, labels)[[]]):
        fig = faces.show(30)
        fig.savefig(tmp_path / "x.png")
        assert sum(len(ax.images) for ax in fig.axes) == len(faces)


# --- writing ---------------------------------------------------------------------------------------------------------

def test_write_atomic_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.npy"
    for value in (1, 2):
        datasets.write_atomic(path, lambda p: np.save(p, np.full(3, value)))
        assert np.load(path).tolist() == [value] * 3
    assert [p.name for p in path.parent.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("moment", ["write", "flush", "rename"])
def test_write_atomic_survives_a_full_disk(tmp_path, monkeypatch, moment):
    path = tmp_path / "run.json"
    path.write_text("old")
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(p):
        p.write_text("half")
        if moment == "write":
            raise full

    def refuse(*_):
        raise full
    if moment != "write":
        monkeypatch.setattr(os, {"flush": "fsync", "rename": "replace"}[moment], refuse)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: could not be written \(No space left on device\); make room"):
        datasets.write_atomic(path, write)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_write_atomic_passes_other_errors_on_and_cleans_up(tmp_path):
    def fail(p):
        p.write_text("half")
        raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        datasets.write_atomic(tmp_path / "a.csv", fail)

    def full(p):  # as safetensors reports it
        p.write_text("half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(DataError, match="a.csv: could not be written"):
        datasets.write_atomic(tmp_path / "a.csv", full)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be written"):
        datasets.write_atomic(tmp_path / "file" / "a.csv", lambda p: p.write_text("x"))


def test_progress_is_quiet_below_two_seconds_and_plain_in_a_log(capsys, monkeypatch):
    with datasets.progress("reading", 4) as advance:
        for _ in range(4):
            advance(1)
    assert capsys.readouterr().err == ""
    clock = iter(np.arange(0, 100, 2.5))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with datasets.progress("reading", 4) as advance:
        for _ in range(4):
            advance(1)
    assert "reading: 25%" in capsys.readouterr().err


# --- readers ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_parquet(tmp_path, kind):
    images, labels, votes = made_up()
    faces = datasets.read_parquet(write_parquet(tmp_path / "fer2013.parquet", images, labels, votes, kind))
    assert (faces.images == images).all() and (faces.frame["emotion"] == labels).all() and (faces.votes == votes).all()
    assert faces.frame["split"].tolist() == SPLIT.tolist() and faces.frame["usage"].tolist() == list(USAGE)


def test_parquet_keeps_colour_and_mixes_it_with_grey(tmp_path):
    colour = np.random.default_rng(1).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    cells = [png(colour[0][..., 0]), png(colour[1], "WEBP", lossless=True), png(colour[2])]
    pq.write_table(pa.table({"image": cells, "emotion": [0, 1, 2], "subject": ["a", "b", "b"]}), tmp_path / "mine.parquet")
    faces = datasets.read_parquet(tmp_path / "mine.parquet")
    assert faces.images.shape == (3, 20, 20, 3) and (faces.images[1:] == colour[1:]).all()
    assert (faces.images[0] == colour[0][..., :1]).all()
    assert faces.frame["row"].tolist() == [0, 1, 2] and set(faces.frame["split"]) == {"train"} and "subject" in faces.frame


@pytest.mark.parametrize("header", ["emotion,pixels,Usage", "emotion, Usage, pixels", "Usage,emotion,pixels", "\ufeffemotion,pixels,Usage"])
def test_csv_goes_by_the_names(tmp_path, header):
    images, labels, _ = made_up()
    faces = datasets.read_csv(write_csv(tmp_path / "icml_face_data.csv", images, labels, header.replace("\ufeff", "")))
    if header[0] == "\ufeff":
        text = (tmp_path / "icml_face_data.csv").read_text()
        (tmp_path / "icml_face_data.csv").write_text("\ufeff" + text.replace("\n", "\r\n"), newline="")
        faces = datasets.read_csv(tmp_path / "icml_face_data.csv")
    assert (faces.images == images).all() and (faces.frame["emotion"] == labels).all()
    assert faces.frame["split"].tolist() == SPLIT.tolist() and faces.frame["row"].tolist() == list(range(12))


def test_csv_with_quotes_an_index_column_and_no_last_newline(tmp_path):
    images, labels, _ = made_up()
    lines = [",emotion,pixels,Usage"] + [f'{i},{l},"{" ".join(map(str, im.ravel()))}",{u}'
                                         for i, (im, l, u) in enumerate(zip(images, labels, USAGE))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert (datasets.read_csv(tmp_path / "a.csv").images == images).all()


def test_ferplus_votes_join_by_row_order(tmp_path):
    images, labels, votes = made_up()
    write_csv(tmp_path / "fer2013.csv", images, labels)
    write_votes(tmp_path / "fer2013new.csv", votes, names_of(12, skipped=(2, 7)))
    faces = datasets.load("fer2013", tmp_path)
    kept = [i for i in range(12) if i not in (2, 7)]
    assert faces.frame["row"].tolist() == kept and (faces.votes == votes[kept]).all() and (faces.images == images[kept]).all()
    assert (faces.frame["emotion"] == labels[kept]).all()
    plus = datasets.load("ferplus", tmp_path)
    assert plus.classes == FERPLUS_EMOTIONS and plus.name == "ferplus" and (plus.images == faces.images).all()


def write_ferplus(root, images, votes, skipped=(), label_csv=True):
    names = names_of(len(images), skipped)
    for folder, usage in datasets.FERPLUS_FOLDERS.items():
        (root / folder).mkdir(parents=True)
        at = [i for i in range(len(images)) if USAGE[i] == usage and names[i]]
        for i in at:
            Image.fromarray(images[i]).save(root / folder / names[i])
        if label_csv:
            with open(root / folder / "label.csv", "w", newline="") as f:
                csv.writer(f).writerows([names[i], "(0, 0, 48, 48)", *votes[i].tolist()] for i in at)
    return names


@pytest.mark.parametrize("label_csv", [True, False])
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("place", ["", "fer2013", "FERPlus/data"])
def test_ferplus_folders(tmp_path, label_csv, new, place):
    images, _, votes = made_up()
    names = write_ferplus(tmp_path / place, images, votes, (2, 7), label_csv)
    if new:
        write_votes((tmp_path / place).parent / "fer2013new.csv" if "/" in place else tmp_path / place / "fer2013new.csv", votes, names)
    if not (new or label_csv):
        with pytest.raises(DataError, match="neither label.csv here nor fer2013new.csv"):
            datasets.load("fer2013", tmp_path)
        return
    faces = datasets.load("fer2013", tmp_path)
    kept = [i for i in range(12) if i not in (2, 7)]
    assert (faces.images == images[kept]).all() and (faces.votes == votes[kept]).all()
    assert faces.frame["split"].tolist() == SPLIT[kept].tolist() and {"labels", "rows"} <= set(faces.lacks)
    for emotion, counts in zip(faces.frame["emotion"], votes[kept]):
        seven = [counts[VOTE_COLUMNS.index(e)] for e in FER2013_EMOTIONS]
        assert seven[emotion] == max(seven)
    assert faces.frame["row"].tolist() == (kept if new else [int(names[i][3:10]) for i in kept])
    assert datasets.load("ferplus", tmp_path).frame["emotion"].max() > -1


def write_folders(root, images, labels, words, split_of=lambda i: "train" if i < 6 else "test", prefix=True, suffix=".png"):
    for i, (image, label) in enumerate(zip(images, labels)):
        folder = root / split_of(i) / words[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{USAGE[i] if prefix else 'im'}_{1000 + i}{suffix}")
    return root


KAGGLE = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


@pytest.mark.parametrize("place", ["", "fer2013", "archive", "fer2013/images"])
def test_kaggle_class_folders(tmp_path, place):
    images, labels, _ = made_up()
    write_folders(tmp_path / place, images, labels, KAGGLE)
    (tmp_path / place / "train" / "angry" / ".DS_Store").write_text("")
    (tmp_path / place / "__MACOSX" / "train").mkdir(parents=True)
    faces = datasets.load("fer2013", tmp_path)
    order = [int(Path(f).stem.split("_")[1]) - 1000 for f in faces.frame["file"]]
    assert sorted(order) == list(range(12)) and (faces.images == images[order]).all()
    assert (faces.frame["emotion"] == labels[order]).all() and faces.frame["split"].tolist() == SPLIT[order].tolist()
    assert faces.classes == FER2013_EMOTIONS


def test_own_folders_sizes_and_classes(tmp_path):
    images, labels, _ = made_up()
    write_folders(tmp_path / "mine", images[:4], np.array([0, 1, 0, 1]), ("joy", "awe"), lambda i: "", prefix=False)
    Image.fromarray(np.zeros((40, 80, 3), np.uint8) + 200).save(tmp_path / "mine" / "joy" / "z.jpg")
    with pytest.raises(DataError, match="z.jpg: the image is 80 x 40 pixels, but .* is 48 x 48; give size="):
        datasets.read_folder(tmp_path / "mine", classes=("joy", "awe"))
    faces = datasets.read_folder(tmp_path / "mine", size=32, classes=("joy", "awe"))
    assert faces.images.shape == (5, 32, 32, 3) and faces.classes == ("joy", "awe")
    wide = faces.images[faces.frame["file"].tolist().index("joy/z.jpg")]
    assert (wide[:7] == 0).all() and (wide[-7:] == 0).all() and (np.abs(wide[9:-9].astype(int) - 200) < 4).all()


def test_rafdb(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 100, 100, 3), dtype=np.uint8)
    base = tmp_path / "RAF-DB" / "basic"
    (base / "EmoLabel").mkdir(parents=True)
    (base / "Image" / "aligned").mkdir(parents=True)
    names = [f"{'train' if i < 5 else 'test'}_{i + 1:05d}" for i in range(8)]
    labels = [1, 2, 3, 4, 5, 6, 7, 4]
    (base / "EmoLabel" / "list_patition_label.txt").write_text("".join(f"{n}.jpg {l}\n" for n, l in zip(names, labels)))
    for name, image in zip(names, images):
        Image.fromarray(image).save(base / "Image" / "aligned" / f"{name}_aligned.jpg", quality=95)
    faces = datasets.load("rafdb", tmp_path)
    assert faces.images.shape == (8, 100, 100, 3) and faces.name == "rafdb"
    assert [faces.classes[e] for e in faces.frame["emotion"]] == ["surprise", "fear", "disgust", "happiness", "sadness", "anger",
                                                                  "neutral", "happiness"]
    assert faces.frame["split"].tolist() == ["train"] * 5 + ["test"] * 3


@pytest.mark.parametrize("train, val", [("Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces_new/Val_Aligned_Faces"),
                                        ("Train_Aligned_Faces", "Val_Aligned_Faces"), ("Train", "Val")])
def test_sfew(tmp_path, train, val):
    for k, (place, word, film) in enumerate([(train, "Angry", "Airheads_000519240_00000005"), (train, "Happy", "Juno_Two_000101_0007"),
                                             (val, "Sad", "Unknown_001_002"), (val, "Angry", "Unknown_001_003")]):
        folder = tmp_path / "SFEW" / place / word
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((181, 143), 10 * k + 9, np.uint8)).save(folder / f"{film}.png")
    (tmp_path / "SFEW" / "Test" / "Test_Aligned_Faces").mkdir(parents=True)
    faces = datasets.load("sfew", tmp_path)
    assert faces.images.shape == (4, 112, 112) and faces.frame["split"].tolist() == ["train"] * 2 + ["valid"] * 2
    assert sorted(faces.frame["subject"]) == ["Airheads", "Juno_Two", "Unknown", "Unknown"]
    assert [faces.classes[e] for e in faces.frame["emotion"]][:2] == ["anger", "happiness"]
    assert (faces.images[0, :, 56] == 9).all() and (faces.images[0, :, :8] == 0).all()  # padded, not stretched


def test_affectnet_2021(tmp_path):
    for folder, n in (("train_set", 3), ("val_set", 2)):
        base = tmp_path / "affectnet" / folder
        (base / "images").mkdir(parents=True)
        (base / "annotations").mkdir()
        for i in range(n):
            Image.fromarray(np.full((224, 224, 3), 40 * i + 20, np.uint8)).save(base / "images" / f"{i}.jpg")
            np.save(base / "annotations" / f"{i}_exp.npy", np.array(str(7 - i)))  # AffectNet stores the numbers as text
            np.save(base / "annotations" / f"{i}_val.npy", np.array(str(-0.5 * i)))
            np.save(base / "annotations" / f"{i}_aro.npy", np.array(0.25 if i else -2.0))
    faces = datasets.load("affectnet", tmp_path, size=64)
    assert faces.images.shape == (5, 64, 64, 3) and faces.frame["split"].tolist() == ["train"] * 3 + ["valid"] * 2
    assert [faces.classes[e] for e in faces.frame["emotion"]] == ["contempt", "anger", "disgust", "contempt", "anger"]
    assert faces.frame["valence"].tolist() == [0, -0.5, -1, 0, -0.5] and np.isnan(faces.frame["arousal"][0])


def test_affectnet_2017_with_and_without_header(tmp_path):
    base = tmp_path / "AffectNet"
    (base / "Manually_Annotated" / "Manually_Annotated_Images" / "12").mkdir(parents=True)
    (base / "Manually_Annotated_file_lists").mkdir()
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[10:50, 20:60] = 255
    header, rows = ",".join(datasets.AFFECTNET_COLUMNS), []
    for i, expression in enumerate((0, 1, 9)):
        Image.fromarray(picture).save(base / "Manually_Annotated" / "Manually_Annotated_Images" / "12" / f"f{i}.png")
        rows.append(f"12/f{i}.png,20,10,40,40,1.0;2.0,{expression},{-2 if expression == 9 else 0.5},{-2 if expression == 9 else 0.1}")
    (base / "Manually_Annotated_file_lists" / "training.csv").write_text("\n".join([header, *rows]) + "\n")
    (base / "Manually_Annotated_file_lists" / "validation.csv").write_text(rows[0] + "\n")
    faces = datasets.load("affectnet", tmp_path, size=40)
    assert (faces.images == 255).all() and faces.frame["split"].tolist() == ["train"] * 3 + ["valid"]
    assert faces.frame["emotion"].tolist() == [6, 3, -1, 6] and faces.frame["expression"].tolist() == [0, 1, 9, 0]
    assert np.isnan(faces.frame["valence"][2]) and faces.frame["valence"][0] == 0.5


def test_all_layouts_of_one_data_set_give_one_fingerprint(tmp_path):
    images, labels, votes = made_up()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    write_parquet(tmp_path / "a" / "fer2013.parquet", images, labels, votes)
    write_csv(tmp_path / "b" / "fer2013.csv", images, labels)
    write_votes(tmp_path / "b" / "fer2013new.csv", votes, names_of(12))
    (tmp_path / "c" / "fer2013").mkdir()
    write_csv(tmp_path / "c" / "fer2013" / "icml_face_data.csv", images, labels, "emotion, Usage, pixels")
    write_votes(tmp_path / "c" / "fer2013" / "fer2013new.csv", votes, names_of(12))
    assert len({datasets.load("fer2013", tmp_path / name).fingerprint for name in "abc"}) == 1


# --- finding, keeping, listing ---------------------------------------------------------------------------------------

def test_cache_is_used_renewed_and_repaired(tmp_path, monkeypatch):
    images, labels, votes = made_up()
    path = write_parquet(tmp_path / "fer2013.parquet", images, labels, votes)
    first = datasets.load("fer2013", tmp_path)
    monkeypatch.setattr(datasets, "read_parquet", lambda *_: pytest.fail("the cache was not used"))
    again = datasets.load("fer2013", tmp_path)
    assert again.fingerprint == first.fingerprint and again.frame.equals(first.frame) and again.classes == first.classes
    monkeypatch.undo()
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "cache"))

    kept = next((tmp_path / "cache").glob("*.npy"))
    data = bytearray(kept.read_bytes())
    data[-1] ^= 255
    kept.write_bytes(data)
    assert datasets.load("fer2013", tmp_path).fingerprint == first.fingerprint
    kept.write_bytes(data[:1000])
    assert datasets.load("fer2013", tmp_path).fingerprint == first.fingerprint

    write_parquet(path, images[::-1].copy(), labels, votes)
    os.utime(path, ns=(1, 1))
    assert (datasets.load("fer2013", tmp_path).images == images[::-1]).all()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_never_opens_a_pickle(tmp_path):
    images, labels, votes = made_up()
    write_parquet(tmp_path / "fer2013.parquet", images, labels, votes)
    datasets.load("fer2013", tmp_path)
    kept = next((tmp_path / "cache").glob("*.npy"))

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))
    np.save(kept, np.array([Bomb()], object), allow_pickle=True)
    assert (datasets.load("fer2013", tmp_path).images == images).all() and not (tmp_path / "exploded").exists()


def test_a_full_disk_under_the_cache_costs_speed_not_the_data(tmp_path, monkeypatch):
    images, labels, votes = made_up()
    write_parquet(tmp_path / "fer2013.parquet", images, labels, votes)
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.warns(UserWarning, match="could not be kept"):
        assert (datasets.load("fer2013", tmp_path).images == images).all()
    with pytest.raises(DataError, match="could not be written"):
        datasets.prepare("fer2013", tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_data_gives_drawn_faces_but_damaged_data_does_not(tmp_path, monkeypatch):
    embedded = datasets.load_or_embedded("fer2013")
    assert embedded.embedded and embedded.classes == FER2013_EMOTIONS and {*VOTE_COLUMNS} <= {*embedded.frame}
    assert (embedded.counts()["all"] > 200).all() and embedded.fingerprint == datasets.load("schematic").fingerprint
    people = embedded.frame.groupby("subject")["split"].nunique()
    assert (people == 1).all()
    assert datasets.load_or_embedded("fer2013", tmp_path).embedded
    (tmp_path / "fer2013.parquet").write_bytes(b"PAR1 half of a file")
    with pytest.raises(DataError, match="not a whole parquet file"):
        datasets.load_or_embedded("fer2013", tmp_path)
    monkeypatch.setenv("FER_BOOK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere: there is no such folder; set FER_BOOK_DATA"):
        datasets.load_or_embedded("fer2013")


def test_catalogue_check_and_prepare(tmp_path):
    images, labels, votes = made_up()
    write_parquet(tmp_path / "fer2013.parquet", images, labels, votes)
    write_folders(tmp_path / "mine", images, labels, KAGGLE)
    write_csv(tmp_path / "other.csv", images, labels)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    entries = datasets.catalogue(tmp_path).set_index("name")
    assert set(entries.index[entries.here == "yes"]) == {"fer2013", "ferplus", "schematic", "mine", "other"}
    assert entries.rows[["fer2013", "mine", "other"]].tolist() == [12] * 3 and entries.path["mine"] == str(tmp_path / "mine")
    assert entries.licence["rafdb"] and entries["get"]["rafdb"] and entries.here["rafdb"] == "no"
    first = datasets.check("fer2013", tmp_path).iloc[0]
    assert (first.images, first.of) == (12, 35887) and "not complete" in first.advice
    kept = datasets.prepare("fer2013", tmp_path).split(" are in ")[1]
    assert np.load(kept).shape == (12, 48, 48)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert datasets.catalogue(tmp_path).set_index("name").rows["broken"] == "damaged"
    assert len(datasets.load("mine", tmp_path)) == len(datasets.load("other", tmp_path)) == 12
    assert datasets.catalogue().query("here == 'yes'").name.tolist() == ["schematic"]


def test_datasets_md_describes_every_data_set():
    text = (Path(__file__).parents[1] / "data" / "datasets.md").read_text()
    for known in datasets.DATASETS:
        assert f"`{known.name}`" in text, known.name
    for word in ("FER-2013", "FER+", "AffectNet", "RAF-DB", "SFEW", "AFEW", "FG-Emotions", "CK+", "MMI", "Oulu-CASIA", "BP4D",
                 "DISFA", "ImageNet", "VGG-Face", "ANEW", "Warriner", "ICT-FaceKit", "FER_BOOK_DATA"):
        assert word in text, word


# --- the audit -------------------------------------------------------------------------------------------------------

def test_duplicates_leaks_and_conflicts_by_hand():
    images = made_up(8)[0]
    images[3], images[5], images[6], images[7] = images[0], images[1], images[6], images[6]
    faces = table(images, [0, 1, 2, 0, 3, 2, 4, 4], ["train"] * 4 + ["valid"] * 2 + ["test"] * 2)
    assert datasets.duplicate_groups(faces).tolist() == [0, 1, 2, 0, 3, 1, 4, 4]
    assert datasets.leaked(faces).tolist() == [False] * 5 + [True, False, False]
    counts = datasets.duplicates(faces)
    assert counts.loc["train"].tolist() == [4, 1, 0, 1, 0] and counts.loc["valid"].tolist() == [2, 0, 1, 0, 0]
    assert counts.loc["test"].tolist() == [2, 1, 0, 0, 0]
    conflicts = datasets.conflicting_labels(faces)
    assert conflicts["row"].tolist() == [1, 5] and conflicts["label"].tolist() == ["disgust", "fear"]
    assert len(datasets.conflicting_labels(faces[:3])) == 0 and not datasets.leaked(faces[[]]).any()


def test_near_duplicates_find_changed_copies_and_spare_others():
    from fer_book.schematic import generate
    images = generate(40, seed=3).images
    copies = images[:6].astype(float)
    copies[0] = 0.7 * copies[0] + 30                                       # darker
    copies[1] += np.random.default_rng(0).normal(0, 8, copies[1].shape)    # noise
    copies[2] = np.roll(copies[2], 1, 1)                                   # moved by a pixel
    copies[3] += np.linspace(-12, 12, 48)                                  # lit from one side
    faces = table(np.concatenate([images, copies.clip(0, 255).astype(np.uint8)]), 0, ["train"] * 40 + ["test"] * 6)
    pairs = datasets.near_duplicates(faces, 0.9)
    found = {(a, b) for a, b in zip(pairs["first"], pairs["second"])}
    assert {(k, 40 + k) for k in range(6)} <= found and (pairs["first"] < pairs["second"]).all()
    x = np.stack([np.asarray(i, float).reshape(16, 3, 16, 3).mean((1, 3)).ravel() for i in faces.images])
    oracle = np.corrcoef(x)[np.triu_indices(46, 1)]
    assert len(pairs) == (oracle >= 0.9).sum() and np.allclose(np.sort(pairs["similarity"]), np.sort(oracle[oracle >= 0.9]), atol=1e-5)
    assert set(pairs[pairs["exact"]]["first"]) == {4, 5}
    assert datasets.near_leaked(faces, pairs).tolist() == [False] * 40 + [True] * 6
    blank = table(np.zeros((3, 48, 48), np.uint8))
    assert len(datasets.near_duplicates(blank)) == 0 and len(datasets.near_duplicates(faces[[]])) == 0


def test_not_faces_and_agreement_by_hand():
    images = made_up(5)[0]
    images[4] = 7
    votes = np.zeros((5, 10), int)
    votes[0, [0, 9]] = 4, 6            # mostly not a face
    votes[1, 1] = 10                   # all happiness
    votes[2, [1, 4]] = 7, 3            # happiness, some anger
    votes[3, [3, 4, 2]] = 4, 3, 3      # nobody wins
    votes[4, 0] = 10
    faces = table(images, [6, 3, 0, 4, 6], votes=votes)
    assert datasets.not_faces(faces).tolist() == [True, False, False, False, True]
    assert datasets.not_faces(table(images)).tolist() == [False] * 4 + [True]
    agreement = datasets.label_agreement(faces)
    assert agreement.at["happiness", "happiness"] == 1 and agreement.at["anger", "happiness"] == 1
    assert agreement.at["sadness", "none"] == 1 and agreement.at["neutral", "none"] == 1 and agreement.to_numpy().sum() == 5
    one = datasets.rater_accuracy(faces)
    assert one["anger"] == 0.3 and one["happiness"] == 1 and one["all"] == pytest.approx((0.4 + 1 + 0.3 + 0.4 + 1) / 5)


def test_human_ceiling_equals_drawing_one_vote_at_a_time():
    votes = made_up(20, seed=4)[2]
    ceiling = datasets.human_ceiling(table(made_up(20)[0], votes=votes))
    right = total = 0.0
    errors = []
    for v in votes:
        for ballot in np.repeat(np.arange(10), v):
            rest = v.copy()
            rest[ballot] -= 1
            winners = np.flatnonzero(rest == rest.max())
            for w in winners[winners < 8]:
                total += 1 / len(winners) / v.sum()
                right += (w == ballot) / len(winners) / v.sum()
            if ballot < 8 and v[:8].sum() > 1:
                truth = votes_to_vad(np.where(np.arange(10) < 8, rest, 0)[None])[0]
                errors.append((NORMS["anew"].mean[ballot] - truth, 1 / v[:8].sum()))
    assert ceiling.accuracy == pytest.approx(right / total, abs=1e-12)
    e, w = np.array([x for x, _ in errors]), np.array([x for _, x in errors])
    assert ceiling.vad["rmse"].to_numpy() == pytest.approx(np.sqrt((w[:, None] * e**2).sum(0) / w.sum()), abs=1e-12)
    assert ceiling.within_one == pytest.approx(w[np.sqrt((e**2).mean(1)) < 1].sum() / w.sum())
    assert ceiling.recall.between(0, 1).all()


def test_human_ceiling_of_raters_who_agree_is_perfect():
    votes = np.zeros((8, 10), int)
    votes[np.arange(8), np.arange(8)] = 10
    ceiling = datasets.human_ceiling(table(made_up(8)[0], votes=votes))
    assert ceiling.accuracy == 1 and (ceiling.recall == 1).all() and ceiling.within_one == 1
    assert np.allclose(ceiling.vad[["rmse", "mae"]], 0) and np.allclose(ceiling.vad[["pearson", "ccc"]], 1)


def test_audit_takes_any_table():
    images, labels, votes = made_up()
    images[9] = images[0]
    plain = datasets.audit(table(images, labels, SPLIT)).set_index("finding")
    assert plain.images["valid and test images that are also in train"] == 1
    rich = datasets.audit(table(images, labels, SPLIT, votes=votes, subject=["a", "b"] * 6)).set_index("finding")
    assert tuple(rich.loc["valid and test images of people who are in train"])[:3] == (6, 6, "100.0%")
    for name, faces in (("all train", table(images, -1)), ("drawn", datasets.load("schematic")), ("empty", table(images)[[]])):
        assert len(datasets.audit(faces)) >= 8, name
    assert datasets.class_balance(table(images, labels, SPLIT))["train"]["share"].sum() == pytest.approx(1)


# --- the real faces --------------------------------------------------------------------------------------------------

def test_real_faces(real_data):
    faces = datasets.load("fer2013", real_data)
    if not faces.has_votes:
        pytest.skip("this copy of FER-2013 has no FER+ votes")
    assert faces.counts()["all"].to_dict() == {"train": 28561, "valid": 3579, "test": 3574}
    leak, split = datasets.leaked(faces), faces.frame["split"]
    assert (leak & (split == "test")).sum() == 288 and abs((leak & (split == "valid")).sum() - 280) <= 1
    assert faces.votes.sum(1).min() > 0 and faces.images.shape == (35714, 48, 48)
    source = Path(real_data) / "fer2013.parquet"
    if source.exists():
        cells = next(pq.ParquetFile(source).iter_batches(50, columns=["image"])).column(0)
        for image, cell in zip(faces.images, cells):
            assert (np.asarray(Image.open(io.BytesIO(cell.as_py())).convert("L")) == image).all()


def test_real_faces_are_read_fast_and_small(real_data, tmp_path):
    if not (Path(real_data) / "fer2013.parquet").exists():
        pytest.skip("timed on fer2013.parquet")
    # VmHWM, not ru_maxrss: that one starts at what the parent process had
    code = ("import re, time\nfrom pathlib import Path\nfrom fer_book import datasets\nt = time.process_time()\ndatasets.load('fer2013')\n"
            "print(time.process_time() - t, int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024)")
    env = os.environ | {"FER_BOOK_DATA": str(real_data), "FER_BOOK_CACHE": str(tmp_path / "c")}
    first, second = (tuple(map(float, subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True,
                                                     text=True).stdout.split())) for _ in range(2))
    assert first[0] < 15 and first[1] < 600, first
    assert second[0] < 1 and second[1] < 600, second


def test_two_sets_become_one_without_the_test_faces_of_the_larger(tmp_path, monkeypatch):
    frame = lambda splits: pd.DataFrame({"row": np.arange(len(splits)) + 3, "split": splits, "emotion": 1})
    many = FaceTable(np.full((4, 8, 8, 3), 40, np.uint8), frame(["train", "valid", "test", "train"]), FER2013_EMOTIONS, "many")
    few = FaceTable(np.full((3, 8, 8), 90, np.uint8), frame(["valid", "train", "test"]), FER2013_EMOTIONS, "few")
    both = datasets.combine(many, few)
    assert both.frame["split"].tolist() == ["train"] * 3 + ["valid", "train", "test"] and both.frame["row"].is_unique
    assert both.images[:, 0, 0].tolist() == [40] * 3 + [90] * 3 and both.name == "many+few"
    with pytest.raises(DataError, match="sizes of images"):
        datasets.combine(many, replace(few, images=few.images[:, :5, :5]))


# copies of FER-2013 as strangers have them


LACKING = {"fer2013.parquet": (), "fer2013.csv": ("votes",), "fer2013.csv + fer2013new.csv": (),
           "icml_face_data.csv": ("votes",), "train, test with Kaggle's names": ("votes", "rows"),
           "train, test": ("votes", "valid", "rows"), "train, validation": ("votes", "valid", "rows"),
           "train, val, test": ("votes", "rows"), "train, test + fer2013new.csv": ("votes", "valid", "rows"),
           "classes only": ("votes", "valid", "test", "rows"), "FER+ folders": ("labels", "rows"),
           "FER+ folders + fer2013new.csv": ("labels", "rows"), "hub, three files": ("votes", "rows"),
           "hub, two files": ("votes", "valid", "rows")}


def known_by_pixels(monkeypatch, whole):
    """Let the drawn faces be the ones that FER-2013 is known by."""
    digests = np.where(whole.named, datasets.pixel_digests(whole.images), 0)
    n = [int((whole.usage == usage).sum()) for usage in datasets.OFFICIAL]
    monkeypatch.setattr(datasets, "_official_digests", lambda: digests)
    monkeypatch.setattr(datasets, "FER2013_ROWS", tuple(n))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_documented_layout_gives_faces_labels_and_three_splits(tmp_path, name):
    whole = drawn(210)
    LAYOUTS[name](tmp_path, whole)
    faces = datasets.load("fer2013", tmp_path)
    assert set(faces.lacks) == {*LACKING[name], "rows"}  # the faces are drawn, so FER-2013's rows are not theirs
    assert all(len(faces.split(part)) for part in datasets.SPLITS) and len(faces.labelled) == len(faces)
    assert faces.classes == FER2013_EMOTIONS and faces.images.shape[1:] == (48, 48)
    again = datasets.load("fer2013", tmp_path)
    assert again.fingerprint == faces.fingerprint and again.lacks == faces.lacks  # now from the cache
    if "labels" not in LACKING[name] and name not in ("train, test with Kaggle's names", "train, validation"):
        label = dict(zip(datasets.pixel_digests(whole.images), whole.emotion))
        assert [label[d] for d in datasets.pixel_digests(faces.images)] == faces.frame["emotion"].tolist()


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("train, test with Kaggle's names", "train, validation")])
def test_lossless_copies_get_rows_splits_and_votes_back(tmp_path, monkeypatch, name):
    whole = drawn(210)
    known_by_pixels(monkeypatch, whole)
    LAYOUTS[name](tmp_path, whole)
    faces = datasets.load("fer2013", tmp_path)
    row = faces.frame["row"].to_numpy()
    mine = row < 210
    assert (faces.images[mine] == whole.images[row[mine]]).all() and (np.diff(row) > 0).all()
    assert set(faces.lacks) == set(LACKING[name]) & {"labels", "votes"} - ({"votes"} if faces.has_votes else set())
    assert (faces.frame["usage"].to_numpy()[mine] == whole.usage[row[mine]]).all()
    assert (faces.frame["split"].to_numpy()[mine] == pd.Series(whole.usage).map(datasets.OFFICIAL).to_numpy()[row[mine]]).all()
    assert (faces.find(row[mine]) == np.flatnonzero(mine)).all()
    if faces.has_votes:
        twice = np.isin(row, (10, 11))  # of a name that FER+ gave twice its folders hold the later image
        assert (faces.votes[~twice] == whole.votes[row[~twice]]).all()
        assert mine.all() and mine.sum() == len(faces)


def test_rows_of_equal_pictures_follow_their_split(monkeypatch):
    whole = drawn(60)
    images = whole.images.copy()
    images[58] = images[5]  # one PrivateTest face is a copy of a Training face
    whole = replace(whole, images=images)
    known_by_pixels(monkeypatch, whole)
    order = np.random.default_rng(0).permutation(60)[:50]
    order = np.union1d(order, (5, 58))[::-1]
    split = pd.Series(whole.usage).map(datasets.OFFICIAL)[order].replace("valid", "test").to_numpy()
    frame = pd.DataFrame({"row": range(len(order)), "split": split, "usage": split, "emotion": whole.emotion[order]})
    found = datasets.with_official_rows(FaceTable(images[order], frame, FER2013_EMOTIONS, "fer2013"))
    own = found.frame["row"] >= 60  # the two that FER+ did not name are known to nobody
    assert found.frame["row"][~own].tolist() == sorted(set(order) - {7, 57})
    assert (found.frame["usage"][~own].to_numpy() == whole.usage[found.frame["row"][~own]]).all()


@pytest.mark.parametrize("subject", [False, True])
def test_a_cut_off_split_depends_on_the_faces_alone(subject):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (400, 8, 8), np.uint8)[rng.integers(0, 300, 400)]  # many equal pictures
    faces = table(images, rng.integers(0, 7, 400), split="train", **({"subject": rng.integers(0, 40, 400).astype(str)} if subject else {}))
    cut = datasets.with_splits(faces)
    order = rng.permutation(400)
    shuffled = replace(faces[order], frame=faces.frame.iloc[order].reset_index(drop=True).assign(row=np.arange(400)))
    held = (cut.frame["split"] == "valid").to_numpy()
    assert (held[order] == (datasets.with_splits(shuffled).frame["split"] == "valid").to_numpy()).all()
    assert 400 / 12 < held.sum() < 400 / 6 and cut.lacks == ("valid",)
    key = faces.frame["subject"].to_numpy() if subject else datasets.pixel_digests(images)
    assert not set(key[held]) & set(key[~held])
    assert subject or set(faces.frame["emotion"][held]) == set(range(7))
    assert datasets.with_splits(cut) is not None and (datasets.with_splits(cut).frame["split"] == cut.frame["split"]).all()
    with pytest.raises(DataError, match="no valid split, and train has too few faces"):
        datasets.with_splits(table(images[:1]))


def test_votes_or_labels_and_find():
    images, labels, votes = made_up()
    bare = table(images, [0, 1, -1] * 4)
    assert bare.votes_or_labels.sum(1).tolist() == [1, 1, 0] * 4 and bare.votes_or_labels[1, VOTE_COLUMNS.index("disgust")] == 1
    rated = table(images, labels, votes=votes)
    assert (rated.votes_or_labels == votes).all()
    assert rated.find([3, 99, 0]).tolist() == [3, -1, 0]
    assert replace(rated, lacks=("rows",)).find([3]).tolist() == replace(rated, name="schematic").find([3]).tolist() == [-1]


def test_hub_files_tell_their_classes_by_name(tmp_path):
    whole = drawn(40)
    LAYOUTS["hub, two files"](tmp_path, whole)
    file = tmp_path / "fer2013/default/train/0000.parquet"
    plain = pq.read_table(file)
    numbers = [sorted(set(plain["label"].to_pylist())).index(w) for w in plain["label"].to_pylist()]
    pq.write_table(plain.set_column(1, "label", pa.array(numbers)), file)
    with pytest.raises(DataError, match="0000.parquet: the column 'label' holds numbers, and nothing in the file tells which class"):
        datasets.load("fer2013", tmp_path)
    pq.write_table(plain.set_column(1, "label", pa.array(["joy"] * len(plain))), file)
    with pytest.raises(DataError, match="row 0 has the label 'joy', which is no class; rename it to one of angry"):
        datasets.load("fer2013", tmp_path)


def test_linked_folders_are_followed_once(tmp_path):
    whole = drawn(60)
    LAYOUTS["train, val, test"](tmp_path / "disk", whole)
    (tmp_path / "data" / "fer2013").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (tmp_path / "data" / "fer2013" / split).symlink_to(tmp_path / "disk" / "fer2013" / split)
    (tmp_path / "disk/fer2013/train/angry/up").symlink_to(tmp_path / "disk/fer2013")
    root = tmp_path / "data"
    assert len(datasets.load("fer2013", root)) == 60
    assert dict(datasets.catalogue(root).set_index("name")["rows"])["fer2013"] == 60
    files = list(datasets.files_below(root))
    assert len(files) == len({os.path.realpath(f) for f in files}) == 60
    for old in (tmp_path / "disk/fer2013/train/angry").glob("*.png"):
        old.rename(tmp_path / "disk/fer2013/train/sad" / f"moved{old.name}")
    (tmp_path / "disk/fer2013/train/angry/up").unlink()
    (tmp_path / "disk/fer2013/train/angry").rmdir()
    now = datasets.load("fer2013", root)
    assert len(now) == 60 and (now.split("train").frame["emotion"] != 0).all()


def test_genuine_forms_of_the_real_faces(real_data, tmp_path):
    """At full size: the CSV files with FER+'s own quirks, and lossless class folders, give the compact form's faces back."""
    kept = datasets.load("fer2013", real_data)
    whole = genuine(kept)
    LAYOUTS["fer2013.csv + fer2013new.csv"](tmp_path, whole)
    lines = datasets.read_csv(tmp_path / "fer2013.csv")
    faces, alone = datasets.as_fer2013(lines, tmp_path / "fer2013new.csv"), datasets.as_fer2013(lines)
    assert faces.lacks == () and faces.fingerprint == kept.fingerprint and len(faces) == 35714
    assert len(alone) == 35887 and alone.lacks == ("votes",) and alone.counts().loc["train", "all"] == 28709
    assert (alone.images[kept.frame["row"]] == kept.images).all() and (alone.find(kept.frame["row"]) == kept.frame["row"]).all()
    some = only(whole, np.arange(0, len(whole.images), 4))
    LAYOUTS["train, test + fer2013new.csv"](tmp_path / "folders", some)
    write_new(tmp_path / "folders" / "fer2013" / "fer2013new.csv", whole)
    faces = datasets.load("fer2013", tmp_path / "folders")
    at = kept.find(faces.frame["row"])
    assert faces.lacks == () and len(faces) == (whole.named[::4]).sum()
    for column in ("usage", "split", "emotion", *VOTE_COLUMNS):
        same = faces.frame[column].to_numpy() == kept.frame[column].to_numpy()[at]
        assert same.mean() > 0.995, column  # equal pictures with other labels or votes can change places
    assert (faces.images == kept.images[at]).all()


def test_the_packages_numbers_are_those_of_the_real_faces(real_data):
    faces = datasets.load("fer2013", real_data)
    digests = np.load(Path(datasets.__file__).with_name("fer2013_rows.npy"))
    assert (digests[faces.frame["row"]] == datasets.pixel_digests(faces.images)).all()
    assert len(digests) == sum(datasets.FER2013_ROWS) and (digests == 0).sum() == 173


def test_csv_files_that_are_not_fer2013s_own_say_why(tmp_path):
    whole = only(drawn(20), np.arange(4))
    large = replace(whole, images=whole.images.repeat(4, 1).repeat(4, 2))
    write_lines(tmp_path / "large.csv", large)
    with pytest.raises(DataError, match=r"row 0 \(line 2\): the face is 192 x 192 pixels, FER-2013's are 48 x 48; give size="):
        datasets.read_csv(tmp_path / "large.csv")
    assert (datasets.read_csv(tmp_path / "large.csv", size=192).images == large.images).all()
    for mark, told in ((";", "semicolons"), ("\t", "tabs")):
        (tmp_path / "marks.csv").write_text((tmp_path / "large.csv").read_text().replace(",", mark))
        with pytest.raises(DataError, match=f"marks.csv: the columns are separated by {told}"):
            datasets.read_csv(tmp_path / "marks.csv", size=48)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e300, 2.5])
def test_votes_that_are_no_numbers_of_votes_are_named(tmp_path, value):
    images, labels, votes = made_up(4)
    votes = votes.astype(float)
    votes[2, 1] = value
    with pytest.raises(DataError, match="fer2013.parquet: happiness of row 2 is .*, not a whole number; correct it"):
        datasets.read_parquet(write_parquet(tmp_path / "fer2013.parquet", images, labels, votes, usage=USAGE[:4]))


def test_ferplus_names_that_stand_there_twice_are_joined_by_row(tmp_path):
    whole = only(drawn(40), np.arange(9, 13))
    assert whole.names[1] == whole.names[2]
    LAYOUTS["fer2013.csv + fer2013new.csv"](tmp_path, replace(whole, votes=np.eye(10, dtype=int)[:4] * 10))
    faces = datasets.load("fer2013", tmp_path)
    assert faces.votes.argmax(1).tolist() == [0, 1, 2, 3] and (faces.images == whole.images).all()


def test_classes_are_carried_over_by_name():
    images = made_up(4)[0]
    faces = table(images, [0, 1, 2, -1], classes=("sadness", "joy", "anger"))
    assert faces.with_classes(("anger", "sadness")).frame["emotion"].tolist() == [1, -1, 0, -1]
    many, few = table(images, [0, 1, 2, 0], classes=("a", "b", "c")), table(images, [0, 1, 0, 1], classes=("c", "a"))
    both = datasets.combine(many, few)
    assert [both.classes[k] for k in both.frame["emotion"]] == ["a", "b", "c", "a", "c", "a", "c", "a"]
