"""Fitting the estimator. ``pretrain`` needs the ``train`` extra: pip install "mist-loss[train]"."""
