import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import save_file

import fer_book
from fer_book import claims, datasets, metrics, predict, training
from fer_book.datasets import FaceTable
from fer_book.emotions import FER2013_EMOTIONS, NORMS, VOTE_COLUMNS
from fer_book.training import FaceBatches, Recipe, TrainedModel, as_tensor, augment, fit, plateau_lr, soft_targets

SMALL = Recipe(name="small", model="fer_book.shallow_cnn:ShallowCNN", model_args={"widths": (4, 8), "dense": (16,)}, size=16, epochs=3,
               batch_size=16, rotate=10, scale=0.1, shift=0.05, schedule="one-cycle", lr=1e-2,
               profiles={"cpu": {"max_faces": 100}})


def made_up_faces(n: int = 240, size: int = 16, seed: int = 0) -> FaceTable:
    """Noise with a bright bar whose place is the class: learnable, different in every split."""
    rng = np.random.default_rng(seed)
    emotion = rng.integers(0, 7, n)
    images = rng.integers(0, 100, (n, size, size), dtype=np.uint8)
    images[np.arange(n), 2 * emotion] = 250
    votes = rng.multinomial(10, np.full(10, 0.1), n)
    frame = pd.DataFrame(votes, columns=list(VOTE_COLUMNS)).assign(
        row=np.arange(n), emotion=emotion, split=np.repeat(["train", "valid", "test"], [n - 2 * (n // 4), n // 4, n // 4]))
    return FaceTable(images=images, frame=frame, classes=FER2013_EMOTIONS, name="made-up")


def silent(row):
    pass


def test_killed_in_mid_epoch_and_resumed_equals_unbroken(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
from test_training import SMALL, made_up_faces, silent
from fer_book import training
calls, original = [], training.augment
def killed_later(x, **settings):
    calls.append(1)
    if len(calls) == 12:  # 100 faces are 7 batches an epoch: in the middle of the second
        os.kill(os.getpid(), signal.SIGKILL)
    return original(x, **settings)
training.augment = killed_later
training.fit(SMALL, "cpu", faces=made_up_faces(), out={str(tmp_path / "killed")!r}, report=silent)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list((tmp_path / "killed").glob("small*"))
    epochs = []
    resumed = fit(SMALL, "cpu", faces=made_up_faces(), out=tmp_path / "killed", report=lambda row: epochs.append(row["epoch"]))
    unbroken = fit(SMALL, "cpu", faces=made_up_faces(), out=tmp_path / "unbroken", report=silent)
    assert epochs == [1, 2]
    for name in ("predictions.parquet",):
        pd.testing.assert_frame_equal(pd.read_parquet(resumed.path / name), pd.read_parquet(unbroken.path / name), check_exact=True)
    pd.testing.assert_frame_equal(resumed.history.drop(columns="seconds"), unbroken.history.drop(columns="seconds"), check_exact=True)


@pytest.mark.parametrize("settings", [{"schedule": "plateau", "keep": "best"}, {"optimizer": "sgd", "schedule": "constant"}])
def test_budget_stops_after_an_epoch_and_resuming_changes_nothing(tmp_path, settings):
    recipe, faces = replace(SMALL, **settings), made_up_faces()
    whole = fit(recipe, "cpu", faces=faces, out=tmp_path / "whole", report=silent)
    lengths = []
    for _ in range(3):
        part = fit(recipe, "cpu", faces=faces, out=tmp_path / "parts", budget=1e-3, report=silent)
        lengths.append((len(part.history), part.complete))
    assert lengths == [(1, False), (2, False), (3, True)]
    pd.testing.assert_frame_equal(pd.read_parquet(part.path / "predictions.parquet"), pd.read_parquet(whole.path / "predictions.parquet"),
                                  check_exact=True)


def test_it_learns_and_the_record_can_be_scored_alone(tmp_path):
    done = fit(replace(SMALL, epochs=12, profiles={}), "cpu", faces=made_up_faces(700), out=tmp_path, report=silent)
    table = pd.read_parquet(done.path / "predictions.parquet")
    probabilities = table[[f"p_{c}" for c in FER2013_EMOTIONS]].to_numpy()
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert set(table.split) == {"valid", "test"} and not table["row"].duplicated().any()
    assert (probabilities.argmax(1) == table.emotion)[table.split == "test"].mean() > 0.6
    run = json.loads((done.path / "run.json").read_text())
    assert run["complete"] and run["id"] == done.id and run["data"]["n_test"] == (table.split == "test").sum()
    assert run["recipe"]["model_args"]["widths"] == [4, 8] and run["epochs"] == 12
    assert pd.read_csv(done.path / "history.csv").epoch.tolist() == list(range(12))


def test_training_cannot_see_the_test_split(tmp_path):
    faces, calls = made_up_faces(), []

    class Watched(FaceTable):
        def split(self, name):
            calls.append(name)
            return FaceTable.split(self, name)

    watched = Watched(images=faces.images, frame=faces.frame, classes=faces.classes, name=faces.name)
    at_epoch = []
    fit(SMALL, "cpu", faces=watched, out=tmp_path / "a", report=lambda row: at_epoch.append("test" in calls))
    assert at_epoch == [False] * 3 and calls.count("test") == 1
    images = faces.images.copy()
    images[(faces.frame["split"] == "test").to_numpy()] = 0
    other = FaceTable(images=images, frame=faces.frame, classes=faces.classes, name=faces.name)
    fit(SMALL, "cpu", faces=other, out=tmp_path / "b", report=silent)
    a, b = (pd.read_parquet(next((tmp_path / k).glob("small*")) / "predictions.parquet").query("split == 'valid'") for k in "ab")
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_seed_changes_the_run(tmp_path):
    a, b = (fit(SMALL, "cpu", seed=s, faces=made_up_faces(), out=tmp_path, report=silent) for s in (0, 1))
    assert a.id != b.id and a.history.train_loss[0] != b.history.train_loss[0]


def test_augment_without_change_is_the_identity():
    x = torch.rand(3, 1, 9, 9)
    assert torch.allclose(augment(x, flip=False), x, atol=1e-6)


def test_augment_rotates_scales_shifts_and_mirrors(monkeypatch):
    x = torch.arange(81.0).reshape(1, 1, 9, 9)
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.ones(*shape))  # every draw at the end of its range
    assert torch.allclose(augment(x, flip=False, rotate=90)[0, 0], torch.rot90(x[0, 0]), atol=1e-4)
    moved = augment(x, flip=False, shift=1 / 9)[0, 0]
    assert torch.allclose(moved[:-1, :-1], x[0, 0, 1:, 1:], atol=1e-4)
    assert torch.allclose(augment(x, flip=False, scale=1.0)[0, 0, 4, 5], x[0, 0, 4, 6], atol=1e-4)
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.full(shape, 0.25))
    assert torch.allclose(augment(x, flip=True)[0, 0], x[0, 0].flip(1), atol=1e-4)


def test_augment_draws_within_its_ranges_and_mirrors_half():
    x = torch.zeros(2000, 1, 9, 9)
    x[:, :, 4, 8] = 1  # right edge
    torch.manual_seed(0)
    right = augment(x)[:, 0, 4, 8] > 0.5
    assert 0.46 < right.float().mean() < 0.54


@pytest.mark.parametrize("n, batch_size, expected", [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (1, 4, [1])])
def test_batches_cover_every_face_once_and_never_leave_one_alone(n, batch_size, expected):
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1)
    batches = FaceBatches(images, torch.arange(n)[:, None], batch_size, mean=0, sd=1, shuffle=True)
    seen = [y.flatten().tolist() for _, y in batches]
    assert [len(s) for s in seen] == expected and len(batches) == len(expected)
    assert len({i for s in seen for i in s}) == sum(expected)
    x, y = next(iter(batches))
    assert torch.equal(x.flatten(), y.flatten().float())


def test_as_tensor_keeps_pixels_and_resizes_like_torchvision():
    from torchvision.transforms.v2.functional import resize
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20), dtype=np.uint8)
    assert np.array_equal(as_tensor(images, 20)[:, 0].numpy(), images)
    assert (as_tensor(images, 12).int() - resize(torch.from_numpy(images)[:, None], [12, 12], antialias=True).int()).abs().max() <= 1
    assert as_tensor(np.zeros((2, 8, 8, 3), np.uint8), 4).shape == (2, 3, 4, 4)


