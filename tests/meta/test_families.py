"""The samplers give what they say: analytic values, and samples whose statistics are those of the distribution."""

import math

import pytest
import torch

from mist_loss.meta import broad, broad_discrete, discrete, families, maps, structures
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.meta.paper import CPU, PAPER_IMD, PAPER_OOMD, PAPER_TRAIN, configuration


def test_gaussian_mi_of_one_pair():
    rho = torch.tensor([0.0, 0.5, 0.9])
    correlation = structures.dense_correlation(rho, 1, 1)
    expected = -0.5 * torch.log1p(-(rho.double() ** 2))
    torch.testing.assert_close(structures.gaussian_mi(correlation, 1), expected, atol=1e-6, rtol=1e-6)


def test_latent_structure_has_unit_variances_and_pairs():
    one = torch.ones(2)
    c = structures.latent_correlation(3, 2, torch.tensor([0, 2]), 0 * one, 2 * one, 0 * one, 2 * one)
    torch.testing.assert_close(c.diagonal(dim1=1, dim2=2), torch.ones(2, 5))
    assert c[0, :3, 3:].abs().max() == 0  # nothing interacts
    torch.testing.assert_close(c[1, :3, 3:], torch.tensor([[0.8, 0.0], [0.0, 0.8], [0.0, 0.0]]))


def test_sample_covariance_follows_the_structure():
    torch.manual_seed(0)
    half = torch.full((1,), 0.5)
    c = structures.latent_correlation(3, 4, torch.tensor([2]), half, 2 * half, half, half)
    x, y, _ = families.normal(c, 200_000, 3)
    rows = torch.cat([x, y], dim=2)[0]
    torch.testing.assert_close(torch.cov(rows.T), c[0], atol=0.01, rtol=0)


@pytest.mark.parametrize(("nodes", "tolerance"), [(48, 2e-3), (96, 2e-4)])
def test_signed_mi_converges_and_has_the_gaussian_as_its_edge(nodes, tolerance):
    rho = torch.tensor([0.2, 0.6, 0.9, 0.95])
    half = torch.full_like(rho, 0.5)
    fine = families.signed_mi(rho, half, nodes=192)
    assert (families.signed_mi(rho, half, nodes=nodes) - fine).abs().max() < tolerance
    gaussian = -0.5 * torch.log1p(-(rho.double() ** 2))
    torch.testing.assert_close(families.signed_mi(rho, 0 * rho, nodes), gaussian, atol=1e-3, rtol=1e-3)
    assert (fine < gaussian).all()


def test_signed_pairs_have_no_correlation():
    torch.manual_seed(0)
    x, y, mi = families.signed_normal(torch.tensor([[0.9]]), torch.tensor([0.5]), 100_000, 1, 1)
    assert abs((x * y).mean()) < 0.02
    assert (x.abs() * y.abs()).mean() > 0.7
    assert mi > 0.3


def test_student_mi_vanishes_with_the_degrees_of_freedom_and_known_value():
    # one degree of freedom, two dimensions: log(8 pi) - 3 h-terms give 0.2242 (Czyz et al. 2023)
    assert families.student_mi(torch.tensor([1.0]), 1, 1).item() == pytest.approx(0.2242, abs=1e-4)
    assert families.student_mi(torch.tensor([1e5]), 3, 4).item() == pytest.approx(0, abs=1e-3)


def test_additive_noise_mi_is_continuous_at_one_half():
    below, above = families.additive_noise_mi(torch.tensor([[0.4999999], [0.5000001]]))
    assert below.item() == pytest.approx(above.item(), abs=1e-5)


