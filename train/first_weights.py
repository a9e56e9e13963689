"""First weights of members that are compared in pairs: what two of them share begins alike, whatever else each of them has."""

import hashlib

import torch

from model.network.member import Member


def draw_by_name(member: Member, seed: int) -> None:
    """Draws the weights of every module anew, each from a seed that `seed` and the module's name give.

    Built in the order of their construction, all modules behind one that another member lacks are other draws. Weights that
    are no draw (of norms, lambda of VGA) stay what they are. Torch's own generator is left where it was.
    """
    with torch.random.fork_rng(devices=()):
        for name, module in member.named_modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
                torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                reset()
