"""Stacked denoising autoencoder: corruption, losses by hand, tied gradients, constant targets, reconstruction, sampling."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pretask import encoders
from pretask.methods import sdae
from pretask.methods.base.context import Context
from pretask.rng import Rng
from pretask.train.plan import Plan
from pretask.types import Batch, UserError

SMALL = "mlp:width=16"


class ImageSource:
    """Images in memory."""

    name, provides, bad = "pictures", frozenset(), {}

    def __init__(self, image: Tensor):
        self.image, self.channels, self.size = image, image.shape[1], image.shape[-1]

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.image[index])


def pictures(n: int = 8, channels: int = 1, size: int = 28) -> ImageSource:
    return ImageSource(Rng(0, "pictures").integers(n, channels, size, size, high=256).to(torch.uint8))


def build(encoder: str, source: ImageSource, config: sdae.Config | None = None, seed: int = 0):
    torch.manual_seed(seed)
    config = config or sdae.Config()
    return config.build(encoders.build(encoder, source.channels, source.size), source).train()


def at_epoch(method: sdae.StackedDenoising, epoch: int, epochs: int):
    progress = Plan.of(epochs, 1, epochs).at(epoch)
    method.begin_epoch(Context(pictures(1), [], progress, Rng(0)))
    return method


def whole_batch(source: ImageSource) -> Batch:
    return source.__getitems__(torch.arange(len(source)))


# ---- noise


def test_masking_sets_the_exact_fraction_to_0_and_keeps_the_rest():
    x = Rng(1).uniform(50, 1, 28, 28, low=0.1)
    corrupted, mask = sdae.corrupt(x, "masking", 0.25, Rng(2))
    assert (mask.sum(1) == 196).all()
    assert torch.equal(corrupted.flatten(1)[mask], torch.zeros(50 * 196))
    assert torch.equal(corrupted.flatten(1)[~mask], x.flatten(1)[~mask])  # not scaled up by 1/(1-ν)
    assert len(mask.unique(dim=0)) == 50  # drawn per image


def test_mask_includes_components_whose_value_did_not_change():
    dark = torch.zeros(5, 1, 28, 28)  # masking changes nothing here, salt and pepper changes half
    for noise in ("masking", "salt_and_pepper"):
        _, mask = sdae.corrupt(dark, noise, 0.25, Rng(2))
        assert (mask.sum(1) == 196).all()


def test_without_exact_the_fraction_holds_only_on_average():
    _, mask = sdae.corrupt(torch.ones(500, 784), "masking", 0.25, Rng(2), exact=False)
    std = math.sqrt(0.25 * 0.75 / 784)
    fraction = mask.float().mean(1)
    assert abs(fraction.mean() - 0.25) < 4 * std / math.sqrt(500)
    assert 0.8 * std < fraction.std() < 1.2 * std


@pytest.mark.parametrize("noise", ["masking", "salt_and_pepper", "gaussian"])
@pytest.mark.parametrize("exact", [True, False])
def test_corruption_level_0_returns_the_input(noise, exact):
    x = Rng(1).uniform(4, 3, 8, 8)
    assert torch.equal(sdae.corrupt(x, noise, 0.0, Rng(2), exact)[0], x)


def test_salt_and_pepper_are_the_extremes_with_equal_probability():
    x = Rng(1).uniform(100, 784, low=0.1, high=0.9)
    corrupted, mask = sdae.corrupt(x, "salt_and_pepper", 0.25, Rng(2))
    values = corrupted[mask]
    assert set(values.unique().tolist()) == {0.0, 1.0}
    assert abs(values.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(values))
    unbounded, mask = sdae.corrupt(10 * x - 5, "salt_and_pepper", 0.25, Rng(2), bounded=False)
    rows = 10 * x - 5
    extremes = torch.stack([rows.amin(1), rows.amax(1)], 1)  # (B, 2)
    for row, where, pair in zip(unbounded, mask, extremes, strict=True):
        assert set(row[where].tolist()) == set(pair.tolist())


def test_gaussian_noise_has_its_standard_deviation_and_corrupts_all_components():
    x = Rng(1).uniform(200, 784)
    corrupted, mask = sdae.corrupt(x, "gaussian", 0.3, Rng(2))
    residual = corrupted - x
    assert abs(residual.std() / 0.3 - 1) < 0.02
    assert abs(residual.mean()) < 0.01
    assert mask.all()


def test_masked_pixels_lose_all_channels():
    _, mask = sdae.corrupt(Rng(1).uniform(6, 3, 8, 8), "masking", 0.25, Rng(2))
    of_pixel = mask.view(6, 3, 64)
    assert (of_pixel.sum(2) == 16).all()
    assert torch.equal(of_pixel[:, 0], of_pixel[:, 1])
    assert torch.equal(of_pixel[:, 0], of_pixel[:, 2])


# ---- loss


@pytest.mark.parametrize("value", [0, 77, 255])
def test_outputs_of_one_half_have_loss_784_ln_2_for_every_image(value):
    source = ImageSource(torch.full((3, 1, 28, 28), value, dtype=torch.uint8))
    method = build(SMALL, source)
    for p in method.parameters():
        nn.init.zeros_(p)
    total = method.loss(method.pretext(whole_batch(source), Rng(1))).total
    assert_close(total.item(), 543.43, atol=0.01, rtol=0)


def test_both_losses_match_the_paper_formulas():
    output, clean = Rng(1).normal(3, 5), Rng(2).uniform(3, 5)
    mask = Rng(3).coin(3, 5, p=0.5)
    z = output.sigmoid()
    entropy = squared = 0.0
    for i in range(3):
        for j in range(5):
            weight, x = (1.0 if mask[i, j] else 0.5), clean[i, j]
            entropy -= weight * (x * z[i, j].log() + (1 - x) * (1 - z[i, j]).log()) / 3
            squared += weight * (x - output[i, j]) ** 2 / 3
    assert_close(
        sdae.emphasized_loss(sdae.reconstruction_errors(output, clean, True), mask, 1.0, 0.5),
        torch.as_tensor(entropy),
    )
    assert_close(
        sdae.emphasized_loss(sdae.reconstruction_errors(output, clean, False), mask, 1.0, 0.5),
        torch.as_tensor(squared),
    )


def test_full_emphasis_gives_no_gradient_to_uncorrupted_components():
    output, clean = Rng(1).normal(3, 20).requires_grad_(), Rng(2).uniform(3, 20)
    mask = Rng(3).coin(3, 20, p=0.5)
    sdae.emphasized_loss(sdae.reconstruction_errors(output, clean, True), mask, 1.0, 0.0).backward()
    assert output.grad is not None
    assert (output.grad[~mask] == 0).all()
    assert (output.grad[mask] != 0).all()


def test_equal_emphasis_is_the_plain_loss():
    output, clean = Rng(1).normal(3, 20), Rng(2).uniform(3, 20)
    each = sdae.reconstruction_errors(output, clean, True)
    assert_close(sdae.emphasized_loss(each, Rng(3).coin(3, 20, p=0.5), 1.0, 1.0), each.sum(1).mean())


def test_target_of_the_first_layer_is_the_clean_image():
    source = pictures()
    p = build(SMALL, source).pretext(whole_batch(source), Rng(1))
    assert torch.equal(p.clean, source.image.flatten(1) / 255)
    assert not torch.equal(p.corrupted.flatten(1), p.clean)


# ---- tied weights and sizes


def test_tied_gradient_is_the_sum_of_encoder_and_decoder_gradients():
    source = pictures()
    tied = build(SMALL, source, sdae.Config(tied=True))
    free = build(SMALL, source, sdae.Config(tied=False))
    weight = tied.encoder.net[0][1].weight
    assert sum(p is weight for p in tied.parameters()) == 1
    assert "decoders.0.weight" not in tied.state_dict()
    free.load_state_dict(tied.state_dict(), strict=False)
    free.decoders[0].weight.data = weight.data.T.clone()
    for method in (tied, free):
        method.loss(method.pretext(whole_batch(source), Rng(1))).total.backward()
    assert_close(weight.grad, free.encoder.net[0][1].weight.grad + free.decoders[0].weight.grad.T)


def test_networks_have_the_parameter_counts_of_the_reference():
    source = pictures(1)
    method = build("mlp", source)
    first = [*method.encoder.net[0].parameters(), *method.decoders[0].parameters()]
    assert sum(p.numel() for p in first) == 785_784
    classifier = sum(p.numel() for p in method.export().parameters()) + 1000 * 10 + 10
    assert classifier == 2_797_010


def test_sigmoid_layers_are_initialized_like_the_reference_and_get_unnormalized_pixels():
    encoder = build("mlp", pictures(1)).encoder
    for linear, fan in ((encoder.net[0][1], 1784), (encoder.net[1][0], 2000)):
        bound = 4 * math.sqrt(6 / fan)
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert abs(linear.weight.std() / (bound / math.sqrt(3)) - 1) < 0.02
        assert (linear.bias == 0).all()
    assert (encoder.mean.item(), encoder.std.item()) == (0.0, 1.0)


# ---- layer by layer


def test_layers_are_trained_for_equally_many_epochs():
    method = build(SMALL, pictures())
    assert [int(at_epoch(method, e, 6).stage) for e in range(6)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match="--rounds 3"):
        at_epoch(method, 0, 2)


@pytest.mark.parametrize("encoder", [SMALL, "resnet_small:width=8"])
def test_input_of_the_second_layer_is_the_encoder_output_for_clean_images(encoder):
    source = pictures(channels=3, size=16)
    method = at_epoch(build(encoder, source, sdae.Config(corruption_level=(0.5,))), 1, 4)
    method.stage.fill_(1)
    first, second = (method.pretext(whole_batch(source), Rng(seed)) for seed in (1, 2))
    assert torch.equal(first.clean, second.clean)
    assert not torch.equal(first.corrupted, second.corrupted)
    with torch.no_grad():
        made = next(iter(copy.deepcopy(method.encoder).eval()(source.image / 255).values()))
    assert_close(first.clean, made.flatten(1))


@pytest.mark.parametrize("encoder", [SMALL, "resnet_small:width=8"])
def test_only_the_layer_in_training_changes_and_its_targets_are_constant(encoder):
    source = pictures(channels=3, size=16)
    method = build(encoder, source)
    method.stage.fill_(1)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, weight_decay=0.1)
    target = method.pretext(whole_batch(source), Rng(1)).clean
    before = {k: v.clone() for k, v in method.state_dict().items()}
    for step in range(3):
        optimizer.zero_grad()
        method.loss(method.pretext(whole_batch(source), Rng(step))).total.backward()
        optimizer.step()
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    own = list(method.encoder.net.named_children())[1][0]
    assert moved
    assert all(k.startswith((f"encoder.net.{own}.", "decoders.1.")) for k in moved), moved
    assert torch.equal(method.pretext(whole_batch(source), Rng(1)).clean, target)
    assert all(m.training for m in method.modules())


def test_every_parameter_is_trained_in_some_stage():
    source = pictures()
    method = build(SMALL, source)
    for stage in range(3):
        method.stage.fill_(stage)
        method.loss(method.pretext(whole_batch(source), Rng(1))).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_a_restored_state_continues_with_the_same_layer():
    source = pictures(channels=3, size=16)
    method = at_epoch(build("resnet_small:width=8", source), 2, 4)
    resumed = build("resnet_small:width=8", source, seed=1)
    resumed.load_state_dict(method.state_dict())
    costs = [m.loss(m.pretext(whole_batch(source), Rng(3))).total for m in (method, resumed)]
    assert costs[0] == costs[1]
    assert int(resumed.stage) == 2


def test_the_exported_encoder_is_deterministic():
    source = pictures()
    encoder = build(SMALL, source).export().eval()
    assert torch.equal(encoder(source.image / 255)["pool"], encoder(source.image / 255)["pool"])


@pytest.mark.parametrize(("encoder", "count"), [("resnet18", 5), ("convnext_atto", 4), ("nin3:width=12", 3)])
def test_any_chain_of_layers_can_be_trained(encoder, count):
    source = pictures(4, channels=3, size=32)
    method = build(encoder, source)
    assert len(method.decoders) == count
    for stage in range(count):
        method.stage.fill_(stage)
        p = method.pretext(whole_batch(source), Rng(1))
        method.loss(p).total.backward()
        assert method.predict(p)["image"].shape == source.image.shape
    assert all(p.grad is not None for p in method.decoders.parameters())


def test_an_encoder_that_is_not_a_chain_is_a_user_error():
    source = pictures(1, channels=3, size=32)
    with pytest.raises(UserError, match="is not a chain of layers"):
        build("vit_tiny_patch16_224:patch_size=8", source)


def test_corruption_levels_are_one_or_one_per_layer():
    source = pictures(1)
    with pytest.raises(UserError, match="--corruption-level has 2 values for the 3 layers"):
        build(SMALL, source, sdae.Config(corruption_level=(0.1, 0.2)))
    method = build(SMALL, pictures(), sdae.Config(corruption_level=(0.5, 0.25, 1.0)))
    for stage, count in enumerate((392, 4, 16)):
        method.stage.fill_(stage)
        assert (method.pretext(whole_batch(pictures()), Rng(1)).mask.sum(1) == count).all()


# ---- reconstruction


def test_best_linear_denoiser_of_uncorrelated_components_is_diagonal():
    """With 1 for masking and σx²/(σx²+σ²) for Gaussian noise."""
    x = Rng(1).normal(100_000, 4) * torch.tensor([0.5, 1.0, 1.5, 2.0])
    for noise, level in (("masking", 0.25), ("gaussian", 1.0)):
        corrupted, _ = sdae.corrupt(x, noise, level, Rng(2), exact=False, bounded=False)
        best = torch.linalg.lstsq(corrupted, x).solution  # (4, 4)
        variance = torch.tensor([0.25, 1.0, 2.25, 4.0])
        expected = torch.ones(4) if noise == "masking" else variance / (variance + 1)
        assert_close(best, torch.diag(expected), atol=0.03, rtol=0)


def test_unseen_digits_are_reconstructed_better_than_the_corrupted_input(shared_data):
    digits = torch.from_numpy(np.load(shared_data("clustering", "mnist_test3k.npz"))["images"])[:, None]
    seen, unseen = ImageSource(digits[:2000]), ImageSource(digits[2000:])
    method = build("mlp:width=256,depth=1", seen, sdae.Config(noise="masking", corruption_level=(0.25,)))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(200):
        index = Rng(0, "batch", step).integers(64, high=2000)
        optimizer.zero_grad()
        method.loss(method.pretext(seen.__getitems__(index), Rng(0, "pretext", step))).total.backward()
        optimizer.step()
    p = method.eval().pretext(whole_batch(unseen), Rng(0, "held out"))
    parts = method.loss(p).parts
    assert parts["output_mse"] < 0.85 * parts["input_mse"]
    assert_close(((method.predict(p)["image"] - p.image) ** 2).mean(), parts["output_mse"])


def test_layers_divide_the_schedule_evenly_in_an_extended_run():
    method = build("mlp:width=8,depth=3", pictures())
    plan = Plan.of(12, 1).changed(6, 106)  # one step per epoch, half of the schedule in the first six
    stages = []
    for step in range(106):
        method.begin_epoch(Context(pictures(1), [], plan.at(step), Rng(0)))
        stages.append(int(method.stage))
    assert [stages.index(layer) for layer in range(3)] == [0, 4, 40]


# ---- sampling from the stack


def scaled(method: sdae.StackedDenoising, factor: float) -> sdae.StackedDenoising:
    """Scales all encoder weights and sets random biases; with a large factor, units saturate at 0 or 1."""
    with torch.no_grad():
        for layer in method.encoder.net:
            for linear in (m for m in layer if isinstance(m, nn.Linear)):
                linear.weight *= factor
                linear.bias.copy_(Rng(5, "bias").normal(len(linear.bias)))
        for s, decoder in enumerate(method.decoders):
            decoder.bias.copy_(Rng(6, "bias", s).normal(len(decoder.bias)))
    method.stage.fill_(2)
    return method.eval()


def layer_weights(method: sdae.StackedDenoising) -> list[tuple[Tensor, Tensor, Tensor]]:
    """W, b and b' of each layer."""
    linears = [m for m in method.encoder.net.modules() if isinstance(m, nn.Linear)]
    return [(m.weight, m.bias, d.bias) for m, d in zip(linears, method.decoders, strict=True)]


