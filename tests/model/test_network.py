"""Properties of the network that hold whatever its weights: invariances, order of the quantiles, cost."""

import dataclasses

import pytest
import torch

from mist_loss.meta import maps
from mist_loss.meta.families import canonical_normal
from mist_loss.model import quantiles
from mist_loss.model.attention import ISAB, MAB, PMA
from mist_loss.model.network import MIST, MISTConfig, steady
from mist_loss.model.statistics import CORRELATION
from mist_loss.model.weights import TOLD


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = MIST()
    with torch.no_grad():  # spread the output, so that an invariance cannot hold by saturation
        network.quantiles.bias.fill_(2.0)
    return network.eval()


def draw(n, dx, dy, sets=3):
    torch.manual_seed(1)
    rho = torch.linspace(0.9, 0.2, min(dx, dy)).repeat(sets, 1)
    return canonical_normal(rho, n, dx, dy)[:2]


SHAPES = [(12, 3, 5), (300, 4, 4), (64, 1, 1), (40, 33, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_order_of_rows_and_of_features_does_not_matter(model, shape):
    x, y = draw(*shape)
    expected = model(x, y)
    rows, fx, fy = (torch.randperm(k) for k in shape)
    torch.testing.assert_close(model(x[:, rows], y[:, rows]), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(model(x[..., fx], y[..., fy]), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_exchange_of_x_and_y_does_not_matter(model, shape):
    x, y = draw(*shape)
    torch.testing.assert_close(model(y, x), model(x, y), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_and_scale_of_a_feature_do_not_matter(model, shape):
    x, y = draw(*shape)
    scale, shift = torch.exp(3 * torch.randn(shape[1])), 10 * torch.randn(shape[1])
    torch.testing.assert_close(model(x * scale + scale * shift, y), model(x, y), atol=2e-3, rtol=2e-3)


def test_linear_maps_do_not_matter_where_rows_are_plenty(model, monkeypatch):
    # a Gaussian sample has no independent components: they fall at random, which weights have to learn to overlook
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, independent_pairs=0))
    x, y = draw(4000, 4, 3)
    mixing = maps.random_linear(1, 4, x.device, spread=2.0)
    assert (model(x @ mixing, y) - model(x, y)).abs().max() < 0.05


def test_pairing_of_rows_matters(model):
    x, y = draw(300, 4, 4)
    assert (model(x, y.flip(1)) - model(x, y)).abs().max() > 0.05


def test_sets_do_not_see_each_other(model):
    x, y = draw(50, 4, 4)
    torch.testing.assert_close(model(x[1:2], y[1:2]), model(x, y)[1:2], atol=1e-4, rtol=1e-4)


def test_quantiles_increase_and_are_not_negative(model):
    knots = model(*draw(50, 4, 4))
    levels = torch.linspace(0.001, 0.999, 301)
    values = torch.stack([quantiles.quantile(knots, level) for level in levels])
    assert (values.diff(dim=0) >= 0).all()
    assert (values >= 0).all()
    torch.testing.assert_close(quantiles.quantile(knots, 0.5), knots[:, quantiles.KNOTS // 2])


def test_mean_of_a_normal_predictive_distribution():
    knots = 7 + 0.5 * quantiles.knot_scores(torch.zeros(1, dtype=torch.float64))
    assert quantiles.mean(knots).item() == pytest.approx(7, abs=1e-9)
    assert quantiles.quantile(knots[None], 0.9).item() == pytest.approx(7 + 0.5 * 1.2816, abs=1e-3)
    skewed = torch.exp(quantiles.knot_scores(torch.zeros(1, dtype=torch.float64)))
    assert quantiles.mean(skewed).item() == pytest.approx(torch.e**0.5, rel=0.02)


@pytest.mark.parametrize("bad", [{"row_pairs": -1}, {"dims": (64, 1)}, {"rows": 10}, {"set_width": 18}, {"width": 0}])
def test_bad_sizes(bad):
    with pytest.raises(ValueError, match=f"expected {next(iter(bad))} as"):
        MISTConfig(**bad)


def test_mean_is_the_integral_of_the_quantile_function():
    score = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    density = torch.exp(-(score**2) / 2)
    knots = torch.rand(quantiles.KNOTS, dtype=torch.float64).cumsum(0)
    places = quantiles.knot_scores(knots)
    inside = score.clamp(places[0], places[-1])  # flat beyond the outermost
    at = quantiles.quantile(knots.expand(len(score), -1), torch.special.ndtr(inside))
    expected = (at * density).sum() / density.sum()
    torch.testing.assert_close(quantiles.mean(knots), expected, rtol=1e-6, atol=0)


def test_gradients_reach_the_input_through_correlations_alone(model):
    x, y = draw(60, 3, 3)
    x.requires_grad_()
    full = model.summarize(x, y)
    kept = steady(full)
    for before, after in zip(full, kept, strict=True):
        torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert not any(t.requires_grad for t in (kept.u, kept.v, kept.radii))
    (past,) = torch.autograd.grad(kept.tokens[..., CORRELATION:].sum(), x, retain_graph=True)
    (through,) = torch.autograd.grad(kept.tokens[..., :CORRELATION].sum(), x, retain_graph=True)
    assert past.abs().max() == 0
    assert through.abs().max() > 0
    (expected,) = torch.autograd.grad(model.read(kept).sum(), x)
    x2 = x.detach().clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(model(x2, y).sum(), x2)[0], expected)


def test_every_parameter_takes_a_gradient(model):
    x, y = draw(30, 3, 3)
    model(x, y).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize("kind", ["constant", "one row", "bits", "duplicated", "tiny", "huge"])
def test_degenerate_samples_give_finite_values_and_gradients(model, kind):
    torch.manual_seed(0)
    x = {
        "constant": torch.ones(2, 40, 3),
        "one row": torch.randn(2, 1, 3).expand(2, 40, 3),
        "bits": (torch.rand(2, 40, 3) < 0.5).float(),
        "duplicated": torch.randn(2, 40, 1).expand(2, 40, 3),
        "tiny": 1e-12 * torch.randn(2, 40, 3),
        "huge": 1e12 * torch.randn(2, 40, 3),
    }[kind].clone()
    x.requires_grad_()
    knots = model(x, torch.randn(2, 40, 2))
    knots.sum().backward()
    assert torch.isfinite(knots).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_a_hundred_thousand_rows(model):
    x, y = draw(100_000, 3, 3, sets=1)
    with torch.inference_mode():
        assert torch.isfinite(model(x, y)).all()


def test_attention_blocks_ignore_the_order_of_the_set():
    torch.manual_seed(0)
    items, order = torch.randn(2, 20, 16), torch.randperm(20)
    isab, pma, mab = ISAB(16), PMA(16), MAB(16)
    torch.testing.assert_close(isab(items)[:, order], isab(items[:, order]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pma(items), pma(items[:, order]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mab(items, items), mab(items, items[:, order]), atol=1e-5, rtol=1e-4)


def spread(middle, width):
    """A predictive distribution (1, KNOTS) around a number of nats."""
    return middle + width * quantiles.knot_scores(torch.zeros(()))[None]


def test_readings_that_agree_are_averaged():
    first, second = spread(1.0, 0.2), spread(1.2, 0.3)
    torch.testing.assert_close(quantiles.combine(first, second), (first + second) / 2)
    torch.testing.assert_close(quantiles.combine(second, first), (first + second) / 2)
    far = spread(1.0 + 1.9 * 0.2, 0.2)  # within the 96% interval of the first, beyond that of 90%
    torch.testing.assert_close(quantiles.combine(first, far), (first + far) / 2)
    farther = spread(1.0 + 2.2 * 0.2, 0.2)
    torch.testing.assert_close(quantiles.combine(first, farther), farther)


@pytest.mark.parametrize(
    ("blind", "seeing"),
    [(spread(0.1, 0.05), spread(1.0, 0.2)), (spread(1.0, 0.05), spread(1.4, 0.2)), (spread(0.5, 0.6), spread(2, 0.1))],
)
def test_of_readings_that_part_the_surer_counts(blind, seeing):
    torch.testing.assert_close(quantiles.combine(blind, seeing), seeing)
    torch.testing.assert_close(quantiles.combine(seeing, blind), seeing)


def test_one_that_reads_more_says_the_same_at_first_and_learns_to_say_more():
    torch.manual_seed(0)
    config = MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4, near_pairs=4)
    small = MIST(MISTConfig(**(dataclasses.asdict(config) | dict.fromkeys(TOLD, False)))).eval()
    before = torch.get_rng_state()
    wider = small.widened(config).eval()
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(2, 60, 3).round()
    y = (x + torch.randn_like(x)).round()
    torch.testing.assert_close(wider.first_reading(x, y), small(x, y))
    wider(x, y).sum().backward()
    grad = wider.skip.weight.grad
    assert grad is not None
    assert grad[0, small.skip.in_features :].any()
    with pytest.raises(RuntimeError, match="size mismatch"):
        small.widened(dataclasses.replace(config, width=32))
    for flag in TOLD:
        with pytest.raises(ValueError, match=f"{flag}, which these weights read"):
            wider.widened(MISTConfig(**(dataclasses.asdict(config) | {flag: False})))
    for i, flag in enumerate(TOLD[:-1]):
        for later in TOLD[i + 1 :]:
            read = dict.fromkeys(TOLD, False) | {later: True}
            with pytest.raises(ValueError, match=f"without {flag}, which cannot be added to weights with {later}"):
                MIST(MISTConfig(**(dataclasses.asdict(config) | read))).widened(
                    MISTConfig(**(dataclasses.asdict(config) | read | {flag: True}))
                )


def test_a_second_look_that_is_told_more_begins_again():
    torch.manual_seed(0)
    config = MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4)
    less = MIST(dataclasses.replace(config, intrinsic=False)).eval()
    with torch.no_grad():
        less.get_parameter("second_look.layers.2.weight").normal_()
    same, more = less.widened(less.config), less.widened(config)
    assert torch.equal(*(t.get_parameter("second_look.layers.2.weight") for t in (less, same)))
    assert not more.get_parameter("second_look.layers.2.weight").any()
    x, y = torch.randn(2, 2, 50, 3)
    torch.testing.assert_close(more.eval().first_reading(x, y), less.first_reading(x, y))


@pytest.mark.parametrize("flag", TOLD)
@pytest.mark.parametrize("value", [1, None, "yes"])
def test_the_network_is_told_or_not(flag, value):
    with pytest.raises(ValueError, match=f"{flag} to be True or False"):
        MISTConfig(**{flag: value})


def test_what_never_varied_in_training_is_not_read():
    torch.manual_seed(0)
    model = MIST(
        MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4, normal=False, balls=False, intrinsic=False)
    ).eval()
    model.fit_normalization([model.summarize(torch.randn(4, 40, 2), torch.randn(4, 40, 2)) for _ in range(3)])
    summary = model.summarize(*torch.randn(2, 1, 40, 2))
    repeated = summary._replace(vector=torch.cat([summary.vector[:, :-14], torch.ones(1, 14)], dim=1))
    torch.testing.assert_close(model.read(repeated), model.read(summary))
    assert not torch.allclose(model.read(summary._replace(vector=summary.vector + 0.5)), model.read(summary))


def test_a_quantile_that_is_cut_at_zero_can_still_be_raised():
    knots = torch.full((3, quantiles.KNOTS), -quantiles.BELOW_ZERO, requires_grad=True)
    found = quantiles.quantile(knots, 0.1)
    assert (found == 0).all()
    found.sum().backward()
    assert knots.grad is not None
    torch.testing.assert_close(knots.grad.sum(1), torch.ones(3))
