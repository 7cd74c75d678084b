r"""训练1000层的Transformer究竟有什么困难？ (S19)

DeepNorm: what is hard about training a 1000-layer Transformer is that one optimizer step moves the
output by more, the deeper the stack. Two constants bound it: alpha weighs the stream, beta is the
gain with which the branches start.

    y = LN(alpha x + G(x))  =  LN(x + G(x) / alpha)  with eps / alpha² in the second norm    (1)
    W ~ N(0, beta² · 2/(n + m)) for value, output and feed-forward matrices; beta = 1 for
    query and key, whose gradients the softmax makes small                                   (2)

                        encoder alpha         beta              decoder alpha    beta
    encoder, N blocks   (2N)^(1/4)            (8N)^(−1/4)                                    (3)
    decoder, M blocks                                           (2M)^(1/4)   (8M)^(−1/4)     (4)
    both                0.81 (N⁴M)^(1/16)     0.87 (N⁴M)^(−1/16)                             (5)
                                                                (3M)^(1/4)   (12M)^(−1/4)    (6)

Each of the 2N sub-layers (3M with cross-attention) moves the output by O(eta · 2 beta²/alpha²) in a
step of SGD, and (3), (4) and (6) make the sum exactly 1. The encoder of (5) acts through M
cross-attentions of weight beta_d²/alpha_d each; (M beta_d²/alpha_d)(2N · 2 beta_e²/alpha_e²) = 1
with alpha_e beta_e = 1/sqrt 2 gives, unrounded,

    alpha_e = (N⁴M / 27)^(1/16),    beta_e = (27 / (256 N⁴M))^(1/16).                        (7)

A branch of two matrices of scale lambda has gradients O(lambda/alpha), so for n sub-layers

    SGD    step eta g              lambda/alpha  = n^(−1/2)    alpha = n^(1/4)  lambda = n^(−1/4)
    Adam   step eta sign g         lambda/alpha  = n^(−1)      alpha = n^(1/2)  lambda = n^(−1/2)
    LAMB   step eta |W| sign g     lambda²/alpha = n^(−1)      alpha = 1        lambda = n^(−1/2)

                                                                                             (8)
The scale lambda of a matrix is that of the nearest W = lambda U with orthogonal U:

    lambda = argmin_k ||W Wᵀ / k² − I||_F  =  ||W Wᵀ||_F / ||W||_F                           (9)

Symbols: stream x, branch G, blocks N and M, gain beta, scale lambda. A block has two sub-layers,
attention and feed-forward, and a decoder with cross-attention three.
Cost: one multiplication per sub-layer, in one pass with the sum.
Source: article 8978; DeepNet, arXiv 2203.00555; Admin, arXiv 2004.08249. (7) and the closed form
in (9) are ours. The paper's code divides by 1.15^(−1) (N⁴M)^(1/16) in place of 0.87 and starts
from uniform matrices; here (2) is taken as written. (2) is
`kexue.nn.deepnorm_init`; for whole models see `kexue.nn.deepnorm_models`.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.nn.residual_sum import Branch, Normalise, branch_output, float32_norm, weighted_sum

__all__ = [
    "DeepNorm",
    "ResidualScale",
    "Role",
    "deepnorm_constants",
    "matrix_scale",
]

Role = Literal["encoder", "decoder"]
Rule = Literal["paper", "sgd", "adam", "lamb"]


class ResidualScale(NamedTuple):
    """The weight of the stream and the gain of the branches."""

    alpha: float
    beta: float


def deepnorm_constants(
    encoder_layers: int = 0, decoder_layers: int = 0, exact: bool = False, rule: Rule = "paper"
) -> dict[Role, ResidualScale]:
    """(3) to (8): alpha and beta of the stacks that exist.

    Args:
        encoder_layers: N, blocks of the encoder, each of two sub-layers.
        decoder_layers: M, blocks of the decoder; with an encoder they have cross-attention.
        exact: (7) in place of the paper's rounded 0.81 and 0.87.
        rule: "paper" is (3) to (6), derived for SGD; "sgd", "adam" and "lamb" are (8), for one
            stack, with beta = lambda.

    Returns:
        "encoder", "decoder" or both, each to (alpha, beta).

    Raises:
        ValueError: no layers, a negative number, an unknown rule, or (8) for two stacks.

    Example:
        >>> alpha, beta = deepnorm_constants(encoder_layers=100)["encoder"]
        >>> round(alpha, 4), round(beta, 4)
        (3.7606, 0.188)
        >>> sorted(deepnorm_constants(6, 6))
        ['decoder', 'encoder']
    """
    N, M = encoder_layers, decoder_layers
    if N < 0 or M < 0 or N + M == 0:
        raise ValueError(
            "give the number of blocks of the encoder, the decoder or both, "
            f"got encoder_layers={N} and decoder_layers={M}"
        )
    if rule not in ("paper", "sgd", "adam", "lamb"):
        raise ValueError(f'rule must be "paper", "sgd", "adam" or "lamb", got {rule!r}')
    if N and M:
        if rule != "paper":
            raise ValueError(
                f'rule "{rule}" is derived for one stack, got encoder_layers={N} and '
                f'decoder_layers={M}; use "paper", or take each stack alone'
            )
        size = float(N**4 * M)
        encoder = (
            ResidualScale((size / 27) ** (1 / 16), (27 / (256 * size)) ** (1 / 16))  # (7)
            if exact
            else ResidualScale(0.81 * size ** (1 / 16), 0.87 * size ** (-1 / 16))  # (5)
        )
        return {
            "encoder": encoder,
            "decoder": ResidualScale((3 * M) ** (1 / 4), (12 * M) ** (-1 / 4)),  # (6)
        }
    n = 2 * (N or M)
    single = {
        "paper": ResidualScale(n ** (1 / 4), (4 * n) ** (-1 / 4)),  # (3), (4)
        "sgd": ResidualScale(n ** (1 / 4), n ** (-1 / 4)),  # (8)
        "adam": ResidualScale(n ** (1 / 2), n ** (-1 / 2)),  # (8)
        "lamb": ResidualScale(1.0, n ** (-1 / 2)),  # (8)
    }
    return {"encoder" if N else "decoder": single[rule]}


class DeepNorm(nn.Module):
    """(1), first form: Norm(alpha x + G), with the norm's own eps.

    Args:
        dim: width of the stream.
        alpha: weight of the stream, from `deepnorm_constants`; 1 is post-norm.
        norm: makes the norm from the width.

    Raises:
        ValueError: alpha that is not positive and finite.

    Example:
        >>> import torch
        >>> alpha, beta = deepnorm_constants(encoder_layers=4)["encoder"]
        >>> wrapper, branch = DeepNorm(4, alpha), nn.Linear(4, 4)
        >>> x = torch.randn(2, 3, 4)
        >>> torch.equal(wrapper(x, branch), wrapper(x, branch(x)))
        True
    """

    def __init__(self, dim: int, alpha: float, norm: Normalise = nn.LayerNorm) -> None:
        super().__init__()
        if not 0 < alpha < torch.inf:
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        self.alpha = alpha
        self.norm = norm(dim)

    def forward(
        self, x: Float[Tensor, "*batch dim"], branch: Branch | Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """The stream after the branch.

        Args:
            x: the stream.
            branch: the sub-layer, or what it returned for x.
        """
        total = weighted_sum(x, branch_output(x, branch), self.alpha)
        return float32_norm(self.norm, total).to(x.dtype)  # (1)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:.6g}"


def matrix_scale(W: Float[Tensor, "*batch n m"]) -> Float[Tensor, "*batch"]:
    """(9): the lambda for which W = lambda U with U closest to orthogonal.

    In singular values s it is sqrt(sum s⁴ / sum s²): the size of W where it acts most. For a square
    Gaussian matrix drawn with gain g it is near sqrt(2) g. A zero matrix has scale 0.

    Args:
        W: a matrix or a batch of them.

    Returns:
        lambda, in float32 or better.

    Raises:
        ValueError: a matrix without entries.

    Example:
        >>> import torch
        >>> matrix_scale(3 * torch.eye(5))
        tensor(3.)
    """
    if not W.shape[-2] or not W.shape[-1]:
        raise ValueError(f"an empty matrix has no scale, got shape {tuple(W.shape)}")
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    size = W.abs().amax(dim=(-2, -1), keepdim=True)
    unit = W / torch.where(size > 0, size, 1)  # so that no fourth power leaves the range
    gram = unit @ unit.mT if W.shape[-2] <= W.shape[-1] else unit.mT @ unit
    norm = unit.square().sum(dim=(-2, -1)).sqrt()
    lengths = gram.square().sum(dim=(-2, -1)).sqrt()
    return size[..., 0, 0] * lengths / torch.where(norm > 0, norm, 1)  # (9)
