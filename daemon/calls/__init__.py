"""A call as one object: what its streams say, folded; its summary, its alerts, and the page that shows it."""
