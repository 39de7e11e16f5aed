"""Attributions against derivations by hand and against networks whose answer is known; curves and sanity checks."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.torch_core import TensorImage
from scipy import stats
from test_training import SMALL
from torch import nn

from fer_book import explain
from fer_book.explain import METHODS, area, attribute, centre_maps, deletion, insertion, random_maps, randomise, rank_correlation, ssim
from fer_book.training import Recipe, TrainedModel, build_model

VAD_RECIPE = replace(SMALL, target="vad", loss="l2+l1")


def tiny(seed: int = 0) -> nn.Sequential:
    """A smooth float64 network of 8x8 images: convolution, tanh, linear."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 64, 4)).double()


def images(n: int = 3, side: int = 8, channels: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(recipe: Recipe = SMALL, in_channels: int = 1, mean=120.0, sd=60.0) -> TrainedModel:
    torch.manual_seed(0)
    model = build_model(recipe, len(recipe.outputs or "abcdefg"), in_channels)
    return TrainedModel(model.eval(), recipe, tuple("abcdefg"), mean, sd, in_channels)


def faces(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_grad_cam_is_equations_5_to_8():
    net, x, target = tiny(), images(), [3, 1, 2]
    weight, bias = (p.detach().numpy() for p in net[0].parameters())
    padded = np.pad(x.numpy()[:, 0], ((0, 0), (1, 1), (1, 1)))
    positive = []
    for n, i in enumerate(target):
        A = np.array([[[(weight[s, 0] * padded[n, r:r + 3, c:c + 3]).sum() + bias[s] for c in range(8)] for r in range(8)] for s in range(3)])
        G = net[3].weight.detach().numpy()[i].reshape(3, 8, 8) * (1 - np.tanh(A) ** 2)  # Eq. 5
        alpha = [G[s].sum() / (8 * 8) for s in range(3)]  # Eqs. 6 and 7
        expected = np.maximum(sum(alpha[s] * A[s] for s in range(3)), 0)  # Eq. 8
        made = attribute(net, x, "grad-cam", target, "0")[n]
        assert made.dtype == np.float64 and np.allclose(made, expected, rtol=1e-10, atol=1e-14)
        positive.append(expected.max() > 0)
    assert sum(positive) >= 2
    assert np.array_equal(attribute(net, x, "grad-cam", target, net[0]), attribute(net, x, "grad-cam", target, "0"))


def test_grad_cam_before_an_in_place_relu():
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(128, 3)]
    in_place, plain = (nn.Sequential(conv, nn.ReLU(inplace), *head) for conv in [nn.Conv2d(1, 2, 3, padding=1)] for inplace in (True, False))
    x = images().float()
    made = [attribute(plain, x, "grad-cam", k, "0") for k in range(3)]
    assert np.allclose([attribute(in_place, x, "grad-cam", k, "0") for k in range(3)], made) and np.max(made) > 0


def test_integrated_gradients_are_complete():
    net, x = tiny(), images()
    with torch.no_grad():
        change = (net(x) - net(torch.zeros_like(x)))[:, 2].numpy()
    assert np.allclose(attribute(net, x, "integrated-gradients", 2).sum((1, 2)), change, atol=1e-9)
    smooth = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    mean, sd = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0)
    model = TrainedModel(smooth, replace(SMALL, size=16), ("a", "b"), mean, sd, 3)
    rgb = faces(2, 24, 24, 3)  # enlarged or shrunk inside: nothing of the score may get lost
    blank = np.broadcast_to(np.array(mean), rgb.shape).astype(np.uint8)
    with torch.no_grad():
        scores = [torch.log(torch.from_numpy(model(images))).diff(dim=1)[:, 0].numpy() for images in (rgb, blank)]
    made = [attribute(model, rgb, "integrated-gradients", k).sum((1, 2)) for k in (0, 1)]
    assert np.allclose(made[1] - made[0], scores[0] - scores[1], rtol=0.02, atol=2e-4)


def test_of_a_linear_network_everything_is_known():
    w = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2, bias=False).double())
    net[1].weight.data, x = w.flatten(1), images(channels=3)
    of_one, product = w[1].numpy(), (w[1] * x).numpy()
    assert np.allclose(attribute(net, x, "gradient", 1), of_one.sum(0))
    assert np.allclose(attribute(net, x, "saliency", 1), np.abs(of_one).max(0))
    assert np.allclose(attribute(net, x, "integrated-gradients", 1), product.sum(1))
    assert np.allclose(attribute(net, x, "occlusion", 1), product.sum(1))  # of 8 pixels the window is one
    best = net(x).argmax(1)
    assert np.array_equal(attribute(net, x, "gradient"), attribute(net, x, "gradient", best))


