"""The ways in which implementations of linear maps and embeddings go wrong."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mutants._gradient import once, scaled
from torch_conformance.mutation import mutant

Linear, Bilinear, Embedding, Bag = nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag


def linear(patch, change):
    """Replace F.linear by ``change(original, x, weight, bias)``."""
    patch.wrap(F, "linear", lambda original, x, weight, bias=None: change(original, x, weight, bias))


@mutant("linear.linear.formula", "linear.linear.leading-dimensions", "linear.linear.transposed-view")
def linear_adds_the_bias_twice(patch):
    """Adds the bias in the product and once more behind it, as a fused kernel with beta = 1 does."""
    linear(patch, lambda f, x, w, b: f(x, w, b) if b is None else f(x, w, b) + b)


@mutant("linear.linear.formula")
def linear_forgets_the_bias(patch):
    """Leaves the bias out where there is one row only."""
    linear(patch, lambda f, x, w, b: f(x, w, None if w.shape[0] == 1 or x.ndim == 4 else b))


@mutant("linear.linear.formula")
def linear_forgets_the_tail(patch):
    """Leaves the features behind the last full vector of eight out of the sum."""
    linear(patch, lambda f, x, w, b: f(x[..., :n], w[..., :n], b) if (n := x.shape[-1] // 8 * 8) else f(x, w, b))


@mutant("linear.linear.leading-dimensions")
def linear_forgets_the_bias_of_the_last_of_many_rows(patch):
    """Adds the bias to rows in blocks of 32 and leaves it out behind the last whole block."""

    def change(original, x, weight, bias):
        if bias is None or x.ndim != 2 or len(x) <= 32:
            return original(x, weight, bias)
        full = len(x) // 32 * 32
        return torch.cat([original(x[:full], weight, bias), original(x[full:], weight)])

    linear(patch, change)


@mutant("linear.linear.sums-in-float32")
def linear_rounds_after_every_term(patch):
    """Adds up in the dtype of its input where there are over 256 terms, which another kernel takes."""

    def change(original, x, weight, bias):
        if x.element_size() > 2 or x.shape[-1] <= 256 or x.ndim > 2:
            return original(x, weight, bias)
        blocks = zip(x.split(1, -1), weight.split(1, -1), strict=True)
        return sum(original(a, w) for a, w in blocks) + (0 if bias is None else bias)

    linear(patch, change)


@mutant("linear.linear.formula")
def linear_rounds_to_bfloat16(patch):
    """Multiplies in bfloat16 and adds up in float32, as fast matrix units do unasked."""
    linear(patch, lambda f, x, w, b: f(x.bfloat16().to(x.dtype), w.bfloat16().to(w.dtype), b))


@mutant("linear.linear.counts-every-row")
def rows_beyond_a_block_are_not_counted(patch):
    """Sums the gradients of weight and bias over the first 2048 rows alone."""

    def change(original, x, weight, bias):
        if x.ndim < 2 or len(x) <= 2048:
            return original(x, weight, bias)
        rest = original(x[2048:], weight.detach(), None if bias is None else bias.detach())
        return torch.cat([original(x[:2048], weight, bias), rest])

    linear(patch, change)


@mutant("linear.linear.sums-in-float32")
def linear_adds_up_in_bfloat16(patch):
    """Adds up in the dtype of its input, as the first bfloat16 kernels did."""

    def change(original, x, weight, bias):
        if x.element_size() > 2:
            return original(x, weight, bias)
        total = torch.zeros(1, dtype=x.dtype)
        for column, factor in zip(x.unbind(-1), weight.unbind(-1), strict=True):
            total = total + column[..., None] * factor
        return total if bias is None else total + bias

    linear(patch, change)


@mutant("linear.linear.weight-layout")
def linear_stores_in_by_out(patch):
    """Stores the weight as (in, out), as Keras and Flax do."""
    patch.source(Linear.__init__, "(out_features, in_features)", "(in_features, out_features)")


@mutant("linear.linear.leading-dimensions")
def linear_flattens_the_batch(patch):
    """Flattens all leading dimensions and does not restore them."""
    linear(patch, lambda f, x, w, b: f(x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x, w, b))


@mutant("linear.linear.leading-dimensions")
def linear_refuses_a_vector(patch):
    """Asks for a batch dimension."""

    def change(original, x, weight, bias):
        if x.ndim == 1:
            raise RuntimeError("expected a batch")
        return original(x, weight, bias)

    linear(patch, change)


@mutant("linear.linear.zero-features")
def linear_of_nothing_is_zero(patch):
    """Returns zeros where there is nothing to add up, and forgets the bias."""
    linear(patch, lambda f, x, w, b: f(x, w, b if x.shape[-1] else None))


@mutant("linear.linear.transposed-view")
def linear_writes_to_its_weight(patch):
    """Transposes the stored weight and back, so that its version moves."""

    def forward(original, layer, x):
        with torch.no_grad():
            layer.weight.mul_(1)
        return original(layer, x)

    patch.wrap(Linear, "forward", forward)


@mutant("linear.linear.calls-functional")
def linear_computes_otherwise(patch):
    """Computes product and sum apart in the module, with another rounding than the function."""

    def forward(original, layer, x):
        y = (x.double() @ layer.weight.double().t() * (1 + 2**-20)).to(x.dtype)
        return y if layer.bias is None else y + layer.bias

    patch.wrap(Linear, "forward", forward)


@mutant("linear.linear.bias-false")
def linear_keeps_its_bias(patch):
    """Takes no notice of bias=False."""
    patch.source(Linear.__init__, "if bias:", "if True:")


@mutant("linear.linear.bias-false")
def linear_sets_its_bias_to_none(patch):
    """Sets the attribute without registering it."""
    patch.source(Linear.__init__, 'self.register_parameter("bias", None)', "object.__setattr__(self, 'bias', None)")


@mutant("linear.linear.gradients")
def linear_averages_the_gradient_of_the_bias(patch):
    """Averages the gradient of the bias over the batch instead of summing it."""
    linear(patch, lambda f, x, w, b: f(x, w, b) if b is None else f(x, w, scaled(b, 0.5)))


@mutant("linear.linear.gradients")
def linear_sums_over_the_first_dimension_only(patch):
    """Leaves the weight's gradient of all but the first entry of a middle dimension out."""

    def change(original, x, weight, bias):
        if x.ndim < 3:
            return original(x, weight, bias)
        y = [original(x[:, :1], weight, bias), original(x[:, 1:], weight.detach(), bias)]
        return torch.cat(y, 1)

    linear(patch, change)


