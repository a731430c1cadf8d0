# Musher's image:   docker build -t musher .
#
# The first stage installs the locked versions into /opt/musher; the second adds that folder to a bare Python. No step
# needs a right that an ordinary user lacks. The container writes only into /data, so its root may be read-only.

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/uv && /opt/uv/bin/pip install --disable-pip-version-check uv==0.13.9
ENV PATH=/opt/uv/bin:$PATH \
    UV_PROJECT_ENVIRONMENT=/opt/musher \
    UV_PYTHON_DOWNLOADS=never \
    UV_PYTHON_PREFERENCE=only-system \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1
# The dependencies first: their layer stays while only our own code changes.
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --all-extras --no-extra demo --no-install-project
COPY README.md LICENSE ./
COPY crdt ./crdt
COPY bot ./bot
RUN uv sync --frozen --no-dev --all-extras --no-extra demo --no-editable
RUN mkdir -p /data && touch /data/.keep

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="musher" \
      org.opencontainers.image.description="A Matrix chat bot whose language model knows what the pipeline did" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/musher /opt/musher
COPY --from=build --chown=10001:10001 /data /data
# The environment goes over config.toml: in a container the database's place and the port are the image's to say, and
# the health check below can rely on them.
ENV PATH=/opt/musher/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MUSHER_STORE__PATH=/data/musher.db \
    MUSHER_INGEST__HOST=0.0.0.0 \
    MUSHER_INGEST__PORT=8080
# Where config.toml is looked for.
WORKDIR /etc/musher
USER 10001:10001
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ['MUSHER_INGEST__PORT']), timeout=4); \
c.request('GET', '/healthz'); \
raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["musher"]
CMD ["run"]
