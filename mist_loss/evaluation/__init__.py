"""Estimators on test corpora with known MI: corpora, metrics and the report of ``mist-loss bench``."""
