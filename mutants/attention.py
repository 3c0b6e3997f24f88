"""The ways in which an implementation of attention and the Transformer goes wrong."""

import os
import signal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import transformer

from torch_conformance.mutation import NotApplicable, mutant

SDPA = "scaled_dot_product_attention"
Encoder, Decoder = nn.TransformerEncoderLayer, nn.TransformerDecoderLayer


def sdpa(patch, wrapper):
    """Call ``wrapper(original, q, k, v, **options)`` in place of scaled_dot_product_attention."""
    if not hasattr(F, SDPA):
        raise NotApplicable("no scaled_dot_product_attention")

    def whole(original, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        return wrapper(original, q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **options)

    patch.wrap(F, SDPA, whole)


@mutant("attention.sdpa.formula", "attention.sdpa.gradient", "attention.sdpa.causal", "attention.sdpa.grouped-queries")
def scores_unscaled(patch):
    """Leaves out the root of the width, as dot-product attention did before the Transformer."""
    sdpa(patch, lambda original, q, *rest, **o: original(q * q.shape[-1] ** 0.5, *rest, **o))


@mutant("attention.sdpa.long-mean")
def keys_added_up_in_the_dtype(patch):
    """Adds one weighted value after the other to a sum in the dtype of the values."""

    def one_by_one(original, q, k, v):
        total = torch.zeros_like(q)
        for weight, value in zip(torch.softmax(q @ k.mT, -1).unbind(-1), v.unbind(-2), strict=True):
            total = total + weight[..., None] * value[..., None, :]
        return total

    sdpa(patch, one_by_one)


@mutant("attention.sdpa.scale")
def scale_ignored(patch):
    """Takes scale and does not use it."""
    sdpa(patch, lambda original, *args, scale=None, **o: original(*args, **o))


@mutant("attention.sdpa.boolean-mask", "attention.mha.mask-polarity-differs")
def boolean_mask_inverted(patch):
    """Reads True as hidden, as MultiheadAttention does."""

    def inverted(original, q, k, v, attn_mask=None, **o):
        return original(q, k, v, attn_mask=~attn_mask if attn_mask is not None and attn_mask.dtype == torch.bool
                        else attn_mask, **o)  # fmt: skip

    sdpa(patch, inverted)


@mutant("attention.sdpa.mask-of-one-column")
def one_column_read_as_many(patch):
    """Reads on in memory behind a column, and so takes the rows below for further keys."""

    def reads_on(original, q, k, v, attn_mask=None, **o):
        if attn_mask is not None and attn_mask.shape[-1] == 1:
            attn_mask = torch.cat([attn_mask.roll(-i, -2) for i in range(k.shape[-2])], -1)
        return original(q, k, v, attn_mask=attn_mask, **o)

    sdpa(patch, reads_on)


@mutant("attention.sdpa.masked-stretch")
def only_the_first_keys_are_masked(patch):
    """Looks at the mask of the first block of keys alone."""

    def first(original, q, k, v, attn_mask=None, **o):
        if attn_mask is not None:
            attn_mask = attn_mask.clone()
            attn_mask[..., 512:] = attn_mask.dtype == torch.bool
        return original(q, k, v, attn_mask=attn_mask, **o)

    sdpa(patch, first)


@mutant("attention.sdpa.nan-stays")
def nan_becomes_zero(patch):
    """Takes whatever is NaN for the result of an empty row."""
    sdpa(patch, lambda original, *args, **o: original(*args, **o).nan_to_num(0.0))


@mutant("attention.sdpa.float-mask", "attention.mha.masks")
def float_mask_scaled(patch):
    """Adds the mask before scaling, so that it is scaled too."""

    def scaled(original, q, k, v, attn_mask=None, **o):
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask / q.shape[-1] ** 0.5
        return original(q, k, v, attn_mask=attn_mask, **o)

    sdpa(patch, scaled)


@mutant("attention.sdpa.causal")
def causal_from_the_lower_right(patch):
    """Aligns the causal mask with the last key, as FlashAttention 2.1 does."""

    def aligned(original, q, k, v, attn_mask=None, is_causal=False, **o):
        if is_causal:
            shown = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
            attn_mask = shown.tril(k.shape[-2] - q.shape[-2])
        return original(q, k, v, attn_mask=attn_mask, **o)

    sdpa(patch, aligned)


@mutant("attention.sdpa.mask-or-causal")
def mask_wins_over_causal(patch):
    """Forgets is_causal where there is a mask."""

    def wins(original, q, k, v, attn_mask=None, is_causal=False, **o):
        return original(q, k, v, attn_mask=attn_mask, is_causal=is_causal and attn_mask is None, **o)

    sdpa(patch, wins)


@mutant("attention.sdpa.masked-row-is-zero", "attention.sdpa.masked-row-is-nan")
def masked_row_is_the_mean(patch):
    """Uses a large negative number for minus infinity, so that a row without keys takes the mean of the values."""

    def finite(original, q, k, v, attn_mask=None, **o):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -1e4)
        elif attn_mask is not None:
            attn_mask = attn_mask.clamp(min=-1e4)
        return original(q, k, v, attn_mask=attn_mask, **o)

    sdpa(patch, finite)


