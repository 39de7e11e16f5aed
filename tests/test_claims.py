"""Verdicts rebuilt from small made-up result folders by independent arithmetic."""
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics
from conftest import ROOT

from fer_book import claims, datasets
from fer_book.claims import ClaimError
from fer_book.emotions import FER2013_EMOTIONS, NORMS, VAD, VOTE_COLUMNS, votes_to_vad
from fer_book.training import recipes

PAPER = "emotions_classification"
HEADER = "id,paper,where,model,dataset,split,metric,paper_value,unit,kind,setting,recipe,check,outcome,reading,note"
SETTING = dict.fromkeys(claims.VOCABULARY, "not printed") | {"data": "fer2013", "architecture": "resnet18"}
P = [f"p_{name}" for name in FER2013_EMOTIONS]


def predictions(right=0.7, n_valid=300, n_test=300, seed=0, images=0):
    """Predictions of a made-up network that is right on a share of the images; `images` seeds the true labels."""
    truth, rng, n = np.random.default_rng(images), np.random.default_rng(seed), n_valid + n_test
    y, leaked = truth.integers(7, size=n), truth.random(n) < 0.1
    guess = np.where(rng.permutation(n) < right * n, y, (y + 1 + rng.integers(6, size=n)) % 7)
    probs = (0.6 * np.eye(7)[guess] + 0.4 * rng.dirichlet(np.ones(7), n)).astype(np.float32)
    frame = pd.DataFrame({"row": 1000 + np.arange(n), "split": ["valid"] * n_valid + ["test"] * n_test, "emotion": y, "leaked": leaked})
    return frame.assign(**dict(zip(P, probs.T)))


def write_run(home, recipe, table=None, seed=0, profile="cpu", tag="", epochs=60, settings=None, **changes):
    """A recorded run of a made-up ResNet-18; `settings` go into its recipe, `changes` into its run.json."""
    table = predictions(seed=seed) if table is None else table
    run_id = f"{recipe}-{profile}-s{seed}{tag}"
    folder = home / "results" / run_id
    folder.mkdir(parents=True)
    sizes = {f"n_{split}": int((table["split"] == split).sum()) for split in ("valid", "test")}
    told = {"name": recipe, "model": "fer_book.backbones:Backbone", "model_args": {"backbone": "resnet18"}, "epochs": epochs} | (settings or {})
    record = {"id": run_id, "recipe": told, "profile": profile, "seed": seed,
              "data": {"name": "fer2013", "fingerprint": "f" * 64, "n_train": 28709} | sizes,
              "finished": "2024-01-01T00:00:00", "complete": True, "embedded": False}
    (folder / "run.json").write_text(json.dumps(record | changes))
    table.to_parquet(folder / "predictions.parquet")
    return folder


def write_settings(home, paper="my_paper", **settings):
    """One line per setting, the fields that are given beside those of SETTING; "net" is always among them."""
    path = home / "data" / "claims" / "settings" / f"{paper}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": name, "where": ""} | SETTING | fields for name, fields in ({"net": {}} | settings).items()]
    pd.DataFrame(rows).to_csv(path, index=False)


def write_ledger(home, *lines, paper="my_paper", **settings):
    path = home / "data" / "claims" / f"{paper}.csv"
    write_settings(home, paper, **settings)
    path.write_text("\n".join((HEADER, *lines)) + "\n")
    return path


def setting_of(recipe, setting="net"):
    """The same setting for every side and every member of a recipe."""
    return " > ".join(" + ".join([setting] * (side.split(";")[0].count(" + ") + 1)) for side in recipe.split(">"))


def measured(claim_id="a", value="70.0", recipe="net", split="valid+test", metric="accuracy", unit="%", kind="measured", setting=None):
    setting = setting_of(recipe) if setting is None else setting
    return f"{claim_id},my_paper,Table 1,my net,fer2013,{split},{metric},{value},{unit},{kind},{setting},{recipe},,,,"


def copy_ledger(home, paper):
    """The book's ledger and settings of one paper, alone in `home`."""
    for name in (f"{paper}.csv", f"settings/{paper}.csv"):
        path = home / "data" / "claims" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "data" / "claims" / name, path)


def verdict(home, *lines, **settings):
    write_ledger(home, *lines, **settings)
    return claims.verdicts(home=home).set_index("id")


def write_seeds(home, recipe, rights, **more):
    """Runs of one recipe that are right on these shares of 1,000 images, one seed each; returns their accuracies in %."""
    for seed, right in enumerate(rights):
        write_run(home, recipe, predictions(right, 500, 500, seed=seed), seed=seed, **more)
    return [100 * np.floor(right * 1000 + 0.5) / 1000 for right in rights]


@pytest.fixture(autouse=True)
def no_data_and_a_cache_of_its_own(monkeypatch, tmp_path_factory):
    monkeypatch.delenv("FER_BOOK_DATA", raising=False)
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path_factory.mktemp("cache")))


# --- the ledger of the first paper ---------------------------------------------------------------------------------------

def book_ledger():
    return {claim.id: claim for claim in claims.read_claims(PAPER)}


def test_all_numbers_of_tables_1_to_3_are_entered():
    ledger = book_ledger()
    def printed(prefix):
        return {k.removeprefix(prefix): c.paper_value for k, c in ledger.items() if k.startswith(prefix)}
    assert printed("t1-train-") == dict(anger=3995, disgust=436, fear=4097, happiness=7215, neutral=4965, sadness=4830, surprise=4965)
    assert printed("t1-test-") == dict(anger=958, disgust=111, fear=1024, happiness=1774, neutral=1233, sadness=1247, surprise=831)
    assert printed("t2-") == {"shallow-cnn": 68.39, "resnet50": 48.53, "resnet18": 64.25, "vgg16-scratch": 57.89, "vgg16-imagenet": 67.22,
                              "vgg16-vggface": 67.65, "inceptionv3": 62.58, "human": 65, "human-spread": 5, "null-model": 65.5}
    assert printed("t3-") == {"shallow-cnn": 68.39, "resnet18": 64.25, "vgg16-vggface": 67.65, "average": 70.24}
    assert all(c.kind == "measured" for k, c in ledger.items() if k.startswith("t2-") and k not in ("t2-human", "t2-human-spread", "t2-null-model"))


def test_sums_and_differences_in_the_ledger_follow_from_its_printed_numbers():
    ledger = book_ledger()
    value = {k: c.paper_value for k, c in ledger.items()}
    for split in ("train", "test"):
        assert value[f"total-{split}"] == sum(v for k, v in value.items() if k.startswith(f"t1-{split}-"))
    names = {"shallow-cnn-paper": "t2-shallow-cnn", "resnet50-imagenet": "t2-resnet50", "resnet18-scratch": "t2-resnet18",
             "vgg16-scratch": "t2-vgg16-scratch", "vgg16-imagenet": "t2-vgg16-imagenet", "vgg16-vggface": "t2-vgg16-vggface",
             "inceptionv3-scratch": "t2-inceptionv3", "shallow-cnn-paper + resnet18-scratch + vgg16-vggface": "t3-average"}
    orderings = [c for c in ledger.values() if c.kind == "ordering"]
    assert len(orderings) == 10
    for claim in orderings:
        (a, *_), (b, *_) = claim.sides
        assert claim.paper_value == pytest.approx(value[names[a]] - value[names[b]], abs=1e-9)


def test_arithmetic_of_the_first_paper(tmp_path):
    copy_ledger(tmp_path, PAPER)
    table = claims.verdicts(PAPER, tmp_path).set_index("id")
    arithmetic = table[table["kind"] == "arithmetic"]
    wrong = arithmetic[arithmetic["state"].isin(claims.OUTCOMES)]
    assert wrong["ours"].to_dict() == {"t1-train-surprise": 3171, "s32-convolutions": 16, "s45-resnet50": 48.53, "s45-resnet18": 64.25}
    assert wrong["state"].to_dict() == {"t1-train-surprise": "misprint", "s32-convolutions": "misprint", "s45-resnet50": "inconsistent",
                                        "s45-resnet18": "inconsistent"}
    assert set(arithmetic["state"]) - set(claims.OUTCOMES) == {"adds up", "reprint"}
    assert table.loc["total-test", ["paper_value", "ours"]].tolist() == [7178, 3589 + 3589]
    trained = table[table["kind"].isin(["measured", "ordering"])]
    assert set(trained["state"]) == {"needs a GPU", "needs weights"} and trained["n_seeds"].sum() == 0
    assert set(trained[trained["model"].str.contains("VGGFace|Average")]["state"]) == {"needs weights"}


def arithmetic(claim_id, value, check, outcome="", kind="arithmetic"):
    return f'{claim_id},my_paper,Table 1,x,fer2013,train,count,{value},images,{kind},,,"{check}",{outcome},,'


def test_arithmetic_has_four_outcomes_and_a_reprint_is_none_of_them(tmp_path):
    rows = (arithmetic("a", 28709, "fer2013_count(train, all)"), arithmetic("b", 28708, "fer2013_count(train, all)", "misprint"),
            arithmetic("c", 28707, "fer2013_count(train, all)"), arithmetic("d", 28709, "same_as(a)"), arithmetic("e", 28709, "same_as(b)", "inconsistent"),
            arithmetic("q", 28709, "fer2013_count(train, all)", kind="question"), arithmetic("r", 1, "fer2013_count(train, all)", kind="question"),
            arithmetic("s", 7, "", kind="stated"))
    table = verdict(tmp_path, *rows)
    assert table["state"].to_dict() == {"a": "adds up", "b": "misprint", "c": "unexplained", "d": "reprint", "e": "inconsistent", "q": "yes", "r": "no", "s": "stated"}
    assert set(claims.counted(table.reset_index())["id"]) == {"a", "b", "c", "e"}, "reprints, questions and untestable numbers are not counted"


