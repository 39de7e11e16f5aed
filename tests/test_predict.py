"""From any picture to a table of faces; recall over resampled people; the network as one ONNX file."""
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_sample_images
from test_training import SMALL

from fer_book import claims, cli, datasets, predict, training
from fer_book.datasets import DataError, DataMissing
from fer_book.emotions import FER2013_EMOTIONS, VAD
from fer_book.cascade import detect_faces
from fer_book.predict import Predictor, crop_faces, draw_table, frames, read_image, read_source, recall_draws
from fer_book.training import TrainedModel, as_tensor

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"  # US Navy, public domain


def made_up_model(in_channels: int = 1, **settings) -> TrainedModel:
    recipe = training.replace(SMALL, **{"flip_at_test": True, **settings}, profiles={})
    torch.manual_seed(0)
    return TrainedModel(training.build_model(recipe, len(recipe.outputs) or 7, in_channels).eval(), recipe, FER2013_EMOTIONS, 128.0, 60.0, in_channels)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(made_up_model())


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """A photograph with one face, 256 x 300."""
    return np.asarray(Image.open(PORTRAIT).convert("RGB").resize((256, 300)))


@pytest.fixture(scope="module")
def boxes(portrait) -> np.ndarray:
    return detect_faces(portrait)[0]


@pytest.fixture(scope="module")
def face(portrait, boxes) -> np.ndarray:
    return crop_faces(portrait, boxes, 100, margin=1.5)[0]


def overlap(a, b) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(np.add(a[:2], a[2:]), np.add(b[:2], b[2:]))
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def saved(image: Image.Image, kind: str, **how) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return Image.open(buffer)


def test_faces_at_known_places_are_found(face):
    scene = cv2.GaussianBlur(np.random.default_rng(0).integers(60, 180, (300, 480, 3), dtype=np.uint8), (0, 0), 20)
    places = [(20, 30, 100), (180, 150, 130), (350, 20, 110)]
    for x, y, side in places:
        scene[y:y + side, x:x + side] = cv2.resize(face, (side, side))
    found, windows = detect_faces(scene)
    inner = [(x + side / 6, y + side / 6, side / 1.5, side / 1.5) for x, y, side in places]
    assert len(found) == 3 and (windows > 10).all()
    assert all(overlap(a, b) > 0.6 for a, b in zip(found[np.argsort(found[:, 0])], inner))
    assert (np.diff(found[:, 2]) <= 0).all()


@pytest.mark.parametrize("picture", [np.full((90, 120), 130, np.uint8), *load_sample_images().images], ids=["wall", "temple", "flower"])
def test_no_face_is_an_empty_table(predictor, picture):
    table = predictor(picture)
    assert table.empty and list(table) == predictor.columns


def test_boxes_are_in_pixels_of_the_original(portrait, boxes):
    small, scale = boxes[0], 4
    large = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    [found], _ = detect_faces(large)
    assert max(large.shape) == 1200 and overlap(found / scale, small) > 0.85


def test_eight_orientations_give_the_same_boxes(portrait, boxes):
    undo = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    for flag, move in undo.items():  # the stored pixels are the upright ones, moved; the flag says how to move them back
        exif = Image.Exif()
        exif[0x0112] = flag
        upright = Image.fromarray(portrait)
        stored = upright if move is None else upright.transpose(Image.Transpose[move])
        image = read_image(saved(stored, "PNG", exif=exif))
        assert np.array_equal(image, portrait), f"orientation {flag}"
    assert len(boxes) == 1


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "grey+alpha", "palette", "cmyk", "16-bit grey", "12-bit in 16", "animation", "array 16-bit", "array rgba",
                                  "array float", "array one channel", "array bool"])
def test_every_kind_of_picture(kind, portrait):
    image, grey = Image.fromarray(portrait), cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)
    opaque = np.full(grey.shape, 255, np.uint8)
    source, expected, off = {
        "grey": lambda: (saved(image.convert("L"), "PNG"), grey, 1),
        "rgb": lambda: (saved(image, "PNG"), portrait, 0),
        "rgba": lambda: (saved(image.convert("RGBA"), "PNG"), portrait, 0),
        "grey+alpha": lambda: (saved(image.convert("LA"), "PNG"), grey, 1),
        "palette": lambda: (saved(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), portrait, 70),
        "cmyk": lambda: (saved(image.convert("CMYK"), "JPEG", quality=95), portrait, 70),
        "16-bit grey": lambda: (saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), grey, 1),
        "12-bit in 16": lambda: (saved(Image.fromarray(grey.astype(np.uint16) * 16), "PNG"), grey, 1),
        "animation": lambda: (saved(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)]), portrait, 90),
        "array 16-bit": lambda: (portrait.astype(np.uint16) * 257, portrait, 0),
        "array rgba": lambda: (np.dstack([portrait, opaque]), portrait, 0),
        "array float": lambda: (portrait / 255, portrait, 0),
        "array one channel": lambda: (grey[..., None], grey, 1),
        "array bool": lambda: (grey > 128, np.where(grey > 128, 255, 0), 0),
    }[kind]()
    got = read_image(source)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
    assert got.shape == portrait.shape and got.dtype == np.uint8
    difference = np.abs(got.astype(int) - expected)
    assert difference.max() <= off and difference.mean() <= (6 if off > 1 else off)


