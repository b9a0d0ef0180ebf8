# The image of any reward: docker build --build-arg REWARD=ocr -f docker/service.Dockerfile .
# docker/README.md explains the arguments. No `# syntax=` line: it would be pulled from a registry.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG MMCV_OPS=0

FROM ${BASE_IMAGE} AS packages
ARG REWARD
ARG EXTRA=${REWARD}
ARG CONSTRAINTS=constraints.txt
ARG PIP_ARGS=""
WORKDIR /src
RUN python -m venv --without-pip /opt/flow-rewards
COPY pyproject.toml constraints*.txt docker/requirements.py docker/install.sh ./
# Only what others wrote: a change of our code reuses this layer.
RUN --mount=type=cache,target=/root/.cache/pip sh install.sh ${EXTRA}

FROM packages AS packages-ops-0

# MMCV_OPS=1: GenEval's detector with mmcv's compiled operators in place of mmcv-lite.
FROM packages AS packages-ops-1
ARG MMCV_VERSION=2.1.0
# 1: CUDA operators too; BASE_IMAGE then needs the CUDA toolkit.
ARG FORCE_CUDA=0
COPY docker/mmcv_ops.sh ./
RUN --mount=type=cache,target=/root/.cache/pip sh mmcv_ops.sh

# hadolint ignore=DL3006
FROM packages-ops-${MMCV_OPS} AS installed

FROM ${BASE_IMAGE}
ARG REWARD
ARG APT_PACKAGES=""
# hadolint ignore=DL3008
RUN if [ -n "${APT_PACKAGES}" ]; then \
      apt-get update \
      && apt-get install -y --no-install-recommends ${APT_PACKAGES} \
      && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=installed /opt/flow-rewards /opt/flow-rewards
COPY proto/reward_api /opt/flow-rewards/src/reward_api
COPY services/reward_services /opt/flow-rewards/src/reward_services
COPY docker/commands.sh /tmp/
# HOME is /tmp, which stays writable when the root is not.
RUN sh /tmp/commands.sh reward-serve=reward_services reward-score=reward_api.cli \
      reward-gateway=reward_services.gateway \
    && useradd --uid 10001 --no-create-home --home-dir /tmp reward \
    && mkdir /weights && chown 10001:10001 /weights
USER 10001:10001
WORKDIR /weights

# glibc hands freed image buffers back to the kernel and faults them in again for the next request;
# these thresholds keep them (benchmarks/README.md: less than half the CPU of a gRPC client).
ENV PATH=/opt/flow-rewards/bin:$PATH \
    MALLOC_MMAP_THRESHOLD_=1073741824 \
    MALLOC_TRIM_THRESHOLD_=4294967296 \
    MALLOC_TOP_PAD_=67108864 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/weights \
    REWARD=${REWARD} \
    REWARD_HOST=0.0.0.0 \
    REWARD_HTTP_PORT=8000 \
    REWARD_GRPC_PORT=9000 \
    REWARD_LOG_FORMAT=json

LABEL org.opencontainers.image.title="flow-rewards ${REWARD}" \
      org.opencontainers.image.description="The reward ${REWARD} over HTTP (8000) and gRPC (9000)" \
      org.opencontainers.image.licenses="Apache-2.0"
EXPOSE 8000 9000
VOLUME /weights
STOPSIGNAL SIGTERM
# A model may load for minutes: until the first success, failures do not count.
HEALTHCHECK --interval=5s --timeout=10s --start-period=30m --retries=3 CMD ["reward-serve", "--probe"]

# exec: SIGTERM reaches the service, which then drains.
CMD ["sh", "-c", "exec reward-serve \"$REWARD\""]
