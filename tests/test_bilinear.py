"""Second-order pooling against loops in float64, hand-computed cases, gradients, and features of every size and kind."""
import itertools

import numpy as np
import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from fer_book import backbones, bilinear, training

TINY = {"channels": 8, "reduction": 6}


def features(seed=0, n=2, c=5, h=3, w=4, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, c, h, w))).to(dtype)


def naive_pool(x):
    """Signed roots of the mean outer product, length 1, in loops."""
    out = np.zeros((len(x), x.shape[1] ** 2))
    for n, face in enumerate(x.double().numpy()):
        columns = face.reshape(len(face), -1)
        for i, j in itertools.product(range(len(face)), repeat=2):
            g = sum(a * b for a, b in zip(columns[i], columns[j])) / columns.shape[1]
            out[n, i * len(face) + j] = np.sign(g) * abs(g) ** 0.5
        length = np.sqrt((out[n] ** 2).sum())
        out[n] /= length if length else 1
    return out


def naive_low_rank(x, positive, negative):
    out = np.zeros((len(x), len(positive)))
    for n, face in enumerate(x.double().numpy()):
        columns = face.reshape(len(face), -1)
        g = columns @ columns.T
        g /= np.linalg.norm(g) or 1
        for k, (u, v) in enumerate(zip(positive.double().numpy(), negative.double().numpy())):
            out[n, k] = ((u @ u.T - v @ v.T) * g).sum()
    return out


def naive_sketch(pool, x):
    out = np.zeros((len(x), pool.dim))
    for n, face in enumerate(x.double().numpy()):
        columns = face.reshape(len(face), -1) / np.abs(face).max()
        for i, j in itertools.product(range(len(face)), repeat=2):
            cell = int(pool.hashes[0, i] + pool.hashes[1, j]) % pool.dim
            out[n, cell] += float(pool.signs[0, i] * pool.signs[1, j]) * np.mean(columns[i] * columns[j])
    return out


def factors(k=3, c=5, r=2, seed=1):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(k, c, r))) for _ in range(2)]


# --- against loops -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("h, w", [(1, 1), (1, 3), (4, 4)])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_bilinear_pool_equals_loops(h, w, dtype, close):
    x = features(h=h, w=w)
    ours = bilinear.bilinear_pool(x.to(dtype))
    assert ours.shape == (2, 25) and ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(ours.double().numpy(), naive_pool(x), atol=close)


@pytest.mark.parametrize("h, w", [(1, 1), (1, 3), (4, 4)])
def test_low_rank_equals_loops_with_either_gram_matrix(h, w):
    x, (u, v) = features(h=h, w=w), factors()
    np.testing.assert_allclose(bilinear.low_rank_bilinear(x, u, v).numpy(), naive_low_rank(x, u, v), rtol=1e-10)
    np.testing.assert_allclose(bilinear.low_rank_bilinear(x.float(), u.float(), v.float()).double().numpy(), naive_low_rank(x, u, v), atol=1e-5)


def test_low_rank_never_forms_the_matrix():
    """The largest tensor kept for the backward pass is smaller than one C x C matrix."""
    sizes = []
    x, (u, v) = torch.randn(1, 256, 4, 4, requires_grad=True), [t.float().requires_grad_() for t in factors(c=256)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        bilinear.low_rank_bilinear(x, u, v)
    assert 0 < max(sizes) < 256 * 256 / 4


def test_full_rank_factors_give_any_linear_output():
    x, rng = features(), np.random.default_rng(3)
    w = rng.normal(size=(5, 5))
    values, vectors = np.linalg.eigh((w + w.T) / 2)
    root = vectors * np.sqrt(np.abs(values))
    u, v = (torch.from_numpy(root * (sign * values > 0))[None] for sign in (1, -1))
    g = torch.einsum("ncp,ndp->ncd", x.flatten(2), x.flatten(2)).numpy()
    expected = [(w * m).sum() / np.linalg.norm(m) for m in g]
    np.testing.assert_allclose(bilinear.low_rank_bilinear(x, u, v)[:, 0].numpy(), expected)


def test_compact_pool_equals_loops_and_is_unbiased():
    x = features(c=4)
    pool = bilinear.CompactBilinear(4, dim=16, seed=3).double()
    columns = x.flatten(2) / x.abs().amax((1, 2, 3))[:, None, None]
    np.testing.assert_allclose(pool.sketch(columns).numpy(), naive_sketch(pool, x), atol=1e-12)
    np.testing.assert_allclose(pool(x).norm(dim=1).numpy(), 1)
    exact = torch.einsum("cp,dp->cd", columns[0], columns[0]).flatten() @ torch.einsum("cp,dp->cd", columns[1], columns[1]).flatten() / columns.shape[2] ** 2
    products = []
    for seed in range(400):
        a, b = bilinear.CompactBilinear(4, dim=64, seed=seed).double().sketch(columns)
        products.append(float(a @ b))
    assert abs(np.mean(products) - float(exact)) < 4 * np.std(products) / 20


def test_bilinear_pool_by_hand():
    x = torch.tensor([[[[1.0, 1.0]], [[1.0, -3.0]]]])  # two features at two places: mean products 1, -1, -1, 5
    length = np.sqrt(1 + 1 + 1 + 5)
    np.testing.assert_allclose(bilinear.bilinear_pool(x).numpy(), [[1 / length, -1 / length, -1 / length, np.sqrt(5) / length]], rtol=1e-6)


# --- properties --------------------------------------------------------------------------------------------------------------

def test_pooling_forgets_places_scale_and_sign():
    x = features(dtype=torch.float32)
    turned = x.flatten(2)[:, :, torch.randperm(12, generator=torch.Generator().manual_seed(0))].reshape(x.shape)
    for changed in (turned, 7.5 * x, -x, 1e-6 * x):
        torch.testing.assert_close(bilinear.bilinear_pool(changed), bilinear.bilinear_pool(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 2, 2), (1, 6, 1, 2)])