ORIENTATION = struct.pack("<HHII", 0x0112, 3, 1, 6)


def exif(*entries: bytes, tail: bytes = b"") -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + tail


@pytest.mark.parametrize(("header", "turned"), [
    (exif(struct.pack("<HHI4s", 0x0100, 2, 4, b"wid"), ORIENTATION), True),  # a width in letters
    (exif(struct.pack("<HHII", 0x011A, 5, 1, 9999), ORIENTATION), True),  # a fraction beyond the end
    (exif(struct.pack("<HHII", 0x8769, 4, 1, 9999), ORIENTATION), True),  # a block beyond the end
    (exif(struct.pack("<HHI4s", 0x8769, 2, 4, b"abc"), ORIENTATION), True),  # a block whose address is text
    (exif(struct.pack("<HHII", 0x0112, 3, 1, 9)), False),
    (exif(struct.pack("<HHI4s", 0x0112, 2, 2, b"6")), False),
    (exif(struct.pack("<HHII", 0x0110, 2, 2**32 - 1, 8), ORIENTATION), True),  # a text of 4 GB
    (b"Exif\0\0XX*\0", False), (b"Exif\0\0", False), (exif(ORIENTATION)[:16], False),
])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_header_loses_no_picture(kind, header, turned, portrait):
    how = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[kind]
    got = read_image(saved(Image.fromarray(portrait), kind, exif=header, **how))
    expected = np.rot90(portrait, -1) if turned else portrait
    assert got.shape == expected.shape and np.abs(got.astype(int) - expected).max() <= (12 if kind == "JPEG" else 0)


def test_damage_anywhere_in_an_exif_header_loses_no_picture(portrait):
    picture, header, random = Image.fromarray(portrait[:40, :60]), Image.Exif(), np.random.default_rng(0)
    header.update({0x0112: 6, 0x010F: "maker", 0x011A: 72.0})
    header.get_ifd(0x8769)[0x9003] = "2001:01:01"
    for _ in range(200):
        damaged = np.frombuffer(header.tobytes(), np.uint8).copy()
        damaged[random.integers(6, len(damaged), 4)] = random.integers(0, 256, 4)
        assert read_image(saved(picture, "JPEG", exif=damaged.tobytes())).shape in ((40, 60, 3), (60, 40, 3))


def deep_tiff(pixels: np.ndarray) -> bytes:
    """A plain TIFF of uint16 (H, W, 3) whose orientation tag is 6."""
    height, width, _ = pixels.shape
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140), (274, 3, 1, 6),
               (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, pixels.nbytes)]
    return (b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
            + struct.pack("<3H", 16, 16, 16) + pixels.astype("<u2").tobytes())


def encoded(kind: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(kind, pixels[..., [2, 1, 0, 3][:pixels.shape[2]]])[1].tobytes()


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", [".png", ".tiff", ".ppm", "rgba.png", "rgba.tiff", "array rgba", "turned.tiff"])
def test_deep_colour_is_as_bright_as_it_was_taken(kind, bits, portrait):
    deep = portrait.astype(np.uint16) << (bits - 8)
    if "rgba" in kind:
        deep = np.dstack([deep, np.full(deep.shape[:2], 65535, np.uint16)])
    if kind == "array rgba":
        got = read_image(deep)
    else:
        got = read_image(Image.open(io.BytesIO(deep_tiff(deep) if "turned" in kind else encoded(kind.removeprefix("rgba"), deep))))
    assert np.array_equal(got, np.rot90(portrait, -1) if "turned" in kind else portrait)


def test_postscript_is_not_run(portrait):
    with pytest.raises(DataError, match="a PostScript file is a program to run, not a picture; save it as PNG"):
        read_image(saved(Image.fromarray(portrait), "EPS"))


def test_what_is_transparent_is_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = 10, 20, 30, 255
    assert read_image(pixels)[0, 0].tolist() == [10, 20, 30] and (read_image(pixels)[1] == 255).all()


def test_crop_is_the_box_and_repeats_the_edge():
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)[..., None].repeat(3, 2)
    inside, corner = crop_faces(image, np.array([[2, 3, 4, 4], [-2, -2, 4, 4]]), 4, margin=1.0)[..., 0]
    assert np.array_equal(inside, image[3:7, 2:6, 0])
    assert corner.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [10, 10, 10, 11]]


