#!/bin/sh
# In an image: compiles mmcv with its operators, in place of mmcv-lite. Takes a quarter of an hour on two cores.
set -eu
pip() { python -m pip --python /opt/flow-rewards/bin/python --disable-pip-version-check "$@"; }

apt-get update
apt-get install -y --no-install-recommends g++ ninja-build
pip uninstall --yes mmcv-lite
# mmcv's build reads pkg_resources, which setuptools 81 no longer has, and needs the installed torch.
pip install "setuptools<81" wheel
# Half of the compiler's time is debug information, which nobody reads here.
export MMCV_WITH_OPS=1 FORCE_CUDA CFLAGS=-g0
pip install --no-deps --no-build-isolation --no-binary mmcv \
  "mmcv==$MMCV_VERSION"
/opt/flow-rewards/bin/python -c "from mmcv.ops import MultiScaleDeformableAttention"
pip inspect > /opt/flow-rewards/packages.json