@mutant("linear.linear.gradients")
def linear_freezes_the_bias_with_the_weight(patch):
    """Skips the gradient of the bias where the weight needs none."""
    linear(patch, lambda f, x, w, b: f(x, w, b if b is None or w.requires_grad else b.detach()))


@mutant("linear.linear.double-backward")
def linear_differentiates_once(patch):
    """Cuts the graph in the backward."""
    linear(patch, lambda f, x, w, b: f(once(x), w, b))


@mutant("linear.linear.shape-error")
def linear_cuts_to_fit(patch):
    """Uses as much of the weight as fits the input."""

    def change(original, x, weight, bias):
        n = min(x.shape[-1], weight.shape[-1])
        return original(x[..., :n], weight[..., :n], bias)

    linear(patch, change)


@mutant("linear.linear.dtype-error")
def linear_promotes(patch):
    """Converts the input to the dtype of the weight, as autocast does."""
    linear(patch, lambda f, x, w, b: f(x.to(w.dtype), w, b))


@mutant("linear.linear.seed-class")
def linear_draws_with_he_bounds(patch):
    """Draws the weight with a = 0, the default of kaiming_uniform_."""
    patch.source(Linear.reset_parameters, "math.sqrt(5)", "0")


@mutant("linear.linear.seed-class")
def linear_draws_the_bias_first(patch):
    """Draws the bias before the weight, and so from other random numbers."""

    def reset(original, layer):
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -1 / math.sqrt(layer.in_features or 1), 1 / math.sqrt(layer.in_features or 1))
        original(layer)

    patch.wrap(Linear, "reset_parameters", reset)


@mutant("linear.linear.notes-layout")
def linear_loads_either_layout(patch):
    """Transposes a weight that does not fit when it is loaded."""

    def load(original, layer, state, prefix, *rest):
        weight = state.get(prefix + "weight")
        if weight is not None and weight.shape != layer.weight.shape:
            state[prefix + "weight"] = weight.t()
        return original(layer, state, prefix, *rest)

    patch.wrap(Linear, "_load_from_state_dict", load)


