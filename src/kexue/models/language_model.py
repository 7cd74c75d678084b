r"""A small left-to-right language model around any sequence layer of `kexue.nn`.

    h = E[ids]                                                                                 (1)
    h ← h + layer(Norm(h)),   for every layer of the stack                                     (2)
    logits = Norm(h) E^T                                                                       (3)

It is there to compare layers under one budget and as the core that pre-training grows from. A
*block* is about 12 d² parameters whatever the layer is, so that depth means the same for all: an
attention layer (4 d²) with a feed-forward layer (8 d²), or two gated layers (6 d² each), which
hold attention and feed-forward in one.

Symbols: E embedding, tied with the output; d d_model.   Axes: B batch, L tokens, V vocabulary.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.models.loading import CheckpointError
from kexue.nn.residual import PreNorm
from kexue.nn.vq_layer import TransformerVQLayer, commitment_loss

__all__ = [
    "LAYERS",
    "LanguageModel",
    "LanguageModelConfig",
    "load_language_model",
    "save_language_model",
]

WEIGHTS, CONFIG = "model.safetensors", "language_model.json"


@dataclass(frozen=True)
class LanguageModelConfig:
    """The shape of a language model.

    Args:
        vocabulary_size: V.
        layer: a name of `LAYERS`.
        d_model: d.
        depth: blocks.
        num_heads: of layers that have heads.
        options: further arguments of the layer, such as {"chunk_size": 128}.

    Raises:
        ValueError: an unknown layer, or a size that is not positive.
    """

    vocabulary_size: int
    layer: str = "attention"
    d_model: int = 128
    depth: int = 2
    num_heads: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise ValueError(f"no layer is called {self.layer!r}; known: {', '.join(LAYERS)}")
        for name in ("vocabulary_size", "d_model", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class FeedForward(nn.Module):
    """W_2 gelu(W_1 x), four times as wide inside: 8 d² parameters."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.wide = nn.Linear(d_model, 4 * d_model)
        self.narrow = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        hidden: Tensor = self.narrow(F.gelu(self.wide(x)))
        return hidden


def attention_block(config: LanguageModelConfig) -> list[nn.Module]:
    """Softmax attention and a feed-forward layer."""
    from kexue.nn.log_n_attention import LogNAttention

    layer = LogNAttention(
        config.d_model, config.num_heads, base=None, causal=True, rope=True, **config.options
    )
    return [layer, FeedForward(config.d_model)]


def performer_block(config: LanguageModelConfig) -> list[nn.Module]:
    """FAVOR+ attention and a feed-forward layer."""
    from kexue.nn.performer import PerformerAttention

    layer = PerformerAttention(
        config.d_model, config.num_heads, causal=True, rope=True, **config.options
    )
    return [layer, FeedForward(config.d_model)]


def gau_block(config: LanguageModelConfig) -> list[nn.Module]:
    """Two gated attention units."""
    from kexue.nn.gau import GatedAttentionUnit

    return [GatedAttentionUnit(config.d_model, causal=True, **config.options) for _ in range(2)]


def flash_block(config: LanguageModelConfig) -> list[nn.Module]:
    """Two FLASH layers."""
    from kexue.nn.flash_layer import FlashLayer

    return [FlashLayer(config.d_model, causal=True, **config.options) for _ in range(2)]


def vq_block(config: LanguageModelConfig) -> list[nn.Module]:
    """Two gated layers with quantised keys."""
    return [TransformerVQLayer(config.d_model, causal=True, **config.options) for _ in range(2)]


LAYERS: dict[str, Callable[[LanguageModelConfig], list[nn.Module]]] = {
    "attention": attention_block,
    "gau": gau_block,
    "flash": flash_block,
    "performer": performer_block,
    "vq": vq_block,
}
"""What a block is made of, by the name of its layer."""


class LanguageModel(nn.Module):
    """Predicts the next token: (1), (2), (3).

    Args:
        config: its shape.

    Example:
        >>> import torch
        >>> model = LanguageModel(LanguageModelConfig(vocabulary_size=50, d_model=32))
        >>> ids = torch.randint(50, (2, 7))
        >>> model(ids).shape
        torch.Size([2, 7, 50])
        >>> cache = model.eval().new_cache()
        >>> parts = torch.cat([model(ids[:, :4], cache=cache), model(ids[:, 4:], cache=cache)], 1)
        >>> torch.allclose(parts, model(ids), atol=1e-5)
        True
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.d_model)
        make = LAYERS[config.layer]
        self.layers = nn.ModuleList(layer for _ in range(config.depth) for layer in make(config))
        self.residuals = nn.ModuleList(PreNorm(config.d_model) for _ in self.layers)
        self.norm = nn.LayerNorm(config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def new_cache(self) -> list[Any]:
        """One empty cache per layer, None for feed-forward layers, which need none."""
        layers: Any = self.layers
        return [layer.new_cache() if is_mixer(layer) else None for layer in layers]

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"] | None = None,
        cache: list[Any] | None = None,
    ) -> Float[Tensor, "B L V"]:
        """Logits of the token after each one.

        Args:
            input_ids: token ids; with a cache, those that follow what it has seen.
            attention_mask: True = visible.
            cache: from `new_cache`, changed in place.
        """
        hidden = self.embedding(input_ids)  # (B, L, d)  # (1)
        caches = cache or [None] * len(self.layers)
        for layer, residual, seen in zip(self.layers, self.residuals, caches, strict=True):
            options = {"attention_mask": attention_mask, "cache": seen} if is_mixer(layer) else {}
            hidden = residual(hidden, partial(layer, **options))  # (2)
        return F.linear(self.norm(hidden), self.embedding.weight)  # (B, L, V)  # (3)

    def auxiliary_loss(self) -> Tensor:
        """What layers want minimised beside the prediction, as of the last forward pass."""
        if not any(isinstance(layer, TransformerVQLayer) for layer in self.layers):
            return self.embedding.weight.new_zeros(())
        return commitment_loss(self)


def is_mixer(layer: nn.Module) -> bool:
    """Whether a layer looks at other tokens."""
    return not isinstance(layer, FeedForward)


def save_language_model(
    folder: Path, model: LanguageModel, tokenizer: Any, state: dict[str, Tensor] | None = None
) -> None:
    """Weights (safetensors), shape and tokenizer into a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state is None else state
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)
    text = json.dumps(asdict(model.config), indent=1)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)


def load_language_model(folder: Path) -> LanguageModel:
    """The model that `save_language_model` wrote, ready to be used.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are another model's.
    """
    try:
        config = LanguageModelConfig(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        model = LanguageModel(config)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        name = Path(error.filename or WEIGHTS).name
        raise CheckpointError(f"{folder}: no {name} here; give the best/ folder of a run") from None
    except (ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: is no language model of kexue: {reason}") from None
    return model.eval()
