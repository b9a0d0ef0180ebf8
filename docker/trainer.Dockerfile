# The trainer: docker build -f docker/trainer.Dockerfile -t flow-rewards/trainer .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
ARG EXTRA=trainer
ARG CONSTRAINTS=constraints.txt
ARG PIP_ARGS=""
WORKDIR /src
RUN python -m venv --without-pip /opt/flow-rewards
COPY pyproject.toml constraints*.txt docker/requirements.py docker/install.sh ./
RUN --mount=type=cache,target=/root/.cache/pip sh install.sh ${EXTRA}

FROM ${BASE_IMAGE}
# model.compile: Triton builds the launcher of its kernels with a C compiler, on the machine that runs them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages /opt/flow-rewards /opt/flow-rewards
COPY proto/reward_api /opt/flow-rewards/src/reward_api
COPY trainer/flow_trainer /opt/flow-rewards/src/flow_trainer
COPY docker/commands.sh /tmp/
RUN sh /tmp/commands.sh flow-grpo=flow_trainer reward-score=reward_api.cli \
    && useradd --uid 10001 --no-create-home --home-dir /tmp trainer \
    && mkdir -p /weights /trainer/runs /compiled && chown 10001:10001 /weights /trainer/runs /compiled
# Recipes name prompts and the tiny model relative to themselves: the folders keep their places.
COPY trainer/recipes /trainer/recipes
COPY --chown=10001:10001 trainer/prompts /trainer/prompts
COPY trainer/tiny_sd3 /trainer/tiny_sd3
USER 10001:10001
WORKDIR /trainer

ENV PATH=/opt/flow-rewards/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/weights \
    TORCHINDUCTOR_CACHE_DIR=/compiled/inductor \
    TRITON_CACHE_DIR=/compiled/triton \
    PYTORCH_ALLOC_CONF=expandable_segments:True

LABEL org.opencontainers.image.title="flow-grpo" \
      org.opencontainers.image.description="Flow-GRPO trainer for flow-matching text-to-image models" \
      org.opencontainers.image.licenses="Apache-2.0"
# /compiled holds libraries: a volume, since a tmpfs is mounted noexec, and compiled once for all runs.
# /trainer/prompts: a new volume begins with the tiny model's words, and full-size prompts are written beside.
VOLUME ["/weights", "/trainer/runs", "/trainer/prompts", "/compiled"]
# The first SIGTERM saves, then the trainer leaves.
STOPSIGNAL SIGTERM
ENTRYPOINT ["flow-grpo"]
CMD ["--help"]
