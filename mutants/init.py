"""The ways in which initialisation goes wrong."""

import torch
from torch import nn

from torch_conformance.mutation import mutant

init = nn.init


def scaled(patch, name, factor):
    """Multiply what the function of torch.nn.init draws."""

    def change(original, tensor, *args, **kwargs):
        original(tensor, *args, **kwargs)
        with torch.no_grad():
            return tensor.mul_(factor)

    patch.wrap(init, name, change)


def reset(patch, cls, change, name="reset_parameters"):
    """Let ``change(layer)`` spoil what the layer has drawn."""

    def replacement(original, layer, *args, **kwargs):
        original(layer, *args, **kwargs)
        with torch.no_grad():
            change(layer)

    patch.wrap(cls, name, replacement)


def permissive(patch, name, refused):
    """Return the tensor untouched where the original refuses it."""

    def change(original, tensor, *args, **kwargs):
        return tensor if refused(tensor) else original(tensor, *args, **kwargs)

    patch.wrap(init, name, change)


@mutant("init.functions.in-place")
def constant_returns_a_copy(patch):
    """Returns a filled copy and leaves the tensor."""
    patch.wrap(init, "constant_", lambda original, tensor, val: torch.full_like(tensor, val))


@mutant("init.functions.in-place")
def orthogonal_freezes(patch):
    """Leaves the tensor without requires_grad."""
    patch.wrap(init, "orthogonal_", lambda original, tensor, *a, **k: original(tensor, *a, **k).requires_grad_(False))


@mutant("init.functions.dtype-and-layout")
def normal_makes_contiguous(patch):
    """Replaces the memory by contiguous one."""

    def change(original, tensor, *args, **kwargs):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        return original(tensor, *args, **kwargs)

    patch.wrap(init, "normal_", change)


@mutant("init.functions.constants")
def constant_drops_the_fraction(patch):
    """Fills with an integer."""
    patch.wrap(init, "constant_", lambda original, tensor, val: original(tensor, int(val)))


@mutant("init.functions.constants")
def constant_skips_a_row_with_strides(patch):
    """Leaves the last row of a matrix as it was where that is not contiguous."""

    def constant(original, tensor, val):
        rows = tensor if tensor.is_contiguous() or tensor.ndim < 2 else tensor[:-1]
        original(rows, val)
        return tensor

    patch.wrap(init, "constant_", constant)


@mutant("init.functions.constants")
def ones_are_zeros(patch):
    """Fills with zeros where ones are asked for."""
    patch.wrap(init, "ones_", lambda original, tensor: original(tensor).zero_())


@mutant("init.functions.uniform", "init.functions.defaults")
def uniform_is_symmetric(patch):
    """Takes b for the bound on both sides."""
    patch.source(init._no_grad_uniform_, "uniform_(a, b", "uniform_(-abs(b), b")


@mutant("init.functions.normal")
def normal_takes_a_variance(patch):
    """Takes the standard deviation for a variance."""
    patch.source(init._no_grad_normal_, "normal_(mean, std", "normal_(mean, std ** 0.5")


@mutant("init.functions.normal")
def normal_forgets_its_mean(patch):
    """Draws with mean 0."""
    patch.source(init._no_grad_normal_, "normal_(mean, std", "normal_(0, std")


@mutant("init.functions.independent")
def rows_with_strides_repeat_the_first(patch):
    """Draws one row for all where the rows are not contiguous."""

    def uniform(original, tensor, *options):
        filled = original(tensor, *options)
        with torch.no_grad():
            return filled if filled.is_contiguous() else filled.copy_(filled[:1].clone().expand_as(filled))

    for name in ("_no_grad_uniform_", "_no_grad_normal_"):
        patch.wrap(init, name, uniform)


@mutant("init.functions.independent")
def last_row_repeats_the_first(patch):
    """Draws one row too few."""

    def uniform(original, tensor, *options):
        filled = original(tensor, *options)
        with torch.no_grad():
            filled[-1] = filled[0]
        return filled

    for name in ("_no_grad_uniform_", "_no_grad_normal_", "_no_grad_trunc_normal_"):
        patch.wrap(init, name, uniform)


