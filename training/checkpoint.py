"""Reads checkpoints that others made, without running code that a file may contain."""

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A checkpoint may hold NumPy scalars beside tensors, in its optimiser's state or as its best loss. NumPy 1
# and NumPy 2 save them under different names.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_NUMPY: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)),
]
# What torch.load raises for a file that is cut short, damaged or no checkpoint.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
STATE_NAMES = ("state_dict", "model_state_dict", "model")  # of the tensors, in a file that holds more


class CheckpointError(Exception):
    """A checkpoint that cannot be used. The message names the file, the field and what was expected."""


def read(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of torch.save, old or new format. Raises CheckpointError and OSError."""
    with path.open("rb") as file, torch.serialization.safe_globals(_NUMPY):
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise CheckpointError(f"{path}: {_reason(error)}") from error
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(saved).__name__}")
    return saved


def _reason(error: Exception) -> str:
    called = re.search(r"GLOBAL (\w[\w.]*)", str(error))
    if called:
        return (
            f"refused, because reading it would call {called[1]}: expected a file that holds "
            "tensors, numbers and names only"
        )
    return "expected a whole file made by torch.save, but it is cut short, damaged or something else"


def load(network: nn.Module, saved: Mapping[str, Any], path: Path) -> None:
    """Load the `state_dict` of a checkpoint, or a checkpoint that is a `state_dict`, into the network.

    Names may begin with `module.`, as torch's DataParallel writes them. Names of a DenseNet may be those of
    torchvision before 0.3: `norm.1` for `norm1`. Raises CheckpointError, which names `path`.
    """
    found = state_dict(saved, path)
    # The number of batches that a normalisation has seen is missing in old files. Scoring does not use it.
    wanted = {
        name: tensor for name, tensor in network.state_dict().items() if "num_batches_tracked" not in name
    }
    expected = f"{type(network).__name__} of {len(wanted)} tensors"
    if missing := [name for name in wanted if name not in found]:
        raise CheckpointError(
            f"{path}: state_dict has no {missing[0]} and lacks {len(missing)} in all: expected a {expected}"
        )
    if extra := [name for name in found if name not in wanted]:
        raise CheckpointError(
            f"{path}: state_dict has an unexpected {extra[0]}, {len(extra)} in all: expected a {expected}"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} in state_dict has shape {list(found[name].shape)}: "
                f"expected {list(tensor.shape)}"
            )
        if not found[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} in state_dict holds NaN or infinity: expected numbers")
    network.load_state_dict(found, strict=False)


def state_dict(saved: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's `state_dict`, by their current names. Raises CheckpointError."""
    state = next((saved[name] for name in STATE_NAMES if name in saved), saved)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        found = f", found {', '.join(map(str, list(saved)[:5]))}" if state is saved else ""
        raise CheckpointError(f"{path}: state_dict: expected a dictionary of tensors by name{found}")
    tensors = {_current_name(name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in tensors.items() if "num_batches_tracked" not in name}


def _current_name(name: str) -> str:
    return re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name.removeprefix("module."))
