"""Training: corpora, features, the four stages of MEDUSA, evaluation and reports."""