def test_what_adds_up_cannot_be_explained_away(tmp_path):
    with pytest.raises(ClaimError, match="line 2: the number of 'a' adds up .28709., so it is no misprint; empty the outcome"):
        verdict(tmp_path, arithmetic("a", 28709, "fer2013_count(train, all)", "misprint"))


def test_public_counts_add_up():
    assert {k: sum(v.values()) for k, v in claims.FER2013_COUNTS.items()} == {"train": 28709, "valid": 3589, "test": 3589}


def test_public_counts_against_real_faces(real_data):
    frame = datasets.load("fer2013", real_data).frame
    missing = 0
    for split, counts in claims.FER2013_COUNTS.items():
        for label, name in enumerate(FER2013_EMOTIONS):
            here = int(((frame["split"] == split) & (frame["emotion"] == label)).sum())
            assert 0 <= counts[name] - here < 0.015 * counts[name]
            missing += counts[name] - here
    assert missing == 35887 - len(frame)


@pytest.mark.parametrize("printed, exact, decimals, expected", [
    (57.9, 57.89, 1, True), (57.8, 57.89, 1, True), (57.7, 57.89, 1, False), (58.0, 57.89, 1, False), (2.0, 1.85, 0, True),
    (2.5, 2.59, 1, True), (9.4, 67.2 - 57.8, 1, True), (-0.5, -0.59, 1, True), (-0.6, -0.59, 1, True), (-0.5, -0.61, 1, False),
    (2, 3, 0, False), (4965, 3171, 0, False), (0.43, 67.65 - 67.22, 2, True)])
def test_agrees_means_rounded_or_cut_off(printed, exact, decimals, expected):
    assert claims.agrees(printed, exact, decimals) is expected


# --- measured rows ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("split", ["valid", "test", "valid+test"])
@pytest.mark.parametrize("metric, theirs", [
    ("accuracy", sklearn.metrics.accuracy_score), ("mean_recall", sklearn.metrics.balanced_accuracy_score),
    ("macro_f1", lambda y, p: sklearn.metrics.f1_score(y, p, average="macro")),
    ("recall_fear", lambda y, p: sklearn.metrics.recall_score(y, p, average=None)[2]),
    ("least_recall", lambda y, p: sklearn.metrics.recall_score(y, p, average=None).min())])
def test_our_number_is_scikit_learns(tmp_path, split, metric, theirs):
    folder = write_run(tmp_path, "net")
    row = verdict(tmp_path, measured(split=split, metric=metric, unit="")).loc["a"]
    table = pd.read_parquet(folder / "predictions.parquet")
    table = table[table["split"].isin(split.split("+"))]
    clean = table[~table["leaked"]]
    assert row["ours"] == pytest.approx(theirs(table["emotion"], table[P].to_numpy().argmax(1)))
    assert row["ours_without_leaks"] == pytest.approx(theirs(clean["emotion"], clean[P].to_numpy().argmax(1)))
    assert row["interval"] is None and row["runs"] == ["net-cpu-s0"] and row["n_seeds"] == 1 and row["state"] == "needs seeds"


def test_a_verdict_rests_on_three_seeds_and_where_one_more_run_would_land(tmp_path):
    accuracies = write_seeds(tmp_path, "net", (0.690, 0.700, 0.716))
    row = verdict(tmp_path, measured(value="70.0")).loc["a"]
    mean, sd = np.mean(accuracies), np.std(accuracies, ddof=1)
    half = scipy.stats.t.ppf(0.975, 2) * sd * np.sqrt(1 + 1 / 3)
    assert row["ours"] == pytest.approx(mean) and row["sd"] == pytest.approx(sd) and row["n_seeds"] == 3
    assert row["interval"] == pytest.approx([mean - half, mean + half]) and row["covers"] == "training"
    edges = measured("in", f"{mean + half:.1f}"), measured("above", f"{mean + half + 0.2:.1f}"), measured("below", f"{mean - half - 0.2:.1f}")
    assert verdict(tmp_path, measured("mid", "70.0"), *edges)["state"].to_dict() == {"mid": "holds", "in": "holds", "above": "falls short", "below": "better"}
    shutil.rmtree(tmp_path / "results" / "net-cpu-s1")
    row = claims.verdicts(home=tmp_path).set_index("id").loc["mid"]
    assert row["state"] == "needs seeds" and row["interval"] is None and row["n_seeds"] == 2


def test_seeds_are_averaged_and_no_run_is_forgotten(tmp_path):
    folders = [write_run(tmp_path, "net", seed=seed) for seed in (0, 1, 2)]
    row = verdict(tmp_path, measured()).loc["a"]
    each = [100 * np.mean(t[P].to_numpy().argmax(1) == t["emotion"]) for t in (pd.read_parquet(f / "predictions.parquet") for f in folders)]
    assert row["ours"] == pytest.approx(np.mean(each)) and row["runs"] == [f.name for f in folders] and row["also"] == []


def test_two_runs_of_one_seed_are_one_and_the_page_says_so(tmp_path):
    write_seeds(tmp_path, "net", (0.70, 0.71))
    write_run(tmp_path, "net", predictions(0.5, 500, 500), seed=1, tag="-again", finished="2024-02-02")
    row = verdict(tmp_path, measured()).loc["a"]
    assert row["n_seeds"] == 2 and row["state"] == "needs seeds" and row["ours"] == pytest.approx((70 + 50) / 2)
    assert row["remarks"] == ["Runs net-cpu-s1 and net-cpu-s1-again have the same seed and settings; the later one, net-cpu-s1-again, counts."]


def test_runs_from_before_a_setting_existed_belong_with_those_that_left_it_alone(tmp_path):
    write_run(tmp_path, "net")
    for seed, younger in ((1, {"cutout": 0.0, "start_seed": None}), (2, {"cutout": 0.25})):
        path = write_run(tmp_path, "net", seed=seed) / "run.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"recipe": record["recipe"] | younger}))
    row = verdict(tmp_path, measured()).loc["a"]
    assert sorted([row["runs"], *(other["runs"] for other in row["also"])]) == [["net-cpu-s0", "net-cpu-s1"], ["net-cpu-s2"]]


def test_first_recipe_decides_and_no_other_run_is_dropped(tmp_path):
    write_seeds(tmp_path, "net-long", (0.90, 0.91, 0.92))
    write_seeds(tmp_path, "net-paper", (0.50, 0.51, 0.52))
    row = verdict(tmp_path, measured(recipe="net-paper; net-*")).loc["a"]
    assert row["state"] == "falls short" and row["recipe"] == "net-paper (cpu)"
    (other,) = row["also"]
    assert other["state"] == "better" and other["runs"] == [f"net-long-cpu-s{seed}" for seed in range(3)]


def test_a_run_at_the_papers_setting_decides_before_one_that_is_not(tmp_path):
    write_seeds(tmp_path, "net-paper", (0.50, 0.51, 0.52), settings={"size": 24})
    row = verdict(tmp_path, measured(recipe="net-paper; net-long"), net={"size": "48"}).loc["a"]
    assert row["state"] == "needs a GPU" and row["grade"] == "reduced" and row["differs"][0] == "a smaller input: 24, not 48"
    assert row["ours"] == pytest.approx(51) and row["interval"] is not None, "ours stands beside theirs"
    write_run(tmp_path, "net-long", predictions(0.7))
    row = claims.verdicts(home=tmp_path).set_index("id").loc["a"]
    assert row["state"] == "needs seeds" and row["recipe"] == "net-long (cpu)" and [g["state"] for g in row["also"]] == [""]


def test_gpu_decides_before_cpu_and_the_latest_setting_before_older_ones(tmp_path):
    write_run(tmp_path, "net", predictions(0.9))
    write_run(tmp_path, "net", predictions(0.6), profile="gpu", tag="-old", finished="2024-01-02", epochs=10)
    write_run(tmp_path, "net", predictions(0.7), profile="gpu", finished="2024-01-03")
    row = verdict(tmp_path, measured()).loc["a"]
    assert row["runs"] == ["net-gpu-s0"] and [other["runs"] for other in row["also"]] == [["net-gpu-s0-old"], ["net-cpu-s0"]]


def test_other_test_data_give_no_verdict(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "other", seed=seed, data={"name": "faces_news", "fingerprint": "0", "n_train": 9, "n_valid": 300, "n_test": 300})
    row = verdict(tmp_path, measured(recipe="other")).loc["a"]
    assert row["state"] == "needs a GPU" and row["grade"] == "other" and "other test images: faces_news, not fer2013" in row["differs"]
    assert row["covers"] == "training and images"


SAID = {"data": "fer2013", "labels": "own", "train_split": "train", "architecture": "resnet18", "channels": "100%", "weights": "random", "trained": "all",
           "size": "48", "target": "emotion", "training": "adam plateau", "epochs": "60", "augmentation": "flip rotate", "test_time": "none"}
TRAINED = {"schedule": "plateau", "rotate": 10.0, "epochs": 60}


