"""Networks by name: every form builds, is captured, and says what is wrong with it if it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ghn_fast.capturing import capture
from ghn_fast.deepnets import SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.models import NamedModel, known_names, resolve
from ghn_fast.models.nearest import nearest
from ghn_fast.utils.optional import require

NETS = """
import torch
from torch import nn
from beside import WIDTH

class Own(nn.Module):
    input_shape = (1, 9, 9)

    def __init__(self, num_classes=3):
        super().__init__()
        self.layer = nn.Linear(81, num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1))

def small(num_classes=7, image_size=16):
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3), nn.Flatten(), nn.Linear(WIDTH * (image_size - 2) ** 2, num_classes)
    )

def with_inputs():
    return nn.Embedding(11, 4), (torch.zeros(1, 5, dtype=torch.long),)

def needy(depth):
    return small()

def broken():
    return "a network"

ready = small()
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def same(one: ArchGraph, other: ArchGraph) -> bool:
    return (
        one.names == other.names
        and torch.equal(torch.as_tensor(one.op_types), torch.as_tensor(other.op_types))
        and torch.equal(torch.as_tensor(one.edges), torch.as_tensor(other.edges))
    )


def outputs(named: NamedModel) -> torch.Tensor:
    network = named.build().eval()
    with torch.no_grad():
        result: torch.Tensor = network(torch.zeros(2, *named.inputs["input_shape"]))
    return result


def test_classification_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    named = resolve("resnet18", num_classes=5, image_size=40)
    assert named.inputs == {"input_shape": (3, 40, 40)}
    assert outputs(named).shape == (2, 5)
    expected = capture(torchvision.models.resnet18(num_classes=5), (3, 40, 40), 7)
    assert same(named.graph(7), expected)
    network = named.build()
    assert same(named.graph(7, network=network), expected)
    assert resolve("inception_v3").input_shape == (3, 299, 299)
    assert resolve("resnet18").build().fc.out_features == 1000  # type: ignore[union-attr]


def test_networks_of_torchvision_that_are_made_for_one_size() -> None:
    pytest.importorskip("torchvision")
    assert outputs(resolve("vit_b_32", num_classes=3, image_size=64)).shape == (2, 3)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "mc3_18"])
def test_other_families_of_torchvision(name: str) -> None:
    pytest.importorskip("torchvision")
    named = resolve(name, num_classes=3, image_size=64)
    assert named.graph().num_nodes > 20
    assert len(named.inputs["input_shape"]) == (4 if name == "mc3_18" else 3)


def test_detection_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    named = resolve("ssdlite320_mobilenet_v3_large", num_classes=3)
    assert not named.build().training
    assert named.graph().num_nodes > 50


def test_deepnets_are_derived_and_fit_the_network_that_is_built() -> None:
    named = resolve("deepnets:test:2", num_classes=4, seed=5)
    item = SampledNets("test", 3, 5)[2]
    assert same(named.graph(50), item.graph_for(num_classes=4, image_size=32))
    shapes = {name: tuple(p.shape) for name, p in named.build().named_parameters()}
    assert {target.name for target in named.graph().targets} <= set(shapes)
    assert outputs(named).shape == (2, 4)


def test_a_function_of_a_file(nets: Path) -> None:
    named = resolve(f"{nets}:small", num_classes=5, image_size=12)
    assert outputs(named).shape == (2, 5)
    first, second = named.build(), named.build()
    assert first is not second
    assert resolve(f"{nets}:small").inputs == {"input_shape": (3, 224, 224)}


def test_a_class_of_a_file_with_its_own_input_shape(nets: Path) -> None:
    named = resolve(f"{nets}:Own")
    assert named.inputs == {"input_shape": (1, 9, 9)}
    assert outputs(named).shape == (2, 3)


def test_a_function_that_gives_inputs_too(nets: Path) -> None:
    named = resolve(f"{nets}:with_inputs")
    assert named.inputs["example_inputs"][0].shape == (1, 5)
    assert named.graph().num_nodes > 0


def test_a_program_of_torch_export(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    program = torch.export.export(network.eval(), (torch.zeros(1, 3, 8, 8),))
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    expected = capture(network, (3, 8, 8), 1)
    for named in (resolve(str(path)), resolve(path), resolve(program)):
        assert same(named.graph(), expected)
        assert set(dict(named.build().named_parameters())) == set(dict(network.named_parameters()))


def test_networks_of_timm() -> None:
    pytest.importorskip("timm")
    named = resolve("timm:vit_tiny_patch16_224", num_classes=3, image_size=32)
    assert outputs(named).shape == (2, 3)
    assert outputs(resolve("timm:resnet10t", num_classes=3, image_size=32)).shape == (2, 3)
    assert resolve("timm:resnet18.a1_in1k").input_shape == (3, 224, 224)
    with pytest.raises(ValueError, match="timm does not have; the nearest are resnet50"):
        resolve("timm:resnet5")


def test_networks_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    images = {"model_type": "vit", "image_size": 32, "patch_size": 8, **small}
    text = {"model_type": "bert", "vocab_size": 50, "architectures": ["BertModel"], **small}
    for name, values in (("images", images), ("text", text)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    named = resolve(f"hf:{tmp_path / 'images'}", num_classes=3)
    assert named.image_size == 32
    network = named.build().eval()
    assert network(**named.inputs["example_inputs"]).logits.shape == (1, 3)
    assert named.graph(network=network).num_nodes > 10
    named = resolve(f"hf:{tmp_path / 'text' / 'config.json'}")
    assert type(named.build()).__name__ == "BertModel"
    assert named.graph().num_nodes > 10
    with pytest.raises(ValueError, match="the nearest are vit"):
        resolve("hf:vitt")
    with pytest.raises(ValueError, match="without a download"):
        resolve("hf:nobody/has-this")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnte50", "the nearest are resnet50"),
        ("ResNet-50", "the nearest are resnet50"),
        ("!?", "needs a network of torchvision"),
        ("deepnets:test", "needs deepnets:SPLIT:INDEX"),
        ("deepnets:tset:1", "one of the splits train"),
        ("deepnets:predefined:99", "the split has"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=message) as caught:
        resolve(name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("smal", ValueError, "it has small"),
        ("needy", ValueError, "needs arguments depth"),
        ("broken", TypeError, "gave str"),
        ("ready", ValueError, "needs a function or class that makes one"),
        ("", ValueError, "needs FILE.py:FUNCTION"),
    ],
)
def test_functions_that_are_none(
    nets: Path, function: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        resolve(f"{nets}:{function}")


def test_files_that_are_none(tmp_path: Path) -> None:
    for name in (f"{tmp_path}/none.py:net", f"{tmp_path}/none.pt2"):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            resolve(name)
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"no program of torch.export"):
        resolve(str(bad))


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ghn-fast\[vision\]'"):
        require("no_such_library.models", "vision", "networks of no such library")


def test_known_names() -> None:
    pytest.importorskip("torchvision")
    names = known_names("resnet")
    assert "resnet50" in names
    assert all(name.startswith("resnet") for name in names)
    assert {"fcn_resnet50", "mc3_18", "ssd300_vgg16"} <= set(known_names())
    assert "deepnets:test:0" in known_names("deepnets:")
    assert known_names("deep") == known_names("deeplab")  # what torchvision has comes first
    assert known_names("deepn") == ["deepnets:"]


def test_nearest_names() -> None:
    known = ["resnet18", "resnet50", "vit_b_16", "alexnet"]
    assert nearest("resnet51", known)[0] == "resnet50"
    assert nearest("ViT-B-16", known) == ["vit_b_16"]
    assert nearest("zzz", known) == []