def test_a_face_alone_and_in_a_batch_is_the_same(predictor):
    faces = np.random.default_rng(0).integers(0, 256, (20, 48, 48, 3), dtype=np.uint8)
    together = predictor.classify(faces)
    alone = pd.concat([predictor.classify(faces[i:i + 1]) for i in range(20)], ignore_index=True)
    assert (together["emotion"] == alone["emotion"]).all()
    assert np.abs(together.iloc[:, 1:].to_numpy() - alone.iloc[:, 1:].to_numpy()).max() < 1e-6


def test_table_holds_what_the_network_says_of_the_crop(predictor, portrait, boxes):
    [row] = predictor(portrait).to_dict("records")
    grey = cv2.cvtColor(crop_faces(portrait, boxes)[0], cv2.COLOR_RGB2GRAY)
    p = predictor.trained(grey[None])[0]
    assert [row["x"], row["y"], row["width"], row["height"]] == boxes[0].tolist()
    assert np.allclose([row[f"p_{c}"] for c in FER2013_EMOTIONS], p, atol=1e-6) and row["emotion"] == FER2013_EMOTIONS[p.argmax()]


def test_without_detection_the_picture_is_the_face(predictor):
    grey = np.random.default_rng(1).integers(0, 256, (48, 48), dtype=np.uint8)
    [row] = Predictor(predictor.trained, detect=False)(grey).to_dict("records")
    assert [row["x"], row["y"], row["width"], row["height"]] == [0, 0, 48, 48] and pd.isna(row["windows"])
    assert np.allclose([row[f"p_{c}"] for c in FER2013_EMOTIONS], predictor.trained(grey[None])[0], atol=1e-6)


def test_a_network_for_colour_sees_colour():
    trained = made_up_model(in_channels=3)
    faces = np.random.default_rng(2).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    assert np.allclose(Predictor(trained).classify(faces).iloc[:, 1:], trained(faces), atol=1e-6)


def test_a_network_of_dimensions_gives_dimensions(portrait):
    table = Predictor(made_up_model(target="vad", loss="l2+l1"))(portrait)
    assert list(table) == ["x", "y", "width", "height", "windows", *VAD] and len(table) == 1
    assert draw_table(portrait, table).shape == portrait.shape


def test_columns_are_named_by_the_network():
    trained = made_up_model()
    turned = predict.replace(trained, classes=trained.classes[::-1])
    faces = np.random.default_rng(3).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    straight, other = Predictor(trained).classify(faces), Predictor(turned).classify(faces)
    assert np.array_equal(straight["p_anger"], other["p_neutral"]) and (straight["emotion"] != other["emotion"]).any()
    eight = predict.replace(trained, classes=(*trained.classes, "contempt"))
    with pytest.raises(ValueError, match=r"gives 7 answers, but names 8 \(anger, .*contempt\)"):
        Predictor(eight).classify(faces)


def test_a_class_that_the_book_does_not_know_is_drawn(portrait):
    recipe = training.replace(SMALL, flip_at_test=True, profiles={})
    eight = TrainedModel(training.build_model(recipe, 8, 1).eval(), recipe, tuple(f"Laune {k} ü" for k in range(8)), 128.0, 60.0, 1)
    table = Predictor(eight)(portrait)
    assert [c for c in table if c.startswith("p_")] == [f"p_Laune {k} ü" for k in range(8)] and table.loc[0, "emotion"] in eight.classes
    assert not np.array_equal(draw_table(portrait, table), portrait)


def test_drawing_leaves_the_picture_alone(predictor, portrait):
    before, table = portrait.copy(), predictor(portrait)
    drawn = draw_table(portrait, table)
    assert np.array_equal(portrait, before)
    x, y, w, h = table.loc[0, ["x", "y", "width", "height"]]
    assert (drawn[y + h, x:x + w] == drawn[y + h, x]).all() and not np.array_equal(drawn, portrait)


def film(path: Path, pictures: list[np.ndarray], rate: int = 10) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG")), rate, pictures[0].shape[1::-1])
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4"])
def test_video_is_sampled_in_time(name, tmp_path):
    shades = [np.full((48, 64, 3), 10 * k, np.uint8) for k in range(20)]
    sampled = list(frames(film(tmp_path / name, shades), every=0.5))
    assert np.allclose([at for at, _ in sampled], [0, 0.5, 1, 1.5], atol=0.01)
    assert np.allclose([image.mean() for _, image in sampled], [0, 50, 100, 150], atol=4)