@pytest.mark.parametrize("settings, printed, n_train, grade, words", [
    ({}, {}, 28709, "same", None),
    ({}, {}, 28561, "minor", "the faces that FER+ did not rate: train rated, not train"),
    ({}, {"epochs": "not printed"}, 28709, "minor", "epochs not printed (here 60)"),
    ({"epochs": 30}, {}, 28709, "minor", "not as many epochs, or more: 30, not 60"),
    ({"epochs": 29}, {}, 28709, "reduced", "less than half the epochs: 29, not 60"),
    ({"epochs": 18}, {"epochs": "36?"}, 28709, "minor", "not as many epochs, or more: 18, not 36?"),
    ({"epochs": 17}, {"epochs": "36?"}, 28709, "reduced", "less than half the epochs: 17, not 36?"),
    ({"size": 32}, {}, 28709, "reduced", "a smaller input: 32, not 48"),
    ({"size": 96}, {}, 28709, "reduced", "a larger input: 96, not 48"),
    ({"schedule": "one-cycle"}, {}, 28709, "reduced", "another optimiser or schedule: adam one-cycle, not adam plateau"),
    ({"schedule": "poly", "optimizer": "sgd"}, {"training": "sgd"}, 28709, "same", None),
    ({"label_smoothing": 0.1}, {"training": "adam"}, 28709, "reduced", "another optimiser or schedule: adam plateau smoothed, not adam"),
    ({"shift": 0.1}, {}, 28709, "reduced", "another augmentation: flip rotate shift, not flip rotate"),
    ({}, {"augmentation": "rotate flip"}, 28709, "same", None),
    ({"flip_at_test": True}, {}, 28709, "reduced", "another averaging at test: flip, not none"),
    ({}, {"weights": "imagenet"}, 28709, "other", "another start: random, not imagenet"),
    ({"crowd_share": 0.5}, {}, 28709, "other", "another target: emotion and the crowd, not emotion"),
    ({"teacher_share": 0.5}, {}, 28709, "other", "another target: emotion and a teacher, not emotion"),
    ({"freeze": True}, {}, 28709, "other", "another part of the network is trained: head, not all"),
    ({"model_args": {"backbone": "resnet50"}}, {}, 28709, "other", "another network: resnet50, not resnet18"),
    ({"model_args": {"backbone": "resnet18", "width": 0.25}}, {}, 28709, "reduced", "fewer channels: 25%, not 100%"),
    ({"model_args": {"backbone": "resnet50", "pooling": "bilinear", "reduction": 128}}, {"architecture": "resnet50 bilinear", "channels": "512"}, 28709, "reduced",
     "fewer channels: 128, not 512"),
    ({}, {}, 7000, "other", "another part of the data: train, 7000 faces, not train"),
    ({"train_splits": ["train", "valid"]}, {}, 32298, "other", "another part of the data: train+valid, not train"),
    ({"start": "elsewhere"}, {}, 28709, "other", "another start: elsewhere, not random")])
def test_every_difference_from_the_paper_has_its_grade(tmp_path, settings, printed, n_train, grade, words):
    write_run(tmp_path, "net", settings=TRAINED | settings, data={"name": "fer2013", "fingerprint": "0", "n_train": n_train, "n_valid": 300, "n_test": 300})
    row = verdict(tmp_path, measured(), net=SAID | printed).loc["a"]
    assert row["grade"] == grade and row["state"] == ("needs seeds" if grade in ("same", "minor") else "needs a GPU")
    assert row["differs"][:1] == ([words] if words else [])


@pytest.mark.parametrize("told, words", [
    ({"labels": "own", "lacks": ["rows"]}, []),
    ({"labels": "votes"}, ["other labels: votes, not own"]),
    ({"lacks": ["splits"]}, ["another part of the data: train of its own splits, not train"]),
    ({"lacks": ["votes", "valid"]}, ["another part of the data: train of its own splits, not train"])])
def test_a_copy_with_other_labels_or_splits_gets_no_verdict(tmp_path, told, words):
    data = {"name": "fer2013", "fingerprint": "0", "n_train": 28709, "n_valid": 300, "n_test": 300}
    write_run(tmp_path, "net", settings=TRAINED, data=data | told)
    row = verdict(tmp_path, measured(), net=SAID).loc["a"]
    assert row["differs"] == words and row["grade"] == ("other" if words else "same")


def test_inceptionv3_with_8_epochs_and_resnet18_with_16_are_of_one_grade():
    told, runs = claims.read_settings(ROOT / "data/claims/settings" / f"{PAPER}.csv"), claims.read_runs(ROOT / "results")
    grades = {run.id: claims.gravest(claims.gaps(told[name], claims.setting_of(run, runs))) for name, recipe in (
        ("inceptionv3", "inceptionv3-scratch"), ("resnet18-scratch", "resnet18-scratch"), ("shallow-cnn", "shallow-cnn-crowd"),
        ("shallow-cnn", "shallow-cnn-onecycle"), ("shallow-cnn", "shallow-cnn-paper")) for run in runs if run.recipe == recipe and run.profile == "cpu"}
    assert grades["inceptionv3-scratch-cpu-s0-7be2cc07"] == grades["resnet18-scratch-cpu-s0-e7448ca2"] == "reduced"
    assert grades["shallow-cnn-crowd-cpu-s0-930d30c2"] == "other" and grades["shallow-cnn-onecycle-cpu-s0-a2d64bb4"] == "reduced"
    assert grades["shallow-cnn-paper-cpu-s0-8cdf6704"] == "minor"


def test_a_network_that_starts_on_other_data_names_them_first(tmp_path):
    write_run(tmp_path, "alexnet-fer28", settings={"model_args": {"weights": "imagenet"}, "model": "fer_book.cascade:AlexNet"})
    data = {"name": "sfew", "fingerprint": "0", "n_train": 900, "n_valid": 300, "n_test": 300}
    write_run(tmp_path, "alexnet-fer28-sfew", settings={"dataset": "sfew", "start": "alexnet-fer28", "model": "fer_book.cascade:AlexNet", "model_args": {}}, data=data)
    runs = claims.read_runs(tmp_path / "results")
    told = claims.setting_of(next(run for run in runs if run.dataset == "sfew"), runs)
    assert (told.data, told.weights, told.train_split, told.architecture) == ("fer2013 > sfew", "imagenet", "train > train", "alexnet")


def test_stand_ins_go_by_what_they_are():
    runs = {run.id: run for run in claims.read_runs(ROOT / "results")}
    assert [runs[name].recipe for name in ("vgg16-vggface-cpu-s0-849d3325", "vgg16-imagenet-cpu-s0-1080635c", "resnet50-imagenet-cpu-s0-7fd0be74")] == [
        "dlib-frozen", "lite0-frozen-112", "lite0-frozen-48"]
    known = recipes()
    assert all(new in known for new in claims.RENAMED.values())
    for (name, backbone), new in claims.RENAMED.items():
        assert known[new].at("cpu").model_args["backbone"] == backbone, "a stand-in goes by its own network"
        if name in known:
            assert known[name].at("cpu").model_args["backbone"] in name.replace("-", ""), "and no other one by the paper's"


@pytest.mark.parametrize("changes", [{"profile": "smoke"}, {"embedded": True}, {"complete": False}])
def test_smoke_embedded_and_unfinished_runs_never_count(tmp_path, changes):
    write_run(tmp_path, "net", **changes)
    row = verdict(tmp_path, measured()).loc["a"]
    assert row["state"] == "needs a GPU" and row["runs"] == [] and np.isnan(row["ours"])


def test_what_a_row_without_a_run_waits_for(tmp_path, monkeypatch):
    rows = measured("test", kind="gated").replace("fer2013", "affectnet"), measured("train", setting="gated"), measured("start", setting="faces"), measured("gpu")
    settings = {"gated": {"data": "fer2013 > sfew"}, "faces": {"weights": "vggface2"}}
    assert verdict(tmp_path, *rows, **settings)["state"].to_dict() == {"test": "needs data", "train": "needs data", "start": "needs weights", "gpu": "needs a GPU"}
    monkeypatch.setattr(datasets, "load", lambda name: None)
    assert verdict(tmp_path, *rows, **settings)["state"].to_dict() == {"test": "needs a GPU", "train": "needs a GPU", "start": "needs weights", "gpu": "needs a GPU"}


# --- classes and subjects ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("metric", ["mean_recall", "macro_f1", "least_recall", "largest_confusion", "recall_disgust"])
def test_a_class_average_with_too_few_faces_of_a_class_is_refused(tmp_path, metric):
    table = predictions(0.7, 0, 400)
    table.loc[table.index[table["emotion"] == 1][19:], "emotion"] = 0  # 19 disgusted faces are left
    for seed in range(3):
        write_run(tmp_path, "net", table, seed=seed, tag=f"-{seed}")
    states = verdict(tmp_path, measured("few", metric=metric, split="test"), measured("all", split="test"), measured("other", metric="recall_fear", split="test"))
    assert states["state"].to_dict() == {"few": "refused", "all": "falls short", "other": "falls short"}
    assert states.loc["few", "remarks"] == ["A class average needs 20 test images of each class: disgust has 19."] and states.loc["few", "interval"] is None
    table.loc[table.index[table["emotion"] == 0][0], "emotion"] = 1
    for seed in range(3):
        table.to_parquet(tmp_path / "results" / f"net-cpu-s{seed}-{seed}" / "predictions.parquet")
    assert claims.verdicts(home=tmp_path).set_index("id").loc["few", "state"] != "refused"


def test_whole_subjects_are_resampled(tmp_path):
    """Eight people, each of whose faces are all right or all wrong: the interval is that of eight answers, not of 400."""
    table = predictions(1.0, 0, 400)
    table.insert(3, "subject", np.repeat(np.arange(8), 50))
    wrong = table["subject"].isin([0, 1, 2]).to_numpy()
    table.loc[wrong, P] = np.eye(7, dtype=np.float32)[(table["emotion"][wrong] + 1) % 7]
    write_run(tmp_path, "net", table, data={"name": "faces_film", "fingerprint": "0", "n_train": 9, "n_valid": 0, "n_test": 400})
    row = verdict(tmp_path, measured(split="test")).loc["a"]
    right = np.repeat([0.0, 100.0], [3, 5])
    half = scipy.stats.t.ppf(0.975, 7) * right.std() / np.sqrt(8)
    assert row["covers"] == "8 subjects" and row["interval"] == pytest.approx([62.5 - half, 62.5 + half], rel=0.05)


# --- orderings ---------------------------------------------------------------------------------------------------------------

