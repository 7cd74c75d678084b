"""The entropy-invariant scale: counts of visible keys, the factor, what it does to attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.nn import functional as F

from kexue.nn.attention_scale import log_n_scale, row_counts, scaled_queries
from naive.attention_scale import dense_visible, entropy, naive_factor, naive_log_n_attention

# torch's own compiler uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)

F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def bools(*shape, seed=0, share=0.6):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def count(q_len, k_len, batch=1, **options):
    """Ours and the count of a dense mask."""
    naive_names = {"attention_mask": "mask", "cache_offset": "offset"}
    naive = {naive_names.get(name, name): value for name, value in options.items()}
    dense = dense_visible(q_len, k_len, batch=batch, **naive).sum(dim=-1)
    return row_counts(q_len=q_len, k_len=k_len, **options).expand(batch, -1), dense


# How many keys a row sees


def test_an_encoder_row_sees_all_keys():
    ours, dense = count(3, 5)
    assert ours.tolist() == dense.tolist() == [[5, 5, 5]]


def test_an_encoder_row_sees_the_kept_keys():
    ours, dense = count(4, 7, 3, attention_mask=bools(3, 7))
    assert torch.equal(ours, dense)


@pytest.mark.parametrize("offset", [0, 3])
def test_a_causal_row_sees_itself_and_what_came_before(offset):
    ours, dense = count(4, offset + 4, causal=True, cache_offset=offset)
    assert ours.tolist() == dense.tolist() == [[offset + i + 1 for i in range(4)]]


@pytest.mark.parametrize("offset", [0, 3])
def test_padding_does_not_count_in_a_causal_row_wherever_it_stands(offset):
    left = torch.tensor([[False] * 2 + [True] * 5, [True] * 7])
    for mask in (left, left.flip(1), bools(2, 7)):
        ours, dense = count(7 - offset, 7, 2, attention_mask=mask, causal=True, cache_offset=offset)
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_inside_the_prefix_sees_the_whole_prefix(offset, masked):
    options = {"attention_mask": bools(3, 8)} if masked else {}
    for prefix in (4, torch.tensor([0, 3, 8])):
        ours, dense = count(
            8 - offset, 8, 3, causal=True, cache_offset=offset, prefix=prefix, **options
        )
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize("masked", [False, True])
def test_a_sliding_window_bounds_the_count(window, masked):
    options = {"attention_mask": bools(2, 9)} if masked else {}
    for offset in (0, 4):
        ours, dense = count(
            9 - offset, 9, 2, causal=True, cache_offset=offset, window=window, **options
        )
        assert torch.equal(ours, dense)
    assert count(9, 9, causal=True, window=window)[0].tolist() == [
        [min(window, i + 1) for i in range(9)]
    ]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_packed_documents_are_counted_each_for_itself(causal, masked):
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [5, 5, 4, 4, 4, 4, 5, 5]])
    options = {"attention_mask": bools(2, 8)} if masked else {}
    ours, dense = count(8, 8, 2, causal=causal, documents=documents, **options)
    assert torch.equal(ours, dense)
    shared, dense = count(8, 8, 2, causal=causal, documents=documents[:1], **options)
    assert torch.equal(shared, dense)


def test_a_window_inside_packed_documents_counts_neither_the_past_nor_the_neighbour():
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    ours, dense = count(8, 8, causal=True, documents=documents, window=3)
    assert ours.tolist() == dense.tolist() == [[1, 2, 3, 3, 1, 2, 3, 3]]


def test_in_cross_attention_all_rows_see_the_kept_keys_of_the_encoder():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert row_counts(mask, q_len=4, k_len=3).tolist() == [[2] * 4, [1] * 4]


@settings(max_examples=60, deadline=None)
@given(
    k_len=st.integers(1, 12),
    part=st.floats(0, 1),
    causal=st.booleans(),
    masked=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 13)),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_combination_counts_the_dense_mask(k_len, part, causal, masked, window, packed, seed):
    options = {"causal": causal}
    if masked:
        options["attention_mask"] = bools(2, k_len, seed=seed)
    if packed:
        options["documents"] = bools(2, k_len, seed=seed + 1, share=0.3).long().cumsum(dim=1)
    if causal:
        options["window"] = window
    offset = min(int(part * k_len), k_len - 1)
    ours, dense = count(k_len - offset, k_len, 2, cache_offset=offset, **options)
    assert torch.equal(ours, dense)


# The factor


def test_the_factor_has_the_published_numbers():
    ours = log_n_scale(torch.tensor([64, 128, 512, 1024, 4096]), 64, dtype=F64)
    expected = torch.tensor(
        [0.08333333333333333, 0.09722222222222222, 0.125, 0.1388888888888889, 0.16666666666666666],
        dtype=F64,
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-15)


def test_a_small_example_by_hand():
    q = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], dtype=F64)
    k = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], dtype=F64)
    v = torch.tensor([[[1.0], [2.0], [4.0]]], dtype=F64)
    scale = log_n_scale(3, 2, dtype=F64)
    weights = (scale * q @ k.mT).softmax(dim=-1)[0]
    expected = [
        [0.34687114296185284, 0.30625771407629426, 0.34687114296185284],
        [0.2804561651108032, 0.3597719174445984, 0.3597719174445984],
    ]
    close = {"rtol": 0, "atol": 1e-10}
    assert scale.item() == pytest.approx(0.12452641468736865, abs=1e-10)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=F64), **close)
    outputs = F.scaled_dot_product_attention(scaled_queries(q, 3), k, v).flatten()
    wanted = torch.tensor([2.3468711429618527, 2.4390876697783934], dtype=F64)
    torch.testing.assert_close(outputs, wanted, **close)
    wanted = torch.tensor([1.096939089036782, 1.0921334124079383], dtype=F64)
    torch.testing.assert_close(entropy(weights), wanted, **close)


def test_at_the_base_it_is_the_usual_attention():
    q, k, v = (draw(1, 2, 512, 16, seed=s) for s in range(3))
    usual = F.scaled_dot_product_attention(q, k, v)
    ours = F.scaled_dot_product_attention(scaled_queries(q, 512), k, v)
    torch.testing.assert_close(ours, usual, rtol=0, atol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
def test_scaling_the_queries_is_scaling_the_logits(causal):
    q, k, v = (draw(2, 3, 40, 16, seed=s, dtype=torch.float32) for s in range(3))
    n = row_counts(causal=causal, q_len=40, k_len=40)
    ours = F.scaled_dot_product_attention(scaled_queries(q, n), k, v, is_causal=causal)
    logits = log_n_scale(n, 16)[:, None, :, None] * (q @ k.mT)
    if causal:
        logits = logits.masked_fill(~torch.ones(40, 40, dtype=torch.bool).tril(), -torch.inf)
    assert (ours - logits.softmax(dim=-1) @ v).abs().max() < 1e-6


@pytest.mark.parametrize("clip", [False, True])
def test_values_and_gradients_equal_the_row_by_row_twin(clip):
    leaves = [draw(2, 2, 6, 4, seed=s).requires_grad_() for s in range(3)]
    mask = torch.tensor([[False, True, True, True, True, True], [True] * 5 + [False]])
    visible = dense_visible(6, 6, mask, causal=True, batch=2)
    naive = naive_log_n_attention(*leaves, visible, base=4, min_len=2, clip=clip)
    wanted = torch.autograd.grad(naive.square().sum(), leaves)
    n = row_counts(mask, causal=True, q_len=6, k_len=6)
    q = scaled_queries(leaves[0], n, base=4, min_len=2, clip=clip)
    ours = F.scaled_dot_product_attention(q, *leaves[1:], attn_mask=visible[:, None])
    found = torch.autograd.grad(ours.square().sum(), leaves)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-12)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    factor=st.floats(0, 20),
    seed=st.integers(0, 99),
)
def test_entropy_lies_between_its_bounds(size, scale, factor, seed):
    s = scale * draw(size, seed=seed)
    h = entropy((factor * s).softmax(dim=-1)).item()
    assert -1e-12 <= h <= math.log(size) + 1e-12
    assert h >= math.log(size) - factor * (s.max() - s.mean()).item() - 1e-9


def test_the_lower_bound_of_the_entropy_has_its_published_number():
    s = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=F64)
    assert entropy((0.5 * s).softmax(dim=-1)).item() == pytest.approx(0.9277118037224923, abs=1e-10)
    bound = math.log(4) - 0.5 * (s.max() - s.mean()).item()
    assert bound == pytest.approx(-0.11370563888010943, abs=1e-10)


def test_appended_masked_keys_change_nothing_and_would_if_they_were_counted():
    q, k, v = (draw(1, 1, 5, 8, seed=s) for s in range(3))
    short = F.scaled_dot_product_attention(scaled_queries(q, 5), k, v)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    longer = [F.pad(one, (0, 0, 0, 3), value=7.0) for one in (k, v)]
    n = row_counts(mask, q_len=5, k_len=8)
    seen = mask[:, None, None]
    padded = F.scaled_dot_product_attention(scaled_queries(q, n), *longer, attn_mask=seen)
    torch.testing.assert_close(padded, short, rtol=0, atol=1e-14)
    wrong = F.scaled_dot_product_attention(scaled_queries(q, 8), *longer, attn_mask=seen)
    assert (wrong - short).abs().max() > 1e-3


def test_a_causal_row_is_the_last_row_of_attention_over_its_prefix():
    q, k, v = (draw(1, 2, 9, 8, seed=s) for s in range(3))
    n = row_counts(causal=True, q_len=9, k_len=9)
    causal = F.scaled_dot_product_attention(scaled_queries(q, n), k, v, is_causal=True)
    for i in range(9):
        part = [one[:, :, : i + 1] for one in (q, k, v)]
        whole = F.scaled_dot_product_attention(scaled_queries(part[0], i + 1), *part[1:])
        torch.testing.assert_close(causal[:, :, i], whole[:, :, -1], rtol=0, atol=1e-14)


def test_one_visible_key_gets_all_the_weight():
    q, k, v = (draw(1, 1, 1, 8, seed=s) for s in range(3))
    assert log_n_scale(1, 8).item() == 0
    assert torch.equal(F.scaled_dot_product_attention(scaled_queries(q, 1), k, v), v)


def test_a_row_without_keys_has_a_factor_and_no_nan():
    n = torch.tensor([[0, 1, 3]])
    assert log_n_scale(n, 4)[0, 0] == 0
    q, k, v = (draw(1, 1, 3, 4, seed=s).requires_grad_() for s in range(3))
    visible = torch.tensor([[False] * 3, [True, False, False], [True] * 3])
    out = F.scaled_dot_product_attention(scaled_queries(q, n), k, v, attn_mask=visible)
    assert torch.equal(out[0, 0, 0], torch.zeros(4, dtype=F64))
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(base=st.floats(1.01, 1e6), min_len=st.integers(1, 50), clip=st.booleans())
def test_the_factor_never_falls_with_n_and_clip_keeps_it_at_one(base, min_len, clip):
    n = torch.arange(0, 200)
    factor = log_n_scale(n, 1, base, min_len, clip, F64)
    steps = factor.diff()
    assert (steps >= 0).all()
    growing = (n[:-1] >= min_len) & ((n[:-1] >= base) | torch.tensor(not clip))
    assert (steps[growing] > 0).all()
    if clip:
        assert factor.min() >= 1
    for one in (0, 7, 199):
        wanted = naive_factor(one, base, min_len, clip)
        assert factor[one].item() == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@settings(max_examples=50, deadline=None)
@given(base=st.floats(1.01, 1e6), other=st.floats(1.01, 1e6), n=st.integers(2, 10**7))
def test_another_base_is_another_constant(base, other, n):
    one, two = (log_n_scale(n, 64, b, dtype=F64).item() for b in (base, other))
    assert one == pytest.approx(two * math.log(other) / math.log(base), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(2, 10**5), ratio=st.integers(1, 1000))
def test_the_temperature_of_longrope_is_log_n_with_the_training_length_as_base(length, ratio):
    longrope = math.sqrt(1 + math.log(ratio) / math.log(length)) ** 2  # on cos and sin of both
    ours = log_n_scale(length * ratio, 1, length, dtype=F64).item()
    assert ours == pytest.approx(longrope, rel=1e-12)


# Dtypes, shapes and errors


def test_half_precision_factors_are_computed_in_float32():
    n = torch.arange(1, 3000)
    for dtype in (torch.bfloat16, torch.float16):
        wanted = log_n_scale(n, 64, dtype=torch.float32).to(dtype)
        assert torch.equal(log_n_scale(n, 64, dtype=dtype), wanted)
    assert log_n_scale(n, 64, dtype=F64).dtype == F64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_queries_keep_their_dtype_and_shape(dtype):
    n = row_counts(causal=True, q_len=5, k_len=5)
    for shape in [(2, 5, 4), (2, 3, 5, 4), (2, 3, 2, 5, 4)]:
        scaled = scaled_queries(draw(*shape, dtype=F64).to(dtype), n)
        assert (scaled.shape, scaled.dtype) == (shape, dtype)


def test_each_sequence_gets_its_own_count_also_when_batch_and_heads_are_equal():
    q = torch.ones(2, 2, 3, 4, dtype=F64)
    scaled = scaled_queries(q, torch.tensor([[2, 2, 2], [4, 4, 4]]), base=2)
    assert scaled[0].unique().tolist() == [1.0]
    assert scaled[1].unique().tolist() == [2.0]


def test_an_int_and_a_tensor_count_alike():
    q = draw(2, 3, 5, 4)
    for options in ({}, {"min_len": 16}, {"clip": True}, {"base": 7.5}):
        tensor = scaled_queries(q, torch.full((1, 5), 9), **options)
        torch.testing.assert_close(scaled_queries(q, 9, **options), tensor, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 4, "head_dim": 8, "base": 1}, "base must be above 1"),
        ({"n": 4, "head_dim": 8, "base": math.nan}, "base must be above 1"),
        ({"n": 4, "head_dim": 8, "base": math.inf}, "base must be above 1 .* and finite"),
        ({"n": 0, "head_dim": 8}, "n must be at least 1, got 0"),
        ({"n": 4, "head_dim": 0}, "head_dim must be positive"),
        ({"n": 4, "head_dim": 8, "min_len": 0}, "min_len must be at least 1"),
    ],
)
def test_factors_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_n_scale(**arguments)


def test_an_integer_dtype_is_refused():
    with pytest.raises(TypeError, match=r"dtype must be floating, got torch\.int64"):
        log_n_scale(4, 8, dtype=torch.int64)


@pytest.mark.parametrize("shape", [(1, 4), (3, 5)])
def test_counts_that_do_not_fit_the_queries_are_refused(shape):
    with pytest.raises(ValueError, match=r"n must have shape .* got n \(.*\) and q \(2, 3, 5, 4\)"):
        scaled_queries(draw(2, 3, 5, 4), torch.ones(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.ones(2, 4, dtype=torch.bool)}, r"\(batch, 5\).*got \(2, 4\)"),
        ({"documents": torch.zeros(2, 4, dtype=torch.int64)}, "documents must have shape"),
        ({"causal": True, "cache_offset": 3}, "need at least 8 keys, got k_len=5"),
        ({"window": 3}, "set causal=True"),
        ({"prefix": 3}, "set causal=True"),
        ({"causal": True, "prefix": 3, "window": 2}, "prefix goes with neither"),
        ({"causal": True, "window": 0}, "window must be at least 1"),
    ],
)
def test_rows_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        row_counts(q_len=5, k_len=5, **options)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 4, dtype=torch.bool)])
def test_a_prefix_longer_than_the_keys_shows_all_of_them_and_no_more(mask):
    n = row_counts(mask, causal=True, q_len=4, k_len=4, prefix=10)
    assert n.tolist() == [[4, 4, 4, 4]] * len(n)
    n = row_counts(mask, causal=True, q_len=4, k_len=4, prefix=torch.tensor([3, 10]))
    assert n.tolist() == [[3, 3, 3, 4], [4, 4, 4, 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_offset": -1}, "must be at least 0, got q_len=4, k_len=4, cache_offset=-1"),
        ({"prefix": -1}, "prefix must be at least 0, got -1"),
    ],
)
def test_counts_of_sizes_that_do_not_fit_are_refused(options, message):
    mask = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        row_counts(mask, causal=True, q_len=4, k_len=4, **options)


def test_counts_of_different_batches_are_refused():
    mask = torch.ones(3, 4, dtype=torch.bool)
    for other in ({"prefix": torch.tensor([1, 3])}, {"documents": mask[:2].long()}):
        with pytest.raises((ValueError, TypeCheckError)) as refused:  # the hook may be first
            row_counts(mask, causal=True, q_len=4, k_len=4, **other)
        assert "same sequences" in str(refused.value) or isinstance(refused.value, TypeCheckError)
