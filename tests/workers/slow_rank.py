"""`distgan` with one rank that takes longer for each batch. For test_faults.

python slow_rank.py RANK SECONDS train ...
"""

import os
import sys
import time

from distgan.cli.main import main

if __name__ == "__main__":
    from distgan.data import loader

    if os.environ.get("RANK") == sys.argv[1]:
        take = loader.Stream.__next__

        def slowly(self: loader.Stream) -> loader.Batch:
            time.sleep(float(sys.argv[2]))
            return take(self)

        loader.Stream.__next__ = slowly
    sys.exit(main(sys.argv[3:]))
