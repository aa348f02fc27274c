"""Adapting the estimator to a modality. Needs the ``flows`` extra: pip install "mist-loss[flows]"."""
