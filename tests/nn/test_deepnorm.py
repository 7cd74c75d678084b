"""DeepNorm: constants, wrapper, initialisation and scale of a matrix."""

import copy
import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from kexue.nn.deepnorm import DeepNorm, deepnorm_constants, matrix_scale
from kexue.nn.deepnorm_init import deepnorm_init_
from kexue.nn.residual import PostNorm

DEPTHS = [1, 2, 6, 12, 100, 1000]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def near(value, digits):
    return value == pytest.approx(digits, rel=1e-10, abs=0)


# Constants.


@pytest.mark.parametrize(
    ("blocks", "alpha", "beta"),
    [
        (6, 1.8612097182041991, 0.37991784282579627),
        (12, 2.213363839400643, 0.3194715521231362),
        (100, 3.7606030930863934, 0.1880301546543197),
        (1000, 6.68740304976422, 0.10573712634405641),
    ],
)
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_constants_of_a_single_stack(blocks, alpha, beta, role):
    constants = deepnorm_constants(**{f"{role}_layers": blocks})
    assert list(constants) == [role]
    assert near(constants[role].alpha, alpha)
    assert near(constants[role].beta, beta)


@pytest.mark.parametrize(
    ("blocks", "exact", "encoder"),
    [
        (6, False, (1.417938140685523, 0.49698924077132345)),
        (6, True, (1.4246626231544801, 0.49633279465202473)),
        (100, False, (3.4157416777715164, 0.206309512392564)),
    ],
)
def test_constants_of_the_encoder_of_an_encoder_decoder(blocks, exact, encoder):
    found = deepnorm_constants(blocks, blocks, exact)["encoder"]
    assert near(found.alpha, encoder[0])
    assert near(found.beta, encoder[1])


@pytest.mark.parametrize(
    ("blocks", "decoder"),
    [
        (6, (2.0597671439071177, 0.34329452398451965)),
        (100, (4.161791450287817, 0.16990442448471224)),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_constants_of_a_decoder_with_cross_attention(blocks, decoder, exact):
    found = deepnorm_constants(3, blocks, exact)["decoder"]  # whatever the encoder's depth
    assert near(found.alpha, decoder[0])
    assert near(found.beta, decoder[1])


@pytest.mark.parametrize("N", DEPTHS)
def test_the_update_bound_of_a_single_stack_is_one_at_every_depth(N):
    alpha, beta = deepnorm_constants(encoder_layers=N)["encoder"]
    assert near(2 * N * 2 * beta**2 / alpha**2, 1)
    alpha, beta = deepnorm_constants(1, N)["decoder"]
    assert near(3 * N * 2 * beta**2 / alpha**2, 1)


@pytest.mark.parametrize("N", DEPTHS)
@pytest.mark.parametrize("M", [1, 6, 100])
def test_the_update_bound_of_the_encoder_through_cross_attention_is_one(N, M):
    for exact, bound, digits in ((True, 1.0, 1e-12), (False, 1.01218, 1e-5)):
        found = deepnorm_constants(N, M, exact)
        encoder, decoder = found["encoder"], found["decoder"]
        weight = M * decoder.beta**2 / decoder.alpha
        through = weight * 2 * N * 2 * encoder.beta**2 / encoder.alpha**2
        assert through == pytest.approx(bound, abs=digits)
        product = encoder.alpha * encoder.beta
        assert product == pytest.approx(2**-0.5, rel=1e-12 if exact else 4e-3)


def test_the_printed_constants_are_the_exact_ones_rounded():
    alpha, beta = deepnorm_constants(1, 1, exact=True)["encoder"]
    assert (round(alpha, 5), round(beta, 5)) == (0.81384, 0.86885)
    assert (round(alpha, 2), round(beta, 2)) == (0.81, 0.87)


@pytest.mark.parametrize("N", DEPTHS)
def test_each_rule_meets_the_condition_of_its_optimizer(N):
    found = {r: deepnorm_constants(N, rule=r)["encoder"] for r in ("sgd", "adam", "lamb")}
    assert near(found["sgd"].beta / found["sgd"].alpha, (2 * N) ** -0.5)
    assert near(found["adam"].beta / found["adam"].alpha, 1 / (2 * N))
    assert near(found["lamb"].beta ** 2 / found["lamb"].alpha, 1 / (2 * N))
    assert found["lamb"].alpha == 1
    paper = deepnorm_constants(N)["encoder"]
    assert near(paper.beta / paper.alpha, (4 * N) ** -0.5)  # the paper's sqrt(4N)


@pytest.mark.parametrize("rule", ["paper", "sgd", "adam"])
def test_alpha_grows_and_beta_falls_with_depth(rule):
    scales = [deepnorm_constants(N, rule=rule)["encoder"] for N in DEPTHS]
    both = [deepnorm_constants(N, N)[r] for r in ("encoder", "decoder") for N in DEPTHS]
    for found in (scales, both[: len(DEPTHS)], both[len(DEPTHS) :]):
        assert [one.alpha for one in found] == sorted({one.alpha for one in found})
        assert [-one.beta for one in found] == sorted({-one.beta for one in found})


def test_constants_without_layers_or_with_an_unknown_rule_are_refused():
    with pytest.raises(ValueError, match="got encoder_layers=0 and decoder_layers=0"):
        deepnorm_constants()
    with pytest.raises(ValueError, match="got encoder_layers=-1 and decoder_layers=2"):
        deepnorm_constants(-1, 2)
    with pytest.raises(ValueError, match="derived for one stack"):
        deepnorm_constants(6, 6, rule="adam")


# The wrapper.


def test_the_worked_example():
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    G = torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)
    y = DeepNorm(3, 8**0.25, lambda d: nn.LayerNorm(d, eps=0.0)).double()(x, G)
    expected = [-0.8406616548867775, -0.5645376848476019, 1.4051993397343787]
    assert y.tolist() == pytest.approx(expected, rel=0, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.81, 1.0, 6.687])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_the_two_forms_agree_when_eps_is_divided_by_alpha_squared(alpha, eps):
    x, G = draw(5, 8), draw(5, 8, seed=1)
    deep = DeepNorm(8, alpha, lambda d: nn.LayerNorm(d, eps=eps)).double()
    post = PostNorm(8, lambda d: nn.LayerNorm(d, eps=eps / alpha**2)).double()
    torch.testing.assert_close(deep(x, G), post(x, G / alpha), rtol=0, atol=1e-12)


