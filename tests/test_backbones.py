import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fer_book import backbones
from fer_book.backbones import Affine, Backbone, DlibFaceNet, add_padded, body, face_weights, folded, package_file, pretrained, read_dlib
from fer_book.datasets import FaceTable
from fer_book.emotions import FER2013_EMOTIONS
from fer_book.training import normalise

DESCRIPTORS = json.loads((Path(__file__).parent / "data" / "dlib_descriptors.json").read_text())


def pictures() -> np.ndarray:
    """The two images whose descriptors dlib itself computed (`tests/data/dlib_descriptors.json`), uint8 (2, 150, 150, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    y, x = np.mgrid[:150, :150]
    waves = np.stack([127 + 120 * np.sin(x / 11 + c) * np.cos(y / (17 + c)) for c in range(3)], -1).astype(np.uint8)
    return np.stack([noise, waves])


@pytest.fixture(scope="module")
def face_net():
    net = DlibFaceNet()
    net.load_state_dict(face_weights())
    return net.eval()


def batch(images: np.ndarray) -> torch.Tensor:
    return normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float(), DlibFaceNet.mean, DlibFaceNet.sd)


def test_descriptors_equal_dlib(face_net):
    with torch.no_grad():
        ours = face_net(batch(pictures())).numpy()
    assert np.abs(ours - np.array(DESCRIPTORS["descriptors"])).max() < 1e-4


def test_folding_changes_nothing_but_rounding(face_net):
    x = batch(pictures())
    with torch.no_grad():
        before = face_net.features(x)
        net = DlibFaceNet()
        net.load_state_dict(face_net.state_dict())
        net.double()
        wide = net.features(x.double())
        assert torch.allclose(folded(net).features(x.double()), wide, atol=1e-9)
        assert torch.allclose(pretrained("dlib", "face")(x), before, atol=1e-3 * float(before.abs().max()))
    assert not any(isinstance(m, Affine) for m in net.modules())


@pytest.mark.skipif(not os.environ.get("FER_BOOK_DATA"), reason="the reference file lies beside the data")
def test_reader_equals_the_safetensors_file_to_the_bit():
    reference = Path(os.environ["FER_BOOK_DATA"]).parent / "weights" / "dlib_face_resnet.safetensors"
    if not reference.exists():
        pytest.skip("no reference file")
    read, wanted = face_weights(), load_file(reference)
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("damage", [lambda b: b[:100_000], lambda b: b"\x01\x01" + b[3:], lambda b: b + b"\0", lambda b: b"", lambda b: b"text\n" * 50])
def test_damaged_weights_are_named(tmp_path, damage):
    whole = package_file("face_recognition_models", "models/dlib_face_recognition_resnet_model_v1.dat", "face-recognition-models").read_bytes()
    path = tmp_path / "net.dat"
    path.write_bytes(damage(whole))
    with pytest.raises(ValueError, match=r"net.dat is not dlib's face recognition network: .*; install face-recognition-models again"):
        read_dlib(path)


def test_add_padded_by_hand():
    a, b = torch.ones(1, 1, 2, 2), torch.full((1, 2, 1, 3), 10.0)
    expected = torch.tensor([[[[11.0, 11, 10], [1, 1, 0]], [[10, 10, 10], [0, 0, 0]]]])
    assert torch.equal(add_padded(a, b), expected) and torch.equal(add_padded(b, a), expected)


def test_missing_weights_say_what_to_install():
    with pytest.raises(FileNotFoundError, match="The weights a.dat are not here; pip install some-thing"):
        package_file("no_such_package", "models/a.dat", "some-thing")


def test_weights_that_cannot_be_downloaded_are_an_error(monkeypatch):
    def offline(name, pretrained=False, **kw):
        if pretrained:
            raise ConnectionError("no route")
        return original(name, **kw)
    original = backbones.timm.create_model
    net = body("resnet18", "imagenet")
    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(OSError, match="weights of resnet18.tv_in1k could not be downloaded .*tf_efficientnet_lite0"):
        net.load_weights()


@pytest.mark.parametrize("arguments, sentence", [
    (("dlib", "imagenet"), "no weights 'imagenet' for dlib: use '' or 'face'"),
    (("resnet18", "face"), "no weights 'face' for resnet18: use '' or 'imagenet'"),
    (("resnet1",), "no backbone 'resnet1'; use dlib or a timm model, such as"),
])
def test_what_there_is_not(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        body(*arguments)


@pytest.mark.parametrize("name, weights, size", [("dlib", "face", 103), ("dlib", "", 120), ("resnet18", "", 48), ("vgg16", "", 48),
                                                 ("inception_v3", "", 75), ("tf_efficientnet_lite0", "imagenet", 64)])
def test_bodies_have_the_features_they_say(name, weights, size):
    net = body(name, weights).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, size, size)).shape[:2] == (2, net.n_features)
    assert hasattr(net, "mean") == bool(weights or name == "dlib")


def test_dlib_says_that_an_image_is_too_small():
    with pytest.raises(ValueError, match="at least 103 pixels, these have 96"):
        body("dlib")(torch.zeros(1, 3, 96, 96))


def test_imagenet_weights_recognise_a_photograph():
    import timm
    from sklearn.datasets import load_sample_image

    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(backbones.lite0_weights(list(whole.state_dict())))
    net = pretrained("tf_efficientnet_lite0", "imagenet")
    x = torch.from_numpy(load_sample_image("china.jpg")[:, 106:-107].copy()).permute(2, 0, 1)[None].float()
    x = normalise(torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True), net.mean, net.sd)
    with torch.no_grad():
        assert 698 in whole(x)[0].topk(3).indices  # ImageNet's class "palace"
        assert torch.equal(net(x), whole.forward_features(x))


def test_head_has_the_papers_layers():
    net = Backbone(7, backbone="resnet18", dense=(4096, 1024), dropout=0.5)
    assert [tuple(m.weight.shape) for m in net.head if isinstance(m, torch.nn.Linear)] == [(4096, 512), (1024, 4096), (7, 1024)]
    assert sum(isinstance(m, torch.nn.Dropout) for m in net.head) == 3


def test_features_are_cached_and_change_with_faces_weights_and_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 255, (5, 48, 48), dtype=np.uint8)
    frame = pd.DataFrame({"row": range(5), "split": "train", "emotion": 0})
    faces = FaceTable(images=images, frame=frame, classes=FER2013_EMOTIONS, name="made-up")
    net = body("tf_efficientnet_lite0", "imagenet").eval()
    first = backbones.features(faces, net, 64, batch_size=2)
    assert first.shape == (5, net.n_features) and len(list(tmp_path.iterdir())) == 1
    with torch.no_grad():
        direct = net(normalise(torch.nn.functional.interpolate(torch.from_numpy(images)[:, None].float(), (64, 64), mode="bilinear", antialias=True)
                               .round(), net.mean, net.sd)).mean((2, 3)).numpy()
    assert np.allclose(first, direct, atol=1e-5)
    monkeypatch.setattr(net, "forward", lambda x: 1 / 0)
    assert np.array_equal(backbones.features(faces, net, 64), first)
    monkeypatch.undo()
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path))
    assert not np.allclose(backbones.features(faces, net, 64, mirror=True), first)
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)
    assert not np.allclose(backbones.features(faces, net, 64), first)
    assert len(list(tmp_path.iterdir())) == 3


def test_two_poolings_of_one_name_do_not_share_features(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_BOOK_CACHE", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 255, (3, 48, 48), dtype=np.uint8)
    faces = FaceTable(images=images, frame=pd.DataFrame({"row": range(3), "split": "train", "emotion": 0}), classes=FER2013_EMOTIONS, name="made-up")
    net = body("dlib", "face", n_blocks=4).eval()
    ways = [lambda x: x.mean((2, 3)), lambda x: x.amax((2, 3)), *((lambda x, k=k: x[:, :k].mean((2, 3))) for k in (2, 3))]
    first = [backbones.features(faces, net, 64, pool=way) for way in ways]
    assert [f.shape[1] for f in first] == [64, 64, 2, 3] and np.allclose(first[0][:, :3], first[3]) and (first[1] > first[0]).any()
    assert np.array_equal(backbones.features(faces, net, 64), first[0]) and len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-8])
    assert all(np.array_equal(backbones.features(faces, net, 64, pool=way), f) for way, f in zip(ways, first))


@pytest.mark.parametrize("options", [{"pretrained": True}, {"checkpoint_path": "x"}, {"pretrained_cfg_overlay": {"file": "x"}}, {"cache_dir": "x"}])
def test_no_option_of_a_body_reaches_what_timm_loads(options):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        body("resnet18", **options)