def test_soft_targets_by_hand():
    faces = made_up_faces(3)
    frame = faces.frame.assign(emotion=[3, 6, 0], **{c: 0 for c in VOTE_COLUMNS})
    frame.loc[0, ["happiness", "surprise", "contempt", "NF"]] = [3, 1, 4, 2]
    frame.loc[1, ["neutral", "sadness"]] = [5, 5]
    frame.loc[2, "NF"] = 10
    faces = FaceTable(images=faces.images, frame=frame, classes=faces.classes, name=faces.name)
    expected = np.zeros((3, 7))
    expected[0, [3, 5]] = [0.5 + 0.5 * 0.75, 0.5 * 0.25]
    expected[1, [6, 4]] = [0.5 + 0.25, 0.25]
    expected[2, 0] = 1
    assert np.allclose(soft_targets(faces, crowd_share=0.5), expected)
    assert np.allclose(soft_targets(faces, crowd_share=0.5, label_smoothing=0.1), 0.9 * expected + 0.1 / 7)
    assert np.array_equal(soft_targets(faces).argmax(1), [3, 6, 0])


def test_plateau_by_hand():
    history = [{"valid_loss": v} for v in (2.0, 1.0, 1.1, 1.2, 1.0, 1.3, 0.9, 1.0)]
    assert [plateau_lr(history[:k], 1.0, factor=0.1, patience=2) for k in range(9)] == [1, 1, 1, 1, 1, pytest.approx(0.1)] + [pytest.approx(0.1)] * 3


def test_hash_changes_with_every_setting_and_with_nothing_else():
    other = {"name": "x", "model": "fer_book.training:PixelRegression", "dataset": "faces_news", "optimizer": "sgd", "schedule": "plateau",
             "keep": "best", "model_args": {}, "flip": False, "flip_at_test": True}
    for f in fields(Recipe):
        if f.name == "profiles":
            assert replace(SMALL, profiles={}).hash == SMALL.hash
        else:
            changed = replace(SMALL, **{f.name: other.get(f.name, 77)})
            assert changed.hash != SMALL.hash, f.name


def test_every_recipe_of_the_book_builds_its_network_in_every_profile():
    for recipe in training.recipes().values():
        for profile in ("smoke", "cpu", "gpu"):
            at = recipe.at(profile)
            k, channels = len(at.outputs) or 7, 3 if hasattr(training.build_model(at, 7), "mean") else 1
            model = training.build_model(at, n_outputs=k).eval()
            assert model(torch.zeros(2, channels, at.size, at.size)).shape == (2, k), recipe.name


def test_published_network_predicts_what_the_run_recorded(tmp_path):
    faces = made_up_faces()
    done = fit(replace(SMALL, flip_at_test=True), "cpu", faces=faces, out=tmp_path / "results", report=silent)
    run = tmp_path / "results" / ".run" / done.id / "model.safetensors"
    (tmp_path / "models").mkdir()
    run.rename(tmp_path / "models" / f"{done.id}.safetensors")
    trained = training.load_model(done.id, home=tmp_path)
    valid = training.thin(faces.split("valid"), 100)
    recorded = pd.read_parquet(done.path / "predictions.parquet").query("split == 'valid'")[[f"p_{c}" for c in faces.classes]].to_numpy()
    assert np.abs(trained(valid.images) - recorded).max() < 5e-3
    path = tmp_path / "models" / f"{done.id}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="is not the file that run"):
        training.load_model(done.id, home=tmp_path)


def test_mirrored_faces_get_the_same_probabilities_with_flip_at_test():
    recipe = replace(SMALL, flip_at_test=True)
    trained = TrainedModel(training.build_model(recipe, 7).eval(), recipe, FER2013_EMOTIONS, 50.0, 60.0)
    images = made_up_faces(20).images
    assert np.allclose(trained(images), trained(images[:, :, ::-1]), atol=1e-5)


def test_autocast_on_cpu_computes_in_bfloat16_and_keeps_float32_parameters(monkeypatch):
    monkeypatch.setattr(training, "precision", lambda device: "bf16")
    faces, kinds = made_up_faces(), []
    learn = training.make_learner(SMALL, faces.split("train"), faces.split("valid"), torch.device("cpu"))
    learn.model.blocks[0][0].register_forward_hook(lambda m, x, y: kinds.append(y.dtype))
    before = learn.model.head[-1].weight.clone()
    learn.fit(1, 1e-3)
    assert set(kinds) == {torch.bfloat16} and learn.model.head[-1].weight.dtype == torch.float32
    assert torch.isfinite(learn.model.head[-1].weight).all() and not torch.equal(before, learn.model.head[-1].weight)


def test_full_disk_while_the_run_is_written_leaves_no_half_run_and_resumes(tmp_path, monkeypatch):
    faces = made_up_faces()
    with monkeypatch.context() as patch:
        def full(*args, **kwargs): raise OSError(28, "No space left on device")
        patch.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(OSError, match="No space left on device.*run the same command again"):
            fit(SMALL, "cpu", faces=faces, out=tmp_path, report=silent)
    assert [p.name for p in tmp_path.iterdir()] == [".run"]
    trained = []
    done = fit(SMALL, "cpu", faces=faces, out=tmp_path, report=trained.append)
    assert done.complete and not trained and (done.path / "run.json").exists()


class TwoPart(torch.nn.Module):
    """A body with batch norm and dropout-free head, small enough to train in a test; lives in the package for the test only."""

    def __init__(self, n_outputs, in_channels=1, size=16, width=4):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(in_channels, width, 3, padding=1), torch.nn.BatchNorm2d(width), torch.nn.ReLU())
        self.head = torch.nn.Linear(width * size * size, n_outputs)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


@pytest.fixture
def two_part(monkeypatch):
    monkeypatch.setattr(training, "TwoPart", TwoPart, raising=False)
    monkeypatch.setattr(TwoPart, "__module__", training.__name__)
    return Recipe(name="two-part", model="fer_book.training:TwoPart", size=16, epochs=2, batch_size=32, lr=1e-2, profiles={"cpu": {}})


def test_hash_does_not_see_defaults_but_settings_record_them():
    assert Recipe(name="a", model="fer_book.training:PixelRegression", lr=1e-3).hash == Recipe(name="a", model="fer_book.training:PixelRegression").hash
    assert {f.name for f in fields(Recipe)} - set(SMALL.settings) == {"profiles"}
    assert Recipe(**SMALL.settings).hash == SMALL.hash


def test_frozen_body_keeps_weights_and_statistics_while_the_head_learns(two_part):
    faces = made_up_faces()
    learn = training.make_learner(replace(two_part, freeze=True), faces.split("train"), faces.split("valid"), torch.device("cpu"))
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit(1)
    changed = {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}


