"""A fine-tuned model as a folder: the encoder and tokenizer as Hugging Face expects them, the head
beside them in head.safetensors, and what it was trained for in task.json.

`AutoModel.from_pretrained(folder)` opens the encoder; `load_text_model` the whole.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kexue.models.loading import CheckpointError, load_encoder, load_tokenizer, quiet_transformers
from kexue.models.text_model import TextModel

__all__ = ["load_text_model", "read_purpose", "save_text_model"]

HEAD_FILE = "head.safetensors"
PURPOSE_FILE = "task.json"
NEEDED = ("task", "max_length", "pooling", "hidden_size")


def save_text_model(
    folder: Path,
    model: TextModel,
    tokenizer: Any,
    purpose: dict[str, Any],
    state: dict[str, Tensor] | None = None,
) -> None:
    """Writes encoder, head, tokenizer and purpose into a folder.

    Args:
        folder: made if it is missing.
        model: whose weights, unless `state` is given.
        tokenizer: saved beside it.
        purpose: what the model is for; JSON.
        state: the model's whole state, gathered from all processes if it was sharded.
    """
    state = model.state_dict() if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        encoder: Any = model.encoder
        encoder.save_pretrained(folder, state_dict=part_of(state, "encoder."))
        tokenizer.save_pretrained(folder)
    head = {name: value.contiguous() for name, value in part_of(state, "head.").items()}
    save_file(head, folder / HEAD_FILE)
    config: Any = model.encoder.config
    text = json.dumps({**purpose, "hidden_size": config.hidden_size}, ensure_ascii=False, indent=1)
    (folder / PURPOSE_FILE).write_text(text + "\n", encoding="utf-8")


def load_text_model(folder: Path, head: nn.Module) -> TextModel:
    """The model that `save_text_model` wrote.

    Args:
        folder: where it was written.
        head: a head of the same shape; its weights are replaced.

    Raises:
        CheckpointError: a part is missing, or the head's weights are not this head's.
    """
    if not (folder / HEAD_FILE).exists():
        raise CheckpointError(f"{folder}: no {HEAD_FILE} here; give the best/ folder of a run")
    encoder, _ = load_encoder(folder, vocabulary_size=len(load_tokenizer(folder)))
    try:
        head.load_state_dict(load_file(folder / HEAD_FILE))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: the head is not this task's: {reason}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{folder / HEAD_FILE}: cannot be read: {error}") from None
    return TextModel(encoder, head, padded_right=True)


def read_purpose(folder: Path) -> dict[str, Any]:
    """What a saved model was trained for.

    Raises:
        CheckpointError: the folder was not written by `save_text_model`.
    """
    try:
        purpose: Any = json.loads((folder / PURPOSE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {PURPOSE_FILE} here; give the best/ folder of a run"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{folder / PURPOSE_FILE}: not JSON: {error}") from None
    if not isinstance(purpose, dict) or not set(NEEDED) <= purpose.keys():
        needed = ", ".join(NEEDED)
        raise CheckpointError(
            f"{folder / PURPOSE_FILE}: needs {needed}; it is damaged, or of another version"
        )
    return purpose


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
