"""A tiny language model on a made-up language, for S22: 2,000 words, eight features.

Words are drawn by Zipf's law p ∝ 1 / (rank + 2.7), which 40 hidden states distort; the states
follow each other as a Markov chain. The model sees two words and predicts the third:

    features (8) = linear ∘ tanh ∘ linear of two embeddings (16 each);   logits = W features + b
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["WORDS", "TinyModel", "language", "trained"]

WORDS, STATES, LENGTH, HELD_OUT = 2000, 40, 100_000, 10_000


@dataclass(frozen=True)
class TinyModel:
    """An output layer, how often each word was seen, and held-out text.

    Attributes:
        weight: W.
        bias: b.
        count: of each word in the text trained on.
        features: of the held-out places.
        target: the words there.
    """

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]
    count: Int[Tensor, " c"]
    features: Float[Tensor, "n d"]
    target: Int[Tensor, " n"]

    def perplexity(self, weight: Float[Tensor, "c d"], bias: Float[Tensor, " c"]) -> float:
        """On the held-out text, with another output layer."""
        logits = torch.addmm(bias, self.features, weight.mT)
        return float(nn.functional.cross_entropy(logits, self.target).exp())

    def sampled(self, seed: int) -> Int[Tensor, " n"]:
        """One word per held-out place, drawn from the softmax."""
        random = torch.Generator().manual_seed(seed)
        p = torch.softmax(torch.addmm(self.bias, self.features, self.weight.mT), dim=1)
        return torch.multinomial(p, 1, generator=random)[:, 0]


def language(seed: int, length: int = LENGTH) -> Int[Tensor, " n"]:
    """A text; word 0 is the commonest one by Zipf's law."""
    random = torch.Generator().manual_seed(seed)
    zipf = 1 / (torch.arange(WORDS) + 2.7)
    emit = zipf * torch.exp(1.5 * torch.randn(STATES, WORDS, generator=random))
    move = torch.exp(2 * torch.randn(STATES, STATES, generator=random))
    next_of = torch.multinomial(move, length, replacement=True, generator=random).tolist()
    states, now = [], 0
    for place in range(length):
        now = next_of[now][place]
        states.append(now)
    state, words = torch.tensor(states), torch.zeros(length, dtype=torch.int64)
    for one in range(STATES):
        here = (state == one).nonzero()[:, 0]
        drawn = torch.multinomial(emit[one], len(here) + 1, replacement=True, generator=random)
        words[here] = drawn[:-1]
    return words


def trained(seed: int, width: int = 8, steps: int = 300, batch: int = 256) -> TinyModel:
    """A model after a little training with Adam at rate 0.01."""
    text = language(seed)
    cut = len(text) - HELD_OUT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embed, head = nn.Embedding(WORDS, 16), nn.Linear(width, WORDS)
        middle = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, width))
    parameters = [*embed.parameters(), *middle.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    random = torch.Generator().manual_seed(seed)

    def features(at: Tensor) -> Tensor:
        before = torch.stack((text[at - 1], text[at - 2]), dim=1)
        found: Tensor = middle(embed(before).flatten(1))
        return found

    for _ in range(steps):
        at = torch.randint(2, cut, (batch,), generator=random)
        loss = nn.functional.cross_entropy(head(features(at)), text[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = torch.arange(cut + 2, len(text))
    with torch.no_grad():
        return TinyModel(
            weight=head.weight.detach().clone(),
            bias=head.bias.detach().clone(),
            count=torch.bincount(text[:cut], minlength=WORDS),
            features=features(held),
            target=text[held],
        )
