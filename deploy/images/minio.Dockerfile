# syntax=docker/dockerfile:1
# MinIO from source: the project publishes no images any more. A store to try Flatbed with, on one disk.
# The release is pinned by its tag and by the commit that the tag must name.

ARG BUILD_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
ARG MINIO_RELEASE=RELEASE.2025-10-15T17-29-55Z
ARG MINIO_COMMIT=9e49d5e7a648f00e26f2246f4dc28e6b07f8c84a
WORKDIR /source
RUN git clone --depth 1 --branch "${MINIO_RELEASE}" https://github.com/minio/minio.git . \
 && test "$(git rev-parse HEAD)" = "${MINIO_COMMIT}"
# MinIO refuses some clients when it does not know its own version; its own generator writes the flags that tell it.
# RELEASE.2025-10-15T17-29-55Z is 2025-10-15T17:29:55Z there.
RUN --mount=type=cache,target=/go/pkg/mod,sharing=locked \
    --mount=type=cache,target=/root/.cache/go-build,sharing=locked \
    time=$(printf '%s' "${MINIO_RELEASE#RELEASE.}" | sed 's/T\([0-9]*\)-\([0-9]*\)-/T\1:\2:/') \
 && flags=$(MINIO_RELEASE=RELEASE go run buildscripts/gen-ldflags.go "$time") \
 && CGO_ENABLED=0 go build -trimpath -tags kqueue -ldflags "$flags" -o /out/minio . \
 && cp LICENSE CREDITS /out/

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="minio" \
      org.opencontainers.image.licenses="AGPL-3.0-or-later" \
      org.opencontainers.image.source="https://github.com/minio/minio"
RUN mkdir -p /data /licenses && chown 65532:65532 /data && chmod 0700 /data
COPY --from=build /out/LICENSE /out/CREDITS /licenses/
COPY --from=build /out/minio /usr/local/bin/minio
USER 65532:65532
EXPOSE 9000
ENTRYPOINT ["/usr/local/bin/minio"]
CMD ["server", "/data", "--address", ":9000"]