def test_the_same_eps_in_both_forms_differs():
    x, G = draw(5, 8), draw(5, 8, seed=1)
    deep = DeepNorm(8, 4.0, lambda d: nn.LayerNorm(d, eps=0.1)).double()
    post = PostNorm(8, lambda d: nn.LayerNorm(d, eps=0.1)).double()
    assert (deep(x, G) - post(x, G / 4.0)).abs().max() > 1e-3


def test_alpha_one_is_post_norm_to_the_bit():
    x, branch = draw(5, 8, dtype=torch.float32), nn.Linear(8, 8)
    assert torch.equal(DeepNorm(8, 1.0)(x, branch), PostNorm(8)(x, branch))


def test_alpha_weighs_the_stream_and_not_the_branch():
    x, none = draw(5, 8), torch.zeros(5, 8).double()
    exact = lambda d: nn.LayerNorm(d, eps=0.0)  # noqa: E731
    small, large = DeepNorm(8, 1.0, exact).double(), DeepNorm(8, 5.0, exact).double()
    torch.testing.assert_close(large(x, none), small(x, none), rtol=0, atol=1e-12)
    assert torch.equal(large(none, x), small(none, x))  # without a stream alpha is nowhere
    G = draw(5, 8, seed=1)
    distance = [(one(x, G) - one(x, none)).norm() for one in (small, large)]
    assert distance[1] < distance[0] / 2


# Initialisation.


def std(matrix):
    return matrix.std().item() * (sum(matrix.shape) / 2) ** 0.5  # in units of Xavier's


def test_beta_goes_to_value_output_and_feed_forward_and_one_to_query_and_key():
    layer = nn.TransformerDecoderLayer(256, 4, 1024)
    norms = copy.deepcopy(layer.norm1.state_dict())
    names = deepnorm_init_(layer, 0.25, generator=torch.Generator().manual_seed(0))
    assert names == [
        "self_attn.in_proj_weight[value]",
        "self_attn.out_proj",
        "multihead_attn.in_proj_weight[value]",
        "multihead_attn.out_proj",
        "linear1",
        "linear2",
    ]
    for attention in (layer.self_attn, layer.multihead_attn):
        q, k, v = attention.in_proj_weight.chunk(3)
        assert std(q) == pytest.approx(1, rel=0.01)
        assert std(k) == pytest.approx(1, rel=0.01)
        assert std(v) == pytest.approx(0.25, rel=0.01)
        assert std(attention.out_proj.weight) == pytest.approx(0.25, rel=0.01)
        assert not attention.in_proj_bias.any()
        assert not attention.out_proj.bias.any()
    for linear in (layer.linear1, layer.linear2):
        assert std(linear.weight) == pytest.approx(0.25, rel=0.01)
        assert not linear.bias.any()
    assert all(torch.equal(norms[name], one) for name, one in layer.norm1.state_dict().items())


def test_keys_and_values_of_another_width_are_found_too():
    attention = nn.MultiheadAttention(128, 2, kdim=384, vdim=256)
    deepnorm_init_(attention, 0.5, generator=torch.Generator().manual_seed(0))
    assert std(attention.k_proj_weight) == pytest.approx(1, rel=0.02)
    assert std(attention.v_proj_weight) == pytest.approx(0.5, rel=0.02)


