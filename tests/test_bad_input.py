"""Bad input of every kind gives one sentence that names the file, the row and what to do, and leaves nothing half-written."""
import io
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from safetensors.numpy import save_file
from test_claims import measured, predictions, write_ledger, write_run
from test_training import SMALL, made_up_faces, silent

from fer_book import bilinear, build, cake, cascade, claims, cli, datasets, emotions, explain, metrics, predict, schematic, training
from fer_book.datasets import FaceTable
from fer_book.emotions import VOTE_COLUMNS

PIXELS = " ".join(["7"] * 2304)
GREY = np.full((2, 8, 8), 0.5, np.float32)


def explained() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 3))


def face_csv(folder: Path, *rows: str, header: str = "emotion,pixels,Usage") -> Path:
    path = folder / "fer2013.csv"
    path.write_text("\n".join([header, f"0,{PIXELS},Training", *rows]))
    return path


def face_parquet(folder: Path, **columns) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(np.full((48, 48), 7, np.uint8)).save(buffer, "PNG")
    data = {"row": [0, 1], "emotion": [3, 4], "usage": ["Training", "PublicTest"], "image": [buffer.getvalue()] * 2} | columns
    path = folder / "fer2013.parquet"
    pq.write_table(pa.table({k: v for k, v in data.items() if v is not None}), path)
    return path


def face_folder(folder: Path, *names: str, size=(48, 48)) -> Path:
    for name in names or ("train/happy/a.png",):
        (folder / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 99).save(folder / "faces" / name)
    return folder / "faces"


def votes(**changed) -> dict:
    return {c: [1, 1] for c in VOTE_COLUMNS} | changed


def half(path: Path, bytes_kept: int = 200) -> Path:
    path.write_bytes(path.read_bytes()[:bytes_kept])
    return path


def text_named_jpg(folder: Path) -> Path:
    faces = face_folder(folder)
    (faces / "train" / "happy" / "b.jpg").write_text("not an image")
    return faces


def with_sub(folder: Path, name: str) -> Path:
    (face_folder(folder) / name).mkdir(parents=True)
    return folder / "faces"


def joined(folder: Path, text: str) -> None:
    (folder / "fer2013new.csv").write_text(",".join(["Usage", "Image name", *VOTE_COLUMNS]) + "\n" + text)
    datasets.with_votes(datasets.read_csv(face_csv(folder, f"1,{PIXELS},PublicTest")), folder / "fer2013new.csv")


def pickled_npy(folder: Path) -> Path:
    for part in ("images", "annotations"):
        (folder / "affectnet" / "train_set" / part).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "affectnet" / "train_set" / "images" / "0.jpg")
    np.save(folder / "affectnet" / "train_set" / "annotations" / "0_exp.npy", np.array({"a": 1}, object), allow_pickle=True)
    return folder / "affectnet"


def rafdb(folder: Path, line: str) -> Path:
    (folder / "EmoLabel").mkdir()
    (folder / "EmoLabel" / "list_patition_label.txt").write_text(line)
    return folder


VOTES = np.ones((4, 10), int)


def damaged_run(folder: Path, damage) -> None:
    run = write_run(folder, "net")
    damage(run / "predictions.parquet")
    claims.read_run(run)


def trained_then(folder: Path, damage, **settings) -> None:
    """Train one epoch, do `damage` to the checkpoint, go on with other `settings`."""
    training.fit(SMALL, "cpu", faces=made_up_faces(), out=folder, budget=0, report=silent)
    checkpoint = next(folder.glob(".run/*/checkpoint.safetensors"))
    damage(checkpoint)
    training.fit(**{"recipe": SMALL, "profile": "cpu", "faces": made_up_faces(), "out": folder, "report": silent} | settings)


def under_the_name_of(recipe: training.Recipe, faces: FaceTable):
    """Move a checkpoint to where the run of `recipe` on `faces` looks for it."""
    def move(checkpoint: Path) -> None:
        checkpoint.parent.rename(checkpoint.parent.with_name(recipe.at("cpu").run_id("cpu", 0, faces.fingerprint)))
    return move


