import torch

from mist_loss import provenance


def test_versions_of_what_is_installed():
    assert provenance.versions(("torch", "no-such-package")) == {"torch": torch.__version__.partition("+")[0]}


def test_machine_is_one_line():
    assert "cores" in provenance.machine()
    assert "\n" not in provenance.machine()


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "mist_loss" / "provenance.py"))
    assert provenance.commit() == "unknown"
