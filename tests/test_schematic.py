"""Schematic faces: labels that fit the pictures, pictures that follow their action units, same seed same bytes."""
import subprocess
import sys
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from fer_book import emotions as em
from fer_book import schematic as sc

REST = np.zeros((1, len(sc.AUS)))


def posed(**intensity: float) -> np.ndarray:
    """Action units by name, for example posed(au12=1)."""
    aus = REST.copy()
    for name, value in intensity.items():
        aus[0, sc.AUS.index(int(name[2:]))] = value
    return aus


def grey(aus: np.ndarray, **kwargs) -> np.ndarray:
    return sc.draw(aus, **kwargs)[0].astype(float)


def test_same_seed_same_bytes_and_prefix():
    long = sc.generate(600, seed=3)
    short = sc.generate(300, seed=3)
    for name in ("images", "emotion", "votes", "vad", "aus", "subject", "pose", "light"):
        np.testing.assert_array_equal(getattr(long, name)[:300], getattr(short, name), err_msg=name)
    other = sc.generate(300, seed=4)
    assert (other.images != short.images).any(axis=(1, 2)).all()


def test_same_bytes_in_another_process():
    code = ("import hashlib; from fer_book.schematic import generate; g = generate(40, seed=9);"
            "print(hashlib.sha256(g.images.tobytes() + g.votes.tobytes()).hexdigest())")
    runs = {subprocess.run([sys.executable, "-c", code], cwd=Path(sc.__file__).parents[1], check=True,
                           capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1


def test_labels_fit_together():
    g = sc.generate(2000, seed=0)
    assert len(g) == 2000 and g.images.shape == (2000, 48, 48) and g.images.dtype == np.uint8
    assert g.votes.shape == (2000, 10) and (g.votes.sum(1) == 10).all() and g.votes.min() >= 0
    np.testing.assert_array_equal(g.vad, em.votes_to_vad(g.votes))
    assert np.isfinite(g.vad).all()
    assert g.aus.min() >= 0 and g.aus.max() <= 1 and g.aus.shape == (2000, len(sc.AUS))
    share = np.bincount(g.emotion, minlength=7) / 2000
    assert share.shape == (7,) and share.min() > 0.05 and share.max() < 0.25
    assert len(np.unique(g.subject)) > 300


def test_votes_follow_class_and_intensity():
    g = sc.generate(3000, seed=1)
    column = np.array([em.FERPLUS_EMOTIONS.index(e) for e in em.FER2013_EMOTIONS])
    own = g.votes[np.arange(3000), column[g.emotion]]
    for k in range(7):
        mean = g.votes[g.emotion == k].mean(0)
        assert mean.argmax() == column[k]
    visible = g.aus.sum(1)
    anger = g.emotion == em.FER2013_EMOTIONS.index("anger")
    weak, strong = visible < np.quantile(visible[anger], 0.3), visible > np.quantile(visible[anger], 0.7)
    assert own[anger & strong].mean() > own[anger & weak].mean() + 1
    targets, keep = em.ferplus_targets(g.votes, "majority")
    assert 0.8 < keep.mean() < 0.97
    assert 0.8 < (targets[keep].argmax(1) == column[g.emotion[keep]]).mean() < 0.97


def test_raters_read_the_prototypes():
    p = sc.read_expression(sc.PROTOTYPES)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p.argmax(1) == np.arange(8)).all() and np.diag(p)[1:].min() > 0.9
    weak = sc.read_expression(0.2 * sc.PROTOTYPES)
    assert (weak.argmax(1) == 0).all()


@pytest.mark.parametrize("au, rows", [
    (1, (0.10, 0.50)), (2, (0.10, 0.50)), (4, (0.20, 0.62)), (5, (0.30, 0.52)), (6, (0.35, 0.68)), (7, (0.35, 0.60)),
    (9, (0.20, 0.75)), (10, (0.55, 0.85)), (12, (0.55, 0.90)), (14, (0.65, 0.90)), (15, (0.65, 0.95)), (16, (0.70, 0.90)),
    (17, (0.68, 0.95)), (18, (0.68, 0.90)), (20, (0.65, 0.90)), (23, (0.68, 0.90)), (24, (0.68, 1.00)), (25, (0.68, 0.90)),
    (26, (0.68, 1.00)), (43, (0.33, 0.55))])
def test_every_unit_moves_its_part_of_the_face_only(au, rows):
    change = np.abs(grey(posed(**{f"au{au}": 1.0}), size=96) - grey(REST, size=96))
    top, bottom = (round(r * 96) for r in rows)
    inside = change[top:bottom].sum()
    assert inside > 100, "the unit is not visible"
    assert inside > 0.97 * change.sum(), f"it changes rows {np.flatnonzero(change.max(1) > 8)}"


def test_units_do_what_their_names_say():
    size = 192
    mouth = np.s_[int(0.68 * size):int(0.98 * size), int(0.40 * size):int(0.60 * size)]
    eye = np.s_[int(0.37 * size):int(0.47 * size), int(0.28 * size):int(0.43 * size)]
    rest = grey(REST, size=size)
    assert (grey(posed(au26=1), size=size)[mouth] < 45).sum() > (rest[mouth] < 45).sum() + 300
    assert rest[eye].max() > grey(posed(au43=1), size=size)[eye].max() + 20

    def darkest_row(image: np.ndarray, column: float) -> int:
        strip = image[int(0.68 * size):int(0.88 * size), int(column * size) - 1:int(column * size) + 2].mean(1)
        return int(strip.argmin())

    corner = 0.5 - 0.24 / 2
    heights = [darkest_row(grey(posed(**{u: 0.8}), size=size), corner) for u in ("au12", "au1", "au15")]
    assert heights[0] < heights[1] < heights[2]


def test_mirror_symmetry_of_pose_and_side():
    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a[:, ::-1] - b).mean())

    smirk = posed(au12=0.6, au14=1.0)
    assert difference(grey(REST, pose=[[20, 0, 0]]), grey(REST, pose=[[-20, 0, 0]])) < 1.5
    assert difference(grey(REST, pose=[[0, 0, 12]]), grey(REST, pose=[[0, 0, -12]])) < 1.5
    left, right = grey(smirk, side=-1), grey(smirk, side=1)
    assert np.abs(left - right).mean() > difference(left, right) + 0.25
    assert np.abs(right - grey(REST))[:, :22].mean() < 0.1 < np.abs(right - grey(REST))[:, 26:].mean()