@mutant("init.functions.defaults")
def normal_defaults_to_a_small_deviation(patch):
    """Takes 0.05 by default, as Keras does."""
    patch.wrap(init, "normal_", lambda original, tensor, mean=0.0, std=0.05, **k: original(tensor, mean, std, **k))


@mutant("init.truncnormal.bounds")
def truncated_normal_clamps(patch):
    """Clamps to the bounds, where the mass then heaps up."""

    def change(original, tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):
        with torch.no_grad():
            return tensor.normal_(mean, std, generator=generator).clamp_(a, b)

    patch.wrap(init, "trunc_normal_", change)


@mutant("init.truncnormal.bounds", "init.truncnormal.bounds-absolute")
def truncated_normal_is_uniform(patch):
    """Draws uniformly between the bounds."""

    def change(original, tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):
        with torch.no_grad():
            return tensor.uniform_(a, b, generator=generator)

    patch.wrap(init, "trunc_normal_", change)


@mutant("init.truncnormal.bounds-absolute", "init.truncnormal.bounds")
def truncated_normal_counts_in_deviations(patch):
    """Takes the bounds in units of the deviation, as TensorFlow does: the belief come true."""

    def change(original, tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, **kwargs):
        return original(tensor, mean, std, mean + a * std, mean + b * std, **kwargs)

    patch.wrap(init, "trunc_normal_", change)


@mutant("init.fan.definition", "init.kaiming.uniform")
def fans_are_swapped(patch):
    """Takes the first dimension for the inputs, as for a weight of shape (in, out)."""
    patch.source(init._calculate_fan_in_and_fan_out, "return fan_in, fan_out", "return fan_out, fan_in")


@mutant("init.fan.definition", "init.xavier.uniform", "init.xavier.normal", "init.kaiming.normal")
def fans_ignore_the_kernel(patch):
    """Leaves the receptive field out."""
    patch.source(init._calculate_fan_in_and_fan_out, "receptive_field_size *= s", "pass")


@mutant("init.fan.too-few-dimensions")
def a_vector_has_a_fan(patch):
    """Takes a vector for a matrix of one column."""
    for name in ("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"):
        permissive(patch, name, lambda tensor: tensor.dim() < 2)


@mutant("init.fan.unknown-mode")
def an_unknown_mode_is_fan_out(patch):
    """Takes any other mode for fan_out."""
    patch.source(init._calculate_correct_fan, "mode not in valid_modes", "False")


@mutant("init.xavier.uniform", "init.xavier.default-gain")
def xavier_uniform_takes_the_deviation_for_the_bound(patch):
    """Forgets the square root of three."""
    patch.source(init.xavier_uniform_, "math.sqrt(3.0)", "1.0")


@mutant("init.xavier.uniform")
def xavier_uniform_ignores_gain(patch):
    """Takes no notice of gain."""
    patch.source(init.xavier_uniform_, "std = gain * ", "std = ")


@mutant("init.xavier.normal")
def xavier_normal_takes_fan_in_alone(patch):
    """Divides by twice fan_in, as LeCun's rule."""
    patch.source(init.xavier_normal_, "fan_in + fan_out", "fan_in + fan_in")


@mutant("init.xavier.default-gain")
def xavier_defaults_to_relu(patch):
    """Takes the gain of relu by default."""
    for name in ("xavier_uniform_", "xavier_normal_"):
        patch.wrap(init, name, lambda original, tensor, gain=2**0.5, **k: original(tensor, gain, **k))


@mutant("init.kaiming.uniform", "init.kaiming.sqrt-five", "init.kaiming.defaults")
def kaiming_uniform_takes_the_deviation_for_the_bound(patch):
    """Forgets the square root of three."""
    patch.source(init.kaiming_uniform_, "math.sqrt(3.0)", "1.0")


