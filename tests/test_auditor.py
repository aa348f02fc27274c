import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mist_loss import MISTCriterion, QueuedCriterion
from mist_loss.auditor import Audit, AuditWarning, MIAuditor, certify, gaussian_rows, principal_scores
from mist_loss.meta.families import canonical_normal, signed_normal
from mist_loss.meta.structures import canonical_mi


def gaussian(n: int, d: int, *rho: float) -> tuple[Tensor, Tensor]:
    x, y, _ = canonical_normal(torch.tensor([*rho] + [0.0] * (d - len(rho)))[None], n, d, d)
    return x[0], y[0]


class Says(MISTCriterion):
    """Adds a constant to what the criterion finds."""

    extra = 0.0

    def _predict(self, x: Tensor, y: Tensor) -> Tensor:
        return (super()._predict(x, y) + self.extra).clamp(min=0)


@pytest.fixture(scope="module")
def criterion():
    return Says()


@pytest.fixture(autouse=True)
def honest(criterion):
    criterion.extra = 0.0


@pytest.mark.parametrize("rho", [(), (0.6,), (0.9, 0.8), (0.95, 0.95, 0.9, 0.9)])
def test_is_silent_about_the_truth(criterion, rho):
    codes = gaussian(512, 6, *rho)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = MIAuditor(criterion, lambda: codes).audit()
    truth = canonical_mi(torch.tensor(rho)).item() if rho else 0.0
    assert found.reasons == ()
    assert found.rows == 512
    assert found.certified <= truth + 3 * found.error + 0.05  # a lower bound
    assert found.certified > 0.7 * truth - 0.1
    assert found.shuffled <= 0.25


def test_goes_on_where_its_state_was_saved(criterion, tmp_path):
    codes = gaussian(128, 2, 0.5)
    first = MIAuditor(criterion, lambda: codes, every=3)
    for _ in range(5):
        first.step()
    torch.save(first.state_dict(), tmp_path / "auditor.pt")
    second = MIAuditor(criterion, lambda: codes, every=3)
    second.load_state_dict(torch.load(tmp_path / "auditor.pt", weights_only=True))
    assert second.history == first.history
    assert isinstance(second.history[0].reasons, tuple)
    found = second.step()
    assert found is not None
    assert found == first.step()


@pytest.mark.parametrize("state", [{}, {"steps": -2, "history": []}, {"steps": 1, "history": [{"step": 1}]}, None])
def test_a_foreign_state_is_refused_and_changes_nothing(criterion, state):
    auditor = MIAuditor(criterion, lambda: gaussian(128, 2, 0.5))
    auditor.steps = 4
    with pytest.raises(ValueError, match="state_dict of a MIAuditor"):
        auditor.load_state_dict(state)
    assert (auditor.steps, auditor.history) == (4, [])


def test_warns_of_a_claim_that_nothing_certifies(criterion):
    codes = gaussian(512, 6, 0.9)
    criterion.extra = 1.0
    auditor = MIAuditor(criterion, lambda: codes)
    with pytest.warns(AuditWarning, match=r"step 0: the criterion says .* on 512 held-out rows.* may exploit"):
        found = auditor.audit()
    assert found.value > found.certified + found.shortfall
    assert found.shuffled == 1.0
    assert any("100% of shuffled sets" in reason for reason in found.reasons)
    assert auditor.history == [found]


def test_warns_of_dependence_that_is_not_seen(criterion):
    codes = gaussian(512, 4, 0.9)
    criterion.extra = -5.0
    with pytest.warns(AuditWarning, match="does not see what is shared"):
        assert MIAuditor(criterion, lambda: codes).audit().value == 0


def test_tolerance_is_borne(criterion):
    codes = gaussian(512, 4, 0.8)
    criterion.extra = -5.0
    assert MIAuditor(criterion, lambda: codes, tolerance=1.0).audit().reasons == ()


def test_audits_every_so_many_steps(model):
    calls = []

    def codes() -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        calls.append(1)
        return torch.randn(64, 2), torch.randn(64, 2)

    auditor = MIAuditor(MISTCriterion(model), codes, every=3, tolerance=1e3)
    results = [auditor.step() for _ in range(7)]
    assert [result is None for result in results] == [True, True, False, True, True, False, True]
    assert [audit.step for audit in auditor.history] == [3, 6]
    assert len(calls) == 2


def test_leaves_everything_as_it_was(model):
    criterion = MISTCriterion(model, frozen=False).train()
    x, y = torch.randn(64, 2), torch.randn(64, 3)
    criterion(x, y)
    last, state = criterion.last, torch.get_rng_state()
    audits = [MIAuditor(criterion, lambda: (x, y), tolerance=1e3).audit() for _ in range(2)]
    assert audits[0] == audits[1]
    assert criterion.last is last
    assert criterion.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in criterion.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", ["plain", "constant", "collinear", "wide"])
def test_any_codes_give_finite_findings(model, dtype, case):
    x = torch.randn(64, 100 if case == "wide" else 3)
    x = {"constant": torch.ones_like(x), "collinear": x[:, :1].expand(-1, 3)}.get(case, x).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = MIAuditor(MISTCriterion(model), lambda: (x, x.clone())).audit()
    assert all(torch.tensor(found[1:9]).isfinite())


@pytest.mark.parametrize("nats", [0.0, 0.5, 3.0])
def test_control_rows_share_what_they_should(nats):
    u, v = gaussian(20_000, 3, 0.8, 0.4)
    a, b = gaussian_rows(u, v, nats, torch.Generator().manual_seed(0))
    both = torch.cat([a, b], 1).double()
    truth = -0.5 * (torch.logdet(torch.cov(both.T)) - torch.logdet(torch.cov(a.double().T)))
    truth = truth + 0.5 * torch.logdet(torch.cov(b.double().T))
    assert truth.item() == pytest.approx(nats, abs=0.03)