@mutant("attention.sdpa.dropout", "attention.sdpa.dropout-ignores-the-mode")
def sdpa_never_drops(patch):
    """Ignores dropout_p, as inference kernels do."""
    sdpa(patch, lambda original, *args, dropout_p=0.0, **o: original(*args, dropout_p=0.0, **o))


@mutant(
    "attention.sdpa.deterministic-without-dropout",
    "attention.mha.stateless",
    "attention.encoder-layer.eval-drops-nothing",
)
def seed_drawn_always(patch):
    """Draws the seed of a fused dropout although nothing is dropped."""

    def draws(original, *args, **options):
        torch.rand(1)
        return original(*args, **options)

    if hasattr(F, SDPA):
        patch.wrap(F, SDPA, draws)
    patch.wrap(F, "linear", draws)


@mutant("attention.sdpa.grouped-queries")
def groups_interleaved(patch):
    """Tiles the heads of the keys where they must be repeated."""

    def tiled(original, q, k, v, enable_gqa=False, **o):
        if enable_gqa and q.shape[-3] % k.shape[-3] == 0:
            k, v = (t.repeat(1, q.shape[-3] // t.shape[-3], 1, 1).flip(-3) for t in (k, v))
        return original(q, k, v, enable_gqa=enable_gqa, **o)

    sdpa(patch, tiled)


MHA = F.multi_head_attention_forward


@mutant("attention.mha.formula", "attention.mha.gradient", "attention.mha.masks")
def scaled_by_the_whole_width(patch):
    """Scales by the root of the embedding's width, not of the head's."""
    try:
        patch.source(
            MHA, "q_scaled = q * math.sqrt(1.0 / float(E))", "q_scaled = q * math.sqrt(1.0 / float(embed_dim))"
        )
    except NotApplicable:
        patch.source(MHA, "q_scaled = q / math.sqrt(E)", "q_scaled = q / math.sqrt(embed_dim)")


@mutant(
    "attention.mha.formula", "attention.mha.fast-path", "attention.mha.unbatched", "attention.transformer.composition"
)
def key_and_value_weights_exchanged(patch):
    """Projects keys by the values' weights: another order in the packed matrix."""

    def exchanged(original, q, k, v, w, b=None):
        wq, wk, wv = w.chunk(3)
        if b is not None:
            bq, bk, bv = b.chunk(3)
            b = torch.cat([bq, bv, bk])
        return original(q, k, v, torch.cat([wq, wv, wk]), b)

    patch.wrap(F, "_in_projection_packed", exchanged)


@mutant("attention.mha.widths-of-keys-and-values")
def separate_projection_forgets_the_bias(patch):
    """Leaves out the biases where the projections are separate."""
    patch.wrap(F, "_in_projection", lambda original, *args: original(*args[:6]))


@mutant("attention.mha.added-keys")
def zero_key_is_a_one(patch):
    """Adds ones where zeros are due, and hides the learned key."""
    patch.source(MHA, "torch.zeros(zero_attn_shape", "torch.ones(zero_attn_shape")
    patch.source(MHA, "v = torch.cat([v, bias_v.repeat(1, bsz, 1)])", "v = torch.cat([v, bias_k.repeat(1, bsz, 1)])")


@mutant("attention.mha.boolean-mask", "attention.mha.masks", "attention.mha.mask-polarity-differs")
def mha_mask_inverted(patch):
    """Reads True as shown, as scaled_dot_product_attention does."""

    def forward(original, layer, *args, attn_mask=None, key_padding_mask=None, **o):
        attn_mask, key_padding_mask = (
            ~m if m is not None and m.dtype == torch.bool else m for m in (attn_mask, key_padding_mask)
        )
        return original(layer, *args, attn_mask=attn_mask, key_padding_mask=key_padding_mask, **o)

    patch.wrap(nn.MultiheadAttention, "forward", forward)


@mutant("attention.mha.weights", "attention.mha.batch-first")
def weights_summed_over_heads(patch):
    """Sums the weights over the heads."""

    def forward(original, layer, *args, **o):
        y, w = original(layer, *args, **o)
        return y, w * layer.num_heads if w is not None and o.get("average_attn_weights", True) else w

    patch.wrap(nn.MultiheadAttention, "forward", forward)


@mutant("attention.mha.weights-after-dropout")
def weights_before_dropout(patch):
    """Returns the weights before dropout: the belief come true."""
    patch.source(MHA, "attn_output_weights = dropout(attn_output_weights, p=dropout_p)", "v = dropout(v, p=dropout_p)")


@mutant("attention.mha.dropout-in-training-only", "attention.encoder-layer.eval-drops-nothing")
def mha_drops_in_eval(patch):
    """Drops in eval mode: the classic of a functional call without the mode."""
    patch.source(MHA, "if not training:", "if False:")
    patch.set(nn.MultiheadAttention, "train", lambda layer, mode=True: nn.Module.train(layer, True))
    patch.set(nn.MultiheadAttention, "eval", lambda layer: nn.Module.train(layer, True))


@mutant(
    "attention.mha.dropout-in-training-only",
    "attention.encoder-layer.dropout-places",
    "attention.decoder-layer.dropout-places",
)
def mha_never_drops(patch):
    """Forgets dropout of the weights."""

    def forward(original, layer, *args, **o):
        p, layer.dropout = layer.dropout, 0.0
        try:
            return original(layer, *args, **o)
        finally:
            layer.dropout = p

    patch.wrap(nn.MultiheadAttention, "forward", forward)


@mutant("attention.mha.is-causal-is-a-hint")
def is_causal_makes_the_mask(patch):
    """Builds the causal mask by itself: the belief come true."""

    def forward(original, layer, q, k, v, *args, attn_mask=None, is_causal=False, **o):
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(1)
        return original(layer, q, k, v, *args, attn_mask=attn_mask, is_causal=is_causal, **o)

    patch.wrap(nn.MultiheadAttention, "forward", forward)


@mutant("attention.mha.batch-first", "attention.transformer.batch-first-default")
def batch_first_by_default(patch):
    """Takes the batch first unless told otherwise."""

    def init(original, layer, *args, **o):
        original(layer, *args, **{"batch_first": True, **o})

    patch.wrap(nn.MultiheadAttention, "__init__", init)
    patch.wrap(nn.Transformer, "__init__", init)


@mutant("attention.mha.errors")
def mha_checks_nothing(patch):
    """Goes on with a head's width rounded down, and with whatever masks there are."""

    def forward(original, layer, q, *args, **o):
        try:
            return original(layer, q, *args, **o)
        except (RuntimeError, AssertionError):
            return q, None

    patch.wrap(nn.MultiheadAttention, "forward", forward)


@mutant("attention.encoder-layer.formula", "attention.encoder-layer.gradient", "attention.encoder.stack")
def norm_of_the_block_alone(patch):
    """Normalises the block's output and not the sum."""
    patch.source(Encoder.forward, "self.norm2(x + self._ff_block(x))", "x + self.norm2(self._ff_block(x))")


@mutant("attention.encoder-layer.formula", "attention.encoder-layer.gradient")
def pre_norm_normalises_once(patch):
    """Feeds forward what was not normalised."""
    patch.source(Encoder.forward, "self._ff_block(self.norm2(x))", "self._ff_block(x)")


@mutant("attention.encoder-layer.dropout-places")
def encoder_forgets_a_dropout(patch):
    """Leaves out dropout of the attention's output, as fused layers did."""
    patch.source(Encoder._sa_block, "return self.dropout1(x)", "return x")


@mutant("attention.encoder-layer.dropout-places")
def encoder_forgets_the_inner_dropout(patch):
    """Leaves out dropout of the activation."""
    patch.source(
        Encoder._ff_block, "self.dropout(self.activation(self.linear1(x)))", "self.activation(self.linear1(x))"
    )


@mutant("attention.encoder-layer.fast-path-only-in-eval")
def fast_path_in_training(patch):
    """Takes the fused kernel whatever the mode."""

    def forward(original, layer, src, *args, **o):
        if layer.training:
            mode = layer.training
            layer.train(False)
            try:
                with torch.no_grad():
                    return original(layer, src, *args, **o)
            finally:
                layer.train(mode)
        return original(layer, src, *args, **o)

    patch.wrap(Encoder, "forward", forward)


@mutant(
    "attention.encoder-layer.fast-path-agrees",
    "attention.encoder-layer.eval-drops-nothing",
    "attention.encoder.padding-output",
)
def fused_kernel_ignores_the_second_bias(patch):
    """A fused kernel that leaves out the last bias."""
    patch.wrap(torch, "_transformer_encoder_layer_fwd", lambda original, *args: original(*args) * 1.01)


@mutant("attention.encoder-layer.replaced-parts")
def encoder_takes_its_own_parts_alone(patch):
    """Refuses parts of a class that the fused kernel does not know."""

    def forward(original, layer, *args, **o):
        if any(type(part) is not nn.Linear for part in (layer.linear1, layer.linear2)):
            raise TypeError("expected a Linear")
        if any(type(part) is not nn.LayerNorm for part in (layer.norm1, layer.norm2)):
            raise TypeError("expected a LayerNorm")
        return original(layer, *args, **o)

    patch.wrap(Encoder, "forward", forward)


@mutant("attention.encoder.layers-start-identical", "attention.decoder.stack")
def layers_are_one(patch):
    """Stacks the same layer, so that its parameters are shared."""
    patch.set(transformer, "_get_clones", lambda module, n: nn.ModuleList([module] * n))


@mutant("attention.encoder.stack", "attention.decoder.stack", "attention.transformer.composition")
def final_norm_forgotten(patch):
    """Leaves out the norm at the end."""
    patch.source(nn.TransformerEncoder.forward, "if self.norm is not None:", "if False:")
    patch.source(nn.TransformerDecoder.forward, "if self.norm is not None:", "if False:")


@mutant("attention.encoder.custom-layers")
def encoder_stacks_the_standard_layer_alone(patch):
    """Refuses layers of any other class."""

    def init(original, model, layer, *args, **o):
        if not isinstance(layer, Encoder):
            raise TypeError("expected a TransformerEncoderLayer")
        original(model, layer, *args, **o)

    patch.wrap(nn.TransformerEncoder, "__init__", init)


@mutant("attention.encoder.padding-output")
def padded_places_kept(patch):
    """Never converts to nested tensors, so that padded places keep values."""
    patch.source(nn.TransformerEncoder.forward, "convert_to_nested = True", "raise RuntimeError('nested')")


@mutant("attention.encoder.is-causal")
def any_mask_is_taken_for_causal(patch):
    """Takes every mask for a causal one."""
    if not hasattr(transformer, "_detect_is_causal_mask"):
        raise NotApplicable("this torch detects no causal masks")
    patch.set(transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: mask is not None)


@mutant("attention.decoder-layer.formula", "attention.decoder-layer.gradient", "attention.decoder.stack")
def memory_attends_to_the_target(patch):
    """Attends to the target where the memory is due."""
    patch.wrap(
        Decoder, "_mha_block", lambda original, layer, x, mem, *args, **o: original(layer, x, mem * 0.5, *args, **o)
    )


@mutant("attention.decoder-layer.dropout-places")
def decoder_forgets_a_dropout(patch):
    """Leaves out dropout of the feed-forward output."""
    patch.source(Decoder._ff_block, "return self.dropout3(x)", "return x")


@mutant("attention.transformer.causal-mask", "attention.encoder.is-causal")
def causal_mask_hides_the_diagonal(patch):
    """Hides the position itself too."""

    def mask(size, *args, **kwargs):
        return torch.full((size, size), float("-inf")).triu(0)

    patch.set(nn.Transformer, "generate_square_subsequent_mask", staticmethod(mask))


@mutant("attention.mha.start")
def separate_keys_start_uninitialised(patch):
    """Resets the packed projection alone."""
    patch.source(
        nn.MultiheadAttention._reset_parameters,
        "xavier_uniform_(self.k_proj_weight)",
        "self.k_proj_weight.data.fill_(3.0)",
    )


@mutant("attention.mha.start")
def projection_starts_as_a_linear_layer(patch):
    """Starts each third of the packed projection by itself, as three linear layers would."""
    patch.source(
        nn.MultiheadAttention._reset_parameters,
        "xavier_uniform_(self.in_proj_weight)",
        "[xavier_uniform_(w) for w in self.in_proj_weight.data.chunk(3)]",
    )


@mutant("attention.mha.start")
def added_keys_start_constant(patch):
    """Starts the added keys at a constant."""
    patch.source(nn.MultiheadAttention._reset_parameters, "xavier_normal_(self.bias_k)", "constant_(self.bias_k, 0.1)")


@mutant("attention.mha.old-pickle")
def old_attention_reads_separate_weights(patch):
    """Loads old attention as if keys had a width of their own."""
    patch.source(
        nn.MultiheadAttention.__setstate__,
        'state["_qkv_same_embed_dim"] = True',
        'state["_qkv_same_embed_dim"] = False',
    )


@mutant("attention.encoder-layer.old-pickle")
def old_layers_lose_their_activation(patch):
    """Puts the ReLU in the place of what was pickled, and not where nothing was."""
    patch.source(Encoder.__setstate__, "if not hasattr", "if hasattr")
    patch.source(Decoder.__setstate__, '"activation" not in state', '"activation" in state')


@mutant("attention.mha.masks-of-one-kind")
def masks_of_two_kinds_pass_silently(patch):
    """Takes masks of two kinds without a word."""
    patch.source(F._canonical_mask, "if _mask_dtype != other_type:", "if False:")


@mutant("attention.mha.masks-of-one-kind")
def any_mask_is_of_another_kind(patch):
    """Warns of two masks of one kind."""
    patch.source(F._canonical_mask, "if _mask_dtype != other_type:", "if True:")


@mutant("attention.mha.positive-sizes")
def zero_heads_taken(patch):
    """Divides by the number of heads before it looks at it."""
    patch.source(nn.MultiheadAttention.__init__, "embed_dim <= 0 or num_heads <= 0", "embed_dim < 0 or num_heads < 0")


@mutant("attention.mha.fast-path-conditions")
def fused_attention_in_training(patch):
    """Takes the fused kernel in training, where it has no dropout."""
    patch.source(nn.MultiheadAttention.forward, "elif self.training:", "elif False:")


@mutant("attention.mha.fast-path-conditions")
def fused_attention_with_gradients(patch):
    """Takes the fused kernel, which has no derivative, where one is asked for."""
    patch.source(nn.MultiheadAttention.forward, "torch.is_grad_enabled() and any(", "False and any(")


@mutant("attention.mha.fast-path-conditions")
def fused_attention_never(patch):
    """Never takes the fused kernel."""
    patch.source(nn.MultiheadAttention.forward, "elif (self.num_heads % 2) != 0:", "elif (self.num_heads % 2) == 0:")


@mutant("attention.mha.fast-path-conditions")
def fused_attention_takes_float_masks(patch):
    """Hands a float mask to the kernel that reads it as a boolean one."""
    patch.source(nn.MultiheadAttention.forward, "attn_mask is not None and torch.is_floating_point(attn_mask)", "False")


@mutant("attention.mha.fast-path-conditions", "attention.mha.added-keys")
def fused_attention_forgets_the_added_keys(patch):
    """Takes the fused kernel, which knows no added keys."""
    patch.source(nn.MultiheadAttention.forward, "elif self.bias_k is not None:", "elif False:")
    patch.source(nn.MultiheadAttention.forward, "elif self.bias_v is not None:", "elif False:")


@mutant("attention.mha.fast-path-conditions", "attention.mha.added-keys")
def fused_attention_forgets_the_zero_key(patch):
    """Takes the fused kernel, which knows no zero key."""
    patch.source(nn.MultiheadAttention.forward, "elif self.add_zero_attn:", "elif False:")


@mutant("attention.mha.fast-path-conditions")
def fused_attention_cannot_be_switched_off(patch):
    """Does not look at the switch."""
    patch.source(nn.MultiheadAttention.forward, "if not is_fastpath_enabled:", "if False:")


@mutant("attention.mha.fast-path")
def masks_of_heads_shared_by_all(patch):
    """Reads the masks of the first head for every head."""
    patch.source(
        nn.MultiheadAttention.merge_masks,
        "attn_mask.view(batch_size, -1, seq_len, seq_len)",
        "attn_mask.view(batch_size, -1, seq_len, seq_len)[:, :1].expand(-1, self.num_heads, -1, -1)",
    )


@mutant("attention.mha.fast-path", "attention.encoder-layer.fast-path-agrees")
def padding_of_the_fused_attention_lost(patch):
    """Forgets padding where there is a mask too."""
    patch.source(
        nn.MultiheadAttention.merge_masks, "attn_mask_expanded + key_padding_mask_expanded", "attn_mask_expanded"
    )


@mutant("attention.mha.nested")
def nested_masks_ignored(patch):
    """Takes a mask with nested sequences and goes on without."""
    patch.source(nn.MultiheadAttention.forward, "if any_nested:", "if False:")
    patch.source(nn.MultiheadAttention.forward, "key_padding_mask is not None or attn_mask is not None", "False")


@mutant("attention.mha.nested")
def nested_sequences_share_their_length(patch):
    """Attends to padding in nested sequences."""
    patch.wrap(
        torch,
        "_native_multi_head_attention",
        lambda original, *args: tuple(t * 0.99 if t is not None and t.is_nested else t for t in original(*args)),
    )


@mutant("attention.mha.errors")
def whole_numbers_taken_for_masks(patch):
    """Adds whole numbers to the scores."""
    patch.source(F._canonical_mask, "if _mask_dtype != torch.bool and not _mask_is_float:", "if False:")


@mutant("attention.encoder-layer.activation", "attention.encoder-layer.fast-path-agrees")
def activation_of_training_only(patch):
    """Applies the ReLU in the fused kernel whatever was given."""
    patch.wrap(torch, "_transformer_encoder_layer_fwd", lambda original, *args: original(*args[:7], False, *args[8:]))


@mutant("attention.encoder-layer.fast-path-only-in-eval")
def modules_are_other_activations(patch):
    """Knows the functions and not the modules of an activation."""
    patch.source(
        Encoder.__init__, "activation is F.gelu or isinstance(activation, torch.nn.GELU)", "activation is F.gelu"
    )


@mutant("attention.encoder-layer.fast-path-only-in-eval")
def hooks_cancel_out(patch):
    """Takes hooks before and after for none."""
    patch.source(Encoder.forward, '+ len(getattr(m, "_forward_pre_hooks"', '- len(getattr(m, "_forward_pre_hooks"')


@mutant("attention.encoder-layer.fast-path-only-in-eval")
def fast_path_cannot_be_switched_off(patch):
    """Does not look at the switch."""
    patch.source(Encoder.forward, "if not is_fastpath_enabled:", "if False:")


@mutant("attention.encoder-layer.fast-path-only-in-eval")
def encoder_norms_share_eps(patch):
    """Takes the first norm's eps for both."""
    patch.source(Encoder.forward, "self.norm1.eps != self.norm2.eps", "False")


@mutant("attention.encoder.nested-conditions")
def padding_left_out_of_any_mask(patch):
    """Leaves padding out where a mask is given too."""
    patch.source(nn.TransformerEncoder.forward, "elif mask is not None:", "elif False:")


@mutant("attention.encoder.nested-conditions")
def unaligned_padding_left_out(patch):
    """Does not ask whether padding stands at the end."""
    patch.source(nn.TransformerEncoder.__init__, "self.mask_check = mask_check", "self.mask_check = False")


@mutant("attention.encoder.nested-conditions")
def encoder_never_warns(patch):
    """Says nothing where padding can never be left out."""
    patch.source(nn.TransformerEncoder.__init__, "if enable_nested_tensor and why_not_sparsity_fast_path:", "if False:")


@mutant("attention.encoder.nested-conditions")
def odd_heads_nested(patch):
    """Leaves padding out for an odd number of heads."""
    patch.source(nn.TransformerEncoder.__init__, "self_attn.num_heads % 2 == 1", "self_attn.num_heads % 3 == 1")


@mutant("attention.encoder.is-causal", "attention.decoder.is-causal")
def length_is_the_batch(patch):
    """Looks for the length on the axis of the batch."""
    patch.source(transformer._get_seq_len, "1 if batch_first else 0", "0 if batch_first else 1")


@mutant("attention.encoder.is-causal", "attention.decoder.is-causal")
def hint_not_believed(patch):
    """Looks at the mask although it was told."""
    patch.source(transformer._detect_is_causal_mask, "is_causal is None and mask is not None", "mask is not None")


@mutant("attention.decoder.is-causal")
def memory_causal_like_the_target(patch):
    """Takes the target's hint for the memory too."""
    patch.source(nn.TransformerDecoder.forward, "memory_is_causal=memory_is_causal", "memory_is_causal=tgt_is_causal")


@mutant("attention.transformer.is-causal")
def hints_of_the_transformer_lost(patch):
    """Hands no hint on."""
    patch.source(nn.Transformer.forward, "is_causal=src_is_causal", "is_causal=None")


@mutant("attention.transformer.is-causal")
def weights_asked_for_and_thrown_away(patch):
    """Asks attention for weights that nobody reads."""
    patch.source(Decoder._sa_block, "need_weights=False", "need_weights=True")


@mutant("attention.transformer.is-causal")
def memory_mask_said_to_be_causal(patch):
    """Tells the attention to the memory what holds of the target."""
    patch.source(Decoder._mha_block, "is_causal=is_causal", "is_causal=not is_causal")


@mutant("attention.transformer.settings")
def decoder_keeps_the_default_eps(patch):
    """Forgets eps in a norm of the decoder."""
    patch.source(
        Decoder.__init__,
        "self.norm3 = LayerNorm(d_model, eps=layer_norm_eps",
        "self.norm3 = LayerNorm(d_model, eps=1e-5",
    )


@mutant("attention.transformer.settings")
def default_of_one_head(patch):
    """Has one head by default."""
    patch.set(nn.Transformer.__init__, "__defaults__", (512, 1, *nn.Transformer.__init__.__defaults__[2:]))


@mutant("attention.transformer.settings")
def inner_width_is_four_times_the_model(patch):
    """Takes four times the model's features for the inner width by default."""
    patch.source(
        Encoder.__init__,
        "self.linear1 = Linear(",
        "dim_feedforward = 4 * d_model if dim_feedforward == 2048 else dim_feedforward\n    self.linear1 = Linear(",
    )


@mutant("attention.transformer.no-bias")
def decoder_norms_keep_a_bias(patch):
    """Keeps the bias of the norms."""
    patch.source(Decoder.__init__, "eps=layer_norm_eps, bias=bias", "eps=layer_norm_eps, bias=True")


@mutant("attention.transformer.no-bias")
def final_norms_keep_a_bias(patch):
    """Keeps the bias of the norms at the end."""
    patch.source(nn.Transformer.__init__, "bias=bias", "bias=True")


@mutant("attention.transformer.custom-parts")
def custom_encoder_forgotten(patch):
    """Builds an encoder of its own where one is given."""
    patch.source(nn.Transformer.__init__, "self.decoder = custom_decoder", "self.decoder = custom_encoder")


@mutant("attention.transformer.start")
def transformer_keeps_its_parts_start(patch):
    """Leaves the start of the linear layers as it was."""
    patch.source(nn.Transformer.__init__, "self._reset_parameters()", "pass")


@mutant("attention.transformer.start")
def vectors_reset_too(patch):
    """Sets the biases to zero with the matrices."""
    patch.source(
        nn.Transformer._reset_parameters,
        "xavier_uniform_(p)",
        "xavier_uniform_(p)\n        elif p.dim() == 1 and p.numel() > 32:\n            p.data.zero_()",
    )


@mutant("attention.transformer.errors")
def width_checked_on_one_side(patch):
    """Refuses another width only where both have it."""
    patch.source(nn.Transformer.forward, "src.size(-1) != self.d_model or", "src.size(-1) != self.d_model and")


@mutant("attention.mha.static-keys")
def static_values_ignored(patch):
    """Takes the static keys and projects the values all the same."""
    patch.source(MHA, "v = static_v", "v = static_v * 0.5")


@mutant("attention.encoder.hooks-run", "attention.encoder-layer.fast-path-only-in-eval")
def fused_layer_passes_hooks_by(patch):
    """Takes the fused path though hooks are attached."""
    patch.source(Encoder.forward, '"_forward_hooks", {}', '"no such", {}')


@mutant("attention.encoder-layer.autocast")
def fused_layer_refuses_autocast(patch):
    """Has a fused kernel that takes no lowered input."""

    def kernel(original, *args, **kwargs):
        if torch.is_autocast_cpu_enabled():
            raise RuntimeError("expected scalar type Float but found BFloat16")
        return original(*args, **kwargs)

    patch.wrap(torch, "_transformer_encoder_layer_fwd", kernel)


@mutant("attention.encoder-layer.autocast-in-training")
def layer_refuses_masks_under_autocast(patch):
    """Compares the dtype of the mask with that of a lowered query."""

    def forward(original, layer, x, *args, **kwargs):
        if layer.training and torch.is_autocast_cpu_enabled() and "src_key_padding_mask" in kwargs:
            raise RuntimeError("Expected attn_mask dtype to be bool or to match query dtype")
        return original(layer, x, *args, **kwargs)

    patch.wrap(Encoder, "forward", forward)


@mutant("attention.mha.no-bias")
def fast_path_adds_a_bias_nobody_has(patch):
    """Reads a bias where there is none."""

    def forward(original, layer, *args, **kwargs):
        y, weights = original(layer, *args, **kwargs)
        return y + (layer.in_proj_bias is None and not torch.is_grad_enabled()), weights

    patch.wrap(nn.MultiheadAttention, "forward", forward)


@mutant("attention.encoder.padding-keeps-the-length")
def common_padding_cut_off(patch):
    """Pads the nested result to the longest sample."""

    def forward(original, stack, x, *args, **kwargs):
        padding = kwargs.get("src_key_padding_mask")
        y = original(stack, x, *args, **kwargs)
        return y if padding is None or torch.is_grad_enabled() else y[:, ~padding.all(0)]

    patch.wrap(nn.TransformerEncoder, "forward", forward)


@mutant("attention.encoder-layer.no-bias")
def fused_layer_adds_a_bias_nobody_has(patch):
    """Reads a bias where there is none."""

    def forward(original, layer, *args, **kwargs):
        return original(layer, *args, **kwargs) + (layer.linear1.bias is None and not torch.is_grad_enabled())

    patch.wrap(Encoder, "forward", forward)


@mutant("attention.sdpa.half-range")
def scores_scaled_after_rounding(patch):
    """Rounds the products to the dtype of the input, and scales what is left of them."""

    def attend(original, q, k, v, **o):
        if q.dtype != torch.float16:
            return original(q, k, v, **o)
        return torch.softmax((q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5, -1) @ v

    sdpa(patch, attend)


@mutant("attention.sdpa.lengths-agree")
def values_are_cut_to_the_keys(patch):
    """Takes as many keys as there are values."""
    sdpa(patch, lambda original, q, k, v, **o: original(q, k[..., : v.shape[-2], :], v, **o))


@mutant("attention.sdpa.dropout-range")
def negative_dropout_is_none(patch):
    """Takes a negative probability for zero."""
    sdpa(patch, lambda original, *args, dropout_p=0.0, **o: original(*args, dropout_p=max(dropout_p, 0.0), **o))


@mutant("attention.transformer.causal-mask-dtype")
def causal_mask_is_single(patch):
    """Makes the mask in float32 whatever the default."""
    patch.source(transformer._generate_square_subsequent_mask, "dtype=dtype", "dtype=dtype or torch.float32")


@mutant("attention.transformer.causal-mask-as-asked")
def causal_mask_is_of_the_default_dtype(patch):
    """Forgets the dtype that is asked for."""
    patch.source(nn.Transformer.generate_square_subsequent_mask, "dtype=dtype", "dtype=None")


@mutant("attention.transformer.causal-mask-as-asked")
def causal_mask_is_on_the_default_device(patch):
    """Forgets the device that is asked for."""
    patch.source(nn.Transformer.generate_square_subsequent_mask, "device=device", "device=None")


@mutant("attention.sdpa.no-width")
def nothing_is_attended_to_without_a_width(patch):
    """Returns zeros where queries have no numbers."""
    sdpa(patch, lambda original, q, k, v, **o: original(q, k, v, **o) * bool(q.shape[-1]))


@mutant("attention.sdpa.no-heads")
def work_is_divided_among_the_heads(patch):
    """Divides by the number of heads, which ends the process where it is zero."""

    def attend(original, q, k, v, **o):
        return original(q, k, v, **o) if q.numel() else os.kill(os.getpid(), signal.SIGFPE)

    sdpa(patch, attend)