class Named(nn.Module):
    """A model with HF-like names, a head called out_proj and an embedding."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict({"value": nn.Linear(8, 8)})
        self.layer = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q_proj", "v_proj", "fc1")})
        self.classifier = nn.ModuleDict({"out_proj": nn.Linear(8, 2)})


def test_embeddings_and_heads_stay_as_they_are():
    model = Named()
    before = copy.deepcopy(model.state_dict())
    assert deepnorm_init_(model, 0.5) == ["layer.v_proj", "layer.fc1"]
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"layer.{n}.{p}" for n in model.layer for p in ("weight", "bias")}


def test_the_same_generator_draws_the_same_numbers_and_half_precision_is_rounded_from_them():
    layers = [nn.TransformerEncoderLayer(16, 2, 32) for _ in range(2)]
    layers.append(copy.deepcopy(layers[0]).bfloat16())
    for layer in layers:
        deepnorm_init_(layer, 0.5, generator=torch.Generator().manual_seed(7))
    first, second, half = (layer.linear1.weight for layer in layers)
    assert torch.equal(first, second)
    assert torch.equal(half, first.bfloat16())


def test_on_the_meta_device_nothing_happens():
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(16, 2, 32)
    assert len(deepnorm_init_(layer, 0.5, generator=torch.Generator())) == 4


def test_names_that_match_nothing_and_unknown_packed_matrices_are_refused():
    with pytest.raises(ValueError, match="its linear layers are first, second"):
        deepnorm_init_(nn.ModuleDict({n: nn.Linear(2, 2) for n in ("first", "second")}), 0.5)
    packed = nn.ModuleDict({"qkv_proj": nn.Linear(2, 6), "o_proj": nn.Linear(2, 2)})
    before = copy.deepcopy(packed.state_dict())
    with pytest.raises(ValueError, match="qkv_proj packs query, key and value"):
        deepnorm_init_(packed, 0.5)
    assert all(torch.equal(before[name], one) for name, one in packed.state_dict().items())
    with pytest.raises(ValueError, match="beta must be positive and finite, got 0"):
        deepnorm_init_(nn.Linear(2, 2), 0.0)


def test_beta_scales_a_relu_network_by_its_square():
    inner = nn.Sequential(nn.Linear(8, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
    inner, x, beta = inner.double(), draw(5, 8), 0.188
    before = inner(x)
    with torch.no_grad():
        inner[0].weight.mul_(beta)
        inner[2].weight.mul_(beta)
    torch.testing.assert_close(inner(x), beta**2 * before, rtol=0, atol=1e-12)


def test_beta_scales_attention_by_its_square_and_leaves_the_probabilities():
    attention, x, beta = nn.MultiheadAttention(8, 2, bias=False).double(), draw(5, 3, 8), 0.188
    output, weights = attention(x, x, x)
    with torch.no_grad():
        attention.in_proj_weight.chunk(3)[2].mul_(beta)
        attention.out_proj.weight.mul_(beta)
    scaled, same = attention(x, x, x)
    torch.testing.assert_close(scaled, beta**2 * output, rtol=0, atol=1e-12)
    assert torch.equal(same, weights)


# The scale of a matrix.


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3)])
def test_the_scale_of_a_matrix_is_the_minimiser(shape):
    W = draw(*shape)
    identity = torch.eye(shape[0], dtype=torch.float64)
    distance = lambda t: (t * W @ W.T - identity).norm().item() ** 2  # noqa: E731  t = 1 / k²
    best = minimize_scalar(distance, bounds=(1e-3, 10), method="bounded", options={"xatol": 1e-12})
    assert matrix_scale(W).item() == pytest.approx(best.x**-0.5, rel=1e-7)
    s = torch.linalg.svdvals(W)
    by_values = (s.pow(4).sum() / s.square().sum()).sqrt().item()
    assert matrix_scale(W).item() == pytest.approx(by_values, rel=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_the_scale_follows_the_size_of_the_matrix(size):
    W = torch.linalg.qr(draw(6, 6)).Q.float() * size
    assert matrix_scale(W).item() == pytest.approx(size, rel=1e-6)


def test_the_scale_of_a_gaussian_matrix_is_that_of_its_aspect():
    gain, m = 0.3, 400
    for n in (100, 400, 1600):
        W = draw(n, m) * gain / m**0.5
        assert matrix_scale(W).item() == pytest.approx(gain * math.sqrt(1 + n / m), rel=0.01)


def test_scales_come_in_batches_and_from_half_precision():
    W = draw(4, 3, 5, dtype=torch.float32)
    torch.testing.assert_close(matrix_scale(W), torch.stack([matrix_scale(one) for one in W]))
    assert matrix_scale(W.half()).dtype == torch.float32


def test_a_matrix_without_entries_has_no_scale():
    with pytest.raises(ValueError, match=r"empty matrix has no scale, got shape \(0, 3\)"):
        matrix_scale(torch.empty(0, 3))
