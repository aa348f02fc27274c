"""Flows of one side: they fit, they invert, and what does not fit is refused."""

import math
import sys

import pytest
import torch

pytest.importorskip("normflows")
from mist_loss.flows import marginals
from mist_loss.flows.marginals import PoorFit, fit_marginal, require_fit
from mist_loss.flows.two_sample import two_sample_auc


def banana(n: int) -> torch.Tensor:
    x = torch.randn(n, 2)
    return torch.stack([x[:, 0], x[:, 0] ** 2 + 0.3 * x[:, 1]], dim=1)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    return fit_marginal(banana(1500), layers=3, hidden=32, epochs=15)


def test_fits_better_than_a_gaussian(fitted):
    marginal, report = fitted
    # the entropy of the banana is that of its two normal factors; whitened, it loses the log-determinant
    entropy = math.log(2 * math.pi * math.e) + math.log(0.3)
    whitened = entropy - torch.log(marginal.scale).sum().item() - torch.log(marginal.spread).sum().item()
    assert report.log_likelihood > report.gaussian + 1
    assert abs(report.log_likelihood + whitened) < 0.3
    assert report.auc < 0.6 < report.auc_gaussian
    assert (report.rows, report.dims, report.width, report.explained) == (1500, 2, 2, pytest.approx(1.0))


def test_round_trip(fitted):
    marginal, report = fitted
    normal = torch.randn(2, 300, 2, dtype=torch.float64)
    rows = marginal.generate(normal)
    assert rows.shape == (2, 300, 2)
    back, _ = marginal.flow(marginal.whiten(rows.flatten(0, 1)))
    torch.testing.assert_close(back, normal.flatten(0, 1), atol=1e-6, rtol=0)
    assert report.round_trip < 1e-4


def test_far_rows_stay_finite(fitted):
    marginal, _ = fitted
    rows = marginal.generate(torch.tensor([[40.0, -40.0], [0.0, 7.0]]))
    assert rows.isfinite().all()
    assert all(t.isfinite().all() for t in marginal.flow(marginal.whiten(rows)))


def test_log_determinant_is_that_of_the_jacobian_in_double_precision(fitted):
    white = torch.randn(5, 2, dtype=torch.float64)
    _, log_det = fitted[0].flow(white)
    assert log_det.dtype == torch.float64  # normflows adds layers up in single precision
    exact = [torch.linalg.slogdet(torch.func.jacrev(lambda w: fitted[0].flow(w[None])[0][0])(row))[1] for row in white]
    torch.testing.assert_close(log_det, torch.stack(exact), atol=1e-9, rtol=0)


@pytest.mark.parametrize("layers", [1, 4, 9])
def test_any_depth_starts_as_the_identity_and_stays_finite(layers):
    torch.manual_seed(layers)
    marginal, report = fit_marginal(banana(400), layers=layers, hidden=16, epochs=2, strict=False)
    assert math.isfinite(report.log_likelihood)
    assert report.log_likelihood > report.gaussian - 1e-6  # the start is a Gaussian, and is kept unless something gains
    assert report.round_trip < 1e-4
    assert all(parameter.isfinite().all() for parameter in marginal.parameters())


def test_steps_that_are_not_finite_are_dropped(monkeypatch):
    original, calls = marginals.Marginal.log_likelihood, []

    def sometimes_nan(self, white):
        calls.append(1)
        return original(self, white) * (math.nan if white.requires_grad is False and len(calls) % 3 == 0 else 1)

    monkeypatch.setattr(marginals.Marginal, "log_likelihood", sometimes_nan)
    marginal, _ = fit_marginal(banana(400), layers=2, hidden=16, epochs=4, strict=False)
    assert len(calls) > 6
    assert marginal.generate(torch.randn(50, 2)).isfinite().all()


def test_one_dimension_is_a_spline():
    x = torch.where(torch.rand(800) < 0.3, -2 + 0.3 * torch.randn(800), 1 + torch.randn(800).abs())[:, None]
    marginal, report = fit_marginal(x, epochs=30)
    assert report.log_likelihood > report.gaussian + 0.4
    assert report.auc < 0.65
    assert report.round_trip < 1e-4
    normal, _ = marginal.flow(marginal.whiten(x))
    steps = normal[x[:, 0].argsort(), 0].diff()
    assert (steps >= 0).all() or (steps <= 0).all()  # invertible in one dimension: monotone


def test_too_wide_for_the_rows_keeps_principal_directions():
    x = torch.randn(200, 3) @ torch.randn(3, 30) + 0.01 * torch.randn(200, 30)
    marginal, report = fit_marginal(x, layers=2, hidden=16, epochs=2)
    assert (report.width, report.dims) == (4, 30)
    assert report.explained > 0.99
    torch.testing.assert_close(marginal.project(x.numpy()), marginal.project(x), atol=0, rtol=0)
    assert marginal.project(x).shape == marginal.generate(torch.randn(200, 4)).shape == (200, 4)
    correlation = marginal.project(x).T.double().corrcoef()
    torch.testing.assert_close(correlation, torch.eye(4).double(), atol=0.1, rtol=0)


def test_low_rank_comes_back_in_its_own_coordinates():
    basis = torch.randn(2, 7)
    x = 5 + torch.randn(400, 2) @ basis
    marginal, report = fit_marginal(x, layers=2, hidden=16, epochs=2)
    assert report.width == 2
    rows = marginal.generate(torch.randn(100, 2)) - 5
    assert rows.shape == (100, 7)
    left = torch.linalg.lstsq(basis.T.double(), rows.T).solution
    torch.testing.assert_close(basis.T.double() @ left, rows.T, atol=1e-4, rtol=0)