@mutant("init.kaiming.normal", "init.kaiming.defaults")
def kaiming_normal_divides_by_the_fan(patch):
    """Takes the variance for the deviation."""
    patch.source(init.kaiming_normal_, "math.sqrt(fan)", "fan")


@mutant("init.kaiming.defaults")
def kaiming_defaults_to_fan_out(patch):
    """Takes fan_out by default, as ResNets do."""

    def change(original, tensor, a=0, mode="fan_out", nonlinearity="leaky_relu", **kwargs):
        return original(tensor, a, mode, nonlinearity, **kwargs)

    for name in ("kaiming_uniform_", "kaiming_normal_"):
        patch.wrap(init, name, change)


@mutant("init.kaiming.nonlinearity")
def kaiming_always_takes_a_rectifier(patch):
    """Takes no notice of the nonlinearity."""
    patch.source(init.kaiming_uniform_, "calculate_gain(nonlinearity, a)", "calculate_gain('leaky_relu', a)")


@mutant("init.kaiming.sqrt-five")
def leaky_gain_forgets_to_square(patch):
    """Leaves the slope unsquared."""
    patch.source(init.calculate_gain, "negative_slope**2", "negative_slope")


@mutant("init.kaiming.no-elements")
def no_elements_go_unnoticed(patch):
    """Says nothing of a tensor without elements."""
    for name in ("kaiming_uniform_", "kaiming_normal_"):
        permissive(patch, name, lambda tensor: tensor.numel() == 0)


@mutant("init.gain.table")
def gain_of_tanh_is_one(patch):
    """Takes 1 for tanh."""
    patch.source(init.calculate_gain, "5.0 / 3", "1")


@mutant("init.gain.table")
def gain_defaults_to_a_slope_of_zero(patch):
    """Takes a slope of 0 for leaky_relu by default."""
    patch.source(init.calculate_gain, "0.01", "0.0")


@mutant("init.gain.unknown")
def unknown_gains_are_one(patch):
    """Gives 1 for whatever it does not know."""

    def change(original, *args):
        try:
            return original(*args)
        except ValueError:
            return 1.0

    patch.wrap(init, "calculate_gain", change)


@mutant("init.orthogonal.rows-or-columns")
def orthogonal_ignores_gain(patch):
    """Takes no notice of gain."""
    patch.source(init.orthogonal_, "tensor.mul_(gain)", "pass")


@mutant("init.orthogonal.rows-or-columns")
def orthogonal_is_normal(patch):
    """Skips the factorisation for wide matrices."""
    scaled(patch, "orthogonal_", 1.001)


@mutant("init.orthogonal.haar")
def orthogonal_keeps_the_signs_of_qr(patch):
    """Leaves the signs as the factorisation gives them: never uniform."""
    patch.source(init.orthogonal_, "q *= ph", "q = -q.abs()")


@mutant("init.orthogonal.too-few-dimensions")
def orthogonal_takes_a_vector(patch):
    """Takes a vector for a matrix of one row."""
    permissive(patch, "orthogonal_", lambda tensor: tensor.dim() < 2)


@mutant("init.sparse.zeros")
def sparse_rounds_down(patch):
    """Rounds the count of zeros down."""
    patch.source(init.sparse_, "math.ceil(sparsity * rows)", "int(sparsity * rows)")


@mutant("init.sparse.zeros")
def sparse_takes_the_fraction_of_the_rest(patch):
    """Takes the fraction for that of the elements to keep."""
    patch.source(init.sparse_, "math.ceil(sparsity * rows)", "math.ceil((1 - sparsity) * rows)")


@mutant("init.sparse.rows-at-random")
def sparse_zeroes_the_first_rows(patch):
    """Zeroes the same rows in every column."""
    patch.source(init.sparse_, "torch.randperm(rows)", "torch.arange(rows)")


@mutant("init.sparse.std")
def sparse_takes_a_variance(patch):
    """Takes 0.01 for the variance: the belief come true."""
    patch.source(init.sparse_, "normal_(0, std", "normal_(0, std ** 0.5")


