"""The four stages: full data, balanced subsets, linear meta-classifier on out-of-fold predictions, soup."""
