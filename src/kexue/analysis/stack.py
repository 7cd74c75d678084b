"""A stack of Transformer blocks in seven numbers, from a config or a model (S06).

Fields of Hugging Face configs go by many names; what is not found, or whose arrangement of norms is
not known, is refused with the way out: give a `Stack`, or the model itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from kexue.analysis.transformer_blocks import find_blocks

__all__ = ["Stack", "activation_of", "norm_of", "stack_of", "times_run"]

FIELDS = {
    "width": ("hidden_size", "d_model", "n_embd", "dim"),
    "feed_forward": (
        "intermediate_size", "encoder_ffn_dim", "ffn_dim", "d_ff", "n_inner", "hidden_dim",
    ),
    "layers": ("num_hidden_layers", "encoder_layers", "n_layer", "n_layers", "num_layers"),
    "std": ("initializer_range", "init_std"),
    "activation": (
        "hidden_act", "hidden_activation", "activation_function", "feed_forward_proj", "activation",
        "afn",
    ),
}  # fmt: skip
POST = {
    "bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "albert", "deberta",
    "deberta-v2", "mpnet", "ernie", "nezha", "roformer", "longformer", "big_bird", "layoutlm",
    "data2vec-text", "bert-generation", "openai-gpt", "xlm", "convbert", "bart", "roformer_v2",
}  # fmt: skip
PRE = {
    "modernbert", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "mixtral", "qwen2",
    "qwen3", "phi", "phi3", "gemma", "bloom", "falcon", "starcoder2", "stablelm", "opt", "t5",
    "xlm-roberta-xl", "roberta-prelayernorm", "megatron-bert", "esm", "vit", "mbart", "olmo",
    "gpt_bigcode", "smollm3", "cohere",
}  # fmt: skip
GATED = {"modernbert", "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "olmo", "stablelm"}


@dataclass(frozen=True)
class Stack:
    """Blocks of attention and feed-forward whose matrices are all drawn alike.

    Args:
        width: d.
        feed_forward: inner width of the feed-forward layers.
        layers: blocks; each has two sub-layers.
        std: of every matrix.
        norm: "post", Norm(x + F(x)), or "pre", x + F(Norm x).
        activation: of the feed-forward layers, see `second_moment`.
        gated: feed-forward layers with a gate.
        residual_std: std of the last matrix of every branch, where it differs (GPT-2).
    """

    width: int
    feed_forward: int
    layers: int
    std: float
    norm: Literal["post", "pre"] = "post"
    activation: str | Callable[[Tensor], Tensor] = "gelu"
    gated: bool = False
    residual_std: float | None = None

    def __post_init__(self) -> None:
        for name in ("width", "feed_forward", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std must be finite and at least 0, got {self.std}")
        if self.norm not in ("post", "pre"):
            raise ValueError(f'norm must be "post" or "pre", got {self.norm!r}')

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sub-layers."""
        both = ("attention", "feed_forward")
        return tuple(f"{block}.{one}" for block in range(self.layers) for one in both)


def stack_of(config: Any) -> Stack:
    """The stack that a Hugging Face config describes; a Stack is returned as it is.

    Raises:
        ValueError: a field is missing, or the arrangement of norms is not known.
    """
    if isinstance(config, Stack):
        return config
    found = {field: _first(config, names) for field, names in FIELDS.items()}
    if found["feed_forward"] is None and found["width"] is not None:
        found["feed_forward"] = 4 * found["width"]  # GPT-2 leaves n_inner empty
    missing = [field for field, value in found.items() if value is None and field != "activation"]
    if missing:
        raise ValueError(
            f"{type(config).__name__} gives no {', no '.join(missing)}; "
            "give a Stack(width, feed_forward, layers, std), a Hugging Face config, or a model"
        )
    kind = str(getattr(config, "model_type", ""))
    std = float(found["std"])
    return Stack(
        width=found["width"],
        feed_forward=found["feed_forward"],
        layers=found["layers"] * _inner(config),
        std=std,
        norm=_arrangement(config),
        activation=_activation_name(found["activation"]),
        gated=kind in GATED,
        residual_std=std / (2 * found["layers"]) ** 0.5 if kind == "gpt2" else None,
    )


def _arrangement(config: Any) -> Literal["post", "pre"]:
    kind = str(getattr(config, "model_type", ""))
    if kind == "opt" and not getattr(config, "do_layer_norm_before", True):
        return "post"
    if kind in POST:
        return "post"
    if kind in PRE:
        return "pre"
    raise ValueError(
        f"it is not known where {kind or type(config).__name__!r} puts its norms; describe it as "
        'Stack(width, feed_forward, layers, std, norm="post"), or measure it with '
        "measure_identity_path(model, batch)"
    )


def norm_of(model: nn.Module) -> Literal["post", "pre"]:
    """Where a model puts its norms.

    Raises:
        ValueError: not known.
    """
    block = find_blocks(model)[0][1]
    if isinstance(block, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return "pre" if block.norm_first else "post"
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(
            f"{type(model).__name__} has no config that says where its norms are; "
            "measure_identity_path(model, batch) sees it in a forward pass"
        )
    return _arrangement(config)


def activation_of(model: nn.Module) -> str | Callable[[Tensor], Tensor]:
    """The activation of a model's feed-forward layers."""
    block = find_blocks(model)[0][1]
    if isinstance(block, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        found: Callable[[Tensor], Tensor] = block.activation
        return found
    return _activation_name(_first(getattr(model, "config", None), FIELDS["activation"]))


def times_run(model: nn.Module, blocks: int) -> int:
    """How often the list of blocks is run through: ALBERT shares one among all its layers."""
    config = getattr(model, "config", None)
    layers = (_first(config, FIELDS["layers"]) or blocks) * _inner(config)
    return layers // blocks if layers % blocks == 0 else 1


def _activation_name(value: Any) -> str:
    return "gelu" if value is None else str(value).removeprefix("gated-")


def _inner(config: Any) -> int:
    """How many blocks ALBERT runs per layer of its config."""
    return getattr(config, "inner_group_num", None) or 1


def _first(config: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None