def test_training_on_kept_maps_is_training_through_the_frozen_body(two_part, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(training, "precision", lambda device: "fp32")
    faces, heads, plain = made_up_faces(), {}, replace(two_part, freeze=True, flip=False, optimizer="sgd")
    for views in (0, 1):
        torch.manual_seed(0)
        learn = training.make_learner(replace(plain, views=views), faces.split("train"), faces.split("valid"), torch.device("cpu"))
        learn.fit(2, cbs=[training.EpochSeed(0)])
        heads[views] = learn.model.head.weight.detach()
        x = next(iter(training.FaceBatches(*(getattr(learn.dls.valid, k) for k in ("images", "targets", "batch_size", "mean", "sd")))))[0]
        learn.model.eval()
        assert torch.allclose(learn.model(x), learn.model.head(learn.model.body(x).flatten(1)))  # the body is itself again
    start = TwoPart(7, size=16).head.weight
    assert (heads[0] - start).abs().max() > 0.01 and torch.allclose(heads[0], heads[1], atol=1e-3)


def test_a_remembered_body_answers_the_same_and_looks_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path))
    body, x, looks = TwoPart(7).body.eval(), torch.rand(3, 1, 16, 16), []
    body.register_forward_hook(lambda *_: looks.append(1))
    body[0].register_forward_hook(lambda *_: looks.append(1))
    with torch.no_grad():
        direct = body(x)
        looks.clear()
        with training.remembered(body):
            assert torch.equal(body(x), direct) and torch.equal(body(x), direct) and looks.count(1) == 3  # the body twice, its convolution once
            assert not torch.equal(body(x.flip(3)), direct)
        body[0].weight.mul_(2)
        with training.remembered(body):
            assert not torch.equal(body(x), direct)
        assert "forward" not in vars(body)


def test_maps_are_kept_for_the_same_body_faces_and_augmentation_only(two_part, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path))
    faces, plain = made_up_faces(), replace(two_part, freeze=True, views=3, rotate=10)

    def maps(recipe):
        torch.manual_seed(0)
        return training.make_learner(recipe, faces.split("train"), faces.split("valid"), torch.device("cpu")).dls.train.maps

    first = maps(plain)
    assert first.shape[:2] == (3, len(faces.split("train"))) and not torch.equal(first[0], first[1])
    assert len(list(tmp_path.iterdir())) == 2  # train and valid
    assert torch.equal(maps(plain), first) and len(list(tmp_path.iterdir())) == 2
    assert not torch.equal(maps(replace(plain, rotate=5)), first) and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("schedule, expected", [("constant", [1.0, 1.0, 1.0]), ("step", [1.0, 0.1, 0.01])])
def test_head_learns_faster_by_its_factor_and_steps_scale_both(two_part, tmp_path, schedule, expected):
    recipe, faces, seen = replace(two_part, head_lr=10, schedule=schedule, step=(1, 0.1), epochs=3), made_up_faces(), []
    learn = training.make_learner(recipe, faces.split("train"), faces.split("valid"), torch.device("cpu"))

    class Watch(training.Callback):
        def after_epoch(self): seen.append([h["lr"] for h in self.opt.hypers])

    learn.fit(3, cbs=[Watch(), *training.schedule_callback(recipe, learn, [])])
    assert np.allclose(seen, [[1e-2 * e, 1e-1 * e] for e in expected])


def test_poly_schedule_ends_at_zero_and_keeps_the_ratio(two_part):
    recipe, faces = replace(two_part, head_lr=10, schedule="poly"), made_up_faces()
    learn = training.make_learner(recipe, faces.split("train"), faces.split("valid"), torch.device("cpu"))
    [schedule] = training.schedule_callback(recipe, learn, [])
    at = schedule.scheds["lr"]
    assert np.allclose(at(0.0), [1e-2, 1e-1]) and np.allclose(at(1.0), 0) and np.allclose(at(0.5), np.array([1e-2, 1e-1]) * 0.5 ** 0.9)


def test_start_takes_layers_that_fit_and_leaves_the_others(tmp_path, two_part):
    faces = made_up_faces()
    (tmp_path / "models").mkdir()
    first = TrainedModel(TwoPart(7), two_part, FER2013_EMOTIONS, 50.0, 60.0)
    first.save(tmp_path / "first.safetensors")
    other = TwoPart(3)
    fresh = training.start_from(other, tmp_path / "first.safetensors")
    assert fresh == ["head.weight", "head.bias"]
    assert torch.equal(other.body[0].weight, first.model.body[0].weight.half().float())
    with pytest.raises(ValueError, match="first.safetensors has no layer in common"):
        training.start_from(torch.nn.Sequential(torch.nn.Linear(3, 3)), tmp_path / "first.safetensors")
    assert faces.counts().size


def test_start_is_of_the_same_seed_and_the_teacher_of_seed_0(tmp_path, two_part, monkeypatch):
    faces = made_up_faces()
    second = replace(two_part, name="second", start="two-part", teacher="two-part", teacher_share=0.5)
    monkeypatch.setattr(training, "recipes", lambda: {"two-part": two_part, "second": second})
    first = fit(two_part, "cpu", seed=1, faces=faces, out=tmp_path, report=silent)
    with pytest.raises(ValueError, match="no trained network of two-part: run `fer-book train two-part --profile cpu --seed 0` first"):
        fit(second, "cpu", seed=1, faces=faces, out=tmp_path, report=silent)
    taught = fit(two_part, "cpu", seed=0, faces=faces, out=tmp_path, report=silent)
    learned = []
    monkeypatch.setattr(training, "start_from", lambda model, path, outputs: learned.append(path))
    done = fit(second, "cpu", seed=1, faces=faces, out=tmp_path, report=silent)
    run = json.loads((done.path / "run.json").read_text())
    recorded = [json.loads((part.path / "run.json").read_text())["model_sha256"] for part in (first, taught)]
    assert learned == [tmp_path / ".run" / first.id / "model.safetensors"]
    assert [run["start_sha256"], run["teacher_sha256"]] == recorded and recorded[0] != recorded[1]


def test_teacher_enters_the_targets_by_its_share(tmp_path, two_part):
    faces = made_up_faces()
    teacher = TrainedModel(TwoPart(7).eval(), two_part, FER2013_EMOTIONS, 50.0, 60.0)
    teacher.save(tmp_path / "t.safetensors")
    recipe = replace(two_part, teacher_share=0.25)
    learn = training.make_learner(recipe, faces.split("train"), faces.split("valid"), torch.device("cpu"), teacher=tmp_path / "t.safetensors")
    said = training.read_trained(tmp_path / "t.safetensors")(faces.split("train").images)
    assert np.allclose(learn.dls.train.targets, 0.75 * np.eye(7)[faces.split("train").frame["emotion"]] + 0.25 * said, atol=1e-6)


def test_cutout_covers_the_square_it_says_and_nothing_else():
    torch.manual_seed(0)
    x = torch.rand(400, 1, 20, 20) + 1
    out = training.cutout(x, 0.25)
    hole = (out != x)[:, 0]
    assert hole.any(2).sum(1).max() == 5 and hole.any(1).sum(1).max() == 5  # a quarter of 20, less where the edge cuts it
    assert torch.equal(out[:, 0][~hole], x[:, 0][~hole])
    assert torch.allclose(out[:, 0][hole], x.mean((1, 2, 3))[:, None, None].expand(-1, 20, 20)[hole])
    assert 0.85 < hole.any(2).any(1).float().mean() <= 1


