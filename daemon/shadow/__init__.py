"""Shadow mode: a second bundle beside the one that is served."""
