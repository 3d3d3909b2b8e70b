"""The process of the parity check: `python -m latentrt.export.parity_child PARENT`. It ends when its parent does."""

import logging
import sys

from latentrt.runtime.in_place import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    from .parity import main  # takes seconds

    logging.disable(logging.WARNING)  # of libraries; the export has told its own
    sys.exit(main())
