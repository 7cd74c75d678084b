"""The model under audit and a batch for it: a folder, a hub name or `tiny`, trained or as drawn.

Language models are loaded with their head and their own loss (masked or causal), any other model
without a head; of an encoder-decoder the encoder is taken. Weights come from safetensors alone:
nothing is ever unpickled and no code of a model folder is run. A local folder never touches the
network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kexue.models.loading import (
    TOKENIZER_FILES,
    CheckpointError,
    check_files,
    check_reachable,
    first_line,
    hub_hint,
    load_tokenizer,
    quiet_transformers,
    tabulate,
)
from kexue.models.tiny import tiny_encoder, tiny_tokenizer

__all__ = ["SAMPLE", "Subject", "load_subject"]

SAMPLE = (
    "A model learns well only if its signals keep their size on the way through it. "
    "When the first layers see hardly any gradient, the last ones learn from noise. "
    "一个模型要学得好，信号在层与层之间就要保持合适的大小。"
    "如果前面的层几乎收不到梯度，后面的层就只能从噪声里学习。"
    "In 2017 nobody asked why 0.02; by 2021 people did, and the answer fits on one page. "
    "初始化、归一化与学习率预热，说的其实是同一件事：别让任何一层先跑得太远。"
)
ROWS, LENGTH = 4, 128
MASKED, UNSEEN = 0.15, -100
"""Share of the tokens to predict in a masked model; the label that its loss leaves out."""

Head = Literal["masked", "causal", "none"]


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Args:
        model: with its head, if it is a language model; on the CPU, in float32.
        batch: arguments of the model, labels included where it has a loss.
        source: where it came from, in words.
        loss: what the gradients are of, in words.
        text: what the batch was made of, in words.
    """

    model: nn.Module
    batch: dict[str, Tensor]
    source: str
    loss: str
    text: str


def load_subject(
    source: str | Path, *, init: bool = False, text: str | None = None, seed: int = 0
) -> Subject:
    """The model and a batch of up to 4 rows of 128 tokens.

    Args:
        source: `tiny`, a folder written by `save_pretrained`, or a hub name.
        init: the architecture of the config with weights freshly drawn.
        text: what the batch is made of; a built-in sample when None. Without a tokenizer the
            tokens are drawn at random, and a text is refused.
        seed: of fresh weights, of random tokens and of masking.

    Raises:
        CheckpointError: no config, no safetensors, unreadable, or no text model.
    """
    if text is not None and not text.strip():
        raise CheckpointError("the text is empty: give a file with a few sentences")
    head: Head = "none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if str(source) == "tiny":
            tokenizer = tiny_tokenizer()
            model: Any = tiny_encoder(len(tokenizer))
            said = "tiny (built in, fresh weights)"
        else:
            config = _config(source)
            head = _head(config)
            model = _model(source, config, head, init)
            tokenizer = _tokenizer(source)
            said = f"{source} ({'fresh weights' if init else 'its own weights'})"
    ids, made = _ids(source, model, tokenizer, text, seed)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    loss = "the mean of the output under random signs"
    if head == "causal":
        batch["labels"], loss = ids.clone(), "next-token cross-entropy"
    elif head == "masked":
        mask_id = getattr(tokenizer, "mask_token_id", None)
        batch["input_ids"], batch["labels"] = _masked(ids, mask_id, seed)
        loss = "masked-token cross-entropy"
    return Subject(model, batch, said, loss, made)


def _config(source: str | Path) -> Any:
    from transformers import AutoConfig

    folder = Path(source)
    check_reachable(source)
    if folder.is_dir() and not (folder / "config.json").exists():
        present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"{folder}: no config.json here; the folder holds {present}")
    try:
        config = AutoConfig.from_pretrained(
            str(source), local_files_only=folder.is_dir(), trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source}: config not read: {first_line(error)}{hub_hint(folder)}"
        ) from error
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise CheckpointError(
            f"{source}: {config.model_type} has no vocab_size, so it reads no text; give a text "
            "Transformer such as BERT, GPT-2 or Llama"
        )
    return config


def _head(config: Any) -> Head:
    name = (getattr(config, "architectures", None) or [""])[0]
    if config.is_encoder_decoder:
        return "none"
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        return "masked"
    return "causal" if name.endswith(("ForCausalLM", "LMHeadModel")) else "none"


def _model(source: str | Path, config: Any, head: Head, init: bool) -> Any:
    """From its config alone, or with its weights, of which 95 % must match."""
    import transformers

    names = {"masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM"}
    auto = getattr(transformers, names.get(head, "AutoModel"))
    folder = Path(source)
    options = {"local_files_only": folder.is_dir(), "use_safetensors": True, "dtype": "float32"}
    trust = {"trust_remote_code": False}  # the default asks the user, and runs it on a yes
    try:
        with quiet_transformers():
            if init:
                model = auto.from_config(config, dtype=torch.float32, **trust)
            else:
                _check_weights(folder)
                model, info = auto.from_pretrained(
                    str(source),
                    config=config,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **options,
                    **trust,
                )
                tabulate(str(source), model, info).require()
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{source}: model not built: {first_line(error)}{hub_hint(folder)}"
        ) from error
    return model.get_encoder() if config.is_encoder_decoder else model


def _check_weights(folder: Path) -> None:
    check_files(folder)
    if not folder.is_dir() or list(folder.glob("*.safetensors")):
        return
    pickled = sorted(
        p.name for end in ("bin", "pt", "pth", "ckpt") for p in folder.glob(f"*.{end}")
    )
    if pickled:
        raise CheckpointError(
            f"{folder}: only pickled weights here ({', '.join(pickled[:3])}), which are never "
            "opened; save them as safetensors, or give --init to audit the fresh architecture"
        )
    raise CheckpointError(
        f"{folder}: no weights here (*.safetensors); give --init to audit the fresh architecture"
    )


def _tokenizer(source: str | Path) -> Any:
    """The tokenizer, or None for a folder that holds none."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    return load_tokenizer(source)


def _ids(
    source: str | Path, model: Any, tokenizer: Any, text: str | None, seed: int
) -> tuple[Tensor, str]:
    """Token ids without padding, (B, L), and what they were made of."""
    entries = model.get_input_embeddings().num_embeddings
    most = getattr(model.config, "max_position_embeddings", None) or LENGTH
    length = max(4, min(LENGTH, most - 2))
    if tokenizer is None:
        if text is not None:
            raise CheckpointError(f"{source}: no tokenizer in the folder, so no text can be read")
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(entries, (ROWS, length), generator=generator), "random tokens"
    given, size = text or SAMPLE, 0
    while size < ROWS * length and len(given) < 40 * ROWS * length:
        size = len(tokenizer(given)["input_ids"])
        given = given if size >= ROWS * length else f"{given} {given}"
    cut = tokenizer(given, truncation=True, max_length=length, return_overflowing_tokens=True)[
        "input_ids"
    ]
    whole = [row for row in cut[:ROWS] if len(row) == len(cut[0])]
    ids = torch.tensor(whole)
    if int(ids.max()) >= entries:
        raise CheckpointError(
            f"{source}: the tokenizer gives token {int(ids.max())}, the model embeds only "
            f"{entries}; they do not belong together"
        )
    return ids, "the given text" if text else "the built-in sample text"


def _masked(ids: Tensor, mask_id: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens with some hidden, and labels that are set where they are hidden."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(ids.shape, generator=generator) < MASKED
    hidden[:, 1] = True  # at least one in every row
    labels = torch.where(hidden, ids, UNSEEN)
    return (ids if mask_id is None else torch.where(hidden, mask_id, ids)), labels
