# reconsup in a container: `docker build -t reconsup .` (podman: `podman build --format docker …`, else it loses the health
# check).
#
# The folder that PyInstaller makes for `make binary`, on Debian without Python: half the size of a Python image with the
# wheel, and the very program that the stories are run with (specs/decisions.md). The last stage only copies, so that any
# base with glibc 2.36 or newer will do.
ARG BUILD_IMAGE=docker.io/library/python:3.11-bookworm
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
ENV PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=1767225600
WORKDIR /source
COPY packaging/requirements-binary.txt packaging/
RUN ["python", "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", \
     "--only-binary=:all:", "--require-hashes", "--requirement=packaging/requirements-binary.txt"]
COPY pyproject.toml ./
COPY packaging/reconsup.spec packaging/
COPY migrations/ migrations/
COPY reconsup/ reconsup/
RUN ["python", "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR", "--distpath=/made", "packaging/reconsup.spec"]

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="reconsup" \
      org.opencontainers.image.description="Notices on-chain payments and moves the payment requests in PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
COPY LICENSE /usr/share/doc/reconsup/
# What the endpoints' certificates are judged by. The packed OpenSSL looks for it where the variable says.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /made/reconsup-folder /opt/reconsup
ENV PATH=/opt/reconsup:/usr/local/bin:/usr/bin:/bin \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    RECONSUP_METRICS_ADDRESS=0.0.0.0:9464
EXPOSE 9464
# A number, for orchestrators that must see that it is not root. It owns nothing, and nothing is written: the counts of
# the metrics live in /dev/shm, which containers have of their own, else in /tmp.
USER 65532:65532
WORKDIR /
STOPSIGNAL SIGTERM
# Whether the supervisor runs, not whether it is ready: while the database is away healthy supervisors wait, and whoever
# replaces what is unhealthy must leave them alone. `reconsup status --ready` asks the other question. A monitor that
# hangs is replaced by the supervisor after a minute: four checks take longer than that.
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=4 CMD ["/opt/reconsup/reconsup", "status"]
# No shell before it: the supervisor is PID 1, hears the signals and reaps.
ENTRYPOINT ["/opt/reconsup/reconsup"]