def test_channel_without_flips_is_the_entropy_and_at_the_ceiling_nothing_passes():
    prior = torch.full((2, 4), 0.25)
    joint = discrete.symmetric_channel(prior, torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(
        discrete.label_mi(joint), torch.tensor([math.log(4), 0.0], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_separated_clusters_carry_the_label_information():
    torch.manual_seed(0)
    prior = torch.tensor([[0.5, 0.5]])
    joint = discrete.symmetric_channel(prior, torch.tensor([0.1]))
    far = torch.tensor([[[-20.0, 0.0], [20.0, 0.0]]])
    expected = discrete.label_mi(joint).item()
    for means_y in (far, None):
        problem = discrete.labelled_mixture(joint, far, means_y, 10, monte_carlo=200_000)
        assert problem.mi.item() == pytest.approx(expected, abs=0.01)
    close = discrete.labelled_mixture(joint, far / 40, far / 40, 10, monte_carlo=200_000).mi.item()
    assert 0 < close < expected / 4  # overlap loses information


def test_labelled_mixture_against_numerical_integration():
    torch.manual_seed(0)
    joint = discrete.symmetric_channel(torch.tensor([[0.3, 0.7]]), torch.tensor([0.2]))
    means = torch.tensor([[[-1.0], [1.5]]])
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    density = torch.exp(-0.5 * (grid[:, None] - means[0, :, 0].double()) ** 2) / math.sqrt(2 * math.pi)
    both = density @ joint[0].double() @ density.T
    step = (grid[1] - grid[0]).item()
    px, py = both.sum(1, keepdim=True) * step, both.sum(0, keepdim=True) * step
    exact = (torch.special.xlogy(both, both / (px * py))).sum().item() * step**2
    problem = discrete.labelled_mixture(joint, means, means, 10, monte_carlo=400_000)
    assert problem.mi.item() == pytest.approx(exact, abs=5e-3)


def test_a_label_that_shows_in_the_spread_alone_against_numerical_integration():
    torch.manual_seed(0)
    joint = discrete.symmetric_channel(torch.tensor([[0.4, 0.6]]), torch.tensor([0.1]))
    means, scales = torch.zeros(1, 2, 1), torch.tensor([[[0.5], [3.0]]])
    grid = torch.linspace(-20, 20, 8001, dtype=torch.float64)
    density = torch.exp(-0.5 * (grid[:, None] / scales[0, :, 0].double()) ** 2) / scales[0, :, 0]
    both = density @ joint[0].double() / math.sqrt(2 * math.pi)  # of x and the label received
    step = (grid[1] - grid[0]).item()
    independent = both.sum(1, keepdim=True) * both.sum(0, keepdim=True) * step
    exact = torch.special.xlogy(both, both / independent).sum().item() * step
    problem = discrete.labelled_mixture(joint, means, None, 10, monte_carlo=400_000, scales_x=scales)
    assert problem.mi.item() == pytest.approx(exact, abs=5e-3)
    rows = discrete.labelled_mixture(joint, means, None, 100_000, scales_x=scales)
    spread = rows.x.std().item() ** 2
    assert spread == pytest.approx(0.4 * 0.25 + 0.6 * 9, rel=0.02)


@pytest.mark.parametrize("d", [1, 4])
def test_parted_clusters_tell_their_label_and_may_be_wide(d, monkeypatch):
    labels = torch.randint(2, (400, 300))
    monkeypatch.setattr(discrete, "random_rotation", lambda b, d, device: torch.eye(d))
    rows = discrete.parted_clusters(labels, d)
    assert rows.shape == (400, 300, d)
    assert (rows[..., 0] * (2 * labels - 1) > 0.05).all()
    within = rows[..., 0].abs().var(1)
    share = within / (within + rows[..., 0].abs().mean(1) ** 2)  # of the variance, that a label does not explain
    assert share.quantile(0.9) > 0.2  # as of Gaussian clusters that are four standard deviations apart
    assert share.quantile(0.1) < 0.1


def test_clusters_that_differ_in_spread_on_both_sides_against_numerical_integration():
    torch.manual_seed(0)
    joint = discrete.symmetric_channel(torch.tensor([[0.4, 0.6]]), torch.tensor([0.1]))
    means, scales = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[0.5], [1.5]]])
    grid = torch.linspace(-8, 10, 1801, dtype=torch.float64)
    density = torch.exp(-0.5 * ((grid[:, None] - means[0, :, 0]) / scales[0, :, 0].double()) ** 2) / scales[0, :, 0]
    both = density @ joint[0].double() @ density.T / (2 * math.pi)
    step = (grid[1] - grid[0]).item()
    independent = both.sum(1, keepdim=True) * both.sum(0, keepdim=True) * step**2
    exact = torch.special.xlogy(both, both / independent).sum().item() * step**2
    problem = discrete.labelled_mixture(joint, means, means, 10, 400_000, scales_x=scales, scales_y=scales)
    assert problem.mi.item() == pytest.approx(exact, abs=5e-3)