def test_video_has_a_row_per_face_and_frame(predictor, portrait, boxes, tmp_path):
    clip = film(tmp_path / "clip.avi", [portrait] * 6 + [np.zeros_like(portrait)] * 6)
    read = list(read_source(predictor, clip, every=0.6))
    assert [len(table) for *_, table in read] == [1, 0]
    assert overlap(read[0][2].loc[0, ["x", "y", "width", "height"]].to_numpy(int), boxes[0]) > 0.8


SHADES = [np.full((48, 64, 3), 10 * k, np.uint8) for k in range(20)]


@pytest.mark.parametrize("name", ["12:30:05.mp4", "rtsp:x.mp4", "concat:a|b.avi", "100%.mp4", "shot%03d.mp4", "-i.mp4", "clip001.avi", "a\nb.mp4",
                                  os.fsdecode(b"Mu\xf1oz.mp4"), "口" * 83 + ".mp4", "rtsp:/host/a.mp4"])
def test_a_clip_is_opened_whatever_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    film(tmp_path / f"plain{Path(name).suffix}", SHADES).rename(name)
    assert len(list(frames(name))) == len(list(frames(Path(name)))) == 4


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{0}'\n",
                                  "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {1} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
                                  '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-main:2011" type="static">'
                                  '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>'])
@pytest.mark.parametrize("to", ["other file", "address"])
def test_a_list_that_is_called_a_video_is_not_followed(text, to, tmp_path, monkeypatch):
    monkeypatch.setenv(predict._FFMPEG, "threads;1")
    film(tmp_path / "other.mp4", SHADES)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "list.mp4").write_text(text.format("other.mp4" if to == "other file" else f"http://127.0.0.1:{port}/a.mp4", port))
        with pytest.raises(DataError, match="list.mp4: no frame of this video can be read"):
            list(frames(tmp_path / "list.mp4"))
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):  # nobody knocked
            server.accept()
    assert os.environ[predict._FFMPEG] == "threads;1"


class MadeUpFilm:
    """What OpenCV tells of a film whose frames carry these times, in seconds."""

    def __init__(self, times, rate=10.0, announced=0.0):
        self.times, self.told, self.at = times, {cv2.CAP_PROP_FPS: rate, cv2.CAP_PROP_FRAME_COUNT: announced}, -1

    def grab(self) -> bool:
        self.at += 1
        return self.at < len(self.times)

    def get(self, what: int) -> float:
        return 1000 * self.times[self.at] if what == cv2.CAP_PROP_POS_MSEC else self.told[what]


@pytest.mark.parametrize(("times", "expected"), [
    ([0, 0.1, 0.25, 0.3, 9], [0, 0.1, 0.25, 0.3, 9]),  # a variable rate and a gap
    ([5000, 5000.1], [5000, 5000.1]), ([-0.2, -0.1, 0], [-0.2, -0.1, 0]),
    ([0] * 30, np.arange(30) / 10), ([7] * 30, 7 + np.arange(30) / 10), ([np.nan] * 4, np.arange(4) / 10),
    ([0, 0.1, 5, 5.1, 0, 0.1, 0.2], [0, 0.1, 5, 5.1, 5.2, 5.3, 5.4]),  # the clock is set back
    ([0, 0.2, 0.1, 0.3, 0.4], [0, 0.2, 0.3, 0.4, 0.5]), ([0, 0.2, 0.1, 0.4], [0, 0.2, 0.3, 0.4]),  # two frames in the wrong order
    ([0, 0.1, np.inf, 0.3], [0, 0.1, 0.2, 0.3]), ([0, 0.1, 1e6, 0.3, 0.4], [0, 0.1, 1e6, 1e6 + 0.1, 1e6 + 0.2]),
])
def test_times_of_frames_grow(times, expected):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = list(predict._film_times(MadeUpFilm(times), "a.mp4"))
    assert np.allclose(got, expected) and (np.diff(got) > 0).all()
    as_told = len(times) == 1 or np.allclose(times, expected)
    assert [str(w.message) for w in told] == [] if as_told else "a.mp4: the times of its frames do not go forward; from" in str(told[0].message)


@pytest.mark.parametrize("rate", [0, np.nan, 1000, 90000, -5, np.inf])
def test_a_film_without_a_rate_is_counted_at_25(rate):
    with pytest.warns(UserWarning, match="frames are counted at 25 per second, for the file names no rate"):
        assert np.allclose(list(predict._film_times(MadeUpFilm([0] * 50, rate), "a")), np.arange(50) / 25)


@pytest.mark.parametrize(("announced", "warned"), [(100, True), (52, False), (0, False), (np.nan, False), (-2**63, False), (2**63, False)])
def test_a_film_that_ends_before_its_time_is_told(announced, warned):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list(predict._film_times(MadeUpFilm(np.arange(50) / 10, announced=announced), "a.mkv"))
    assert [str(w.message) for w in told] == ["a.mkv: it ends after 5.0 s, but announces 10.0 s; it may be cut short"] * warned