def ordering(claim_id, value, recipe, kind="ordering", **more):
    return measured(claim_id, value, recipe, unit="points", kind=kind, **more)


def test_an_ordering_is_two_statements_direction_and_size(tmp_path):
    a = write_seeds(tmp_path, "good", (0.800, 0.802, 0.806))
    b = write_seeds(tmp_path, "bad", (0.700, 0.703, 0.705))
    write_seeds(tmp_path, "same", (0.703, 0.700, 0.706))
    each = np.subtract(a, b)
    half = scipy.stats.t.ppf(0.975, 2) * each.std(ddof=1) * np.sqrt(4 / 3)
    rows = [ordering("size", "10.0", "good > bad"), ordering("none", "", "good > bad"), ordering("far", "4.0", "good > bad"), ordering("large", "20.0", "good > bad"),
            ordering("wrong", "1.0", "bad > good"), ordering("open", "1.0", "same > bad"), ordering("gone", "1.0", "good > missing")]
    table = verdict(tmp_path, *rows)
    assert table["state"].to_dict() == {"size": "holds", "none": "holds", "far": "direction only", "large": "direction only", "wrong": "contradicted",
                                        "open": "undecided", "gone": "needs a GPU"}
    assert table["direction"].to_dict() == {"size": "holds", "none": "holds", "far": "holds", "large": "holds", "wrong": "contradicted", "open": "undecided", "gone": ""}
    assert table["size"].to_dict() == {"size": "holds", "none": "", "far": "larger", "large": "smaller", "wrong": "smaller", "open": "holds", "gone": ""}
    row = table.loc["size"]
    assert row["ours"] == pytest.approx(each.mean()) and row["interval"] == pytest.approx([each.mean() - half, each.mean() + half])
    assert row["p"] == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue) and row["family"] == len(rows)
    assert row["runs"] == [f"{name}-cpu-s{seed}" for name in ("good", "bad") for seed in range(3)]


def test_the_orderings_of_one_paper_are_one_family(tmp_path):
    write_seeds(tmp_path, "good", (0.800, 0.820, 0.830))
    write_seeds(tmp_path, "bad", (0.700, 0.703, 0.705))
    assert verdict(tmp_path, ordering("o", "10.0", "good > bad")).loc["o", "state"] == "holds"
    crowd = [ordering(f"x{i}", "1.0", "good > missing") for i in range(30)]
    table = verdict(tmp_path, ordering("o", "10.0", "good > bad"), ordering("q", "", "good > bad", kind="question"), *crowd)
    assert table.loc["o", "state"] == "undecided" and table.loc["o", "family"] == 31, "30 more questions, each of which could have come out by luck"
    assert table.loc["o", "p_holm"] == pytest.approx(31 * table.loc["o", "p"])
    assert table.loc["q", "state"] == "yes" and table.loc["q", "family"] == 1, "questions of the book are a family of their own"


def test_an_ordering_is_paired_by_seed(tmp_path):
    write_seeds(tmp_path, "good", (0.80, 0.90, 0.70))
    write_seeds(tmp_path, "bad", (0.70, 0.80, 0.601))
    row = verdict(tmp_path, ordering("o", "10.0", "good > bad")).loc["o"]
    assert row["state"] == "holds" and row["sd"] < 0.1, "the seeds differ by 20 points, their differences do not"
    shutil.rmtree(tmp_path / "results" / "bad-cpu-s2")
    write_run(tmp_path, "bad", predictions(0.6, 500, 500), seed=7)
    row = claims.verdicts(home=tmp_path).set_index("id").loc["o"]
    assert row["state"] == "needs seeds" and row["n_seeds"] == 2 and row["ours"] == pytest.approx(10)


def test_a_question_is_answered_whatever_the_setting_and_never_counted(tmp_path):
    write_seeds(tmp_path, "good", (0.80, 0.81, 0.82), settings={"size": 24})
    write_seeds(tmp_path, "bad", (0.70, 0.71, 0.72), settings={"size": 24})
    table = verdict(tmp_path, ordering("q", "", "good > bad", kind="question"), ordering("n", "1.0", "bad > good", kind="question"), ordering("o", "10.0", "good > bad"),
                    net={"size": "48"})
    assert table["state"].to_dict() == {"q": "yes", "n": "no", "o": "needs a GPU"} and set(table["grade"]) == {"reduced"}
    assert len(claims.counted(table)) == 1


def test_ordering_uses_the_images_that_both_predict(tmp_path):
    good, bad = predictions(0.9), predictions(0.5, seed=1)
    write_run(tmp_path, "good", good)
    write_run(tmp_path, "bad", bad[20:])
    row = verdict(tmp_path, measured(recipe="good > bad", unit="points", kind="ordering")).loc["a"]
    hits = [(t[P].to_numpy().argmax(1) == t["emotion"])[20:].mean() * 100 for t in (good, bad)]
    assert row["ours"] == pytest.approx(hits[0] - hits[1])


def test_ordering_of_a_run_in_another_setting(tmp_path):
    write_seeds(tmp_path, "good", (0.80, 0.81, 0.82))
    write_seeds(tmp_path, "bad", (0.70, 0.71, 0.72), settings={"size": 24})
    row = verdict(tmp_path, ordering("a", "10", "good > bad"), net={"size": "48"}).loc["a"]
    assert row["state"] == "needs a GPU" and row["grade"] == "reduced" and row["differs"][0] == "bad: a smaller input: 24, not 48" and row["p_holm"] != row["p_holm"]


# --- copies of the data -----------------------------------------------------------------------------------------------------

