"""Train a network, and prove how robust it is: `python train.py [NAME] [--workdir DIR] [--field value ...]`."""

import sys

from mixtrain_jax import cli

if __name__ == "__main__":
    sys.exit(cli.train(sys.argv[1:]))
