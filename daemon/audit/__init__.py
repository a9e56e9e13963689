"""Who saw what of which call, what was analysed, and how long it is all kept."""