class ReadsOneQuadrant(nn.Module):
    def __init__(self, rows: slice, columns: slice):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.fill_(0.1)
            self.conv.bias.fill_(0)

    def forward(self, x):
        seen = self.conv(x)
        mask = torch.zeros_like(seen)
        mask[:, :, self.rows, self.columns] = 1
        score = (seen * mask).pow(2).sum((1, 2, 3))
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [slice(0, 24), slice(24, 48)])
@pytest.mark.parametrize("columns", [slice(0, 24), slice(24, 48)])
def test_a_network_that_reads_one_quadrant(method, rows, columns):
    x = torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    quadrant = np.zeros((48, 48), bool)
    quadrant[rows, columns] = True
    strength = np.abs(attribute(ReadsOneQuadrant(rows, columns), x if method != "grad-cam" else x * torch.from_numpy(quadrant), method, 1, "conv"))
    assert (strength[:, quadrant].sum(1) / strength.sum((1, 2)) > 0.85).all()


@pytest.mark.parametrize("method", METHODS)
def test_kinds_of_images_and_networks(method):
    grey, layer = trained(), "blocks.1.0"
    assert attribute(grey, faces(2, 16, 16), method, None, layer).shape == (2, 16, 16)
    assert attribute(grey, faces(2, 24, 24), method, 3, layer).shape == (2, 24, 24)
    assert attribute(grey, faces(0, 24, 24), method, None, layer).shape == (0, 24, 24)
    three = trained(in_channels=3, mean=(110.0, 120.0, 130.0), sd=(50.0, 60.0, 70.0))
    assert attribute(three, faces(2, 20, 20, 3), method, [0, 6], layer).shape == (2, 20, 20)
    from_grey = attribute(three, faces(2, 20, 20), method, 0, layer)
    assert from_grey.shape == (2, 20, 20) and np.isfinite(from_grey).all()
    dominance = attribute(trained(VAD_RECIPE), faces(2, 16, 16), method, 2, layer)
    assert dominance.shape == (2, 16, 16) and np.isfinite(dominance).all()
    net, x = tiny(), images()
    expected = attribute(net, x, method, 1, "0")
    with torch.no_grad():
        assert np.allclose(attribute(net, TensorImage(x), method, np.array([1, 1, 1]), "0"), expected, atol=1e-6)  # float32
    assert np.array_equal(attribute(net, x[:, 0].numpy(), method, torch.ones(3, dtype=torch.int32), "0"), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_as_it_was(method):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 3))
    net.train()
    net[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = images().float()
    first = attribute(net, x, method, 0, "0")
    assert np.array_equal(first, attribute(net, x, method, 0, "0"))  # no dropout while explaining
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(m.training for m in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5 and all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert not x.requires_grad


def test_maps_without_sign_rank_like_others():
    maps = np.array([[[0, 5], [9, 250]]])
    assert explain._ranks(maps.astype(np.uint8), (1, 2, 2)).tolist() == explain._ranks(maps, (1, 2, 2)).tolist() == [[[3, 2], [1, 0]]]


def test_deletion_and_insertion_by_hand():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False).double())
    net[1].weight.data = torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    x, maps = torch.ones(1, 1, 2, 2, dtype=torch.float64), np.array([[[0.1, 0.9], [0.5, 0.7]]])  # order: pixels 1, 3, 2, 0
    given = dict(target=0, steps=4, reference=torch.zeros_like(x))
    assert np.allclose(deletion(net, x, maps, score=nn.Identity(), **given), [[15, 13, 5, 1, 0]])
    assert np.allclose(insertion(net, x, maps, score=nn.Identity(), **given), [[0, 2, 10, 14, 15]])
    assert np.allclose(area(np.array([[15, 13, 5, 1, 0]])), (15 / 2 + 13 + 5 + 1) / 4)
    assert np.allclose(deletion(net, x, maps, **given), 1 / (1 + np.exp(-np.array([[15, 13, 5, 1, 0]]))))
    assert np.allclose(deletion(net, x, maps, score=nn.Identity(), target=0, steps=2, reference=torch.zeros_like(x)), [[15, 5, 0]])


def test_curves_meet_and_take_a_trained_model():
    model, x = trained(), faces(5, 24, 24)
    maps, target = random_maps((5, 24, 24)), np.arange(5)
    down, up = deletion(model, x, maps, target, steps=6), insertion(model, x, maps, target, steps=6)
    assert down.shape == up.shape == (5, 7) and np.allclose(down[:, 0], up[:, -1]) and np.allclose(down[:, -1], up[:, 0])
    at_16 = faces(5, 16, 16)
    assert np.allclose(deletion(model, at_16, maps[:, :16, :16], target)[:, 0], model(at_16)[np.arange(5), target], atol=1e-5)
    assert np.allclose(deletion(model, at_16, -maps[:, :16, :16], target, reference=at_16), model(at_16)[np.arange(5), target][:, None], atol=1e-5)


