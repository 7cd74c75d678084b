"""The output layer of a model: of an object in memory, a folder, a name on the Hub, or a file.

Of a folder of a well-known family the output layer alone is read (`stored_head.py`). Every other
model is built by transformers and run once on four tokens, which shows what its output layer is
given and gives back: the last normalisation is the one whose output that is, whatever it is called,
and its kind is the formula that reproduces it. A model whose logits are not ordered as W z + b is
refused. Scaling and capping logits keeps their order, and so does T5's scaling of features.

Safetensors alone are read, and no code of a model folder is run.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kexue.analysis.unargmaxable.final_norm import FinalNorm
from kexue.analysis.unargmaxable.forward_pass import trace_model
from kexue.analysis.unargmaxable.stored_head import (
    ModelHead,
    head_of_file,
    head_of_folder,
    split_file_name,
)
from kexue.models.language_model import LanguageModel
from kexue.models.loading import (
    CheckpointError,
    check_reachable,
    first_line,
    hub_hint,
    quiet_transformers,
)

__all__ = ["ModelHead", "find_head", "head_of_model"]

PREDICTS_WORDS = re.compile(r"(LMHead|ForCausalLM|ForMaskedLM|ForPreTraining|MTModel|Generation)")


def find_head(source: Any) -> ModelHead:
    """The output layer of any model.

    Args:
        source: a transformers model or `LanguageModel` in memory, or its last `nn.Linear`; a model
            folder; a name on the Hub; FILE.safetensors, FILE:weight or FILE:weight:bias.

    Raises:
        CheckpointError: it cannot be read, or has no output layer over words.
    """
    if isinstance(source, nn.Module):
        return head_of_model(source)
    named = split_file_name(str(source))
    if named is not None and not Path(source).is_dir():
        return head_of_file(*named)
    path = Path(source)
    if path.is_file():
        raise CheckpointError(
            f"{path}: no safetensors file; other files may be pickled and are never opened"
        )
    if str(source) == "tiny":
        raise CheckpointError(
            "tiny is an encoder without an output layer over words; give the folder of a language "
            "model, such as best/ of a run of kexue pretrain"
        )
    check_reachable(source)
    if not path.is_dir():
        return _through_transformers(str(source), path)
    if not (path / "language_model.json").exists():
        _check_architecture(str(source), _config(str(source), path))
    found = head_of_folder(path)
    return _through_transformers(str(source), path) if found is None else found


def head_of_model(model: nn.Module, source: str | None = None) -> ModelHead:
    """The output layer of a model in memory.

    Args:
        model: a transformers model with `get_output_embeddings`, a `LanguageModel` or a `Linear`.
        source: what it is called.

    Raises:
        CheckpointError: no output layer, or one that does not decide the order of the logits alone.

    Example:
        >>> head = head_of_model(nn.Linear(8, 100, bias=False))
        >>> tuple(head.weight.shape), head.bias
        ((100, 8), None)
    """
    called = type(model).__name__ if source is None else source
    if isinstance(model, nn.Linear):
        offsets = None if model.bias is None else model.bias.detach()
        named = "" if offsets is None else "bias"
        return ModelHead(model.weight.detach(), offsets, called, "weight", named)
    if isinstance(model, LanguageModel):
        last = FinalNorm("layer", model.norm.weight.detach(), model.norm.bias.detach())
        tied = "embedding.weight, tied to the embeddings"
        return ModelHead(model.embedding.weight.detach(), None, called, tied, "", last)
    getter = getattr(model, "get_output_embeddings", None)
    head: Any = getter() if callable(getter) else None
    if not isinstance(getattr(head, "weight", None), Tensor):
        raise CheckpointError(
            f"{called}: {type(model).__name__} has no output layer over words; load it with its "
            "language-model head, such as AutoModelForCausalLM or AutoModelForMaskedLM"
        )
    weight, bias = head.weight.detach(), _bias(model, head)
    if weight.is_meta:
        raise CheckpointError(f"{called}: the weights are on the meta device, load them first")
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is head.weight]
    name = names[-1] if names else "get_output_embeddings().weight"
    name += ", tied to the embeddings" if len(names) > 1 else ""
    trace = trace_model(model, head)
    norm: FinalNorm | None = None
    if trace is None:
        name += ", not compared with a forward pass"
    else:
        trace.check_order(called, weight, bias)
        norm = trace.norm()
    said = "" if bias is None else ("bias" if getattr(head, "bias", None) is not None else LOGITS)
    return ModelHead(weight, bias, called, name, said, norm)


LOGITS = "final_logits_bias"


def _bias(model: nn.Module, head: Any) -> Tensor | None:
    """Of the layer, and what BART and its kin add to their logits."""
    parts = [getattr(head, "bias", None), getattr(model, LOGITS, None)]
    given = [part.detach().flatten() for part in parts if isinstance(part, Tensor)]
    return None if not given else torch.stack(given).sum(dim=0)


def _config(source: str, folder: Path) -> Any:
    from transformers import AutoConfig

    if folder.is_dir() and not (folder / "config.json").exists():
        present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"{folder}: no config.json here; the folder holds {present}")
    try:
        return AutoConfig.from_pretrained(
            source, local_files_only=folder.is_dir(), trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source}: config not read: {first_line(error)}{hub_hint(folder)}"
        ) from error


def _check_architecture(source: str, config: Any) -> str:
    """Its class, if that predicts words."""
    name = (getattr(config, "architectures", None) or [""])[0]
    if name and not PREDICTS_WORDS.search(name):
        raise CheckpointError(
            f"{source}: holds a {name}, which has no output layer over words; give the checkpoint "
            "with its language-model head, or a matrix: FILE.safetensors:NAME"
        )
    return str(name)


def _through_transformers(source: str, folder: Path) -> ModelHead:
    import transformers

    config = _config(source, folder)
    name = _check_architecture(source, config)
    kind = getattr(transformers, name, None) if name else None
    if kind is None:
        raise CheckpointError(
            f"{source}: transformers knows no {name or 'architecture of this config'}; give a "
            "matrix: FILE.safetensors:NAME"
        )
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: no safetensors here; pickled weights are never opened, save them anew with "
            "save_pretrained"
        )
    options = {"local_files_only": folder.is_dir(), "use_safetensors": True, "dtype": "auto"}
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(
                source, config=config, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{source}: model not built: {first_line(error)}{hub_hint(folder)}"
        ) from error
    head = model.get_output_embeddings()
    for part in ("weight", "bias"):
        value = getattr(head, part, None)
        names = {n for n, p in model.named_parameters(remove_duplicate=False) if p is value}
        if names and names <= set(info["missing_keys"]):
            raise CheckpointError(
                f"{source}: the checkpoint lacks its output layer ({', '.join(sorted(names))}): "
                "it was saved without its language-model head"
            )
    return head_of_model(model, source)
