r"""榜单的算术平均、几何平均与调和平均 — which mean, which columns, how stable (S13)

Check what a leaderboard's average says before it is quoted.

For scores x_mt of model m on task t and weights w_t with sum 1:

    AM = sum_t w_t x_t    GM = exp(sum_t w_t log x_t)    HM = 1 / sum_t (w_t / x_t)    (1) (2) (3)

A paper read from GM and HM that humans still lead GLUE and SuperGLUE. The article found that the
table's means were taken over other columns in some rows than in others: on one set of columns for
every row, no mean puts humans first, and with the diagnostic column for everybody all three do. The
columns decide, not the mean. So a leaderboard here refuses to average over what a row happens to
have, shows the order under every mean and without every task, and finds the rule behind published
averages.

    board = Leaderboard.read("scores.csv")       table.py, reading.py
    board.rank("geometric")                      board.py; means: probability/means.py
    board.borda(), board.agreement(…)            ranks.py          (4) … (7)
    board.bootstrap(over="tasks")                bootstrap.py      (8) … (10)
    board.audit()                                audit.py
    traps(board)                                 traps.py
    summary(board)                               summary.py, what `kexue leaderboard` shows

What we do differently: metrics of one task are averaged first (the rule of both benchmarks); values
within 1e-9 tie; where tasks are few, the bootstrap takes all resamples with their probabilities.
Source: article 8783; arXiv 2112.01342 (the paper), 1905.00537 (SuperGLUE).
See also: scipy.stats.pmean, kendalltau; autorank, which tests significance over many data sets.
"""

from kexue.analysis.leaderboard.audit import Audit, Rule, audit_averages
from kexue.analysis.leaderboard.board import Agreement, Leaderboard
from kexue.analysis.leaderboard.bootstrap import Bootstrap
from kexue.analysis.leaderboard.reading import read_table
from kexue.analysis.leaderboard.summary import summary
from kexue.analysis.leaderboard.table import ScoreTable
from kexue.analysis.leaderboard.tables import built_in
from kexue.analysis.leaderboard.traps import traps

__all__ = [
    "Agreement",
    "Audit",
    "Bootstrap",
    "Leaderboard",
    "Rule",
    "ScoreTable",
    "audit_averages",
    "built_in",
    "read_table",
    "summary",
    "traps",
]