def test_curves_of_a_regression_are_its_outputs():
    vad, x = trained(VAD_RECIPE), faces(3, 16, 16)
    assert np.allclose(deletion(vad, x, random_maps(x.shape), 1, steps=2)[:, 0], vad(x)[:, 1], atol=1e-5)


def test_ties_go_in_no_spatial_order():
    ranks = explain._ranks(np.zeros((2, 30, 30)), (2, 30, 30))
    assert np.array_equal(np.sort(ranks.reshape(2, -1)), np.tile(np.arange(900), (2, 1)))
    assert abs(stats.spearmanr(ranks[0].ravel(), np.arange(900)).statistic) < 0.15


def test_baselines():
    centre, noise = centre_maps((2, 9, 7)), random_maps((2, 9, 7), seed=1)
    assert centre.shape == noise.shape == (2, 9, 7) and np.array_equal(centre, centre[:, ::-1, ::-1])
    assert np.unravel_index(centre[0].argmax(), (9, 7)) == (4, 3) and np.array_equal(noise, random_maps((2, 9, 7), seed=1))


def test_randomise_goes_down_from_the_output():
    model = trained()
    model.model.train()
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    copies = list(randomise(model, seed=1))
    names = [name for name, _ in copies]
    assert names == ["head.1", "head.0.0", "blocks.1.0", "blocks.0.0"]
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items()) and model.model.training
    for k, (_, copy) in enumerate(copies):
        weights = copy.model.state_dict()
        assert [n for n in names if not torch.equal(weights[f"{n}.weight"], before[f"{n}.weight"])] == names[:k + 1]
    for key, value in before.items():
        assert torch.equal(weights[key].flatten().sort().values, value.flatten().sort().values)
    again = dict(randomise(model, seed=1))["blocks.0.0"].model.state_dict()
    assert all(torch.equal(again[k], v) for k, v in weights.items())


@pytest.mark.parametrize("method", METHODS)
def test_randomised_networks_have_other_maps(method):
    model, x = trained(replace(SMALL, model_args={"widths": (16, 32), "dense": (32,)})), faces(4, 16, 16)
    first = attribute(model, x, method, 2, "blocks.0.0")
    broken = list(randomise(model))[-1][1]
    assert rank_correlation(first, attribute(broken, x, method, 2, "blocks.0.0")).mean() < 0.6
    assert np.allclose(rank_correlation(first, attribute(model, x, method, 2, "blocks.0.0")), 1)


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (4, 6, 5)).astype(float), rng.normal(size=(4, 6, 5))
    assert np.allclose(rank_correlation(a, b), [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b)])
    assert np.array_equal(rank_correlation(a, np.ones_like(a)), np.zeros(4)) and np.allclose(rank_correlation(a, -(a**3)), -1)


def test_ssim_window_by_window():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 12, 12))
    b = (a + b) / 2
    x, y = ((m[0] - m.min()) / (m.max() - m.min()) for m in (a, b))
    offsets = np.arange(-5, 6)
    w = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    w /= w.sum()
    x, y, index = np.pad(x, 5, mode="symmetric"), np.pad(y, 5, mode="symmetric"), []
    for r in range(12):
        for c in range(12):
            p, q = x[r:r + 11, c:c + 11], y[r:r + 11, c:c + 11]
            m, n = (w * p).sum(), (w * q).sum()
            index.append((2 * m * n + 0.01**2) * (2 * (w * (p - m) * (q - n)).sum() + 0.03**2)
                         / ((m**2 + n**2 + 0.01**2) * ((w * (p - m) ** 2).sum() + (w * (q - n) ** 2).sum() + 0.03**2)))
    assert np.allclose(ssim(a, b), np.mean(index)) and np.allclose(ssim(a, 3 * a + 7), 1)


def test_curves_and_maps_refuse_what_does_not_fit():
    net, x = tiny(), images()
    with pytest.raises(ValueError, match=r"Maps have the shape \(3, 4, 4\)"):
        deletion(net, x, np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="or hold a NaN"):
        insertion(net, x, np.full((3, 8, 8), np.nan))
    with pytest.raises(ValueError, match="0 steps"):
        deletion(net, x, np.zeros((3, 8, 8)), steps=0)
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(np.zeros((1, 8, 8)), np.zeros((1, 8, 7)))