@mutant("linear.functional.vector-weight")
def linear_keeps_a_dimension_of_one(patch):
    """Takes a vector for a matrix of one row."""
    linear(patch, lambda f, x, w, b: f(x, w[None] if w.ndim == 1 else w, b))


def bilinear(patch, change):
    patch.wrap(F, "bilinear", change)


@mutant("linear.bilinear.formula")
def bilinear_forgets_the_bias(patch):
    """Leaves the bias out."""
    bilinear(patch, lambda original, x1, x2, weight, bias=None: original(x1, x2, weight))


@mutant("linear.bilinear.formula")
def bilinear_is_symmetric(patch):
    """Takes only the symmetric part of a square corner of the matrix."""

    def change(original, x1, x2, weight, bias=None):
        n = min(weight.shape[1:])
        weight = weight.clone()
        weight[:, :n, :n] = (weight[:, :n, :n] + weight[:, :n, :n].transpose(1, 2)) / 2
        return original(x1, x2, weight, bias)

    bilinear(patch, change)


@mutant("linear.bilinear.gradients")
def bilinear_forgets_its_second_gradient(patch):
    """Gives no gradient to the second input."""
    bilinear(patch, lambda f, x1, x2, w, b=None: f(x1, scaled(x2, 0.0), w, b))


@mutant("linear.bilinear.shape-error")
def bilinear_broadcasts(patch):
    """Broadcasts leading dimensions and cuts widths to fit."""

    def change(original, x1, x2, weight, bias=None):
        i, j, n = min(x1.shape[-1], weight.shape[1]), min(x2.shape[-1], weight.shape[2]), min(len(x1), len(x2))
        return original(x1[:n, :i].contiguous(), x2[:n, :j].contiguous(), weight[:, :i, :j].contiguous(), bias)

    bilinear(patch, change)


@mutant("linear.bilinear.zero-features")
def bilinear_divides_by_zero(patch):
    """Fails with ZeroDivisionError, as torch did before 2.8."""
    patch.source(Bilinear.reset_parameters, "self.in1_features <= 0", "False")


@mutant("linear.identity.arguments-ignored")
def identity_copies(patch):
    """Returns a copy."""
    patch.wrap(nn.Identity, "forward", lambda original, layer, x: x.clone())


@mutant("linear.identity.arguments-ignored")
def identity_refuses_arguments(patch):
    """Takes no arguments."""
    patch.wrap(nn.Identity, "__init__", lambda original, layer: original(layer))


@mutant("linear.lazy.materialises")
def lazy_linear_takes_the_second_dimension(patch):
    """Takes its width from dimension 1, as the lazy convolutions do."""
    patch.source(nn.LazyLinear.initialize_parameters, "input.shape[-1]", "input.shape[1]")


@mutant("linear.lazy.materialises")
def lazy_linear_is_not_reset(patch):
    """Leaves the parameters as memory happens to be: zeros."""

    def initialize(original, layer, x):
        original(layer, x)
        with torch.no_grad():
            layer.weight.zero_()

    patch.wrap(nn.LazyLinear, "initialize_parameters", initialize)


# -- Embedding ---------------------------------------------------------------------------------------------------------


def looked_up(patch, change):
    """Replace torch.embedding by ``change(original, weight, ids, padding, by_frequency, sparse)``."""

    def replacement(original, weight, ids, padding=-1, by_frequency=False, sparse=False):
        return change(original, weight, ids, padding, by_frequency, sparse)

    patch.wrap(torch, "embedding", replacement)


@mutant("linear.embedding.lookup", "linear.embedding.one-hot")
def embedding_is_off_by_one(patch):
    """Reads the row behind, as one does who counts from one."""
    looked_up(patch, lambda f, w, ids, *rest: f(w.roll(1, 0), ids, *rest))


@mutant("linear.embedding.lookup")
def embedding_narrows(patch):
    """Passes the rows through bfloat16."""
    looked_up(patch, lambda f, w, ids, *rest: f(w, ids, *rest).bfloat16().to(w.dtype) * (1 + 2**-9))


