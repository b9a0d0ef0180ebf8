#!/bin/sh
# In an image: makes /opt/flow-rewards/src importable and writes commands, `name=module` each.
set -eu
home=/opt/flow-rewards
for site in "$home"/lib/python3*/site-packages; do
  echo "$home/src" > "$site/flow_rewards.pth"
done
for command in "$@"; do
  printf '#!/bin/sh\nexec %s/bin/python -m %s "$@"\n' "$home" "${command#*=}" > "$home/bin/${command%%=*}"
  chmod 755 "$home/bin/${command%%=*}"
done
# The root file system will be read-only: nothing could be compiled later.
"$home/bin/python" -m compileall -q "$home/src"
