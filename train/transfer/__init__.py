"""From a trained ensemble to one for a corpus of one's own: with its labels, with few of them, or without any."""