@mutant("linear.embedding.gradient")
def embedding_trains_its_padding(patch):
    """Gives the padding row a gradient like any other."""
    looked_up(patch, lambda f, w, ids, padding, *rest: f(w, ids, -1, *rest))


@mutant("linear.embedding.gradient")
def embedding_loses_the_last_of_many_lookups(patch):
    """Leaves out of the gradient what is behind the last whole block of 1024 indices."""

    def change(original, weight, ids, *rest):
        full = ids.numel() // 1024 * 1024
        if ids.ndim != 1 or not full:
            return original(weight, ids, *rest)
        return torch.cat([original(weight, ids[:full], *rest), original(weight.detach(), ids[full:], *rest)])

    looked_up(patch, change)


@mutant("linear.embedding.gradient")
def embedding_ignores_frequency(patch):
    """Takes no notice of scale_grad_by_freq."""
    looked_up(patch, lambda f, w, ids, padding, by_frequency, sparse: f(w, ids, padding, False, sparse))


@mutant("linear.embedding.gradient")
def embedding_keeps_the_last_gradient(patch):
    """Writes the gradients of repeated indices over each other instead of adding them up."""

    class Lookup(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, ids):
            ctx.save_for_backward(weight, ids)
            return weight[ids.long()]

        @staticmethod
        def backward(ctx, g):
            weight, ids = ctx.saved_tensors
            found = torch.zeros_like(weight)
            found[ids.reshape(-1)] = g.reshape(-1, g.shape[-1])
            return found, None

    looked_up(
        patch, lambda f, w, ids, padding, by, sparse: f(w, ids, padding, by, True) if sparse else Lookup.apply(w, ids)
    )


@mutant("linear.embedding.sparse")
def embedding_is_dense_always(patch):
    """Takes no notice of sparse=True."""
    looked_up(patch, lambda f, w, ids, padding, by_frequency, sparse: f(w, ids, padding, by_frequency, False))


@mutant("linear.embedding.padding-starts-at-zero")
def embedding_draws_its_padding(patch):
    """Leaves the padding row as it was drawn."""
    for cls in (Embedding, Bag):
        patch.set(cls, "_fill_padding_idx_with_zero", lambda layer: None)


@mutant("linear.embedding.padding-starts-at-zero")
def embedding_keeps_a_negative_padding(patch):
    """Does not count a negative padding row from the end."""

    def init(original, layer, *args, padding_idx=None, **kwargs):
        inside = None if padding_idx is not None and padding_idx < 0 else padding_idx
        original(layer, *args, padding_idx=inside, **kwargs)

    patch.wrap(Embedding, "__init__", init)


@mutant("linear.embedding.padding-is-looked-up")
def embedding_zeroes_its_padding(patch):
    """Gives zeros for the padding row whatever it holds."""
    looked_up(patch, lambda f, w, ids, p, *rest: f(w, ids, p, *rest).masked_fill((ids == p)[..., None], 0))


@mutant("linear.embedding.max-norm")
def embedding_shortens_its_output_only(patch):
    """Shortens the rows that it returns, and leaves the weight."""
    patch.set(F, "_no_grad_embedding_renorm_", lambda weight, ids, most, p: None)


@mutant("linear.embedding.max-norm")
def embedding_always_takes_the_euclidean_norm(patch):
    """Takes no notice of norm_type."""
    patch.wrap(F, "_no_grad_embedding_renorm_", lambda original, weight, ids, most, p: original(weight, ids, most, 2.0))


@mutant("linear.embedding.max-norm")
def embedding_shortens_all_rows(patch):
    """Renormalises the whole weight, also the rows that are not looked up, and lengthens short ones."""

    def renorm(original, weight, ids, most, p):
        with torch.no_grad():
            weight.mul_(most / weight.norm(p, 1, keepdim=True))

    patch.wrap(F, "_no_grad_embedding_renorm_", renorm)


@mutant("linear.embedding.max-norm")
def embedding_shortens_in_training_only(patch):
    """Leaves the rows as they are in eval mode."""

    def forward(original, layer, ids):
        return original(layer, ids) if layer.training else layer.weight[ids]

    patch.wrap(Embedding, "forward", forward)


