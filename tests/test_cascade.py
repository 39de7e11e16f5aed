"""The cascade paper: counts recovered from percentages, faces aligned to known places, heads against scikit-learn."""
import json
from itertools import product

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fer_book import cascade, claims, datasets, schematic
from fer_book.datasets import FaceTable
from fer_book.emotions import FER2013_EMOTIONS

TOTALS = (41, 55, 95, 37, 17, 69, 58)


# --- the paper's own numbers ---------------------------------------------------------------------------------------------

def printed(counts: np.ndarray) -> np.ndarray:
    return np.round(100 * counts / counts.sum(-1, keepdims=True), 1)


def made_up_matrices(totals=(7, 11, 13), n_models=5, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([[rng.multinomial(n, rng.dirichlet(np.ones(len(totals)))) for n in totals] for _ in range(n_models)])


def test_the_test_set_of_the_contest():
    assert cascade.test_images() == TOTALS and sum(TOTALS) == 372


def test_every_size_that_figure_4_allows_is_a_multiple_of_the_smallest():
    options = cascade.row_totals(np.array([s.confusion for s in cascade.SUBMISSIONS]), limit=600)
    assert [o[0] for o in options] == list(TOTALS)
    assert all(o == list(range(n, 601, n)) for n, o in zip(TOTALS, options))


@pytest.mark.parametrize("seed", range(4))
def test_row_totals_against_every_way_to_fill_a_row(seed):
    counts = made_up_matrices(seed=seed)
    for k, options in enumerate(cascade.row_totals(printed(counts), limit=30)):
        def prints(row, n):
            ways = ((a, b, n - a - b) for a, b in product(range(n + 1), repeat=2) if a + b <= n)
            return any(np.all(np.abs(100 * np.array(way) / n - row) <= 0.05 + 1e-9) for way in ways)
        assert options == [n for n in range(1, 31) if all(prints(row, n) for row in printed(counts)[:, k])]


def test_counts_come_back_from_rounded_percentages():
    counts = made_up_matrices(totals=(41, 55, 17, 37), n_models=6)
    accuracies = [round(100 * np.trace(c) / 150, 1) for c in counts]
    assert cascade.class_counts(printed(counts), accuracies, limit=299) == [(41, 55, 17, 37)]
    for c in counts:
        assert np.array_equal(cascade.confusion_counts(printed(c), (41, 55, 17, 37)), c)
        assert cascade.exact_accuracy(printed(c), (41, 55, 17, 37)) == pytest.approx(100 * np.trace(c) / 150)


def test_one_misprinted_accuracy_does_not_move_the_counts():
    counts = made_up_matrices(totals=(41, 55, 17, 37), n_models=6)
    accuracies = [round(100 * np.trace(c) / 150, 1) for c in counts]
    assert cascade.class_counts(printed(counts), [accuracies[0] + 5, *accuracies[1:]], limit=299) == [(41, 55, 17, 37)]


def test_submissions_1_and_3_by_hand():
    first, third = (next(s for s in cascade.SUBMISSIONS if s.number == n) for n in (1, 3))
    assert np.diag(cascade.confusion_counts(first.confusion, TOTALS)).tolist() == [8, 30, 77, 22, 0, 37, 27]
    assert cascade.exact_accuracy(first.confusion, TOTALS) == pytest.approx(100 * 201 / 372)
    assert cascade.exact_accuracy(third.confusion, TOTALS) == pytest.approx(100 * 207 / 372)


def test_printed_rows_add_up_to_100():
    for s in cascade.SUBMISSIONS:
        assert np.abs(np.sum(s.confusion, axis=1) - 100).max() <= 0.35 + 1e-9


def test_possible_sizes_against_all_shares():
    def shares(n, text):
        k = np.arange(n + 1)
        return np.isin(round(10 * float(text)), np.concatenate([np.floor(1000 * k / n + 0.5), np.floor(1000 * k / n + 1e-9)]))
    texts = ["46.9", "44.1"]
    assert cascade.possible_sizes(texts, range(50, 120)) == [n for n in range(50, 120) if all(shares(n, t) for t in texts)]


def test_validation_set_that_the_printed_accuracies_imply():
    accuracies = [str(s.valid) for s in cascade.SUBMISSIONS]
    assert cascade.possible_sizes([*accuracies, "35.96"], range(300, 437)) == [431]
    assert cascade.possible_sizes(["37.8"], [372]) == [] and cascade.possible_sizes(["37.8"], [431]) == [431]


def test_ledger_verdicts(tmp_path, monkeypatch):
    monkeypatch.delenv("FER_BOOK_DATA", raising=False)
    path = tmp_path / "data" / "claims" / "cascade_finetuning.csv"
    path.parent.mkdir(parents=True)
    for name in (path.name, f"settings/{path.name}"):
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_text((datasets.project_home() / "data" / "claims" / name).read_text())
    table = claims.verdicts("cascade_finetuning", tmp_path).set_index("id")
    arithmetic = table[table["kind"] == "arithmetic"]
    assert set(arithmetic["state"]) == {"adds up", "reprint"}
    assert table.loc[["direct", "q-baseline-test", "s41-gain-fer"], "ours"].tolist() == pytest.approx([100 * 163 / 431, 100 * 146 / 372, 10])
    assert {f"t-{s.number}": s.test for s in cascade.SUBMISSIONS} == arithmetic[arithmetic.index.str.match(r"t-\d")]["paper_value"].to_dict()
    assert set(table[table["kind"].isin(["gated", "ordering"])]["state"]) == {"needs data"}
    for claim in claims.read_claims("cascade_finetuning", tmp_path):
        if claim.kind == "gated":
            assert claim.sides[0][0] in {r.name for r in cascade.RECIPES}


# --- preparation ---------------------------------------------------------------------------------------------------------

def face(roll=0.0, closed=0.0, size=320, identity=None, zoom=-0.35):
    aus = np.zeros((1, len(schematic.AUS)))
    aus[0, schematic.AUS.index(43)] = closed
    return schematic.draw(aus, identity=identity, pose=[[0.0, 0.0, roll]], framing=[[0.0, 0.0, zoom]], size=size)[0]


def true_eyes(roll=0.0, identity=None, size=320):
    """Where closing the eyes changes the drawing: the middle of each of the two places."""
    changed = np.abs(face(roll, 0.0, size, identity).astype(int) - face(roll, 1.0, size, identity)) > 12
    _, _, stats, centres = cv2.connectedComponentsWithStats(cv2.dilate(changed.astype(np.uint8), np.ones((9, 9), np.uint8)))
    largest = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA])[:2]
    return centres[largest][np.argsort(centres[largest][:, 0])]