def test_gradients(shape):
    n, c, h, w = shape
    x = features(5, n, c, h, w).requires_grad_()
    u, v = (t.requires_grad_() for t in factors(2, c))
    assert torch.autograd.gradcheck(bilinear.bilinear_pool, x)
    assert torch.autograd.gradcheck(bilinear.low_rank_bilinear, (x, u, v))
    assert torch.autograd.gradcheck(bilinear.CompactBilinear(c, dim=8).double(), x)
    assert torch.autograd.gradcheck(bilinear.signed_root, torch.tensor([-4.0, -1e-3, 2e-7, 0.3], dtype=torch.float64, requires_grad=True), eps=1e-9, atol=1e-3)


KINDS = {"zero": lambda s: torch.zeros(s), "constant": lambda s: torch.full(s, 3.0), "huge": lambda s: 1e4 * torch.randn(s), "all 1e4": lambda s: torch.full(s, 1e4),
         "beyond float16 when squared": lambda s: 6e4 * torch.rand(s), "tiny": lambda s: 1e-20 * torch.randn(s), "half of the features dead": lambda s: torch.randn(s).relu() * (torch.arange(s[1]) % 2)[None, :, None, None],
         "one face zero": lambda s: torch.randn(s) * torch.arange(s[0]).reshape(-1, 1, 1, 1)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("dtype, amp", [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, False)])
def test_values_and_gradients_are_finite(kind, side, dtype, amp):
    torch.manual_seed(0)
    x = KINDS[kind]((2, 8, side, side)).to(dtype)
    for name, head in bilinear.HEADS.items():
        options = {"dim": 32} if name == "compact" else {}
        head = head(8, 3, 6, **options)
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            y = head(x if amp or name not in ("global", "matched") else x.float())
        y.float().square().sum().backward()
        assert torch.isfinite(y).all() and torch.isfinite(x.grad).all(), name
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in head.parameters()), name


def test_huge_features_are_as_exact_as_small_ones():
    x = features(dtype=torch.float32)
    torch.testing.assert_close(bilinear.bilinear_pool(1e30 * x), bilinear.bilinear_pool(x))
    u, v = (t.float() for t in factors())
    torch.testing.assert_close(bilinear.low_rank_bilinear(1e30 * x, u, v), bilinear.low_rank_bilinear(x, u, v))


@pytest.mark.parametrize("pool", [bilinear.bilinear_pool, lambda x: bilinear.low_rank_bilinear(x, *factors()), bilinear.CompactBilinear(5, 8)])
def test_other_shapes_are_refused(pool):
    with pytest.raises(ValueError, match=r"the shape \(N, C, H, W\), not \(2, 5, 3\)"):
        pool(torch.zeros(2, 5, 3))


# --- networks ----------------------------------------------------------------------------------------------------------------

