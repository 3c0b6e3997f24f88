"""The layers of the Transformer: their formulas, their dropout, and their fused kernels in eval mode."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import attention as reference
from specs.reference.rounding import Rounded, gelu, gradients, own_errors, relu, sharpened
from test_attention.attending import (
    FEEDS,
    HEADS,
    KINDS,
    WIDTH,
    Calls,
    additive,
    hidden,
    mask_by,
    padding_mask,
    parameters,
    rounded,
    surroundings,
    within,
)
from torch_conformance.axes import PRECISE, UNBATCHED
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim, since
from torch_conformance.switches import switched


def sharply(law, *args, **options):
    """The law with the sharper bound of the two, for layers of many steps."""
    with own_errors():
        result = law(*args, **options)
    return sharpened(result)


# -- layers of the Transformer ---------------------------------------------------------------------------------------


IN_FULL = "float64"  # for stacks of layers, where the bound in float32 would be too wide to see a fault
EPS = 0.03
ACTIVATIONS = {"relu": relu, "gelu": gelu}


def encoder_layer(case, *, heads=HEADS, dropout=0.0, batch_first=True, **options):
    return case.module(
        nn.TransformerEncoderLayer, WIDTH, heads, FEEDS, dropout, layer_norm_eps=EPS, batch_first=batch_first, **options
    )


def decoder_layer(case, *, dropout=0.0, **options):
    return case.module(
        nn.TransformerDecoderLayer, WIDTH, HEADS, FEEDS, dropout, layer_norm_eps=EPS, batch_first=True, **options
    )


@claim("attention.encoder-layer.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_follows_its_formula(case, norm_first, activation):
    layer = encoder_layer(case, norm_first=norm_first, activation=activation)
    x, mask = case.tensor(2, 5, WIDTH), case.tensor(5, 5)
    wanted = sharply(
        reference.encoder_layer,
        *rounded(x),
        parameters(layer),
        HEADS,
        EPS,
        norm_first=norm_first,
        activation=ACTIVATIONS[activation],
        mask=array(mask),
    )
    within(case, layer(x, src_mask=mask), wanted)
    within(case, layer.eval()(x, mask), wanted)


@claim("attention.encoder-layer.formula")
@axes(dtype=IN_FULL)
def test_encoder_layer_without_bias(case):
    if not since("2.1"):
        raise case.unsupported("bias=False came with torch 2.1")
    layer, x = encoder_layer(case, bias=False), case.tensor(2, 5, WIDTH)
    assert not any("bias" in name for name, _ in layer.named_parameters())
    within(case, layer(x), reference.encoder_layer(*rounded(x), parameters(layer), HEADS, EPS))


@claim("attention.encoder-layer.formula")
@axes(dtype=IN_FULL)
def test_encoder_layer_takes_any_activation(case):
    layer, x = encoder_layer(case, activation=lambda x: -x), case.tensor(2, 5, WIDTH)
    within(case, layer(x), reference.encoder_layer(*rounded(x), parameters(layer), HEADS, EPS, activation=lambda x: -x))
    with case.raises(RuntimeError, "activation"):
        nn.TransformerEncoderLayer(WIDTH, HEADS, activation="tanh")


@claim("attention.encoder-layer.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_of_the_encoder_layer(case, norm_first, activation):
    layer, x = (
        encoder_layer(case, norm_first=norm_first, activation=activation),
        case.tensor(2, 3, WIDTH, requires_grad=True),
    )
    y = layer(x)
    y.backward(seed := case.tensor(*y.shape))
    given, named = rounded(x), parameters(layer)
    wanted = reference.encoder_layer(
        *given, named, HEADS, EPS, norm_first=norm_first, activation=ACTIVATIONS[activation]
    )
    expected = gradients([(wanted, array(seed))], [*given, *named.values()])
    for tensor, gradient in zip((x, *layer.parameters()), expected, strict=True):
        within(case, tensor.grad, gradient)


def without(named, *names):
    """The parameters with those of these names at zero, as if what they make were dropped."""
    return {k: Rounded(0 * v.value) if k in names else v for k, v in named.items()}


GONE = {
    "attention weights": ("self_attn", ["self_attn.in_proj_weight", "self_attn.in_proj_bias"]),
    "attention output": ("dropout1", ["self_attn.out_proj.weight", "self_attn.out_proj.bias"]),
    "inner activation": ("dropout", ["linear2.weight"]),
    "feed-forward output": ("dropout2", ["linear2.weight", "linear2.bias"]),
}


def drop_all(layer, name):
    """Let this one dropout of the layer take everything, and no other anything."""
    part = layer.get_submodule(name)
    setattr(part, "dropout" if isinstance(part, nn.MultiheadAttention) else "p", 1.0)


@claim("attention.encoder-layer.dropout-places")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("place", GONE)
@axes(dtype=IN_FULL)
def test_places_of_dropout_in_the_encoder_layer(case, place, norm_first):
    layer, x = encoder_layer(case, norm_first=norm_first), case.tensor(2, 5, WIDTH)
    name, lost = GONE[place]
    drop_all(layer, name)
    named = without(parameters(layer), *lost)
    within(case, layer(x), reference.encoder_layer(*rounded(x), named, HEADS, EPS, norm_first=norm_first))


@claim("attention.encoder-layer.dropout-places", "attention.decoder-layer.dropout-places")
@pytest.mark.parametrize("cls", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_dropout_has_the_probability_given(case, cls):
    layer, default = cls(WIDTH, HEADS, FEEDS, 0.37), cls(WIDTH, HEADS, FEEDS)
    for made, p in ((layer, 0.37), (default, 0.1)):
        found = [
            m.p if isinstance(m, nn.Dropout) else m.dropout
            for m in made.modules()
            if isinstance(m, (nn.Dropout, nn.MultiheadAttention))
        ]
        assert found == [p] * (4 if cls is nn.TransformerEncoderLayer else 6)


@claim("attention.encoder-layer.eval-drops-nothing")
@pytest.mark.parametrize("no_grad", [False, True])
@axes(dtype=IN_FULL)
def test_eval_drops_nothing(case, no_grad):
    layer, x = encoder_layer(case, dropout=0.6).eval(), case.tensor(2, 5, WIDTH)
    with torch.set_grad_enabled(not no_grad), case.unchanged(layer, x=x):
        y = layer(x)
    within(case, y, reference.encoder_layer(*rounded(x), parameters(layer), HEADS, EPS))
    with case.unchanged(layer.train(), x=x, but={"rng"}):
        assert not torch.equal(layer(x), y)


FAST = {
    "eval": True,
    "mask": True,
    "padding": True,
    "train": False,
    "gradients": False,
    "sequence first": False,
    "odd heads": False,
    "hook": False,
    "pre-hook and hook": False,
    "frozen": True,
    "input needs gradient": False,
    "other activation": False,
    "module of the activation": True,
    "unbatched": False,
    "other eps": False,
    "no bias": False,
    "switched off": False,
}


@claim("attention.encoder-layer.fast-path-only-in-eval")
@axes(via="eager")
@pytest.mark.parametrize("how", FAST)
def test_when_the_fused_kernel_runs(case, how, monkeypatch):
    if how in ("mask", "no bias", "switched off") and not since("2.4"):
        raise case.unsupported("claimed from torch 2.4 on")
    options = {"bias": False} if how == "no bias" else {}
    activation = {"other activation": torch.tanh, "module of the activation": nn.GELU()}.get(how, "relu")
    heads = 3 if how == "odd heads" else HEADS
    layer = encoder_layer(case, batch_first=how != "sequence first", heads=heads, activation=activation, **options)
    layer.train(how == "train").requires_grad_(how not in ("frozen", "input needs gradient"))
    x, calls, seen = case.tensor(2, 5, WIDTH), Calls(monkeypatch), []
    if "hook" in how:
        layer.linear1.register_forward_hook(lambda *args: seen.append(args))
    if "pre-hook" in how:
        layer.linear1.register_forward_pre_hook(lambda *args: None)
    if how == "other eps":
        layer.norm2.eps = 2 * EPS
    masks = {"mask": {"src_mask": hidden(case, 5, 5)}, "padding": {"src_key_padding_mask": hidden(case, 2, 5)}}
    x = x.requires_grad_(how == "input needs gradient")
    with surroundings(how):
        layer(x[0] if how == "unbatched" else x, **masks.get(how, {}))
    assert calls.count == FAST[how]
    assert len(seen) == ("hook" in how)


@claim("attention.encoder-layer.activation")
@axes(dtype=IN_FULL)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["F.relu", "nn.ReLU()", "F.gelu", "nn.GELU()", "nn.GELU('tanh')"])
def test_both_paths_apply_the_activation_given(case, name, training):
    activation = eval(name)
    layer, x = encoder_layer(case, activation=activation).train(training), case.tensor(2, 5, WIDTH, spread=2)
    with torch.no_grad():
        y = layer(x)
        inner = layer.norm1(x + layer.self_attn(x, x, x)[0])
        by_hand = layer.norm2(inner + layer.linear2(activation(layer.linear1(inner))))
    case.close(y, array(by_hand), k=1, scale=1e-9 / eps(case.dtype))  # other activations are 1e-4 and more apart


@claim("attention.encoder-layer.fast-path-agrees")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("norm_first", "activation"), [(False, "relu"), (True, "gelu")])
def test_the_fused_kernel_follows_the_formula(case, norm_first, activation, kind):
    layer = encoder_layer(case, norm_first=norm_first, activation=activation, dropout=0.5).eval()
    x, mask = case.tensor(2, 5, WIDTH), mask_by(case, kind)
    out, padding = mask(5, 5), mask(2, 5)
    total = np.zeros((2, 1, 5, 5)) + (additive(out) if "positions" in kind else 0)
    total = total + (additive(padding)[:, None, None] if "keys" in kind else 0)
    masks = {"src_mask": out} if "positions" in kind else {}
    masks |= {"src_key_padding_mask": padding} if "keys" in kind else {}
    with torch.no_grad(), case.unchanged(layer, x=x):
        y = layer(x, **masks)
    wanted = sharply(
        reference.encoder_layer,
        *rounded(x),
        parameters(layer),
        HEADS,
        EPS,
        norm_first=norm_first,
        activation=ACTIVATIONS[activation],
        mask=total,
    )
    within(case, y, wanted)


@claim("attention.encoder-layer.replaced-parts")
@pytest.mark.parametrize("part", ["linear1", "linear2", "norm1", "norm2"])
def test_replaced_parts_are_run_without_gradients_too(case, part):
    layer, x = encoder_layer(case).eval(), case.tensor(2, 5, WIDTH)
    layer.linear1.bias.data.abs_()  # if all units were off, linear1 would not matter
    replaced = getattr(layer, part)

    class Doubled(type(replaced)):
        def forward(self, x):
            return 2 * super().forward(x)

    replaced.__class__ = Doubled
    named = parameters(layer)
    named |= {f"{part}.{kind}": named[f"{part}.{kind}"] * 2.0 for kind in ("weight", "bias")}
    wanted = reference.encoder_layer(*rounded(x), named, HEADS, EPS)
    within(case, layer(x), wanted)
    with torch.no_grad():
        within(case, layer(x), wanted)


@claim("attention.encoder-layer.masked-row")
@pytest.mark.parametrize("of", ["attention", "layer"])
def test_a_row_without_keys_is_the_same_on_both_paths(case, of):
    x, out, whole = case.tensor(2, 5, WIDTH), hidden(case, 5, 5), encoder_layer(case)
    out[1] = True

    def answer():
        return whole(x, out) if of == "layer" else whole.self_attn(x, x, x, attn_mask=out, need_weights=False)[0]

    with torch.no_grad():
        slow = answer()
        whole.eval()
        fast = answer()
    assert slow.isnan()[:, 1].any() != since("2.5")
    case.same(fast.isnan(), slow.isnan())


def stack(case, cls, layer, count=2, **options):
    """The stack, every layer of it with parameters of its own."""
    made = cls(layer, count, nn.LayerNorm(WIDTH, eps=EPS), **options).to(device=case.device, dtype=case.dtype)
    case.randomise(made)
    return made


def encoder_law(x, model, mask=None):
    named, y = parameters(model), rounded(x)[0]
    for i, layer in enumerate(model.layers):
        y = reference.encoder_layer(y, reference.below(named, f"layers.{i}"), layer.self_attn.num_heads, EPS, mask=mask)
    return reference.layer_norm(y, named, "norm", EPS) if model.norm is not None else y


@claim("attention.encoder.layers-start-identical", "attention.decoder.stack")
@pytest.mark.parametrize("cls", [nn.TransformerEncoder, nn.TransformerDecoder])
def test_layers_start_identical_and_apart(case, cls):
    layer = encoder_layer(case) if cls is nn.TransformerEncoder else decoder_layer(case)
    model = cls(layer, 3)
    assert len(model.layers) == model.num_layers == 3
    for made in model.layers:
        assert made is not layer
        for (name, parameter), original in zip(made.named_parameters(), layer.parameters(), strict=True):
            case.same(parameter, original)
            assert parameter is not original, name
    assert len({id(p) for p in model.parameters()}) == 3 * len(list(layer.parameters()))


@claim("attention.encoder.stack")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("norm", [True, False])
def test_the_encoder_applies_its_layers_in_turn(case, norm):
    model = stack(case, nn.TransformerEncoder, encoder_layer(case))
    if not norm:
        model.norm = None
    x, mask, padding = case.tensor(2, 5, WIDTH), case.tensor(5, 5), padding_mask(case, 2, 5)
    total = array(mask) + additive(padding)[:, None, None]
    within(case, model(x, mask=mask, src_key_padding_mask=padding), encoder_law(x, model, total))


PADDING = [[False] * 5, [False, False, False, True, True]]


class OwnLayer(nn.Module):
    """A layer with nothing in it that the standard layer has; hidden places count as zeros."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, src, src_mask=None, is_causal=None, src_key_padding_mask=None):
        return self.map(src if src_key_padding_mask is None else src * (src_key_padding_mask == 0)[..., None])


