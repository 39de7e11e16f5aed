import json
import signal
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from fer_book import datasets, training
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
    monkeypatch.setattr(training, "start_from", lambda model, path: learned.append(path))
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