def test_losses_by_hand():
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    weight = np.array([3.0, 0.5])
    by_hand = lambda gamma, w: -np.mean([sum(w[k] * t[k] * (1 - q[k]) ** gamma * np.log(q[k]) for k in range(2)) for t, q in zip(target.numpy(), p)])
    assert np.isclose(training.focal_loss(logits, target), by_hand(2, [1, 1]))
    assert np.isclose(training.focal_loss(logits, target, torch.from_numpy(weight)), by_hand(2, weight))
    assert np.isclose(training.focal_loss(logits, target, gamma=0.0), F.cross_entropy(logits, target))
    pred, y = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.5, 2.0], [1.0, 5.0]])
    assert training.l2_l1_loss(pred, y) == pytest.approx((0.25 + 4) / 4 + 2 * (0.5 + 2) / 4)
    recipe = replace(SMALL, class_weights=True)
    targets = F.one_hot(torch.tensor([0, 0, 0, 1]), 2).double()
    assert training.loss_function(recipe, targets)(logits, target) == pytest.approx(
        -np.mean([sum(w * t[k] * np.log(q[k]) for k, w in enumerate((4 / 6, 2.0))) for t, q in zip(target.numpy(), p)]))
    for wrong in (replace(SMALL, loss="l2+l1"), replace(SMALL, target="vad")):
        with pytest.raises(ValueError, match="Recipe small: loss .* does not fit the target"):
            training.loss_function(wrong, targets)


def test_regression_run_records_targets_from_the_votes(tmp_path):
    faces = made_up_faces()
    votes = faces.frame[list(VOTE_COLUMNS)].to_numpy().copy()
    votes[5], votes[-1] = 0, 0
    votes[5, 9] = votes[-1, 9] = 10  # not a face: no target
    frame = faces.frame.assign(**dict(zip(VOTE_COLUMNS, votes.T)))
    faces = FaceTable(images=faces.images, frame=frame, classes=faces.classes, name=faces.name)
    recipe = replace(SMALL, target="va", loss="l2+l1", keep="best", flip_at_test=True)
    learn = training.make_learner(recipe, faces.split("train"), faces.split("valid"), torch.device("cpu"))
    assert len(learn.dls.train.images) == len(faces.split("train")) - 1
    done = fit(recipe, "cpu", faces=faces, out=tmp_path, report=silent)
    table = pd.read_parquet(done.path / "predictions.parquet").set_index("row")
    assert [c for c in table if "val" in c or "dom" in c] == ["valence", "true_valence"] and table.arousal.notna().all()
    counts = frame.set_index("row").loc[table.index, list(VOTE_COLUMNS)].to_numpy()[:, :8].astype(float)
    with np.errstate(invalid="ignore"):
        truth = counts @ NORMS["anew"].mean[:, :2] / counts.sum(1, keepdims=True)
    assert np.allclose(table[["true_valence", "true_arousal"]], truth, equal_nan=True, atol=1e-5) and np.isnan(truth[-1]).all()
    assert "valid_mse" in pd.read_csv(done.path / "history.csv")
    with pytest.raises(ValueError, match="there are no norms 'nobody'; use one of anew"):
        fit(replace(recipe, norms="nobody"), "cpu", faces=faces, out=tmp_path, report=silent)


def test_normalise_makes_three_channels_of_one():
    x = torch.rand(2, 1, 3, 3)
    out = training.normalise(x, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert out.shape == (2, 3, 3, 3) and torch.allclose(out[:, 2], (x[:, 0] - 3) / 6)
    assert torch.allclose(training.normalise(x, 0.5, 2.0), (x - 0.5) / 2)


# --- a run belongs to its data

QUICK = Recipe(name="quick", model="fer_book.training:PixelRegression", size=16, epochs=1, batch_size=64, profiles={"cpu": {}})


def told(done) -> dict:
    return json.loads((done.path / "run.json").read_text())


def contents(folder) -> dict:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_runs_on_two_copies_of_the_data_lie_side_by_side(tmp_path):
    faces, other = made_up_faces(), made_up_faces(seed=1)
    first = fit(QUICK, "cpu", faces=faces, out=tmp_path, report=silent)
    before = contents(first.path)
    second = fit(QUICK, "cpu", faces=other, out=tmp_path, report=silent)
    assert first.id == QUICK.run_id("cpu", 0) + f"-d{faces.fingerprint[:6]}" != second.id
    assert contents(first.path) == before and not second.recorded
    for done, table in ((first, faces), (second, other)):
        data = told(done)["data"]
        sizes = table.counts()["all"]
        assert data["fingerprint"] == table.fingerprint
        assert [data[f"n_{s}"] for s in ("train", "valid", "test")] == sizes[["train", "valid", "test"]].tolist()
        recorded = pd.read_parquet(done.path / "predictions.parquet")
        rows = table.frame["row"].to_numpy()
        assert (pd.Series(datasets.pixel_digests(table.images), rows)[recorded["row"]].to_numpy() == recorded["image"]).all()


@pytest.mark.parametrize("older", [False, True])
def test_what_is_recorded_is_not_trained_again(tmp_path, capsys, older):
    first = fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path, report=silent)
    if older:  # the id as it was before it named the data
        folder = first.path.rename(tmp_path / QUICK.run_id("cpu", 0))
        path = folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id": folder.name}))
        first = replace(first, id=folder.name, path=folder)
    before, trained = contents(first.path), []
    again = fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path, report=trained.append)
    assert (again.id, again.complete, again.recorded) == (first.id, True, True) and not trained
    assert again.history["train_loss"].tolist() == pytest.approx(first.history["train_loss"].tolist())
    assert contents(first.path) == before and [p.name for p in tmp_path.glob("[!.]*")] == [first.id]
    assert f"{first.id} is recorded in {tmp_path} already, so nothing was trained" in capsys.readouterr().out
    elsewhere = fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path / "anew", report=trained.append)
    assert not elsewhere.recorded and len(trained) == 1


@pytest.mark.parametrize("name, damage", [("predictions.parquet", lambda b: b[:-20]), ("run.json", lambda b: b[:40]), ("history.csv", lambda b: b"")])
def test_a_damaged_record_is_written_anew_from_the_checkpoint(tmp_path, name, damage):
    done = fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path, report=silent)
    whole = pd.read_parquet(done.path / "predictions.parquet")
    (done.path / name).write_bytes(damage((done.path / name).read_bytes()))
    trained = []
    again = fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path, report=trained.append)
    assert again.id == done.id and not again.recorded and not trained
    pd.testing.assert_frame_equal(pd.read_parquet(again.path / "predictions.parquet"), whole)
    assert training.read_record(again.path) and sorted(p.name for p in tmp_path.iterdir()) == [".run", done.id]


def test_a_kill_at_any_moment_of_writing_leaves_no_half_record(tmp_path, monkeypatch):
    source = fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path / "source", report=silent)
    description, predictions = told(source), pd.read_parquet(source.path / "predictions.parquet")
    steps = [(training.Path, "mkdir"), (pd.DataFrame, "to_parquet"), (pd.DataFrame, "to_csv"), (training.Path, "write_text"),
             (training.os, "fsync"), (training.Path, "rename"), (training.shutil, "rmtree")]

    class Killed(BaseException):
        pass

    def write(out, before: int) -> bool:
        """Write the record and die before step number `before`; nothing of ours runs after that."""
        left = iter(range(before, -1, -1))

        def dying(step):
            def call(*args, **kwargs):
                if next(left, 0) == 0:
                    raise Killed
                return step(*args, **kwargs)
            return call

        with monkeypatch.context() as patch:
            for owner, name in steps:
                patch.setattr(owner, name, dying(getattr(owner, name)))
            try:
                training.write_run(replace(source, path=out / source.id), description, predictions)
            except Killed:
                return False
        return True

    for damaged in (False, True):
        for before in range(40):
            out = tmp_path / f"{damaged}-{before}"
            (out / source.id if damaged else out).mkdir(parents=True)
            finished = write(out, before)
            visible = [p for p in out.iterdir() if not p.name.startswith(".")]
            assert all(training.read_record(p) or not list(p.iterdir()) for p in visible)
            training.write_run(replace(source, path=out / source.id), description, predictions)
            assert training.read_record(out / source.id) == description
            if finished:
                break
        else:
            raise AssertionError("it never finished")
    before = contents(source.path)
    write(tmp_path / "source", 0)
    assert contents(source.path) == before