def copy_of(fingerprint, n=600):
    return {"name": "fer2013", "fingerprint": fingerprint, "n_train": 28709, "n_valid": n // 2, "n_test": n // 2}


def test_runs_on_another_copy_of_the_data_are_a_group_of_their_own(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "net", predictions(0.7, seed=seed), seed=seed, data=copy_of("a"))
        write_run(tmp_path, "net", predictions(0.8, seed=seed), seed=seed, data=copy_of("b"), tag="-b", finished="2024-05-05")
    row = verdict(tmp_path, measured(value="80.0")).loc["a"]
    assert [len(runs) for runs in (row["runs"], *(other["runs"] for other in row["also"]))] == [3, 3] and row["ours"] == pytest.approx(80)
    assert row["also"][0]["ours"] == pytest.approx(70)


def test_a_soft_vote_does_not_mix_copies_of_the_data(tmp_path):
    write_run(tmp_path, "a", data=copy_of("1"))
    write_run(tmp_path, "b", data=copy_of("2"))
    assert verdict(tmp_path, measured(recipe="a + b")).loc["a", "runs"] == []
    write_run(tmp_path, "b", data=copy_of("1"), tag="-1")
    assert claims.verdicts(home=tmp_path).set_index("id").loc["a", "runs"] == ["a-cpu-s0 + b-cpu-s0-1"]


def test_images_of_two_copies_are_matched_by_content(tmp_path):
    good, bad = predictions(0.9), predictions(0.5, seed=1)
    content = np.random.default_rng(3).permutation(10**6)[: len(good)]
    write_run(tmp_path, "good", good.assign(image=content), data=copy_of("1"))
    shuffled = bad.assign(image=content).sample(frac=1, random_state=0)[:590].assign(row=np.arange(590))
    counts = {f"n_{split}": int((shuffled["split"] == split).sum()) for split in ("valid", "test")}
    write_run(tmp_path, "bad", shuffled, data=copy_of("2") | counts)
    row = verdict(tmp_path, ordering("a", "10", "good > bad")).loc["a"]
    kept = good.index[np.isin(content, shuffled["image"])]
    hits = [(t.loc[kept, P].to_numpy().argmax(1) == t.loc[kept, "emotion"]).mean() * 100 for t in (good, bad)]
    assert row["ours"] == pytest.approx(hits[0] - hits[1])


def test_copies_that_cannot_be_matched_say_so(tmp_path):
    write_run(tmp_path, "good", data=copy_of("1"))
    write_run(tmp_path, "bad", data=copy_of("2"))
    row = verdict(tmp_path, ordering("a", "10", "good > bad")).loc["a"]
    assert row["state"] == "odd run" and "are on other copies of fer2013 and do not say which images are the same" in row["remarks"][0]


# --- labels against the data --------------------------------------------------------------------------------------------------

def test_labels_are_compared_with_the_data_set_when_it_is_here(tmp_path, monkeypatch):
    table = predictions(n_valid=20, n_test=20)
    frame = table[["row", "split", "emotion"]]
    faces = datasets.FaceTable(np.zeros((40, 48, 48), np.uint8), frame, FER2013_EMOTIONS, "fer2013")
    monkeypatch.setattr(datasets, "load", lambda name: faces)
    data = {"name": "fer2013", "fingerprint": faces.fingerprint, "n_train": 28709, "n_valid": 20, "n_test": 20}
    runs = [claims.read_run(write_run(tmp_path, "net", table, data=data)), claims.read_run(write_run(tmp_path, "elsewhere", table))]
    assert claims.check_labels(runs) == {}
    table.loc[3, "emotion"] = (table.loc[3, "emotion"] + 1) % 7
    wrong = claims.read_run(write_run(tmp_path, "wrong", table, data=data))
    assert "Run wrong-cpu-s0: the label of row 1003 is not the one in fer2013" in claims.check_labels([*runs, wrong])["wrong-cpu-s0"]
    states = verdict(tmp_path, measured("bad", recipe="wrong"), measured("good"))
    assert states["state"].to_dict() == {"bad": "odd run", "good": "needs seeds"}, "one odd run spoils its own rows"
    assert "is not the one in fer2013; restore the run" in states.loc["bad", "remarks"][0] and states.loc["good", "remarks"] == []


# --- what is shown -------------------------------------------------------------------------------------------------------------

def test_json_is_valid_and_has_null_for_unknown(tmp_path):
    write_run(tmp_path, "net")
    write_run(tmp_path, "net-b", predictions(0.9))
    write_ledger(tmp_path, measured(recipe="net; net-b"), measured("b", recipe="none"))
    text = claims.to_json(claims.verdicts(home=tmp_path))
    first, second = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert {"id", "paper", "where", "metric", "paper_value", "ours", "interval", "n_seeds", "state", "grade", "runs", "note"} <= set(first)
    assert first["interval"] is None and first["sd"] is None and first["also"][0]["runs"] == ["net-b-cpu-s0"]
    assert second["ours"] is None and second["runs"] == []


def test_readable_has_a_line_for_every_group_of_runs(tmp_path):
    write_seeds(tmp_path, "net", (0.70, 0.71, 0.72))
    write_run(tmp_path, "net-b", predictions(0.9), settings={"size": 24})
    write_ledger(tmp_path, measured(recipe="net; net-b"), measured("b", recipe="none"), net={"size": "48"})
    lines = claims.readable(claims.verdicts(home=tmp_path))
    assert lines["state"].tolist() == ["holds", "", "needs a GPU"]
    assert lines["unlike the paper"][1] == "a smaller input: 24, not 48" and lines["what"][1] == "↳ net-b (cpu)" and lines["paper"].tolist() == ["70", "", "70"]
    assert re.fullmatch(r"\d\d\.\d\d \[\d\d\.\d\d, \d\d\.\d\d\]", lines["ours [95% interval]"][0]) and lines["ours [95% interval]"][1] == "90"


def test_headline_and_scoreboard_count_what_is_evidence_and_nothing_else(tmp_path):
    write_seeds(tmp_path, "net", (0.70, 0.71, 0.72))
    write_run(tmp_path, "one")
    write_run(tmp_path, "small", settings={"size": 24})
    write_ledger(tmp_path, measured("a", "71"), measured("b", "60"), measured("c", "80"), measured("d", recipe="one"), measured("e", recipe="small"),
                 measured("f", recipe="none", setting="gated"), ordering("q", "", "net > one", kind="question"), arithmetic("g", 28709, "fer2013_count(train, all)"),
                 arithmetic("h", 28709, "same_as(g)"), arithmetic("i", 5, "", kind="stated"), net={"size": "48"}, gated={"data": "sfew"})
    table = claims.verdicts(home=tmp_path)
    assert claims.headline(table) == ("Of 6 printed numbers that need a network, 4 can be tested here at the paper's setting: 1 holds, 2 do not, 1 awaits seeds. "
                                      "Of the others, 1 awaits a GPU and 1 awaits data or weights that cannot be shared.")
    assert claims.arithmetic_headline(table) == ("Of 1 printed numbers that follow from public facts or from the paper itself, 1 add up; "
                                                 "1 more only repeat a number of the same paper.")
    counts = claims.count_states(table).loc["my_paper"]
    assert counts["all"] == 7 == counts.drop("all").sum() and (counts["holds"], counts["falls short"], counts["better"]) == (1, 1, 1)
    network, paper = claims.scoreboard(table).axes
    bars = {bar.get_label(): bar for bar in network.containers}
    assert {name: int(bar[0].get_width()) for name, bar in bars.items()} == {"holds": 1, "better": 1, "falls short": 1, "needs seeds": 1, "needs a GPU": 1, "needs data": 1}
    assert {name for name, bar in bars.items() if bar[0].get_hatch()} == {"needs seeds", "needs a GPU", "needs data"}, "only a verdict has a plain colour"
    assert [bar.get_label() for bar in paper.containers] == ["adds up"]
    green = bars["holds"][0].get_facecolor()
    assert all(bar[0].get_facecolor() != green for axis in (network, paper) for bar in axis.containers if bar.get_label() != "holds")


def test_colours_of_states_differ():
    assert len(set(claims.STATES.values())) == len(claims.STATES)


def test_the_committed_table_of_verdicts_is_what_the_rules_say():
    """After a change that is meant: `fer-book verify --write`, and look at the difference."""
    now, then = claims.gate(claims.verdicts(home=ROOT)).set_index("id"), claims.read_gate(ROOT).set_index("id")
    assert list(now.index) == list(then.index), "rows of the ledger came or went"
    changed = now.index[(now != then).any(axis=1)]
    assert not len(changed), now.loc[changed].join(then.loc[changed], rsuffix=" in the table").to_string()


def test_the_table_of_verdicts_sees_what_changes(tmp_path):
    write_seeds(tmp_path, "net", (0.70, 0.71, 0.72))
    claims.write_gate(verdict(tmp_path, measured()).reset_index(), tmp_path)
    before = claims.read_gate(tmp_path)
    assert before.loc[0].to_dict() == {"id": "a", "paper": "my_paper", "state": "holds", "ours": "71.0", "low": "66.0", "high": "76.0", "seeds": "3", "grade": "minor"}
    write_run(tmp_path, "net", predictions(0.5, 500, 500), seed=3)
    assert not claims.gate(claims.verdicts(home=tmp_path)).equals(before)
    (tmp_path / "data/claims/verdicts.csv").unlink()
    with pytest.raises(ClaimError, match="verdicts.csv cannot be read .*; write it with `fer-book verify --write`"):
        claims.read_gate(tmp_path)


# --- computed once ----------------------------------------------------------------------------------------------------------

def test_a_verdict_is_computed_once_and_anew_when_anything_changes(tmp_path, monkeypatch):
    write_seeds(tmp_path, "net", (0.70, 0.71, 0.72))
    write_seeds(tmp_path, "other", (0.60, 0.61, 0.62))
    rows = [measured("a"), measured("b", recipe="other"), arithmetic("c", 28709, "fer2013_count(train, all)")]
    first = verdict(tmp_path, *rows)
    computed = []
    plain = claims._answer
    monkeypatch.setattr(claims, "_answer", lambda claim, *rest: computed.append(claim.id) or plain(claim, *rest))
    pd.testing.assert_frame_equal(first, verdict(tmp_path, *rows))
    assert computed == []
    write_run(tmp_path, "other", predictions(0.63, 500, 500, seed=9), seed=9)
    assert verdict(tmp_path, *rows).loc["b", "n_seeds"] == 4 and computed == ["b"], "one new run computes its own rows"
    verdict(tmp_path, *rows, net={"size": "48"})
    assert computed == ["b", "a", "b"], "another setting computes the rows that name it"
    verdict(tmp_path, measured("a", "71"), *rows[1:], net={"size": "48"})
    assert computed == ["b", "a", "b", "a"], "another printed number computes its row"


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace("71.0", "99.0"), lambda text: "", lambda text: text + " "])
def test_a_damaged_cache_entry_is_noticed_and_made_anew(tmp_path, damage):
    write_seeds(tmp_path, "net", (0.70, 0.71, 0.72))
    first = verdict(tmp_path, measured())
    (entry,) = (datasets.cache_dir() / "verdicts").glob("*.json")
    whole = entry.read_text()
    entry.write_text(damage(whole))
    pd.testing.assert_frame_equal(first, verdict(tmp_path, measured()))
    assert entry.read_text() == whole


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path / "file"))
    write_seeds(tmp_path, "net", (0.70, 0.71, 0.72))
    assert verdict(tmp_path, measured()).loc["a", "state"] == "holds"


def test_cache_entries_that_nobody_reads_are_swept(tmp_path):
    verdict(tmp_path, measured())
    folder = datasets.cache_dir() / "verdicts"
    old = folder / "old.json"
    old.write_text("x")
    os.utime(old, (0, 0))
    verdict(tmp_path, measured(value="71"))
    assert not old.exists() and len(list(folder.glob("*.json"))) == 2


def test_claims_do_not_import_torch():
    code = "import sys, fer_book.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- broken ledgers and runs ----------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "no-value": (measured(value=""), "line 2: the claim 'a' has no paper value"),
    "word-value": (measured(value="n/a"), r"has no paper value \('n/a'\); enter the number that the paper prints"),
    "no-id": (measured(claim_id=""), "line 2: the claim has no id"),
    "kind": (measured(kind="guess"), "line 2: 'guess' is no kind of claim; use arithmetic"),
    "metric": (measured(metric="acuracy"), "there is no metric 'acuracy'; use one of accuracy"),
    "split": (measured(split="all"), "'all' is no split; use train, valid"),
    "train-split": (measured(split="train"), "needs a split that runs predict"),
    "recipe": (measured(recipe=""), "write one or more names split by ';'"),
    "ordering": (measured(kind="ordering"), "or 'a > b' for an ordering"),
    "paper": (measured().replace("my_paper", "yours"), "filed under 'yours'; write 'my_paper' or move it to yours.csv"),
    "commas": (measured() + ",a, b", "the row has not 16 fields; put quotes around text with a comma"),
    "short": ("a,my_paper,Table 1", "the row has not 16 fields"),
    "check": (measured(kind="arithmetic").replace(",net,net,,,,", ",,,sums,,,"), r"line 2: 'sums' is no call of a check; write its name and, in brackets"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_broken_ledger_rows(tmp_path, case):
    line, sentence = BAD_ROWS[case]
    path = write_ledger(tmp_path, line)
    with pytest.raises(ClaimError, match=sentence) as error:
        claims.read_ledger(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("field, value, sentence", [
    ("data", "fer", "line 2: 'fer' is no value of data; write fer2013"), ("epochs", "many", "'many' is no value of epochs; write a number, or 'not printed'"),
    ("size", "", "the setting 'net' lacks size; write the side"), ("architecture", "resnet18 max", "'resnet18 max' is no value of architecture"),
    ("augmentation", "flip, rotate", "'flip, rotate' is no value of augmentation"), ("weights", "my weights", "no value of weights; write random")])
def test_setting_outside_its_vocabulary(tmp_path, field, value, sentence):
    path = write_ledger(tmp_path, measured(), net={field: value})
    with pytest.raises(ClaimError, match=sentence) as error:
        claims.read_ledger(path)
    assert "settings/my_paper.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("field, value", [("data", "fer2013 > sfew"), ("data", "affectnet + rafdb + sfew"), ("epochs", "60?"), ("channels", "25%"),
                                          ("architecture", "resnet50 bilinear"), ("training", "sgd"), ("training", "adam one-cycle"), ("augmentation", "flip cutout")])