def test_light_and_grain():
    from_left = grey(REST, light=[[-1, 0]])
    assert from_left[:, 8:24].mean() > from_left[:, 24:40].mean() + 15
    from_above = grey(REST, light=[[0, -1]])
    assert from_above[14:24, 16:32].mean() > grey(REST)[14:24, 16:32].mean() + 3
    grain = grey(REST, noise=6, seed=1) - grey(REST)
    assert 5.5 < grain.std() < 6.5 and abs(grain.mean()) < 0.5
    np.testing.assert_array_equal(grey(REST, noise=6, seed=1), grey(REST, noise=6, seed=1))


def test_size_changes_the_resolution_not_the_face():
    import cv2

    small, large = grey(sc.PROTOTYPES[2:3]), grey(sc.PROTOTYPES[2:3], size=192)
    shrunk = cv2.resize(large, (48, 48), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.98


def test_faces_are_exposed_well():
    images = sc.generate(600, seed=2).images
    assert (images == 255).mean() < 0.01 and (images == 0).mean() < 0.01
    assert 85 < images.mean() < 150 and np.median(images.std((1, 2))) > 25


def test_a_linear_model_learns_something_but_not_everything():
    g = sc.generate(1800, seed=6)
    x = g.images.reshape(-1, 24, 2, 24, 2).mean((2, 4)).reshape(1800, -1)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    test = g.subject % 4 == 0
    a, y = x[~test], np.eye(7)[g.emotion[~test]] - 1 / 7
    weights = np.linalg.solve(a.T @ a + 300 * np.eye(576), a.T @ y)
    accuracy = ((x[test] @ weights).argmax(1) == g.emotion[test]).mean()
    chance = np.bincount(g.emotion[test]).max() / test.sum()
    assert chance + 0.10 < accuracy < 0.80


def test_thousands_of_faces_a_second():
    sc.generate(64)
    rates = []
    for _ in range(8):
        start = process_time()
        sc.generate(256)
        rates.append(256 / (process_time() - start))
    assert max(rates) > 1000


def test_wrong_number_of_action_units_is_named():
    with pytest.raises(ValueError, match=r"a face needs 20 action units .* but aus has the shape \(2, 17\)"):
        sc.draw(np.zeros((2, 17)))
    with pytest.raises(ValueError, match=r"pose needs the shape \(2, 3\), one row a face, but has \(3,\)"):
        sc.draw(np.zeros((2, 20)), pose=[0, 10, 0])


def test_no_torch():
    code = "import sys, fer_book.schematic; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=Path(sc.__file__).parents[1], check=True, capture_output=True,
                         text=True).stdout
    assert out.strip() == "[]"
