"""Checkpoint folders: two safetensors files with the networks, the trainer's state, its configuration, and a manifest.

``manifest.json`` is written last and holds the size and sha256 of every other file, so a folder that verifies is whole.
``trainer_state.pt`` holds plain dictionaries, numbers, strings and tensors: ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import files
from .errors import CheckpointError, NonFiniteError

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "is_checkpoint",
    "load_network",
    "read",
    "require_finite",
    "uncompiled",
    "verify",
    "write",
]

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
_CONFIG, _STATE = "config.json", "trainer_state.pt"
_NETWORKS = ("generator", "discriminator")
_COMPILED = "_orig_mod"  # how torch.compile's wrapper calls what it wraps
_EXTRA = "extra_state"  # entries of a network's state_dict that are not tensors live in the trainer's state


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        folder: where it lies.
        step: the number of finished steps.
        generator, discriminator: the networks' state_dicts, on the CPU.
        state: the trainer's own state.
        config: the contents of config.json.
    """

    folder: Path
    step: int
    generator: dict[str, Any]
    discriminator: dict[str, Any]
    state: dict[str, Any]
    config: dict[str, Any]


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` claims to be a checkpoint (it may still be damaged)."""
    return (folder / MANIFEST).is_file()


def require_finite(
    step: int, networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Refuse a state with NaN or infinities, which must never replace a good checkpoint.

    Raises:
        NonFiniteError: names the first tensor that is not finite.
    """
    named = [(f"{name} {key}", value) for name, net in networks.items() for key, value in net.state_dict().items()]
    for name, optimizer in optimizers.items():
        for number, entries in enumerate(optimizer.state_dict()["state"].values()):
            named += [(f"{name} {key} of parameter {number}", value) for key, value in entries.items()]
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"{name} is not finite after step {step}; this step was not saved, earlier checkpoints are untouched"
            )


def write(
    folder: Path,
    *,
    step: int,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder as a whole: a kill at any moment leaves the former contents of ``folder``, or the new
    ones.

    Raises:
        OutputError: the place is full, read-only or not a folder; what was begun is removed again.
        CheckpointError: ``folder`` exists and holds something else.
    """
    import safetensors.torch  # here, so that training alone does without it

    folder = Path(os.path.realpath(folder))  # through a link, not over it
    state = dict(state)
    contents: dict[str, bytes] = {}
    for name in _NETWORKS:
        tensors, extra = _tensors(networks[name])
        contents[f"{name}.safetensors"] = safetensors.torch.save(tensors, metadata={"format": "pt"})
        state[f"{name}_{_EXTRA}"] = extra
    _require_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    contents[_STATE] = buffer.getvalue()
    contents[_CONFIG] = _json(config)
    manifest = {
        "format": FORMAT,
        "step": step,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
        },
    }
    contents[MANIFEST] = _json(manifest)  # last: a folder without it is unfinished

    if folder.is_dir() and any(folder.iterdir()) and not is_checkpoint(folder):
        raise CheckpointError(
            f"{folder} exists, is not empty and is no checkpoint; it is left alone. Give another folder"
        )
    remedy = f"The training itself is unharmed, at step {step}: make room or give another folder, and save again"
    with files.output_errors("a checkpoint", folder, remedy):
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder.parent, folder.name)
        temporary = files.temporary_sibling(folder)
        try:
            temporary.mkdir()
            for name, data in contents.items():
                files.write_file(temporary / name, data)
            files.publish_folder(temporary, folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # give the room back; the cause is what gets reported
            raise


def verify(folder: Path) -> dict[str, Any]:
    """Check every file against the manifest, which is returned.

    Raises:
        CheckpointError: names the file that is missing, truncated or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        entries, step = dict(manifest["files"]), int(manifest["step"])
        version = int(manifest["format"])
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it is no checkpoint, or an unfinished one") from None
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}") from error
    if version > FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST} has format {version}; this version of gan_fast reads up to {FORMAT}"
        )
    for name, entry in entries.items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        if len(data) != entry["bytes"]:
            raise CheckpointError(
                f"{path} is truncated or changed: {len(data)} bytes, the manifest says {entry['bytes']}"
            )
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path} is corrupted: its sha256 is not the manifest's")
    missing = [name for name in (*(f"{net}.safetensors" for net in _NETWORKS), _STATE, _CONFIG) if name not in entries]
    if missing:
        raise CheckpointError(f"{folder / MANIFEST} does not list {', '.join(missing)}")
    return {**manifest, "step": step}


def read(folder: Path) -> Checkpoint:
    """Verify and read a checkpoint folder.

    Raises:
        CheckpointError: names the file that cannot be used.
    """
    import safetensors.torch

    folder = files.retired(folder) or folder
    manifest = verify(folder)
    networks = {}
    for name in _NETWORKS:
        path = folder / f"{name}.safetensors"
        try:
            networks[name] = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    try:
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        config = json.loads((folder / _CONFIG).read_bytes())
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder / _STATE} or {_CONFIG} cannot be read: {first_line}") from error
    for name in _NETWORKS:
        networks[name].update(state.pop(f"{name}_{_EXTRA}"))
    return Checkpoint(folder, manifest["step"], networks["generator"], networks["discriminator"], state, config)


def load_network(network: nn.Module, stored: Mapping[str, Any], path: Path) -> None:
    """Load a network's parameters and buffers; names that do not fit are an error that lists them."""
    own = {_plain_name(name): name for name in network.state_dict()}
    named = {own.get(_plain_name(name), name): value for name, value in stored.items()}
    try:
        network.load_state_dict(named, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit {type(uncompiled(network)).__name__}: {reason}") from error


def uncompiled(network: nn.Module) -> nn.Module:
    """The network inside the wrapper that ``torch.compile(network)`` returns, or the network itself."""
    return network._modules.get(_COMPILED) or network


def _plain_name(name: str) -> str:
    """The name that an entry of a state_dict has where no module around it is compiled."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _tensors(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state_dict on the CPU, contiguous, each entry in memory of its own (safetensors refuses shared memory)."""
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    seen: set[int] = set()
    for own_name, value in network.state_dict().items():
        name = _plain_name(own_name)
        if not isinstance(value, Tensor):
            extra[name] = value
            continue
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage)
        tensors[name] = tensor
    return tensors, extra


def _require_plain(value: object, where: str) -> None:
    """Refuse what ``torch.load(weights_only=True)`` would refuse later, when it is too late."""
    if isinstance(value, Mapping) and type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):  # type: ignore[arg-type]  # the exact types above are sequences
            _require_plain(item, f"{where}[{number}]")
    elif value is not None and type(value) not in (bool, int, float, str, bytes) and not isinstance(value, Tensor):
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds numbers, strings, tensors, lists and dicts"
        )


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