@mutant("linear.embedding.from-pretrained")
def pretrained_is_trained(patch):
    """Forgets to freeze."""
    for cls in (Embedding, Bag):

        def thawed(owner, embeddings, freeze=False, original=cls.__dict__["from_pretrained"].__func__, **kwargs):
            return original(owner, embeddings, freeze, **kwargs)

        patch.set(cls, "from_pretrained", classmethod(thawed))


@mutant("linear.embedding.from-pretrained")
def pretrained_is_copied(patch):
    """Copies the given weight."""
    original = Embedding.__dict__["from_pretrained"].__func__
    patch.set(Embedding, "from_pretrained", classmethod(lambda cls, w, *a, **k: original(cls, w.clone(), *a, **k)))


@mutant("linear.embedding.index-error")
def embedding_wraps_indices(patch):
    """Counts negative indices from the end, and wraps those too large."""
    looked_up(patch, lambda f, w, ids, *rest: f(w, ids % len(w), *rest))


@mutant("linear.embedding.padding-error")
def embedding_takes_any_padding(patch):
    """Takes a padding row outside the weight for none."""
    for cls in (Embedding, Bag):

        def init(original, layer, n, dim, *args, padding_idx=None, **kwargs):
            inside = padding_idx is not None and -n <= padding_idx < n
            original(layer, n, dim, *args, padding_idx=padding_idx if inside else None, **kwargs)

        patch.wrap(cls, "__init__", init)


def bag(patch, change):
    """Replace torch.embedding_bag by ``change(original, weight, ids, offsets, mode, rest)``; modes are 0, 1 and 2."""

    def replacement(original, weight, ids, offsets, by_frequency, mode, *rest):
        return change(lambda w, i, o, m, r: original(w, i, o, by_frequency, m, *r), weight, ids, offsets, mode, rest)

    patch.wrap(torch, "embedding_bag", replacement)


@mutant("linear.embeddingbag.formula", "linear.embeddingbag.like-embedding")
def bag_sums_where_it_should_average(patch):
    """Takes mean for sum."""
    bag(patch, lambda f, w, ids, offsets, mode, rest: f(w, ids, offsets, 0 if mode == 1 else mode, rest))


@mutant("linear.embeddingbag.formula")
def bag_fills_empty_ones(patch):
    """Gives the first row for an empty bag."""

    def change(original, weight, ids, offsets, mode, rest):
        y, *others = original(weight, ids, offsets, mode, rest)
        return (torch.where((y == 0).all(1, keepdim=True), weight[:1], y), *others)

    bag(patch, change)


@mutant("linear.embeddingbag.formula")
def bag_divides_an_empty_last_one(patch):
    """Divides the last bag by its length, although it is empty."""

    def change(original, weight, ids, offsets, mode, rest):
        y, *others = original(weight, ids, offsets, mode, rest)
        empty = not rest[-2] and len(offsets) and offsets[-1] == len(ids)
        return (torch.cat([y[:-1], y[-1:] / 0]) if empty and mode == 1 else y, *others)

    bag(patch, change)


@mutant("linear.embeddingbag.gradient")
def bag_counts_no_frequencies(patch):
    """Takes no notice of scale_grad_by_freq."""
    patch.wrap(torch, "embedding_bag", lambda f, w, ids, offsets, by_frequency, *rest: f(w, ids, offsets, False, *rest))


@mutant("linear.embeddingbag.gradient")
def bag_divides_the_gradient_of_a_mean_twice(patch):
    """Gives the rows of a mean half their share."""
    bag(patch, lambda f, w, i, o, mode, rest: f(scaled(w, 0.5) if mode == 1 else w, i, o, mode, rest))


@mutant("linear.embeddingbag.last-offset")
def bag_ends_with_the_list(patch):
    """Lets the last bag run to the end of the list, whatever the last offset says."""

    def change(original, weight, ids, offsets, mode, rest):
        if rest[-2]:
            offsets = torch.cat([offsets[:-1], offsets.new_tensor([len(ids)])])
        return original(weight, ids, offsets, mode, rest)

    bag(patch, change)


@mutant("linear.embeddingbag.last-offset-of-a-matrix")
def bag_takes_the_last_row_of_a_matrix_for_an_offset(patch):
    """Drops the last bag of a matrix of indices, as include_last_offset says of offsets."""

    def change(original, layer, ids, *rest):
        y = original(layer, ids, *rest)
        return y[:-1] if layer.include_last_offset and ids.ndim == 2 else y

    patch.wrap(nn.EmbeddingBag, "forward", change)