@pytest.mark.parametrize("kind", [".avi", ".mkv"])
def test_a_video_cut_short_gives_what_is_there(kind, tmp_path):
    clip = film(tmp_path / f"clip{kind}", SHADES * 5)
    clip.write_bytes(clip.read_bytes()[:clip.stat().st_size // 2])
    with pytest.warns(UserWarning, match="but announces 10.0 s; it may be cut short"):
        assert 6 <= len(list(frames(clip))) <= 14


def test_threads_may_share_a_predictor(predictor, portrait):
    pictures = [portrait, portrait[20:, :-30].copy(), np.full((90, 120, 3), 130, np.uint8)]
    alone = [predictor.read(picture) for picture in pictures]
    turns = [k % len(pictures) for k in range(12)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda k: predictor.read(pictures[k]), turns))
    for k, table in zip(turns, together):
        pd.testing.assert_frame_equal(table, alone[k], rtol=0, atol=1e-6)
    assert [len(table) for table in alone] == [1, 1, 0]


def test_a_forked_child_answers(predictor, portrait):
    here = predictor.read(portrait)
    torch.ones(1 << 20).exp_()  # enough work to start torch's other threads
    child = os.fork()
    if not child:
        torch.ones(1 << 20).exp_()
        os._exit(not predictor.read(portrait)[["x", "emotion"]].equals(here[["x", "emotion"]]))
    end = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0), "the child hangs or answers otherwise"


def test_many_sources_are_read_in_order_and_few_at_a_time(predictor, portrait, tmp_path):
    clip = film(tmp_path / "clip.avi", [portrait] * 4)
    (tmp_path / "bad.jpg").write_text("no picture")
    small = [tmp_path / f"{k}.png" for k in range(12)]
    for k, path in enumerate(small):
        Image.new("L", (20 + k, 20)).save(path)
    asked = []

    def sources():
        for source in (*small[:3], tmp_path / "bad.jpg", clip, tmp_path / "gone.mp4", *small[3:]):
            asked.append(source)
            yield source

    threads, told = (torch.get_num_threads(), cv2.getNumThreads()), []
    for source, reading in predict.read_sources(predictor, sources(), every=0.2):
        assert len(asked) - len({name for name, _ in told}) <= threads[0] + 2
        problem = reading.exception()
        told.append((source.name, str(problem) if problem else (round(reading.result()[0], 1), len(reading.result()[2]), reading.result()[1].shape[1])))
    assert [t[0] for t in told] == ["0.png", "1.png", "2.png", "bad.jpg", "clip.avi", "clip.avi", "gone.mp4", *(f"{k}.png" for k in range(3, 12))]
    assert "bad.jpg: not a readable picture" in told[3][1] and "gone.mp4: there is no such file" in told[6][1]
    assert [t[1][:2] for t in told[4:6]] == [(0.0, 1), (0.2, 1)] and [t[1][2] for t in told[7:]] == [20 + k for k in range(3, 12)]
    assert (torch.get_num_threads(), cv2.getNumThreads()) == threads


def clip_table(seconds: np.ndarray, valence: np.ndarray, arousal: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"seconds": seconds, "width": 10, "height": 10, "valence": valence, "arousal": arousal})


def test_jitter_is_the_noise_on_a_smooth_path():
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(0, 60, 3000))
    straight = predict.path_of(clip_table(t, 2 + 0.1 * t, 7 - 0.05 * t))
    assert np.allclose(predict.jitter(straight), 0, atol=1e-12)
    trembling = predict.path_of(clip_table(t, 5 + np.sin(t) + rng.normal(0, 0.3, 3000), 5 + np.cos(t) + rng.normal(0, 0.05, 3000)))
    assert np.allclose(predict.jitter(trembling), [0.3, 0.05], rtol=0.05)


def test_path_follows_the_largest_face_in_time():
    table = clip_table(np.array([2.0, 1.0, 1.0, 0.0]), np.array([8.0, 1.0, 7.0, 6.0]), np.full(4, 5.0)).assign(width=[10, 10, 20, 10])
    assert predict.path_of(table)["valence"].tolist() == [6, 7, 8]


