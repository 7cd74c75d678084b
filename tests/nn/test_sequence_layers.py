"""What every sequence layer must hold: masks, causality, decoding, precision, storage."""

import copy
import io
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from families.sequence_layers import LAYERS, WIDTH, layer_of, tokens
from families.two_processes import alone_and_together

EXACT = {"rtol": 1e-9, "atol": 1e-11}
BOTH = pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
EVERY = pytest.mark.parametrize("name", LAYERS)


def mask_of(*rows: str) -> torch.Tensor:
    """ "110" → visible, visible, masked."""
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


@EVERY
@BOTH
@pytest.mark.parametrize("more", [1, 3, 4, 9])
def test_masked_tokens_behind_change_nothing(name, causal, more):
    layer, x = layer_of(name, causal), tokens(2, 7)
    wanted = layer(x)
    longer = torch.cat([x, torch.full((2, more, WIDTH), torch.nan, dtype=x.dtype)], dim=1)
    mask = torch.arange(7 + more).expand(2, -1) < 7
    torch.testing.assert_close(layer(longer, mask)[:, :7], wanted, **EXACT)


@EVERY
@BOTH
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_what_masked_tokens_hold_never_matters(name, causal, poison):
    layer, x = layer_of(name, causal), tokens(3, 9)
    mask = mask_of("111011101", "000111111", "110000000")
    plain = x.masked_fill(~mask[:, :, None], 0.0).requires_grad_()
    poisoned = x.masked_fill(~mask[:, :, None], poison).requires_grad_()
    wanted, got = layer(plain, mask), layer(poisoned, mask)
    torch.testing.assert_close(got[mask], wanted[mask], **EXACT)
    assert got.isfinite().all()
    got[mask].square().sum().backward()
    wanted[mask].square().sum().backward()
    assert poisoned.grad.isfinite().all()
    torch.testing.assert_close(poisoned.grad[mask], plain.grad[mask], **EXACT)
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@EVERY
@BOTH
def test_a_row_that_sees_nothing_is_zero_and_its_neighbour_is_untouched(name, causal):
    layer, x = layer_of(name, causal), tokens(2, 6)
    mask = mask_of("000000", "111111")
    out = layer(x.masked_fill(~mask[:, :, None], torch.nan), mask)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    torch.testing.assert_close(out[1:], layer(x[1:]), **EXACT)


@EVERY
@pytest.mark.parametrize("changed", [1, 3, 4, 7, 8, 10])
def test_a_later_token_changes_no_earlier_output(name, changed):
    layer, x = layer_of(name, causal=True), tokens(1, 11)
    other = x.clone()
    other[:, changed:] += 50 * tokens(1, 11 - changed, seed=5)
    before, after = layer(x), layer(other)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], **EXACT)
    assert (after[:, changed:] - before[:, changed:]).abs().max() > 1e-3


@EVERY
def test_no_gradient_flows_back_from_an_output_to_a_later_token(name):
    layer, x = layer_of(name, causal=True), tokens(1, 10).requires_grad_()
    for row in (0, 3, 4, 8):
        (gradient,) = torch.autograd.grad(layer(x)[:, row].sum(), x)
        assert torch.equal(gradient[:, row + 1 :], torch.zeros_like(gradient[:, row + 1 :]))
        assert gradient[:, : row + 1].abs().max() > 0


