r"""你的语言模型有没有“无法预测的词”？ — which words a language model can never predict (S22)

The verdicts of `check_argmaxable` on the output layer of a model, put into words: tokens instead of
numbers, what is a real word apart from what is padding, zero or there twice, and how large features
must be against what the last normalisation gives.

    never wins       for no z at all: a mix of other words is always at least as likely
    unreachable      wins for some z, but for none in the box: a weaker statement, which depends on
                     the box
    tied             another word has the same row and bias: both win together or not at all

All verdicts are about being the single most likely word (strictly); sampling and beam search can
still give a word that never wins, with at most the probability of its bound.

Source: article 9046, arXiv 2203.06462.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kexue.analysis.unargmaxable.check import check_argmaxable
from kexue.analysis.unargmaxable.model_head import ModelHead, find_head
from kexue.analysis.unargmaxable.report import CAN, CANNOT, ArgmaxReport
from kexue.analysis.unargmaxable.stored_head import split_file_name
from kexue.analysis.unargmaxable.token_names import token_kinds, token_names
from kexue.models.loading import (
    TOKENIZER_FILES,
    CheckpointError,
    load_tokenizer,
    quiet_transformers,
)

__all__ = ["WordsAudit", "audit_model", "audit_words", "feature_sizes"]


@dataclass(frozen=True)
class WordsAudit:
    """An output layer, its verdicts and its words.

    Attributes:
        head: the output layer.
        report: over all features.
        boxed: over features in the box, of the words that win somewhere; None without a box.
        tokens: names; None without a tokenizer.
        kinds: "", "special", "unused" or "padding" per row.
        note: why there are no names, where a tokenizer could not be read.
    """

    head: ModelHead
    report: ArgmaxReport
    boxed: ArgmaxReport | None
    tokens: list[str] | None
    kinds: list[str]
    note: str = ""

    @property
    def hidden(self) -> np.ndarray:
        """Words that never win, by their own row: the likeliest of them last."""
        chosen = self._never() & ~self._apart()
        return self._ordered(self.report, self.report.index[chosen])

    @property
    def unreachable(self) -> np.ndarray:
        """Words that win somewhere, but nowhere in the box."""
        if self.boxed is None:
            return np.zeros(0, np.int64)
        return self._ordered(self.boxed, self.boxed.unargmaxable)

    @property
    def undecided(self) -> np.ndarray:
        """Words without a proof either way."""
        open_ = self.report.undecided
        return open_ if self.boxed is None else np.union1d(open_, self.boxed.undecided)

    @property
    def padding(self) -> np.ndarray:
        """Rows without a token that never win."""
        chosen: np.ndarray = self.report.index[self._never() & self._padded()]
        return chosen

    @property
    def empty(self) -> np.ndarray:
        """Rows of zeros with a token."""
        chosen: np.ndarray = self.report.index[self._zero() & ~self._padded()]
        return chosen

    @property
    def ties(self) -> list[list[int]]:
        """Groups of words with the same row, padding and zeros left out."""
        group: dict[int, list[int]] = {}
        apart = self._padded() | self._zero()
        for place in np.flatnonzero((self.report.twin >= 0) & ~apart).tolist():
            own, twin = int(self.report.index[place]), int(self.report.twin[place])
            joined = group.get(own, [own])
            other = group.get(twin, [twin])
            if joined is not other:
                joined = joined + other
                group |= dict.fromkeys(joined, joined)
        return [list(g) for g in dict.fromkeys(tuple(sorted(g)) for g in group.values())]

    def verdict(self, index: int) -> str:
        """Of `ArgmaxReport.words`, in the box where it wins somewhere."""
        if self.boxed is not None and index in self.boxed.place:
            return self.boxed.words(index)
        return self.report.words(index)

    def kind(self, index: int) -> str:
        """ "", "special", "unused", "padding" or "zero"."""
        return self.kinds[index] or ("zero" if index in self._zeros else "")

    def token(self, index: int) -> str | None:
        """Its name."""
        return None if self.tokens is None else self.tokens[index]

    def rows(self, classes: list[int], nearest: int = 5) -> list[dict[str, Any]]:
        """Plain values per word: those of `ArgmaxReport.rows`, kind and size of its features."""
        sizes, found = self.sizes, []
        for index in classes:
            boxed = self.boxed is not None and index in self.boxed.place
            report = self.boxed if boxed and self.boxed is not None else self.report
            row = report.rows(self.tokens, [index], nearest)[0]
            twin = int(report.twin[report.place[index]])
            row |= {"kind": self.kind(index), "twin": None if twin < 0 else twin}
            row["size"] = float(sizes[self.report.place[index]])
            found.append(row)
        return found

    @cached_property
    def sizes(self) -> np.ndarray:
        """|z| where each word was shown to win; NaN for the others."""
        sizes = feature_sizes(self.report)
        if self.boxed is not None:
            within = feature_sizes(self.boxed)
            places = [self.report.place[int(k)] for k in self.boxed.index]
            sizes[places] = within
        return sizes

    def _never(self) -> np.ndarray:
        return np.asarray(self.report.verdict == CANNOT)

    def _padded(self) -> np.ndarray:
        return np.array([self.kinds[k] == "padding" for k in self.report.index], dtype=bool)

    def _zero(self) -> np.ndarray:
        return np.array([k in self._zeros for k in self.report.index.tolist()], dtype=bool)

    @cached_property
    def _zeros(self) -> frozenset[int]:
        return frozenset(self.report.empty.tolist())

    def _apart(self) -> np.ndarray:
        return np.asarray(self._padded() | self._zero() | (self.report.twin >= 0))

    def _ordered(self, report: ArgmaxReport, chosen: np.ndarray) -> np.ndarray:
        """Real words first; then by their bound."""
        odd = np.array([self.kinds[k] != "" for k in chosen], dtype=bool)
        bound = report.bound[[report.place[int(k)] for k in chosen]]
        return np.asarray(chosen[np.lexsort((bound, odd))])


def audit_words(
    model: Any,
    *,
    tokenizer: Any = None,
    box: float | str | tuple[object, object] | None = None,
    method: str = "auto",
    tol: float = 1e-9,
    device: str | None = None,
    resume: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> WordsAudit:
    """Decides for every word of a model whether it can ever be the most likely one.

    Args:
        model: as `find_head`: an object, a folder, a name on the Hub, FILE.safetensors:NAME.
        tokenizer: for the names; default: of the model's folder or name, where there is one.
        box: None: any features; "norm": what the last normalisation can give; or as in
            `check_argmaxable`. Words that win only outside are told apart from those that never do.
        method: as in `check_argmaxable`.
        tol: as in `check_argmaxable`.
        device: where to compute; default: where the weights are.
        resume: a file that keeps what is decided; with a box there is a second, FILE.box.
        progress: is told (stage, done, in all).

    Raises:
        CheckpointError: no output layer found.
        ValueError: `box="norm"` where the last normalisation is not known, or values out of range.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 5, bias=False)
        >>> rows = torch.tensor([[1.0, 2], [2, 1], [1, 0], [0, 1], [1, 1]])
        >>> _ = layer.weight.data.copy_(rows)
        >>> audit_words(layer).hidden.tolist()
        [4]
    """
    with quiet_transformers():
        head = find_head(model)
        tokens, kinds, note = _words(model, tokenizer, len(head.weight))
    options: dict[str, Any] = {"method": method, "tol": tol, "device": device}
    sides = _sides(box, head)
    report = check_argmaxable(head.weight, head.bias, resume=resume, progress=progress, **options)
    boxed = None
    if sides is not None:
        second = None if resume is None else Path(f"{resume}.box")

        def told(stage: str, done: int, whole: int) -> None:
            if progress is not None:
                progress(f"{stage} in the box", done, whole)

        boxed = check_argmaxable(
            head.weight,
            head.bias,
            report.argmaxable,
            box=sides,
            resume=second,
            progress=told,
            **options,
        )
    return WordsAudit(head, report, boxed, tokens, kinds, note)


audit_model = audit_words


def feature_sizes(report: ArgmaxReport) -> np.ndarray:
    """|z| of the point at which each class was shown to win; NaN where it was not."""
    sizes, proofs, white = np.full(len(report.index), np.nan), report.proofs, report.white
    place = {number: report.place.get(int(k)) for number, k in enumerate(report.kept)}
    numbers = list(proofs.scale)
    for start in range(0, len(numbers), 8192):
        some = numbers[start : start + 8192]
        t = torch.tensor([proofs.scale[k] for k in some]).to(white.rows)
        points = white.features(t[:, None] * white.rows[some])
        for number, size in zip(some, points.norm(dim=1).tolist(), strict=True):
            if place[number] is not None:
                sizes[place[number]] = size
    for number, point in proofs.point.items():
        if place[number] is not None:
            sizes[place[number]] = float(point.norm())
    return np.where(report.verdict == CAN, sizes, np.nan)


def _sides(
    box: float | str | tuple[object, object] | None, head: ModelHead
) -> float | tuple[object, object] | None:
    if not isinstance(box, str):
        return box
    if box != "norm":
        raise ValueError(f'box must be "norm", a number or (lower, upper), got {box!r}')
    if head.norm is None:
        raise ValueError(
            f"{head.source}: the normalisation before the output layer is not known, so there is "
            "no box of its values; give a number"
        )
    return head.norm.box


def _words(model: Any, tokenizer: Any, count: int) -> tuple[list[str] | None, list[str], str]:
    """Names and kinds; without a tokenizer none, and why."""
    note = ""
    if tokenizer is None:
        try:
            tokenizer = _tokenizer(model)
        except CheckpointError as error:
            note = str(error)
    if tokenizer is None:
        return None, [""] * count, note
    return token_names(tokenizer, count), token_kinds(tokenizer, count), ""


def _tokenizer(model: Any) -> Any:
    if isinstance(model, torch.nn.Module):
        return None
    named = split_file_name(str(model))
    folder = Path(model) if named is None or Path(model).is_dir() else named[0].absolute().parent
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    return load_tokenizer(folder if named is not None else model)
