"""Time of what is computed after or beside training, on the CPU, beside peers and limits.

    python benchmarks/audits.py [--what entropy can logistic words] [--rounds 3] [--small] [--out F]

- entropy: 4,096 softmaxed rows of 21,128 logits get a given entropy. Beside it bisection in at most
  60 steps, stopped at the same accuracy or not at all; the limit is one exp over the matrix.
- can: CAN over 10,000 predictions of 119 classes (texts of 128 tokens) and of 15 (titles of 24)
  against predicting them, without tokenizing: seconds per sentence of some hundred, times 10,000.
  The published loop copies the trusted rows for every unsure one; it is timed on a few.
- logistic: the closed form on 10^6 × 128 float32 with 100 classes, against X^T X alone and one read
  of X; and against scikit-learn's LogisticRegression (lbfgs): on its own data sets in 5 folds, on
  100,000 × 128 with 100 classes and on 50,000 × 768 with 15, all standardised. *Equal accuracy* is
  the smallest max_iter of a ladder whose accuracy on other rows is not below the closed form's by
  more than 0.1 points; where none is, the last of the ladder.
- words: all classes of two synthetic output layers, stage by stage, once; and ten classes that the
  probe leaves, one at a time, against a whole linear programme each: 20,000 × 64, log-normal norms.

Contenders take turns within a round, after one round to warm up; tables hold medians over rounds of
wall and CPU seconds, ratios are medians of the ratios within a round. A part that runs replaces its
own part of the stored results. `--small` is a trial of a minute: it is not judged and, without
`--out`, not stored.
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "audits.json"
TARGETS = {
    "entropy": {
        "seconds": ("at most", 3.0),
        "rounds of the slowest row": ("at most", 9),
        "times faster than bisection of the same accuracy": ("at least", 5),
    },
    "can": {"largest share of the time to predict": ("at most", 0.05)},
    "logistic": {
        "seconds to fit": ("at most", 2.0),
        "times faster than LogisticRegression, least of scikit-learn's sets": ("at least", 20),
        "times faster than LogisticRegression, 100,000 × 128, 100 classes": ("at least", 20),
        "times faster than LogisticRegression, 50,000 × 768, 15 classes": ("at least", 20),
    },
    "words": {
        "seconds, 21,128 × 768 with bias": ("at most", 600),
        "seconds, 50,257 × 768": ("at most", 1800),
        "times faster than a whole LP per class": ("at least", 50),
    },
}


def timed(run):
    """Wall seconds, CPU seconds of all threads, and what came back."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def side_by_side(runs, rounds):
    """Name → (wall, CPU) of every round but the first."""
    taken = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = timed(run)[:2]
            if number:
                taken[name].append(spent)
    return taken


def ratio(taken, name, other):
    """Median over rounds of the wall time of one contender over another's."""
    return statistics.median(a[0] / b[0] for a, b in zip(taken[name], taken[other], strict=True))


def rows(what, taken, first=None):
    """Rows of the table: medians, and ratios to the first contender."""
    first = first or next(iter(taken))
    made = []
    for name, spent in taken.items():
        wall, cpu = (statistics.median(times) for times in zip(*spent, strict=True))
        spread = [significant(f(s[0] for s in spent)) for f in (min, max)]
        made.append({"what": what, "contender": name, "seconds": significant(wall)})
        made[-1] |= {"range": spread, "cpu_seconds": significant(cpu)}
        made[-1]["ratio"] = significant(ratio(taken, name, first))
    return made


def significant(number):
    """Four significant digits."""
    return float(f"{number:.4g}")


# ------------------------------------------------------------------------------------------ entropy


