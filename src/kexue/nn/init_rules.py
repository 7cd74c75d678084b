r"""浅谈Transformer的初始化、参数化与标准化 — one rule for a whole model (S04)

Walk a model by the types of its layers, give every weight the variance of one rule, and say what
was done.

    rule             matrices                                       embeddings (d wide)
    lecun            Var w = 1/m                                    1, or 1/d if tied to a matrix
    he               2/m                                            likewise
    xavier           2/(m + n)                                      likewise
    geometric, contraharmonic, harmonic: 1/mean(m, n)               likewise                   (1)
    bert             N(0, 0.02^2) cut at two deviations             as the matrices            (2)
    t5               Var w = 1/m, but Var w_q = 1/(m d_k)           N(0, 1)                    (3)

(1) is drawn from a truncated normal of exactly that deviation. (2) is the original of BERT: the cut
makes it 0.017593; the PyTorch version in transformers does not cut. (3) puts the 1/d_k of
attention into the query, Var(q · k) = 1 at the start, and belongs to attention without a factor
1/sqrt(d_k): E (q · k)^2 = d_k for entries of second moment 1, q of mean zero.

Always: biases 0, torch's normalisations and T5's 1 and 0, the padding row of an embedding 0. An
embedding looks one row up, so its fan-in is 1 and it is never averaged with the vocabulary. A
weight under two names is set once. Packed query, key, value are three matrices. What is not
recognised (recurrent layers, other normalisations, reparametrised weights) stays and is listed as
kept; see `kexue.nn.weight_roles`.

What we do differently: T5 in transformers also starts an untied output layer and the classifier of
tokens at deviation 1; here they are matrices like the others, 1/m.

Symbols: m fan-in, n fan-out, d_k size of a head.   Cost: one pass over the parameters.
Source: article 8620; T5's rule as in transformers 5.23. See also: `kexue.nn.init`,
`kexue.nn.fan_average`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kexue.nn.fan_average import fan_average, fan_kind
from kexue.nn.init_report import InitReport, Setting
from kexue.nn.truncated_normal import draw_blocks_, trunc_normal_, truncated_moments
from kexue.nn.weight_roles import ParameterRole, weight_roles

__all__ = ["RULES", "Rule", "apply_init", "t5_init_"]


@dataclass(frozen=True)
class Rule:
    """How matrices and embeddings start.

    Args:
        scale: second moment of the output for an input of second moment 1.
        mode: a mean of `kexue.nn.fan_average`.
        std: the same standard deviation for all matrices and embeddings, in place of the mean.
        embedding_std: of embeddings; by default 1, or 1/sqrt(d) if tied to a matrix.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    std: float | None = None
    embedding_std: float | None = None

    def __post_init__(self) -> None:
        fan_kind(self.mode)
        for name in ("scale", "std", "embedding_std"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value}")


RULES: dict[str, Rule] = {
    "lecun": Rule(),
    "he": Rule(scale=2.0),
    "xavier": Rule(mode="arithmetic"),
    "geometric": Rule(mode="geometric"),  # (1)
    "contraharmonic": Rule(mode="contraharmonic"),
    "harmonic": Rule(mode="harmonic"),
    "bert": Rule(std=0.02 * math.sqrt(truncated_moments(-2.0, 2.0)[1])),  # (2)
}
"""The rules by name; "t5" is `t5_init_`."""


@torch.no_grad()
def apply_init(
    model: nn.Module, rule: str | Rule, generator: torch.Generator | None = None
) -> InitReport:
    """Initialise every layer of a model that is recognised by its type.

    Linear layers, convolutions, `nn.MultiheadAttention`, transformers' Conv1D, embeddings and
    normalisations are.

    Args:
        model: any module; a model of transformers too. Parameters on the meta device stay.
        rule: a name of `RULES`, "t5", or your own `Rule`.
        generator: source of the randomness; torch's own if None.

    Returns:
        What was set to which deviation, with the gains of every matrix, and what was kept.

    Raises:
        ValueError: an unknown rule; a lazy layer that has not seen a batch yet.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.LayerNorm(256))
        >>> print(apply_init(model, "xavier"))
        rule xavier  role           std  forward backward
        0.weight     matrix     0.07906      0.4      1.6
        0.bias       zeros
        1.weight     ones
        1.bias       zeros
    """
    if rule == "t5":
        return t5_init_(model, generator=generator)
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join((*RULES, 't5'))} or a Rule; got {rule!r}")
    chosen = RULES[rule] if isinstance(rule, str) else rule
    report = InitReport(rule if isinstance(rule, str) else "of your own")
    roles = weight_roles(model)
    for one in roles:
        std = chosen.std
        if one.role == "matrix" and std is None:
            std = math.sqrt(chosen.scale / fan_average(*one.fans, chosen.mode))  # (1)
        elif one.role in ("embedding", "tied"):
            usual = one.parameter.shape[-1] ** -0.5 if one.role == "tied" else 1.0
            std = next(s for s in (chosen.embedding_std, std, usual) if s is not None)
        if std is not None:
            trunc_normal_(one.parameter, std=std, generator=generator)
        report.settings.append(_set(one, std))
    report.kept = _kept(model, roles)
    return report


