"""The command `hotswap`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hotswap.config import ConfigError, load_settings, settle_threads, warnings_about
from hotswap.console import print_error, print_warning
from hotswap.errors import HotswapError


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the command line says, until told to stop.

    Returns:
        The exit code: 2 if the server could not be started as asked, 130 after Ctrl-C before it
        serves.
    """
    try:
        settings = load_settings(sys.argv[1:] if argv is None else argv)
        for warning in warnings_about(settings):
            print_warning(warning)
        settle_threads()
        # Only here: --help need not wait for what serves.
        from hotswap.server import run  # noqa: PLC0415

        return run(settings)
    except (ConfigError, HotswapError) as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:  # before the server heeds signals
        return 130


if __name__ == "__main__":
    sys.exit(main())
