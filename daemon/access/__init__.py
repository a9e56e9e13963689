"""Who may do what: keys and tokens, roles, limits per key, origins, TLS; docs/security.md.

    request -> middleware -> gate: policy (what does it need?) -> origins -> credentials -> keys | tokens | minting
                   |                                                                            |
                   v                                                                         principal
            streams, with an account of usage                                            (name, roles, limits)

`gate` and everything that it asks is sans-IO; `middleware`, `routes`, `connections` and `tls` are its thin edges.
"""
