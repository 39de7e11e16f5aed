"""Metrics against other libraries, hand-computed cases and properties; intervals against simulation."""
import time
from functools import partial

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics

from fer_book import metrics as m

LABEL_METRICS = [m.accuracy, m.mean_recall, m.macro_f1]
VALUE_METRICS = [m.rmse, m.mae, m.pearson, m.ccc]


def labels(n=400, classes=7, right=0.6, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    return y, np.where(rng.random(n) < right, y, rng.integers(classes, size=n))


def values(n=300, dimensions=3, seed=0):
    rng = np.random.default_rng(seed)
    y = 5 + rng.normal(size=(n, dimensions)) * [2.0, 1.0, 0.5][:dimensions]
    return y, 0.7 * y + 1 + rng.normal(size=y.shape)


def probabilities(n=500, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(classes, 0.4), n)
    y = np.where(rng.random(n) < 0.6, probs.argmax(1), rng.integers(classes, size=n))
    return probs, y


@pytest.mark.parametrize("seed", range(5))
def test_label_metrics_equal_scikit_learn(seed):
    y, p = labels(seed=seed)
    assert m.accuracy(y, p) == pytest.approx(sklearn.metrics.accuracy_score(y, p), abs=1e-12)
    assert m.mean_recall(y, p) == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, p), abs=1e-12)
    assert m.macro_f1(y, p) == pytest.approx(sklearn.metrics.f1_score(y, p, average="macro"), abs=1e-12)
    assert np.array_equal(m.confusion(y, p, 7), sklearn.metrics.confusion_matrix(y, p, labels=range(7)))


@pytest.mark.parametrize("absent", ["true", "predicted", "both"])
def test_absent_class_is_treated_as_scikit_learn_does(absent):
    y, p = labels(classes=5)
    if absent != "predicted":
        y, p = y[y != 2], p[y != 2]
    if absent != "true":
        p = np.where(p == 2, 3, p)
    assert m.macro_f1(y, p) == pytest.approx(sklearn.metrics.f1_score(y, p, average="macro", zero_division=0), abs=1e-12)
    present = [c for c in range(5) if (y == c).any()]
    assert m.mean_recall(y, p) == pytest.approx(np.mean([(p[y == c] == c).mean() for c in present]), abs=1e-12)


def test_hand_case_of_label_metrics():
    y, p = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert m.accuracy(y, p) == 0.75
    assert m.mean_recall(y, p) == pytest.approx((2 / 3 + 1) / 2)
    assert m.macro_f1(y, p) == pytest.approx((0.8 + 2 / 3) / 2)
    assert m.confusion(y, p, 3).tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_constant_label_prediction():
    y = np.array([0, 1, 2, 2])
    assert m.mean_recall(y, np.full(4, 2)) == pytest.approx(1 / 3)
    assert m.macro_f1(y, np.full(4, 2)) == pytest.approx((2 * 2 / 6) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_value_metrics_equal_scikit_learn_scipy_torchmetrics(seed):
    y, p = values(seed=seed)
    for d in range(3):
        a, b = y[:, d], p[:, d]
        assert m.rmse(a, b) == pytest.approx(np.sqrt(sklearn.metrics.mean_squared_error(a, b)), rel=1e-12)
        assert m.mae(a, b) == pytest.approx(sklearn.metrics.mean_absolute_error(a, b), rel=1e-12)
        assert m.pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic, rel=1e-10)
    for metric in VALUE_METRICS:
        assert metric(y, p) == pytest.approx([metric(y[:, d], p[:, d]) for d in range(3)], rel=1e-12)


def test_ccc_is_lins_with_population_moments_and_close_to_torchmetrics():
    y, p = values(n=4000)
    lin = [2 * np.cov(a, b, bias=True)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2) for a, b in zip(y.T, p.T)]
    assert m.ccc(y, p) == pytest.approx(lin, rel=1e-10)
    theirs = torchmetrics.regression.ConcordanceCorrCoef(num_outputs=3)(torch.tensor(p), torch.tensor(y))
    assert m.ccc(y, p) == pytest.approx(theirs.numpy(), abs=1e-3)


def test_hand_case_of_value_metrics():
    y, p = np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])
    assert (m.rmse(y, p), m.mae(y, p)) == (1.0, 1.0)
    assert m.pearson(y, p) == pytest.approx(1)
    assert m.ccc(y, p) == pytest.approx(2 * (2 / 3) / (2 / 3 + 2 / 3 + 1))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1])