@claim("attention.encoder.custom-layers")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_layer_may_derive_from_module_alone(case, mode, padded):
    model, x = stack(case, nn.TransformerEncoder, OwnLayer()).train(mode == "train"), case.tensor(2, 5, WIDTH)
    padding = hidden(case, 2, 5) if padded else None
    first, second = model.layers
    with torch.set_grad_enabled(mode == "train"):
        y = model(x, src_key_padding_mask=padding)
        case.same(y, model.norm(second(first(x, None, None, padding), None, None, padding)))


@claim("attention.encoder.padding-output")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("how", ["nested", "left", "flag", "train", "gradients"])
def test_padded_places_of_the_output(case, how):
    model = stack(case, nn.TransformerEncoder, encoder_layer(case), enable_nested_tensor=how != "flag")
    x, padding = case.tensor(2, 5, WIDTH), torch.tensor(PADDING, device=case.device)
    padding = padding.flip(1) if how == "left" else padding
    model.train(how == "train")
    if how != "nested":
        model.norm = None
    with torch.set_grad_enabled(how in ("train", "gradients")):
        y = model(x, src_key_padding_mask=padding)
    valid = ~padding.cpu().numpy()
    wanted = encoder_law(x, model, additive(padding)[:, None, None])
    assert y.shape == x.shape
    case.close(y[~padding], wanted.value[valid], k=1, scale=wanted.error[valid])
    if how == "nested":  # the final norm of zeros is its bias
        case.same(y[padding], model.norm.bias.detach().expand(2, WIDTH))
    elif how != "flag":
        assert (y[padding] != 0).all()


