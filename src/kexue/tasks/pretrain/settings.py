"""What to train, on how much text, and what came of it."""

from dataclasses import dataclass, field
from typing import Any

from kexue.models.language_model import LAYERS
from kexue.training.settings import FitSettings

__all__ = ["LayerResult", "PretrainSettings"]


@dataclass(frozen=True)
class PretrainSettings:
    """One budget for every layer.

    Args:
        layers: names of `models.language_model.LAYERS`.
        d_model: width.
        depth: blocks of about 12 d² parameters.
        num_heads: of layers that have heads.
        length: tokens of a row.
        tokens: training tokens per epoch at most; None: all there are.
        options: further arguments of a layer, by its name.
        fit: the loop; `max_tokens` counts tokens, `batch_size` rows.
        prompt: what the samples of text continue.

    Raises:
        ValueError: an unknown layer, or a size that is not positive.
    """

    layers: tuple[str, ...] = tuple(LAYERS)
    d_model: int = 128
    depth: int = 2
    num_heads: int = 2
    length: int = 512
    tokens: int | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    fit: FitSettings = field(default_factory=FitSettings)
    prompt: str = ""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"name at least one layer of {', '.join(LAYERS)}")
        for name in (*self.layers, *self.options):
            if name not in LAYERS:
                raise ValueError(f"no layer is called {name!r}; known: {', '.join(LAYERS)}, all")
        for name in ("d_model", "depth", "num_heads", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tokens is not None and self.tokens < self.length:
            raise ValueError(f"tokens must fill a row of {self.length} at least, got {self.tokens}")


@dataclass
class LayerResult:
    """What a layer reached with the budget.

    Args:
        layer: its name.
        parameters: trained numbers in all.
        scores: on the dev texts: `loss` in nats per token, `perplexity`, `accuracy` in %.
        best_epoch: the epoch they belong to.
        epochs: epochs trained.
        seconds: in training steps.
        tokens_per_second: in training steps.
        train_tokens: per epoch.
        dev_tokens: that were predicted for the scores.
        milliseconds_per_token: drawing one token after another with the cache, one row.
        sample: the prompt and what the model wrote behind it.
        folder: its folder inside the run.
    """

    layer: str
    parameters: int
    scores: dict[str, float]
    best_epoch: int
    epochs: int
    seconds: float
    tokens_per_second: float
    train_tokens: int
    dev_tokens: int
    milliseconds_per_token: float
    sample: str
    folder: str