def test_constant_values_are_nan_for_pearson_and_zero_or_nan_for_ccc(constant):
    y, flat = np.linspace(1, 9, 7), np.full(7, constant)
    assert np.isnan(m.pearson(y, flat)) and np.isnan(m.pearson(flat, y))
    assert m.ccc(y, flat) == pytest.approx(0, abs=1e-9)
    assert np.isnan(m.ccc(flat, flat))
    assert m.rmse(flat, flat) == 0


def test_correlations_survive_a_large_offset():
    y, p = values()
    assert m.pearson(y + 1e6, p - 1e6) == pytest.approx(m.pearson(y, p), rel=1e-6)
    assert m.ccc(y + 1e6, p + 1e6) == pytest.approx(m.ccc(y, p), rel=1e-6)
    assert m.pearson(y, -3 * y + 2) == pytest.approx([-1, -1, -1])


def test_threshold_accuracy_is_strict_and_uses_each_images_rmse():
    y, p = np.zeros((4, 2)), np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.4], [3.0, 4.0]])
    assert m.image_rmse(y, p) == pytest.approx([0, 1, np.sqrt(0.98), np.sqrt(12.5)])
    assert m.threshold_accuracy(y, p, 1.0) == 0.5
    assert m.threshold_accuracy(y, p, 1.001) == 0.75
    assert m.threshold_accuracy(y, p, 4.0) == 1.0


@pytest.mark.parametrize("target", [0.01, 0.25, 0.5, 0.7116, 0.9, 1.0])
def test_smallest_threshold_is_the_first_that_reaches_the_target(target):
    y, p = values(n=100)
    threshold = m.smallest_threshold(y, p, target)
    assert m.threshold_accuracy(y, p, threshold) >= target
    assert m.threshold_accuracy(y, p, np.nextafter(threshold, 0)) < target


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_torchmetrics(bins):
    probs, y = probabilities()
    theirs = torchmetrics.functional.classification.multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(y), num_classes=7, n_bins=bins, norm="l1")
    assert m.ece(probs, y, bins) == pytest.approx(float(theirs), abs=1e-6)


def test_ece_of_hand_cases():
    sure_right = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert m.ece(sure_right, np.array([0, 1])) == 0
    assert m.ece(sure_right, np.array([1, 0])) == 1
    assert m.ece(np.full((4, 2), [0.75, 0.25]), np.array([0, 0, 0, 1])) == pytest.approx(0, abs=1e-12)
    assert m.ece(np.full((4, 2), [0.75, 0.25]), np.array([0, 0, 0, 0])) == pytest.approx(0.25)


def test_soft_nll_equals_log_loss_on_hard_targets_and_the_entropy_on_itself():
    probs, y = probabilities()
    assert m.soft_nll(probs, np.eye(7)[y]) == pytest.approx(sklearn.metrics.log_loss(y, probs, labels=range(7)), rel=1e-9)
    assert m.soft_nll(probs, probs) == pytest.approx(scipy.stats.entropy(probs, axis=1).mean(), rel=1e-9)
    assert m.soft_nll(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])) == pytest.approx(-np.log(2.220446049250313e-16))


@pytest.mark.parametrize("metric", LABEL_METRICS + VALUE_METRICS + [m.ece])
def test_order_of_images_does_not_matter(metric):
    first, second = {m.ece: probabilities}.get(metric, labels if metric in LABEL_METRICS else values)()
    order = np.random.default_rng(1).permutation(len(first))
    assert metric(first[order], second[order]) == pytest.approx(metric(first, second), rel=1e-9)


@pytest.mark.parametrize("metric", VALUE_METRICS + [m.ece, m.soft_nll])
def test_quick_interval_equals_the_plain_one(metric):
    first, second = {m.ece: probabilities, m.soft_nll: lambda: (probabilities()[0], probabilities(seed=1)[0])}.get(metric, values)()
    quick = m.bootstrap(metric, first, second, n_resamples=60)
    plain = m.bootstrap(partial(metric), first, second, n_resamples=60)
    for a, b in zip(quick, plain):
        assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize("metric", LABEL_METRICS)
def test_quick_interval_of_labels_has_the_distribution_of_the_plain_one(metric):
    y, a = labels(seed=0)
    b, c = labels(seed=1)[1], labels(seed=2)[1]
    for quick, plain in (
        (m.bootstrap(metric, y, a, n_resamples=8000), m.bootstrap(partial(metric), y, a, n_resamples=4000, seed=1)),
        (m.paired_bootstrap(metric, y, [a, c], b, n_resamples=8000), m.paired_bootstrap(partial(metric), y, [a, c], b, n_resamples=4000, seed=1)),
    ):
        assert quick[0] == pytest.approx(plain[0], rel=1e-12)
        assert quick[1:3] == pytest.approx(plain[1:3], abs=0.004)