def test_a_record_of_other_data_under_the_same_name_is_not_touched(tmp_path):
    done = fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path, report=silent)
    before, other = contents(done.path), told(done) | {"data": {"fingerprint": "another"}}
    with pytest.raises(ValueError, match="is a run on another copy of the data; record this one in another folder"):
        training.write_run(done, other, pd.read_parquet(done.path / "predictions.parquet"))
    assert contents(done.path) == before


def test_every_shipped_run_is_whole_and_found_under_its_old_name():
    folders = sorted((ROOT / "results").glob("[!.]*"))
    runs = {folder.name: training.read_record(folder) for folder in folders}
    assert len(runs) > 100 and all(runs.values())
    for name in ("shallow-cnn-paper-cpu-s0-8cdf6704", "vad-dlib-global-cpu-s2-44a33da1", "dlib-distilled-on-faces_news-cpu-s0-6df96f5c"):
        run = runs[name]
        recipe = Recipe(**run["recipe"])
        assert training.find_record(recipe, run["profile"], run["seed"], run["data"]["fingerprint"], ROOT / "results") == name
        assert not training.find_record(recipe, run["profile"], run["seed"], "another", ROOT / "results")


def test_a_recorded_run_comes_out_again(real_data, tmp_path):
    """The gate: whatever moves numbers, in a library or in ours, moves this one beyond the spread of its seeds."""
    runs = [run for run in claims.read_runs(ROOT / "results") if run.recipe == "pixel-regression"]
    assert sorted(run.seed for run in runs) == [0, 1, 2]
    again = claims.read_run(training.fit(training.find_recipe("pixel-regression"), "cpu", seed=0, out=tmp_path, report=lambda row: None).path)
    score = lambda run, split: (run.part(split).filter(regex="^p_").to_numpy().argmax(1) == run.part(split)["emotion"]).mean()
    for split in ("valid", "test"):
        recorded = {run.seed: score(run, split) for run in runs}
        assert abs(score(again, split) - recorded[0]) <= max(recorded.values()) - min(recorded.values())


def test_the_fingerprint_of_the_shipped_data_leads_to_the_shipped_run(real_data, capsys):
    recipe = training.find_recipe("pixel-regression")
    done = fit(recipe, "cpu", report=lambda row: pytest.fail("it trains"), out=ROOT / "results")
    assert done.recorded and done.id == "pixel-regression-cpu-s0-9c8ae2df"


