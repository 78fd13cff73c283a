"""The command `hotswap`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from hotswap.config import (
    ConfigError,
    Settings,
    listening_on,
    load_settings,
    settle_files,
    settle_threads,
    warnings_about,
)
from hotswap.console import print_error, print_warning
from hotswap.errors import HotswapError
from hotswap.handover import Image, inherit
from hotswap.streams import settle_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the command line says, until told to stop.

    Returns:
        The exit code: 2 if the server could not be started as asked, 130 after Ctrl-C before it
        serves.
    """
    try:
        image = inherit(os.environ)
        read = partial(_read, sys.argv[1:] if argv is None else argv, image)
        settings = read()
        if settings.server.log_format != "json":  # else they are lines of the log
            for warning in warnings_about(settings):
                print_warning(warning)
        settle_files()
        settle_threads()
        # Only here: --help need not wait for what serves.
        from hotswap.server import run  # noqa: PLC0415

        return run(settings, image, read)
    except (ConfigError, HotswapError) as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:  # before the server heeds signals
        return 130


def _read(argv: Sequence[str], image: Image) -> Settings:
    settings = load_settings(argv, image.environment)
    return settings if image.host is None else listening_on(settings, image.host)


def command() -> NoReturn:
    """`main` as a command of its own. Everything has ended in order when it returns, so the process
    need not take the interpreter apart: libraries then tell of leaks that nobody can mend. Where it
    raises, it must not: a thread may be importing torch, which ends in a crash then."""
    settle_streams()
    try:
        exit_code = main()
    except SystemExit as leaving:  # --help, --version, a flag that is not known
        exit_code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # nobody foresaw it
        sys.excepthook(*sys.exc_info())
        exit_code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    command()