@claim("attention.encoder.padding-output")
def test_padded_places_are_zero_without_a_final_norm(case):
    model = stack(case, nn.TransformerEncoder, encoder_layer(case)).eval()
    model.norm = None
    x, padding = case.tensor(2, 5, WIDTH), torch.tensor(PADDING, device=case.device)
    with torch.no_grad():
        assert (model(x, src_key_padding_mask=padding)[padding] == 0).all()
    assert (model(x, src_key_padding_mask=padding)[padding] != 0).all()


@claim("attention.encoder.padding-keeps-the-length")
def test_places_that_are_padding_in_every_sample_stay(case):
    model, x = stack(case, nn.TransformerEncoder, encoder_layer(case)).eval(), case.tensor(2, 5, WIDTH)
    padding = torch.tensor([[False, False, False, True, True], [False, True, True, True, True]], device=case.device)
    with torch.no_grad():
        assert model(x, src_key_padding_mask=padding).shape == x.shape


@claim("attention.encoder.is-causal")
@pytest.mark.parametrize("hint", [None, True, False])
@axes(dtype=IN_FULL)
def test_a_causal_mask_is_recognised(case, hint):
    model, x = stack(case, nn.TransformerEncoder, encoder_layer(case)), case.tensor(2, 5, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(5).to(x)
    within(case, model(x, mask=mask, is_causal=hint), encoder_law(x, model, reference.causal(5, 5)))
    other = mask.clone()
    other[0, 4] = 0.0
    if hint is not True:  # a wrong hint may give anything
        within(case, model(x, mask=other, is_causal=hint), encoder_law(x, model, array(other)))


@claim("attention.encoder.hooks-run")
def test_hooks_within_an_encoder_run_in_eval(case):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval()
    seen, padding = [], torch.tensor([[False, False, True]], device=case.device)
    encoder.layers[1].linear1.register_forward_hook(lambda *_: seen.append(1))
    x = case.tensor(1, 3, 4)
    with torch.no_grad():
        encoder.to(x)(x)
        encoder(x, src_key_padding_mask=padding)
    assert len(seen) == 2


@claim("attention.encoder-layer.autocast")
def test_the_fused_layer_runs_under_autocast(case):
    layer, x = encoder_layer(case, batch_first=True).eval(), case.tensor(2, 3, WIDTH)
    with torch.autocast(case.device.type, dtype=torch.bfloat16):
        wanted = layer(x)
        with torch.no_grad():
            found = layer(x)
    assert abs(array(found) - array(wanted)).max() < 0.25  # sums of a few units, in eight bits


@claim("attention.encoder-layer.autocast-in-training")
@axes(via=UNBATCHED)
@pytest.mark.parametrize("floats", [False, True])
def test_a_layer_with_padding_trains_under_autocast(case, floats):
    layer, x = encoder_layer(case, batch_first=True).train(), case.tensor(2, 3, WIDTH)
    padding = torch.tensor([[False, False, True], [False, True, True]], device=case.device)
    padding = padding.float() * -1e4 if floats else padding
    wanted = layer(x, src_key_padding_mask=padding)
    with torch.autocast(case.device.type, dtype=torch.bfloat16):
        found = layer(x, src_key_padding_mask=padding)
    assert abs(array(found) - array(wanted)).max() < 0.25  # sums of a few units, in eight bits


@claim("attention.encoder.autocast")
def test_padding_is_left_out_under_autocast(case):
    encoder = nn.TransformerEncoder(encoder_layer(case, batch_first=True), 1).eval()
    padding = torch.tensor([[False, False, True]], device=case.device)
    with torch.autocast(case.device.type, dtype=torch.bfloat16), torch.no_grad():
        assert encoder(case.tensor(1, 3, WIDTH), src_key_padding_mask=padding).shape == (1, 3, WIDTH)


@claim("attention.encoder-layer.no-bias")
def test_the_fused_layer_needs_no_bias(case):
    layer, x = encoder_layer(case, batch_first=True, bias=False).eval(), case.tensor(2, 3, WIDTH)
    wanted = layer(x)
    with torch.no_grad():
        case.close(layer(x), array(wanted), k=64, scale=1 + abs(array(wanted)))


@claim("attention.decoder-layer.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_follows_its_formula(case, norm_first, activation):
    layer = decoder_layer(case, norm_first=norm_first, activation=activation)
    x, memory = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH)
    masks = {
        "tgt_mask": case.tensor(5, 5),
        "memory_mask": case.tensor(5, 7),
        "tgt_key_padding_mask": padding_mask(case, 2, 5),
        "memory_key_padding_mask": padding_mask(case, 2, 7),
    }
    own, other, keys, memory_keys = (additive(mask) for mask in masks.values())
    wanted = sharply(
        reference.decoder_layer,
        *rounded(x, memory),
        parameters(layer),
        HEADS,
        EPS,
        norm_first=norm_first,
        activation=ACTIVATIONS[activation],
        mask=own + keys[:, None, None],
        memory_mask=other + memory_keys[:, None, None],
    )
    within(case, layer(x, memory, **masks), wanted)
    with torch.no_grad():
        within(case, layer.eval()(x, memory, **masks), wanted)


@claim("attention.decoder-layer.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_of_the_decoder_layer(case, norm_first):
    layer = decoder_layer(case, norm_first=norm_first)
    x, memory = case.tensor(2, 3, WIDTH, requires_grad=True), case.tensor(2, 4, WIDTH, requires_grad=True)
    y = layer(x, memory)
    y.backward(seed := case.tensor(*y.shape))
    given, named = rounded(x, memory), parameters(layer)
    wanted = reference.decoder_layer(*given, named, HEADS, EPS, norm_first=norm_first)
    expected = gradients([(wanted, array(seed))], [*given, *named.values()])
    for tensor, gradient in zip((x, memory, *layer.parameters()), expected, strict=True):
        within(case, tensor.grad, gradient)


GONE_IN_DECODER = {
    **GONE,
    "memory weights": ("multihead_attn", ["multihead_attn.in_proj_weight", "multihead_attn.in_proj_bias"]),
    "memory output": ("dropout2", ["multihead_attn.out_proj.weight", "multihead_attn.out_proj.bias"]),
    "feed-forward output": ("dropout3", ["linear2.weight", "linear2.bias"]),
}


@claim("attention.decoder-layer.dropout-places")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("place", GONE_IN_DECODER)
@axes(dtype=IN_FULL)
def test_places_of_dropout_in_the_decoder_layer(case, place, norm_first):
    layer = decoder_layer(case, norm_first=norm_first)
    x, memory = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH)
    whole = parameters(layer)
    name, lost = GONE_IN_DECODER[place]
    drop_all(layer, name)
    named = without(whole, *lost)
    within(
        case, layer(x, memory), reference.decoder_layer(*rounded(x, memory), named, HEADS, EPS, norm_first=norm_first)
    )
    untouched = reference.decoder_layer(*rounded(x, memory), whole, HEADS, EPS, norm_first=norm_first)
    with case.unchanged(layer.eval(), x=x, memory=memory):
        y = layer(x, memory)
    within(case, y, untouched)


def decoder_law(x, memory, model, mask=None, memory_mask=None):
    named, y = parameters(model), rounded(x)[0]
    memory = memory if isinstance(memory, Rounded) else rounded(memory)[0]
    for i in range(len(model.layers)):
        below = reference.below(named, f"layers.{i}")
        y = reference.decoder_layer(y, memory, below, HEADS, EPS, mask=mask, memory_mask=memory_mask)
    return reference.layer_norm(y, named, "norm", EPS) if model.norm is not None else y


@claim("attention.decoder.stack")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("norm", [True, False])
def test_the_decoder_gives_the_memory_to_each_layer(case, norm):
    model = stack(case, nn.TransformerDecoder, decoder_layer(case))
    if not norm:
        model.norm = None
    x, memory = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH)
    masks = {
        "tgt_mask": case.tensor(5, 5),
        "memory_mask": case.tensor(5, 7),
        "tgt_key_padding_mask": padding_mask(case, 2, 5),
        "memory_key_padding_mask": padding_mask(case, 2, 7),
    }
    own, other, keys, memory_keys = (additive(mask) for mask in masks.values())
    wanted = decoder_law(x, memory, model, own + keys[:, None, None], other + memory_keys[:, None, None])
    within(case, model(x, memory, **masks), wanted)


