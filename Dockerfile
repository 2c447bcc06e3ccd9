# tallyflow for production: no embedded engines, no root, nothing written but the data directory and /tmp.
#
#   docker build --tag tallyflow:0.1.0 .
#   docker run --read-only --tmpfs /tmp --volume tally:/var/lib/tally tallyflow:0.1.0 check
#
# One image for every process: `tally run`, `tally ingest`, `tally webhooks`, `tally migrate`.

FROM python:3.12-slim-bookworm AS build
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/tally \
    && /opt/tally/bin/pip install .

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="tallyflow" \
      org.opencontainers.image.description="Turns a stream of usage events into numbers that a customer can be charged for" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/tally
COPY --from=build /opt/tally /opt/tally
# Whoever runs it has no entry in /etc/passwd, hence HOME. Byte code was compiled when it was installed.
ENV PATH=/opt/tally/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TALLY_DATA_DIR=/var/lib/tally \
    TALLY_METRICS_PORT=9464
USER 10001:10001
WORKDIR /tmp
VOLUME /var/lib/tally
EXPOSE 8400 9464
# Of `tally run` and `tally ingest`; not by `tally health`, which imports as much as they do. Other commands switch it off.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", \
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9464, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["tally"]
CMD ["--help"]
