"""Fitting the estimator. Needs the ``train`` extra: pip install "mist-loss[train]"."""
