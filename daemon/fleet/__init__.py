"""Scale-out: gateways hold sockets and cut utterances, workers hold models, Redis holds the work between them."""