def test_plot_writes_the_path_of_a_clip_and_refuses_what_has_none(portrait, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load_model", lambda run_id: made_up_model() if run_id == "of-emotions" else made_up_model(target="vad", loss="l2+l1"))
    monkeypatch.setattr(predict.claims, "best_model", lambda home=None, target="emotion": {"vad": "best"}[target])
    clip, target = (film(tmp_path / name, [portrait] * 8) for name in ("other.avi", "clip.avi")), tmp_path / "path.png"
    *_, clip = clip
    assert cli.main(["predict", str(clip), "--model", "vad", "--every", "0.2", "--csv", "--plot", str(target)]) == 0
    assert np.asarray(Image.open(target)).std() > 10 and len(capsys.readouterr().out.splitlines()) == 1 + 4
    for arguments, told in (([str(clip), "--model", "vad", "--every", "5"], "at least three frames"), ([str(clip), "--model", "of-emotions"], "add --model vad"),
                            ([str(tmp_path), "--model", "vad"], "one video")):
        target.unlink(missing_ok=True)
        assert cli.main(["predict", *arguments, "--plot", str(target)]) != 0
        assert told in capsys.readouterr().err and not target.exists()


def test_recall_draws_by_hand():
    y_true, y_pred = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    draws = recall_draws(y_true, y_pred, np.array(["a", "a", "b", "b"]), n_classes=3, n_resamples=4000)
    assert np.allclose(draws[0], [2 / 3, 1, np.nan], equal_nan=True)
    values, counts = np.unique(draws[1:, 0], return_counts=True)  # a twice, one of each, b twice: 1/4, 1/2, 1/4 of the resamples
    assert np.allclose(values, [0, 2 / 3, 1]) and np.allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)


def test_people_make_wider_intervals_than_pictures():
    rng = np.random.default_rng(0)
    subject = np.arange(400) // 50
    right = rng.random(8)[subject] > rng.random(400)
    y_true, y_pred = np.zeros(400, int), np.where(right, 0, 1)
    spread = [np.std(recall_draws(y_true, y_pred, who)[1:, 0]) for who in (subject, np.arange(400))]
    assert spread[0] > 2 * spread[1]


def test_rare_fall_more_knows_the_sign():
    counts = np.array([5, 400, 50, 1, 100])
    fall = np.array([[0.3, 0.1, 0.2, np.nan, 0.1]]) + np.vstack([np.zeros((1, 5)), np.random.default_rng(0).normal(0, 0.01, (500, 5))])
    told = predict.rare_fall_more(fall, counts)
    assert np.isclose(told.value, (0.3 + 0.2) / 2 - (0.1 + 0.1) / 2) and 0 < told.low < told.value < told.high and told.p < 0.01
    assert predict.rare_fall_more(-fall, counts).high < 0


def test_answers_on_another_set_are_a_run_of_their_own(tmp_path):
    run_id, faces = claims.best_model(ROOT, most_parameters=predict.SMALL), datasets.load("schematic")[np.arange(0, 2400, 300)]
    faces = datasets.replace(faces, frame=faces.frame.assign(emotion=[0, 1, 2, 3, 4, -1, 5, 6]))  # one without a label
    run = claims.read_run(predict.record_elsewhere(run_id, faces, tmp_path, ROOT))
    assert run.recipe == f"{claims.read_run(ROOT / 'results' / run_id).recipe}-on-{faces.name}" and run.dataset == faces.name
    part, kept = run.part("test"), faces.frame["emotion"] >= 0
    assert part["row"].tolist() == faces.frame["row"][kept].tolist() and not part["leaked"].any()
    trained = training.load_model(run_id, ROOT)
    assert np.allclose(part[[f"p_{c}" for c in trained.classes]], trained(faces.images[kept]), atol=1e-6)


def test_without_a_network_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    with pytest.raises(DataMissing, match="no trained network for emotion is there; install the book from a checkout"):
        Predictor()


@pytest.fixture(scope="module")
def exported(predictor, tmp_path_factory) -> Path:
    return predict.to_onnx(predictor.trained, tmp_path_factory.mktemp("onnx") / "network.onnx")


@pytest.mark.parametrize("n", [1, 5])
def test_onnx_equals_pytorch(n, exported, predictor):
    faces = np.random.default_rng(n).integers(0, 256, (n, 48, 48), dtype=np.uint8)
    answers = predict.onnx_session(exported)(as_tensor(faces, SMALL.size).numpy())
    assert np.abs(answers - predictor.trained(faces)).max() < 1e-4
    assert [p.name for p in exported.parent.iterdir()] == ["network.onnx"]


def test_onnx_runtime_calls_nobody(exported, tmp_path):
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"  # set by the import of `predict`, and handed on here
    watch = ["strace", "-f", "-e", "trace=connect,sendto", "-o", str(tmp_path / "calls")] if shutil.which("strace") else []
    env = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")} | {"HOME": str(tmp_path)}
    code = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    subprocess.run([*watch, sys.executable, "-c", code, str(exported)], env=env, check=True, capture_output=True)
    assert not [p for p in tmp_path.rglob("*") if "onnxruntime" in p.name or "deviceid" in p.name]
    assert not watch or "AF_INET" not in (tmp_path / "calls").read_text()


