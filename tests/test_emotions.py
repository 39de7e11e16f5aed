"""Emotion words, FER+'s label rules, votes -> VAD, and the display helpers."""
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fer_book import emotions as em

MODES = ("majority", "probability", "cross-entropy", "multi-target")


def random_votes(n: int = 4000) -> np.ndarray:
    """Ten votes a row over all ten columns, from unanimous to scattered, so that every branch and tie occurs."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(10, 0.35), n)
    votes = rng.multinomial(10, p)
    votes[:200] = rng.permuted(np.tile([3, 3, 3, 1, 0, 0, 0, 0, 0, 0], (200, 1)), axis=1)
    votes[200:400] = rng.permuted(np.tile([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], (200, 1)), axis=1)
    votes[400:600] = rng.permuted(np.tile([4, 4, 2, 0, 0, 0, 0, 0, 0, 0], (200, 1)), axis=1)
    votes[600:800] = rng.permuted(np.tile([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], (200, 1)), axis=1)
    votes[800] = [1] * 10
    return votes


def one_row(counts: list[int], mode: str) -> np.ndarray | None:
    """FER+'s rules for one image, as plain steps: the target over 8 emotions, or None if the image is dropped."""
    left = [0 if c <= 1 else c for c in counts]
    total, used = sum(left), [0] * 10
    if total == 0:
        return None
    if mode == "majority":
        top = max(left)
        if not top > total / 2:
            return None
        used[left.index(top)] = top
    elif mode == "multi-target":
        used = [c if c >= 0.3 * total else 0 for c in left]
        if not sum(used) > total / 2:
            return None
    else:
        covered = number = 0
        while covered < 0.75 * total and number < 3:
            top, stop = max(left), False
            for k in range(10):
                if left[k] != top:
                    continue
                left[k], covered = 0, covered + top
                if k < 8:
                    used[k], number = top, number + 1
                else:
                    stop = True
                    if sum(used) == 0:
                        return None
                    break
            if stop:
                break
        if number > 3 or not sum(used) > total / 2:
            return None
    if used.index(max(used)) >= 8:
        return None
    target = np.array(used[:8], float)
    return (target > 0).astype(float) if mode == "multi-target" else target / target.sum()


@pytest.mark.parametrize("mode", MODES)
def test_targets_equal_the_rules_row_by_row(mode):
    votes = random_votes()
    targets, keep = em.ferplus_targets(votes, mode)
    expected = [one_row(row.tolist(), mode) for row in votes]
    assert keep.tolist() == [e is not None for e in expected]
    assert 0.1 < keep.mean() < 0.95
    np.testing.assert_allclose(targets, [np.zeros(8) if e is None else e for e in expected], atol=1e-15)