def test_interval_equals_scipy_bootstrap():
    y, p = labels(n=300)
    theirs = scipy.stats.bootstrap(((y == p).astype(float),), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    ours = m.bootstrap(m.accuracy, y, p, n_resamples=5000)
    assert ours[1:] == pytest.approx(tuple(theirs), abs=0.01)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered, truth = np.random.default_rng(0), 0, 0.7
    for i in range(400):
        y = rng.integers(7, size=300)
        p = np.where(rng.random(300) < truth, y, (y + 1) % 7)
        _, low, high = m.bootstrap(m.accuracy, y, p, n_resamples=300, seed=i)
        covered += low <= truth <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_several_predictions_are_averaged_within_each_resample():
    y, a = labels(seed=0)
    b = labels(seed=1)[1]
    both = m.bootstrap(m.accuracy, y, a, b)
    assert both.value == pytest.approx((m.accuracy(y, a) + m.accuracy(y, b)) / 2)
    mean_right = ((a == y).astype(float) + (b == y)) / 2
    plain = m.bootstrap(lambda _, right: right.mean(), y, mean_right)
    assert both == pytest.approx(plain, abs=0.004)
    alone = m.bootstrap(m.accuracy, y, a)
    assert both.high - both.low < alone.high - alone.low


def test_same_seed_same_interval_and_higher_level_wider():
    y, p = labels()
    assert m.bootstrap(m.macro_f1, y, p, seed=3) == m.bootstrap(m.macro_f1, y, p, seed=3)
    wide, narrow = m.bootstrap(m.macro_f1, y, p, level=0.99), m.bootstrap(m.macro_f1, y, p, level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_paired_interval_is_narrower_than_an_unpaired_one_and_antisymmetric():
    y, a = labels(n=1000)
    b = np.where(np.random.default_rng(5).random(1000) < 0.03, (a + 1) % 7, a)
    ab, ba = m.paired_bootstrap(m.accuracy, y, a, b), m.paired_bootstrap(m.accuracy, y, b, a)
    assert ab.value == pytest.approx(-ba.value) and ab.low == pytest.approx(-ba.high, abs=0.003)
    assert ab.high - ab.low < m.bootstrap(m.accuracy, y, a).high - m.bootstrap(m.accuracy, y, a).low


def test_paired_bootstrap_of_equal_models_and_of_very_different_ones():
    y, a = labels(n=500)
    assert m.paired_bootstrap(m.accuracy, y, a, a) == (0, 0, 0, 1)
    assert m.paired_bootstrap(m.accuracy, y, y, (y + 1) % 7).p == pytest.approx(2 / 2001)


def test_paired_p_value_is_about_uniform_when_models_are_equally_good():
    rng, p_values = np.random.default_rng(0), []
    for i in range(300):
        y = rng.integers(7, size=400)
        a, b = (np.where(rng.random(400) < 0.6, y, (y + 1) % 7) for _ in "ab")
        p_values.append(m.paired_bootstrap(m.accuracy, y, a, b, n_resamples=200, seed=i).p)
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (5, 5), (3, 12), (40, 12), (500, 450)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    y = np.zeros(only_a + only_b + 7, int)
    a = np.r_[np.zeros(only_a), np.ones(only_b), np.zeros(4), np.ones(3)].astype(int)
    b = np.r_[np.ones(only_a), np.zeros(only_b), np.zeros(4), np.ones(3)].astype(int)
    result = m.mcnemar(y, a, b)
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert result == pytest.approx((only_a, only_b, expected))


@pytest.mark.parametrize("metric", [m.macro_f1, m.ece, m.soft_nll, m.rmse, m.ccc])
def test_two_thousand_resamples_of_the_test_set_are_quick(metric):
    probs, y = probabilities(n=3574)
    args = {m.macro_f1: (y, probs.argmax(1)), m.ece: (probs, y), m.soft_nll: (probs, np.eye(7)[y])}.get(metric, (np.eye(7)[y], probs))
    started = time.process_time()
    m.bootstrap(metric, *args, n_resamples=2000)
    assert time.process_time() - started < 2


def test_resamples_without_a_defined_value_are_left_out():
    y, p = np.r_[np.zeros(9), 1.0], np.r_[np.zeros(8), 0.5, 1.0]
    interval = m.bootstrap(m.pearson, y, p, n_resamples=200)
    assert np.isfinite(interval).all()
    flat = m.bootstrap(m.pearson, y, np.zeros(10), n_resamples=50)
    assert np.isnan(flat).all()


Y, P = np.array([0, 1, 2]), np.array([0, 1, 1])
BAD = {
    "lengths": (lambda: m.accuracy(Y, P[:2]), "3 rows against 2: score the same images"),
    "empty": (lambda: m.accuracy(Y[:0], P[:0]), "There is no row to score"),
    "nan": (lambda: m.rmse(Y * 1.0, np.array([1, np.nan, 2])), "1 rows are not finite, the first is row 1"),
    "nan-probability": (lambda: m.ece(np.array([[0.5, 0.5], [np.nan, 1]]), np.array([0, 1])), "the first is row 1"),
    "float-labels": (lambda: m.accuracy(Y, P * 1.0), "y_pred must be one whole number per image"),
    "probabilities-as-labels": (lambda: m.accuracy(Y, np.eye(3, dtype=int)), "not int64 of shape"),
    "unknown-label": (lambda: m.macro_f1(np.array([0, -1, 2]), P), "y_true holds -1 in row 1"),
    "label-too-high": (lambda: m.confusion(Y, P, 2), "Label 2 does not fit 2 classes"),
    "shapes": (lambda: m.rmse(np.zeros((3, 2)), np.zeros(3)), "differ: give one value per image and dimension"),
    "sum-to-one": (lambda: m.ece(np.array([[0.5, 0.5], [0.5, 0.2]]), np.array([0, 1])), "Row 1 of probs is no probability distribution"),
    "target-classes": (lambda: m.soft_nll(np.full((2, 2), 0.5), np.full((2, 4), 0.25)), "2 predicted classes against 4"),
    "temperature": (lambda: m.at_temperature(np.array([[0.5, 0.5]]), 0), "A temperature is above 0, not 0"),
    "no-dimensions": (lambda: m.image_rmse(Y * 1.0, P * 1.0), "Give \\(images, dimensions\\)"),
    "target": (lambda: m.smallest_threshold(np.zeros((3, 2)), np.zeros((3, 2)), 71.16), "not 71.16"),
    "no-prediction": (lambda: m.bootstrap(m.accuracy, Y), "There is no prediction to score"),
    "level": (lambda: m.bootstrap(m.accuracy, Y, P, level=95), "between 0 and 1, not at 95"),
    "no-resamples": (lambda: m.bootstrap(m.accuracy, Y, P, n_resamples=0), "An interval needs resamples"),
    "paired-lengths": (lambda: m.paired_bootstrap(m.accuracy, Y, P, P[:2]), "3 rows against 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_threshold_metrics_are_resampled_as_by_hand():
    rng = np.random.default_rng(4)
    y, p = rng.normal(size=(2, 40, 3))
    for metric in (partial(m.threshold_accuracy, threshold=1.4), partial(m.smallest_threshold, target=0.7116)):
        fast = m.bootstrap(metric, y, p, n_resamples=300, seed=3)
        slow = m.bootstrap(lambda a, b: metric(a, b), y, p, n_resamples=300, seed=3)
        assert fast == pytest.approx(slow)


def test_temperature_is_found_and_changes_no_answer():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(4000, 5)) * 2
    truth = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    too_sure = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    assert m.fit_temperature(too_sure, truth) == pytest.approx(3, rel=1e-3)
    cooled = m.at_temperature(too_sure, 3)
    assert np.allclose(cooled, truth) and np.array_equal(cooled.argmax(1), too_sure.argmax(1))
    assert np.allclose(m.at_temperature(np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]), 0.5), [[2 / 3, 1 / 6, 1 / 6], [1, 0, 0]])
    drawn = np.array([rng.choice(5, p=row) for row in truth])
    assert m.ece(cooled, drawn) < 0.03 < m.ece(too_sure, drawn)


def test_unpaired_bootstrap_has_the_variance_of_both_sets():
    rng = np.random.default_rng(0)
    y_a, y_b = np.zeros(400, int), np.zeros(100, int)
    a, b = (rng.random(400) < 0.2).astype(int), (rng.random(100) < 0.5).astype(int)
    found = m.unpaired_bootstrap(m.accuracy, y_a, a, y_b, b)
    share = [np.mean(a == 0), np.mean(b == 0)]
    assert found.value == pytest.approx(share[0] - share[1])
    sd = np.sqrt(share[0] * (1 - share[0]) / 400 + share[1] * (1 - share[1]) / 100)
    assert found.high - found.low == pytest.approx(2 * 1.96 * sd, rel=0.1) and found.p < 0.01
    same = m.unpaired_bootstrap(m.accuracy, y_a, a, y_a, a)
    assert same.value == 0 and same.p > 0.5


@pytest.mark.parametrize("n", [3, 5])
def test_prediction_interval_is_students_for_one_more_run(n):
    values = np.random.default_rng(n).normal(66, 1, n)
    half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n)
    assert m.prediction_interval(values) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))
    other = scipy.stats.t.ppf(0.975, 7) * 0.5
    assert m.prediction_interval(values, other_se=0.5, other_df=7).high == pytest.approx(values.mean() + np.hypot(half, other))