def test_settings_that_can_be_said(tmp_path, field, value):
    (claim,) = claims.read_ledger(write_ledger(tmp_path, measured(), net={field: value}))
    assert getattr(claim.settings[0][0], field) == value


@pytest.mark.parametrize("row, sentence", [
    (measured(setting=""), "line 2: the claim has no setting; name one of settings/<paper>.csv"),
    (measured(setting="nett"), "line 2: there is no setting 'nett'; use one of net, or add it"),
    (measured(recipe="a > b", kind="ordering", setting="net"), "the setting 'net' does not fit the recipe 'a > b'"),
    (measured().removesuffix(",,") + "misprint,,", "'misprint' is no outcome of this row")])
def test_rows_without_a_setting_that_fits(tmp_path, row, sentence):
    with pytest.raises(ClaimError, match=sentence):
        claims.read_ledger(write_ledger(tmp_path, row))


@pytest.mark.parametrize("check", ["same_as(b)", "same_as(a; a)", "fer2013_count(train)", "fer2013_count(all, anger)", "count_above(x, a)", "quoted(me)"])
def test_checks_with_wrong_arguments(tmp_path, check):
    write_ledger(tmp_path, f'a,my_paper,Table 1,x,,,count,3,,arithmetic,,,"{check}",,,')
    with pytest.raises(ClaimError, match="line 2: the check .* does not work .*; correct its arguments"):
        claims.verdicts(home=tmp_path)


def test_a_check_that_is_none(tmp_path):
    with pytest.raises(ClaimError, match=r"line 2: there is no check 'sums\(a\)'; use one of fer2013_count, .*, or add yours to the CHECKS of its chapter"):
        verdict(tmp_path, arithmetic("a", 3, "sums(a)"))


def test_a_chapters_module_brings_checks_of_its_own(tmp_path):
    """`nearest_share` belongs to chapter 12; claims finds it without naming the chapter."""
    assert "nearest_share" not in claims.CHECKS
    assert claims.find_check("nearest_share") is importlib.import_module("fer_book.cascade").CHECKS["nearest_share"]
    text = (ROOT / "fer_book" / "claims.py").read_text()
    assert not re.search(r"cascade|\bcake\b|bilinear\.|shallow_cnn", text.replace('"cascade_finetuning"', "").replace('"cake"', ""))


def test_duplicate_ids_wrong_columns_wrong_bytes_and_unknown_papers(tmp_path):
    with pytest.raises(ClaimError, match="line 3: the id 'a' is taken by line 2"):
        claims.read_ledger(write_ledger(tmp_path, measured(), measured()))
    path = write_ledger(tmp_path, measured())
    path.write_text(path.read_text().replace("paper_value", "value"))
    with pytest.raises(ClaimError, match="line 1: the columns must be id, paper"):
        claims.read_ledger(path)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ClaimError, match="cannot be read as a CSV table"):
        claims.read_ledger(path)
    with pytest.raises(ClaimError, match="no ledger of 'nobody'; choose from my_paper"):
        claims.verdicts("nobody", tmp_path)
    with pytest.raises(ClaimError, match="holds no ledger; set FER_BOOK_HOME"):
        claims.verdicts(home=tmp_path / "empty")


def test_ledgers_saved_by_a_spreadsheet_are_read(tmp_path):
    path = write_ledger(tmp_path, measured())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [claim.id for claim in claims.read_ledger(path)] == ["a"]


def spoil(column, value):
    def change(table):
        table.loc[7, column] = value
        return table
    return change


BAD_PREDICTIONS = {
    "sum": (spoil("p_fear", 0.9), "row 1007 has probabilities that do not sum to 1"),
    "nan": (spoil("p_fear", np.nan), "row 1007 has probabilities that do not sum to 1"),
    "label": (spoil("emotion", 9), "row 1007 has a true label outside 0 to 6"),
    "split": (spoil("split", "train"), "row 1007 is in none of the splits valid and test"),
    "twice": (spoil("row", 1006), "row 1006 is predicted twice"),
    "missing-row": (lambda t: t.drop(index=599), "has 299 images of the test split where run.json says 300"),
    "missing-column": (lambda t: t.drop(columns="leaked"), "lacks the column leaked"),
    "no-probabilities": (lambda t: t.drop(columns=P), "lacks the column p_<class>"),
}


@pytest.mark.parametrize("case", BAD_PREDICTIONS)
def test_broken_predictions(tmp_path, case):
    change, sentence = BAD_PREDICTIONS[case]
    folder = write_run(tmp_path, "net")
    change(predictions()).to_parquet(folder / "predictions.parquet")
    with pytest.raises(ClaimError, match=sentence) as error:
        claims.read_run(folder)
    assert str(folder) in str(error.value) and "restore the run from git" in str(error.value)


