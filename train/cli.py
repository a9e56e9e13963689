"""`medusa-train`: its commands, or the line that says what to install for them."""

import sys

try:
    from train.commands import app as app
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] in ("model", "train", "export"):
        raise  # a mistake of ours is no package to install
    package = error.name.split(".")[0]
    sys.exit(f"medusa-train needs the package {package}, which is not here: pip install 'medusa-rt[train]'")
