"""Stacked denoising: exact noise, the loss by hand, tied gradients, targets that stand still, and it restores."""

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


class Pictures:
    """Images in memory."""

    name, provides, bad = "pictures", frozenset(), {}

    def __init__(self, image: Tensor):
        self.image, self.channels, self.size = image, image.shape[1], image.shape[-1]

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, index: Tensor) -> Batch:
        return Batch(index, self.image[index])


def pictures(n: int = 8, channels: int = 1, size: int = 28) -> Pictures:
    return Pictures(Rng(0, "pictures").integers(n, channels, size, size, high=256).to(torch.uint8))


def built(encoder: str, source: Pictures, config: sdae.Config | None = None, seed: int = 0):
    torch.manual_seed(seed)
    config = config or sdae.Config()
    return config.build(encoders.build(encoder, source.channels, source.size), source).train()


def at(method: sdae.StackedDenoising, epoch: int, epochs: int):
    progress = Plan.of(epochs, 1, epochs).at(epoch)
    method.begin_epoch(Context(pictures(1), [], progress, Rng(0)))
    return method


def everything(source: Pictures) -> Batch:
    return source.__getitems__(torch.arange(len(source)))


# ---- noise


def test_masking_hides_exactly_the_share_and_leaves_the_rest_bit_for_bit():
    x = Rng(1).uniform(50, 1, 28, 28, low=0.1)
    damaged, chosen = sdae.damage(x, "masking", 0.25, Rng(2))
    assert (chosen.sum(1) == 196).all()
    assert torch.equal(damaged.flatten(1)[chosen], torch.zeros(50 * 196))
    assert torch.equal(damaged.flatten(1)[~chosen], x.flatten(1)[~chosen])  # not scaled up by 1/(1-ν)
    assert len(chosen.unique(dim=0)) == 50  # every image its own places


def test_what_was_chosen_does_not_depend_on_what_it_changed():
    dark = torch.zeros(5, 1, 28, 28)  # masking changes nothing here, salt and pepper half
    for noise in ("masking", "salt_and_pepper"):
        _, chosen = sdae.damage(dark, noise, 0.25, Rng(2))
        assert (chosen.sum(1) == 196).all()


def test_by_coins_the_share_holds_on_average_only():
    _, chosen = sdae.damage(torch.ones(500, 784), "masking", 0.25, Rng(2), exact=False)
    spread = math.sqrt(0.25 * 0.75 / 784)
    share = chosen.float().mean(1)
    assert abs(share.mean() - 0.25) < 4 * spread / math.sqrt(500)
    assert 0.8 * spread < share.std() < 1.2 * spread


@pytest.mark.parametrize("noise", ["masking", "salt_and_pepper", "gaussian"])
@pytest.mark.parametrize("exact", [True, False])
def test_no_noise_gives_the_input_bit_for_bit(noise, exact):
    x = Rng(1).uniform(4, 3, 8, 8)
    assert torch.equal(sdae.damage(x, noise, 0.0, Rng(2), exact)[0], x)


def test_salt_and_pepper_are_the_extremes_by_a_fair_coin():
    x = Rng(1).uniform(100, 784, low=0.1, high=0.9)
    damaged, chosen = sdae.damage(x, "salt_and_pepper", 0.25, Rng(2))
    values = damaged[chosen]
    assert set(values.unique().tolist()) == {0.0, 1.0}
    assert abs(values.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(values))
    unbounded, chosen = sdae.damage(10 * x - 5, "salt_and_pepper", 0.25, Rng(2), bounded=False)
    rows = 10 * x - 5
    extremes = torch.stack([rows.amin(1), rows.amax(1)], 1)  # (B, 2)
    for row, where, pair in zip(unbounded, chosen, extremes, strict=True):
        assert set(row[where].tolist()) == set(pair.tolist())


