"""Tiger — 一个“抠”到极致的优化器 (S29): what each parameter of a model is.

Tiger's step length depends on what a tensor does in the network:

| kind      | which parameters                                         | step         | decay | c |
|-----------|----------------------------------------------------------|--------------|-------|---|
| bias      | biases of any module                                     | α/2          | 0     | 0 |
| shift     | the additive part of a normalisation; a gain kept as w−1 | α/2          | 0     | 0 |
| gain      | the multiplicative part of a normalisation               | α/2          | 0     | 1 |
| embedding | the table of `nn.Embedding` and `nn.EmbeddingBag`        | α·RMS by row | λ     | 0 |
| matrix    | everything else, of any rank                             | α·RMS        | λ     | 0 |

The author's TensorFlow code reads the kinds off variable names (bias, beta, gamma, embeddings). In
PyTorch `LayerNorm.weight` and `Linear.weight` have the same name, so here the type of the module
decides, then the name of the parameter within it. The centre c is what a weight is drawn to when a
gradient was not finite. Some models (Gemma, Qwen3-Next) keep w − 1 of a gain w; its centre is 0.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["KINDS", "parameter_kinds", "tiger_param_groups"]

KINDS = ("matrix", "bias", "gain", "shift", "embedding")

NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)
GAIN_LESS_ONE = frozenset(
    (
        *("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "RecurrentGemmaRMSNorm"),
        *("T5GemmaRMSNorm", "T5Gemma2RMSNorm", "VaultGemmaRMSNorm", "VideoPrismLayerNorm"),
        *("Qwen3NextRMSNorm", "Qwen3_5RMSNorm", "Qwen3_5MoeRMSNorm", "Qwen4ExpTextRMSNorm"),
        *("MuseGlimmerTextCenteredRMSNorm", "MuseSparkTextCenteredRMSNorm"),
        *("MuseSparkTextInputScaledRMSNorm", "MiniMaxM3VLRMSNorm", "Step3p7RMSNorm"),
        *("NemotronLayerNorm1P", "LayerNorm1P"),
    )
)
"""Classes of transformers and Nemotron that multiply by 1 + weight."""
ADDED = re.compile(r"(^|_)(bias|beta|shift)(_|$)")


def parameter_kinds(model: nn.Module, overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """The kind of every parameter, by name; a shared one appears once, under its first name.

    Args:
        model: any module.
        overrides: regular expression → kind; the first one found in a name decides over the type.

    Raises:
        ValueError: an unknown kind, or an expression that fits no name.

    Example:
        >>> from torch import nn
        >>> parameter_kinds(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2), nn.LayerNorm(2)))
        {'0.weight': 'embedding', '1.weight': 'matrix', '1.bias': 'bias', '2.weight': 'gain', \
'2.bias': 'shift'}
    """
    tables = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    kinds: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        by_type = _kind(model.get_submodule(owner), own_name)
        kinds[name] = "embedding" if parameter in tables else by_type
    wanted = dict(overrides or {})
    for pattern, kind in wanted.items():
        if kind not in KINDS:
            raise ValueError(f"the kind of {pattern!r} must be one of {KINDS}, got {kind!r}")
        if not any(re.search(pattern, name) for name in kinds):
            some = ", ".join(list(kinds)[:4])
            raise ValueError(f"no parameter's name fits {pattern!r}; the names are {some}, …")
    chosen = {n: [k for pattern, k in wanted.items() if re.search(pattern, n)] for n in kinds}
    return {name: chosen[name][0] if chosen[name] else kind for name, kind in kinds.items()}


def _kind(module: nn.Module, name: str) -> str:
    """By the type of the module, then by the name in it."""
    added = ADDED.search(name) is not None
    if isinstance(module, NORMS) or "Norm" in type(module).__name__:
        return "shift" if added or type(module).__name__ in GAIN_LESS_ONE else "gain"
    return "bias" if added else "matrix"


def tiger_param_groups(
    model: nn.Module, overrides: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The parameters of a model as groups, one per kind, with their names.

    `Tiger(model)` calls this; call it yourself to change a group's options or to override kinds.

    Args:
        model: any module. A table shared by the embedding and the output layer is an embedding.
        overrides: regular expression → kind; the first one found in a name decides over the type.

    Returns:
        Groups with `params` (pairs of name and parameter) and `kind`, in the order of `KINDS`.

    Raises:
        ValueError: the model has no parameter, an unknown kind, an expression that fits no name.

    Example:
        >>> from torch import nn
        >>> groups = tiger_param_groups(nn.Linear(4, 2), {"weight": "embedding"})
        >>> [(group["kind"], [name for name, _ in group["params"]]) for group in groups]
        [('bias', ['bias']), ('embedding', ['weight'])]
    """
    kinds = parameter_kinds(model, overrides)
    if not kinds:
        raise ValueError(f"this {type(model).__name__} has no parameters to make groups of")
    groups = []
    for kind in KINDS:
        pairs = [pair for pair in model.named_parameters() if kinds[pair[0]] == kind]
        if pairs:
            groups.append({"params": pairs, "kind": kind})
    return groups