@claim("attention.transformer.composition")
@axes(dtype=PRECISE)
def test_the_transformer_is_encoder_and_decoder(case):
    model = case.module(nn.Transformer, WIDTH, HEADS, 2, 1, FEEDS, 0.0, layer_norm_eps=EPS, batch_first=True)
    src, tgt = case.tensor(2, 7, WIDTH), case.tensor(2, 5, WIDTH)
    shapes = {"src": (7, 7), "tgt": (5, 5), "memory": (5, 7)}
    masks = {f"{k}_mask": case.tensor(*s) for k, s in shapes.items()}
    keys = {f"{k}_key_padding_mask": padding_mask(case, 2, s[1]) for k, s in shapes.items()}
    sums = {k: array(masks[f"{k}_mask"]) + additive(keys[f"{k}_key_padding_mask"])[:, None, None] for k in shapes}
    memory = encoder_law(src, model.encoder, sums["src"])
    within(case, model(src, tgt, **masks, **keys), decoder_law(tgt, memory, model.decoder, sums["tgt"], sums["memory"]))


@claim("attention.transformer.causal-mask")
@pytest.mark.parametrize("size", [1, 5])
def test_the_causal_mask_is_square(case, size):
    mask = nn.Transformer.generate_square_subsequent_mask(size)
    case.same(mask, torch.as_tensor(reference.causal(size, size)).to(mask.dtype))


