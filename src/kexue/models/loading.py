"""Pretrained encoders, loaded strictly: what matched, what is missing, what was left over.

A checkpoint whose names do not fit loads in silence elsewhere and trains from noise. Here every
load comes with a table, and a backbone that matched less than 95 % of its parameters is refused.
A local folder never touches the network; the hub's own variables (HF_ENDPOINT, HF_HUB_OFFLINE,
HF_HOME) are honoured for names that are no folder.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from kexue.models.tiny import tiny_encoder, tiny_tokenizer

__all__ = ["CheckpointError", "LoadTable", "load_encoder", "load_tokenizer", "quiet_transformers"]

MINIMUM_MATCHED = 0.95


class CheckpointError(ValueError):
    """A model folder that cannot be used; the message says why and what would help."""


@dataclass(frozen=True)
class LoadTable:
    """What became of a checkpoint's weights.

    Args:
        source: folder or hub name.
        matched: parameters of the encoder that were filled from the checkpoint.
        total: parameters of the encoder.
        missing: names the encoder has and the checkpoint lacks; they hold random numbers.
        mismatched: names whose shapes differ, as "name: checkpoint shape, model shape".
        unexpected: names the checkpoint has and the encoder lacks (heads of its pretraining).
        layers: the share that matched without counting embeddings.
    """

    source: str
    matched: int
    total: int
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    layers: float | None = None

    @property
    def share(self) -> float:
        """Matched over all parameters: of the whole encoder, or of its layers if that is less.

        A large embedding table must not hide a missing layer, nor the other way round.
        """
        whole = self.matched / max(self.total, 1)
        return min(whole, self.layers) if self.layers is not None else whole

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.share:.1%} of {self.total:,} parameters matched"]
        for kind in ("missing", "mismatched", "unexpected"):
            names = getattr(self, kind)
            shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
            lines.append(f"  {kind:<10} {len(names):>4}  {shown}".rstrip())
        return "\n".join(lines)

    def require(self, minimum: float = MINIMUM_MATCHED) -> None:
        """Refuses a backbone that is mostly noise.

        Raises:
            CheckpointError: less than `minimum` of the parameters matched.
        """
        if self.share < minimum:
            raise CheckpointError(
                f"{self.source}: only {self.share:.1%} of the encoder's parameters are in the "
                f"checkpoint, {minimum:.0%} are needed; does config.json belong to these weights? "
                f"missing {len(self.missing)} (e.g. {', '.join(self.missing[:2]) or 'none'}), "
                f"mismatched {len(self.mismatched)} (e.g. "
                f"{', '.join(self.mismatched[:2]) or 'none'}), unexpected {len(self.unexpected)} "
                f"(e.g. {', '.join(self.unexpected[:2]) or 'none'})"
            )


def load_tokenizer(source: str | Path) -> Any:
    """The fast tokenizer of `tiny`, a folder or a hub name.

    Raises:
        CheckpointError: the folder holds none, or the hub cannot be reached.
    """
    if str(source) == "tiny":
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    folder = Path(source)
    check_files(folder)
    if folder.is_dir() and not any((folder / f).exists() for f in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder}: no tokenizer here (looked for {', '.join(TOKENIZER_FILES)}); "
            "copy vocab.txt of the original model or call tokenizer.save_pretrained(folder)"
        )
    check_reachable(source)
    try:
        return AutoTokenizer.from_pretrained(
            str(source), local_files_only=folder.is_dir(), **NO_FOREIGN_CODE
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{source}: tokenizer not loaded: {first_line(error)}{hub_hint(folder)}"
        ) from error


NO_FOREIGN_CODE = {"trust_remote_code": False}
"""The default of transformers asks the user whether to run a folder's own code."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")