def test_publishing_keeps_what_the_run_recorded(tmp_path):
    faces, results = made_up_faces(), tmp_path / "results"
    done = fit(QUICK, "cpu", faces=faces, out=results, report=silent)
    (results / ".run").rename(tmp_path / ".run")
    target = training.publish(done.id, tmp_path)
    whole = target.read_bytes()
    source = tmp_path / ".run" / done.id / "model.safetensors"
    TrainedModel(training.build_model(QUICK, 7), QUICK, FER2013_EMOTIONS, 1.0, 2.0).save(source)  # trained again, to other numbers
    assert training.publish(done.id, tmp_path) == target and target.read_bytes() == whole
    assert training.load_model(done.id, tmp_path)(faces.images).shape == (len(faces), 7)
    target.unlink()
    with pytest.raises(ValueError, match="is not the network that results/quick-.* recorded"):
        training.publish(done.id, tmp_path)
    source.write_bytes(whole)
    assert training.publish(done.id, tmp_path).read_bytes() == whole
    (results / done.id / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is not the file that run quick-.* recorded"):
        training.load_model(done.id, tmp_path)


def test_a_network_of_the_same_data_comes_before_the_shipped_one(tmp_path, two_part, monkeypatch):
    faces, other = made_up_faces(), made_up_faces(seed=1)
    second = replace(two_part, name="second", start="two-part")
    monkeypatch.setattr(training, "recipes", lambda: {"two-part": two_part, "second": second})
    shipped = fit(two_part, "cpu", faces=other, out=tmp_path / "results", report=silent)
    old = two_part.run_id("cpu", 0)
    (tmp_path / "models").mkdir()
    (tmp_path / "results" / ".run" / shipped.id / "model.safetensors").rename(tmp_path / "models" / f"{old}.safetensors")
    record = shipped.path.rename(tmp_path / "results" / old)
    (record / "run.json").write_text(json.dumps(told(replace(shipped, path=record)) | {"id": old}))
    monkeypatch.setenv("FER_BOOK_HOME", str(tmp_path))
    monkeypatch.setattr(training, "find_record", lambda *_: "")
    with pytest.warns(UserWarning, match=f"{old} was trained on another copy of the data than this run: `fer-book train two-part"):
        done = fit(second, "cpu", faces=faces, out=tmp_path / "a", report=silent)
    assert told(done)["start_run"] == old
    own = fit(two_part, "cpu", faces=faces, out=tmp_path / "a", report=silent)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert training.trained_file("two-part", "cpu", 0, [tmp_path / "a", tmp_path], faces.fingerprint).parent.name == own.id
        assert training.trained_file("two-part", "cpu", 0, [tmp_path / "a", tmp_path], other.fingerprint).stem == old


def test_a_checkpoint_under_the_old_name_goes_on_if_it_is_this_run(tmp_path):
    recipe = replace(QUICK, epochs=2)
    fit(recipe, "cpu", faces=made_up_faces(), out=tmp_path, budget=0, report=silent)
    folder = next((tmp_path / ".run").iterdir())
    folder.rename(folder.with_name(recipe.run_id("cpu", 0)))
    epochs = []
    with pytest.warns(UserWarning, match="the run starts anew: .*checkpoint.safetensors was written for data"):
        fit(recipe, "cpu", faces=made_up_faces(seed=1), out=tmp_path, budget=0, report=lambda row: epochs.append(row["epoch"]))
    fit(recipe, "cpu", faces=made_up_faces(), out=tmp_path, report=lambda row: epochs.append(row["epoch"]))
    assert epochs == [0, 1]


# --- what a copy of the data lacks

def changed(faces: FaceTable, keep=slice(None), **columns) -> FaceTable:
    faces = faces[keep]
    return replace(faces, frame=faces.frame.assign(**columns))


def without_votes(faces: FaceTable) -> FaceTable:
    return replace(faces, frame=faces.frame.drop(columns=list(VOTE_COLUMNS)))


def test_a_table_without_validation_faces_is_cut_and_one_without_test_faces_is_validated(tmp_path):
    faces = made_up_faces()
    only_train = changed(faces, (faces.frame["split"] != "test").to_numpy(), split="train", emotion=faces.frame["emotion"].where(faces.frame["row"] > 4, -1))
    done = fit(QUICK, "cpu", faces=only_train, out=tmp_path, report=silent)
    table, data = pd.read_parquet(done.path / "predictions.parquet"), told(done)["data"]
    assert set(table["split"]) == {"valid"} and len(table) == data["n_valid"] > 0 == data["n_test"]
    assert data["n_left_out"] == 5 and data["n_train"] + data["n_valid"] == len(only_train) - 5 and "valid" in data["lacks"]
    assert (table["row"] > 4).all() and claims.read_run(done.path).part("valid")["emotion"].between(0, 6).all()


@pytest.mark.parametrize("spoil, sentence", [
    (lambda f: changed(f, emotion=-1), "made-up: 0 faces of the split train have what quick learns; add such faces there"),
    (lambda f: changed(f, split="test"), "made-up: 0 faces of the split train have"),
    (lambda f: changed(f, emotion=3), "made-up: all faces to train on are of the class happiness; add faces of others"),
    (lambda f: changed(f, [0], split="train"), "train has too few faces to cut one off"),
])
def test_what_cannot_be_learned_from_is_said_before_training(tmp_path, spoil, sentence, monkeypatch):
    monkeypatch.setattr(training, "make_learner", lambda *_: pytest.fail("it builds a network"))
    with pytest.raises(ValueError, match=sentence) as error:
        fit(QUICK, "cpu", faces=spoil(made_up_faces()), out=tmp_path, report=silent)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_without_votes_a_regression_learns_the_labels_word_and_says_so(tmp_path):
    faces, recipe = without_votes(made_up_faces()), replace(QUICK, target="vad", loss="l2+l1")
    done = fit(recipe, "cpu", faces=faces, out=tmp_path, report=silent)
    table, data = pd.read_parquet(done.path / "predictions.parquet"), told(done)["data"]
    happy = table[table["emotion"] == FER2013_EMOTIONS.index("happiness")]
    assert np.allclose(happy[["true_valence", "true_arousal", "true_dominance"]], (8.21, 6.49, 6.63)) and len(happy)
    assert data["lacks"] == ["votes"] and data["labels"] == "words anew"
    assert told(fit(replace(QUICK, crowd_share=0.5), "cpu", faces=faces, out=tmp_path, report=silent))["data"]["lacks"] == ["votes"]
    plain = told(fit(QUICK, "cpu", faces=faces, out=tmp_path, report=silent))["data"]
    assert plain["lacks"] == [] and plain["labels"] == "own"
    assert torch.equal(soft_targets(faces, crowd_share=0.5), soft_targets(faces))
    with pytest.raises(ValueError, match="this table has no FER\\+ votes; .*put fer2013new.csv beside fer2013.csv"):
        fit(recipe, "cpu", faces=changed(faces, emotion=-1), out=tmp_path, report=silent)


# --- classes by name

ORDER = (5, 3, 0, 6, 1, 4, 2)


def reordered(faces: FaceTable, more: tuple[str, ...] = ()) -> FaceTable:
    """The same faces under the same names, the classes in another order and perhaps more of them."""
    classes = (*more, *(faces.classes[i] for i in ORDER))
    label = np.array([classes.index(c) for c in faces.classes])[faces.frame["emotion"]]
    return replace(faces, classes=classes, frame=faces.frame.assign(emotion=label))


def test_classes_are_matched_by_name_whatever_their_order_and_number(tmp_path, two_part):
    torch.manual_seed(0)
    faces = made_up_faces(60)
    mixed, more = reordered(faces), reordered(faces, ("contempt", "boredom"))
    trained = TrainedModel(TwoPart(7).eval(), two_part, faces.classes, 50.0, 60.0)
    trained.save(tmp_path / "t.safetensors")
    trained = training.read_trained(tmp_path / "t.safetensors")
    asked = training.predict_split(trained, faces, faces.frame["row"][:3])
    for other in (mixed, more):
        pd.testing.assert_frame_equal(training.predict_split(trained, other, faces.frame["row"][:3]), asked)
        names = list(other.classes)
        back = [names.index(c) for c in faces.classes]
        for share in (0.0, 0.5):
            targets = soft_targets(other, crowd_share=share)
            if "contempt" not in names or not share:
                assert torch.equal(targets[:, back], soft_targets(faces, crowd_share=share))
            assert torch.allclose(targets.sum(1), torch.ones(60))
        plain = training.distil(soft_targets(faces), faces, trained, 0.5)
        assert torch.allclose(training.distil(soft_targets(other), other, trained, 0.5)[:, back], plain)
        vad = replace(two_part, target="vad")
        assert torch.equal(training.dimensional_targets(without_votes(other), vad), training.dimensional_targets(without_votes(faces), vad))
        model, x = TwoPart(len(names)), torch.rand(4, 1, 16, 16)
        fresh = model.head.weight[:len(names) - 7].clone()
        assert not training.start_from(model, tmp_path / "t.safetensors", other.classes)
        assert torch.allclose(model.eval()(x)[:, back], trained.model(x), atol=1e-5)
        assert torch.equal(model.head.weight[:len(names) - 7], fresh)  # contempt and boredom start anew


def test_a_network_is_asked_only_about_classes_it_knows(two_part):
    faces = made_up_faces(60)
    few = replace(faces, classes=("anger", "disgust", "fear", "happiness", "boredom", "surprise", "neutral"))
    trained = TrainedModel(TwoPart(7).eval(), two_part, faces.classes, 50.0, 60.0)
    table = training.predict_split(trained, few, np.array([]))
    assert table["row"].tolist() == faces.frame["row"][faces.frame["emotion"] != 4].tolist()
    with pytest.raises(ValueError, match="made-up: no face has a label that two-part knows"):
        training.predict_split(trained, replace(few, classes=tuple("abcdefg")), np.array([]))
    narrow = TrainedModel(TwoPart(2).eval(), two_part, ("boredom", "fear"), 50.0, 60.0)
    own = soft_targets(faces)
    taught = training.distil(own, faces, narrow, 0.25)
    assert torch.equal(taught, own) and (faces.frame["emotion"] == 2).any()  # they share only fear, and of it the teacher is then sure
    with pytest.raises(ValueError, match="The teacher two-part answers with a, b, which are no classes of made-up"):
        training.distil(own, faces, replace(narrow, classes=("a", "b")), 0.25)


def test_a_start_of_another_order_enters_training_by_name(tmp_path, two_part):
    faces = made_up_faces()
    start = TrainedModel(TwoPart(7).eval(), two_part, faces.classes, 50.0, 60.0)
    start.save(tmp_path / "start.safetensors")
    mixed = reordered(faces)
    learn = training.make_learner(two_part, mixed.split("train"), mixed.split("valid"), torch.device("cpu"), start=tmp_path / "start.safetensors")
    assert torch.equal(learn.model.head.bias, training.read_trained(tmp_path / "start.safetensors").model.head.bias[list(ORDER)])


def test_answers_elsewhere_are_scored_by_name(tmp_path, two_part, capsys):
    faces, home = made_up_faces(), tmp_path / "home"
    done = fit(replace(QUICK, epochs=8, lr=1e-2), "cpu", faces=faces, out=home / "results", report=silent)
    (home / "results" / ".run").rename(home / ".run")
    training.publish(done.id, home)
    elsewhere = replace(made_up_faces(seed=1), name="elsewhere")
    plain = claims.read_run(predict.record_elsewhere(done.id, elsewhere, tmp_path, home)).part("test")
    more = reordered(elsewhere, ("contempt",))
    more = replace(more, frame=more.frame.assign(emotion=more.frame["emotion"].where(more.frame["row"] > 9, 0)))  # ten of contempt
    folder = predict.record_elsewhere(done.id, more, tmp_path, home)
    assert "elsewhere: 10 of 240 faces are left out" in capsys.readouterr().out
    part = claims.read_run(folder).part("test")
    assert json.loads((folder / "run.json").read_text())["data"]["n_left_out"] == 10
    pd.testing.assert_frame_equal(part, plain[plain["row"] > 9].reset_index(drop=True))
    assert metrics.accuracy(part["emotion"].to_numpy(), part.filter(regex="^p_").to_numpy().argmax(1)) > 0.5


# --- the cache of features

def test_a_damaged_or_foreign_entry_of_the_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path))
    net, made = torch.nn.Conv2d(1, 2, 3), []

    def value(what: str) -> torch.Tensor:
        return training.kept(what, net, lambda: made.append(what) or torch.arange(6.0).reshape(2, 3) + len(what))

    value("a")
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    assert torch.equal(value("a"), torch.arange(6.0).reshape(2, 3) + 1) and made == ["a"]
    for damage in ([whole[:n] for n in (0, 7, 100, len(whole) - 1)]
                   + [whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1:] for k in range(0, len(whole), 7)] + [b"no tensors"]):
        path.write_bytes(damage)
        made.clear()
        assert torch.equal(value("a"), torch.arange(6.0).reshape(2, 3) + 1)
        assert made == ["a"] or damage[8:-24].decode(errors="ignore").split() != whole[8:-24].decode().split()
        assert torch.equal(value("a"), torch.arange(6.0).reshape(2, 3) + 1) and made in ([], ["a"])
    value("bb")
    [other] = set(tmp_path.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    assert torch.equal(value("a"), torch.arange(6.0).reshape(2, 3) + 1)
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="could not be kept for the next time"):
        assert torch.equal(value("a"), torch.arange(6.0).reshape(2, 3) + 1)


