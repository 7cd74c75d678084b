"""S16 on the Gram matrix: KKT conditions, invariances, worked numbers, peers."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from kexue.lab.s16_plane import published_iteration
from kexue.optim.multitask.gram import checked_gram, min_norm_weights, primary_auxiliary_weights
from kexue.optim.multitask.solvers import frank_wolfe, nonnegative_least_squares
from naive.multitask import naive_min_norm, naive_pcgrad, naive_veto

KINDS = ("plain", "scales", "duplicates", "opposites and zeros", "nearly parallel", "integers")


def draw(kind, random, n=None, d=None):
    n, d = n or random.integers(1, 9), d or random.integers(1, 12)
    G = random.standard_normal((n, d))
    if kind == "scales":
        G *= 10.0 ** random.integers(-12, 13, size=(n, 1))
    elif kind == "duplicates":
        G = np.repeat(G, 2, axis=0)[:8]
    elif kind == "opposites and zeros":
        G = np.vstack([G, -G[:1], 0 * G[:1]])
    elif kind == "nearly parallel":
        G = G[:1] + 1e-4 * G
    elif kind == "integers":
        G = np.round(G)
    return G


def gram(G):
    return torch.from_numpy(np.asarray(G, dtype=np.float64) @ np.asarray(G, dtype=np.float64).T)


def weights(G, primary, **options):
    return primary_auxiliary_weights(gram(G), primary, **options).numpy()


def direction(G, primary=0, **options):
    return weights(G, primary, **options) @ G


def violation(G, primary):
    """The largest breach of the KKT conditions, relative to the gradients' lengths."""
    w = weights(G, primary)
    u, is_primary = w @ G, np.isin(np.arange(len(G)), primary)
    length = np.linalg.norm(G, axis=1)
    assert (w >= 0).all()
    assert w[is_primary].sum() == pytest.approx(1, rel=1e-12)
    worst = 0.0
    for task in range(len(G)):
        slack = u @ G[task] - (u @ u if is_primary[task] else 0)
        allowed = slack if w[task] > 0 else min(slack, 0)  # complementary slackness
        unit = length[task] * length[is_primary].min()
        worst = max(worst, abs(allowed) / unit if unit > 0 else abs(allowed))
    return worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["veto", "min-norm", "mixed"])
def test_the_kkt_conditions_hold_to_1e_9_for_every_kind_of_gradients(kind, role):
    random = np.random.default_rng(0)
    for _ in range(150):
        G = draw(kind, random)
        size = {"veto": 1, "min-norm": len(G), "mixed": random.integers(1, len(G) + 1)}[role]
        primary = sorted(random.choice(len(G), size=size, replace=False).tolist())
        assert violation(G, primary) < 1e-9


@pytest.mark.parametrize("kind", ["plain", "duplicates", "opposites and zeros", "integers"])
def test_the_direction_equals_that_of_trying_every_face(kind):
    random = np.random.default_rng(1)
    for _ in range(60):
        G = draw(kind, random, n=random.integers(1, 6))[:7]
        np.testing.assert_allclose(direction(G), naive_veto(G), rtol=0, atol=1e-8)
        np.testing.assert_allclose(direction(G, range(len(G))), naive_min_norm(G), atol=1e-8)


def test_the_solver_agrees_with_scipy_on_the_factors():
    random = np.random.default_rng(2)
    for _ in range(300):
        A, b = random.standard_normal((9, random.integers(1, 8))), random.standard_normal(9)
        expected, _ = nnls(A, b)
        ours = nonnegative_least_squares(A.T @ A, A.T @ b)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


def test_the_veto_agrees_with_scipy_on_the_gradients():
    random = np.random.default_rng(3)
    for _ in range(300):
        G = random.standard_normal((random.integers(2, 8), 9))
        expected, _ = nnls(G[1:].T, -G[0])
        np.testing.assert_allclose(weights(G, 0)[1:], expected, rtol=0, atol=1e-9)


def test_without_conflict_the_primary_is_left_as_it_is():
    G = np.array([[1.0, 1.0, 0.0], [2.0, 0.0, 1.0], [0.0, 3.0, -1.0]])
    assert weights(G, 0).tolist() == [1, 0, 0]
    assert weights(G[:2], 0).tolist() == [1, 0]


def test_no_auxiliary_leaves_the_primary_alone():
    for mode in ("veto", "protect_primary"):
        assert weights([[3.0, 4.0]], 0, mode=mode).tolist() == [1]
    assert min_norm_weights(gram([[3.0, 4.0]])).tolist() == [1]


