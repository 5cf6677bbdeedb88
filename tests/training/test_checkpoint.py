"""Checkpoints in the formats of old and new versions of torch and torchvision, and files that are none."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from training import checkpoint
from training.checkpoint import CheckpointError
from training.densenet121 import densenet121

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights of NIH's network, from torchvision and not from the code under test."""
    torch.manual_seed(0)
    return dict(models.densenet121(num_classes=1).state_dict())


@pytest.fixture(scope="module")
def network() -> models.DenseNet:
    return densenet121(outputs=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "densenet121_256_64_0.001"


def save(path: Path, state: Any, best_loss: Any = 0.25, **options: Any) -> None:
    """Write a file with the fields of NIH's checkpoint, including the state of an optimiser."""
    layer = nn.Linear(2, 1)
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    fields = {
        "Epoch": 7,
        "state_dict": state,
        "best_loss": best_loss,
        "optimizer": optimiser.state_dict(),
    }
    torch.save(fields, path, **options)


def load(network: nn.Module, path: Path) -> None:
    checkpoint.load(network, checkpoint.read(path), path)


def assert_loaded(network: nn.Module, state: State) -> None:
    for name, tensor in network.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(tensor, state[name]), name


def refusal(network: nn.Module, path: Path) -> str:
    """The one-line message for a file that is refused."""
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*expected") as error:
        load(network, path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "best_loss",
    [0.25, np.float64(0.25), np.float32(0.25), np.int64(3), torch.tensor(0.25)],
    ids=lambda value: type(value).__name__,
)
def test_loads_both_formats_with_any_kind_of_number(
    network: nn.Module, state: State, path: Path, new_format: bool, best_loss: Any
) -> None:
    save(path, state, best_loss, _use_new_zipfile_serialization=new_format)
    load(network, path)
    assert_loaded(network, state)


def test_loads_a_scalar_that_numpy_1_wrote(network: nn.Module, state: State, path: Path) -> None:
    save(path, state, np.float64(0.25), _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    load(network, path)
    assert_loaded(network, state)


def test_loads_names_of_data_parallel_and_of_old_torchvision(
    network: nn.Module, state: State, path: Path
) -> None:
    old = {
        "module." + re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in state.items()
        if "num_batches_tracked" not in name
    }
    assert "module.features.denseblock1.denselayer1.norm.1.weight" in old
    assert "module.features.transition1.norm.weight" in old
    save(path, old)
    load(network, path)
    assert_loaded(network, state)


def test_loads_a_file_that_is_a_state_dict_itself(network: nn.Module, state: State, path: Path) -> None:
    torch.save(state, path)
    load(network, path)
    assert_loaded(network, state)


class Harmful:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_refuses_code_in_a_file_without_running_it(
    network: nn.Module, state: State, path: Path, tmp_path: Path, new_format: bool
) -> None:
    save(path, state, Harmful(tmp_path / "ran"), _use_new_zipfile_serialization=new_format)
    assert "would call posix.mkdir" in refusal(network, path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # without weights_only, the file does run code
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refuses_code_in_a_plain_pickle_without_running_it(
    network: nn.Module, path: Path, tmp_path: Path, protocol: int
) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Harmful(tmp_path / "ran")}, protocol))
    refusal(network, path)
    assert not (tmp_path / "ran").exists()


def test_refuses_a_pickled_model_and_names_its_class(network: nn.Module, path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 1)), path)
    assert "would call torch.nn.modules.container.Sequential" in refusal(network, path)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.5, 0.99, 0.999999])
def test_refuses_a_file_that_is_cut_short(
    network: nn.Module, state: State, path: Path, new_format: bool, part: float
) -> None:
    save(path, state, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert "expected a whole file made by torch.save" in refusal(network, path)


def test_refuses_a_text_file(network: nn.Module, path: Path) -> None:
    path.write_text("hello, this is text")
    assert "expected a whole file made by torch.save" in refusal(network, path)


def test_a_missing_file_is_an_os_error(network: nn.Module, path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(network, path)


def test_refuses_a_missing_tensor(network: nn.Module, state: State, path: Path) -> None:
    save(path, {name: tensor for name, tensor in state.items() if name != "features.norm5.bias"})
    assert refusal(network, path).endswith(
        "state_dict has no features.norm5.bias and lacks 1 in all: expected a DenseNet of 606 tensors"
    )


def test_refuses_a_wrong_shape(network: nn.Module, state: State, path: Path) -> None:
    save(path, state | {"classifier.weight": torch.zeros(14, 1024)})
    assert refusal(network, path).endswith(
        "classifier.weight in state_dict has shape [14, 1024]: expected [1, 1024]"
    )


def test_refuses_nan(network: nn.Module, state: State, path: Path) -> None:
    save(path, state | {"classifier.bias": torch.tensor([torch.nan])})
    assert "classifier.bias in state_dict holds NaN or infinity" in refusal(network, path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (models.resnet18, "state_dict has no features.conv0.weight"),
        (models.densenet169, "state_dict has an unexpected features.denseblock3.denselayer25.norm1.weight"),
    ],
)
def test_refuses_another_network(network: nn.Module, path: Path, other: Any, said: str) -> None:
    save(path, other(num_classes=1).state_dict())
    assert said in refusal(network, path)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ([1, 2], "expected a dictionary, found list"),
        (
            {"trunk": 1, "epoch": 2},
            "state_dict: expected a dictionary of tensors by name, found trunk, epoch",
        ),
        ({"state_dict": {"features": 1}}, "state_dict: expected a dictionary of tensors by name"),
        ({"state_dict": {0: torch.zeros(1)}}, "state_dict: expected a dictionary of tensors by name"),
    ],
)
def test_refuses_a_file_without_a_state_dict(network: nn.Module, path: Path, saved: Any, said: str) -> None:
    torch.save(saved, path)
    assert said in refusal(network, path)