def clustered(means_x, means_y, scale, noise, rho, n=10, monte_carlo=1024):
    k = means_x.shape[1]
    prior = torch.full((1, k), 1 / k)
    scale, noise = (torch.tensor([values]).expand(1, k) for values in (scale, noise))
    return discrete.clustered_normal(prior, means_x, means_y, scale, noise, torch.tensor([rho]), n, monte_carlo)


def test_classes_without_a_difference_are_a_gaussian():
    torch.manual_seed(0)
    nothing = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2)
    problem = clustered(*nothing, [1.0], [1.0], [0.9, 0.4], monte_carlo=16)
    expected = families.canonical_normal(torch.tensor([[0.9, 0.4]]), 2, 4, 2).mi
    torch.testing.assert_close(problem.mi, expected, atol=1e-4, rtol=0)  # nothing of the ratio is left to chance


def test_separated_classes_add_their_entropy_to_what_their_pairs_share():
    torch.manual_seed(0)
    far = 50.0 * torch.randn(1, 8, 3)
    problem = clustered(far, far.flip(1), [2.0], [1.0], [0.8, 0.5], n=4000)
    assert problem.mi.item() == pytest.approx(math.log(8) - 0.5 * math.log(0.36 * 0.75), abs=0.02)
    assert problem.x.shape == problem.y.shape == (1, 4000, 3)
    nearest = torch.cdist(problem.x, far).argmin(2)
    residual_x = problem.x - far[0, nearest]
    residual_y = problem.y - far.flip(1)[0, nearest]
    correlations = torch.corrcoef(torch.cat([residual_x[0], residual_y[0]], dim=1).T)[:3, 3:]
    torch.testing.assert_close(correlations, torch.diag(torch.tensor([0.8, 0.5, 0.0])), atol=0.06, rtol=0)
    assert residual_x.std().item() == pytest.approx(2, rel=0.03)


def test_classes_that_differ_in_everything_against_numerical_integration():
    torch.manual_seed(0)
    means, scale, noise, r = [[-1.0, 1.5], [0.5, -0.5]], [0.6, 1.2], [1.0, 2.5], 0.8
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    both = torch.zeros(1201, 1201, dtype=torch.float64)
    for mu, nu, s, t in zip(*means, scale, noise, strict=True):
        covariance = s**2 * torch.tensor([[1, r], [r, r**2 + (1 - r**2) * t**2]], dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.tensor([mu, nu], dtype=torch.float64), covariance)
        both += 0.5 * normal.log_prob(torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1)).exp()
    step = (grid[1] - grid[0]).item()
    independent = both.sum(1, keepdim=True) * both.sum(0, keepdim=True) * step**2
    exact = torch.special.xlogy(both, both / independent.clamp_min(1e-300)).sum().item() * step**2
    means_x, means_y = (torch.tensor(m)[None, :, None] for m in means)
    problem = clustered(means_x, means_y, scale, noise, [r], monte_carlo=400_000)
    assert problem.mi.item() == pytest.approx(exact, abs=5e-3)
    rows = clustered(means_x, means_y, scale, noise, [r], n=200_000)
    moments = torch.cov(torch.cat([rows.x[0], rows.y[0]], dim=1).T)
    weights = both.sum(1) * step**2, both.sum(0) * step**2
    for i, weight in enumerate(weights):
        variance = (weight * grid**2).sum() - (weight * grid).sum() ** 2
        assert moments[i, i].item() == pytest.approx(variance.item(), rel=0.02)


@pytest.mark.parametrize("name", sorted(maps.MAPS))
def test_elementwise_maps_increase(name):
    grid = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    for one in maps.MAPS[name]:
        assert (one(grid).diff() > 0).all()


def test_random_maps_are_invertible():
    torch.manual_seed(0)
    grid = torch.linspace(-4, 4, 400)[None, :, None].repeat(3, 1, 2)
    assert (maps.random_monotone(grid).diff(dim=1) > 0).all()
    for _ in range(20):  # some of each kind
        warped = maps.random_warp(grid)
        assert (warped.diff(dim=1) > 0).all()
        assert torch.isfinite(warped).all()
    mixing = maps.random_linear(5, 4, grid.device)
    assert (torch.linalg.svdvals(mixing) > 1e-3).all()
    coupled = maps.random_coupling(torch.randn(2, 50, 3))
    assert coupled.shape == (2, 50, 3)
    first = torch.randn(1, 50, 4)
    torch.testing.assert_close(maps.random_coupling(first)[..., :2], first[..., :2])


@pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 12), (2, 2), (2, 20), (3, 40)])
def test_a_random_network_keeps_rows_apart(k, d):
    torch.manual_seed(0)
    for _ in range(12):  # some of each kind
        rows = torch.randn(2, 300, k)
        codes = maps.random_network(2, k, d, CPU)(rows)
        assert codes.shape == (2, 300, d)
        near = [(t[:, :, None] - t[:, None]).square().sum(-1) + 1e9 * torch.eye(300) for t in (rows, codes)]
        found, nearest = near[1].argmin(2, keepdim=True), near[0].topk(8, dim=2, largest=False).indices
        assert (near[1].amin(2) > 0).float().mean() > 0.97
        # stretched unevenly, so that the nearest one may be another, and not any other
        assert (found == nearest).any(2).float().mean() > 0.6


def test_codes_of_networks_say_what_their_latent_variables_do(monkeypatch):
    def draw(b, n, dx, dy, device):
        assert max(dx, dy) <= min(broad.LATENT, n // 8)
        return families.canonical_normal(torch.full((b, min(dx, dy)), 0.9), n, dx, dy)

    for family in ("_canonical", "_additive", "_functional"):
        monkeypatch.setattr(broad, family, draw)
    for family in ("clustered", "labelled"):
        monkeypatch.setattr(broad.broad_discrete, family, draw)
    torch.manual_seed(0)
    alike = 0
    for _ in range(20):
        x, y, mi = broad._embedded(2, 40, 20, 20, CPU)
        latent = (mi / (-0.5 * math.log1p(-(0.9**2)))).round()
        torch.testing.assert_close(mi, latent * -0.5 * math.log1p(-(0.9**2)))
        alike += bool(torch.cdist(x, y).diagonal(dim1=1, dim2=2).mean() < 0.5 * torch.cdist(x, y).mean())
    assert 4 <= alike <= 16


def test_paper_configurations():
    assert (len(PAPER_TRAIN), len(PAPER_IMD), len(PAPER_OOMD)) == (16, 6, 7)
    assert set(PAPER_IMD) <= set(PAPER_TRAIN)
    assert not set(PAPER_OOMD) & set(PAPER_TRAIN)
    with pytest.raises(ValueError, match="map of a configuration"):
        configuration("multi_normal-dense-cube", 1, 10, 2, 2)
    with pytest.raises(ValueError, match="structure must be"):
        configuration("multi_normal-diagonal-base", 1, 10, 2, 2)
    with pytest.raises(ValueError, match="starts with"):
        configuration("uniform-dense-base", 1, 10, 2, 2)


@pytest.mark.parametrize("name", sorted(MIXTURES["broader"].families))
@pytest.mark.parametrize(("n", "dx", "dy"), [(10, 1, 1), (40, 2, 1), (12, 1, 3), (33, 5, 4), (20, 3, 40)])
def test_every_broad_family_gives_finite_problems_of_the_asked_shape(name, n, dx, dy):
    torch.manual_seed(0)
    for _ in range(6):
        x, y, mi = MIXTURES["broader"].families[name][1](2, n, dx, dy, torch.device("cpu"))
        assert (x.shape, y.shape, mi.shape) == ((2, n, dx), (2, n, dy), (2,))
        assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in (x, y, mi))
        assert (mi > -1e-4).all()


def test_rows_that_come_again_come_on_both_sides_and_change_no_truth(monkeypatch):
    rho = torch.tensor([0.3, 0.9])
    seen = []

    def draw(b, n, dx, dy, device):
        seen.append(n)
        return families.canonical_normal(rho[:b, None], n, dx, dy)

    monkeypatch.setattr(broad, "BROADER", {"normal": (1, draw)})
    monkeypatch.setattr(broad, "_independent", draw)
    torch.manual_seed(0)
    for _ in range(10):
        x, y, mi = broad._resampled(2, 200, 1, 1, CPU)
        torch.testing.assert_close(mi, -0.5 * torch.log1p(-(rho**2)))
        distinct = len(x[0].unique())
        assert len(torch.cat([x, y], dim=2)[0].unique(dim=0)) == distinct == len(y[0].unique())
        assert 0.5 * seen[-1] < distinct <= seen[-1] <= 200
    assert min(seen) < 100 < max(seen)