def test_duplicate_and_zero_auxiliaries_change_nothing():
    random = np.random.default_rng(4)
    for _ in range(50):
        G = random.standard_normal((4, 6))
        more = np.vstack([G, G[1:], np.zeros((2, 6)), G[2:3] * 7])
        np.testing.assert_allclose(direction(more), direction(G), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-15, 1e-5, 1e5, 1e15])
def test_rescaling_an_auxiliary_rescales_its_weight_and_leaves_the_direction(scale):
    random = np.random.default_rng(5)
    for n in (2, 4):
        G = random.standard_normal((n, 6))
        G[1] -= G[0]  # a conflict, so that its weight is not zero
        scaled = G.copy()
        scaled[1] *= scale
        np.testing.assert_allclose(direction(scaled), direction(G), rtol=0, atol=1e-12)
        np.testing.assert_allclose(weights(scaled, 0)[1] * scale, weights(G, 0)[1], rtol=1e-9)


def test_projecting_twice_is_projecting_once_and_never_lengthens():
    random = np.random.default_rng(6)
    for _ in range(100):
        G = random.standard_normal((random.integers(2, 7), 5))
        u = direction(G)
        np.testing.assert_allclose(direction(np.vstack([u, G[1:]])), u, rtol=0, atol=1e-9)
        assert np.linalg.norm(u) <= np.linalg.norm(G[0]) * (1 + 1e-12)
        assert u @ G[0] == pytest.approx(u @ u, abs=1e-9)


def test_the_primary_splits_into_the_step_and_an_orthogonal_rest():
    G = np.random.default_rng(7).standard_normal((5, 4))
    u = direction(G)
    assert u @ (G[0] - u) == pytest.approx(0, abs=1e-12)


def test_min_norm_descends_for_every_task_at_least_as_its_own_square():
    random = np.random.default_rng(8)
    for _ in range(100):
        G = random.standard_normal((random.integers(2, 8), 9))
        a = min_norm_weights(gram(G)).numpy()
        u = a @ G
        assert (G @ u >= u @ u - 1e-12).all()
        np.testing.assert_allclose((G @ u)[a > 0], u @ u, atol=1e-12)


def test_min_norm_does_not_depend_on_the_order_of_the_tasks():
    random = np.random.default_rng(9)
    G, order = random.standard_normal((6, 9)), random.permutation(6)
    a = min_norm_weights(gram(G))
    np.testing.assert_allclose(min_norm_weights(gram(G[order])), a[order], rtol=0, atol=1e-12)


def test_two_tasks_in_closed_form_are_the_general_solver():
    random = np.random.default_rng(10)
    for _ in range(100):
        G = random.standard_normal((2, 3)) * 10.0 ** random.integers(-6, 7, size=(2, 1))
        twice = G[[0, 0, 1]]  # three tasks take the general way
        for primary, double in ((0, 0), (1, 2), ([0, 1], [0, 1, 2])):
            u, unit = direction(G, primary), np.linalg.norm(G, axis=1).max()
            np.testing.assert_allclose(direction(twice, double), u, rtol=0, atol=1e-12 * unit)


def test_a_vertex_is_the_answer_when_one_gradient_is_much_shorter():
    assert min_norm_weights(gram([[1.0, 0.0], [5.0, 1.0]])).tolist() == [1, 0]
    assert min_norm_weights(gram([[1.0, 0, 0], [5, 1, 0], [7, 0, 3]])).tolist() == [1, 0, 0]


def test_normalised_min_norm_does_not_see_the_scales():
    random = np.random.default_rng(11)
    for n in (2, 5):
        G = random.standard_normal((n, 9))
        scaled = G * 10.0 ** random.integers(-9, 10, size=(n, 1))
        u, v = (min_norm_weights(gram(g), normalise=True).numpy() @ g for g in (G, scaled))
        np.testing.assert_allclose(u / np.linalg.norm(u), v / np.linalg.norm(v), atol=1e-10)


def test_normalised_directions_scale_with_a_common_factor():
    G = np.random.default_rng(12).standard_normal((3, 5))
    for mode in ("veto", "protect_primary"):
        u, v = (direction(g, 0, mode=mode, normalise=True) for g in (G, 1024 * G))
        np.testing.assert_allclose(v, 1024 * u, rtol=1e-12)


def test_normalising_changes_nothing_for_a_veto():
    G = np.random.default_rng(13).standard_normal((5, 4))
    np.testing.assert_allclose(direction(G), direction(G, normalise=True), atol=1e-12)