@mutant("linear.embeddingbag.like-embedding")
def bag_averages_its_gradient(patch):
    """Halves the gradient of the weight."""
    bag(patch, lambda f, w, *rest: f(scaled(w, 0.5), *rest))


@mutant("linear.embeddingbag.weights")
def bag_ignores_weights(patch):
    """Takes no notice of per_sample_weights."""
    bag(patch, lambda f, w, ids, o, mode, rest: f(w, ids, o, mode, (rest[0], None, *rest[2:])))


@mutant("linear.embeddingbag.weights")
def bag_gives_weights_no_gradient(patch):
    """Gives per_sample_weights half their gradient."""

    def change(original, weight, ids, offsets, mode, rest):
        factors = rest[1] if rest[1] is None else scaled(rest[1], 0.5)
        return original(weight, ids, offsets, mode, (rest[0], factors, *rest[2:]))

    bag(patch, change)


@mutant("linear.embeddingbag.padding-left-out")
def bag_counts_its_padding(patch):
    """Takes the padding row in like any other."""
    bag(patch, lambda f, w, ids, o, mode, rest: f(w, ids, o, mode, (*rest[:-1], None)))


@mutant("linear.embeddingbag.weights-need-sum")
def bag_takes_weights_with_any_mode(patch):
    """Takes per_sample_weights with any mode, and ignores them."""

    def change(original, ids, weight, offsets=None, *rest):
        rest = list(rest)
        if rest[3] != "sum":
            rest[5] = None
        return original(ids, weight, offsets, *rest)

    patch.wrap(F, "embedding_bag", change)


Lazy = nn.modules.lazy.LazyModuleMixin


@mutant("linear.lazy.state")
def lazy_loads_into_nothing(patch):
    """Leaves the parameters uninitialised when there is something to load into them."""
    patch.source(Lazy._lazy_load_hook, "param.materialize(input_param.shape)", "pass")


@mutant("linear.lazy.state")
def lazy_saves_with_graph(patch):
    """Saves parameters as they are, with their gradients required."""
    patch.source(Lazy._save_to_state_dict, "param = param.detach()", "pass")


@mutant("linear.lazy.state")
def lazy_hooks_stay(patch):
    """Leaves the hook before loading on the finished layer."""
    patch.source(Lazy._infer_parameters, "module._load_hook.remove()", "pass")


@mutant("linear.lazy.buffers")
def lazy_saves_scratch(patch):
    """Saves buffers that are not persistent."""
    patch.source(Lazy._save_to_state_dict, "name not in self._non_persistent_buffers_set", "True")


@mutant("linear.lazy.own")
def lazy_half_made(patch):
    """Runs a layer that has not made all its parameters."""
    patch.source(Lazy._infer_parameters, "if module.has_uninitialized_params()", "if False")


@mutant("linear.lazy.reset")
def lazy_never_drawn(patch):
    """Materialises the memory and leaves in it what was there."""
    patch.source(nn.LazyLinear.initialize_parameters, "self.reset_parameters()", "pass")


@mutant("linear.lazy.loaded-width")
def lazy_of_no_width(patch):
    """Leaves in_features at zero in a layer that was loaded."""
    patch.source(nn.LazyLinear.initialize_parameters, "if self.in_features == 0", "if False")


@mutant("linear.embedding.options")
def embedding_row_zero_is_no_padding(patch):
    """Takes the first row for no padding row, as one does who asks whether the index is true."""
    patch.source(Embedding._fill_padding_idx_with_zero, "if self.padding_idx is not None", "if self.padding_idx")


@mutant("linear.embedding.options")
def pretrained_forgets_the_bound(patch):
    """Hands max_norm on to the constructor only."""
    patch.source(Embedding.from_pretrained, "max_norm=max_norm", "max_norm=None")


@mutant("linear.embedding.from-pretrained")
def pretrained_takes_any_shape(patch):
    """Leaves the check of the given weight's shape out."""
    patch.source(Embedding.__init__, "list(_weight.shape) != [num_embeddings, embedding_dim]", "False")