def test_meaning_is_what_a_function_computes_not_its_name():
    def scaled(k):
        return lambda x: x.mean((2, 3)) * k

    first, renamed = (lambda x: x.mean((2, 3))), (lambda x: x.mean((2, 3)))
    renamed.__name__ = "renamed"
    space = {"K": 2}
    exec("def by_global(x): return x[:, :K]", space)
    told = training.meaning(space["by_global"])
    space["K"] = 3
    different = [first, lambda x: x.amax((2, 3)), lambda x: x.mean((1, 3)), scaled(2), scaled(3), partial(scaled, 2), partial(scaled, 3), torch.mean,
                 torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(3), torch.nn.AvgPool2d(2).forward, torch.no_grad()(scaled(2)), torch.no_grad()(scaled(3)), lambda x, k=2: x * k, lambda x, k=3: x * k,
                 lambda x: [v.mean() for v in x], lambda x: [v.amax() for v in x], space["by_global"], training.augment]
    digests = [training.meaning(f) for f in different]
    assert len(set(digests)) == len(digests) and told not in digests
    assert training.meaning(first) == training.meaning(renamed) and training.meaning(scaled(2)) == digests[3]
    code = "from fer_book import training; import torch; print(training.meaning([training.augment, torch.nn.AvgPool2d(2), lambda x: x[:, 1:3]]))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert elsewhere == training.meaning([training.augment, torch.nn.AvgPool2d(2), lambda x: x[:, 1:3]])


def test_meaning_of_a_network_changes_with_weights_settings_and_code(two_part):
    torch.manual_seed(0)
    net = TwoPart(7)
    first = training.meaning(net)
    with training.remembered(net.body):
        assert training.meaning(net) == first
    with torch.no_grad():
        net.head.bias += 1
    second = training.meaning(net)
    net.body[0].stride = (2, 2)
    third = training.meaning(net)
    net.__class__ = type("TwoPart", (TwoPart,), {"forward": lambda self, x: self.head(self.body(x).flatten(1)) * 2})
    assert len({first, second, third, training.meaning(net)}) == 4


# --- a stranger's file

def stranger(path, tensors=None, **changes):
    """A network's file whose header says other things than it should."""
    header = {"settings": {"name": "x", "model": "fer_book.training:PixelRegression", "size": 2}, "classes": ["a", "b"], "mean": 1.0, "sd": 2.0, "in_channels": 1}
    whole = lambda fields: {k: v for k, v in fields.items() if v != "missing"}
    if isinstance(changes.get("settings"), dict):
        changes = changes | {"settings": whole(header["settings"] | changes["settings"])}
    header = whole(header | changes)
    tensors = {"linear.weight": torch.zeros(2, 4), "linear.bias": torch.zeros(2)} if tensors is None else tensors
    save_file(tensors, path, metadata={"header": json.dumps(header)})
    return path


FETCHING = [{"pretrained": True}, {"pretrained_cfg": {"url": "http://x"}}, {"pretrained_cfg_overlay": {"file": "/x"}}, {"checkpoint_path": "x.pth"},
            {"cache_dir": "/tmp"}, {"backbone": "hf-hub:timm/resnet18"}, {"backbone": "local-dir:/tmp"}, {"backbone": "https://x/y.pth"},
            {"backbone": "no_such_net"}, {"weights": "http://x"}, {"weights": "imagenet.pth"}, {"n_blocks": 0}, {"backbone": 7}]
STRANGE = [
    ({"settings": {"model": "fer_book.build:execute"}}, r"'fer_book.build:execute' is not of the form fer_book.module:Class"),
    ({"settings": {"model": "fer_book.training:fit"}}, r"'fer_book.training:fit' is no network that fer_book.training defines"),
    ({"settings": {"model": "fer_book.training:Learner"}}, "is no network that"),
    ({"settings": {"model": "fer_book.training:nn.Linear"}}, "is no network that"),
    ({"settings": {"model": "fer_book.cascade:Head"}}, "is no network|cannot be made"),
    ({"settings": {"model": "fer_book.predict:urlopen"}}, "is no network that"),
    ({"settings": {"model": "torch.nn:Linear"}}, "not of the form"), ({"settings": {"model": "os:system"}}, "not of the form"),
    ({"settings": {"model": 5}}, "holds no network"), ({"settings": {"name": "missing"}}, "its settings are not a recipe's"),
    ({"settings": {"model_args": {"size": {"a": 1}}}}, "the setting size of .* is no plain number or word"),
    ({"settings": {"model_args": {"path": "../x"}}}, "the setting path of .* is no plain"),
    ({"settings": {"model_args": {"n_outputs": 1e9}}}, "the setting n_outputs of .* is no plain"),
    ({"settings": {"model_args": {"surprise": 3}}}, "cannot be made with .*surprise"), ({"settings": {"what": 3}}, "its settings are not a recipe's"),
    ({"settings": {"size": 0}}, "its size cannot be"), ({"settings": {"size": 1025}}, "its size cannot be"), ({"settings": {"size": "48"}}, "its size cannot be"),
    ({"settings": {"size": 1024}}, "its tensors are not those of fer_book.training:PixelRegression"), ({"settings": {"target": "age"}}, "its settings cannot be"),
    *(({name: "missing"}, f"its header does not say {name}") for name in ("classes", "mean", "sd", "in_channels")),
    ({"settings": "missing"}, "its settings are not a recipe's"),
    ({"settings": 3}, "its settings are not a recipe's"), ({"in_channels": 2}, "its in_channels cannot be"),
    *(({"classes": c}, "its classes cannot be") for c in ([], ["a", "a"], ["a", ""], ["a", 1], "ab", {"a": 1})),
    *(({"mean": m}, "its mean cannot be") for m in (float("nan"), float("inf"), [1, 2], "x", None, [1, 2, float("nan")], True)),
    *(({"sd": s}, "its sd cannot be") for s in (0, -1.0, float("nan"), [1, 1, 0], [])),
    ({"tensors": {"linear.weight": torch.full((2, 4), torch.nan), "linear.bias": torch.zeros(2)}}, "it holds numbers that are not finite"),
    ({"tensors": {"linear.weight": torch.zeros(2, 5), "linear.bias": torch.zeros(2)}}, "its tensors are not those of"),
    ({"tensors": {"x": torch.zeros(1)}}, "its tensors are not those of"),
    *(({"settings": {"model": "fer_book.backbones:Backbone", "size": 48, "model_args": args}}, "holds no network of this book") for args in FETCHING),
    *(({"settings": {"model": "fer_book.bilinear:PooledNet", "size": 48, "model_args": args}}, "holds no network of this book") for args in FETCHING),
]
CALLS = []
sys.addaudithook(lambda event, args: CALLS.append(event) if event.partition(".")[0] in ("socket", "urllib", "http", "subprocess", "os.system") else None)


