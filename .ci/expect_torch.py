"""``expect_torch.py torchX.Y``: is the torch that is installed the one that the environment is named after?"""

import re
import sys
from pathlib import Path

import torch

Path("results-local").mkdir(exist_ok=True)
named = re.search(r"torch(\d+(?:\.\d+)*)", sys.argv[1])
installed = torch.__version__.partition("+")[0]
if named and not f"{installed}.".startswith(f"{named[1]}."):
    sys.exit(f"{sys.argv[1]}: torch {installed} is installed, not {named[1]}")