@claim("attention.transformer.batch-first-default")
@pytest.mark.parametrize("batch_first", [False, True])
@axes(dtype=IN_FULL)
def test_sequence_comes_first_by_default(case, batch_first):
    options = {"batch_first": True} if batch_first else {}
    model = case.module(nn.Transformer, WIDTH, HEADS, 1, 1, FEEDS, 0.0, layer_norm_eps=EPS, **options)
    src, tgt = case.tensor(2, 7, WIDTH), case.tensor(2, 5, WIDTH)
    given = (src, tgt) if batch_first else (src.transpose(0, 1), tgt.transpose(0, 1))
    y = model(*given) if batch_first else model(*given).transpose(0, 1)
    within(case, y, decoder_law(tgt, encoder_law(src, model.encoder), model.decoder))
    shape = (3, 2, WIDTH) if batch_first else (2, 3, WIDTH)
    with case.raises(RuntimeError, "batch"):
        model(given[0], case.tensor(*shape))


# -- settings of the Transformer -------------------------------------------------------------------------------------


def settings_of(layer):
    """What a layer was made with, read off its parts."""
    parts = list(layer.modules())[1:]
    attentions = [m for m in parts if isinstance(m, nn.MultiheadAttention)]
    return {
        "width": layer.linear1.in_features,
        "feeds": layer.linear1.out_features,
        "heads": {m.num_heads for m in attentions},
        "dropout": {m.p for m in parts if isinstance(m, nn.Dropout)} | {m.dropout for m in attentions},
        "activation": layer.activation,
        "eps": {m.eps for m in parts if isinstance(m, nn.LayerNorm)},
        "batch_first": {m.batch_first for m in attentions},
        "norm_first": layer.norm_first,
    }


