"""Run the command line with ``python -m maskmill``."""

import sys
from pathlib import Path

# in a checkout Python lists its folder, whose packages would pass for others: transformers asks for one named `kernels`
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE]

from .cli import main  # noqa: E402

if __name__ == "__main__":
    main()
