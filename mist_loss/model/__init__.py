"""The estimator: an invariant front end, summaries of the aligned sample, and a set transformer over its rows."""