def test_rows_of_the_flow_have_the_moments_of_the_data():
    x = torch.randn(2000, 3) @ torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [0, 0, 100]]) + torch.tensor([1.0, -3, 50])
    marginal, _ = fit_marginal(x, layers=2, hidden=16, epochs=3)
    rows = marginal.generate(torch.randn(20_000, 3)).float()
    torch.testing.assert_close(rows.mean(0) / x.std(0), x.mean(0) / x.std(0), atol=0.06, rtol=0)
    torch.testing.assert_close(rows.T.corrcoef(), x.T.corrcoef(), atol=0.06, rtol=0)


def test_the_same_seed_gives_the_same_flow_and_leaves_random_numbers_alone():
    x = banana(200)
    torch.manual_seed(3)
    first = fit_marginal(x, layers=2, hidden=16, epochs=2, seed=5, strict=False)
    after = torch.rand(2)
    torch.manual_seed(3)
    torch.testing.assert_close(torch.rand(2), after, atol=0, rtol=0)
    again = fit_marginal(x, layers=2, hidden=16, epochs=2, seed=5, strict=False)
    assert first[1]._replace(seconds=0) == again[1]._replace(seconds=0)


def test_time_is_bounded():
    _, report = fit_marginal(banana(2000), epochs=10_000, patience=10_000, seconds=0.5, strict=False)
    assert report.epochs < 1000


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(50, 2), "at least 100 rows"),
        (torch.full((200, 2), math.nan), "finite"),
        (torch.ones(200, 3), "nothing to fit"),
        (torch.randint(0, 5, (200, 2)).float(), "continuous"),
        (torch.randn(20, 2).repeat(10, 1), "continuous"),
        (torch.randn(200, 1).relu(), "continuous"),
    ],
)
def test_what_no_flow_can_fit_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        fit_marginal(x)


@pytest.mark.parametrize("width", [0, 4, 65])
def test_a_width_that_is_not_there_is_refused(width):
    with pytest.raises(ValueError, match="width"):
        fit_marginal(torch.randn(200, 3), width=width)


def test_a_flow_that_was_not_trained_is_refused_with_advice():
    x = torch.randint(0, 2, (600, 2)) * 6 + 0.1 * torch.randn(600, 2)  # four narrow clusters
    with pytest.raises(PoorFit, match=r"AUC.*more rows") as caught:
        fit_marginal(x, epochs=0)
    assert caught.value.report.auc > marginals.WORST_AUC


@pytest.mark.parametrize(
    ("change", "message"), [({"round_trip": math.nan}, "inverted"), ({"log_likelihood": -9.0}, "less likely")]
)
def test_every_fault_is_named(fitted, change, message):
    with pytest.raises(PoorFit, match=message):
        require_fit(fitted[1]._replace(**change), "x")


def test_without_normflows_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "normflows", None)
    with pytest.raises(ModuleNotFoundError, match=r"mist-loss\[flows\]"):
        fit_marginal(torch.randn(200, 2))


def test_classifier_tells_samples_apart_only_where_they_differ():
    same = two_sample_auc(torch.randn(600, 3), torch.randn(600, 3))
    shifted = two_sample_auc(torch.randn(600, 3), torch.randn(600, 3) + torch.tensor([3.0, 0, 0]))
    assert abs(same - 0.5) < 0.07
    assert shifted == pytest.approx(0.5 + 0.5 * math.erf(3 / 2), abs=0.02)  # P(difference of two normals > 0)


def test_autocast_does_not_reach_the_fit():
    rows = torch.randn(300, 2)
    plain, _ = fit_marginal(rows, epochs=2, strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = fit_marginal(rows, epochs=2, strict=False)
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(cast.state_dict()[key], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("label", [lambda z: torch.rand(len(z), 1) > 0.5, lambda z: z.sum(1, keepdim=True) > 0])
def test_a_label_among_continuous_columns_is_refused(label):
    z = torch.randn(400, 3)
    with pytest.raises(ValueError, match="column 3 with 2 values in 400 rows"):
        fit_marginal(torch.cat([z, label(z)], dim=1))


def test_zeros_of_a_relu_are_no_labels():
    often, seldom = torch.randn(400, 6).relu(), (torch.randn(400, 1) - 2).relu()
    _, report = fit_marginal(torch.cat([often, seldom], dim=1), layers=1, hidden=8, epochs=1, strict=False)
    assert report.width == 7


def test_rows_that_all_come_twice_are_refused():
    with pytest.raises(ValueError, match="repeated rows"):
        fit_marginal(banana(200).repeat(2, 1))


def test_inference_mode_gives_the_same_flow():
    rows = banana(200)
    expected, _ = fit_marginal(rows, layers=2, hidden=16, epochs=1, strict=False)
    with torch.inference_mode():
        found, _ = fit_marginal(rows.double(), layers=2, hidden=16, epochs=1, strict=False)
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], tensor, atol=0, rtol=0)


def test_the_default_dtype_does_not_matter():
    rows = banana(200)
    torch.set_default_dtype(torch.float64)
    try:
        marginal, report = fit_marginal(rows, layers=2, hidden=16, epochs=3, strict=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in marginal.parameters()} == {torch.float64}
    assert report.log_likelihood > report.gaussian
    assert report.round_trip < 1e-4