class TinyBody(nn.Module):
    """A body as `backbones.body` gives them, small; its blocks are those of a ResNet."""

    def __init__(self, block=BasicBlock, width=12):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=4)
        self.layer = nn.Sequential(block(width, width // block.expansion), block(width, width // block.expansion))
        self.n_features, self.mean, self.sd = width, (9.0,), (2.0,)

    def forward(self, x):
        return self.layer(self.stem(x))


@pytest.fixture
def tiny_body(monkeypatch):
    monkeypatch.setattr(backbones, "body", lambda name, weights="", in_channels=3: TinyBody(Bottleneck if name == "bottleneck" else BasicBlock))


@pytest.mark.parametrize("pooling", bilinear.HEADS)
@pytest.mark.parametrize("outputs", [2, 3])
def test_networks_of_every_pooling(tiny_body, pooling, outputs):
    net = bilinear.build("basic", pooling, outputs, **TINY)
    y = net(torch.randn(4, 1, 20, 20))
    assert y.shape == (4, outputs) and net.mean == (9.0,) and net.sd == (2.0,)
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert abs(float(y.detach().mean()) - 5) < 4, "outputs start near the middle of the scale"


def test_body_is_cut_after_the_last_3x3_convolution(tiny_body):
    net = bilinear.build("bottleneck", "bilinear", 3, **TINY)
    whole = TinyBody(Bottleneck)
    whole.load_state_dict(net.body.state_dict(), strict=False)
    x = torch.randn(2, 1, 20, 20)
    block = whole.eval().layer[1]
    inner = block.layer if hasattr(block, "layer") else block
    expected = inner.act2(inner.bn2(inner.conv2(inner.act1(inner.bn1(inner.conv1(whole.layer[0](whole.stem(x))))))))
    torch.testing.assert_close(net.body.eval()(x), expected)
    assert isinstance(bilinear.build("bottleneck", "global", 3).body.layer[1], Bottleneck), "global pooling keeps the whole body"


def test_resnet50_gives_512_features_and_vgg_keeps_its_last_map():
    with torch.device("meta"):
        resnet = bilinear.build("resnet50", "bilinear", 3)
        assert isinstance(resnet.reduce, nn.Identity) and resnet.head.top[0].in_features == 512**2 and resnet.head.top[1].p == 0.3
        assert resnet.body(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 7, 7)
        assert bilinear.build("vgg16", "bilinear", 2).body(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 14, 14)
        assert bilinear.build("vgg16", "global", 2).body(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 7, 7)


def test_matched_head_has_as_many_parameters():
    for channels, reduction in ((128, 128), (64, 32)):
        a, b = (sum(p.numel() for p in bilinear.HEADS[k](channels, 3, reduction).parameters()) for k in ("bilinear", "matched"))
        assert abs(a / b - 1) < 0.02


def test_unknown_pooling(tiny_body):
    with pytest.raises(ValueError, match="there is no pooling 'max'; use one of global, bilinear"):
        bilinear.build("basic", "max", 3)


# --- recipes and benchmark ---------------------------------------------------------------------------------------------------

def test_recipes_say_what_the_paper_says():
    by_name = {r.name: r for r in bilinear.RECIPES}
    assert {f"{t}-{n}-{p}" for t in ("va", "vad") for n in ("vgg16", "resnet50") for p in ("global", "bilinear")} <= set(by_name)
    for name, recipe in by_name.items():
        paper = recipe.at("gpu")
        assert paper.outputs == ("valence", "arousal", "dominance")[:len(name.split("-")[0])] and paper.loss == "l2+l1"
        if "resnet50" in name and not name.endswith("code"):
            assert (paper.size, paper.lr, paper.step, paper.epochs, paper.l1_weight, paper.flip, paper.flip_at_test) == (224, 1e-3, (20, 0.5), 100, 2.0, True, True)
    code = by_name["vad-resnet50-bilinear-code"].at("gpu")
    assert (code.l1_weight, code.batch_size, code.schedule, code.lr, code.epochs, code.head_lr) == (1.0, 50, "poly", 1e-4, 500, 10.0)


def test_heads_of_one_network_have_equal_budgets():
    for profile, network in itertools.product(("cpu", "gpu"), ("dlib", "resnet18")):
        settings = []
        for recipe in bilinear.RECIPES:
            if recipe.name.startswith(f"vad-{network}-") and recipe.norms == "anew":
                s = recipe.at(profile).settings
                settings.append({k: v for k, v in s.items() if k not in ("name", "model_args")} | {k: v for k, v in s["model_args"].items() if k != "pooling"})
        assert len(settings) == 4 and all(s == settings[0] for s in settings)


def test_two_steps_of_training_lower_the_loss(tiny_body):
    torch.manual_seed(0)
    net, x, y = bilinear.build("basic", "bilinear", 3, **TINY), torch.randn(16, 1, 20, 20), torch.rand(16, 3) * 8 + 1
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.01), []
    for _ in range(12):
        losses.append(training.l2_l1_loss(net(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_bench_counts_memory():
    table = bilinear.bench_pooling(channels=(16, 32), batch=2, side=3, rounds=1).set_index(["channels", "pooling"])
    assert (table.xs("global", level="pooling")[["time / global", "memory / global"]] == 1).all(axis=None)
    full = table.xs("full", level="pooling")["megabytes"]
    assert full[32] * 1e6 >= 4 * (2 * 32**2 + 3 * 32**2) and full[32] > 3 * full[16]
    low = table.xs("low-rank", level="pooling")["megabytes"]
    assert low[32] / low[16] < 2.5 and (table["milliseconds"] > 0).all()


@pytest.mark.parametrize("pooling", bilinear.HEADS)
def test_a_network_in_half_precision_answers(pooling):
    net = bilinear.build("resnet18", pooling, 3, channels=16, reduction=8).eval().bfloat16()
    assert torch.isfinite(net(torch.rand(2, 3, 64, 64, dtype=torch.bfloat16))).all()