def test_gaussian_noise_has_its_width_and_falls_on_everything():
    x = Rng(1).uniform(200, 784)
    damaged, chosen = sdae.damage(x, "gaussian", 0.3, Rng(2))
    residual = damaged - x
    assert abs(residual.std() / 0.3 - 1) < 0.02
    assert abs(residual.mean()) < 0.01
    assert chosen.all()


def test_a_hidden_pixel_loses_all_its_colours():
    _, chosen = sdae.damage(Rng(1).uniform(6, 3, 8, 8), "masking", 0.25, Rng(2))
    of_pixel = chosen.view(6, 3, 64)
    assert (of_pixel.sum(2) == 16).all()
    assert torch.equal(of_pixel[:, 0], of_pixel[:, 1])
    assert torch.equal(of_pixel[:, 0], of_pixel[:, 2])


# ---- loss


@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_output_of_one_half_costs_784_ln_2_whatever_the_image(value):
    source = Pictures(torch.full((3, 1, 28, 28), value, dtype=torch.uint8))
    method = built(SMALL, source)
    for p in method.parameters():
        nn.init.zeros_(p)
    total = method.loss(method.pretext(everything(source), Rng(1))).total
    assert_close(total.item(), 543.43, atol=0.01, rtol=0)


def test_both_errors_are_the_sums_that_the_paper_prints():
    output, clean = Rng(1).normal(3, 5), Rng(2).uniform(3, 5)
    chosen = Rng(3).coin(3, 5, p=0.5)
    z = output.sigmoid()
    entropy = squared = 0.0
    for i in range(3):
        for j in range(5):
            weight, x = (1.0 if chosen[i, j] else 0.5), clean[i, j]
            entropy -= weight * (x * z[i, j].log() + (1 - x) * (1 - z[i, j]).log()) / 3
            squared += weight * (x - output[i, j]) ** 2 / 3
    assert_close(
        sdae.emphasised(sdae.errors(output, clean, True), chosen, 1.0, 0.5), torch.as_tensor(entropy)
    )
    assert_close(
        sdae.emphasised(sdae.errors(output, clean, False), chosen, 1.0, 0.5), torch.as_tensor(squared)
    )


def test_full_emphasis_gives_no_gradient_to_what_was_not_damaged():
    output, clean = Rng(1).normal(3, 20).requires_grad_(), Rng(2).uniform(3, 20)
    chosen = Rng(3).coin(3, 20, p=0.5)
    sdae.emphasised(sdae.errors(output, clean, True), chosen, 1.0, 0.0).backward()
    assert output.grad is not None
    assert (output.grad[~chosen] == 0).all()
    assert (output.grad[chosen] != 0).all()


def test_even_emphasis_is_the_plain_loss():
    output, clean = Rng(1).normal(3, 20), Rng(2).uniform(3, 20)
    each = sdae.errors(output, clean, True)
    assert_close(sdae.emphasised(each, Rng(3).coin(3, 20, p=0.5), 1.0, 1.0), each.sum(1).mean())


def test_the_target_is_the_clean_image():
    source = pictures()
    p = built(SMALL, source).pretext(everything(source), Rng(1))
    assert torch.equal(p.clean, source.image.flatten(1) / 255)
    assert not torch.equal(p.damaged.flatten(1), p.clean)


# ---- tied weights and sizes


def test_a_tied_gradient_is_the_sum_of_both_ways():
    source = pictures()
    tied = built(SMALL, source, sdae.Config(tied=True))
    free = built(SMALL, source, sdae.Config(tied=False))
    weight = tied.encoder.net[0][1].weight
    assert sum(p is weight for p in tied.parameters()) == 1
    assert "decoders.0.weight" not in tied.state_dict()
    free.load_state_dict(tied.state_dict(), strict=False)
    free.decoders[0].weight.data = weight.data.T.clone()
    for method in (tied, free):
        method.loss(method.pretext(everything(source), Rng(1))).total.backward()
    assert_close(weight.grad, free.encoder.net[0][1].weight.grad + free.decoders[0].weight.grad.T)