def bisection(p, target, tol, stop):
    """The power of each row by halving [−40, 40] for its logarithm, in parts that fit the cache."""
    import torch

    q, size, eps = torch.empty_like(p), max(1, (1 << 18) // p.shape[1]), 2 * 2.0**-23
    for start in range(0, len(p), size):
        part = slice(start, start + size)
        x, wanted = p[part].log(), target[part]
        x -= x.amax(1, keepdim=True)
        left, right = torch.full_like(wanted, -40), torch.full_like(wanted, 40)
        for _ in range(60):
            t = (left + right) / 2
            w = torch.exp(x * t.exp()[:, None])
            total = w.sum(1)
            entropy = total.log() - t.exp() * torch.linalg.vecdot(w, x) / total
            above = entropy > wanted
            left, right = torch.where(above, t, left), torch.where(above, right, t)
            done = ((entropy - wanted).abs() <= tol) | (right - left <= eps)
            if stop and bool(done.all()):
                break
        q[part] = (x * t.exp()[:, None]).softmax(1)
    return q


def rounds_needed(powers, most=32):
    """How many rounds each row takes: `powers(n)` gives what n rounds find.

    The last one changes nothing, it finds that the row is right.
    """
    import torch

    final = powers(most)
    needed = torch.full(final.shape, 2)
    for number in range(1, most):
        moves = powers(number) != final
        needed += moves
        if not bool(moves.any()):
            break
    return needed


def entropy(given):
    """Entropy normalisation against bisection and one pass over memory."""
    import torch

    from kexue.probability import entropy_normalize

    R, n, tol = (64, 2_112, 1e-6) if given.small else (4_096, 21_128, 1e-6)
    generator = torch.Generator().manual_seed(0)
    scale = 0.5 * 10 ** torch.rand(R, 1, generator=generator)  # 0.5 to 5
    p = torch.randn(R, n, generator=generator).mul_(scale).softmax(1)
    share = 0.05 + 0.9 * torch.rand(R, generator=generator)
    target = share * torch.tensor(float(n)).log()
    spare = torch.empty_like(p)

    def ours(most=32):
        return entropy_normalize(
            p, target_entropy=target, tol=tol, max_iter=most, return_gamma=True
        )

    ways = {
        "exp, once: the limit": lambda: torch.exp(p, out=spare),
        "kexue": ours,
        "bisection, same accuracy": lambda: bisection(p, target, tol, True),
        "bisection, 60 steps": lambda: bisection(p, target, tol, False),
    }
    taken = side_by_side(ways, given.rounds)
    errors = {}
    for name, way in ways.items():
        if not name.startswith("exp"):
            q = way()[0] if name == "kexue" else way()
            sample = q[:: max(1, R // 64)].double()
            wrong = torch.special.entr(sample).sum(1) - target[:: max(1, R // 64)]
            errors[name] = significant(float(wrong.abs().max()))
    needed = rounds_needed(lambda most: ours(most)[1])
    facts = {
        "rounds, median": int(needed.median()),
        "rounds, mean": round(float(needed.double().mean()), 2),
    }
    facts |= {"rounds, most": int(needed.max()), "largest error of the entropy, nats": errors}
    measured = {
        "seconds": statistics.median(s[0] for s in taken["kexue"]),
        "rounds of the slowest row": int(needed.max()),
        "times faster than bisection of the same accuracy": ratio(
            taken, "bisection, same accuracy", "kexue"
        ),
    }
    return rows(f"entropy of {R:,} × {n:,}", taken), facts, measured


# ---------------------------------------------------------------------------------------------- can


def predictions(count, classes):
    """Probabilities of a classifier that is right in most rows, and its class frequencies."""
    import torch

    generator = torch.Generator().manual_seed(classes)
    prior = 1 / torch.arange(1, classes + 1).float()
    truth = torch.multinomial(prior, count, replacement=True, generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    sure = 8 * torch.rand(count, generator=generator)
    logits[torch.arange(count), truth] += sure
    return logits.softmax(1), prior / prior.sum()


def published(prior, sure, some):
    """The article's loop, literally: the trusted rows are copied for every other row."""
    import numpy as np

    made = []
    for row in some:
        y = np.concatenate((sure, row[None]))
        y = y / y.mean(0, keepdims=True) * prior
        made.append((y / y.sum(1, keepdims=True))[-1])
    return np.stack(made)


def encoder(kind, classes):
    """A classifier with random weights: the built-in tiny encoder, or one of BERT-base's size."""
    import torch
    from transformers import BertConfig, BertModel

    from kexue.models import tiny_encoder

    torch.manual_seed(0)
    body = (
        tiny_encoder(21_128)
        if kind == "tiny"
        else BertModel(BertConfig(vocab_size=21_128), add_pooling_layer=False)
    )
    head = torch.nn.Linear(body.config.hidden_size, classes)
    body.eval()

    @torch.inference_mode()
    def predict(ids):
        for batch in ids.split(32):
            head(body(batch).last_hidden_state[:, 0]).softmax(1)

    return predict


def can(given):
    """CAN against the time that the predictions took."""
    import torch

    from kexue.probability import CAN, topk_uncertainty

    count, sentences = (1_000, 32) if given.small else (10_000, 256)
    kinds = {"tiny": "tiny encoder, 2 × 128"}
    if not given.small:
        kinds["base"] = "BERT-base size, 12 × 768"
    table, facts, shares = [], {"sentences encoded": sentences}, []
    for name, classes, length in (("iflytek-like", 119, 128), ("tnews-like", 15, 24)):
        p, prior = predictions(count, classes)
        ids = torch.randint(100, 21_128, (sentences, length))
        unsure = topk_uncertainty(p) >= 0.9
        sure, some = p[~unsure].double().numpy(), p[unsure][:20].double().numpy()
        corrector, share = CAN(prior=prior), prior.double().numpy()
        ways = {"CAN": lambda c=corrector, p=p: c.fit_transform(p)}
        ways["published loop, extrapolated"] = lambda a=(share, sure, some): published(*a)
        for kind, title in kinds.items():
            predict = encoder(kind, classes)
            ways[f"{title}, extrapolated"] = lambda e=predict, i=ids: e(i)
        taken = side_by_side(ways, given.rounds)
        for way, spent in taken.items():
            factor = int(unsure.sum()) / len(some) if way.startswith("published") else 1
            factor = count / sentences if "×" in way else factor
            taken[way] = [(wall * factor, cpu * factor) for wall, cpu in spent]
        shares += [ratio(taken, "CAN", way) for way in taken if "×" in way]
        table += rows(f"{name}, {count:,} × {classes}, {length} tokens", taken)
        facts[f"{name}: rows corrected"] = int(unsure.sum())
    return table, facts, {"largest share of the time to predict": max(shares)}


# ----------------------------------------------------------------------------------------- logistic


def directions(features, generator):
    """A random basis whose vectors shrink like j^-1/2, of squared norms that sum to 1: (D, D)."""
    import torch

    basis = torch.linalg.qr(torch.randn(features, features, generator=generator)).Q
    spectrum = torch.arange(1, features + 1).float() ** -0.5
    return basis * (spectrum / spectrum.norm())


def gaussian_classes(count, features, classes, distance, seed=0):
    """Rows around class means, float32, and labels. One covariance of decaying spectrum.

    Two means are `distance` apart, in standard deviations, roughly; nothing is at the origin.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    means = torch.randn(classes, features, generator=generator)
    means *= distance / (2 * features) ** 0.5
    x = torch.randn(count, features, generator=generator).add_(means[labels])
    return (x @ directions(features, generator).T).add_(1.0), labels


def data_sets(small):
    """Name, rows, labels and pairs of training and test rows; standardised."""
    from sklearn import datasets
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    for name in ("iris", "wine", "breast_cancer", "digits"):
        X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        folds = StratifiedKFold(5, shuffle=True, random_state=0).split(X, y)
        yield name, StandardScaler().fit_transform(X), y, list(folds)
    tried = ((1_500, 32, 10, 4.0), (1_500, 64, 15, 2.5))
    for N, D, K, apart in tried if small else ((100_000, 128, 100, 4.0), (50_000, 768, 15, 2.5)):
        test = N // 10
        X, y = (one.numpy() for one in gaussian_classes(N + test, D, K, apart, seed=1))
        halves = [(slice(None, N), slice(N, None))]
        yield f"{N:,} × {D}, {K} classes", StandardScaler().fit_transform(X), y, halves


def fits(make, data):
    """Fit every fold; (wall, CPU) of the fits alone, and the mean accuracy."""
    X, y, folds = data
    parts = [(X[a], y[a], X[b], y[b]) for a, b in folds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few iterations are meant
        *spent, models = timed(lambda: [make().fit(X, y) for X, y, _, _ in parts])
    return tuple(spent), statistics.mean(
        m.score(p[2], p[3]) for m, p in zip(models, parts, strict=True)
    )


def against_sklearn(given):
    """The table's rows, the facts, and name → how many times faster at equal accuracy."""
    from sklearn.linear_model import LogisticRegression

    from kexue.probability.logistic_regression import ClosedFormLogisticRegression

    table, facts, faster = [], {}, {}
    for name, *data in data_sets(given.small):
        accuracy = fits(lambda: ClosedFormLogisticRegression(shrinkage=0.1), data)[1]
        ladder, reached = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500), None
        for most in ladder:
            reached = fits(lambda n=most: LogisticRegression(max_iter=n), data)[1]
            if reached >= accuracy - 0.001:
                break
        equal = f"LogisticRegression, max_iter {most}"
        ways = {
            "closed form, shrinkage 0.1": lambda: ClosedFormLogisticRegression(shrinkage=0.1),
            equal: lambda n=most: LogisticRegression(max_iter=n),
            "LogisticRegression, converged": lambda: LogisticRegression(max_iter=5_000),
        }
        taken, right = {way: [] for way in ways}, {}
        for number in range(given.rounds + 1):
            for way, make in ways.items():
                spent, right[way] = fits(make, data)
                if number:
                    taken[way].append(spent)
        table += rows(f"{name}, {len(data[2])} fit{'s' * (len(data[2]) > 1)}", taken)
        facts[name] = {"accuracy": {way: round(found, 4) for way, found in right.items()}}
        facts[name]["equal accuracy"] = "reached" if reached >= accuracy - 0.001 else "not reached"
        faster[name] = ratio(taken, equal, "closed form, shrinkage 0.1")
    return table, facts, faster


def against_limits(given):
    """Seconds of every round: the fit of many rows, and what it cannot do without."""
    import torch

    from kexue.probability import ClosedFormSoftmax

    N, D, K = (20_000, 32, 10) if given.small else (1_000_000, 128, 100)
    x, y = gaussian_classes(N, D, K, 4.0)
    flat = x.numpy()
    block = x[:2048].double().numpy()  # stays in the cache: no memory is read
    ways = {
        "X^T X, float32: a limit": lambda: flat.T @ flat,
        "X^T X, float64, from the cache": lambda: [block.T @ block for _ in range(N // 2048)],
        "read X: a limit": lambda: x.sum(),
        "fit": lambda: ClosedFormSoftmax(K).fit(x, y),
        "fit, float32 products": lambda: ClosedFormSoftmax(K, dtype=torch.float32).fit(x, y),
    }
    return f"closed form, {N:,} × {D}, {K} classes", side_by_side(ways, given.rounds)


def logistic(given):
    """The closed form against its limits and against scikit-learn."""
    what, taken = against_limits(given)
    table, facts, faster = against_sklearn(given)
    measured = {"seconds to fit": statistics.median(s[0] for s in taken["fit"])}
    prefix = "times faster than LogisticRegression"
    measured |= {f"{prefix}, {name}": times for name, times in faster.items() if "×" in name}
    least = min(times for name, times in faster.items() if "×" not in name)
    measured[f"{prefix}, least of scikit-learn's sets"] = least
    return rows(what, taken) + table, facts, measured


# -------------------------------------------------------------------------------------------- words


def head(classes, features, bias):
    """Rows and bias of an output layer as language models have them: off-centre, anisotropic.

    Row i is mean + r_i g_i: g_i of decaying spectrum in a random basis and of norm about 1, ln r_i
    with sd 0.3, the mean of norm 0.5. The last 100 rows lie at the mean, like unused words.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(features, generator=generator)
    mean *= 0.5 / mean.norm()
    r = torch.exp(0.3 * torch.randn(classes, 1, generator=generator))
    r[-100:] = 0.01
    W = mean + r * (
        torch.randn(classes, features, generator=generator) @ directions(features, generator).T
    )
    b = 0.5 * torch.randn(classes, generator=generator)
    return W, b if bias else None


QUICK = ("twins", "probe")
"""Stages that look at all classes together."""


def whole_lp(W, k, limit):
    """Is class k the largest somewhere? One linear programme with all rows; None out of time.

    The largest radius r of a ball of inputs, its centre within ±100:
    (w_i − w_k) z + |w_i − w_k| r ≤ 0 for every i ≠ k.
    """
    import numpy as np
    from scipy.optimize import linprog

    D = np.delete(W, k, 0) - W[k]
    A = np.column_stack((D, np.linalg.norm(D, axis=1)))
    box = [(-100, 100)] * W.shape[1] + [(None, None)]
    cost = np.append(np.zeros(W.shape[1]), -1.0)
    options = {"time_limit": limit}
    found = linprog(cost, A, np.zeros(len(D)), bounds=box, method="highs", options=options)
    return bool(-found.fun > 1e-6) if found.status == 0 else None


def all_words(given):
    """Every class of two output layers: rows of the table, facts, and layer → seconds."""
    from kexue.analysis.unargmaxable import check_argmaxable

    table, facts, taken = [], {}, {}
    small = ((500, 24, True), (1_000, 24, False))
    for C, d, bias in small if given.small else ((21_128, 768, True), (50_257, 768, False)):
        what = f"{C:,} × {d}{' with bias' * bias}"
        W, b = head(C, d, bias)
        wall, cpu, report = timed(lambda W=W, b=b: check_argmaxable(W, b))
        for stage in report.stages:
            spent = significant(stage.seconds)
            table.append({"what": what, "contender": stage.name, "seconds": spent})
            table[-1] |= {"can": int(stage.can), "cannot": int(stage.cannot)}
        table.append({"what": what, "contender": "all stages", "seconds": significant(wall)})
        counts = {"can": len(report.argmaxable), "cannot": len(report.unargmaxable)}
        table[-1] |= {"cpu_seconds": significant(cpu), **counts}
        facts[what] = {"classes": C, **counts, "undecided": len(report.undecided)}
        taken[f"seconds, {what}"] = wall
    return table, facts, taken


def one_by_one(given):
    """What the probe leaves, one class at a time: our stages against a whole LP per class."""
    import torch

    from kexue.analysis.unargmaxable import check_argmaxable

    C, d = (1_000, 16) if given.small else (20_000, 64)
    generator = torch.Generator().manual_seed(1)
    norms = torch.exp(0.3 * torch.randn(C, 1, generator=generator, dtype=torch.float64))
    W = norms * torch.randn(C, d, generator=generator, dtype=torch.float64)
    left = torch.from_numpy(check_argmaxable(W, method="probe").undecided)
    chosen = left[torch.randperm(len(left), generator=generator)[:10]].sort().values.tolist()
    whole_lp(W[:100].numpy(), 0, 1.0)  # once, to load the solver
    whole, ours, same, late = [], [], 0, 0
    for k in chosen:
        seconds, _, verdict = timed(lambda k=k: whole_lp(W.numpy(), k, given.lp_limit))
        whole.append(seconds)
        report = check_argmaxable(W, classes=[k])
        ours.append(sum(one.seconds for one in report.stages if one.name not in QUICK))
        late += verdict is None
        same += len({True: report.argmaxable, False: report.unargmaxable, None: ()}[verdict])
    what, table = f"left by the probe, {C:,} × {d}", []
    for name, spent in (("linprog, highs, all rows", whole), ("kexue", ours)):
        table.append({"what": what, "contender": name})
        table[-1]["seconds"] = significant(statistics.median(spent))
        table[-1]["range"] = [significant(f(spent)) for f in (min, max)]
    faster = statistics.median(w / o for w, o in zip(whole, ours, strict=True))
    facts = {"classes": len(chosen), "same verdict": same, "linprog out of time": late}
    facts |= {"left by the probe": len(left), "time limit of linprog, s": given.lp_limit}
    return table, {what: facts}, {"times faster than a whole LP per class": faster}


def words(given):
    """Which words a model can never predict: stage by stage, and one class at a time."""
    table, facts, taken = all_words(given)
    more, others, faster = one_by_one(given)
    return table + more, facts | others, taken | faster


# --------------------------------------------------------------------------------------------- main

PARTS = {"entropy": entropy, "can": can, "logistic": logistic, "words": words}


def judged(name, measured):
    """Target, measured number and verdict."""
    found = []
    for what, (side, number) in TARGETS[name].items():
        value = measured.get(what)
        met = None if value is None else value <= number if side == "at most" else value >= number
        shown = None if value is None else significant(value)
        found.append({"what": what, "target": f"{side} {number:g}", "measured": shown, "met": met})
    return found


def show(table, facts, verdicts):
    """A part on the terminal."""
    for row in table:
        cells = [f"{row['what']:<42}{row['contender']:<40}{row['seconds']:>12.5g} s"]
        cells.append(f"{row['cpu_seconds']:>11.5g} s CPU" if "cpu_seconds" in row else " " * 17)
        cells.append(f"{row['ratio']:>10.4g} ×" if "ratio" in row else "")
        cells.append(f"{row['can']:>8,} can, {row['cannot']:,} cannot" if "can" in row else "")
        print("".join(cells).rstrip())
    for what, found in facts.items():
        print(f"  {what}: {found}")
    for one in verdicts:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[one["met"]]
        print(f"  {one['what']}: {one['target']}, measured {one['measured']}: {verdict}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: every core this process may use")
    parser.add_argument("--lp-limit", type=float, default=120.0, help="seconds for a whole LP")
    parser.add_argument("--small", action="store_true", help="a quick trial, not judged")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    from kexue.report.environment import environment, usable_cores, versions

    threads = given.threads or usable_cores()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch and BLAS are loaded
    import torch

    torch.set_num_threads(threads)
    path = given.out or (None if given.small else RESULTS)
    stored = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
    parts = stored.get("parts", {})
    for name in given.what:
        print(f"\n{name}")
        try:
            table, facts, measured = PARTS[name](given)
        except ImportError as error:  # scikit-learn, transformers: the other parts need neither
            print(f"  left out: {error}")
            continue
        verdicts = [] if given.small else judged(name, measured)
        show(table, facts, verdicts)
        kept = {k: v for k, v in environment().items() if k in ("cpu", "cores", "memory_gb")}
        packages = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "kexue")
        parts[name] = {
            "date": date.today().isoformat(),
            "small": given.small,
            "rounds": given.rounds,
            "threads": threads,
            "hardware": kept,
            "python": platform.python_version(),
            "versions": versions(packages),
            "targets": verdicts,
            "facts": facts,
            "table": table,
        }
        if path:  # after every part: the long ones come last
            result = {
                "task": "seconds on the CPU; ratio to the first contender",
                "cuda": "not measured",
            }
            result["parts"] = {one: parts[one] for one in PARTS if one in parts}
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")
            print(f"written to {path}")


if __name__ == "__main__":
    main()
