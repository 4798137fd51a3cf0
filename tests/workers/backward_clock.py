"""`distgan` on a machine whose clock runs backwards, by an hour at each look. For test_faults.

python backward_clock.py train ...
"""

import itertools
import sys
import time

from distgan.cli.main import main

if __name__ == "__main__":
    hours, now = itertools.count(), time.time()
    time.time = lambda: now - 3600 * next(hours)
    time.time_ns = lambda: int(time.time() * 1e9)
    sys.exit(main(sys.argv[1:]))