DEFAULTS = {
    "feeds": 2048,
    "heads": {8},
    "dropout": {0.1},
    "activation": F.relu,
    "eps": {1e-5},
    "batch_first": {False},
    "norm_first": False,
}


@claim("attention.transformer.settings")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_settings_by_default(case):
    model = nn.Transformer(8)
    assert (model.d_model, model.nhead, model.batch_first) == (8, 8, False)
    assert len(model.encoder.layers) == len(model.decoder.layers) == 6
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        assert settings_of(layer) == {"width": 8, **DEFAULTS}
    assert model.encoder.norm.eps == model.decoder.norm.eps == 1e-5
    wide = nn.Transformer(num_encoder_layers=1, num_decoder_layers=0, dim_feedforward=1)
    assert wide.d_model == wide.encoder.layers[0].linear1.in_features == 512
    for cls in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
        assert settings_of(cls(8, 8)) == {"width": 8, **DEFAULTS}


@claim("attention.transformer.settings")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_settings_reach_every_layer(case):
    model = nn.Transformer(8, 4, 2, 3, 5, 0.3, "gelu", None, None, EPS, True, True)
    assert (model.d_model, model.nhead, model.batch_first) == (8, 4, True)
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (2, 3)
    given = {"width": 8, "heads": {4}, "feeds": 5, "dropout": {0.3}, "activation": F.gelu, "eps": {EPS}}
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        assert settings_of(layer) == given | {"batch_first": {True}, "norm_first": True}
    assert model.encoder.norm.eps == model.decoder.norm.eps == EPS


@claim("attention.transformer.no-bias")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_without_bias_nothing_has_one(case):
    model = nn.Transformer(8, 4, 1, 1, 5, bias=False)
    alone = nn.TransformerDecoderLayer(8, 4, 5, bias=False)
    assert not [name for part in (model, alone) for name, _ in part.named_parameters() if "bias" in name]
    assert any("bias" in name for name, _ in nn.Transformer(8, 4, 1, 1, 5).named_parameters())


@claim("attention.transformer.custom-parts")
def test_custom_parts_take_the_place_of_encoder_and_decoder(case):
    seen = []

    class Part(nn.Module):
        def forward(self, *tensors, **options):
            seen.append((tensors, options))
            return tensors[0] * 2

    encoder, decoder = Part(), Part()
    model, src, tgt = (
        nn.Transformer(WIDTH, HEADS, custom_encoder=encoder, custom_decoder=decoder),
        case.tensor(7, 2, WIDTH),
        case.tensor(5, 2, WIDTH),
    )
    assert (model.encoder, model.decoder) == (encoder, decoder)
    masks = {
        name: case.tensor(1) for name in ("tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask")
    }
    own = {"mask": case.tensor(1), "src_key_padding_mask": case.tensor(1)}
    y = model(src, tgt, own["mask"], src_key_padding_mask=own["src_key_padding_mask"], **masks)
    case.same(y, tgt * 2)
    (first, options), (second, others) = seen
    assert first[0] is src
    assert all(options[name] is mask for name, mask in own.items())
    assert second[0] is tgt
    case.same(second[1], src * 2)
    assert all(others[name] is mask for name, mask in masks.items())