def test_without_the_extra_onnx_it_says_what_to_install(predictor, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'ONNX needs onnx and onnxscript, not installed here; pip install "fer_book\[onnx\]"'):
        predict.to_onnx(predictor.trained, tmp_path / "a.onnx")
    with pytest.raises(ModuleNotFoundError, match=r'ONNX needs onnxruntime, not installed here; pip install "fer_book\[onnx\]"'):
        predict.onnx_session(exported)
    monkeypatch.setattr(training, "load_model", lambda run_id: predictor.trained)
    assert cli.main(["bench", "predict", "--model", "any"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith('pip install "fer_book[onnx]"')


@pytest.mark.parametrize("settings", [{"target": "va", "loss": "l2+l1"}, {"flip_at_test": False}, {"in_channels": 3}])
def test_what_is_exported_equals_the_trained_model(settings):
    trained = made_up_model(**settings)
    faces = np.random.default_rng(0).integers(0, 256, (5, 16, 16) + (3,) * (trained.in_channels == 3), dtype=np.uint8)
    with torch.inference_mode():
        answers = predict._Whole(trained)(as_tensor(faces, 16)).numpy()
    assert np.abs(answers - trained(faces)).max() < 1e-6


def test_bench_measures_both(exported, predictor):
    table = predict.bench_predict(predictor.trained, exported, batches=1, singles=3, rounds=1)
    assert {"PyTorch", "ONNX Runtime"} <= set(table.index) and (table > 0).all(axis=None)
    assert (table["ms, median"] <= table["ms, 90th percentile"]).all()


@pytest.fixture
def folder(tmp_path, portrait, monkeypatch) -> Path:
    """A photograph, one below, a wall, a text that is called .jpg, and a hidden file; a made-up network answers."""
    monkeypatch.setattr("fer_book.predict.load_model", lambda run_id: made_up_model())
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    Image.fromarray(portrait).save(photos / "a.png")
    Image.fromarray(portrait).save(photos / "more" / "b.webp", lossless=True)
    Image.new("L", (80, 80), 128).save(photos / "wall.png")
    (photos / "notes.jpg").write_text("not a picture")
    (photos / ".hidden").write_text("")
    return photos


def test_folder_goes_on_after_a_bad_file(folder, capsys, tmp_path):
    assert cli.main(["predict", str(folder), "--json", "--save-image", str(tmp_path / "marked")]) == 1
    told = capsys.readouterr()
    rows = json.loads(told.out)
    assert [Path(r["file"]).name for r in rows] == ["a.png", "b.webp"] and rows[0]["seconds"] is None
    assert {k: v for k, v in rows[0].items() if k != "file"} == {k: v for k, v in rows[1].items() if k != "file"}
    assert "notes.jpg: not a readable picture" in told.err and "wall.png: no face found" in told.err and "1 of 4 files" in told.err
    marked = sorted(str(p.relative_to(tmp_path / "marked")) for p in (tmp_path / "marked").rglob("*") if p.is_file())
    assert marked == ["a.png", "more/b.webp.png", "wall.png"]


def test_photo_as_csv_and_as_table(folder, capsys):
    assert cli.main(["predict", str(folder / "a.png"), "--csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table)[:7] == ["file", "seconds", "x", "y", "width", "height", "windows"] and len(table) == 1
    assert cli.main(["predict", str(folder / "wall.png"), "--cropped"]) == 0
    assert "emotion" in capsys.readouterr().out


@pytest.mark.parametrize(("source", "more", "sentence"), [
    ("notes.jpg", [], "notes.jpg: not a readable picture"),
    ("gone.jpg", [], "gone.jpg: there is no such file; check the path"),
    ("more/empty", [], "there is no file in this folder"),
    ("a.png", ["--save-image", "a.png"], "is the picture itself; give --save-image another place"),
    ("", ["--save-image", "one.png"], "one.png is one file, but"),
])
def test_what_cannot_be_read_is_one_sentence(source, more, sentence, folder, capsys, monkeypatch):
    (folder / "more" / "empty").mkdir()
    monkeypatch.chdir(folder)
    assert cli.main(["predict", str(folder / source), *more]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_webcam_without_a_camera(monkeypatch, folder, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cv2.VideoCapture, "grab", lambda film: False, raising=False) if Path("/dev/video0").exists() else None
    assert cli.main(["predict", "webcam"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "fer-book: webcam: no camera answers; connect one, or give a photo, a folder or a video"


def test_truncated_picture_and_zero_bytes(tmp_path, portrait):
    whole = tmp_path / "a.jpg"
    Image.fromarray(portrait).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:4000])
    (tmp_path / "empty.jpg").touch()
    for name in ("half.jpg", "empty.jpg"):
        with pytest.raises(DataError, match=f"{name}: not a readable picture .*; replace or remove it"):
            read_image(tmp_path / name)


LATIN = os.fsdecode(b"Mu\xf1oz.png")


@pytest.mark.parametrize("output", [["--csv"], ["--json"], []])
def test_odd_names_lose_no_row(output, folder, capsys, tmp_path):
    names = [LATIN, "a\nb.png", "c\x1b[2J.png", "口" * 83 + ".png"]
    for name in names:
        shutil.copy(folder / "a.png", folder / "more" / name)
    (folder / "more" / os.fsdecode(b"caf\xe9.jpg")).write_text("no picture")
    assert cli.main(["predict", str(folder / "more"), "--save-image", str(tmp_path / "marked"), *output]) == 1
    told = capsys.readouterr()
    for name in ("Mu\\xf1oz.png", "a\\nb.png", "c\\x1b[2J.png", "口" * 83 + ".png"):
        assert (json.dumps(name, ensure_ascii=False)[1:-1] if output == ["--json"] else name) in told.out
    assert "caf\\xe9.jpg: not a readable picture" in told.err and "\x1b" not in told.out + told.err
    assert sorted(os.listdir(tmp_path / "marked")) == sorted([*names, "b.webp.png"])


def test_a_terminal_without_the_letters_loses_no_row(folder, monkeypatch):
    (folder / "a.png").rename(folder / "口.png")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["predict", str(folder / "口.png"), "--csv"]) == 0
    out.flush()
    assert b"\\u53e3.png," in out.buffer.getvalue()


@pytest.mark.parametrize("name", ["a", "口", "\udcf1"])
@pytest.mark.parametrize("suffix", [".png", ".bmp", "." + "x" * 200])
def test_the_longest_names_can_be_written(name, suffix, tmp_path):
    room = 255 - len(suffix)
    path = tmp_path / (name * (room // len(os.fsencode(name))) + suffix)
    datasets.write_atomic(path, lambda p: p.write_text("whole"))
    assert path.read_text() == "whole" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("seconds", [np.nan, 1234.5])
def test_marked_copies_have_names_of_their_own_that_fit(seconds, tmp_path):
    names = ["a.bmp", "a.bmp.png", "a.webp", "a.bmp.PNG", "clip.mp4", "clip.mp4-01234.500s.png", *("口" * 83 + k + ".gif" for k in "ab")]
    for name in names:
        (tmp_path / name).touch()
    marked = [cli.marked_name(tmp_path / name, seconds if name.endswith(("mp4", "gif")) else np.nan) for name in names]
    assert len(set(marked)) == len(names) and max(len(os.fsencode(name)) for name in marked) <= 255


def test_webcam_is_a_camera_only_where_no_file_has_that_name(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert predict.is_camera("webcam") and not predict.is_camera(Path("webcam")) and not predict.is_camera("./webcam")
    (folder / "a.png").rename("webcam")
    for name in ("webcam", "./webcam", Path("webcam")):
        assert cli.main(["predict", str(name), "--csv"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
    os.mkdir("below")
    Path("webcam").rename("below/a.png")
    Path("below").rename("webcam")
    assert cli.sources("webcam") == cli.sources("./webcam") == [Path("webcam/a.png")]


def test_marked_copies_in_the_folder_are_not_read_again(folder, capsys):
    for _ in range(2):
        assert cli.main(["predict", str(folder), "--csv", "--save-image", str(folder / "more" / ".." / "marked")]) == 1
        assert len(capsys.readouterr().out.splitlines()) == 1 + 2
    assert sorted(p.name for p in (folder / "marked").rglob("*.png")) == ["a.png", "b.webp.png", "wall.png"]
    assert cli.main(["predict", str(folder), "--save-image", str(folder / "more" / "..")]) == 1
    assert "is the folder of the pictures; give --save-image another place" in capsys.readouterr().err


def test_the_csv_is_not_one_of_the_pictures(folder, monkeypatch):
    with open(folder / "faces.csv", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert folder / "faces.csv" not in cli.sources(str(folder))


def test_linked_folders_are_entered_once(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "a.png", elsewhere / "c.png")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder)
    (folder / "twice").symlink_to(folder / "more")
    found = [p.name for p in cli.sources(str(folder))]
    assert sorted(found) == ["a.png", "b.webp", "c.png", "notes.jpg", "wall.png"]


def test_what_is_wrong_with_a_clip_is_a_line(folder, capsys):
    clip = film(folder / "clip.avi", SHADES * 5)
    clip.write_bytes(clip.read_bytes()[:clip.stat().st_size // 2])
    assert cli.main(["predict", str(clip), "--csv"]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("fer-book: ")][0].endswith("it may be cut short")
