"""`python -m octopus_mcore` is `octopus-mcore`."""

from octopus_mcore.cli import app

if __name__ == "__main__":
    app()
