"""The contract between training, export and serving: labels, units, features, posteriors, bundles."""
