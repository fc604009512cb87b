"""tools/index_net.py for runs with the tests' small network: what torchrun starts in test_build.py."""

import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools")]

import tests.deploy.small  # noqa: E402, F401  (registers the network)

if __name__ == "__main__":
    runpy.run_path(str(REPOSITORY / "tools/index_net.py"), run_name="__main__")
