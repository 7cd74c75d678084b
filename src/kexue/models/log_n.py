r"""从熵不变性看Attention的Scale操作 — log n attention inside Hugging Face models (S07)

One line gives a model of transformers the entropy-invariant scale, by name:

    register_log_n("sdpa_logn", base=512)
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa_logn")

The registered function multiplies the queries of row i by log_base(n_i) and calls the attention it
wraps, n_i being the number of keys that the row may see (`nn.attention_scale`):

    a 4-d mask was made      n_i = number of visible entries of row i                           (1)
    no mask, causal          n_i = i + 1                                                        (2)
    no mask otherwise        n_i = K: encoders, cross attention, one decoded token               (3)

(1) covers padding on either side, sliding windows, packed documents, static caches and custom
masks, since transformers puts all of them into the mask. Layers of one pass share the mask, so it
is counted once per pass, eight entries in one 64-bit word. flex attention has no dense mask; there
the pairs are counted a strip of rows at a time when the block mask is made. In case (3) the factor
goes into the scaling and costs nothing.

Additive masks hide what lies below −32,752, half the most negative float16. Biases of positions are
added to the scaled logits and are themselves not scaled.

Axes: B batch, H heads, Q queries, K keys, d size of a head.
Source: article 8823; interfaces of transformers 5 (AttentionInterface, AttentionMaskInterface).
See also: `nn.log_n_attention` for models of your own.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from kexue.nn.attention_scale import log_n_scale

__all__ = ["count_visible", "register_log_n"]

HIDDEN = torch.finfo(torch.float16).min / 2
STRIP = 512
"""Rows of a flex attention mask that are counted at a time."""


def register_log_n(
    name: str = "sdpa_logn",
    inner: str = "sdpa",
    *,
    base: float | int = 512,
    min_len: int = 1,
    clip: bool = False,
    allow_other_scales: bool = False,
) -> None:
    """Make `attn_implementation=name` the attention `inner` with a log n scale.

    Register in every process that loads such a model: the name is not stored with its weights.

    Args:
        name: what to give as `attn_implementation`; registering again replaces it.
        inner: `sdpa` (which runs FlashAttention on GPUs), `eager` (which can return weights),
            `flex_attention`, or any attention registered together with its mask function.
        base: the n at which nothing changes: 512 in the article; the training length with `clip`.
        min_len: floor of n; 16 in the author's code.
        clip: never below the usual scale. For models trained without log n, with `base` the length
            that they were trained at: shorter texts stay as they were, longer ones are sharpened.
        allow_other_scales: accept models that already scale logits by length (YaRN, LongRoPE,
            Llama 4, Ministral 3, Inkling); otherwise they are refused when they run.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: the name is taken or would be read as something else, inner is unknown, has no
            mask function or is a flash attention package, base is not above 1, min_len below 1.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> register_log_n("sdpa_logn", base=128, min_len=16)
        >>> sizes = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=30)
        >>> config = BertConfig(**sizes, attn_implementation="sdpa_logn")
        >>> BertModel(config)(torch.tensor([[2, 5, 7, 3]])).last_hidden_state.shape
        torch.Size([1, 4, 32])
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'register_log_n needs transformers: pip install "kexue[nlp]"'
        ) from error
    log_n_scale(1, 1, base, min_len)  # checks
    taken = dict(ALL_ATTENTION_FUNCTIONS).get(name)
    if name == "eager" or (taken is not None and not hasattr(taken, "log_n_inner")):
        raise ValueError(
            f"name {name!r} is an attention of its own; choose another, as 'sdpa_logn'"
        )
    if not name or any(part in name for part in ("flash", "/", "|")):
        raise ValueError(
            f"name {name!r} would be read by transformers as a flash attention package or a "
            "kernel; leave out 'flash', '/' and '|'"
        )
    if inner.startswith("flash_attention") or "/" in inner:
        raise ValueError(
            f"inner {inner!r} picks its kernel by the model's attention name, which would be "
            f"{name!r}; use inner='sdpa', which runs FlashAttention on GPUs"
        )
    known = dict(ALL_ATTENTION_FUNCTIONS)
    if inner != "eager" and inner not in known:
        raise ValueError(f"inner {inner!r} is not registered; there are eager, {', '.join(known)}")
    if inner not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"inner {inner!r} has no mask function, so its visible keys cannot be counted: "
            f"register one with AttentionMaskInterface.register({inner!r}, ...)"
        )
    make_mask = ALL_MASK_ATTENTION_FUNCTIONS[inner]
    attention = _log_n(known.get(inner), base, min_len, clip, allow_other_scales)
    attention.log_n_inner = inner  # type: ignore[attr-defined]
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _with_counts(make_mask) if "flex" in inner else make_mask)


def count_visible(mask: Bool[Tensor, "*rows K"]) -> Int[Tensor, "*rows"]:
    """True entries of each row; on a CPU eight at a time, since torch sums bool one by one.

    Example:
        >>> count_visible(torch.tensor([[True, False, True], [False, False, False]]))
        tensor([2, 0])
    """
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return mask.sum(dim=-1)
    block = 8 if mask.shape[-1] <= 8 * 255 else 8 * 128
    if (missing := -mask.shape[-1] % block) or not mask.is_contiguous():
        mask = F.pad(mask, (0, missing)).contiguous()
    words = mask.view(torch.uint8).view(torch.int64)  # (*rows, K / 8), eight counters in each
    words = words.unflatten(-1, (-1, 128)) if block > 8 else words.unsqueeze(-2)
    return words.sum(dim=-1).view(torch.uint8).sum(dim=-1)  # no counter passes 255


