"""`reward-serve NAME [settings]`: serves the reward in the folder `reward_services/NAME`.

Heavy imports wait until the arguments are read, so that --help answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_USAGE = 2


def rewards() -> list[str]:
    """Names of the rewards: the folders beside this file that hold a scorer.py."""
    here = Path(__file__).parent
    return sorted(
        path.parent.name for path in here.glob("*/scorer.py") if path.parent.name != "chassis"
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(
            f"usage: reward-serve NAME [settings]\n       reward-serve --list\n"
            f"       reward-serve --probe\n       reward-serve --version\n\n"
            f"rewards: {', '.join(rewards())}\n`reward-serve NAME --help` lists the settings.\n"
            f"--probe: exit status 0 when the service that the environment configures is ready\n"
        )
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--list":
        sys.stdout.write("".join(f"{name}\n" for name in rewards()))
        return 0
    if arguments == ["--version"]:
        from reward_services import __version__

        sys.stdout.write(f"reward-serve {__version__}\n")
        return 0
    if arguments == ["--probe"]:
        from reward_services.chassis.probe import probe

        return probe(os.environ)
    name, *flags = arguments
    if name not in rewards():
        return _usage_error(f"there is no reward {name!r}{_nearest(name)}; reward-serve --list")
    try:
        scorer_class = importlib.import_module(f"reward_services.{name}.scorer").SCORER
    except ImportError as error:
        return _usage_error(f"{error}; pip install 'flow-rewards[{name}]'")

    from reward_services.run import run

    return run(name, scorer_class, flags, os.environ, other_rewards=rewards())


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, rewards(), n=1)
    return f", did you mean {close[0]}" if close else ""


def _usage_error(message: str) -> int:
    sys.stderr.write(f"reward-serve: {message}\n")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
