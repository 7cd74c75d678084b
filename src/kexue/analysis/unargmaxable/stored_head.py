"""The output layer as it lies in safetensors files: its tensors alone are read.

No model is built and nothing is unpickled. Of a folder in shards only those files are opened that
hold the output layer and the last normalisation.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kexue.analysis.unargmaxable.final_norm import FinalNorm
from kexue.analysis.unargmaxable.layouts import LAYOUTS, Layout
from kexue.models.loading import CheckpointError, check_files

__all__ = ["ModelHead", "head_of_file", "head_of_folder", "split_file_name"]

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHARDS, WHOLE = "model.safetensors.index.json", "model.safetensors"
OWN = Layout(("lm_head.weight",), ("embedding.weight",), "norm")
"""Of `kexue.models.language_model`."""
SHOWN = 12


@dataclass(frozen=True)
class ModelHead:
    """The output layer of a model.

    Attributes:
        weight: W, one row per word.
        bias: b; None where there is none.
        source: where it came from, in words.
        weight_name: the tensor, or how it was come by.
        bias_name: the same of the bias; empty without one.
        norm: what the features come out of, where that is known.
    """

    weight: Tensor
    bias: Tensor | None
    source: str
    weight_name: str
    bias_name: str = ""
    norm: FinalNorm | None = None


def split_file_name(source: str) -> tuple[Path, str | None, str | None] | None:
    """FILE.safetensors, FILE:weight or FILE:weight:bias; None for anything else.

    Example:
        >>> split_file_name("a/b.safetensors:out.weight:")
        (PosixPath('a/b.safetensors'), 'out.weight', '')
    """
    found = re.fullmatch(r"(.+\.safetensors)(?::([^:]+)(?::([^:]*))?)?", source, re.DOTALL)
    return None if found is None else (Path(found[1]), found[2], found[3])


def head_of_file(path: Path, weight: str | None = None, bias: str | None = None) -> ModelHead:
    """A matrix of a safetensors file, with its bias.

    Args:
        path: the file.
        weight: its name; may be left out where the file holds one matrix.
        bias: its name; "" for none; None: the weight's name with `bias` in place of `weight`, if
            there is such a vector with one number per row.

    Raises:
        CheckpointError: no such file or tensor, or several matrices and no name.
    """
    store = Store({path: None}, str(path))
    shapes = {name: tuple(store.shape(name)) for name in store.names}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    listed = ", ".join(f"{name} {shapes[name][0]}×{shapes[name][1]}" for name in matrices[:SHOWN])
    listed = (listed or "none") + (" …" if len(matrices) > SHOWN else "")
    if weight is None:
        if len(matrices) != 1:
            raise CheckpointError(
                f"{path}: which matrix is the output layer? give {path}:NAME or "
                f"{path}:NAME:BIAS; its matrices: {listed}"
            )
        weight = matrices[0]
    if weight not in matrices:
        what = f"has shape {shapes[weight]}" if weight in shapes else "is not in it"
        raise CheckpointError(f"{path}: {weight} {what}; its matrices: {listed}")
    if bias is None:
        guess = re.sub(r"weight$", "bias", weight)
        bias = guess if guess != weight and shapes.get(guess) == shapes[weight][:1] else ""
    if bias and bias not in shapes:
        vectors = [name for name, shape in shapes.items() if shape == shapes[weight][:1]]
        vectors_listed = ", ".join(vectors[:SHOWN]) or "none"
        raise CheckpointError(
            f"{path}: {bias} is not in it; vectors with one number per row of {weight}: "
            f"{vectors_listed}"
        )
    offsets = store.read(bias).flatten() if bias else None
    return ModelHead(store.read(weight), offsets, str(path), weight, bias)


def head_of_folder(folder: Path) -> ModelHead | None:
    """The output layer of a model folder; None where its names are not clear from its config.

    Raises:
        CheckpointError: files that can not be read, or a model without an output layer.
    """
    check_files(folder)
    config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    own = (folder / "language_model.json").exists()
    layout = OWN if own else LAYOUTS.get(str(config.get("model_type")))
    index = folder / SHARDS
    if layout is None or not (index.exists() or (folder / WHOLE).exists()):
        return None
    if index.exists():
        places = _json(index).get("weight_map")
        if not isinstance(places, dict):
            raise CheckpointError(f"{index}: no weight_map in it; fetch the file again")
        files: dict[Path, list[str] | None] = {}
        for name, file in places.items():
            # a shard lies beside its index, whatever the index says
            files.setdefault(folder / Path(str(file)).name, []).append(name)  # type: ignore[union-attr]
    else:
        files = {folder / WHOLE: None}
    store = Store(files, str(folder))
    weight = store.find(layout.weight)
    how = weight or ""
    if weight is None and (own or _tied(folder)):
        weight = store.find(layout.embedding)
        how = f"{weight}, tied to the embeddings"
    bias = store.find(layout.bias)
    if weight is None or (layout.bias and bias is None and not layout.optional):
        return None
    return ModelHead(
        store.read(weight),
        None if bias is None else store.read(bias).flatten(),
        str(folder),
        how,
        bias or "",
        _norm(store, layout, {} if own else config),
    )


def _norm(store: "Store", layout: Layout, config: dict[str, Any]) -> FinalNorm | None:
    if store.find((layout.spoiled,)) is not None:
        return None
    numbers = [m[1] for m in (re.search(r"decoder\.layers\.(\d+)\.", n) for n in store.names) if m]
    prefix = layout.norm.format(last=max(map(int, numbers), default=0))
    gamma = store.find((f"{prefix}.weight", f"{prefix}.gamma"))
    beta = store.find((f"{prefix}.bias", f"{prefix}.beta"))
    if gamma is None:
        return None
    scale = store.read(gamma).double()
    scale = scale + 1 if layout.lifted else scale
    after = 1.0
    if config.get("model_type") == "umt5" or (config.get("model_type") == "t5" and _scaled(config)):
        after = len(scale) ** -0.5
    return FinalNorm(layout.kind, scale, None if beta is None else store.read(beta), after)


def _scaled(config: dict[str, Any]) -> bool:
    """Whether a T5 multiplies its features by d^−½."""
    saved = config.get("scale_decoder_outputs", config.get("tie_word_embeddings"))
    return saved is not False


def _tied(folder: Path) -> bool:
    """As transformers reads the config, which may leave defaults unsaid."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: config not read: {reason}") from error
    return bool(getattr(config, "tie_word_embeddings", True))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: an object is needed, got {type(found).__name__}")
    return found