def test_a_zero_primary_is_stationary_and_a_zero_task_is_left_out_when_normalised():
    G = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
    for n in (2, 3):
        assert direction(G[:n]).tolist() == [0, 0]
        assert (min_norm_weights(gram(G[:n])).numpy() @ G[:n]).tolist() == [0, 0]
        assert min_norm_weights(gram(G[:n]), normalise=True)[0] == 0
        assert np.abs(min_norm_weights(gram(G[:n]), normalise=True).numpy() @ G[:n]).sum() > 1
        assert weights(0 * G[:n], 0, normalise=True).tolist()[1:] == [0] * (n - 1)
    assert min_norm_weights(gram(0 * G), normalise=True).tolist() == [0, 0, 0]


def test_an_auxiliary_that_vanishes_against_the_primary_counts_as_zero():
    G = np.array([[1.0, 0.0], [-1e-35, 0.0], [0.0, 1.0]])
    assert weights(G, 0).tolist() == [1, 0, 0]
    assert weights(G[:2], 0).tolist() == [1, 0]


def test_pcgrad_of_two_tasks_is_the_sum_of_both_vetoes():
    random = np.random.default_rng(14)
    for _ in range(50):
        G = random.standard_normal((2, 4))
        both = direction(G, 0) + direction(G, 1)
        np.testing.assert_allclose(naive_pcgrad(G, [[1], [0]]), both, atol=1e-12)


def test_pcgrad_of_three_tasks_can_raise_one_where_the_veto_raises_none():
    random = np.random.default_rng(15)
    worst = 0.0
    for _ in range(200):
        G = random.standard_normal((3, 3))
        projected = G[0]
        for j in (1, 2):  # the first of PCGrad's three terms, in one order
            if projected @ G[j] < 0:
                projected = projected - (projected @ G[j]) / (G[j] @ G[j]) * G[j]
        worst = min(worst, (G[1:] @ projected).min())
        assert (G[1:] @ direction(G)).min() > -1e-12
    assert worst < -0.1


def test_several_primaries_reduce_to_one_primary_and_to_min_norm():
    random = np.random.default_rng(16)
    for _ in range(50):
        G = random.standard_normal((5, 7))
        np.testing.assert_array_equal(weights(G, [2]), weights(G, 2))
        a = min_norm_weights(gram(G)).numpy()
        np.testing.assert_allclose(weights(G, [4, 2, 0, 1, 3]), a, atol=1e-12)


def test_the_solver_never_raises_the_primary_where_the_published_iteration_does():
    random = np.random.default_rng(17)
    published = ours = 0
    for _ in range(100):
        G = random.standard_normal((6, 5))
        published += published_iteration(G @ G.T) @ G @ G[0] < -1e-9
        ours += direction(G) @ G[0] < -1e-9
    assert published > 0
    assert ours == 0


def test_frank_wolfe_tends_to_the_exact_point():
    random = np.random.default_rng(18)
    for _ in range(30):
        K = gram(random.standard_normal((random.integers(1, 7), 9)))
        exact = min_norm_weights(K).numpy()
        squares = [
            (w := min_norm_weights(K, "frank_wolfe", steps=steps).numpy()) @ K.numpy() @ w
            for steps in (10, 100, 3000)
        ]
        best = exact @ K.numpy() @ exact
        assert squares[0] + 1e-12 >= squares[1] >= squares[2] - 1e-12 >= best - 2e-12
        assert squares[2] == pytest.approx(best, rel=1e-2)


def test_frank_wolfe_is_normalised_the_same_way():
    K = gram(np.random.default_rng(19).standard_normal((3, 9)) * [[1.0], [1e3], [0.0]])
    fast, exact = (min_norm_weights(K, m, normalise=True) for m in ("frank_wolfe", "exact"))
    np.testing.assert_allclose(fast, exact, rtol=1e-6)


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
def test_a_protected_primary_falls_at_least_c_times_as_fast_as_alone(c):
    random = np.random.default_rng(20)
    for _ in range(100):
        G = random.standard_normal((random.integers(1, 6), 4))
        u = direction(G, 0, mode="protect_primary", protection=c)
        assert u @ G[0] >= c * (G[0] @ G[0]) - 1e-12
        if G.sum(0) @ G[0] >= c * (G[0] @ G[0]):
            np.testing.assert_allclose(u, G.sum(0), atol=1e-12)


def test_full_protection_of_one_is_the_primary_and_the_other_projected():
    random = np.random.default_rng(21)
    for _ in range(50):
        G = random.standard_normal((2, 3))
        projected = direction(G, 1)  # g_1 made harmless to g_0, as PCGrad does
        u = direction(G, 0, mode="protect_primary")
        np.testing.assert_allclose(u, G[0] + projected, atol=1e-12)