@mutant("init.sparse.two-dimensions")
def sparse_and_eye_take_any_shape(patch):
    """Leaves other shapes as they are."""
    for name in ("sparse_", "eye_"):
        permissive(patch, name, lambda tensor: tensor.dim() != 2)


@mutant("init.identity.eye")
def eye_scales(patch):
    """Divides the ones by their number, as an averaging map."""

    def change(original, tensor):
        original(tensor)
        with torch.no_grad():
            return tensor.div_(min(tensor.shape))

    patch.wrap(init, "eye_", change)


@mutant("init.identity.dirac", "init.identity.dirac-convolution")
def dirac_marks_the_corner(patch):
    """Sets the one at the start of the kernel."""
    patch.source(init.dirac_, "tensor.size(2) // 2", "0")


@mutant("init.identity.dirac", "init.identity.dirac-convolution")
def dirac_ignores_groups(patch):
    """Takes no notice of groups."""
    patch.source(init.dirac_, "for g in range(groups)", "for g in range(1)")


@mutant("init.identity.dirac-errors")
def dirac_takes_any_groups(patch):
    """Accepts groups that do not divide the outputs."""
    patch.source(init.dirac_, "sizes[0] % groups != 0", "False")


@mutant("init.generator.own")
def generators_are_ignored(patch):
    """Draws from the global generator always."""
    for name in ("_no_grad_uniform_", "_no_grad_normal_"):
        patch.source(getattr(init, name), "generator=generator", "generator=None")


@mutant("init.generator.own")
def orthogonal_ignores_its_generator(patch):
    """Draws from the global generator always."""
    patch.source(init.orthogonal_, "generator=generator", "generator=None")


@mutant("init.generator.global")
def orthogonal_draws_from_a_fixed_seed(patch):
    """Draws from a generator of its own, the same at every call."""

    def change(original, tensor, gain=1, generator=None):
        return original(tensor, gain, generator=generator or torch.Generator().manual_seed(0))

    patch.wrap(init, "orthogonal_", change)


@mutant("init.layers.uniform")
def linear_takes_he_bounds(patch):
    """Draws the weight of Linear with slope 0, the default of kaiming_uniform_."""
    patch.source(nn.Linear.reset_parameters, "math.sqrt(5)", "0")


@mutant("init.layers.uniform")
def recurrent_layers_take_the_input_size(patch):
    """Draws the weights of recurrent layers within twice the bound."""
    patch.source(nn.RNNBase.reset_parameters, "1.0 / math.sqrt", "2.0 / math.sqrt")


@mutant("init.layers.uniform")
def convolutions_ignore_the_kernel(patch):
    """Takes the bias of convolutions within one over the root of the channels."""

    def change(layer):
        if layer.bias is not None:
            layer.bias.uniform_(-1, 1)

    reset(patch, nn.Conv2d.__mro__[1], change)


@mutant("init.layers.bias-is-not-zero")
def biases_start_at_zero(patch):
    """Zeroes the biases of linear layers: the belief come true."""
    reset(patch, nn.Linear, lambda layer: layer.bias.zero_() if layer.bias is not None else None)


@mutant("init.layers.bias-is-not-zero")
def recurrent_biases_start_at_zero(patch):
    """Zeroes the biases of recurrent layers, as Keras does."""

    def change(layer):
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.zero_()

    reset(patch, nn.RNNBase, change)


@mutant("init.layers.constant")
def batch_norm_starts_at_random(patch):
    """Draws the weight from [0, 1), as versions before 1.0 did."""
    reset(patch, nn.BatchNorm1d.__mro__[2], lambda m: m.weight.uniform_() if m.weight is not None else None)


@mutant("init.layers.constant")
def layer_norm_draws_first(patch):
    """Draws random numbers before it fills with ones."""
    patch.wrap(nn.LayerNorm, "reset_parameters", lambda original, layer: (torch.rand(1), original(layer))[1])