def test_critic_sees_what_correlation_does_not():
    x, y, mi = signed_normal(torch.full((1, 1), 0.95), torch.full((1,), 0.5), 1024, 1, 1)
    u, v = principal_scores(x[0]), principal_scores(y[0])
    bound, error = certify(u, v, torch.Generator().manual_seed(0))
    assert 0.3 * mi.item() < bound < mi.item() + 2 * error


def test_scores_ignore_monotone_maps():
    x = torch.randn(100, 3)
    assert torch.equal(principal_scores(x), principal_scores(x.exp()))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((torch.zeros(63, 2), torch.zeros(63, 2)), "at least 64 rows, got 63"),
        ((torch.zeros(2, 64, 2), torch.zeros(2, 64, 2)), "audit one set at a time"),
        ((torch.zeros(64, 2) / 0, torch.zeros(64, 2)), "expected finite held-out codes"),
        ((torch.zeros(64, 2), torch.zeros(65, 2)), "as many rows in x as in y"),
    ],
)
def test_bad_codes(model, codes, message):
    with pytest.raises(ValueError, match=message):
        MIAuditor(MISTCriterion(model), lambda: codes).audit()


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": 1.5},
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
        {"tolerance": "a"},
        {"codes": None},
    ],
)
def test_bad_options(model, options):
    with pytest.raises(ValueError, match=f"expected {next(iter(options))}"):
        MIAuditor(MISTCriterion(model), **({"codes": lambda: (torch.zeros(64, 1),) * 2} | options))


def test_core_and_auditor_import_no_lightning():
    import subprocess

    code = "import sys, mist_loss; assert not [m for m in sys.modules if 'lightning' in m], 'lightning'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_lightning_names_what_to_install(model, monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="pip install lightning"):
        MIAuditor(MISTCriterion(model), lambda: (torch.zeros(64, 1),) * 2).callback()


def test_lightning_callback(model, tmp_path):
    try:
        import lightning.pytorch as pl
    except ImportError:
        pl = pytest.importorskip("pytorch_lightning")

    held = torch.randn(64, 4)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.criterion = nn.Linear(4, 2), MISTCriterion(model)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self.criterion(self.encoder(batch[0]), batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    module = Module()
    auditor = MIAuditor(module.criterion, lambda: (module.encoder(held), held), every=2, tolerance=1e3)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(80, 4)), batch_size=16)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, callbacks=[auditor.callback()], **quiet
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    assert [audit.step for audit in auditor.history] == [2, 4]
    assert trainer.callback_metrics["audit/value"] == pytest.approx(auditor.history[-1].value)


def test_labels_that_share_nothing_are_certified_nothing():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.one_hot(torch.randint(10, (1000,), generator=generator), 10) for _ in range(2))
    u, v = (principal_scores(side.float()) for side in (x, y))
    certified, _ = certify(u, v, generator)
    assert certified < 0.2


def test_a_wrapper_is_refused_at_once(model):
    queue = QueuedCriterion(MISTCriterion(model), 64, 2, 2)
    with pytest.raises(ValueError, match="criterion in it"):
        MIAuditor(queue, lambda: (torch.randn(64, 2), torch.randn(64, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [lambda t: t.double() + 1e8, lambda t: t.double() * 1e40])
def test_offset_and_scale_of_the_codes_do_not_matter(criterion, change):
    codes = gaussian(256, 4, 0.9, 0.8)
    plain = MIAuditor(criterion, lambda: codes).audit()
    found = MIAuditor(criterion, lambda: (change(codes[0]), change(codes[1]))).audit()
    assert found.reasons == plain.reasons == ()
    assert found.certified == pytest.approx(plain.certified, abs=0.05)


def test_an_audit_seeds_no_other_device(criterion, monkeypatch):
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    codes = gaussian(64, 2, 0.5)
    MIAuditor(criterion, lambda: codes).audit()
    assert not seeds


def test_the_default_dtype_does_not_matter_to_an_audit(criterion):
    codes = gaussian(64, 2, 0.5)
    torch.set_default_dtype(torch.float64)
    try:
        assert MIAuditor(criterion, lambda: codes).audit().rows == 64
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_device_does_not_matter_to_an_audit(criterion):
    codes = gaussian(64, 2, 0.5)
    expected = MIAuditor(criterion, lambda: codes).audit()
    with torch.device("meta"):  # where whatever does not say where it is has no numbers
        assert MIAuditor(criterion, lambda: codes).audit() == expected


def test_codes_that_are_no_tensors_are_refused(criterion):
    x, y = (t.numpy() for t in gaussian(64, 2, 0.5))
    with pytest.raises(ValueError, match="expected x to be a tensor, got ndarray"):
        MIAuditor(criterion, lambda: (x, y)).audit()  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("direct", [True, False])
def test_a_warning_points_at_whoever_asked(direct):
    auditor = MIAuditor(MISTCriterion(), lambda: (torch.zeros(64, 1),) * 2, every=1)
    auditor._compare = lambda x, y: Audit(0, 64, 1.0, 0.9, 1.1, 0.0, 0.0, 1.0, 0.0, ("they part",))  # type: ignore[method-assign]
    with pytest.warns(AuditWarning) as caught:
        auditor.audit() if direct else auditor.step()
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("codes", [None, torch.ones(9, 2), (torch.ones(9, 2),)])
def test_codes_that_are_no_pair_are_refused(codes):
    with pytest.raises(ValueError, match="two held-out codes"):
        MIAuditor(MISTCriterion(), lambda: codes).audit()