def test_auxiliary_weights_enter_the_protected_sum_in_order():
    G = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    w = weights(G, 1, mode="protect_primary", auxiliary_weights=[2.0, 3.0])
    assert w.tolist() == [2, 1, 3]


def test_a_regulariser_as_auxiliary_never_lengthens_the_weights():
    random = np.random.default_rng(22)
    for _ in range(100):
        g, theta = random.standard_normal((2, 6))
        u = direction(np.stack([g, theta]))
        expected = g + max(0, -g @ theta) / (theta @ theta) * theta
        np.testing.assert_allclose(u, expected, atol=1e-12)
        step = theta - 0.1 * u
        assert step @ step <= theta @ theta + 0.01 * u @ u + 1e-12


def test_worked_numbers_of_one_auxiliary():
    G = np.array([[3.0, 1], [-1, 1]])
    assert weights(G, 0).tolist() == [1, 1]
    assert direction(G).tolist() == [2, 2]


def test_worked_numbers_of_two_auxiliaries():
    G = np.array([[1.0, 1, 1], [-1, 0, 0.5], [0, -1, -0.5]])
    u = direction(G)
    np.testing.assert_allclose(weights(G, 0), [1, 2 / 3, 4 / 3], rtol=0, atol=1e-12)
    expected = [0.333333333333, -0.333333333333, 0.666666666667]
    np.testing.assert_allclose(u, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(G @ u, [0.666666666667, 0, 0], atol=1e-12)
    assert u @ u == pytest.approx(0.666666666667, abs=1e-12)


@pytest.mark.parametrize("method", ["exact", "frank_wolfe"])
def test_worked_numbers_of_min_norm(method):
    atol = 1e-12 if method == "exact" else 1e-6
    a = min_norm_weights(gram([[3.0, 1], [-1, 1]]), method)
    np.testing.assert_allclose(a, [0.25, 0.75], atol=atol)
    G = np.array([[2.0, 0, 1], [0, 1, -1], [-1, 1, 1]])
    a = min_norm_weights(gram(G), method)
    expected = [0.268292682927, 0.439024390244, 0.292682926829]
    np.testing.assert_allclose(a, expected, rtol=0, atol=atol)
    expected = [0.243902439024, 0.731707317073, 0.121951219512]
    np.testing.assert_allclose(a.numpy() @ G, expected, rtol=0, atol=atol)


def test_worked_numbers_of_the_published_stall():
    G = np.array([[-2.0, -1], [1, 0], [1, 1]])
    stalled = published_iteration(G @ G.T)
    np.testing.assert_allclose(stalled, [1, 0.5, 1.5], atol=1e-12)
    np.testing.assert_allclose(stalled @ G, [0, 0.5], atol=1e-12)
    assert stalled @ G @ G[0] == pytest.approx(-0.5)
    np.testing.assert_allclose(weights(G, 0), [1, 1, 1], atol=1e-12)
    np.testing.assert_allclose(direction(G), [0, 0], atol=1e-12)


def test_frank_wolfe_of_nothing_is_nothing():
    assert frank_wolfe(np.zeros((0, 0))).tolist() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": torch.tensor([[1.0, 0], [0, torch.nan]])}, "gradient of task 1 .* nan"),
        ({"gram": torch.tensor([[torch.inf, 0], [0, 1]])}, "gradient of task 0 .* inf"),
        ({"gram": torch.tensor([[-1.0, 0], [0, 1]])}, "task 0 has the square length -1"),
        ({"gram": torch.tensor([[1.0, 0.5], [0, 1]])}, "symmetric"),
        ({"primary": 2}, "between 0 and 1, got 2"),
        ({"primary": -1}, "got -1"),
        ({"primary": []}, r"got \[\]"),
        ({"primary": [0, 0]}, "several different ones"),
        ({"primary": [0, 1], "mode": "protect_primary"}, "takes one primary"),
        ({"mode": "protect_primary", "protection": 1.5}, "between 0 and 1, got 1.5"),
        ({"mode": "protect_primary", "auxiliary_weights": [1.0, 1.0]}, "must be 1 numbers"),
        ({"mode": "protect_primary", "auxiliary_weights": [-1.0]}, ">= 0"),
        ({"protection": 0.5}, "belong to mode='protect_primary'"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"gram": torch.eye(2)} | change
    with pytest.raises(ValueError, match=message):
        primary_auxiliary_weights(**arguments)


def test_a_matrix_that_is_not_square_is_named():
    with pytest.raises(ValueError, match=r"n x n matrix, got shape \(2, 3\)"):
        checked_gram(torch.ones(2, 3))