@EVERY
@pytest.mark.parametrize("cuts", [(1,) * 11, (4, 4, 3), (3, 1, 5, 2), (11,), (10, 1)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@torch.no_grad()
def test_reading_with_a_cache_gives_what_one_pass_gives(name, cuts, masked):
    layer, x = layer_of(name, causal=True), tokens(2, 11)
    mask = mask_of("00111111111", "11110111011") if masked else None
    wanted, cache, at, found = layer(x, mask), layer.new_cache(), 0, []
    for size in cuts:
        part = None if mask is None else mask[:, at : at + size]
        found.append(layer(x[:, at : at + size], part, cache=cache))
        at += size
        assert cache.length == at
    got = torch.cat(found, dim=1)
    visible = torch.ones(2, 11, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(got[visible], wanted[visible], **EXACT)


@EVERY
@torch.no_grad()
def test_a_cache_follows_the_rows_of_a_beam(name):
    layer, x = layer_of(name, causal=True), tokens(3, 9)
    cache = layer.new_cache()
    layer(x[:, :6], cache=cache)
    rows = torch.tensor([2, 0, 2])
    cache.reorder(rows)
    wanted = layer(torch.cat([x[rows, :6], x[:, 6:]], dim=1))[:, 6:]
    torch.testing.assert_close(layer(x[:, 6:], cache=cache), wanted, **EXACT)


@EVERY
def test_a_cache_is_for_causal_layers_only(name):
    with pytest.raises(ValueError, match="causal"):
        layer_of(name)(tokens(1, 3), cache=layer_of(name, causal=True).new_cache())


@EVERY
@BOTH
def test_masks_of_another_dtype_or_shape_are_refused(name, causal):
    layer, x = layer_of(name, causal), tokens(2, 5)
    for mask in (torch.ones(2, 5), torch.ones(2, 5, dtype=torch.int64)):
        with pytest.raises(TypeError):
            layer(x, mask)
    for shape in ((2, 4), (1, 5), (5,)):
        with pytest.raises((ValueError, TypeError)):
            layer(x, torch.ones(shape, dtype=torch.bool))


@EVERY
@BOTH
@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_short_inputs_work(name, causal, length):
    x = tokens(2, length).requires_grad_()
    out = layer_of(name, causal)(x)
    assert out.shape == (2, length, WIDTH)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@EVERY
@BOTH
def test_a_batch_is_its_rows(name, causal):
    layer, x = layer_of(name, causal), tokens(3, 10)
    mask = mask_of("1111111111", "1111100000", "0011111111")
    alone = torch.cat([layer(x[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(layer(x, mask)[mask], alone[mask], **EXACT)


@EVERY
@BOTH
def test_float32_agrees_with_float64_and_keeps_its_dtype(name, causal):
    layer, x = layer_of(name, causal), tokens(2, 12)
    wanted = layer(x)
    got = layer.float()(x.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4)


@EVERY
@BOTH
def test_autocast_stays_near_and_finite(name, causal):
    layer, x = layer_of(name, causal).float(), tokens(2, 12).float().requires_grad_()
    wanted = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
    got.float().square().mean().backward()
    assert x.grad.isfinite().all()
    assert (got.float() - wanted).abs().max() < 0.1 * (1 + wanted.abs().max())


@EVERY
def test_weights_survive_a_file_a_pickle_and_a_copy(name):
    layer, x = layer_of(name, causal=True), tokens(2, 9)
    wanted = layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = LAYERS[name](True).double().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (other, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(one(x), wanted)


@EVERY
@BOTH
def test_the_same_input_gives_the_same_bits(name, causal):
    layer, x = layer_of(name, causal), tokens(2, 13)
    assert torch.equal(layer(x), layer(x))


@EVERY
@BOTH
def test_gradients_are_those_of_finite_differences(name, causal):
    if name == "vq":
        pytest.skip("the straight-through gradient is not that of the quantised function")
    layer = layer_of(name, causal)
    x = tokens(1, 6).requires_grad_()
    mask = mask_of("101111")
    assert torch.autograd.gradcheck(lambda x: layer(x, mask), (x,), atol=1e-5)


@EVERY
@BOTH
@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 5), (0, 0)])
def test_no_tokens_or_no_rows_give_no_outputs(name, causal, batch, length):
    layer, x = layer_of(name, causal), tokens(batch, length).requires_grad_()
    for training in (False, True):
        for mask in (None, torch.ones(batch, length, dtype=torch.bool)):
            out = layer.train(training)(x, mask)
            assert out.shape == (batch, length, WIDTH)
            out.sum().backward()
    assert all(value.isfinite().all() for value in layer.state_dict().values())
    if name == "vq":
        assert layer.commit_loss == 0


@EVERY
@torch.no_grad()
def test_a_call_without_tokens_changes_no_cache(name):
    layer, x = layer_of(name, causal=True), tokens(2, 9)
    cache = layer.new_cache()
    cache.reorder(torch.tensor([1, 0]))  # nothing to reorder yet
    parts = (x[:, :0], x[:, :3], x[:, 3:3], x[:, 3:], x[:, 9:])
    found = [layer(part, cache=cache) for part in parts]
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(found, dim=1), layer(x), **EXACT)


@EVERY
@torch.no_grad()
def test_a_mask_may_be_given_in_some_calls_and_not_in_others(name):
    layer, x = layer_of(name, causal=True), tokens(3, 14)
    mask = mask_of("11100000110111", "11101010110101", "11111111111111")
    wanted, cache, at, found = layer(x, mask), layer.new_cache(), 0, []
    for size, given in ((3, False), (5, True), (2, False), (4, True)):
        now = slice(at, at + size)
        found.append(layer(x[:, now], mask[:, now] if given else None, cache=cache))
        at += size
    torch.testing.assert_close(torch.cat(found, dim=1)[mask], wanted[mask], **EXACT)


@EVERY
@torch.no_grad()
def test_a_copied_and_a_stored_cache_go_on_like_the_first(name):
    layer, x = layer_of(name, causal=True), tokens(2, 11)
    cache = layer.new_cache()
    layer(x[:, :6], cache=cache)
    others = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
    wanted = layer(x[:, 6:], cache=cache)
    for other in others:
        assert torch.equal(layer(x[:, 6:], cache=other), wanted)


@EVERY
@BOTH
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_learns_what_a_plain_one_does(name, causal, reentrant):
    plain = layer_of(name, causal).train()
    kept = copy.deepcopy(plain)
    for seed in (1, 2):  # the second step starts from what the first left in the buffers
        x, again = (tokens(2, 11, seed=seed).requires_grad_() for _ in range(2))
        plain(x).square().mean().backward()
        checkpoint(kept, again, use_reentrant=reentrant).square().mean().backward()
        torch.testing.assert_close(again.grad, x.grad, **EXACT)
    for (key, wanted), got in zip(
        plain.state_dict().items(), kept.state_dict().values(), strict=True
    ):
        assert torch.equal(got, wanted), key
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, **EXACT)


@EVERY
def test_a_layer_made_without_memory_is_whole_after_its_reset(name):
    with torch.device("meta"):
        layer = LAYERS[name](True)
    layer = layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.detach().fill_(torch.nan if tensor.is_floating_point() else 1)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(value.isfinite().all() for value in layer.state_dict().values())
    assert layer.eval()(tokens(2, 5).float()).isfinite().all()


SCRIPT = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
from families.sequence_layers import LAYERS, layer_of, tokens

rank = os.environ.get("RANK")
layers = {name: layer_of(name, causal=True).train() for name in LAYERS}
if rank is not None:
    torch.distributed.init_process_group("gloo")
found = {}
for name, layer in layers.items():
    x = tokens(4, 9)
    rows = slice(None) if rank is None else slice(2 * int(rank), 2 * int(rank) + 2)
    run = layer if rank is None else DistributedDataParallel(layer)
    run(x[rows]).square().mean().backward()
    for key, p in layer.named_parameters():
        if p.grad is not None:
            found[f"{name}/{key}"] = p.grad.clone()
    for key, buffer in layer.named_buffers():
        found[f"{name}/{key}"] = buffer.clone()
torch.save(found, f"{sys.argv[1]}.{'alone' if rank is None else rank}")
if rank is not None:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.distributed
def test_two_processes_learn_what_one_learns_from_both_halves(tmp_path, monkeypatch):
    import families

    monkeypatch.setenv("PYTHONPATH", str(next(iter(families.__path__))) + "/..")
    found = alone_and_together(SCRIPT, tmp_path)
    assert len(found["alone"]) > 40
    for key, wanted in found["alone"].items():
        for rank in "01":
            torch.testing.assert_close(found[rank][key], wanted, rtol=1e-8, atol=1e-10)