@claim("attention.transformer.start")
def test_matrices_start_xavier_uniform(case):
    model = nn.Transformer(32, HEADS, 1, 1, 96, batch_first=True, device=case.device)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            values = parameter * (sum(parameter.shape) / 6) ** 0.5
            assert abs(values).max() <= 1, name
            for threshold in (-0.9, 0.0, 0.9):
                case.binomial((values < threshold).sum(), values.numel(), (1 + threshold) / 2)
        elif "linear" in name:
            assert parameter.any(), name  # the biases of the linear layers keep their own start


@claim("attention.transformer.errors")
@pytest.mark.parametrize("wrong", ["src", "tgt"])
def test_features_must_be_those_of_the_model(case, wrong):
    model = case.module(nn.Transformer, WIDTH, HEADS, 1, 1, FEEDS, batch_first=True)
    widths = {"src": WIDTH, "tgt": WIDTH} | {wrong: WIDTH + 1}
    with case.raises(RuntimeError, "feature number"):
        model(case.tensor(2, 7, widths["src"]), case.tensor(2, 5, widths["tgt"]))


class Spy:
    """Records the named arguments with which modules are called."""

    def __init__(self, *modules):
        self.seen = []
        for module in modules:
            module.register_forward_pre_hook(lambda m, args, named: self.seen.append(named), with_kwargs=True)

    def take(self, *names):
        seen, self.seen = self.seen, []
        return [tuple(named[name] for name in names) for named in seen]


@claim("attention.encoder.is-causal", "attention.decoder.is-causal")
@pytest.mark.parametrize("shape", [(2, 5, WIDTH), (5, 2, WIDTH), (5, WIDTH)], ids=str)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_layers_are_told_of_a_causal_mask(case, shape):
    batch_first = shape[0] == 2
    encoder = nn.TransformerEncoder(encoder_layer(case, batch_first=batch_first), 2)
    plain = nn.TransformerDecoderLayer(WIDTH, HEADS, FEEDS, batch_first=batch_first).to(case.device, case.dtype)
    decoder, x = nn.TransformerDecoder(plain, 2), case.tensor(*shape)
    spy, below, causal = Spy(*encoder.layers), Spy(*decoder.layers), torch.full((5, 5), -torch.inf).triu(1).to(x)
    other, window = causal.flip(0), causal.masked_fill(torch.ones(5, 5).tril(-2).bool().to(x.device), -torch.inf)
    heads = causal.expand(HEADS * (2 if x.ndim == 3 else 1), 5, 5)
    for mask, hint, told in [(None, None, False), (causal, None, True), (causal != 0, None, True), (other, None, False),
                             (window, None, False), (heads, None, False), (causal, True, True), (causal, False, False),
                             (other, True, True)]:  # fmt: skip
        encoder(x, mask, is_causal=hint)
        assert spy.take("is_causal") == [(told,)] * 2, (mask, hint)
        decoder(x, x, mask, tgt_is_causal=hint)
        assert below.take("tgt_is_causal", "memory_is_causal") == [(told, False)] * 2, (mask, hint)
    decoder(x, x, memory_mask=causal, memory_is_causal=True)
    assert below.take("tgt_is_causal", "memory_is_causal") == [(False, True)] * 2


@claim("attention.transformer.is-causal")
@pytest.mark.parametrize("norm_first", [False, True])
def test_hints_go_to_the_attention_they_are_named_for(case, norm_first):
    model = case.module(nn.Transformer, WIDTH, HEADS, 1, 1, FEEDS, 0.0, batch_first=True, norm_first=norm_first)
    x, causal = case.tensor(2, 5, WIDTH), nn.Transformer.generate_square_subsequent_mask(5).to(case.tensor(1))
    above, below = model.encoder.layers[0], model.decoder.layers[0]
    spy = Spy(above.self_attn, below.self_attn, below.multihead_attn)
    for hints in [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]:
        named = dict(zip(("src_is_causal", "tgt_is_causal", "memory_is_causal"), hints, strict=True))
        model(x, x, causal, causal, causal, **named)
        assert spy.take("is_causal", "need_weights") == [(hint, False) for hint in hints]
    model(x, x)
    assert spy.take("is_causal") == [(False,)] * 3
    above(x, causal), below(x, x, causal, causal)
    assert spy.take("is_causal") == [(False,)] * 3


NESTED = {
    "eval": True,
    "frozen": True,
    "train": False,
    "gradients": False,
    "input needs gradient": False,
    "unbatched": False,
    "no padding": False,
    "padding on the left": False,
    "mask too": False,
    "norm first": False,
    "odd heads": False,
    "sequence first": False,
    "other activation": False,
    "other eps": False,
    "no bias": False,
    "flag": False,
    "not checked": True,
    "switched off": False,
}
REFUSED = {"norm first", "odd heads", "sequence first", "other activation", "other eps", "no bias"}