def test_a_broken_run_folder_spoils_its_own_rows_and_says_why(tmp_path):
    write_seeds(tmp_path, "fine", (0.70, 0.71, 0.72))
    folder = write_run(tmp_path, "net")
    rows = measured("spoilt", recipe="net"), measured("fine", recipe="fine")

    def sentence(change):
        change()
        table = verdict(tmp_path, *rows)
        assert table.loc["fine", "state"] == "holds" and table.loc["fine", "remarks"] == [] and table.loc["spoilt", "state"] in ("odd run", "needs a GPU")
        (run,) = [run for run in claims.read_runs(tmp_path / "results") if run.problem]
        assert not run.counts and run.recipe == "net" and run.problem == table.loc["spoilt", "remarks"][0], "it is not forgotten"
        return run.problem

    whole = (folder / "predictions.parquet").read_bytes()
    assert "predictions.parquet is damaged or only half written" in sentence(lambda: (folder / "predictions.parquet").write_bytes(whole[: len(whole) // 2]))
    assert "row 1007 has probabilities that do not sum to 1" in sentence(lambda: spoil("p_fear", np.nan)(predictions()).to_parquet(folder / "predictions.parquet"))
    assert "predictions.parquet is missing" in sentence(lambda: (folder / "predictions.parquet").unlink())
    assert "run.json is not the record of a run" in sentence(lambda: (folder / "run.json").write_text('{"id": "net"'))
    assert "run.json is missing" in sentence(lambda: (folder / "run.json").unlink())


def write_study(home, columns, n=60, name="study-cpu-s0"):
    """A study of made-up networks: `columns` maps "<network>/<seed>/<trained on>" to the label that all faces get, -1 for not asked."""
    folder = write_run(home, name.removesuffix("-cpu-s0"), predictions(0.7, n // 2, n // 2), domains={
        name: {"name": name, "fingerprint": "f" * 64} for name in ("fer2013", "faces_film")})
    answers = pd.DataFrame({"dataset": np.repeat(["fer2013", "faces_film"], n // 2), "row": np.tile(np.arange(n // 2), 2), "subject": -1,
                            "emotion": np.arange(n) % 7, "leaked": False}).assign(**{k: np.int8(v) for k, v in columns.items()})
    answers.to_parquet(folder / "answers.parquet")
    return folder


def test_a_study_is_many_runs_in_one_folder(tmp_path):
    folder = write_study(tmp_path, {"a/0/fer2013": 0, "a/1/fer2013": 3, "b/0/faces_film": 2, "b/1/faces_film": -1})
    row = verdict(tmp_path, measured(recipe="study/a-fer2013", split="test"), measured("other", recipe="study/a-fer2013-on-faces_film", split="test"),
                  measured("none", recipe="study/b-faces_film-on-fer2013"))
    share = lambda label: 100 * (np.arange(30) % 7 == label).mean()
    assert row.loc["a", "ours"] == pytest.approx((share(0) + share(3)) / 2) and row.loc["a", "n_seeds"] == 2
    assert row.loc["a", "runs"] == [f"{folder.name}/a/{seed}/fer2013/fer2013" for seed in (0, 1)]
    assert row.loc["other", "grade"] == "other" and "other test images: faces_film, not fer2013" in row.loc["other", "differs"]
    assert row.loc["none", "runs"] == [f"{folder.name}/b/0/faces_film/fer2013"], "a network that was not asked is no run"


def test_a_study_that_is_half_written_spoils_its_own_rows(tmp_path):
    write_run(tmp_path, "net")
    folder = write_study(tmp_path, {"a/0/fer2013": 0})
    whole = (folder / "answers.parquet").read_bytes()
    for change, sentence in ((lambda: (folder / "answers.parquet").write_bytes(whole[:100]), "answers.parquet is damaged or only half written"),
                             (lambda: (folder / "answers.parquet").unlink(), "answers.parquet is missing, so the study is only half written")):
        change()
        table = verdict(tmp_path, measured("of-study", recipe="study/a-fer2013"), measured("other"))
        assert sentence in table.loc["of-study", "remarks"][0] and table.loc["other", "remarks"] == [] and table.loc["other", "n_seeds"] == 1


def test_run_record_without_a_key_or_with_another_id(tmp_path):
    with pytest.raises(ClaimError, match="is not the record of a run"):
        claims.read_run(write_run(tmp_path, "a", data={"name": "fer2013"}))
    with pytest.raises(ClaimError, match="records the run 'b'; give the folder that name"):
        claims.read_run(write_run(tmp_path, "c", id="b"))


def test_folder_still_being_written_is_left_alone(tmp_path):
    (tmp_path / "results" / ".net-cpu-s0-abc").mkdir(parents=True)
    assert claims.read_runs(tmp_path / "results") == []


def test_seeds_that_do_not_predict_the_same_images(tmp_path):
    write_run(tmp_path, "net")
    write_run(tmp_path, "net", predictions(seed=1, images=1), seed=1)
    row = verdict(tmp_path, measured()).loc["a"]
    assert row["state"] == "odd run" and "do not predict the same images with the same labels" in row["remarks"][0]


# --- valence, arousal, dominance ----------------------------------------------------------------------------------------------

def vad_predictions(error=0.5, n_valid=200, n_test=300, seed=0, dimensions=("valence", "arousal", "dominance"), images=0, spread=(2.0, 1.36, 1.24)):
    """Predictions of a made-up regression with a given error; one face has no target."""
    truth, rng, n = np.random.default_rng(images), np.random.default_rng(seed + 1), n_valid + n_test
    unit = truth.uniform(-1, 1, (n, 3))
    true = 5 + np.array(spread) * (unit - unit[n_valid + 1:].mean(0)) / unit[n_valid + 1:].std(0)
    guess = true + error * rng.normal(size=(n, 3))
    true[n_valid] = np.nan
    frame = pd.DataFrame({"row": 1000 + np.arange(n), "split": ["valid"] * n_valid + ["test"] * n_test, "emotion": truth.integers(7, size=n), "leaked": truth.random(n) < 0.1})
    columns = {d: guess[:, i].astype(np.float32) for i, d in enumerate(dimensions)} | {f"true_{d}": true[:, i].clip(1, 9).astype(np.float32) for i, d in enumerate(dimensions)}
    return frame.assign(**columns)


def vad_row(metric, value, claim_id="a", recipe="reg", unit="", kind="measured", paper="my_paper"):
    return f"{claim_id},{paper},Table II,net,fer2013,test,{metric},{value},{unit},{kind},{setting_of(recipe)},{recipe},,,,"


def with_target(table):
    return table[(table["split"] == "test") & table["true_valence"].notna()]


def test_regressions_are_scored_on_the_faces_that_have_a_target(tmp_path):
    table = vad_predictions()
    write_run(tmp_path, "reg", table)
    t = with_target(table)
    assert len(t) == 299
    e = (t["arousal"] - t["true_arousal"]).to_numpy(np.float64)
    each = np.sqrt(np.mean([(t[d] - t[f"true_{d}"]).to_numpy(np.float64) ** 2 for d in ("valence", "arousal", "dominance")], axis=0))
    got = verdict(tmp_path, vad_row("arousal_rmse", "0.5", "a"), vad_row("arousal_mae", "0.1", "b"), vad_row("valence_pearson", "0.5", "c"), vad_row("arousal_rmse", "0.9", "d"),
                  vad_row("within_1", "50.00", "e", unit="%"), vad_row("threshold_71.16", "0.9", "f"))
    assert got.loc["a", "ours"] == pytest.approx(np.sqrt(np.mean(e**2))) and got.loc["b", "ours"] == pytest.approx(np.abs(e).mean())
    assert got.loc["c", "ours"] == pytest.approx(np.corrcoef(t["valence"], t["true_valence"])[0, 1])
    assert got.loc["e", "ours"] == pytest.approx(100 * np.mean(each < 1))
    assert np.mean(each < got.loc["f", "ours"]) >= 0.7116 > np.mean(each < got.loc["f", "ours"] - 1e-3) - 1 / 299
    assert set(got["state"]) == {"needs seeds"} and got["n_seeds"].eq(1).all()
    for seed in (1, 2):
        write_run(tmp_path, "reg", vad_predictions(seed=seed), seed=seed)
    got = claims.verdicts(home=tmp_path).set_index("id")
    assert got["state"].to_dict() == {"a": "holds", "b": "falls short", "c": "better", "d": "better", "e": "better", "f": "better"}


def test_an_error_is_better_when_smaller_and_orderings_know_it(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "good", vad_predictions(0.4, seed=seed), seed=seed)
        write_run(tmp_path, "bad", vad_predictions(0.8, seed=10 + seed), seed=seed)
        write_run(tmp_path, "two", vad_predictions(0.4, seed=seed, dimensions=("valence", "arousal")), seed=seed)
    got = verdict(tmp_path, *(vad_row(m, value, k, r, kind="ordering") for k, m, r, value in (
        ("a", "valence_rmse", "good > bad", "-0.4"), ("b", "valence_rmse", "bad > good", "-0.4"), ("c", "valence_pearson", "good > bad", "0.05"),
        ("d", "valence_mae", "two > bad", "-0.1"), ("e", "threshold_71.16", "good > bad", "-0.4"))))
    assert got["direction"].to_dict() == {"a": "holds", "b": "contradicted", "c": "holds", "d": "holds", "e": "holds"}
    assert got["state"].to_dict() == {"a": "holds", "b": "contradicted", "c": "holds", "d": "direction only", "e": "holds"}
    assert got.loc["d", "size"] == "larger" and got.loc["a", "ours"] < 0 < got.loc["c", "ours"]


def test_orderings_pair_their_names(tmp_path):
    for name, error in (("small-a", 0.4), ("small-b", 0.8), ("big-a", 0.9)):
        write_run(tmp_path, name, vad_predictions(error))
    row = verdict(tmp_path, vad_row("valence_rmse", "-0.1", recipe="big-a; small-a > big-b; small-b", kind="ordering")).loc["a"]
    assert row["runs"] == ["small-a-cpu-s0", "small-b-cpu-s0"] and row["ours"] < 0 and row["also"] == []
    write_run(tmp_path, "big-b", vad_predictions(0.5))
    row = claims.verdicts(home=tmp_path).set_index("id").loc["a"]
    assert row["ours"] > 0 and row["runs"] == ["big-a-cpu-s0", "big-b-cpu-s0"] and [other["runs"] for other in row["also"]] == [["small-a-cpu-s0", "small-b-cpu-s0"]]
    with pytest.raises(ClaimError, match="does not fit"):
        verdict(tmp_path, vad_row("valence_rmse", "-0.1", recipe="a; b > c", kind="ordering"))


def test_values_by_other_norms_are_other_labels(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "reg", vad_predictions(0.6, seed=seed), seed=seed, settings={"target": "vad", "norms": "anew"})
    row = verdict(tmp_path, vad_row("valence_rmse", "0.60"), net={"labels": "votes fitted"}).loc["a"]
    assert row["state"] == "needs a GPU" and row["differs"][0] == "other labels: votes anew, not votes fitted"


def test_a_classifier_cannot_answer_for_a_regression(tmp_path):
    write_run(tmp_path, "net")
    row = verdict(tmp_path, vad_row("valence_rmse", "0.7", recipe="net")).loc["a"]
    assert row["state"] == "odd run" and "Run net-cpu-s0 does not predict what the claim 'a' needs for valence_rmse" in row["remarks"][0]


@pytest.mark.parametrize("change, sentence", [
    (spoil("valence", np.nan), "row 1007 has a prediction that is not finite"), (spoil("true_arousal", 12.0), "row 1007 has a true value outside 1 to 9"),
    (lambda t: t.drop(columns="true_arousal"), "lacks the column true_arousal"), (lambda t: t.drop(columns="arousal"), "lacks the column arousal"),
    (lambda t: t.drop(columns="true_dominance"), "lacks the column true_dominance")])
def test_broken_regressions(tmp_path, change, sentence):
    folder = write_run(tmp_path, "reg", vad_predictions())
    change(vad_predictions()).to_parquet(folder / "predictions.parquet")
    with pytest.raises(ClaimError, match=sentence):
        claims.read_run(folder)


def test_true_values_are_compared_with_the_votes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    votes = np.stack([rng.multinomial(10, np.full(8, 1 / 8)) for _ in range(40)])
    votes = np.c_[votes, np.zeros((40, 2), int)]
    votes[0] = [0] * 8 + [10, 0]
    vad = votes_to_vad(votes, NORMS["fitted"])
    table = vad_predictions(n_valid=20, n_test=20).assign(**{f"true_{d}": vad[:, i].astype(np.float32) for i, d in enumerate(VAD)})
    frame = table[["row", "split", "emotion"]].assign(**dict(zip(VOTE_COLUMNS, votes.T)))
    faces = datasets.FaceTable(np.zeros((40, 48, 48), np.uint8), frame, FER2013_EMOTIONS, "fer2013")
    monkeypatch.setattr(datasets, "load", lambda name: faces)
    data = {"name": "fer2013", "fingerprint": faces.fingerprint, "n_valid": 20, "n_test": 20}

    def run(norms, seed):
        folder = write_run(tmp_path, "reg", table, seed=seed, data=data)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"recipe": record["recipe"] | {"norms": norms}}))
        return claims.read_run(folder)

    assert claims.check_labels([run("fitted", 0)]) == {}
    assert "Run reg-cpu-s1: the true values of row 1001 do not follow from its votes by the norms 'anew'" in claims.check_labels([run("anew", 1)])["reg-cpu-s1"]


# --- the ledger of the dimensional paper ----------------------------------------------------------------------------------------

def test_all_numbers_of_tables_2_to_4_are_entered():
    ledger = {claim.id: claim for claim in claims.read_claims("dimensional_vad")}
    measured_rows = [c for c in ledger.values() if c.kind == "measured"]
    assert sum(c.where == "Table II" for c in measured_rows) == 24 and sum(c.where == "Table III" for c in measured_rows) == 36
    assert sum(c.where == "Table IV" for c in measured_rows) == 16
    value = {k: c.paper_value for k, c in ledger.items()}
    assert [value[f"vad-resnet50-bilinear-{d}-{m}"] for d in VAD for m in ("rmse", "mae", "r")] == [
        0.74420, 0.50908, 0.93361, 0.57892, 0.39557, 0.90696, 0.60678, 0.42085, 0.87661]
    assert value["va-vgg16-global-valence-rmse"] == 0.92381 and value["va-resnet50-global-arousal-r"] == 0.87444
    assert (value["vad-resnet50-bilinear-within-1"], value["vad-resnet50-bilinear-threshold"], value["va-vgg16-global-threshold"]) == (89.98, 0.576, 0.781)


def test_orderings_of_the_dimensional_paper_follow_from_its_tables():
    ledger = {claim.id: claim for claim in claims.read_claims("dimensional_vad")}
    value = {k: c.paper_value for k, c in ledger.items()}
    orderings = [c for c in ledger.values() if c.kind == "question" and c.compares]
    assert len(orderings) == 30 + 30 + 24
    for claim in orderings:
        column = f"{claim.metric.split('_')[0]}-{claim.metric.split('_')[1].replace('pearson', 'r')}"
        (a, *_), (b, *_) = claim.sides
        assert claim.paper_value == pytest.approx(value[f"{a}-{column}"] - value[f"{b}-{column}"], abs=1e-9)
        assert (claim.paper_value < 0) == claims.METRICS[claim.metric].less_is_better, "the paper's own numbers are in the claimed order"


def test_counts_of_rated_images_are_those_of_the_data(real_data):
    usage = pd.read_parquet(real_data / "fer2013.parquet", columns=["usage"])["usage"].map(datasets.OFFICIAL).value_counts()
    assert usage.to_dict() == claims.RATED_COUNTS


def test_arithmetic_of_the_dimensional_paper_holds(tmp_path):
    copy_ledger(tmp_path, "dimensional_vad")
    table = claims.verdicts("dimensional_vad", tmp_path)
    arithmetic = table[table["kind"] == "arithmetic"]
    assert len(arithmetic) == 14 and set(arithmetic["state"]) == {"adds up", "reprint"}
    assert set(table[table["kind"].isin(["measured", "question"])]["state"]) == {"needs weights"}


# --- ensembles -----------------------------------------------------------------------------------------------------------

def test_soft_vote_adds_the_members_probabilities(tmp_path):
    tables = {name: predictions(right, seed=k) for k, (name, right) in enumerate([("a", 0.6), ("b", 0.65), ("c", 0.7)])}
    for name, table in tables.items():
        for seed in (0, 1) if name != "c" else (0,):
            write_run(tmp_path, name, table, seed=seed, settings={"size": 24})
    row = verdict(tmp_path, measured(recipe="a + b + c"), measured("o", "1", "a + b + c > c", kind="ordering", unit="points"), net={"size": "48"}).loc["a"]
    summed = sum(table[P].to_numpy(np.float64) for table in tables.values())
    y = tables["a"]["emotion"].to_numpy()
    assert row.ours == pytest.approx(100 * (summed.argmax(1) == y).mean())
    assert row.runs == ["a-cpu-s0 + b-cpu-s0 + c-cpu-s0"] and row.differs[:3] == [f"{name}: a smaller input: 24, not 48" for name in "abc"]  # c has no second seed
    gain = claims.verdicts(home=tmp_path).set_index("id").loc["o"]
    assert gain.ours == pytest.approx(100 * ((summed.argmax(1) == y).mean() - (tables["c"][P].to_numpy().argmax(1) == y).mean()))


def test_soft_vote_stands_in_for_none_of_its_members(tmp_path):
    for name in ("net-a", "net-b"):
        write_run(tmp_path, name)
    write_ledger(tmp_path, measured("one", recipe="net-a; net-*"), measured("vote", recipe="net-a + net-b"))
    rows = claims.verdicts(home=tmp_path).set_index("id")
    assert [g["runs"] for g in rows.loc["one"].also] == [["net-b-cpu-s0"]] and rows.loc["vote"].runs == ["net-a-cpu-s0 + net-b-cpu-s0"]


def test_soft_vote_waits_for_every_member(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", seed=1)
    assert verdict(tmp_path, measured(recipe="a + b")).loc["a"].runs == []


def test_soft_vote_of_other_images_says_so(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", predictions(images=1))
    row = verdict(tmp_path, measured(recipe="a + b")).loc["a"]
    assert row.state == "odd run" and row.remarks[0].startswith("Runs a-cpu-s0 and b-cpu-s0 cannot be averaged: they predict other images, labels or classes")


def test_best_model_is_best_on_public_test():
    scores, sizes = {}, {}
    for path in (ROOT / "models").glob("*.safetensors"):
        about = json.loads((ROOT / "results" / path.stem / "run.json").read_text())
        part = pd.read_parquet(ROOT / "results" / path.stem / "predictions.parquet").query("split == 'valid'")
        if about["data"]["name"] == "fer2013" and "p_anger" in part:
            scores[path.stem] = (part[[f"p_{c}" for c in FER2013_EMOTIONS]].to_numpy().argmax(1) == part["emotion"]).mean()
            sizes[path.stem] = about["n_parameters"]
    best = max(scores, key=scores.get)
    assert claims.best_model(ROOT) == best
    small = [name for name in scores if sizes[name] < sizes[best]]
    assert claims.best_model(ROOT, most_parameters=sizes[best] - 1) == max(small, key=scores.get)


def test_rare_minus_common_by_hand():
    y = np.repeat([FER2013_EMOTIONS.index(name) for name in ("surprise", "anger", "neutral", "happiness", "disgust")], 4)
    p = y.copy()
    p[:4] = p[8]  # no surprise is found, half of neutral is, and no disgust, which does not count
    p[8:10], p[16:] = p[4], p[0]
    assert claims.rare_minus_common(y, p) == pytest.approx((0 + 1) / 2 - (0.5 + 1) / 2)
    assert math.isnan(claims.rare_minus_common(y[4:], p[4:]))


# --- every printed number is in a ledger --------------------------------------------------------------------------------------

# Numbers in each paper's tables, counted in its text. Not counted: headings, a size that a name repeats (CAKE-3 has 3), and the
# threshold T = 1.00 that Table IV prints eight times. Figure 4 of the cascade paper is a table; its confusion matrices, 8 x 7 x 7
# numbers, are `cascade.SUBMISSIONS`.
PRINTED = {
    "emotions_classification": {"Table 1": 2 * 7, "Table 2": 7 + 2 + 1, "Table 3": 4},
    "dimensional_vad": {"Table I": 27, "Table II": 4 * 6, "Table III": 4 * 9, "Table IV": 3 + 8 * 2},
    "cake": {"Table 1": 12 * 2, "Table 2": 13 + 8, "Table 3": 9 * 2},
    "cascade_finetuning": {"Figure 4": 8 * 2},
}


@pytest.mark.parametrize("paper, table", [(paper, table) for paper, tables in PRINTED.items() for table in tables])
def test_every_number_of_a_table_is_in_the_ledger(paper, table):
    rows = [c for c in claims.read_claims(paper) if re.match(rf"{table}\b", c.where) and c.kind not in ("ordering", "question")]
    assert len(rows) == PRINTED[paper][table]


def test_numbers_that_stand_in_the_text_only():
    value = {(c.paper, c.id): c.paper_value for paper in PRINTED for c in claims.read_claims(paper)}
    assert value["cake", "s2-train-sfew"] == 871 and value["emotions_classification", "s1-controlled"] == 98.9
    assert value["cascade_finetuning", "s1-keywords"] == 184 and value["cascade_finetuning", "s41-sfew"] == 921
    assert value["dimensional_vad", "s7-naab-mixed-mean"] == 38.8 and value["dimensional_vad", "s6-black-women"] == 4


# What printed arithmetic does not add up, and why: each recomputed by hand from the papers and from public counts.
DOES_NOT_ADD_UP = {
    ("emotions_classification", "t1-train-surprise"): ("misprint", 28709 - (3995 + 436 + 4097 + 7215 + 4965 + 4830)),
    ("emotions_classification", "s32-convolutions"): ("misprint", 4 * 2 * 2),
    ("emotions_classification", "s45-resnet50"): ("inconsistent", 48.53),
    ("emotions_classification", "s45-resnet18"): ("inconsistent", 64.25),
    ("cake", "s2-train-rafdb"): ("unexplained", 12271),
    ("cake", "s33-parameters"): ("unexplained", 11.176512),
    ("cake", "t3-sd-rafdb"): ("inconsistent", 0.5),
}


def test_what_does_not_add_up_has_an_outcome_and_nothing_else_has():
    found = {}
    for paper in PRINTED:
        ledger = claims.read_claims(paper)
        values = {c.id: c.paper_value for c in ledger}
        for c in (c for c in ledger if c.kind == "arithmetic"):
            exact = claims.recompute(c, values)
            if c.outcome or not claims.agrees(c.paper_value, exact, c.decimals):
                found[paper, c.id] = (c.outcome, pytest.approx(exact))
    assert found == DOES_NOT_ADD_UP


@pytest.mark.parametrize("paper, claim, value", [  # what a charitable reader need not doubt
    ("cascade_finetuning", "direct", 100 * 163 / 431), ("cascade_finetuning", "s41-gain-fer", 10), ("emotions_classification", "s42-beats-baseline", 2)])
def test_a_charitable_reading_is_what_is_checked(paper, claim, value):
    ledger = {c.id: c for c in claims.read_claims(paper)}
    assert ledger[claim].reading and claims.recompute(ledger[claim], {k: c.paper_value for k, c in ledger.items()}) == pytest.approx(value)


def test_the_share_of_rafdb_fits_the_printed_size_only():
    share = next(c for c in claims.read_claims("cake") if c.id == "s2-share-rafdb")
    assert {n: claims.agrees(share.paper_value, 100 * n / (283901 + n + 871), share.decimals) for n in (11271, 12271)} == {11271: True, 12271: False}
