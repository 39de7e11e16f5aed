"""CAKE: losses by hand, runs trained together against runs alone, and spaces whose relation is known."""
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ortho_group

from fer_book import cake, claims, datasets, metrics
from fer_book.cake import AV, CAKE, DOMAINS, Heads, Plan, Samples
from fer_book.emotions import FER2013_EMOTIONS


def made_samples(n=420, d=12, seed=0, missing=()):
    """Faces of three domains whose label is the nearest of seven fixed directions, with votes in the first domain; `missing` classes are in no face."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(7, d))
    for k in missing:
        directions[k] = 0
        directions[k, 0] = -1e3
    x = rng.normal(size=(n, d))
    x[:, 0] = np.abs(x[:, 0])
    y, domain = (x @ directions.T).argmax(1), np.arange(n) % 3
    vad = np.where((domain == 0)[:, None], np.tanh(x[:, :3]), np.nan)
    split = np.array(["train", "train", "valid", "test", "test"])[np.arange(n) // 3 % 5]
    frame = pd.DataFrame({"dataset": np.array(DOMAINS)[domain], "row": np.arange(n) // 3, "split": split, "emotion": y, "leaked": False,
                          "valence": vad[:, 0], "arousal": vad[:, 1], "dominance": vad[:, 2], "entropy": np.where(domain == 0, rng.random(n), np.nan)})
    x = torch.from_numpy(x.astype(np.float32))
    samples = Samples(x, torch.from_numpy(y), torch.from_numpy(domain), torch.zeros(n, 0), frame, x.mean(0), x.std(0))
    return replace(samples, given=cake.predict_vad(samples, 1.0))


def test_weights_by_hand():
    y, domain = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert torch.allclose(cake.class_weights(y, domain, 3), torch.tensor([4 / 9, 4 / 9, 4 / 9, 4 / 3, 1 / 3, 1 / 3]))
    assert torch.allclose(cake.domain_weights(domain), torch.tensor([1 / math.log(4)] * 4 + [1 / math.log(2)] * 2))


def test_class_weights_fit_the_uniform_distribution():
    samples = made_samples()
    weight = cake.class_weights(samples.y, samples.domain)
    for j in range(3):
        here = samples.domain == j
        sums = [float(weight[here & (samples.y == k)].sum()) for k in range(7) if (here & (samples.y == k)).any()]
        assert np.allclose(sums, float(here.sum()) / 7)


def test_loss_is_equation_1_term_by_term():
    rng = np.random.default_rng(0)
    logits, y, domain = rng.normal(size=(2, 9, 3, 7)), rng.integers(7, size=9), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    n_total = [4, 3, 2]
    expected = np.zeros(2)
    for r in range(2):
        for i in range(9):
            for j in range(3):
                w_dataset = 1 / math.log(n_total[j]) if domain[i] == j else 0.0
                n_class = sum(domain[m] == j and y[m] == y[i] for m in range(9))
                w_class = n_total[j] / (n_class * 7) if n_class else 0.0
                e = -math.log(math.exp(logits[r, i, j, y[i]]) / sum(math.exp(v) for v in logits[r, i, j]))
                expected[r] += w_class * w_dataset * e / 9
    y, domain = torch.from_numpy(y), torch.from_numpy(domain)
    weight = (cake.class_weights(y, domain) * cake.domain_weights(domain)).double()
    assert np.allclose(cake.multi_domain_loss(torch.from_numpy(logits), y, domain, weight).numpy(), expected, rtol=1e-6)


def test_a_face_teaches_only_its_own_classifier():
    heads, samples = Heads(CAKE(2), 12, [0, 1]), made_samples(60)
    only = samples[(samples.domain == 1).numpy()]
    cake.multi_domain_loss(heads(only.x, only.given), only.y, only.domain, torch.ones(len(only))).sum().backward()
    gradient = heads.classify.grad.unflatten(2, (3, 7)).abs().sum((0, 1, 3))
    assert gradient[1] > 0 and gradient[0] == gradient[2] == 0
    assert (heads.encode.grad.abs().sum((1, 2)) > 0).all()


def test_heads_are_two_linear_layers():
    samples, setting = made_samples(30), AV(3)
    heads = Heads(setting, 12, [4, 5])
    for r in range(2):
        z = torch.cat([samples.given[:, :2], F.linear(samples.x, heads.encode[r].T, heads.encode_bias[r, 0])], 1)
        logits = F.linear(z, heads.classify[r].T, heads.classify_bias[r, 0]).reshape(-1, 3, 7)
        assert torch.allclose(heads(samples.x, samples.given)[r], logits, atol=1e-5)
    assert setting.dim == 5 and AV(0).dim == 2 and heads(samples.x, samples.given).shape == (2, 30, 3, 7)
    on_sphere = Heads(cake.CAKE3_NORM, 12, [0]).embed(samples.x, samples.given)
    assert torch.allclose(on_sphere.norm(dim=2), torch.ones(1, 30))


def test_a_run_among_others_is_the_run_alone():
    samples, plan = made_samples().split("train"), Plan(epochs=3, batch_size=32)
    together, alone = cake.fit_heads(CAKE(3), samples, [0, 1, 2], plan), cake.fit_heads(CAKE(3), samples, [1], plan)
    for name, value in alone.state_dict().items():
        assert torch.allclose(together.state_dict()[name][1], value[0], atol=1e-4), name
    again = cake.fit_heads(CAKE(3), samples, [0, 1, 2], plan)
    assert all(torch.equal(a, b) for a, b in zip(together.parameters(), again.parameters()))
    assert not torch.allclose(together.encode[0], together.encode[1], atol=1e-2)


def test_training_matches_plain_layers_in_float64():
    """One run against nn.Linear and nn.CrossEntropyLoss by hand, without dropout, in double precision."""
    samples = made_samples(90).split("train")
    plan = Plan(epochs=2, batch_size=16, dropout=0.0)
    heads = cake.fit_heads(CAKE(2), samples, [7], plan)
    start = Heads(CAKE(2), 12, [7])
    encoder, classifiers = torch.nn.Linear(12, 2).double(), torch.nn.ModuleList(torch.nn.Linear(2, 7) for _ in range(3)).double()
    with torch.no_grad():
        encoder.weight.copy_(start.encode[0].T), encoder.bias.copy_(start.encode_bias[0, 0])
        for j, layer in enumerate(classifiers):
            layer.weight.copy_(start.classify[0].T[7 * j:7 * j + 7]), layer.bias.copy_(start.classify_bias[0, 0, 7 * j:7 * j + 7])
    optimiser = torch.optim.Adam([{"params": encoder.parameters(), "lr": plan.lr / 12**0.5}, {"params": classifiers.parameters(), "lr": plan.lr / 2**0.5}])
    generator, weight = torch.Generator().manual_seed(0), cake.multi_domain_weights(samples).double()
    for _ in range(plan.epochs):
        for at in torch.randperm(len(samples), generator=generator).split(plan.batch_size):
            torch.rand(len(at), 12, generator=generator)
            z, loss = encoder(samples.x[at].double()), 0.0
            for j, layer in enumerate(classifiers):
                here = samples.domain[at] == j
                loss = loss + (weight[at][here] * F.cross_entropy(layer(z[here]), samples.y[at][here], reduction="none")).sum() / len(at)
            optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert torch.allclose(heads.encode[0].double(), encoder.weight.T, atol=1e-4)
    assert torch.allclose(heads.classify[0, :, 7:14].double(), classifiers[1].weight.T, atol=1e-4)


def test_alignment_pulls_the_dimensions_to_the_crowd():
    samples = made_samples(900).split("train")
    free, held = (cake.fit_heads(CAKE(3), samples, [0], Plan(epochs=12, batch_size=64, lr=0.1, align=a)) for a in (0.0, 30.0))
    known = ~samples.vad.isnan().any(1)
    far, near = (float(((h.embed(samples.x, samples.given)[0, known] - samples.vad[known]) ** 2).mean()) for h in (free, held))
    assert near < 0.1 < far


def test_more_than_7_dimensions_add_no_capacity():
    """Encoder and classifiers multiply to a map of rank 21 at most, whatever k is."""
    heads = Heads(CAKE(64), 40, [0])
    assert int(torch.linalg.matrix_rank((heads.encode[0] @ heads.classify[0]).double(), rtol=1e-5)) == 21


def test_predicted_vad_is_ridge_regression():
    samples = made_samples()
    known = torch.tensor(((samples.frame["split"] == "train") & samples.frame["valence"].notna()).to_numpy())
    x, y = samples.x[known].double().numpy(), samples.vad[known].double().numpy()
    design = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.diag([5.0] * 12 + [0.0])
    beta = np.linalg.solve(design.T @ design + penalty, design.T @ y)
    expected = np.hstack([samples.x.double().numpy(), np.ones((len(samples), 1))]) @ beta
    assert np.allclose(cake.predict_vad(samples, 5.0).numpy(), expected, atol=1e-4)


def test_canonical_correlations_against_known_spaces():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 3))
    b = a @ rng.normal(size=(3, 3)) + 5
    assert np.allclose(cake.canonical_correlations(a, b), 1)
    assert (cake.canonical_correlations(a, rng.normal(size=(4000, 3))) < 0.08).all()
    noisy = np.c_[0.6 * a[:, 0] + 0.8 * rng.normal(size=4000), rng.normal(size=4000)]
    assert np.allclose(cake.canonical_correlations(a, noisy), [0.6, 0], atol=0.05)
    moved = a @ rng.normal(size=(3, 3)) - 2
    assert np.allclose(cake.canonical_correlations(moved, noisy), cake.canonical_correlations(a, noisy))
    assert cake.multiple_correlation(a, noisy[:, 0]) == pytest.approx(0.6, abs=0.05)


def test_spare_direction_has_nothing_to_do_with_the_two_others():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(500, 3))
    b = a[:, :2] @ rng.normal(size=(2, 2)) + 0.3 * rng.normal(size=(500, 2))
    spare = cake.spare_variate(a, b)
    assert np.abs([np.corrcoef(spare, b[:, i])[0, 1] for i in range(2)]).max() < 1e-10 and spare.var() > 0
    assert np.allclose(cake.residual(b[:, 0], a).T @ a, 0, atol=1e-9)


def test_dominance_that_is_not_there_is_not_found():
    """A space of valence, arousal and noise knows all of both and nothing of what they do not explain of dominance."""
    rng = np.random.default_rng(2)
    vad = rng.normal(size=(5000, 3))
    vad[:, 2] += 2 * vad[:, 0]
    without = cake.compare_spaces(np.c_[vad[:, :2], rng.normal(size=5000)], vad)
    assert without["valence"] == pytest.approx(1) and without["dominance"] > 0.8 and without["dominance_left"] < 0.05 and without["third"] < 0.05
    whole = cake.compare_spaces(vad @ rng.normal(size=(3, 3)), vad)
    assert whole["dominance_left"] == pytest.approx(1) and whole["spare"] == pytest.approx(1)
    vad[0] = np.nan
    assert np.isfinite(list(cake.compare_spaces(vad @ np.eye(3) + np.nan_to_num(-vad) * 0, vad).values())).all()


def test_circular_order():
    angles = np.radians([0, 50, 110, 200, 260, 300])
    assert cake.cyclic_agreement(angles, angles + 2.0) == 1 and cake.cyclic_agreement(angles, 1.0 - angles) == 1
    swapped = angles[[1, 0, 2, 3, 4, 5]]
    assert 0.5 <= cake.cyclic_agreement(angles, swapped) == 1 - 4 / 20  # every triple with both neighbours turns
    assert cake.cyclic_p(1.0) == pytest.approx(2 / math.factorial(5)) and cake.cyclic_p(0.5) == 1


def test_procrustes_and_order_of_a_turned_map():
    rng = np.random.default_rng(3)
    vad, y = rng.normal(size=(700, 3)), np.arange(700) % 7
    vad[:, :2] += 4 * np.c_[np.cos(np.arange(7)), np.sin(np.arange(7))][y] * (y < 6)[:, None]
    turn = ortho_group.rvs(2, random_state=0)
    facts = cake.map_facts(3 * vad[:, :2] @ turn + 1, y, vad, np.array([6, 6, 0]))
    assert facts["order"] == 1 and facts["procrustes"] == pytest.approx(0, abs=1e-12) and facts["neutral_at_origin"] == pytest.approx(2 / 3)
    assert facts["neutral_rank"] == 1


def test_a_sphere_is_seen_from_neutral():
    rng = np.random.default_rng(5)
    vad, y = 0.01 * rng.normal(size=(700, 3)), np.arange(700) % 7
    vad[:, :2] += np.c_[np.cos(np.arange(7)), np.sin(np.arange(7))][y] * (y < 6)[:, None]
    bent = np.c_[0.02 * vad[:, :2], np.ones(700)]  # a small piece of a large sphere, wherever it lies
    bent = bent / np.linalg.norm(bent, axis=1, keepdims=True) @ ortho_group.rvs(3, random_state=1)
    facts = cake.map_facts(bent, y, vad)
    assert facts["order"] == 1 and facts["procrustes"] < 1e-3 and facts["neutral_rank"] == 1 and np.isnan(facts["neutral_at_origin"])
    wide = np.c_[np.cos(2.0 * np.arange(7)) * (np.arange(7) < 6), np.sin(2.0 * np.arange(7)) * (np.arange(7) < 6), np.where(np.arange(7) < 6, 0.2, 1)]
    angles = cake.angles_around_neutral(wide / np.linalg.norm(wide, axis=1, keepdims=True) @ ortho_group.rvs(3, random_state=2))
    assert cake.cyclic_agreement(angles, 2.0 * np.arange(6)) == 1


def test_a_class_without_faces_leaves_the_map_of_the_others():
    rng = np.random.default_rng(4)
    y = np.repeat([0, 2, 3, 4, 5, 6], 50)
    z = rng.normal(size=(300, 2)) * 0.1 + np.c_[np.cos(y), np.sin(y)] * (y < 6)[:, None]
    facts = cake.map_facts(z, y, np.c_[-z, z[:, 0]], np.array([6]))
    assert np.isnan(cake.class_centres(z, y)[1]).all() and facts["order"] == 1 and facts["procrustes"] == pytest.approx(0, abs=1e-12)


def test_map_names_what_the_classifier_names():
    samples = made_samples()
    heads = cake.fit_heads(CAKE(2), samples, [0, 1], Plan(epochs=2, batch_size=64))
    across, up = np.linspace(-1, 1, 5), np.linspace(-2, 2, 4)
    drawn = cake.emotion_map(heads, 1, across, up)
    z = np.array([across[3], up[1]])
    logits = (z @ heads.classify[1].numpy() + heads.classify_bias[1, 0].numpy()).reshape(3, 7)
    assert drawn.shape == (3, 4, 5) and (drawn[:, 1, 3] == logits.argmax(1)).all()
    sphere = Heads(cake.CAKE3_NORM, 12, [0]).requires_grad_(False)
    pole = cake.emotion_map(sphere, 0, np.linspace(-3, 3, 6), np.array([np.pi / 2]))
    assert (pole == pole[:, :, :1]).all()  # every longitude meets at the pole


def test_arithmetic_checks():
    values = {"a": 283901.0, "b": 11271.0}
    assert cake.share_of(values, "871", "a", "b", "871") == pytest.approx(100 * 871 / 296043) and cake.share_of(values, "a", "a") == 100
    assert cake.official_size(values, "affectnet") == 283901


def test_cut_covers_a_fifth_of_the_side():
    faces = cake.draw_domains(60)["fer2013"]
    cut = cake.cut(faces, 3)
    changed = (cut.images != faces.images).sum((1, 2)).max()
    assert 0 < changed <= 10**2  # 45 of 224 is 9.6 of 48 pixels and (cake.cut(faces, 3).images == cut.images).all() and (cake.cut(faces, 4).images != cut.images).any()


def test_scores_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    samples = made_samples()
    named = rng.integers(7, size=(2, len(samples), 3)).astype(np.int8)
    scored = cake.scores(cake.confusions(CAKE(2), [3, 4], named, samples))
    row = scored[(scored["seed"] == 4) & (scored["head"] == DOMAINS[2]) & (scored["dataset"] == DOMAINS[0])].iloc[0]
    here = samples.domain.numpy() == 0
    assert row["macro_f1"] == pytest.approx(metrics.macro_f1(samples.y.numpy()[here], named[1, here, 2].astype(int)))
    assert row["accuracy"] == pytest.approx(np.mean(samples.y.numpy()[here] == named[1, here, 2])) and row["faces"] == here.sum()
    home = scored[(scored["seed"] == 3) & (scored["head"] == scored["dataset"])]
    weighed = cake.multi_domain_f1(scored).query("seed == 3")["macro_f1"].item()
    assert weighed == pytest.approx(np.average(home["macro_f1"], weights=home["faces"]))


def test_hold_out_keeps_the_rarest_class_on_both_sides():
    labels = {"a": [0, 0, 1], "b": [0, 1, 1], "c": [0, 0, 0], "d": [1, 0]}
    frame = pd.DataFrame([(s, e) for s, es in labels.items() for e in es], columns=["subject", "emotion"]).assign(split="train")
    frame["row"] = range(len(frame))
    faces = datasets.FaceTable(np.zeros((len(frame), 8, 8), np.uint8), frame, FER2013_EMOTIONS[:2], "film")
    held = cake.hold_out(faces, 2).frame
    sides = held.groupby("split")["emotion"].value_counts().unstack()
    assert sides.loc[["train", "test"]].min().min() == 2 and held.groupby("subject")["split"].nunique().max() == 1


def test_shuffled_labels_stay_in_their_domain():
    samples = made_samples()
    mixed = cake.shuffled(samples)
    assert not torch.equal(mixed.y, samples.y) and torch.equal(mixed.x, samples.x)
    for j in range(3):
        assert torch.equal(mixed.y[samples.domain == j].sort().values, samples.y[samples.domain == j].sort().values)


@pytest.fixture(scope="module")
def small_study(tmp_path_factory):
    """A recorded study on drawn faces whose features are their pixels."""
    shrink = lambda faces: np.stack([image[::4, ::4].ravel() for image in faces.images]).astype(np.float32) / 255
    out = tmp_path_factory.mktemp("home") / "results"
    folder = cake.record(cake.Source("emotion", "pixels", shrink), "smoke", out, cake.draw_domains(700), seeds=[0, 1], plan=Plan(epochs=4, batch_size=64),
                         settings=(CAKE(1), CAKE(2), CAKE(3), AV(0), AV(1), cake.CAKE3_NORM), sizes=(1, 2), report=lambda line: None)
    return folder


def test_a_recorded_study_reads_back(small_study):
    assert claims.read_run(small_study).recipe == "cake-emotion"
    runs = {(run.recipe, run.seed): run for run in claims.study_runs(small_study)}
    scored = cake.scores(pd.read_parquet(small_study / "confusions.parquet"))
    for head, dataset, name in (("fer2013", "fer2013", "cake-emotion/cake-3-fer2013"), ("faces_news", "faces_film", "cake-emotion/cake-3-faces_news-on-faces_film")):
        row = scored.query("setting == 'cake-3' and seed == 1 and head == @head and dataset == @dataset").iloc[0]
        table = runs[name, 1].part("test")
        named = table.filter(regex="^p_").to_numpy().argmax(1)
        assert metrics.macro_f1(table["emotion"].to_numpy(), named) == pytest.approx(row["macro_f1"])
        assert not runs[name, 1].counts
    assert not runs["cake-emotion/va+1-fer2013", 0].predictions.empty and not runs["cake-emotion/av-faces_film", 0].predictions.empty


def test_studies_are_found_by_kind_then_by_network(tmp_path):
    for day, (kind, network) in enumerate([("emotion", "a"), ("face", "b"), ("emotion", "c"), ("emotion", "c")]):
        folder = tmp_path / "results" / f"run-{day}"
        folder.mkdir(parents=True)
        (folder / "heads.safetensors").touch()
        told = {"finished": f"2024-01-0{day + 1}", "recipe": {"name": f"cake-{kind}", "model_args": {"network": network}}}
        (folder / "run.json").write_text(json.dumps(told))
    assert {kind: folder.name for kind, folder in cake.recorded(tmp_path).items()} == {"emotion": "run-3", "face": "run-1", "a": "run-0"}


def test_only_studies_of_an_emotion_network_answer_the_papers_rows(small_study, tmp_path):
    shutil.copytree(small_study, tmp_path / "face")
    record = json.loads((tmp_path / "face" / "run.json").read_text())
    record["recipe"]["name"] = "cake-face"
    (tmp_path / "face" / "run.json").write_text(json.dumps(record))
    shutil.move(tmp_path / "face", tmp_path / record["id"])
    assert {run.recipe.partition("/")[0] for run in claims.study_runs(tmp_path / record["id"])} == {"cake-face"}
    rows = [name for claim in claims.read_claims("cake") if claim.trained for side in claim.sides for name in side]
    assert any(name.startswith("cake-emotion/") for name in rows) and not any(name.startswith("cake-face/") for name in rows)


def test_recorded_heads_give_the_recorded_points(small_study):
    heads, mean, sd = cake.read_heads(small_study)
    assert set(heads) == {"cake-2", "cake-3", "av", "av-1", "cake-3-norm"}
    points = pd.read_parquet(small_study / "points.parquet").query("dataset == 'fer2013'")
    faces = cake.draw_domains(700)["fer2013"]
    faces = faces[faces.frame["row"].isin(points["row"]).to_numpy()]
    x = torch.from_numpy(np.stack([image[::4, ::4].ravel() for image in faces.images]).astype(np.float32) / 255)
    z = heads["cake-3"].embed((x - mean) / sd, torch.zeros(len(x), 0))[0].numpy()
    assert np.allclose(z, points[["k1", "k2", "k3"]], atol=0.02)


def test_missing_class_gives_finite_training():
    samples = made_samples(missing=(1,)).split("train")
    assert not (samples.y == 1).any()
    heads = cake.fit_heads(CAKE(2), samples, [0], Plan(epochs=2, batch_size=64))
    assert all(p.isfinite().all() for p in heads.parameters())
