import sys

from detectkit.cli import main

sys.exit(main())