@mutant("init.layers.embedding")
def embedding_is_small(patch):
    """Draws with a deviation of 0.02, as GPT does."""
    for cls in (nn.Embedding, nn.EmbeddingBag):
        reset(patch, cls, lambda layer: layer.weight.mul_(0.02))


@mutant("init.layers.prelu")
def prelu_starts_at_a_hundredth(patch):
    """Starts at 0.01, the slope of LeakyReLU."""
    reset(patch, nn.PReLU, lambda layer: layer.weight.fill_(0.01))


@mutant("init.layers.attention")
def attention_draws_its_biases(patch):
    """Draws the biases of attention as Linear does."""
    reset(patch, nn.MultiheadAttention, lambda m: m.in_proj_bias.uniform_(), "_reset_parameters")


@mutant("init.layers.in-the-constructor")
def reset_draws_nothing(patch):
    """Draws in the constructor only, and ignores a second call."""

    def change(original, layer):
        if not getattr(layer, "drawn", False):
            original(layer)
        layer.drawn = True

    patch.wrap(nn.Linear, "reset_parameters", change)


@mutant("init.layers.dtype-and-device")
def groupnorm_forgets_its_dtype(patch):
    """Hands the device on to its parameters, but not the dtype."""
    patch.source(nn.GroupNorm.__init__, '"dtype": dtype', '"dtype": None')


@mutant("init.layers.dtype-and-device")
def cells_forget_their_device(patch):
    """Makes its parameters on the default device."""
    patch.source(nn.RNNCellBase.__init__, '"device": device', '"device": None')


@mutant("init.layers.seed", "init.layers.order")
def layers_draw_from_the_system(patch):
    """Seeds itself from the system at every layer."""
    patch.wrap(nn.Linear, "reset_parameters", lambda original, layer: (torch.seed(), original(layer))[1])


@mutant("init.layers.order")
def layers_draw_by_their_shape(patch):
    """Draws from a seed made of the layer's shape, so that equal layers start equal."""

    def change(original, layer):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash(tuple(layer.weight.shape)))
            original(layer)

    patch.wrap(nn.Linear, "reset_parameters", change)


@mutant("init.layers.skip")
def skip_init_initialises(patch):
    """Draws after all."""

    def change(original, cls, *args, **kwargs):
        layer = original(cls, *args, **kwargs)
        layer.reset_parameters()
        return layer

    patch.wrap(nn.utils, "skip_init", change)


@mutant("init.layers.apply")
def apply_visits_parents_first(patch):
    """Calls the function on a module before its children."""

    def change(original, module, fn):
        for child in module.modules():
            fn(child)
        return module

    patch.wrap(nn.Module, "apply", change)


@mutant("init.rng.negative-seed")
def negative_seeds_follow_the_formula(patch):
    """Adds 2^64 - 1, as the documentation's formula says: the belief come true."""

    def change(original, seed):
        return original(seed + 0xFFFF_FFFF_FFFF_FFFF if seed < 0 else seed)

    patch.wrap(torch, "manual_seed", change)


@mutant("init.rng.state")
def set_rng_state_moves_on(patch):
    """Draws a number after setting the state."""
    patch.wrap(torch, "set_rng_state", lambda original, state: (original(state), torch.rand(1))[0])


@mutant("init.rng.fork")
def fork_rng_does_not_restore(patch):
    """Leaves the state as the block made it."""
    import contextlib

    patch.set(torch.random, "fork_rng", lambda *args, **kwargs: contextlib.nullcontext())


@mutant("init.rng.deterministic-fill")
def new_memory_is_left_as_it_is(patch):
    """Does not fill new memory."""
    patch.wrap(torch, "empty", lambda original, *args, **kwargs: original(*args, **kwargs).zero_())


@mutant("init.truncnormal.far-tail")
def trunc_normal_by_the_inverse_alone(patch):
    """Inverts the distribution function in the tensor's precision, as torch did up to 2.11."""

    def fill(original, tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):
        if a < mean + 4 * std:
            return original(tensor, mean, std, a, b, generator=generator)
        with torch.no_grad():
            return tensor.fill_(1.0).erfinv_().clamp_(min=a, max=b)

    patch.wrap(nn.init, "trunc_normal_", fill)


