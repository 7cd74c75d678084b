r"""训练1000层的Transformer究竟有什么困难？改造现有模型 (S19)

DeepNorm in a post-norm model that exists already: no new parameters, no new names.

    y = LN(x + G(x) / alpha; eps / alpha²)  =  LN(alpha x + G(x); eps)                       (1)
    W ← beta W  for value, output and feed-forward matrices; query and key stay              (2)

(1) is the form that leaves a block's code alone: the module that ends a branch divides its output
by alpha, and the norm after the sum gets the smaller eps. Dropout in between commutes with the
division. Which blocks are known stands in `kexue.nn.post_norm_blocks`: BERT, RoBERTa, ELECTRA,
ERNIE, RoFormer and others with BERT's names, DistilBERT, BART, PLBart, Marian, BlenderbotSmall,
OpenAI GPT, and torch's own encoder and decoder layers with norm_first=False.

Symbols: stream x, branch G, constants alpha and beta from `kexue.nn.deepnorm`.
Cost: one multiplication of G per sub-layer; fused under torch.compile. torch's fused encoder block
for inference, which knows no alpha, is not used any more.
Traps: a pretrained post-norm model becomes another function; DeepNorm is for training from scratch.
`from_pretrained` restores weights, not (1): call `apply_deepnorm(model, init="keep")` after it.
Source: article 8978; DeepNet, arXiv 2203.00555. Its code builds models of its own; ours rewires.
"""

from typing import Any, Literal, get_args

import torch
from torch import nn

from kexue.nn.deepnorm import ResidualScale, Role, deepnorm_constants
from kexue.nn.deepnorm_init import gained_xavier_
from kexue.nn.post_norm_blocks import PostNormBlock, find_blocks

__all__ = ["BranchScale", "apply_deepnorm"]

Init = Literal["rescale", "xavier", "keep"]


class BranchScale:
    """The forward hook that divides what a branch returns by alpha: (1)."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # torch's attention returns its weights too
            return (output[0] / self.alpha, *output[1:])
        return output / self.alpha  # (1)


def apply_deepnorm(
    model: nn.Module,
    *,
    init: Init = "rescale",
    constants: dict[Role, ResidualScale] | None = None,
    generator: torch.Generator | None = None,
) -> dict[Role, ResidualScale]:
    """Turn the post-norm blocks of a model into DeepNorm blocks, in place: (1) and (2).

    Names and shapes of the parameters stay, so `save_pretrained`, `state_dict`, gradient
    checkpointing, DDP and torch.compile work as before. Embeddings, heads, norms and biases are not
    touched. Under FSDP call it before the model is sharded.

    Args:
        model: a model with post-norm blocks, of transformers or of torch's own layers.
        init: "rescale" multiplies the matrices by beta; "xavier" draws them anew with gain beta and
            queries and keys with gain 1, as the paper has it; "keep" leaves them, for weights that
            were trained with DeepNorm.
        constants: alpha and beta per stack; by default the paper's for the blocks that are found.
            A decoder alone counts two sub-layers per block, three if it always reads another stack.
        generator: source of the numbers of "xavier".

    Returns:
        The constants used.

    Raises:
        ValueError: no known post-norm block, as in GPT-2, LLaMA, T5 and other pre-norm models; a
            model that is rewired already; a matrix behind `torch.nn.utils.parametrize`, unless
            kept; constants without one of the stacks; an unknown init.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, num_layers=6)
        >>> round(apply_deepnorm(model)["encoder"].alpha, 4)
        1.8612
    """
    if init not in get_args(Init):
        raise ValueError(f'init must be "rescale", "xavier" or "keep", got {init!r}')
    hooks = (hook for one in model.modules() for hook in one._forward_hooks.values())
    if any(isinstance(hook, BranchScale) for hook in hooks):
        raise ValueError(
            f"{type(model).__name__} is a DeepNorm model already; twice would divide its branches "
            "by alpha². Build it anew to use other constants"
        )
    blocks = find_blocks(model)
    if not blocks:
        raise ValueError(_nothing_found(model))
    constants = _constants(blocks) if constants is None else constants
    if missing := {block.layout.role for block in blocks} - set(constants):
        raise ValueError(f"constants lacks the {' and the '.join(sorted(missing))}: {constants}")
    scaled: set[tuple[int, int | None]] = set()
    if init != "keep":
        _require_parameters(blocks)
    for block in blocks:
        alpha, beta = constants[block.layout.role]
        for end, norm in block.sublayers():
            end.register_forward_hook(BranchScale(alpha))  # (1)
            _divide_eps(norm, alpha**2)  # (1)
        _start(block, beta, init, generator, scaled)  # (2)
    for one in model.modules():
        if isinstance(one, nn.TransformerEncoder):
            one.use_nested_tensor = False  # which only torch's fused block can read
    return constants


def _constants(blocks: list[PostNormBlock]) -> dict[Role, ResidualScale]:
    N = sum(block.layout.role == "encoder" for block in blocks)
    M = len(blocks) - N
    if N == 0 and any(block.layout.reads_another for block in blocks):  # its encoder is elsewhere
        return {"decoder": deepnorm_constants(1, M)["decoder"]}
    return deepnorm_constants(N, M)


def _divide_eps(norm: nn.Module, divisor: float) -> None:
    name = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
    eps = getattr(norm, name)
    if eps is None:  # nn.RMSNorm's default
        eps = torch.finfo(next(norm.parameters()).dtype).eps
    setattr(norm, name, eps / divisor)


def _require_parameters(blocks: list[PostNormBlock]) -> None:
    """Matrices that are computed from others (parametrizations, merged adapters) have no start."""
    for block in blocks:
        for part in (*block.layout.scaled, *block.layout.query_key):
            owner = block.module.get_submodule(part.path)
            if part.name not in owner._parameters:
                raise ValueError(
                    f"{part.path}.{part.name} of a {type(block.module).__name__} is computed from "
                    'other parameters: call apply_deepnorm before, or use init="keep"'
                )


@torch.no_grad()
def _start(
    block: PostNormBlock,
    beta: float,
    init: Init,
    generator: torch.Generator | None,
    scaled: set[tuple[int, int | None]],
) -> None:
    """(2) for one block; `scaled` holds what earlier blocks, which may share it, have scaled."""
    if init == "rescale":
        for part in block.layout.scaled:
            owner = block.module.get_submodule(part.path)
            key = id(owner._parameters[part.name]), part.third
            if key not in scaled:
                scaled.add(key)
                block.matrix(part).mul_(beta)  # (2)
    elif init == "xavier":
        for parts, gain in ((block.layout.query_key, 1.0), (block.layout.scaled, beta)):
            for part in parts:
                gained_xavier_(block.matrix(part), gain, generator=generator)


def _nothing_found(model: nn.Module) -> str:
    def with_a_norm(one: nn.Module) -> bool:
        kind = type(one).__name__
        norms = any("norm" in type(child).__name__.lower() for child in one.children())
        return norms and ("Layer" in kind or "Block" in kind)

    others = sorted({type(one).__name__ for one in model.modules() if with_a_norm(one)})
    return (
        f"{type(model).__name__} has no post-norm block that is known here"
        + (f"; its blocks are {', '.join(others)}" if others else "")
        + ". DeepNorm needs Norm(x + F(x)); pre-norm models (GPT-2, LLaMA, T5, MBart, ViT, "
        "norm_first=True) have no such place. For blocks of your own use kexue.nn.DeepNorm and "
        "kexue.nn.deepnorm_init_"
    )