def test_the_nets_have_the_sizes_of_the_reference():
    source = pictures(1)
    method = built("mlp", source)
    first = [*method.encoder.net[0].parameters(), *method.decoders[0].parameters()]
    assert sum(p.numel() for p in first) == 785_784
    classifier = sum(p.numel() for p in method.export().parameters()) + 1000 * 10 + 10
    assert classifier == 2_797_010


def test_sigmoid_layers_start_as_the_reference_does_and_see_plain_pixels():
    encoder = built("mlp", pictures(1)).encoder
    for linear, fan in ((encoder.net[0][1], 1784), (encoder.net[1][0], 2000)):
        bound = 4 * math.sqrt(6 / fan)
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert abs(linear.weight.std() / (bound / math.sqrt(3)) - 1) < 0.02
        assert (linear.bias == 0).all()
    assert (encoder.mean.item(), encoder.std.item()) == (0.0, 1.0)


# ---- layer after layer


def test_layers_take_turns_of_equal_length():
    method = built(SMALL, pictures())
    assert [int(at(method, e, 6).stage) for e in range(6)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match="--rounds 3"):
        at(method, 0, 2)


@pytest.mark.parametrize("encoder", [SMALL, "resnet_small:width=8"])
def test_the_second_layer_is_given_what_the_encoder_makes_of_clean_images(encoder):
    source = pictures(channels=3, size=16)
    method = at(built(encoder, source, sdae.Config(amount=(0.5,))), 1, 4)
    method.stage.fill_(1)
    first, second = (method.pretext(everything(source), Rng(seed)) for seed in (1, 2))
    assert torch.equal(first.clean, second.clean)
    assert not torch.equal(first.damaged, second.damaged)
    with torch.no_grad():
        made = next(iter(copy.deepcopy(method.encoder).eval()(source.image / 255).values()))
    assert_close(first.clean, made.flatten(1))


@pytest.mark.parametrize("encoder", [SMALL, "resnet_small:width=8"])
def test_while_a_layer_learns_no_other_moves_and_its_targets_stand_still(encoder):
    source = pictures(channels=3, size=16)
    method = built(encoder, source)
    method.stage.fill_(1)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, weight_decay=0.1)
    target = method.pretext(everything(source), Rng(1)).clean
    before = {k: v.clone() for k, v in method.state_dict().items()}
    for step in range(3):
        optimizer.zero_grad()
        method.loss(method.pretext(everything(source), Rng(step))).total.backward()
        optimizer.step()
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    own = list(method.encoder.net.named_children())[1][0]
    assert moved
    assert all(k.startswith((f"encoder.net.{own}.", "decoders.1.")) for k in moved), moved
    assert torch.equal(method.pretext(everything(source), Rng(1)).clean, target)
    assert all(m.training for m in method.modules())


def test_every_parameter_learns_in_some_turn():
    source = pictures()
    method = built(SMALL, source)
    for stage in range(3):
        method.stage.fill_(stage)
        method.loss(method.pretext(everything(source), Rng(1))).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_a_state_restored_in_the_middle_of_a_turn_goes_on_with_that_layer():
    source = pictures(channels=3, size=16)
    method = at(built("resnet_small:width=8", source), 2, 4)
    resumed = built("resnet_small:width=8", source, seed=1)
    resumed.load_state_dict(method.state_dict())
    costs = [m.loss(m.pretext(everything(source), Rng(3))).total for m in (method, resumed)]
    assert costs[0] == costs[1]
    assert int(resumed.stage) == 2


def test_the_exported_encoder_has_no_noise_left():
    source = pictures()
    encoder = built(SMALL, source).export().eval()
    assert torch.equal(encoder(source.image / 255)["pool"], encoder(source.image / 255)["pool"])


@pytest.mark.parametrize(("encoder", "count"), [("resnet18", 5), ("convnext_atto", 4), ("nin3:width=12", 3)])
def test_any_chain_of_layers_can_be_trained(encoder, count):
    source = pictures(4, channels=3, size=32)
    method = built(encoder, source)
    assert len(method.decoders) == count
    for stage in range(count):
        method.stage.fill_(stage)
        p = method.pretext(everything(source), Rng(1))
        method.loss(p).total.backward()
        assert method.solve(p)["image"].shape == source.image.shape
    assert all(p.grad is not None for p in method.decoders.parameters())