@mutant("linear.lazy.by-keyword")
def lazy_layers_see_positions_only(patch):
    """Makes the layer from positional arguments, as torch did up to 2.1."""
    lazy = nn.modules.lazy.LazyModuleMixin
    patch.source(lazy._infer_parameters, "kwargs = kwargs if kwargs else {}", "kwargs = {}")


@mutant("linear.embeddingbag.weights-of-every-index")
def bag_spreads_its_weights(patch):
    """Takes weights for any number of indices, and gives them to the indices in turn."""

    def change(original, ids, weight, offsets=None, *rest):
        rest = list(rest)
        if rest[5] is not None:
            rest[5] = rest[5].flatten().repeat(ids.numel())[: ids.numel()].view_as(ids)
        return original(ids, weight, offsets, *rest)

    patch.wrap(F, "embedding_bag", change)


@mutant("linear.embedding.max-norm-in-place")
def rows_are_shortened_by_data(patch):
    """Shortens rows behind the back of the version counter."""
    patch.wrap(F, "_no_grad_embedding_renorm_", lambda o, weight, *rest: o(weight.data, *rest))


@mutant("linear.embeddingbag.maximum-alone")
def maximum_takes_every_option(patch):
    """Leaves out of sight what the maximum cannot do."""

    def change(original, ids, weight, offsets=None, *rest):
        rest = list(rest)
        if rest[3] == "max":
            rest[2] = rest[4] = False
        return original(ids, weight, offsets, *rest)

    patch.wrap(F, "embedding_bag", change)


@mutant("linear.embeddingbag.offsets")
def bags_begin_anywhere(patch):
    """Leaves out the indices before the first offset, and those of a matrix are what the offsets make of them."""

    def change(original, ids, weight, offsets=None, *rest):
        if offsets is not None:
            ids, offsets = ids.flatten()[offsets.flatten()[0] :], offsets.flatten() - offsets.flatten()[0]
        return original(ids, weight, offsets, *rest)

    patch.wrap(F, "embedding_bag", change)


@mutant("linear.linear.sparse-weight")
def sparse_weights_forget_their_last_value(patch):
    """Loses one of the stored values."""

    def change(original, x, weight, bias):
        if weight.is_sparse:
            stored = weight.coalesce()
            weight = torch.sparse_coo_tensor(stored.indices()[:, :-1], stored.values()[:-1], weight.shape)
        return original(x, weight, bias)

    linear(patch, change)


@mutant("linear.embeddingbag.frozen-rows")
def bags_of_frozen_rows_learn_nothing(patch):
    """Asks the rows alone whether anything needs a gradient."""

    def change(original, ids, weight, *rest):
        y = original(ids, weight, *rest)
        return y if weight.requires_grad else y.detach().requires_grad_()

    patch.wrap(F, "embedding_bag", change)


@mutant("linear.convolution.formula")
def biases_of_convolutions_take_the_mean_of_the_samples(patch):
    """Divides the gradient of the bias by the number of samples."""
    patch.wrap(F, "conv2d", lambda o, x, w, b, **options: o(x, w, scaled(b, 1 / len(x)), **options))


@mutant("linear.convolution.formula")
def the_last_group_has_the_filters_of_the_first(patch):
    """Starts anew with the filters at the last group."""

    def conv2d(original, x, w, b, groups=1, **options):
        n = w.shape[0] // groups
        return original(x, torch.cat([w[:-n], w[:n]]) if groups > 1 else w, b, groups=groups, **options)

    patch.wrap(F, "conv2d", conv2d)


@mutant("linear.convolution.circular-sample")
def circular_padding_wants_a_batch(patch):
    """Takes the first of two dimensions for the batch, as torch did until 2.0."""

    def pad(original, x, by, mode="constant", value=None):
        if mode == "circular" and len(by) != 2 * (x.dim() - 2):
            raise RuntimeError("Invalid padding size")
        return original(x, by, mode, value)

    patch.wrap(F, "pad", pad)


@mutant("linear.bilinear.counts-every-product")
def bilinear_forms_add_up_in_low_precision(patch):
    """Adds up products of ones in the dtype of the factors, where 256 + 1 is 256."""
    patch.wrap(F, "bilinear", lambda original, *args: original(*args).clamp(max=256))
