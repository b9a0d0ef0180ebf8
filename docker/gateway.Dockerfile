# The front door: docker build -f docker/gateway.Dockerfile .
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/*
COPY docker/haproxy.cfg /etc/haproxy/haproxy.cfg
RUN haproxy -c -q -f /etc/haproxy/haproxy.cfg
USER 10001:10001
LABEL org.opencontainers.image.title="flow-rewards gateway" \
      org.opencontainers.image.description="One port per reward over all its replicas" \
      org.opencontainers.image.licenses="Apache-2.0"
EXPOSE 8100-8111 9100-9111 8404
# The soft stop: calls under way are finished.
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=5s --timeout=10s --start-period=10s CMD ["bash", "-c", "</dev/tcp/127.0.0.1/8100"]
CMD ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