def test_an_encoder_that_is_no_chain_is_refused_in_one_line():
    source = pictures(1, channels=3, size=32)
    with pytest.raises(UserError, match="no plain chain"):
        built("vit_tiny_patch16_224:patch_size=8", source)


def test_as_many_amounts_as_layers():
    source = pictures(1)
    with pytest.raises(UserError, match="2 amounts of noise for the 3 layers"):
        built(SMALL, source, sdae.Config(amount=(0.1, 0.2)))
    method = built(SMALL, pictures(), sdae.Config(amount=(0.5, 0.25, 1.0)))
    for stage, share in enumerate((392, 4, 16)):
        method.stage.fill_(stage)
        assert (method.pretext(everything(pictures()), Rng(1)).chosen.sum(1) == share).all()


# ---- does it restore?


def test_without_correlations_the_best_linear_restorer_keeps_what_it_sees():
    """Weight 1 under masking, σx²/(σx²+σ²) under Gaussian noise, nothing across components."""
    x = Rng(1).normal(100_000, 4) * torch.tensor([0.5, 1.0, 1.5, 2.0])
    for noise, amount in (("masking", 0.25), ("gaussian", 1.0)):
        damaged, _ = sdae.damage(x, noise, amount, Rng(2), exact=False, bounded=False)
        best = torch.linalg.lstsq(damaged, x).solution  # (4, 4)
        variance = torch.tensor([0.25, 1.0, 2.25, 4.0])
        expected = torch.ones(4) if noise == "masking" else variance / (variance + 1)
        assert_close(best, torch.diag(expected), atol=0.03, rtol=0)


def test_digits_it_never_saw_are_restored_better_than_by_doing_nothing(shared_data):
    digits = torch.from_numpy(np.load(shared_data("clustering", "mnist_test3k.npz"))["images"])[:, None]
    seen, unseen = Pictures(digits[:2000]), Pictures(digits[2000:])
    method = built("mlp:width=256,depth=1", seen, sdae.Config(noise="masking", amount=(0.25,)))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(200):
        index = Rng(0, "batch", step).integers(64, high=2000)
        optimizer.zero_grad()
        method.loss(method.pretext(seen.__getitems__(index), Rng(0, "pretext", step))).total.backward()
        optimizer.step()
    p = method.eval().pretext(everything(unseen), Rng(0, "held out"))
    scored = method.loss(p).parts
    assert scored["left"] < 0.85 * scored["damage"]
    assert_close(((method.solve(p)["image"] - p.image) ** 2).mean(), scored["left"])


def test_layers_share_the_schedule_evenly_in_a_run_that_is_stretched():
    method = built("mlp:width=8,depth=3", pictures())
    plan = Plan.of(12, 1).changed(6, 106)  # an epoch a step, half of the schedule in six
    stages = []
    for step in range(106):
        method.begin_epoch(Context(pictures(1), [], plan.at(step), Rng(0)))
        stages.append(int(method.stage))
    assert [stages.index(layer) for layer in range(3)] == [0, 4, 40]


# ---- sampling from the stack


def saturated(method: sdae.StackedDenoising, factor: float) -> sdae.StackedDenoising:
    """Every layer's weights times `factor`: with much of it, units are on or off for sure."""
    with torch.no_grad():
        for layer in method.encoder.net:
            for linear in (m for m in layer if isinstance(m, nn.Linear)):
                linear.weight *= factor
                linear.bias.copy_(Rng(5, "bias").normal(len(linear.bias)))
        for s, decoder in enumerate(method.decoders):
            decoder.bias.copy_(Rng(6, "bias", s).normal(len(decoder.bias)))
    method.stage.fill_(2)
    return method.eval()