def test_samples_are_determined_by_the_rng_and_differ():
    source = pictures()
    method, image = scaled(build(SMALL, source), 1.0), source.image / 255
    with torch.no_grad():
        one, again, other = (method.sample(image, Rng(seed)) for seed in (1, 1, 2))
    assert one.shape == image.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, again)
    assert ((one - other).flatten(1).abs().amax(1) > 0.01).all()


def test_sample_of_saturated_units_matches_the_formula_in_loops():
    """Up W x + b, down Wᵀ y + b', unit by unit; with codes of 0 and 1 the sample is deterministic."""
    source = pictures(2)
    method = scaled(build(SMALL, source), 1000.0)
    with torch.no_grad():
        found = method.sample(source.image / 255, Rng(1)).flatten(1)
        for i, x in enumerate(source.image.flatten(1) / 255):
            for w, b, _ in layer_weights(method):
                x = torch.tensor([1.0 if float(w[j] @ x + b[j]) > 0 else 0.0 for j in range(len(b))])
            for w, _, back in reversed(layer_weights(method)):
                x = torch.stack([torch.sigmoid(w[:, j] @ x + back[j]) for j in range(len(back))])
            assert_close(found[i], x)


def test_units_of_a_code_are_sampled_independently_from_their_probabilities():
    """4,000 samples of a one-layer stack: the mean and variance of the logits are those of Bernoulli units."""
    source = ImageSource(pictures(1).image.repeat(4000, 1, 1, 1))
    method = build("mlp:width=16,depth=1", source).eval()
    with torch.no_grad():
        method.encoder.net[0][1].weight *= 0.1
        drawn = torch.logit(method.sample(source.image / 255, Rng(1)).double()).flatten(1)
        ((w, b, back),) = layer_weights(method)
        p = torch.sigmoid(w @ (source.image[0].flatten() / 255) + b)
    variance = (w**2 * (p * (1 - p))[:, None]).sum(0)
    assert ((drawn.mean(0) - (p @ w + back)).abs() < 5 * (variance / 4000).sqrt() + 1e-6).all()
    assert_close(drawn.var(0), variance.double(), rtol=0.2, atol=1e-7)


