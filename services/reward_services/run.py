"""From command line to exit status, for any Scorer class: also one from outside this repository."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence

from reward_services.chassis.cli import SettingsError, parse_settings, unknown_variables
from reward_services.chassis.scorer import Scorer
from reward_services.chassis.threads import bound_libraries

EXIT_USAGE = 2


def run(
    name: str,
    scorer_class: type[Scorer],
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    other_rewards: Collection[str] = (),
) -> int:
    """Serves `scorer_class` as the reward `name` until a signal; returns the exit status::

    sys.exit(run("brightness", Brightness, sys.argv[1:], os.environ))
    """
    try:
        settings, own = parse_settings(name, scorer_class.Settings, argv, environ)
    except SettingsError as error:
        sys.stderr.write(f"reward-serve {name}: {error}\n")
        return EXIT_USAGE

    bound_libraries()
    # Only now: --help and wrong settings answer without loading web servers.
    from reward_services.serve import serve

    unknown = unknown_variables(name, scorer_class.Settings, environ, other_rewards)
    for variable, nearest in unknown.items():
        hint = f"; did you mean {nearest}?" if nearest else ""
        sys.stderr.write(f"reward-serve {name}: {variable} is not a setting{hint}\n")
    return serve(name, scorer_class(own), settings)