def _log_n(
    inner: Callable[..., Any] | None,
    base: float | int,
    min_len: int,
    clip: bool,
    allow_other_scales: bool,
) -> Callable[..., Any]:
    """The attention function to register; without `inner`, each model's own eager one."""
    known: Any = WeakTensorKeyDictionary()  # mask → (version, factor): one count for all layers

    def factor_of(n: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        return log_n_scale(n, 1, base, min_len, clip, wide).unsqueeze(-1).to(dtype)

    def of_mask(mask: Tensor, k_len: int, dtype: torch.dtype) -> Tensor:
        mask = mask[..., :k_len] if mask.shape[-1] > k_len else mask
        return factor_of(count_visible(mask if mask.dtype == torch.bool else mask > HIDDEN), dtype)

    def of_known_mask(mask: Tensor, k_len: int, dtype: torch.dtype) -> Tensor:
        if (
            torch.compiler.is_compiling()
            or torch.is_inference_mode_enabled()
            or mask.is_inference()
        ):
            return of_mask(mask, k_len, dtype)  # the compiler finds the repetition by itself
        key = (mask._version, k_len, dtype)
        version, factor = known.get(mask, (None, mask))
        if version != key:
            factor = of_mask(mask, k_len, dtype)
            known[mask] = (key, factor)
        return cast(Tensor, factor)

    def attention(
        module: nn.Module,
        query: Float[Tensor, "B H Q d"],
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if not allow_other_scales:
            _refuse_other_scales(module)
        q_len, k_len = query.shape[2], key.shape[2]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 4:
            query = query * of_known_mask(attention_mask, k_len, query.dtype)  # (1)
        elif attention_mask is not None:
            query = query * factor_of(_flex_counts(attention_mask), query.dtype)  # (1)
        elif kwargs.get("cache") is not None:
            raise ValueError("a paged cache without a mask hides how many keys a row sees")
        elif causal and q_len > 1 and inner is not None:
            rows = torch.arange(1, q_len + 1, device=query.device)
            query = query * factor_of(rows, query.dtype)  # (2)
        elif torch.compiler.is_compiling():  # a number would be compiled again for every length
            query = query * factor_of(torch.full((1,), k_len, device=query.device), query.dtype)
        else:
            factor = math.log(max(k_len, min_len)) / math.log(base)
            scaling *= max(factor, 1.0) if clip else factor  # (3)
        function = _eager(module) if inner is None else inner
        if is_causal is not None:
            kwargs["is_causal"] = is_causal
        return function(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    return attention


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file that the module comes from."""
    found = inspect.unwrap(type(module).forward).__globals__.get("eager_attention_forward")
    if found is None:
        raise ValueError(
            f"{type(module).__name__} has no eager_attention_forward; register with inner='sdpa'"
        )
    return found  # type: ignore[no-any-return]


def _refuse_other_scales(module: nn.Module) -> None:
    config = getattr(module, "config", None)
    rope = getattr(config, "rope_parameters", None) or {}
    other = None
    for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        kind = one.get("rope_type")
        if kind in ("yarn", "longrope") and one.get("attention_factor") != 1.0:
            other = f"rope_type={kind!r} (give it attention_factor=1.0)"
        if one.get("llama_4_scaling_beta"):
            other = "rope_parameters['llama_4_scaling_beta'] (set it to 0)"
    if getattr(config, "attn_temperature_tuning", False):
        other = "attn_temperature_tuning (set it to False)"
    if getattr(config, "log_scaling_n_floor", None) is not None:
        other = "log_scaling_n_floor (set log_scaling_alpha to 0 and allow_other_scales)"
    if other is not None:
        raise ValueError(
            f"this model already scales its logits by length through {other}; with log n the "
            "attention would be sharpened twice. Turn it off, or register with "
            "allow_other_scales=True"
        )


def _with_counts(make_mask: Callable[..., Any]) -> Callable[..., Any]:
    """A flex attention mask function whose block mask knows how many keys each row sees."""

    def mask(**sizes: Any) -> Any:
        block_mask = make_mask(**sizes)
        if block_mask is not None:
            block_mask.log_n_counts = _counts_by_strips(sizes)
        return block_mask

    return mask


def _counts_by_strips(sizes: dict[str, Any]) -> Int[Tensor, "B 1 Q"]:
    from transformers.masking_utils import sdpa_mask

    dense = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    counts = []
    for start in range(0, sizes["q_length"], STRIP):
        rows = {
            "q_length": min(STRIP, sizes["q_length"] - start),
            "q_offset": sizes.get("q_offset", 0) + start,
        }
        counts.append(count_visible(sdpa_mask(**(sizes | dense | rows))))  # (B, 1, strip)
    return torch.cat(counts, dim=-1)


def _flex_counts(block_mask: Any) -> Int[Tensor, "B 1 Q"]:
    counts = getattr(block_mask, "log_n_counts", None)
    if counts is None:
        raise ValueError(
            "log n attention needs a 4-d mask or a block mask made by transformers for this name, "
            f"got {type(block_mask).__name__} of shape {tuple(block_mask.shape)}"
        )
    return counts  # type: ignore[no-any-return]
