"""`reward-serve NAME [settings]` serves the reward in the folder `reward_services/NAME`, and `reward-serve
FILE.py [settings]` the one in a file of one's own. Both name their scorer class SCORER.

Heavy imports wait until the arguments are read, so that --help answers at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reward_services.chassis.scorer import Scorer

EXIT_USAGE = 2


class UsageError(Exception):
    """One line for whoever typed the command."""


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
            f"usage: reward-serve NAME [settings]\n       reward-serve FILE.py [settings]\n"
            f"       reward-serve --list\n"
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
    reward, *flags = arguments
    own = Path(reward) if reward.endswith(".py") else None
    name = reward if own is None else own.stem
    try:
        scorer_class = _shipped(name) if own is None else _from_file(own)
    except ImportError as error:
        hint = f"; pip install 'flow-rewards[{name}]'" if own is None else f", which {own} imports"
        return _usage_error(f"{error}{hint}")
    except UsageError as error:
        return _usage_error(str(error))

    from reward_services.run import run

    return run(name, scorer_class, flags, os.environ, other_rewards=rewards())


def _shipped(name: str) -> type[Scorer]:
    if name not in rewards():
        raise UsageError(f"there is no reward {name!r}{_nearest(name)}; reward-serve --list")
    return importlib.import_module(f"reward_services.{name}.scorer").SCORER


def _from_file(path: Path) -> type[Scorer]:
    """The class that the file calls SCORER; raises UsageError and what its imports raise. Modules beside
    the file are found, as they are by `python FILE.py`."""
    from reward_services.chassis.scorer import Scorer

    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if not path.stem.isidentifier() or not path.stem.islower():
        raise UsageError(
            f"{path.name}: the file's name is the reward's, so it has lower-case letters, digits and _ only"
        )
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"own_reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    scorer = getattr(module, "SCORER", None)
    if not (isinstance(scorer, type) and issubclass(scorer, Scorer)):
        raise UsageError(
            f"{path} has no SCORER, the class derived from Scorer that is to be served"
        )
    if missing := sorted(scorer.__abstractmethods__):
        raise UsageError(f"{path}: {scorer.__name__} lacks {', '.join(missing)}")
    return scorer


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, rewards(), n=1)
    return f", did you mean {close[0]}" if close else ""


def _usage_error(message: str) -> int:
    sys.stderr.write(f"reward-serve: {message}\n")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
