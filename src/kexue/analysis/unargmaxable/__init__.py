r"""你的语言模型有没有“无法预测的词”？ — unargmaxable classes, words a model can never predict (S22)

Decide for every word of a vocabulary whether some input makes it the likeliest, with a proof.

With more classes than features, C > d + 1, a softmax layer l(z) = W z + b may hold classes that
lose for every z. Class k

    can win       iff there is a z with  l_k(z) > l_i(z) for all i ≠ k                         (1)
    never wins    iff there are α ≥ 0, Σ α = 1 over i ≠ k, with
                      Σ α_i w_i = w_k  and  Σ α_i b_i ≥ b_k                                    (2)

and exactly one of the two is true. A report holds the z or the α of every class. What never wins
can still be sampled; with the entropy H(α) and δ = Σ α_i b_i − b_k its probability is at most

    p_k ≤ 1 / (1 + e^{δ + H(α)})                                                               (3)

    report = check_argmaxable(W, b)       check.py: the call; cascade.py: its stages
    (1), (2), (3), checked in float64     certificates.py, written by ledger.py
    whitened rows, probes                 whitening.py, probes.py
    the smooth search for z or α          likelihood.py
    linear programs on cutting planes     linear_program.py
    the layer of a model, its words       words.py, model_head.py
    repairs                               repair.py
    a killed run goes on                  resume.py

Cost: one product of (C × d) by (d × C) decides nearly all classes; the few that are left cost
seconds each at d = 768, where a linear program per class takes minutes.
Source: arXiv 2203.06462, 2005.02433, article 9046. What we do differently: the bias stays (the
article drops it, which changes verdicts), proofs either way, and no commercial solver. Classes with
the same row are told apart: they tie, and neither wins strictly.
"""

from kexue.analysis.unargmaxable.certificates import probability_bound
from kexue.analysis.unargmaxable.check import check_argmaxable
from kexue.analysis.unargmaxable.report import ArgmaxReport, Mix, Stage

__all__ = ["ArgmaxReport", "Mix", "Stage", "check_argmaxable", "probability_bound"]