def test_prediction_interval_holds_another_run_as_often_as_it_says():
    rng = np.random.default_rng(1)
    runs, other = rng.normal(0, 2, size=(100_000, 3)), rng.normal(0, 2, size=100_000)
    _, low, high = m.prediction_interval(runs)
    assert np.mean((low <= other) & (other <= high)) == pytest.approx(0.95, abs=0.004)


def test_one_run_has_no_prediction_interval():
    assert m.prediction_interval([66.0])[0] == 66 and np.isnan(m.prediction_interval([66.0])[1:]).all()


def test_paired_p_is_the_paired_t_test():
    a, b = np.random.default_rng(2).normal(size=(2, 5)) + [[1], [0]]
    assert m.paired_p(a - b) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    assert m.paired_p(np.zeros(3)) == 1 and m.paired_p(np.full(3, 0.5)) == 0 and np.isnan(m.paired_p([1.0]))
    assert m.paired_p(a - b, other_se=1.0) > m.paired_p(a - b), "other images make it less sure"


def test_holm_by_hand():
    assert m.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert m.holm([0.01, np.nan], family=10)[0] == pytest.approx(0.1) and np.isnan(m.holm([0.01, np.nan], family=10)[1])
    assert m.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="A family of 1 questions cannot have 2 p values"):
        m.holm([0.1, 0.2], family=1)