@claim("attention.encoder.nested-conditions")
@pytest.mark.parametrize("how", NESTED)
def test_when_padding_is_left_out(case, how, monkeypatch):
    options = {"norm first": {"norm_first": True}, "no bias": {"bias": False}, "sequence first": {"batch_first": False},
               "odd heads": {"heads": 3}, "other activation": {"activation": torch.tanh}}  # fmt: skip
    layer = encoder_layer(case, **options.get(how, {}))
    if how == "other eps":
        layer.norm2.eps = 2 * EPS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = nn.TransformerEncoder(layer, 2, None, how != "flag", how != "not checked")
    assert [str(w.message)[:28] for w in caught] == ["enable_nested_tensor is True"] * (how in REFUSED)
    assert (model.enable_nested_tensor, model.mask_check) == (how != "flag", how != "not checked")
    assert model.use_nested_tensor == (how not in REFUSED and how != "flag")
    model.train(how == "train").requires_grad_(how not in ("frozen", "input needs gradient"))
    x = case.tensor(2, 5, WIDTH, requires_grad=how == "input needs gradient")
    padding = torch.tensor(PADDING, device=case.device)
    padding = padding.flip(1) if how == "padding on the left" else padding
    mask = hidden(case, 5, 5) if how == "mask too" else None
    calls = Calls(monkeypatch, "_nested_tensor_from_mask")
    checked = Calls(monkeypatch, "_nested_tensor_from_mask_left_aligned")
    with surroundings(how):
        if how == "unbatched":
            model(x[0], mask, padding[0])
        elif how == "sequence first":
            model(x.transpose(0, 1), mask, padding)
        else:
            model(x, mask, None if how == "no padding" else padding)
    assert calls.count == NESTED[how]
    assert not (checked.count and how == "not checked")


@claim("attention.encoder-layer.global-hooks")
@axes(via="eager")
def test_global_hooks_see_the_parts_of_a_layer_in_eval(case):
    layer, x, seen = encoder_layer(case, batch_first=True).eval(), case.tensor(2, 3, WIDTH), []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        layer(x)
        with_gradients = len(seen)
        with torch.no_grad():
            layer(x)
    finally:
        handle.remove()
    assert len(seen) == 2 * with_gradients, "the parts of the layer ran unseen"


@claim("attention.encoder.finite-padding-mask")
@axes(via="eager")
def test_a_finite_padding_mask_adds_to_the_scores(case):
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, device=case.device, dtype=case.dtype)
    encoder, x = nn.TransformerEncoder(layer, 1).eval(), case.tensor(1, 3, 4)
    padding = case.tensor_of([[0.0, 0.0, -1.0]])
    wanted = encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():
        found = encoder(x, src_key_padding_mask=padding)
    assert found.shape == wanted.shape, "places were cut off"
    # two orders of a layer of some thirty steps of sums of at most eight terms; its output is normalised
    case.close(found, array(wanted), k=30 * 8, scale=abs(array(wanted)) + 1)


@claim("attention.encoder.no-layers")
@axes(via="eager")
def test_an_encoder_without_layers_returns_its_input(case):
    layer = nn.TransformerEncoderLayer(4, 2, 8, device=case.device, dtype=case.dtype)
    x = case.tensor(3, 2, 4)
    case.same(nn.TransformerEncoder(layer, 0, enable_nested_tensor=False)(x), x)


@claim("attention.decoder.no-layers")
@axes(via="eager")
def test_a_decoder_without_layers_returns_its_target(case):
    layer = nn.TransformerDecoderLayer(4, 2, 8, device=case.device, dtype=case.dtype)
    x = case.tensor(3, 2, 4)
    case.same(nn.TransformerDecoder(layer, 0)(x, case.tensor(5, 2, 4)), x)


@claim("attention.decoder-layer.copied-activation")
@axes(via="eager")
def test_a_copy_of_a_decoder_layer_keeps_its_activation(case):
    layer = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, activation=nn.Tanh()).to(case.device, case.dtype)
    x, memory = case.tensor(3, 2, 4), case.tensor(5, 2, 4)
    case.same(copy.deepcopy(layer)(x, memory), layer(x, memory))
    case.same(nn.TransformerDecoder(layer, 1)(x, memory), layer(x, memory))


@claim("attention.transformer.causal-mask-dtype")
@axes(via="eager")
def test_the_causal_mask_has_the_default_dtype(case):
    with switched("default dtype", torch.float64):
        assert nn.Transformer.generate_square_subsequent_mask(3).dtype == torch.float64


@claim("attention.transformer.causal-mask-as-asked")
@axes(via="eager")
def test_the_causal_mask_is_made_where_and_as_asked(case):
    mask = nn.Transformer.generate_square_subsequent_mask(3, device=torch.device("meta"), dtype=torch.float64)
    assert (mask.shape, mask.device.type, mask.dtype) == ((3, 3), "meta", torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(3, device=case.device, dtype=torch.float16)
    case.same(mask, torch.as_tensor(reference.causal(3, 3)).to(mask))


@claim("attention.encoder-layer.is-causal-needs-a-mask-in-eval")
@axes(via="eager")
def test_a_layer_told_of_a_causal_mask_needs_it(case):
    layer, x = encoder_layer(case, batch_first=True).eval(), case.tensor(2, 3, WIDTH)
    with torch.no_grad(), case.raises((RuntimeError, AssertionError, ValueError), "attn_mask|src_mask"):
        layer(x, is_causal=True)
