"""`python -m daemon` is `medusa-daemon`."""

from daemon.cli import app

if __name__ == "__main__":
    app()