@torch.no_grad()
def t5_init_(
    module: nn.Module,
    query: str = "q",
    head_dim: int | None = None,
    generator: torch.Generator | None = None,
) -> InitReport:
    """T5's rule (3), for attention that does not divide by sqrt(d_k).

    Every matrix starts as LeCun's except the query's; relative position biases get 1/d too.

    Args:
        module: a T5 of transformers, or any module whose attention layers hold linear layers.
        query: the name of the query's layer in an attention module.
        head_dim: d_k; by default the attention module's `key_value_proj_dim` or `head_dim`.
        generator: source of the randomness; torch's own if None.

    Raises:
        ValueError: no attention found, no d_k known, or an attention that scales already.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> attention = nn.ModuleDict({name: nn.Linear(64, 32) for name in "qkv"})
        >>> report = t5_init_(attention, head_dim=16)
        >>> report["q.weight"].std, report["k.weight"].std
        (0.03125, 0.125)
    """
    special: dict[int, float] = {}
    for path, one in module.named_modules():
        layer = dict(one.named_children()).get(query)
        if isinstance(layer, nn.Linear):
            fan_in = layer.in_features
            special[id(layer.weight)] = (fan_in * _head_dim(path, one, head_dim)) ** -0.5  # (3)
            bias = dict(one.named_children()).get("relative_attention_bias")
            if isinstance(bias, nn.Embedding):
                special[id(bias.weight)] = fan_in**-0.5
    if not special:
        raise ValueError(
            f"no module holds a linear layer called {query!r}: pass query= its name in your "
            "attention, or use another rule"
        )
    report, roles = InitReport("t5"), weight_roles(module)
    for role in roles:
        std = special.get(id(role.parameter))
        if std is None and role.role == "matrix":
            std = role.fans[0] ** -0.5
        elif std is None and role.role in ("embedding", "tied"):
            std = 1.0
        if std is not None:
            _normal_(role.parameter, std, generator)
        report.settings.append(_set(role, std))
    report.kept = _kept(module, roles)
    return report


def _head_dim(path: str, attention: nn.Module, given: int | None) -> int:
    for name in ("scaling", "scale"):
        if getattr(attention, name, 1.0) != 1.0:
            raise ValueError(
                f"{path or 'the module'} divides its scores already ({name} = "
                f"{getattr(attention, name):.4g}): set it to 1.0, or use the rule 'lecun'"
            )
    sizes = (given, *(getattr(attention, n, None) for n in ("key_value_proj_dim", "head_dim")))
    size = next((s for s in sizes if s is not None), None)
    if size is None or size < 1:
        raise ValueError(
            f"the size of a head of {path or 'the module'} is not known: pass head_dim"
        )
    return size


def _normal_(t: Tensor, std: float, generator: torch.Generator | None) -> None:
    draw_blocks_(t, lambda block: block.normal_(0.0, std, generator=generator))


def _set(one: ParameterRole, std: float | None) -> Setting:
    """Fill constants and padding rows, and note what happened."""
    shape = tuple(one.parameter.shape)
    if one.role in ("zeros", "ones"):
        one.parameter.fill_(float(one.role == "ones"))
        return Setting(one.name, shape, one.role)
    if one.padding is not None:
        one.parameter[one.padding].zero_()
    if one.role == "embedding" or std is None:
        return Setting(one.name, shape, one.role, std)
    m, n = one.fans
    return Setting(one.name, shape, one.role, std, m * std**2, n * std**2)


def _kept(model: nn.Module, roles: list[ParameterRole]) -> list[str]:
    known = {id(one.parameter) for one in roles}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in known]