def published(folder: Path, header: str) -> None:
    """Load a network whose file says `header` of itself."""
    path = folder / "models" / "net.safetensors"
    path.parent.mkdir()
    save_file({"x": np.zeros(1, np.float32)}, path, metadata={"header": header})
    (folder / "results" / "net").mkdir(parents=True)
    (folder / "results" / "net" / "run.json").write_text(f'{{"model_sha256": "{training.hashlib.sha256(path.read_bytes()).hexdigest()}"}}')
    training.load_model("net", home=folder)


def full_disk(folder: Path) -> None:
    def write(*args, **kwargs):
        raise OSError(28, "No space left on device")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", write)
        training.fit(SMALL, "cpu", faces=made_up_faces(), out=folder, report=silent)


def unlabelled() -> FaceTable:
    faces = made_up_faces()
    return FaceTable(images=faces.images, frame=faces.frame.assign(emotion=faces.frame["emotion"].where(faces.frame["row"] != 3, -1)),
                     classes=faces.classes, name=faces.name)


OTHER = replace(SMALL, lr=0.5)

read = datasets
CASES = [
    ("wrong path", lambda t: read.load("fer2013", t / "nowhere"), r"nowhere: there is no such folder; set FER_BOOK_DATA"),
    ("wrong file", lambda t: read.read_csv(t / "no.csv"), r"no.csv: there is no such file; check the path"),
    ("no such data set", lambda t: read.load("fer2013", t), r"'fer2013' is not in this folder; get it from: Kaggle"),
    ("empty CSV", lambda t: ((t / "e.csv").touch(), read.read_csv(t / "e.csv")), r"e.csv: the file is empty; copy it again"),
    ("CSV with a header only", lambda t: ((t / "e.csv").write_text("emotion,pixels,Usage\n"), read.read_csv(t / "e.csv")),
     r"e.csv: the file has a header but no rows"),
    ("CSV cut inside the pixels", lambda t: read.read_csv(face_csv(t, "1,7 7 7")), r"fer2013.csv: row 1 \(line 3\) has 2 of 3 columns, it is cut"),
    ("CSV cut inside the usage", lambda t: read.read_csv(face_csv(t, f"1,{PIXELS},PrivateTe")), r"row 1 \(line 3\) has the Usage 'PrivateTe'"),
    ("CSV cut, pixels last", lambda t: read.read_csv(
        (p := t / "icml_face_data.csv", p.write_text(f"emotion, Usage, pixels\n0,Training,{PIXELS}\n1,Training,7 7 7"))[0]),
     r"row 1 \(line 3\) has 3 pixels instead of 2,304"),
    ("CSV with an open quote", lambda t: read.read_csv(face_csv(t, f'1,"{PIXELS},Training')), r"fer2013.csv: line 3 is damaged"),
    ("a row with 2,303 pixels", lambda t: read.read_csv(face_csv(t, f"1,{PIXELS[2:]},Training")), r"row 1 \(line 3\) has 2,303 pixels instead of 2,304"),
    ("a pixel of 300", lambda t: read.read_csv(face_csv(t, f"1,300{PIXELS[1:]},Training")), r"row 1 \(line 3\): pixel 0 is 300, but pixels go from 0 to 255"),
    ("a pixel of -1", lambda t: read.read_csv(face_csv(t, f"1,{PIXELS[:-1]}-1,Training")), r"row 1 \(line 3\): pixel 2303 is '-1', not a whole number"),
    ("a pixel abc", lambda t: read.read_csv(face_csv(t, f"1,7 abc{PIXELS[3:]},Training")), r"row 1 \(line 3\): pixel 1 is 'abc', not a whole number"),
    ("a label 9", lambda t: read.read_csv(face_csv(t, f"9,{PIXELS},Training")), r"row 1 \(line 3\) has the label '9', but labels go from 0 to 6"),
    ("shuffled columns without a header", lambda t: read.read_csv(
        (p := t / "a.csv", p.write_text(f"{PIXELS},0,Training\n"))[0]), r"a.csv: the first line names no column 'emotion'"),
    ("right columns without a header", lambda t: read.read_csv(
        (p := t / "a.csv", p.write_text(f"0,{PIXELS},Training\n"))[0]), r"a.csv: the first line names no column 'emotion'"),
    ("header and columns in another order", lambda t: read.read_csv(face_csv(t, f"{PIXELS},1,Training")), r"row 1 \(line 3\) has the label '7 7 7"),
    ("a missing column", lambda t: read.read_csv(face_csv(t, header="emotion,pixels,Split")), r"the first line names no column 'Usage'"),
    ("a column twice", lambda t: read.read_csv(face_csv(t, header="emotion,pixels,Usage,Usage")), r"has more than one column 'Usage'"),
    ("a binary file named .csv", lambda t: ((t / "a.csv").write_bytes(b"\x89PNG\xff\xfe\n"), read.read_csv(t / "a.csv")), r"a.csv: cannot be read as text"),
    ("a text file named .jpg", lambda t: read.read_folder(text_named_jpg(t)), r"train/happy/b.jpg: not a readable image .*; replace it"),
    ("a truncated image", lambda t: read.read_folder((half(face_folder(t) / "train/happy/a.png", 60), t / "faces")[1]),
     r"train/happy/a.png: not a readable image"),
    ("an empty class folder", lambda t: read.read_folder(with_sub(t, "train/angry")), r"train/angry: the class folder has no images"),
    ("an unknown class folder", lambda t: read.read_folder(face_folder(t, "train/bored/a.png")), r"train/bored: no known class; rename it to one of"),
    ("no class folders", lambda t: read.read_folder(with_sub(t, "test")), r"test: there are no class folders in it"),
    ("a folder beside the splits", lambda t: read.read_folder(with_sub(t, "notes")), r"notes: neither a split nor inside one"),
    ("images that are not square", lambda t: read.read_folder(face_folder(t, size=(48, 40))), r"a.png: the image is 48 x 40 pixels, not square; give size="),
    ("images of two sizes", lambda t: (face_folder(t), read.read_folder(face_folder(t, "train/sad/b.png", size=(40, 40)))),
     r"b.png: the image is 40 x 40 pixels, but .*a.png is 48 x 48; give size="),
    ("a half-written parquet", lambda t: read.load("fer2013", half(face_parquet(t)).parent), r"fer2013.parquet: this is not a whole parquet file; copy it again"),
    ("an empty parquet", lambda t: read.read_parquet(half(face_parquet(t), 0)), r"fer2013.parquet: this is not a whole parquet file; copy it again"),
    ("a parquet without images", lambda t: read.read_parquet(face_parquet(t, image=None)), r"fer2013.parquet: the column 'image' is missing"),
    ("a parquet without labels", lambda t: read.read_parquet(face_parquet(t, emotion=None)), r"fer2013.parquet: the column 'emotion' is missing"),
    ("a parquet with nine vote columns", lambda t: read.read_parquet(face_parquet(t, **votes(fear=None))), r"the column 'fear' is missing"),
    ("a parquet image cut", lambda t: read.read_parquet(face_parquet(t, image=[b"RIFF\x10\0\0\0WEBPVP8L", b""])), r"fer2013.parquet: row 0: not a readable image"),
    ("a parquet label 9", lambda t: read.read_parquet(face_parquet(t, emotion=[3, 9])), r"fer2013.parquet: row 1 has the label 9, but labels go from 0 to 6"),
    ("a parquet label missing", lambda t: read.read_parquet(face_parquet(t, emotion=[3, None])), r"fer2013.parquet: emotion of row 1 is empty, not a whole number"),
    ("a parquet usage misspelt", lambda t: read.read_parquet(face_parquet(t, usage=["Training", "Test"])), r"row 1 has the usage 'Test'"),
    ("votes that sum to 0", lambda t: read.read_parquet(face_parquet(t, **{c: [1, 0] for c in VOTE_COLUMNS})), r"fer2013.parquet: row 1 has votes that sum to 0"),
    ("a negative vote", lambda t: read.read_parquet(face_parquet(t, **votes(fear=[-1, 1]))), r"row 0 has a negative vote"),
    ("a row id twice", lambda t: read.read_parquet(face_parquet(t, row=[5, 5])), r"fer2013.parquet: the row id 5 occurs more than once"),
    ("FER+ votes of another length", lambda t: joined(t, "Training,fer0.png" + ",1" * 10), r"fer2013new.csv: has 1 rows but fer2013 has 2; they are joined row by row"),
    ("FER+ votes in another order", lambda t: joined(t, "PublicTest,a.png" + ",1" * 10 + "\nTraining,b.png" + ",1" * 10),
     r"fer2013new.csv: row 0 is PublicTest but row 0 of fer2013 is Training"),
    ("FER+ votes that sum to 0", lambda t: joined(t, "Training,a.png" + ",1" * 10 + "\nPublicTest,b.png" + ",0" * 10), r"fer2013new.csv: row 1 has votes that sum to 0"),
    ("an FER+ vote x", lambda t: joined(t, "Training,a.png" + ",1" * 9 + ",x\nPublicTest,b.png" + ",1" * 10), r"fer2013new.csv: row 0 \(line 2\) has the votes"),
    ("RAF-DB label 8", lambda t: read.read_rafdb(rafdb(t, "train_00001.jpg 8\n")), r"list_patition_label.txt: row 0 is 'train_00001.jpg 8'"),
    ("RAF-DB images missing", lambda t: read.read_rafdb(rafdb(t, "train_00001.jpg 1\n")), r"1 of 1 images it lists are not there .*unpack Image/aligned.zip"),
    ("a pickle in AffectNet", lambda t: read.read_affectnet(pickled_npy(t)), r"0_exp.npy: is missing or is not one plain number \(a pickle is never opened\)"),
    ("a folder of the right name with nothing in it", lambda t: ((t / "rafdb").mkdir(), read.load_or_embedded("rafdb", t)), r"rafdb: holds none of the layouts"),
    ("a broken link among the images", lambda t: ((face_folder(t) / "train/happy/b.png").symlink_to(t / "gone"), read.load("faces", t)), r"b.png: cannot be read"),
    ("a table whose parts differ", lambda t: read.FaceTable(np.zeros((2, 8, 8), np.uint8), pd.DataFrame({"row": [0]}), ("a",), "mine"),
     r"mine: 2 images but 1 rows of labels"),
    ("votes asked of a table without", lambda t: read.read_folder(face_folder(t)).votes, r"this table has no FER\+ votes"),
    ("a split that is none", lambda t: read.read_folder(face_folder(t)).split("PrivateTest"), r"there is no split 'PrivateTest'; use one of train, valid, test"),
    ("votes of a row that sum to 0", lambda t: emotions.votes_to_vad(np.vstack([VOTES, 0 * VOTES[:1]])), r"votes row 4 sums to 0: an image that nobody rated"),
    ("votes below 0", lambda t: emotions.votes_to_vad(np.vstack([VOTES, -VOTES[:1]])), r"votes row 4: neutral is -1, but a number of votes"),
    ("half a vote", lambda t: emotions.ferplus_targets(VOTES * 0.5, "majority"), r"votes row 0: neutral is 0.5"),
    ("eight vote columns", lambda t: emotions.votes_to_vad(VOTES[:, :8]), r"votes need 10 columns \(neutral, happiness"),
    ("a label mode that is none", lambda t: emotions.ferplus_targets(VOTES, "mode"), r"label mode 'mode' is unknown: choose one of majority"),
    ("labels of a dropped row", lambda t: emotions.draw_labels(np.zeros((1, 8)), 0), r"targets row 0 sums to 0, not to 1: leave out dropped rows"),
    ("a figure without alt text", lambda t: emotions.show(plt.figure(), ""), r"a figure needs alt text"),
    ("a face of 17 action units", lambda t: schematic.draw(np.zeros((2, 17))), r"a face needs 20 action units \(see schematic.AUS\)"),
    ("one pose for two faces", lambda t: schematic.draw(np.zeros((2, 20)), pose=[0, 10, 0]), r"pose needs the shape \(2, 3\), one row a face"),
    ("scores of other lengths", lambda t: metrics.accuracy(np.zeros(3, int), np.zeros(2, int)), r"3 rows against 2: score the same images"),
    ("a claim without a paper value", lambda t: claims.read_ledger(write_ledger(t, measured(value=""))), r"line 2: the claim 'a' has no paper value"),
    ("a claim without an id", lambda t: claims.read_ledger(write_ledger(t, measured(claim_id=""))), r"line 2: the claim has no id"),
    ("a claim twice", lambda t: claims.read_ledger(write_ledger(t, measured(), measured())), r"line 3: the id 'a' is taken by line 2"),
    ("a kind of claim that is none", lambda t: claims.read_ledger(write_ledger(t, measured(kind="guess"))), r"'guess' is no kind of claim"),
    ("a claim of an unknown metric", lambda t: claims.read_ledger(write_ledger(t, measured(metric="acuracy"))), r"there is no metric 'acuracy'"),
    ("half-written predictions", lambda t: damaged_run(t, lambda p: half(p, 900)), r"predictions.parquet is damaged or only half written"),
    ("missing predictions", lambda t: damaged_run(t, Path.unlink), r"predictions.parquet is missing"),
    ("predictions with a row missing", lambda t: damaged_run(t, lambda p: predictions().drop(index=599).to_parquet(p)),
     r"299 images of the test split where run.json says 300"),
    ("probabilities that do not sum to 1", lambda t: claims.read_run(write_run(t, "net", predictions().assign(p_fear=0.9))), r"do not sum to 1"),
    ("an unknown profile", lambda t: training.fit(SMALL, "fast"), r"There is no profile 'fast': use smoke, cpu or gpu"),
    ("an unknown recipe", lambda t: training.find_recipe("resnet-1000"), r"There is no recipe 'resnet-1000'. Recipes: .*pixel-regression"),
    ("a recipe of a foreign class", lambda t: training.build_model(replace(SMALL, model="os:system"), 7), r"'os:system' is not of the form fer_book.module:Class"),
    ("a face without a label", lambda t: training.soft_targets(unlabelled()), r"row 3 has no emotion label; leave such rows out"),
    ("a checkpoint of another recipe", lambda t: trained_then(t, under_the_name_of(OTHER, made_up_faces()), recipe=OTHER), r"checkpoint.safetensors was written for recipe"),
    ("a checkpoint of other data", lambda t: trained_then(t, under_the_name_of(SMALL, made_up_faces(seed=1)), faces=made_up_faces(seed=1)), r"checkpoint.safetensors was written for data"),
    ("a checkpoint cut short", lambda t: trained_then(t, half), r"is not a readable checkpoint .*delete it to start the run again"),
    ("a full disk while a run is written", full_disk, r"could not be written .No space left on device.; free some space and run the same command again"),
    ("a network nobody published", lambda t: training.load_model("net", home=t), r"models/net.safetensors does not exist; train it with"),
    ("a network file of a foreign class", lambda t: published(t, '{"settings": {"name": "x", "model": "os:system"}, "classes": ["a"], "in_channels": 1}'),
     r"'os:system' is not of the form fer_book.module:Class"),
    ("a way to explain that is none", lambda t: explain.attribute(explained(), GREY, "lime"), r"There is no method 'lime': use saliency, gradient, grad-cam"),
    ("Grad-CAM without a layer", lambda t: explain.attribute(explained(), GREY, "grad-cam", 0), r"grad-cam needs a layer: the last convolution is '0'"),
    ("Grad-CAM of a network without convolutions", lambda t: explain.attribute(explained()[2:], GREY, "grad-cam", 0), r"this network has no convolution"),
    ("a layer that the network lacks", lambda t: explain.attribute(explained(), GREY, "grad-cam", 0, "conv9"), r"has no layer 'conv9'; its layers are 0, 1, 2"),
    ("a layer of another network", lambda t: explain.attribute(explained(), GREY, "grad-cam", 0, explained()[0]), r"has no layer Conv2d; its layers are 0, 1, 2"),
    ("a layer without a map", lambda t: explain.attribute(explained(), GREY, "grad-cam", 0, "2"), r"Layer '2' does not give exactly one map"),
    ("an explained class out of range", lambda t: explain.attribute(explained(), GREY, "saliency", [0, 3]), r"Target 3 of image 1 is out of range: the network has outputs 0 to 2"),
    ("an explained class of -1", lambda t: explain.attribute(explained(), GREY, "saliency", -1), r"Target -1 of image 0 is out of range"),
    ("an explained class of 0.5", lambda t: explain.attribute(explained(), GREY, "saliency", 0.5), r"Targets are float32 of shape \(\)"),
    ("three classes for two images", lambda t: explain.attribute(explained(), GREY, "saliency", [0, 1, 2]), r"of shape \(3,\); give one whole number, or one for each of the 2"),
    ("an explained image with a NaN", lambda t: explain.attribute(explained(), np.where(np.arange(2)[:, None, None] == 1, np.nan, GREY), "saliency"),
     r"Image 1 has a pixel that is NaN or infinite"),
    ("one explained image without a batch", lambda t: explain.attribute(explained(), GREY[0], "saliency"), r"Images have the shape \(8, 8\)"),
    ("text for explained images", lambda t: explain.attribute(explained(), "face.jpg", "saliency"), r"shape \(\)|not str"),
    ("explained images without pixels", lambda t: explain.attribute(explained(), GREY[:, :0], "saliency"), r"Images have the shape \(2, 0, 8\)"),
    ("explained images that the network does not take", lambda t: explain.attribute(explained(), GREY[:, :4], "saliency", 0), r"does not take images of shape \(1, 1, 4, 8\)"),
    ("a word for an explained class", lambda t: explain.attribute(explained(), GREY, "saliency", "joy"), r"Targets are whole numbers, not 'joy'"),
    ("an explanation without gradients", lambda t: torch.inference_mode()(explain.attribute)(explained(), GREY, "saliency"), r"call attribute outside of torch.inference_mode"),
    ("a network that gives maps", lambda t: explain.attribute(explained()[:1], GREY, "saliency", 0), r"Only a network with one output tensor of shape \(N, K\)"),
    ("an unknown chapter", lambda t: build.find_chapter("99"), r"no chapter is called '99': choose one of 01_emotion_models"),
    ("a matrix that is no matrix of percentages", lambda t: cascade.confusion_counts(np.full((2, 2), 33.3), (10, 3)), r"Row 0 of the matrix is no row of percentages of 10 images"),
    ("one eye twice", lambda t: cascade.align(np.zeros((9, 9), np.uint8), np.ones((2, 2))), r"The eye centres are less than one pixel apart; give two different points"),
    ("a head with too few labels", lambda t: cascade.fit_head(np.zeros((3, 2)), np.zeros(2, int)), r"There are 3 rows of features and 2 labels; give one label for each row"),
    ("a single actor", lambda t: cascade.leave_one_actor_out(None, np.zeros((2, 1)), np.zeros(2, int), np.array(["x", "x"])), r"All faces are of one actor \(x\)"),
    ("an actor who is not there", lambda t: cascade.leave_out(replace(unlabelled(), frame=unlabelled().frame.assign(subject="x")), "Garbo"), r"cannot leave out 'Garbo'; it needs three actors or more"),
    ("features that are no map", lambda t: bilinear.bilinear_pool(torch.zeros(2, 5)), r"a feature map has the shape \(N, C, H, W\), not \(2, 5\)"),
    ("a map without places", lambda t: bilinear.bilinear_pool(torch.zeros(2, 5, 0, 3)), r"not \(2, 5, 0, 3\); C, H and W are at least 1"),
    ("factors of other features", lambda t: bilinear.low_rank_bilinear(torch.zeros(2, 1, 3, 3), torch.zeros(4, 7, 2), torch.zeros(4, 7, 2)), r"here with C = 1, not \(4, 7, 2\)"),
    ("a sketch of other features", lambda t: bilinear.CompactBilinear(7, 64)(torch.zeros(2, 1, 3, 3)), r"this sketch is of 7 features, the map has 1"),
    ("an unknown pooling", lambda t: bilinear.build("resnet18", "max", 3), r"there is no pooling 'max'; use one of global, bilinear"),
    ("a point with one coordinate", lambda t: emotions.nearest_emotion(np.ones((2, 1))), r"points need 2 or 3 columns .valence, arousal, dominance."),
    ("a regression without its truth", lambda t: claims.read_run(write_run(t, "net", predictions().assign(valence=5.0, arousal=5.0, true_valence=5.0))), r"lacks the column true_arousal"),
    ("a picture that is not there", lambda t: predict.read_image(t / "a.jpg"), r"a.jpg: there is no such file; check the path"),
    ("a folder for a picture", lambda t: predict.read_image(t), r"this is a folder; give one picture"),
    ("bytes for a picture", lambda t: predict.read_image(b"jpeg"), r"a picture is a file's path, an array or a Pillow image, not bytes"),
    ("a Pillow picture without pixels", lambda t: predict.read_image(Image.new("RGB", (0, 5))), r"a picture of 0 x 5 pixels shows nothing"),
    ("an empty name to predict", lambda t: cli.sources(""), r"the name of the picture, video or folder is empty"),
    ("a path drawn from a folder", lambda t: cli.check_plot(t / "path.png", [t, t]), r"--plot draws the path of a face through one video; give one"),
    ("a path drawn to a text", lambda t: cli.check_plot(t / "path.xyz", [t]), r"path.xyz: --plot writes one picture; end its name in \."),
    ("a picture of zero bytes", lambda t: ((t / "a.jpg").touch(), predict.read_image(t / "a.jpg")), r"a.jpg: not a readable picture \(it is empty\); replace or remove it"),
    ("a picture cut short", lambda t: predict.read_image(half(face_folder(t) / "train/happy/a.png", 60)), r"a.png: not a readable picture"),
    ("a text for a picture", lambda t: predict.read_image(text_named_jpg(t) / "train/happy/b.jpg"), r"b.jpg: not a readable picture .*; replace or remove it"),
    ("an array that is no picture", lambda t: predict.read_image(np.zeros((2, 3, 4, 5))), r"shape \(2, 3, 4, 5\) is no picture; give \(H, W\)"),
    ("an array without pixels", lambda t: predict.read_image(np.zeros((0, 7), np.uint8)), r"shape \(0, 7\) is no picture"),
    ("one box without a list", lambda t: predict.crop_faces(np.zeros((9, 9, 3), np.uint8), np.zeros(4, int)), r"boxes have the shape \(4,\); give \(N, 4\)"),
    ("floats beyond 1", lambda t: predict.read_image(np.full((4, 4), 255.0)), r"pixels that are floats must lie between 0 and 1"),
    ("pixels below 0", lambda t: predict.read_image(np.full((4, 4), -1)), r"give uint8, uint16 or floats between 0 and 1"),
    ("a video without frames", lambda t: ((t / "a.mp4").write_text("no film"), list(predict.frames(t / "a.mp4"))), r"a.mp4: no frame of this video can be read"),
    ("a video that is not there", lambda t: list(predict.frames(t / "a.mp4")), r"a.mp4: there is no such file; check the path"),
    ("views of a body that learns", lambda t: training.make_learner(replace(SMALL, views=2), made_up_faces(), made_up_faces(), torch.device("cpu")),
     "views are of a frozen body; set freeze as well"),
    ("no network to predict with", lambda t: claims.best_model(t), r"no trained network for emotion is there; install the book from a checkout"),
    ("recalls of other lengths", lambda t: predict.recall_draws(np.zeros(3, int), np.zeros(3, int), np.zeros(2)), r"3 labels, 3 predictions and 2 subjects"),
    ("actors too few to hold out", lambda t: cake.hold_out(datasets.load("schematic")[:3], 3), r"schematic has \d subjects?; holding out 3 needs more"),
    ("a domain of one face", lambda t: cake.domain_weights(torch.tensor([0, 0, 1])), r"Domain 1 has one face, and 1 / log 1 is no weight; add faces"),
    ("no face to train heads on", lambda t: cake.fit_heads(cake.CAKE(2), cake.gather(cake.draw_domains(60), lambda f: f.images[:, ::8, ::8].reshape(-1, 36) / 255)[np.zeros(180, bool)]),
     r"There is no training face; give samples of the train split"),
    ("spaces of other rows", lambda t: cake.canonical_correlations(np.zeros((4, 1)), np.zeros((3, 1))), r"4 and 3 rows of 1 and 1 columns: give the same rows"),
    ("a map of five dimensions", lambda t: cake.emotion_map(cake.Heads(cake.CAKE(5), 4, [0]), 0, np.zeros(2), np.zeros(2)), r"cake-5 is no plane and no sphere"),
    ("floats to embed", lambda t: cake.embed(np.zeros((2, 8, 8))), r"Faces are uint8 of shape \(N, H, W\) or \(N, H, W, 3\), not float64"),
    ("no CAKE to embed with", lambda t: cake.embed(np.zeros((2, 8, 8), np.uint8), t), r"No CAKE is recorded in results/; run chapter 13 with profile=cpu"),
    ("an unknown papermill parameter", lambda t: build.check_parameters(build.find_chapter("03"), {"profle": "smoke"}),
     r"03_datasets.ipynb has no parameter 'profle'; its parameters are profile"),
]


@pytest.mark.parametrize("action, sentence", [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input(action, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "cache"))
    with pytest.raises((ValueError, OSError)) as error:
        action(tmp_path)
    message = str(error.value)
    assert re.search(sentence, message) and "\n" not in message, message
    assert not list(tmp_path.glob("cache/*")) and not list(tmp_path.rglob("*.part*"))