@mutant("init.functions.defaults")
def orthogonal_stretches_by_default(patch):
    """Takes the gain of ReLU for the default."""
    patch.wrap(init, "orthogonal_", lambda original, x, gain=2**0.5, **more: original(x, gain, **more))


@mutant("init.truncnormal.far-bounds")
def trunc_normal_inverts_in_the_tensor(patch):
    """Inverts the distribution function in the tensor's own precision, where a uniform draw may round to one."""

    def fill(original, tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):
        if tensor.dtype not in (torch.bfloat16, torch.float16):
            return original(tensor, mean, std, a, b, generator=generator)
        with torch.no_grad():
            return tensor.uniform_(-1, 1, generator=generator).erfinv_().mul_(std * 2**0.5).add_(mean).clamp_(a, b)

    patch.wrap(nn.init, "trunc_normal_", fill)


@mutant("init.truncnormal.warns-of-a-far-mean")
def far_means_are_taken_in_silence(patch):
    """Looks at one of the bounds alone."""
    patch.source(init._no_grad_trunc_normal_, " or (mean > b + 2 * std)", "")


@mutant("init.layers.any-memory-format")
def convolutions_draw_in_the_order_of_memory(patch):
    """Draws in the order in which the weight lies in memory, as torch did until 2.11."""
    patch.source(nn.modules.conv._ConvNd.reset_parameters, "not self.weight.is_contiguous()", "False")


@mutant("init.rng.bernoulli")
def one_probability_for_all(patch):
    """Draws every element by the mean of the probabilities."""

    def drawn(original, p, *args, **options):
        return original(p if args else p.mean().expand_as(p), *args, **options)

    patch.wrap(torch, "bernoulli", drawn)


@mutant("init.rng.bernoulli")
def certainty_sometimes_misses(patch):
    """Takes a probability of one for the number next to it."""

    def filled(original, x, p=0.5, **options):
        return original(x, p.clamp(max=0.999) if isinstance(p, torch.Tensor) else p, **options)

    patch.wrap(torch.Tensor, "bernoulli_", filled)


@mutant("init.rng.generator-of-each-draw")
def bernoulli_draws_from_the_global_generator(patch):
    """Drops the generator on the way to the kernel."""
    patch.wrap(torch.Tensor, "bernoulli_", lambda original, x, *p, generator=None: original(x, *p))


@mutant("init.rng.upper-bound")
def the_upper_bound_is_drawn(patch):
    """Rounds what is drawn to the nearest number, which may be the bound."""

    def fill(original, x, low=0.0, high=1.0, **options):
        return x.copy_(original(torch.empty_like(x, dtype=torch.float64), low, high, **options).bfloat16())

    patch.wrap(torch.Tensor, "uniform_", fill)


@mutant("init.rng.cauchy")
def scales_have_no_sign(patch):
    """Takes the magnitude of the scale."""
    patch.wrap(torch.Tensor, "cauchy_", lambda original, x, median, sigma: original(x, median, abs(sigma) or 1.0))


@mutant("init.rng.permutation")
def permutations_are_rounded(patch):
    """Permutes whole numbers and converts them to the dtype."""
    patch.wrap(torch, "randperm", lambda original, n, dtype=torch.int64, **o: original(n, **o).to(dtype))


@mutant("init.rng.distributions")
def rates_are_means(patch):
    """Takes the rate for the mean."""
    patch.wrap(torch.Tensor, "exponential_", lambda original, x, rate: original(x, 1 / rate if rate > 0 else rate))


@mutant("init.rng.exponential")
def rates_have_no_sign(patch):
    """Takes the magnitude of the rate, and one for none."""
    patch.wrap(torch.Tensor, "exponential_", lambda original, x, rate=1.0, **o: original(x, abs(rate) or 1.0, **o))