def test_independent_sides_are_of_two_families_or_of_one_problem_in_another_order(monkeypatch):
    def draw(b, n, dx, dy, device):
        x = torch.randn(b, n, dx)
        return families.Problem(x, x.clone(), torch.ones(b))

    monkeypatch.setattr(broad, "BROADER", {"same": (1, draw)})
    torch.manual_seed(0)
    shuffled = 0
    for _ in range(30):
        x, y, mi = broad._independent(2, 500, 1, 1, CPU)
        assert torch.equal(mi, torch.zeros(2))
        assert ((x * y).mean(1).abs() < 0.25).all()
        shuffled += bool(torch.equal(x.sort(dim=1).values, y.sort(dim=1).values))
    assert 5 < shuffled < 25


def _code(rows: torch.Tensor) -> torch.Tensor:
    return rows.unique(dim=0, return_inverse=True)[1]


def _entropy(code: torch.Tensor) -> float:
    """Of a label, corrected as by Miller (1955)."""
    share = torch.bincount(code).double() / len(code)
    share = share[share > 0]
    return float(-(share * share.log()).sum() + (len(share) - 1) / (2 * len(code)))


@pytest.mark.parametrize("name", ["ordinal", "present", "tables", "labels"])
def test_the_truth_of_a_discrete_draw_is_that_of_its_columns_counted(name, monkeypatch):
    """Tables of a few hundred cells at most, of draws that are not carried anywhere."""
    monkeypatch.setattr(broad_discrete, "carry", lambda problem, *_: problem)
    torch.manual_seed(1)
    n, compared = 20_000, 0
    for i in range(30):
        x, y, mi = MIXTURES["broader"].families[name][1](2, n, *[(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)][i % 5], CPU)
        for one, other, stated in zip(x, y, mi.tolist(), strict=True):
            if max(len(side[:, -1].unique()) for side in (one, other)) > 100:
                continue  # numbers, not labels
            a, b = _code(one), _code(other)
            values = int(b.max()) + 1
            if (int(a.max()) + 1) * values > 500:
                continue
            compared += 1
            assert _entropy(a) + _entropy(b) - _entropy(a * values + b) == pytest.approx(stated, abs=0.025)
    assert compared >= 10


@pytest.mark.parametrize("name", sorted(MIXTURES))
@pytest.mark.parametrize(("n", "dx", "dy"), [(10, 2, 2), (33, 5, 3), (17, 1, 1), (20, 3, 40)])
def test_mixtures_give_finite_problems_of_the_asked_shape(name, n, dx, dy):
    torch.manual_seed(0)
    x, y, mi = MIXTURES[name].batch(64, n, dx, dy)
    assert (x.shape, y.shape, mi.shape) == ((64, n, dx), (64, n, dy), (64,))
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in (x, y, mi))
    assert (mi > -1e-4).all()


def test_mixture_repeats_with_the_seed_and_draws_its_range():
    mixture = MIXTURES["broad"]
    torch.manual_seed(3)
    shapes = [mixture.shape() for _ in range(2000)]
    torch.manual_seed(3)
    assert [mixture.shape() for _ in range(2000)] == shapes
    rows, dims = [s[0] for s in shapes], [d for s in shapes for d in s[1:]]
    assert min(rows) == 10
    assert 3500 < max(rows) <= 4096
    assert (min(dims), max(dims)) == (1, 64)