def load_encoder(source: str | Path, *, vocabulary_size: int) -> tuple[nn.Module, LoadTable]:
    """An encoder with `last_hidden_state`, and the table of its weights.

    Args:
        source: `tiny` (random weights from torch's current seed), a folder written by
            `save_pretrained`, or a hub name.
        vocabulary_size: entries of the tokenizer; the embedding table grows if it is smaller.

    Raises:
        CheckpointError: no config, no weights, unreadable, or less than 95 % matched.
    """
    if str(source) == "tiny":
        encoder = tiny_encoder(vocabulary_size)
        total = count(encoder)
        return encoder, LoadTable("tiny (from scratch)", total, total)
    folder = Path(source)
    check_reachable(source)
    check_files(folder)
    if folder.is_dir() and not (folder / "config.json").exists():
        present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"{folder}: no config.json here; the folder holds {present}")
    try:
        with quiet_transformers():
            encoder, info = from_pretrained(
                str(source), local_files_only=folder.is_dir(), **NO_FOREIGN_CODE
            )
    except UnpicklingError as error:
        raise CheckpointError(
            f"{source}: weights not loaded: the pickled file asks for more than tensors, and "
            "untrusted code is never run; get the model in safetensors form"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{source}: weights not loaded: {first_line(error)}{hub_hint(folder)}"
        ) from error
    table = tabulate(str(source), encoder, info)
    table.require()
    embeddings = encoder.get_input_embeddings().num_embeddings
    if vocabulary_size > embeddings + MOST_ADDED:
        raise CheckpointError(
            f"{source}: the tokenizer has {vocabulary_size} entries, the checkpoint embeds only "
            f"{embeddings}; they do not belong together"
        )
    if not reads_both_ways(encoder):
        raise CheckpointError(
            f"{source}: {encoder.config.model_type} reads from left to right only; the tasks need "
            "an encoder such as BERT"
        )
    if embeddings < vocabulary_size:
        with quiet_transformers():
            encoder.resize_token_embeddings(vocabulary_size)
    return encoder, table


MOST_ADDED = 64
"""Entries that a tokenizer may have gained since its checkpoint was made."""


def reads_both_ways(encoder: Any) -> bool:
    """Whether the first token's state depends on the last token."""
    rows = torch.full((2, 4), min(5, encoder.get_input_embeddings().num_embeddings - 1))
    rows[1, -1] -= 1
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        states = encoder(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state
    encoder.train(training)
    return not torch.equal(states[0, 0], states[1, 0])


def from_pretrained(source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """transformers' own loading, without a pooler where the architecture lets one leave it out."""
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    config = AutoConfig.from_pretrained(source, **options)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} is an encoder-decoder; an encoder is needed")
    if type(config) in MODEL_MAPPING:
        init = inspect.signature(MODEL_MAPPING[type(config)].__init__)
        if "add_pooling_layer" in init.parameters:
            options["add_pooling_layer"] = False
    return AutoModel.from_pretrained(  # type: ignore[no-any-return]
        source,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype="float32",
        **options,
    )


def tabulate(source: str, encoder: nn.Module, info: dict[str, Any]) -> LoadTable:
    """The table from transformers' loading information."""
    mismatched = {
        item[0]: (
            f"{item[0]}: checkpoint {list(item[1])}, model {list(item[2])}"
            if len(item) > 2
            else item[0]
        )
        for item in (m if isinstance(m, tuple) else (m,) for m in info["mismatched_keys"])
    }
    missing = set(info["missing_keys"]) - set(mismatched)
    sizes = {name: p.numel() for name, p in encoder.named_parameters() if "pooler." not in name}
    lost = sum(size for name, size in sizes.items() if name in missing or name in mismatched)
    total = sum(sizes.values())
    layers = {n: size for n, size in sizes.items() if "embedding" not in n}
    kept = sum(size for n, size in layers.items() if n not in missing and n not in mismatched)
    return LoadTable(
        source,
        total - lost,
        total,
        tuple(sorted(missing)),
        tuple(mismatched[name] for name in sorted(mismatched)),
        tuple(sorted(info["unexpected_keys"])),
        kept / max(1, sum(layers.values())),
    )


def check_reachable(source: str | Path) -> None:
    """A path that does not exist is no hub name: say so before asking the network."""
    text = str(source)
    if Path(text).exists():
        return
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text
    if looks_local:
        raise CheckpointError(f"{text}: no such folder; give tiny, a model folder or a hub name")


def check_files(folder: Path) -> None:
    """Names two kinds of folders that look like a model and hold none.

    Raises:
        CheckpointError: a TensorFlow checkpoint, or pointers that Git LFS left in place of files.
    """
    if list(folder.glob("*.ckpt.index")) and not list(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: this is a TensorFlow checkpoint; fetch the PyTorch version of the model "
            "(config.json, model.safetensors, vocab.txt)"
        )
    for weights in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        with weights.open("rb") as file:
            if file.read(23) == b"version https://git-lfs":
                raise CheckpointError(f"{weights}: a Git LFS pointer, not the file: git lfs pull")


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def hub_hint(folder: Path) -> str:
    """What helps where the hub cannot be reached."""
    local = "; give a local folder, or set HF_ENDPOINT to a mirror"
    return "" if folder.is_dir() else local


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:300]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Our table replaces pages of warnings and bars."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