class Store:
    """Tensors by name over some safetensors files, each opened when it is asked for.

    Args:
        files: the names that each file holds; None: ask the file.
        source: for messages.
    """

    def __init__(self, files: dict[Path, list[str] | None], source: str) -> None:
        self.source = source
        self.home: dict[str, Path] = {}
        for path, names in files.items():
            held = names
            if held is None:
                with self._open(path) as file:
                    held = list(file.keys())
            self.home |= dict.fromkeys(held, path)

    @property
    def names(self) -> Iterable[str]:
        """All tensors."""
        return self.home.keys()

    def find(self, names: Iterable[str]) -> str | None:
        """The first of `names` that is there, whole or without the model's own prefix."""
        for name in names:
            bare = name.partition(".")[2]
            for one in (name, bare) if "." in bare else (name,):
                if one in self.home:
                    return one
        return None

    def shape(self, name: str) -> list[int]:
        """Of a tensor, without reading it."""
        with self._open(self.home[name]) as file:
            return list(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: the file is missing or damaged, or holds no plain floating numbers.
        """
        path = self.home[name]
        try:
            with self._open(path) as file:
                found: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: {name} cannot be read: {error}") from error
        if found.dtype not in FLOATS:
            raise CheckpointError(
                f"{path}: {name} holds {found.dtype}, which is quantised or no weight; give a "
                "model in float32, bfloat16 or float16"
            )
        return found

    def _open(self, path: Path) -> Any:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        try:
            return safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: no safetensors file: {error}") from error
