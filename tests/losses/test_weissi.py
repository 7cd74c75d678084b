"""S36: a penalty that shifting scale between layers does not change."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kexue.losses.scale_balance import balance_scales, shift_scales
from kexue.losses.weissi import product_penalty, weissi_parameters, weissi_penalty
from naive import weissi as naive

FIRST = torch.tensor([[1.0, 2.0], [-0.5, 0.5]], dtype=torch.float64)
SECOND = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
WORKED = {"first": FIRST, "second": SECOND}


def gradients(function, weights):
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    found = torch.autograd.grad(function(leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def network(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(5, 7, bias=bias), nn.ReLU(), nn.Sequential(nn.Linear(7, 6, bias=bias))),
        *(nn.LeakyReLU(0.1), nn.Dropout(0.0), nn.Linear(6, 3, bias=bias)),
    ).double()


def random_weights(seed=0):
    torch.manual_seed(seed)
    return {f"w{k}": torch.randn(k + 2, 3, dtype=torch.float64) for k in range(3)}


def squares(model):
    return sum(w.square().sum().item() for w in weissi_parameters(model, "all").values())


# worked numbers


def close(found, *worked):
    expected = torch.tensor(worked, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_worked_values():
    norms = [w.norm().item() for w in WORKED.values()]
    assert norms == pytest.approx([2.345207879912, 0.5], abs=1e-10)
    assert weissi_penalty(WORKED, 1.0).item() == pytest.approx(0.159226865559, abs=1e-10)
    for name, ratio in (("first", 1.705605730845), ("second", 1.4)):
        found = weissi_penalty({name: WORKED[name]}, 0.0, 1.0)
        assert found.item() == pytest.approx(ratio, abs=1e-10)


def test_the_worked_gradients():
    found = gradients(lambda w: weissi_penalty(w, 1.0), WORKED)
    close(found["first"], [0.181818181818, 0.363636363636], [-0.090909090909, 0.090909090909])
    close(found["second"], [1.2, -1.6])
    found = gradients(lambda w: weissi_penalty(w, 0.0, 1.0), WORKED)
    close(found["first"], [0.116291299830, -0.193818833051], [-0.271346366271, 0.271346366271])


def worked_network():
    net = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)
    ).double()
    with torch.no_grad():
        net[0].weight.copy_(FIRST)
        net[2].weight.copy_(SECOND)
    return net


def test_the_worked_balance():
    net = worked_network()
    balanced = balance_scales(net)
    assert squares(net) == pytest.approx(5.75, abs=1e-10)
    assert squares(balanced) == pytest.approx(2.345207879912, abs=1e-10)
    factors = [(balanced[i].weight / net[i].weight)[0, 0].item() for i in (0, 2)]
    assert factors == pytest.approx([0.461736630944, 2.165736770668], abs=1e-10)


# properties


@pytest.mark.parametrize("seed", range(3))
def test_a_shift_of_product_one_changes_neither_the_network_nor_the_penalty(seed):
    net, x = network(seed), torch.randn(20, 5, dtype=torch.float64)
    shifted = shift_scales(net, [4.0, 0.5, 0.5])
    torch.testing.assert_close(shifted(x), net(x), rtol=0, atol=1e-12)
    before, after = (weissi_penalty(one, 0.3, 0.2).item() for one in (net, shifted))
    assert after == pytest.approx(before, abs=1e-12)
    assert squares(shifted) > 1.5 * squares(net)


def test_a_bias_that_takes_its_own_factor_alone_changes_the_function():
    net, x = network(), torch.randn(20, 5, dtype=torch.float64)
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        for layer, gamma in zip((wrong[0], wrong[2][0], wrong[5]), (4.0, 0.5, 0.5), strict=True):
            layer.weight *= gamma
            layer.bias *= gamma
    assert (wrong(x) - net(x)).abs().max() > 0.1


@pytest.mark.parametrize("gammas", [(2.0, 3.0, 0.7), (0.1, 0.1, 0.1)])
def test_any_shift_adds_the_logarithms_of_its_factors_and_leaves_the_directions(gammas):
    net, x = network(), torch.randn(20, 5, dtype=torch.float64)
    shifted = shift_scales(net, gammas)
    torch.testing.assert_close(shifted(x), math.prod(gammas) * net(x), rtol=1e-12, atol=1e-12)
    gap = weissi_penalty(shifted, 0.3) - weissi_penalty(net, 0.3)
    assert gap.item() == pytest.approx(0.3 * sum(map(math.log, gammas)), abs=1e-12)
    directions = [weissi_penalty(one, 0.0, 1.0).item() for one in (net, shifted)]
    assert directions[0] == pytest.approx(directions[1], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_each_layer_has_the_same_budget_and_the_direction_none(seed):
    weights = random_weights(seed)
    for name, g in gradients(lambda w: weissi_penalty(w, 0.7), weights).items():
        assert (weights[name] * g).sum().item() == pytest.approx(0.7, abs=1e-12)
        assert g.norm().item() == pytest.approx(0.7 / weights[name].norm().item(), abs=1e-12)
    for name, g in gradients(lambda w: weissi_penalty(w, 0.0, 0.7), weights).items():
        assert (weights[name] * g).sum().item() == pytest.approx(0, abs=1e-12)
        assert g.norm() > 0.01


def test_a_gradient_step_on_the_penalty_alone_shortens_each_norm_by_the_formula():
    weights, rate, lambda1 = random_weights(), 0.1, 0.7
    for name, g in gradients(lambda w: weissi_penalty(w, lambda1), weights).items():
        n = weights[name].norm().item()
        after = (weights[name] - rate * g).norm().item()
        assert after == pytest.approx(n - rate * lambda1 / n, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_balanced_norms_have_the_least_squares_of_all_shifts(seed):
    net, x = network(seed), torch.randn(9, 5, dtype=torch.float64)
    balanced = balance_scales(net)
    torch.testing.assert_close(balanced(x), net(x), rtol=0, atol=1e-12)
    norms = [w.norm().item() for w in weissi_parameters(net, "all").values()]
    least = 3 * math.prod(norms) ** (2 / 3)
    assert squares(balanced) == pytest.approx(least, rel=1e-12)
    assert least < squares(net)
    for gammas in ((1.1, 1 / 1.1, 1.0), (0.9, 1.0, 1 / 0.9), (2.0, 2.0, 0.25)):
        assert squares(shift_scales(balanced, gammas)) > least
    again = balance_scales(balanced)
    assert squares(again) == pytest.approx(least, rel=1e-12)


def test_shape_and_order_do_not_matter():
    weights = random_weights()
    expected = weissi_penalty(weights, 0.3, 0.2).item()
    flat = {name: w.view(-1, 1, 3, 1) for name, w in reversed(weights.items())}
    assert weissi_penalty(flat, 0.3, 0.2).item() == pytest.approx(expected, abs=1e-14)


@given(st.lists(st.floats(-10, 10).filter(lambda v: abs(v) > 1e-3), min_size=1, max_size=12))
def test_the_direction_lies_between_one_and_the_root_of_the_size(values):
    weight = torch.tensor(values, dtype=torch.float64)
    found = weissi_penalty({"w": weight}, 0.0, 1.0).item()
    assert 1 - 1e-12 <= found <= math.sqrt(len(values)) + 1e-12


def test_the_direction_is_one_for_one_hot_and_the_root_for_equal_magnitudes():
    hot, even = torch.zeros(9).double(), torch.full((9,), 0.3, dtype=torch.float64)
    hot[4], even[::2] = -2.5, -0.3
    assert weissi_penalty({"w": hot}, 0.0, 1.0).item() == pytest.approx(1, abs=1e-12)
    assert weissi_penalty({"w": even}, 0.0, 1.0).item() == pytest.approx(3, abs=1e-12)


def test_the_product_has_the_gradient_of_the_logarithm_times_twice_its_value():
    weights = random_weights()
    product = product_penalty(weights)
    logs, products = (
        gradients(function, weights)
        for function in (lambda w: weissi_penalty(w, 1.0), product_penalty)
    )
    for name in weights:
        torch.testing.assert_close(logs[name], products[name] / (2 * product), rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh])
def test_no_jacobian_is_larger_than_the_product_of_norms(activation):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 3)
    )
    bound = math.exp(weissi_penalty(net, 1.0).item())
    for x in 3 * torch.randn(200, 4):
        jacobian = torch.autograd.functional.jacobian(net, x)
        assert torch.linalg.matrix_norm(jacobian, 2) <= bound * (1 + 1e-6)


def test_without_a_loss_the_flow_of_the_penalty_keeps_differences_of_squares():
    """d|W|²/dt = −2 λ1 for every layer; a weight decay shrinks the differences."""
    weights, rate, steps = random_weights(), 1e-4, 200
    start = {name: w.square().sum().item() for name, w in weights.items()}
    for _ in range(steps):
        found = gradients(lambda w: weissi_penalty(w, 1.0), weights)
        weights = {name: w - rate * found[name] for name, w in weights.items()}
    for name, w in weights.items():
        assert start[name] - w.square().sum().item() == pytest.approx(2 * rate * steps, rel=1e-3)


@given(
    st.lists(
        st.lists(st.floats(-3, 3).filter(lambda v: abs(v) > 1e-2), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    )
)
def test_values_and_gradients_are_those_of_the_formulas_as_written(layers):
    weights = {str(k): torch.tensor(one, dtype=torch.float64) for k, one in enumerate(layers)}
    assert weissi_penalty(weights, 0.7, 0.2).item() == pytest.approx(
        naive.penalty(layers, 0.7, 0.2), abs=1e-12
    )
    found = gradients(lambda w: weissi_penalty(w, 0.7, 0.2), weights)
    for name, g in found.items():
        expected = naive.gradient(layers[int(name)], 0.7, 0.2)
        assert g.tolist() == pytest.approx(expected, abs=1e-9)


# numbers


def test_gradcheck_and_gradgradcheck_pass():
    weights = [w.clone().requires_grad_() for w in WORKED.values()]
    for function in (
        lambda a, b: weissi_penalty({"a": a, "b": b}, 0.7, 0.3, eps=0.1),
        lambda a, b: product_penalty({"a": a, "b": b}, 0.3),
    ):
        assert torch.autograd.gradcheck(function, weights)
        assert torch.autograd.gradgradcheck(function, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_of_low_precision_are_summed_in_float32(dtype):
    torch.manual_seed(0)
    weight = torch.randn(300, 300).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = weissi_penalty({"w": weight}, 1.0, 0.1)
    assert found.dtype == torch.float32
    expected = weissi_penalty({"w": weight.double()}, 1.0, 0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    low, high = (
        gradients(lambda w: weissi_penalty(w, 1.0, 0.1), {"w": w})["w"]
        for w in (weight, weight.double())
    )
    limit = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-2}[dtype]
    assert ((low.double() - high).norm() / high.norm()).item() < limit


def test_a_floor_lets_zeros_pass_with_a_finite_gradient():
    weights = {"w": torch.zeros(3)}
    assert weissi_penalty(weights, 1.0, 1.0, eps=0.1).item() == pytest.approx(math.log(0.1))
    found = gradients(lambda w: weissi_penalty(w, 1.0, 1.0, eps=0.1), weights)["w"]
    assert found.tolist() == [0, 0, 0]
    assert product_penalty({**weights, "v": torch.ones(2)}).item() == 0


# which weights


class Swapped(nn.Module):
    """Registered in another order than called."""

    def __init__(self):
        super().__init__()
        self.norm, self.b, self.a = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return self.b(self.norm(self.a(x).relu()) * scale)


def test_layers_before_a_normalisation_are_left_out():
    net = nn.Sequential(
        *(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(8, 2),
    )
    assert list(weissi_parameters(net)) == ["7.weight", "10.weight"]
    assert list(weissi_parameters(net, "all")) == ["0.weight", "3.weight", "7.weight", "10.weight"]
    assert list(weissi_parameters(net, [r"^0\.", "bias$"]))[:2] == ["0.weight", "0.bias"]


def test_an_example_finds_the_order_of_the_calls():
    net = Swapped().train()
    assert list(weissi_parameters(net)) == ["b.weight", "a.weight"]
    x = torch.randn(2, 4)
    assert list(weissi_parameters(net, example=x)) == ["b.weight"]
    assert list(weissi_parameters(net, example=(x, 2.0))) == ["b.weight"]
    assert all(module.training for module in net.modules())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_an_example_leaves_the_statistics_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    assert list(weissi_parameters(net, example=torch.randn(8, 4))) == ["2.weight"]
    torch.testing.assert_close(dict(net.state_dict()), dict(before))


def test_a_shared_weight_counts_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    assert list(weissi_parameters(net)) == ["0.weight"]
    assert weissi_penalty(net, 1.0).item() == pytest.approx(net[0].weight.norm().log().item())


# what is refused


def test_a_zero_weight_is_named():
    with pytest.raises(ValueError, match=r"head of shape \(2, 2\) has norm 0.*set eps above 0"):
        weissi_penalty({"body": torch.ones(2), "head": torch.zeros(2, 2)}, 1.0)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net[2].weight.data.zero_()
    with pytest.raises(ValueError, match="layer 1 of 2 has a weight of norm 0"):
        balance_scales(net)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: weissi_penalty(WORKED, -1.0), r"lambda1 must be a number of at least 0, got -1"),
        (lambda: weissi_penalty(WORKED, 1.0, -0.5), "lambda2 must be"),
        (lambda: weissi_penalty(WORKED, 1.0, eps=-0.5), "eps must be"),
        (lambda: weissi_penalty({}, 1.0), "parameters is empty"),
        (lambda: product_penalty(WORKED, -1.0), "coef must be"),
        (lambda: product_penalty({"w": torch.full((2,), 1e30)}), "beyond torch.float32"),
        (lambda: weissi_parameters(network(), "some"), 'selection must be "free", "all"'),
        (lambda: weissi_parameters(network(), ["head"]), r"no parameter's name fits 'head'"),
        (lambda: weissi_parameters(nn.LayerNorm(3)), "no weight of this LayerNorm is selected"),
        (lambda: shift_scales(network(), [1.0, 2.0]), "3 layers need as many gammas, got 2"),
        (lambda: shift_scales(network(), [1.0, -2.0, 1.0]), "gammas must be positive"),
        (lambda: balance_scales(nn.Sequential(nn.ReLU())), "no Linear or convolution"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("between", [nn.GELU(), nn.Tanh(), nn.BatchNorm1d(3)])
def test_scale_is_not_moved_past_what_is_not_homogeneous(between):
    net = nn.Sequential(nn.Linear(2, 3), between, nn.Linear(3, 1))
    with pytest.raises(
        TypeError, match=f"1 is a {type(between).__name__}, which is not positively"
    ):
        shift_scales(net, [2.0, 0.5])
    shift_scales(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), between), [2.0, 0.5])


def test_a_layer_used_twice_cannot_be_shifted():
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="a layer is used twice"):
        shift_scales(nn.Sequential(layer, nn.ReLU(), layer), [2.0, 0.5])