def weights(method: sdae.StackedDenoising) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each layer W, b and b'."""
    linears = [m for m in method.encoder.net.modules() if isinstance(m, nn.Linear)]
    return [(m.weight, m.bias, d.bias) for m, d in zip(linears, method.decoders, strict=True)]


def test_samples_are_images_by_the_rng_and_differ_from_each_other():
    source = pictures()
    method, image = saturated(built(SMALL, source), 1.0), source.image / 255
    with torch.no_grad():
        one, again, other = (method.sample(image, Rng(seed)) for seed in (1, 1, 2))
    assert one.shape == image.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, again)
    assert ((one - other).flatten(1).abs().amax(1) > 0.01).all()


def test_a_sample_of_units_that_are_sure_is_the_expected_image_of_the_slow_loop():
    """Up W x + b, down Wᵀ y + b', unit by unit; with codes of 0 and 1 nothing is left to chance."""
    source = pictures(2)
    method = saturated(built(SMALL, source), 1000.0)
    with torch.no_grad():
        found = method.sample(source.image / 255, Rng(1)).flatten(1)
        for i, x in enumerate(source.image.flatten(1) / 255):
            for w, b, _ in weights(method):
                x = torch.tensor([1.0 if float(w[j] @ x + b[j]) > 0 else 0.0 for j in range(len(b))])
            for w, _, back in reversed(weights(method)):
                x = torch.stack([torch.sigmoid(w[:, j] @ x + back[j]) for j in range(len(back))])
            assert_close(found[i], x)


def test_units_are_drawn_one_by_one_by_their_probabilities_at_every_layer():
    """Of one image 4,000 times, a stack of one layer: the mean and the variance of the logits are those of Bernoulli units."""
    source = Pictures(pictures(1).image.repeat(4000, 1, 1, 1))
    method = built("mlp:width=16,depth=1", source).eval()
    with torch.no_grad():
        method.encoder.net[0][1].weight *= 0.1
        drawn = torch.logit(method.sample(source.image / 255, Rng(1)).double()).flatten(1)
        ((w, b, back),) = weights(method)
        p = torch.sigmoid(w @ (source.image[0].flatten() / 255) + b)
    spread = (w**2 * (p * (1 - p))[:, None]).sum(0)
    assert ((drawn.mean(0) - (p @ w + back)).abs() < 5 * (spread / 4000).sqrt() + 1e-6).all()
    assert_close(drawn.var(0), spread.double(), rtol=0.2, atol=1e-7)


def test_each_layer_below_is_drawn_as_well():
    """Sure units at the top alone: what differs between samples was drawn below."""
    source = pictures(1)
    method = saturated(built(SMALL, source), 1.0)
    with torch.no_grad():
        top = [m for m in method.encoder.net.modules() if isinstance(m, nn.Linear)][-1]
        top.bias.fill_(1000.0)
        samples = torch.cat([method.sample(source.image / 255, Rng(seed)) for seed in range(20)])
        (w3, _, back3), (w2, _, back2), (w1, _, back1) = reversed(weights(method))
        two = torch.sigmoid(torch.ones(len(w3)) @ w3 + back3)  # probabilities of the second code
        one = torch.sigmoid(two @ w2 + back2)
        mean = torch.sigmoid(one @ w1 + back1).view(1, 1, 28, 28)
    assert (samples - mean).abs().amax() > 0.05
    assert len({tuple(x.flatten().tolist()) for x in samples}) == 20


def test_the_report_is_given_an_image_and_samples_and_only_of_sigmoid_layers():
    source = pictures(3)
    made = saturated(built(SMALL, source), 1.0).gallery(source.image / 255, Rng(1))
    assert made is not None
    assert list(made.columns) == ["image", *(f"sample {i}" for i in range(1, 7))]
    assert torch.equal(made.columns["image"], source.image / 255)
    assert not torch.equal(made.columns["sample 1"], made.columns["sample 2"])
    colored = pictures(3, channels=3, size=16)
    assert built("resnet_small:width=8", colored).gallery(colored.image / 255, Rng(1)) is None