def test_codes_of_lower_layers_are_sampled_too():
    """With saturated units only at the top, samples differ because of the lower layers."""
    source = pictures(1)
    method = scaled(build(SMALL, source), 1.0)
    with torch.no_grad():
        top = [m for m in method.encoder.net.modules() if isinstance(m, nn.Linear)][-1]
        top.bias.fill_(1000.0)
        samples = torch.cat([method.sample(source.image / 255, Rng(seed)) for seed in range(20)])
        (w3, _, back3), (w2, _, back2), (w1, _, back1) = reversed(layer_weights(method))
        two = torch.sigmoid(torch.ones(len(w3)) @ w3 + back3)  # probabilities of the second code
        one = torch.sigmoid(two @ w2 + back2)
        mean = torch.sigmoid(one @ w1 + back1).view(1, 1, 28, 28)
    assert (samples - mean).abs().amax() > 0.05
    assert len({tuple(x.flatten().tolist()) for x in samples}) == 20


def test_gallery_shows_images_and_samples_for_sigmoid_stacks_only():
    source = pictures(3)
    made = scaled(build(SMALL, source), 1.0).gallery(source.image / 255, Rng(1))
    assert made is not None
    assert list(made.columns) == ["image", *(f"sample {i}" for i in range(1, 7))]
    assert torch.equal(made.columns["image"], source.image / 255)
    assert not torch.equal(made.columns["sample 1"], made.columns["sample 2"])
    colored = pictures(3, channels=3, size=16)
    assert build("resnet_small:width=8", colored).gallery(colored.image / 255, Rng(1)) is None