def test_folded_channel():
    prior = torch.full((2, 6), 1 / 6)
    joint = discrete.folded_channel(prior, torch.tensor([0.0, 1.0]), 3)
    torch.testing.assert_close(
        discrete.label_mi(joint), torch.tensor([math.log(3), 0.0], dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.manual_seed(0)
    noisy = discrete.folded_channel(torch.tensor([[0.5, 0.2, 0.3]]), torch.tensor([0.4]), 2)
    sent, received = discrete.draw_labels(noisy, 200_000)
    counts = torch.bincount(sent[0] * 2 + received[0], minlength=6).reshape(3, 2) / 200_000
    torch.testing.assert_close(counts, noisy[0], atol=0.005, rtol=0)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_labels_are_indicators_or_a_code(d):
    torch.manual_seed(0)
    label = MIXTURES["broad"].families["labels"][1]
    for _ in range(12):
        problem = label(2, 50, 3, d, torch.device("cpu"))
        assert problem.x.shape == (2, 50, 3)
        assert problem.y.shape == (2, 50, d)
        assert torch.equal(problem.y, problem.y.round())
        if d > 1:
            assert problem.y.sum(-1).max() == 1
        assert problem.mi.min() >= 0


@pytest.mark.parametrize("d", [1, 2, 4, 7])
def test_the_truth_of_labels_is_that_of_the_labels_that_are_shown(d):
    """No more than the entropy of y: nothing is merged on the way."""
    torch.manual_seed(0)
    label = MIXTURES["broad"].families["labels"][1]
    for _ in range(25):
        problem = label(2, 4000, 3, d, torch.device("cpu"))
        for y, mi in zip(problem.y, problem.mi, strict=True):
            share = y.unique(dim=0, return_counts=True)[1] / len(y)
            assert mi < -(share * share.log()).sum() + 0.1


@pytest.mark.parametrize("kind", ["constant", "copies", "combinations"])
def test_redundant_columns_add_no_rank(kind):
    torch.manual_seed(0)
    side = torch.randn(2, 60, 3)
    padded = broad._padded(side, 5, [kind])
    assert padded.shape == (2, 60, 5)
    centred = (padded - padded.mean(1, keepdim=True)).double()
    assert torch.linalg.matrix_rank(centred, rtol=1e-5).tolist() == [3, 3]


def test_curves_bend_and_follow_the_other_columns():
    torch.manual_seed(0)
    side = torch.randn(2, 30, 1)
    padded = broad._padded(
        torch.cat([side, side], dim=1), 3, ["curves"]
    )  # equal rows stay equal, so nothing new is told
    torch.testing.assert_close(padded[:, :30], padded[:, 30:])
    centred = (padded - padded.mean(1, keepdim=True)).double()
    assert (torch.linalg.matrix_rank(centred, rtol=1e-5) > 1).all()


@pytest.mark.parametrize("rho", [-0.8, 0.0, 0.6])
def test_radial_rows_depend_through_their_lengths_alone(rho):
    torch.manual_seed(0)
    x, y, mi = families.radial(torch.tensor([rho]), torch.tensor([[0.3, 1.2]]), 100_000, 3, 2)
    torch.testing.assert_close(mi, -0.5 * torch.log1p(-(torch.tensor([rho]) ** 2)))
    lengths = torch.stack([t[0].norm(dim=1).log() for t in (x, y)])
    assert torch.corrcoef(lengths)[0, 1].item() == pytest.approx(rho, abs=0.02)
    torch.testing.assert_close(lengths.std(1), torch.tensor([0.3, 1.2]), atol=0.02, rtol=0)
    directions = torch.cat([t[0] / t[0].norm(dim=1, keepdim=True) for t in (x, y)], dim=1)
    assert (torch.corrcoef(directions.T) - torch.eye(5)).abs().max() < 0.02


def test_modulated_lengths_follow_the_other_side_without_correlation():
    torch.manual_seed(0)
    x, y, mi = families.modulated(torch.tensor([[0.8, 0.5]]), torch.tensor([0.6]), 100_000, 5, 3)
    torch.testing.assert_close(mi, torch.tensor([-0.5 * math.log(0.36) - 0.5 * math.log(0.75)]))
    lengths = x[0, :, :4].unflatten(1, (2, 2)).square().sum(2).log()
    both = torch.corrcoef(torch.cat([lengths, y[0]], dim=1).T)
    expected = torch.zeros(2, 3)
    expected[0, 0], expected[1, 1] = 0.8, 0.5
    torch.testing.assert_close(both[:2, 2:], expected, atol=0.02, rtol=0)
    assert torch.corrcoef(torch.cat([x[0], y[0]], dim=1).T)[:5, 5:].abs().max() < 0.02
