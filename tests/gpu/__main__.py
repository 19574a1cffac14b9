"""`python tests/gpu`, or `make gpu-check`: is Litmus right on this CUDA card, and how fast? In under eight minutes, without a network.

Each part is a process of its own, so that one that fails or hangs does not stop the next. What a part finds is printed, and appended to
runs/gpu-*.jsonl, as it goes. The exit code is the sum of the numbers of the parts that failed (`gpu.parts`); 0 if none did.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # a folder's own place on the path is taken by those of its imports: `gpu`, and the product
sys.path.insert(1, str(HERE.parent.parent))

from gpu.parts import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
