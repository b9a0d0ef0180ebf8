#!/bin/sh
# In an image: installs what others wrote for some extras of pyproject.toml into /opt/flow-rewards.
#   install.sh EXTRA...    with CONSTRAINTS (file) and PIP_ARGS (more arguments) in the environment
set -eu
pip() { python -m pip --python /opt/flow-rewards/bin/python --disable-pip-version-check "$@"; }

test $# -gt 0 || { echo "build with --build-arg REWARD=NAME" >&2; exit 1; }
python requirements.py "$@" > requirements.txt
# shellcheck disable=SC2086  # several arguments
pip install ${PIP_ARGS:-} --constraint "$CONSTRAINTS" --requirement requirements.txt

# opencv-python draws windows, so it wants libGL; its headless twin is the same code without them.
opencv=$(pip list --format=freeze | sed -n 's/^opencv-python==//p')
if [ -n "$opencv" ]; then
  pip uninstall --yes opencv-python
  pip install --no-deps --force-reinstall "opencv-python-headless==$opencv"
fi

# The image's bill of materials: names, versions and licences of what is in it.
pip inspect > /opt/flow-rewards/packages.json