def test_hand_computed_targets():
    votes = np.array([[5, 0, 0, 0, 5, 0, 0, 0, 0, 0],   # two halves
                      [0, 1, 1, 1, 5, 1, 1, 0, 0, 0],   # single votes are outliers
                      [4, 0, 0, 0, 0, 0, 0, 0, 0, 6],   # not a face
                      [4, 0, 2, 0, 0, 0, 0, 0, 4, 0]])  # unknown ties for the lead
    kept = {mode: em.ferplus_targets(votes, mode)[1].tolist() for mode in MODES}
    assert kept == {"majority": [False, True, False, False], "probability": [True, True, False, False],
                    "cross-entropy": [True, True, False, False], "multi-target": [True, True, False, True]}
    np.testing.assert_array_equal(em.ferplus_targets(votes, "cross-entropy")[0][0], [.5, 0, 0, 0, .5, 0, 0, 0])
    np.testing.assert_array_equal(em.ferplus_targets(votes, "multi-target")[0][0], [1, 0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(em.ferplus_targets(votes, "majority")[0], [
        np.zeros(8), np.eye(8)[4], np.zeros(8), np.zeros(8)])


def test_targets_leave_the_votes_alone():
    votes = random_votes()
    before = votes.copy()
    for mode in MODES:
        em.ferplus_targets(votes, mode)
    em.votes_to_vad(votes)
    np.testing.assert_array_equal(votes, before)


def test_draw_labels_follows_the_distribution():
    targets = np.tile([0.5, 0, 0.2, 0, 0, 0, 0, 0.3], (20000, 1))
    labels = em.draw_labels(targets, seed=1)
    np.testing.assert_allclose(np.bincount(labels, minlength=8) / 20000, targets[0], atol=0.02)
    np.testing.assert_array_equal(labels, em.draw_labels(targets, seed=1))
    with pytest.raises(ValueError, match="targets row 2 sums to 0, not to 1"):
        em.draw_labels(np.vstack([targets[:2], np.zeros((1, 8))]), seed=1)


def real_votes(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(Path(folder) / "fer2013.parquet", columns=["usage", *em.VOTE_COLUMNS]).to_pandas()
    return table[list(em.VOTE_COLUMNS)].to_numpy(), table["usage"].to_numpy(str)


def test_official_row_counts_on_the_real_votes(real_data):
    votes, usage = real_votes(real_data)
    counts = {}
    for mode in MODES:
        keep = em.ferplus_targets(votes, mode)[1]
        counts[mode] = tuple(int(keep[usage == u].sum()) for u in ("Training", "PublicTest", "PrivateTest"))
    assert counts["majority"] == (25060, 3199, 3153)
    assert counts["cross-entropy"] == counts["probability"] == (27956, 3505, 3505)
    vad = em.votes_to_vad(votes)
    assert [int((usage == u).sum()) for u in ("Training", "PublicTest", "PrivateTest")] == [28561, 3579, 3574]
    np.testing.assert_array_equal(np.isnan(vad).any(1), votes[:, :8].sum(1) == 0)


def test_norms_equal_the_published_lists(real_data):
    with open(Path(real_data) / "anew_emotions.csv") as file:
        rows = {r["emotion"]: r for r in csv.DictReader(file)}
    for kind, table in (("mean", em.NORMS["anew"].mean), ("sd", em.NORMS["anew"].sd)):
        expected = [[float(rows[e][f"{d}_{kind}"]) for d in em.VAD] for e in em.FERPLUS_EMOTIONS]
        np.testing.assert_array_equal(table, expected)
    with open(Path(real_data) / "warriner_vad.csv") as file:
        rows = {r["Word"]: r for r in csv.DictReader(file)}
    norms = em.NORMS["warriner"]
    for word, mean, sd in zip(norms.words, norms.mean, norms.sd):
        assert [float(rows[word][f"{d}.Mean.Sum"]) for d in "VAD"] == mean.tolist()
        assert [float(rows[word][f"{d}.SD.Sum"]) for d in "VAD"] == sd.tolist()
    for word, rating in em.CIRCUMPLEX.items():
        assert tuple(float(rows[word][f"{d}.Mean.Sum"]) for d in "VAD") == rating


def test_half_the_mean_sd_is_the_papers_threshold():
    assert em.NORMS["anew"].sd.shape == (8, 3)
    assert abs(em.NORMS["anew"].sd.mean() / 2 - 1) < 0.01
    np.testing.assert_array_equal(em.NORMS["anew"].mean[em.FERPLUS_EMOTIONS.index("happiness")], [8.21, 6.49, 6.63])


def test_votes_to_vad_by_hand():
    votes = np.array([[0, 3, 0, 1, 0, 0, 0, 0, 5, 1], [0, 0, 0, 0, 0, 0, 0, 0, 4, 6], [0, 0, 0, 0, 0, 0, 7, 0, 0, 0]])
    vad = em.votes_to_vad(votes)
    np.testing.assert_allclose(vad[0], [(3 * 8.21 + 1.61) / 4, (3 * 6.49 + 4.13) / 4, (3 * 6.63 + 3.45) / 4])
    assert np.isnan(vad[1]).all()
    np.testing.assert_allclose(vad[2], [2.25, 6.33, 3.64])
    assert vad.dtype == np.float64
    other = em.votes_to_vad(votes, em.NORMS["warriner"])
    np.testing.assert_allclose(other[2], [2.66, 5.45, 3.12])


def test_vad_sd_is_the_spread_of_the_mixture():
    votes = np.array([[0, 6, 0, 4, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 9, 0, 0, 0, 1, 0]])
    sd = em.vad_sd(votes)
    np.testing.assert_allclose(sd[1], em.NORMS["anew"].sd[4])
    rng = np.random.default_rng(0)
    word = rng.choice([1, 3], 400_000, p=[0.6, 0.4])
    answers = rng.normal(em.NORMS["anew"].mean[word], em.NORMS["anew"].sd[word])
    np.testing.assert_allclose(sd[0], answers.std(0), rtol=0.01)
    assert np.isnan(em.vad_sd(np.array([[0] * 8 + [10, 0]]))).all()


@pytest.mark.parametrize("function", [em.votes_to_vad, em.vad_sd, lambda v: em.ferplus_targets(v, "majority")])
@pytest.mark.parametrize("votes, sentence", [
    (np.vstack([np.ones((3, 10), int), np.zeros((1, 10), int)]), "votes row 3 sums to 0"),
    (np.vstack([np.ones((1, 10), int), [[1, 2, -1, 0, 0, 0, 0, 0, 0, 0]]]), "votes row 1: surprise is -1"),
    (np.full((2, 10), 0.5), "votes row 0: neutral is 0.5"),
    (np.full((2, 10), np.nan), "votes row 0: neutral is nan"),
    (np.ones((2, 8), int), "votes need 10 columns"),
    (np.ones(10, int), "votes need 10 columns"),
])
def test_bad_votes_get_one_sentence(function, votes, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        function(votes)
    assert "\n" not in str(error.value)


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="label mode 'crossentropy' is unknown: choose one of majority, probability"):
        em.ferplus_targets(random_votes(), "crossentropy")


def test_words_fit_together():
    assert sorted(em.FER2013_EMOTIONS) == sorted(set(em.FERPLUS_EMOTIONS) - {"contempt"})
    assert len(em.VOTE_COLUMNS) == len(set(em.VOTE_COLUMNS)) == 10
    leaves = [w for groups in em.FINE_GRAINED.values() for words in groups.values() for w in words]
    groups = [g for side in em.FINE_GRAINED.values() for g in side]
    assert len(leaves) == len(set(leaves)) == 33
    assert {g: len(em.FINE_GRAINED[s][g]) for s in em.FINE_GRAINED for g in em.FINE_GRAINED[s]} == {
        "anger": 9, "fear": 5, "happiness": 7, "love": 2, "sadness": 7, "surprise": 3}
    assert set(em.VOTE_COLUMNS) | set(groups) <= set(em.COLORS)
    assert len(set(em.COLORS.values())) == len(em.COLORS)


def test_prototypes_hold_the_published_units():
    published = {"happiness": {6, 12}, "surprise": {1, 2, 5, 26}, "sadness": {1, 4, 15}, "anger": {4, 5, 7, 23},
                 "disgust": {9, 15, 16}, "fear": {1, 2, 4, 5, 20, 26}, "contempt": {12, 14}, "neutral": set()}
    assert set(em.EMOTION_AUS) == set(em.FERPLUS_EMOTIONS)
    for emotion, units in em.EMOTION_AUS.items():
        assert published[emotion] <= set(units) <= set(em.AU_NAMES)
        assert all(0 < intensity <= 1 for intensity in units.values())


def test_norms_cannot_be_changed_by_accident():
    with pytest.raises(ValueError):
        em.NORMS["anew"].mean[0, 0] = 1


@pytest.fixture
def displayed(monkeypatch):
    import IPython.display

    html = []
    monkeypatch.setattr(IPython.display, "display", lambda obj: html.append(obj.data))
    return html


def test_show_writes_alt_text_and_closes_the_figure(displayed):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots()
    em.show(fig, 'a "quoted" <figure>')
    assert 'alt="a &quot;quoted&quot; &lt;figure&gt;"' in displayed[0] and "max-width:100%" in displayed[0]
    assert not plt.fignum_exists(fig.number)
    fig, ax = plt.subplots()
    with pytest.raises(ValueError, match="needs alt text"):
        em.show(fig, " ")
    plt.close(fig)


def test_show_table_scrolls_and_escapes(displayed):
    import pandas as pd

    em.show_table(pd.DataFrame({"a<b": [1.5, None]}), caption="x & y")
    em.show_table(pd.DataFrame({"a": [1]}, index=["row"]).style.format(precision=1))
    assert displayed[0].startswith('<div class="table-scroll"') and "overflow-x:auto" in displayed[0]
    assert "<caption>x &amp; y</caption>" in displayed[0] and "a&lt;b" in displayed[0] and "–" in displayed[0]
    assert "<th>0</th>" not in displayed[0]
    assert displayed[1].startswith('<div class="table-scroll"') and ">row</th>" in displayed[1]
    em.show_table(pd.DataFrame({"a": [1, 2]}), caption="x & y", folded=True)
    assert displayed[2].startswith('<details class="folded"><summary>x &amp; y (2 rows)</summary>') and "<caption>" not in displayed[2]
    em.show_table(pd.DataFrame({"a": [1]}, index=pd.Index(["row"], name="which")))
    head = displayed[3].partition("<tbody>")[0]
    assert head.count("<tr") == 1 and "which" in head and ">row</th>" in displayed[3]


def test_import_is_light_and_fast(tmp_path):
    """Under 0.3 s of processor time once compiled, and nothing heavy comes along."""
    code = ("import sys, time; t = time.process_time(); import fer_book.emotions; print(time.process_time() - t);"
            "print(*sorted({'torch', 'pandas', 'matplotlib', 'IPython', 'fastai', 'cv2'} & set(sys.modules)))")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    runs = [subprocess.run([sys.executable, "-c", code], env=env, cwd=Path(em.__file__).parents[1], check=True,
                           capture_output=True, text=True).stdout.split("\n") for _ in range(4)]
    assert runs[0][1] == ""
    assert min(float(run[0]) for run in runs[1:]) < 0.3


def test_a_sentence_in_a_table_gets_room(monkeypatch):
    import IPython.display
    import pandas as pd

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda html: shown.append(html.data))
    em.show_table(pd.DataFrame({"short": ["a"], "long": ["several " * 9 + "more"], "essay": ["& more" * 100]}))
    assert "<td>a</td>" in shown[0] and '<td style="min-width:9em">several' in shown[0] and '<td style="min-width:18em">&amp;' in shown[0]


# --- reliability of votes, and back from points to words ---------------------------------------------------------------------

def test_reliability_follows_from_the_raters_agreement():
    """Faces whose raters draw from known shares: the reliability is var(expected) / var(expected + error of a mean of ten)."""
    rng, norms = np.random.default_rng(0), em.NORMS["anew"]
    shares = rng.dirichlet(np.full(8, 0.4), 6000)
    votes = np.stack([rng.multinomial(10, p) for p in shares])
    vad = em.vad_reliability(np.c_[votes, np.zeros((6000, 2), int)], n_splits=10)
    expected = shares @ norms.mean
    error = (shares @ norms.mean**2 - expected**2).mean(0) / 10
    np.testing.assert_allclose(vad, expected.var(0) / (expected.var(0) + error), atol=0.01)


def test_reliability_of_unanimous_and_of_random_votes():
    rng = np.random.default_rng(1)
    unanimous = 10 * np.eye(10, dtype=int)[rng.integers(8, size=200)]
    np.testing.assert_allclose(em.vad_reliability(unanimous), 1)
    noise = np.stack([rng.multinomial(10, np.full(10, 0.1)) for _ in range(4000)])
    assert (np.abs(em.vad_reliability(noise, n_splits=3)) < 0.08).all()
    nine = np.vstack([unanimous[:50], 9 * np.eye(10, dtype=int)[[1]], 10 * np.eye(10, dtype=int)[[8]]])
    np.testing.assert_allclose(em.vad_reliability(nine), 1)  # nine votes, and ten for unknown


def test_nearest_emotion():
    norms = em.NORMS["anew"]
    assert em.nearest_emotion(norms.mean).tolist() == list(range(8))
    assert em.nearest_emotion(norms.mean[:, :2] + 0.05).tolist() == list(range(8))
    assert em.nearest_emotion(norms.mean[[1]], emotions=("neutral", "surprise")).tolist() == [1]
    with pytest.raises(ValueError, match="points need 2 or 3 columns"):
        em.nearest_emotion(norms.mean[:, :1])


def test_fitted_norms_have_the_spread_of_the_papers_results(real_data):
    """RMSE / sqrt(1 - r^2) of Table III's VGG16-bilinear and VGG16-global bounds the spread of the paper's targets from above."""
    import pyarrow.parquet as pq

    frame = pq.read_table(real_data / "fer2013.parquet", columns=["usage", *em.VOTE_COLUMNS]).to_pandas()
    votes = frame.loc[frame["usage"] == "PrivateTest", list(em.VOTE_COLUMNS)].to_numpy()
    limit = np.array([0.90108 / np.sqrt(1 - 0.90054**2), 0.67111 / np.sqrt(1 - 0.87071**2), 0.71722 / np.sqrt(1 - 0.81796**2)])
    ratio = {name: np.nanstd(em.votes_to_vad(votes, norms), axis=0) / limit for name, norms in em.NORMS.items()}
    assert (ratio["fitted"] < 1).all() and (ratio["fitted"] > 0.99).all()
    assert ratio["anew"][2] < 0.7 and ratio["anew"][1] > 0.99
    assert (em.NORMS["fitted"].mean[1:] == em.NORMS["anew"].mean[1:]).all()
