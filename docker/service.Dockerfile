# One image per reward: docker build --build-arg REWARD=ocr -f docker/service.Dockerfile .
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

ARG REWARD
# For another set of packages: EXTRA=ocr-paddle with CONSTRAINTS=constraints-paddle.txt.
ARG EXTRA=${REWARD}
ARG CONSTRAINTS=constraints.txt
# Debian packages that the reward's libraries load, e.g. "libgl1 libglib2.0-0" for ocr-paddle.
ARG APT_PACKAGES=""

RUN if [ -n "${APT_PACKAGES}" ]; then \
      apt-get update \
      && apt-get install -y --no-install-recommends ${APT_PACKAGES} \
      && rm -rf /var/lib/apt/lists/*; \
    fi

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints*.txt ./
COPY proto proto
COPY services services
COPY trainer trainer
RUN test -n "${EXTRA}" || { echo "build with --build-arg REWARD=NAME" >&2; exit 1; } \
    && pip install --no-cache-dir --disable-pip-version-check --constraint "${CONSTRAINTS}" ".[${EXTRA}]"

RUN useradd --create-home --uid 10001 reward
USER 10001
WORKDIR /home/reward

# glibc hands freed image buffers back to the kernel and faults them in again for the next request;
# these thresholds keep them (measured: 3.6 times less CPU for a gRPC message of 3 MB).
ENV MALLOC_MMAP_THRESHOLD_=1073741824 \
    MALLOC_TRIM_THRESHOLD_=4294967296 \
    MALLOC_TOP_PAD_=67108864 \
    PYTHONUNBUFFERED=1 \
    REWARD=${REWARD} \
    REWARD_HOST=0.0.0.0 \
    REWARD_HTTP_PORT=8000 \
    REWARD_GRPC_PORT=9000 \
    REWARD_LOG_FORMAT=json

EXPOSE 8000 9000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['REWARD_HTTP_PORT'] + '/readyz', timeout=2)"]

# exec: SIGTERM reaches the service, which then drains.
CMD ["sh", "-c", "exec reward-serve \"$REWARD\""]