@pytest.fixture
def closed(monkeypatch):
    """No weights are put in, and whatever asks the network or starts a process is in `CALLS`."""
    import timm.models._builder as builder
    from fer_book import backbones

    for owner, name in ((backbones.DlibBody, "load_weights"), (backbones.TimmBody, "load_weights"), (backbones, "face_weights"), (backbones, "lite0_weights"),
                        (builder, "load_pretrained")):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: pytest.fail(f"{name} is called"))
    CALLS.clear()
    yield
    assert not CALLS


@pytest.mark.parametrize("changes, sentence", STRANGE, ids=[str(i) for i in range(len(STRANGE))])
def test_a_strangers_network_is_refused_in_one_sentence(tmp_path, closed, changes, sentence):
    changes = dict(changes)
    path = stranger(tmp_path / "net.safetensors", changes.pop("tensors", None), **changes)
    with pytest.raises(ValueError, match=sentence) as error:
        training.read_trained(path)
    assert str(error.value).startswith(f"{path} holds no network of this book: ") and "\n" not in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    for content in (b"", b"PK\3\4" * 9, (10**15).to_bytes(8, "little") + b"{"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="net.safetensors is not a readable checkpoint .*; take it again from where it came"):
            training.read_trained(path)
    for metadata in (None, {"header": "{"}, {"header": "[1]"}, {"other": "x"}):
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(ValueError, match="is not a readable checkpoint"):
            training.read_trained(path)


@pytest.mark.parametrize("backbone, weights", [("dlib", "face"), ("tf_efficientnet_lite0", "imagenet"), ("resnet18", "imagenet")])
def test_reading_a_trained_network_neither_loads_nor_fetches_what_it_started_from(tmp_path, closed, backbone, weights):
    recipe = Recipe(name="x", model="fer_book.backbones:Backbone", model_args={"backbone": backbone, "weights": weights}, size=112)
    model = training.build_model(recipe, 7).eval()
    TrainedModel(model, recipe, FER2013_EMOTIONS, list(model.mean), list(model.sd)).save(tmp_path / "net.safetensors")
    trained = training.read_trained(tmp_path / "net.safetensors")
    assert all(torch.equal(v, model.state_dict()[k].half().to(v)) for k, v in trained.model.state_dict().items())


def test_every_published_network_can_be_read(closed):
    for path in (ROOT / "models").glob("*.safetensors"):
        assert training.load_model(path.stem, ROOT).classes == FER2013_EMOTIONS


def test_numbers_beyond_half_precision_are_saved_as_they_are(tmp_path):
    trained = TrainedModel(training.build_model(QUICK, 7).eval(), QUICK, FER2013_EMOTIONS, 1.0, 2.0)
    with torch.no_grad():
        trained.model.linear.bias[0] = 1e6
    trained.save(tmp_path / "net.safetensors")
    assert training.read_trained(tmp_path / "net.safetensors").model.linear.bias[0] == 1e6


# --- machines that are not ours

def test_training_ends_well_whatever_git_says(tmp_path, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", training.source_commit()["commit"]) and not training.source_commit()["commit_note"]
    with monkeypatch.context() as patch:
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        assert training.source_commit() == {"commit": "", "commit_note": training.source_commit()["commit_note"]}
        assert "dubious ownership" in training.source_commit()["commit_note"]
    with monkeypatch.context() as patch:
        patch.setattr(fer_book, "__path__", [str(tmp_path / "fer_book")])
        assert training.source_commit()["commit"] == f"v{fer_book.__version__}" and "not a checkout" in training.source_commit()["commit_note"]
    asked = []
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(training, "version", lambda name: (_ for _ in ()).throw(training.PackageNotFoundError(name)))
    original = training.source_commit
    monkeypatch.setattr(training, "source_commit", lambda: asked.append("commit") or original())
    run = told(fit(QUICK, "cpu", faces=made_up_faces(), out=tmp_path / "out", report=lambda row: asked.append("epoch")))
    assert run["commit"] == "" and run["commit_note"].startswith("git could not be asked (No such file") and asked[:2] == ["commit", "epoch"]
    assert run["versions"]["fer-book"] == fer_book.__version__ and run["versions"]["torch"] == ""


def test_without_a_checkout_runs_go_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("FER_BOOK_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "project_home", lambda: tmp_path / "site-packages")
    done = fit(QUICK, "cpu", faces=made_up_faces(), report=silent)
    assert done.path == tmp_path / "results" / done.id and (tmp_path / ".run" / done.id).is_dir() and not (tmp_path / "site-packages").exists()
    assert training.load_model(training.publish(done.id).stem).classes == FER2013_EMOTIONS


def test_what_killed_runs_left_is_swept_after_a_day(tmp_path, monkeypatch):
    def left(path, days, folder=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            path.mkdir()
        written = path / "run.json" if folder else path
        written.write_text("x")
        for p in (written, path):
            os.utime(p, (time.time() - 86_400 * days,) * 2)
        return path

    out, cache = tmp_path / "results", tmp_path / "cache"
    monkeypatch.setenv("FER_BOOK_CACHE", str(cache))
    gone = [left(out / ".quick-cpu-s0-0123abcd-x7_ab3zq", 2, True), left(out / ".quick-cpu-s0-0123abcd-d012345.0123456789ab.part", 2, True),
            left(out / ".run" / "old" / ".checkpoint.0123456789ab.part.safetensors", 2), left(cache / ".features-1.0123456789ab.part.safetensors", 2)]
    stay = [left(out / ".ipynb_checkpoints", 9, True), left(out / ".quick.0123456789ab.part", 0.5, True), left(cache / ".keep", 9),
            left(out / ".run" / "old" / "checkpoint.safetensors", 9), left(cache / ".fer.0123456789ab.part.npy", 0.5),
            left(out / "quick-cpu-s0-0123abcd-x7_ab3zq", 9, True)]
    held = left(cache / ".big.0123456789ab.part.npy", 3)
    with open(held, "rb"):
        fit(QUICK, "cpu", faces=made_up_faces(), out=out, report=silent)
        training.kept("a", torch.nn.Linear(1, 1), lambda: torch.zeros(1))
    assert [p for p in gone if p.exists()] == [] and all(p.exists() for p in [*stay, held])
    training.kept("b", torch.nn.Linear(1, 1), lambda: torch.zeros(1))
    assert not held.exists()


def test_a_run_names_people_and_pixels_in_numbers(tmp_path):
    faces = made_up_faces()
    who = np.array(["ada", "ben", "cyd"])[np.arange(len(faces)) % 3]
    faces = replace(faces, frame=faces.frame.assign(subject=who))
    table = pd.read_parquet(fit(QUICK, "cpu", faces=faces, out=tmp_path, report=silent).path / "predictions.parquet")
    at = faces.find(table["row"])
    assert (table["subject"] == np.searchsorted(["ada", "ben", "cyd"], who[at])).all()
    assert (table["image"] == datasets.pixel_digests(faces.images)[at]).all()