def dots(eyes, size=(300, 400)):
    """A picture with a bright dot of known centre at each eye, the right one brighter."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.clip(sum(level * np.exp(-((x - ex) ** 2 + (y - ey) ** 2) / 32) for level, (ex, ey) in zip((150, 250), eyes)), 0, 255).astype(np.uint8)


def bright_centre(image):
    weight = image.astype(float) * (image > 40)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("distance", [40.0, 90.0])
@pytest.mark.parametrize("angle", [-40.0, -10.0, 0.0, 25.0])
def test_align_puts_known_eyes_at_the_known_place(angle, distance):
    half = distance / 2 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    eyes = np.array([[200.3, 140.6]]) + [-half, half]
    image = cascade.align(dots(eyes), eyes)
    left, right = bright_centre(image * (np.arange(256) < 128)), bright_centre(image * (np.arange(256) >= 128))
    assert image.shape == (256, 256) and image.dtype == np.uint8
    assert np.allclose([left, right], cascade.eyes_after(), atol=0.7)
    assert image[:, 128:].max() > image[:, :128].max()


def test_align_of_a_large_picture_shrinks_it_without_moving_the_eyes():
    eyes = np.array([[300.0, 420.0], [900.0, 300.0]])
    y, x = np.mgrid[:1000, :1200]
    picture = np.clip(sum(250 * np.exp(-((x - ex) ** 2 + (y - ey) ** 2) / 2000) for ex, ey in eyes), 0, 255).astype(np.uint8)
    image = cascade.align(picture, eyes)
    assert np.allclose([bright_centre(image * (np.arange(256) < 128)), bright_centre(image * (np.arange(256) >= 128))], cascade.eyes_after(), atol=0.7)


def test_crop_reaches_as_far_as_the_paper_says():
    (x0, y0), (x1, y1) = cascade.eyes_after(224) + 0.5
    across, down = x1 - x0, 0.9 / 2.25 * 224 / 0.9
    assert y0 == y1 and x0 / across == pytest.approx(0.62) and (224 - x1) / across == pytest.approx(0.62)
    assert y0 / down == pytest.approx(0.9) and (224 - y0) / down == pytest.approx(1.35)


@pytest.mark.parametrize("roll", [0.0, 12.0, -12.0, 20.0])
def test_eyes_of_a_drawn_face_are_found_and_aligned_to_two_percent(roll):
    identity = np.random.default_rng(4).normal(0, 0.6, (1, len(schematic.IDENTITY)))
    image, truth = face(roll, identity=identity), true_eyes(roll, identity)
    eyes = cascade.eye_centres(image, cascade.detect_faces(image)[0][0])
    error = np.hypot(*(eyes - truth).T) / np.hypot(*(truth[1] - truth[0]))
    assert error.max() < 0.03
    u = (eyes[1] - eyes[0]) @ [1, 1j]
    placed = (truth - eyes[0]) @ [1, 1j] / u  # where the true eyes land, in eye-to-eye distances from where they should
    assert np.abs(placed - [0, 1]).max() * 256 / 2.24 < 4  # pixels of the crop


def test_rotated_and_mirrored_copies_give_the_same_eyes():
    image = face(identity=np.random.default_rng(4).normal(0, 0.6, (1, len(schematic.IDENTITY))))
    eyes = cascade.eye_centres(image, (40, 40, 240, 240))
    mirrored = cascade.eye_centres(image[:, ::-1].copy(), (40, 40, 240, 240))
    assert np.allclose(mirrored, eyes[::-1] * [-1, 1] + [319, 0], atol=0.01)
    turn = cv2.getRotationMatrix2D((160, 160), 15, 1.1)
    copy = cv2.warpAffine(image, turn, (320, 320), borderMode=cv2.BORDER_REPLICATE)
    there = eyes @ turn[:, :2].T + turn[:, 2]
    rotated = cascade.eye_centres(copy, cascade.detect_faces(copy)[0][0])
    assert np.hypot(*(rotated - there).T).max() < 0.05 * np.hypot(*(there[1] - there[0]))


def test_detection_finds_each_face_once_and_the_larger_first():
    small = cv2.resize(face(), (180, 180), interpolation=cv2.INTER_AREA)
    picture = np.full((340, 560), 85, np.uint8)
    picture[10:330, 10:330], picture[100:280, 360:540] = face(), small
    boxes, windows = cascade.detect_faces(picture)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    assert np.allclose(centres, [[10 + 160, 10 + 160], [360 + 90, 100 + 90]], atol=30) and boxes[0, 2] > boxes[1, 2]
    colour = np.repeat(picture[..., None], 3, axis=2)
    assert np.array_equal(cascade.detect_faces(colour)[0], boxes) and (windows > 0).all()
    faces, kept = cascade.prepare(picture, 64)
    assert faces.shape == (2, 64, 64) and np.array_equal(kept, boxes) and np.all(faces.max((1, 2)) == 255) and np.all(faces.min((1, 2)) == 0)


def test_profiles_left_and_right_are_one_face_each():
    found = cascade._apart(np.array([[10, 10, 40, 40], [12, 12, 38, 38], [15, 15, 20, 20], [60, 10, 40, 40], [45, 10, 40, 40]], float))
    assert found == [0, 3]


def test_no_face_and_no_eyes_give_nothing():
    blank = np.full((200, 300), 90, np.uint8)
    faces, boxes = cascade.prepare(blank)
    assert cascade.detect_faces(blank)[0].shape == (0, 4) and faces.shape == (0, 256, 256) and boxes.shape == (0, 4)
    assert cascade.eye_centres(blank) is None


def test_prepare_crops_keeps_every_face_and_says_which_it_aligned():
    images = np.stack([face(size=160, zoom=0.0), np.full((160, 160), 7, np.uint8)])
    table = FaceTable(images, pd.DataFrame({"row": [3, 9], "split": "train", "emotion": [0, 1]}), FER2013_EMOTIONS, "mine")
    prepared, aligned = cascade.prepare_crops(table, 64)
    assert prepared.images.shape == (2, 64, 64) and aligned.tolist() == [True, False] and prepared.frame["row"].tolist() == [3, 9]
    assert not prepared.images[1].any()


def test_min_max_stretches():
    assert cascade.min_max(np.array([[10, 30, 110]], np.uint8)).tolist() == [[0, 51, 255]]


def test_most_film_faces_are_aligned(real_data):
    film = datasets.load("faces_film", real_data)
    _, aligned = cascade.prepare_crops(film[np.arange(0, 920, 80)])
    assert aligned.mean() > 0.5


# --- networks and recipes ------------------------------------------------------------------------------------------------

def test_networks_have_the_published_number_of_parameters():
    sizes = {net.__name__: sum(p.numel() for p in net(1000, 3, side).parameters()) for net, side in ((cascade.AlexNet, 227), (cascade.VGGCNNM2048, 224))}
    def conv(n_in, n_out, side, groups=1): return n_out * (n_in // groups * side**2 + 1)
    def dense(a, b): return (a + 1) * b
    assert sizes["AlexNet"] == 60_965_224 == (
        conv(3, 96, 11) + conv(96, 256, 5, 2) + conv(256, 384, 3) + conv(384, 384, 3, 2) + conv(384, 256, 3, 2)
        + dense(256 * 6 * 6, 4096) + dense(4096, 4096) + dense(4096, 1000))
    assert sizes["VGGCNNM2048"] == (conv(3, 96, 7) + conv(96, 256, 5) + conv(256, 512, 3) + 2 * conv(512, 512, 3)
                                    + dense(512 * 6 * 6, 4096) + dense(4096, 2048) + dense(2048, 1000))


def test_response_normalisation_is_the_one_of_the_alexnet_paper():
    a = torch.randn(2, 9, 3, 3, dtype=torch.float64) * 20
    b = torch.stack([a[:, i] / (2 + 1e-4 * (a[:, max(0, i - 2) : i + 3] ** 2).sum(1)) ** 0.75 for i in range(9)], 1)
    assert torch.allclose(cascade._normalise()(a), b, rtol=1e-12)


@pytest.mark.parametrize("net, side", [(cascade.AlexNet, 63), (cascade.VGGCNNM2048, 48), (cascade.AlexNet, 96)])
def test_small_networks_run_and_learn_everywhere(net, side):
    model = net(7, 1, side, width=0.05)
    model(torch.randn(2, 1, side, side)).square().sum().backward()
    assert model(torch.zeros(3, 1, side, side)).shape == (3, 7)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_submission_is_a_chain_of_recipes_back_to_the_start():
    recipes = {r.name: r for r in cascade.RECIPES}
    assert len(recipes) == len(cascade.RECIPES) == len(cascade.paths())
    for s in cascade.SUBMISSIONS:
        name, chain = cascade.recipe_name(s.network, s.stages), []
        while name:
            chain.append(recipes[name])
            name = recipes[name].start
        assert len(chain) == len(s.stages) - 1 and len({r.model for r in chain}) == 1
    order = [r.name for r in cascade.RECIPES]
    assert all(order.index(r.start) < order.index(r.name) for r in cascade.RECIPES if r.start)


def test_recipes_train_as_section_3_3_says():
    for r in cascade.RECIPES:
        assert (r.optimizer, r.weight_decay, r.schedule, r.step) == ("sgd", 5e-4, "step", (10, 0.1))
        assert r.lr == (0.001 if r.start else 0.01)


# --- heads -----------------------------------------------------------------------------------------------------------------

def blobs(n=240, d=6, k=4, shift=0.0, seed=0, noise=1.2):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(k, d)) * 1.5
    y = rng.integers(k, size=n)
    return centres[y] + shift + noise * rng.normal(size=(n, d)), y


@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_head_is_scikit_learns(strength):
    x, y = blobs()
    theirs = LogisticRegression(C=1 / (strength * len(y)), max_iter=5000, tol=1e-10).fit(x, y).predict_proba(x)
    assert np.allclose(cascade.fit_head(x, y, 4, strength=strength, n_steps=2000)(x), theirs, atol=2e-3)


def test_anchor_holds_and_weights_are_counts():
    x, y = blobs()
    anchor = cascade.fit_head(*blobs(seed=1), 4)
    held = cascade.fit_head(x, y, 4, anchor=anchor, strength=1e6)
    assert np.allclose(held.weight[:-1], anchor.weight[:-1], atol=1e-4)
    counts = np.random.default_rng(0).integers(1, 4, size=len(y))
    again = cascade.fit_head(np.repeat(x, counts, axis=0), np.repeat(y, counts), 4)
    assert np.allclose(cascade.fit_head(x, y, 4, weights=counts).weight, again.weight, atol=1e-3)


def test_few_steps_stay_near_the_start():
    x, y = blobs()
    start = cascade.fit_head(*blobs(shift=1.0, seed=1), 4)
    away = [np.abs(cascade.fit_head(x, y, 4, start=start, n_steps=n).weight - start.weight).max() for n in (1, 200)]
    assert 0 < away[0] < away[1]


def test_a_left_out_actor_is_left_out_of_everything():
    x, y = blobs(n=120)
    actor = np.repeat(list("abcdef"), 20)
    ways = cascade.schemes(*blobs(n=300, seed=3), n_classes=4)
    for way in ways.values():
        before = cascade.leave_one_actor_out(way, x, y, actor)
        changed = y.copy()
        changed[actor == "c"] = (changed[actor == "c"] + 1) % 4
        after = cascade.leave_one_actor_out(way, x, changed, actor)
        assert np.array_equal(before[actor == "c"], after[actor == "c"])
    assert not np.array_equal(before[actor == "a"], after[actor == "a"])


def test_schemes_differ_in_what_they_see():
    source, (x, y) = blobs(n=300, seed=3), blobs(n=40, seed=4)
    ways = cascade.schemes(*source, n_classes=4)
    heads = {name: way(x, y).weight for name, way in ways.items()}
    assert np.allclose(heads["target"], cascade.fit_head(x, y, 4).weight)
    assert np.allclose(heads["fer"], cascade.fit_head(*source, 4).weight)
    both = cascade.fit_head(np.vstack([source[0], x]), np.concatenate([source[1], y]), 4)
    assert np.allclose(heads["combined"], both.weight, atol=2e-3)


def test_interval_over_actors():
    y, actor = np.zeros(40, int), np.repeat(np.arange(8), 5)
    predicted = np.tile([0, 0, 0, 1, 1], 8)
    even = cascade.actor_interval(cascade.metrics.accuracy, y, predicted, actor)
    assert even == pytest.approx((0.6, 0.6, 0.6))
    uneven = cascade.actor_interval(cascade.metrics.accuracy, y, (actor < 4).astype(int), actor)
    assert uneven.value == 0.5 and uneven.low <= 0.25 and uneven.high >= 0.75


def test_sign_flips_by_hand():
    assert cascade.sign_flip_p(np.ones(8)) == 2 / 2**8
    assert cascade.sign_flip_p(np.array([3.0, 1.0, -1.0])) == 6 / 8
    assert cascade.sign_flip_p(np.array([2.0, -2.0])) == 1.0


def test_faces_worth_by_hand():
    curve = pd.DataFrame([(0, True, 0.5), (10, False, 0.3), (20, False, 0.4), (40, False, 0.6), (80, False, 0.55)], columns=["faces", "source", "accuracy"])
    assert cascade.faces_worth(curve) == pytest.approx(30)
    better = curve.assign(accuracy=np.where(curve["source"], 0.9, curve["accuracy"]))
    assert cascade.faces_worth(better) == float("inf")
    worse = curve.assign(accuracy=np.where(curve["source"], 0.1, curve["accuracy"]))
    assert cascade.faces_worth(worse) == 10


def test_target_curve_has_every_size_and_the_source_helps_when_it_is_alike():
    x, y = blobs(n=160, noise=2.0)
    actor = np.repeat(np.arange(4), 40)
    curve = cascade.target_curve(blobs(n=800, seed=5, noise=2.0), x, y, actor, sizes=(0, 10, 1000), seeds=(0, 1))
    assert len(curve) == 2 * (2 * 3 - 1) and not ((curve["faces"] == 0) & ~curve["source"]).any()
    means = curve.groupby(["source", "faces"])["accuracy"].mean()
    assert means[True, 0] > means[False, 10] + 0.05
    everything = curve[curve["faces"] == 1000].groupby("source")["accuracy"].nunique()
    assert (everything == 1).all()


def test_blur():
    board = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (48, 48))[None]
    assert np.ptp(cascade.blur_to(board, 48)) <= 2 and cascade.blur_to(board, 96).tolist() == board.tolist()
    assert np.all(cascade.blur_to(np.full((1, 96, 96), 77, np.uint8)) == 77)


def test_quantity_or_resolution_trains_on_one_and_tests_on_the_other():
    x, y = blobs(n=80)
    actor = np.repeat(np.arange(4), 20)
    table = cascade.quantity_or_resolution(blobs(n=400, seed=6), x, np.zeros_like(x), y, actor, multiples=(1, 4), seeds=(0, 1))
    assert table.groupby("trained_on").size().to_dict() == {"film, sharp": 1, "film, blurred to 48 px": 1, "FER-2013, 48 px": 4}
    score = table.groupby("trained_on")["accuracy"].mean()
    assert score["film, sharp"] > score["film, blurred to 48 px"] + 0.2
    assert sorted(set(table.loc[table["trained_on"] == "FER-2013, 48 px", "faces"])) == [80, 320]


def test_forgetting_is_least_where_the_head_is_held():
    source, test = blobs(n=400, seed=7), blobs(n=200, seed=8)
    x, y = blobs(n=120, seed=9)
    y = (y + 1) % 4  # the target contradicts the source
    table = cascade.forgetting(source, test, x, y, np.repeat(np.arange(4), 30), hold=1e4).set_index("second stage")
    assert table.loc["before the second stage", "lost"] == 0 and table["source"].iloc[0] > 0.7
    assert table.loc["plain, to the end", "lost"] > 0.3 and table.loc["plain, to the end", "target"] > 0.7
    assert table.loc["L2-SP", "lost"] < table.loc["plain, to the end", "lost"] and table.loc["replay", "lost"] < table.loc["plain, to the end", "lost"]


def made_up_film(n=80):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"row": np.arange(n) + 5, "split": "train", "emotion": rng.integers(7, size=n), "subject": np.repeat(list("abcd"), n // 4)})
    return FaceTable(rng.integers(256, size=(n, 12, 12), dtype=np.uint8), frame, FER2013_EMOTIONS, "faces_film")


def test_leave_out_splits_by_actor():
    film = cascade.leave_out(made_up_film(), "d")
    assert film.frame.groupby("subject")["split"].unique().map(list).to_dict() == {"a": ["valid"], "b": ["train"], "c": ["train"], "d": ["test"]}


def test_recorded_heads_are_runs_that_the_ledger_reads(tmp_path, monkeypatch):
    monkeypatch.delenv("FER_BOOK_DATA", raising=False)
    film = made_up_film()
    x, y = film.images.reshape(80, -1)[:, :10] / 255.0, np.arange(70) % 7
    source = np.random.default_rng(1).normal(size=(70, 10)), y
    folders = cascade.record_film(source, film, x, "dlib", tmp_path / "results")
    assert [json.loads((f / "run.json").read_text())["recipe"]["name"] for f in folders] == [f"film-{s}-dlib" for s in ("target", "fer", "combined", "staged")]
    run = claims.read_run(folders[-1])
    direct = cascade.leave_one_actor_out(cascade.schemes(*source)["staged"], x, film.frame["emotion"].to_numpy(), film.frame["subject"].to_numpy())
    part = run.part("test")
    assert run.counts and part["row"].tolist() == film.frame["row"].tolist()
    assert np.allclose(part[[f"p_{c}" for c in FER2013_EMOTIONS]], direct, atol=1e-6)
    assert (pd.crosstab(part["subject"], film.frame["subject"]) > 0).to_numpy().sum() == film.frame["subject"].nunique(), "one number per actor"


def test_film_study_writes_what_the_chapter_reads(tmp_path, monkeypatch):
    film, rng = made_up_film(), np.random.default_rng(2)
    fer = FaceTable(rng.integers(256, size=(140, 12, 12), dtype=np.uint8), pd.DataFrame({
        "row": np.arange(140), "split": ["train"] * 80 + ["valid"] * 20 + ["test"] * 40, "emotion": np.arange(140) % 7}), FER2013_EMOTIONS, "fer2013")
    monkeypatch.setattr(datasets, "load", lambda name, *_: {"fer2013": fer, "faces_film": film}[name])
    folder = cascade.film_study(lambda faces: faces.images.reshape(len(faces), -1)[:, :6] / 255.0, "pixels", tmp_path / "results")
    assert folder.name.startswith("film-staged-pixels-cpu-s0-") and len(list((tmp_path / "results").iterdir())) == 5
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("curve", "resolution", "forgetting")}
    assert sorted(set(tables["curve"]["faces"])) == [0, 25, 50, 100, 200, 400, 1000] and set(tables["curve"]["seed"]) == {0, 1, 2}
    assert len(tables["forgetting"]) == 5 and tables["resolution"]["trained_on"].nunique() == 3