@pytest.mark.parametrize("metric", [m.accuracy, m.mean_recall, m.rmse])
def test_groups_are_resampled_whole(metric):
    """The quick way against drawing whole groups and scoring them, in distribution."""
    y, p = labels(n=600, classes=3) if metric is not m.rmse else (v[:, 0] for v in values(n=600))
    groups = np.random.default_rng(3).integers(20, size=600)
    quick = m.draws(metric, y, [p], groups=groups)[0]
    rng, members = np.random.default_rng(4), [np.flatnonzero(groups == g) for g in range(20)]
    plain = [metric(y[at], p[at]) for at in (np.concatenate([members[g] for g in rng.integers(20, size=20)]) for _ in range(2000))]
    assert np.mean(quick) == pytest.approx(np.mean(plain), abs=0.2 * np.std(plain)) and np.std(quick) == pytest.approx(np.std(plain), rel=0.1)


def test_groups_of_one_image_are_images():
    y, p = labels()
    alone = m.bootstrap(m.accuracy, y, p, groups=np.arange(len(y)))
    assert alone == pytest.approx(m.bootstrap(m.accuracy, y, p), abs=0.01)


@pytest.mark.parametrize("metric", [m.mean_recall, m.macro_f1])
def test_the_classes_of_an_average_are_fixed_before_resampling(metric):
    """One face of a class: a resample without it has no such average, instead of one over fewer classes."""
    y = np.r_[np.zeros(50, int), np.ones(50, int), 2]
    p = np.r_[np.zeros(50, int), np.ones(50, int), 0]
    drawn = m.draws(metric, y, [p])[0]
    assert 0.3 < np.isnan(drawn).mean() < 0.45 and np.nanmax(drawn) < 0.7, "never the average of the two other classes alone"


def test_a_metric_of_the_confusion_table_is_resampled_like_any_other():
    worst = m.of_confusion(lambda table: (np.diagonal(table, axis1=-2, axis2=-1) / table.sum(axis=-1)).min(axis=-1))
    y, p = labels(classes=3)
    plain = lambda y, p: min((p[y == c] == c).mean() for c in range(3))
    assert worst(y, p) == pytest.approx(plain(y, p))
    assert m.bootstrap(worst, y, p) == pytest.approx(m.bootstrap(plain, y, p), abs=0.02)
